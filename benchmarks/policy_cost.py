"""What the batching policy costs an item, without a server: offer, expire, take, complete, as the server's driver calls them.

Single rows of 20 lengths, each with a deadline 1 to 2 s away; every twentieth leaves before it runs. As many wait as
`queued` says: what a batch takes is offered anew while the device is busy. An overhead is dear here and a cell cheap, so that
lengths share batches and these are full however few wait. Making the items is not counted, on a server that is decoding.
"""

import random
import time
from dataclasses import dataclass

from torpor.predictors.batching.bucket import Bucket
from torpor.predictors.batching.policy import BatchingPolicy, BatchingSettings, Item
from torpor.predictors.batching.run_times import RunTimes

from loads import Rate

BUCKETS = [Bucket("tokens", (8 * n,)) for n in range(1, 21)]
LEAVING = 0.05
OVERHEAD_S, CELL_S = 0.005, 1e-9
BETWEEN_S = 1e-5
"""From one arrival to the next, on the policy's clock."""

CHUNK = 2_000
"""Items that are made ahead of the stretch that is timed."""


@dataclass(frozen=True)
class PolicyCost:
    """A policy with `queued` rows waiting, in batches of `batch_rows`."""

    label: str
    queued: int
    batch_rows: int

    def measure(self, seconds: float) -> Rate:
        chance = random.Random(0)
        policy: BatchingPolicy[Item] = BatchingPolicy(BatchingSettings(self.batch_rows, 0.002, 100_000), RunTimes())
        for rows, bucket in ((1, BUCKETS[0]), (4, BUCKETS[-1])):
            policy.run_times.observe(rows, bucket, OVERHEAD_S + CELL_S * rows * bucket.cells)
        now = self._fill_up(policy, chance)
        done, spent_s = 0, 0.0
        while spent_s < seconds:
            items = [(_item(now, chance), chance.random() < LEAVING) for _ in range(CHUNK)]
            began_s = time.perf_counter()
            now = self._run(policy, items, now)
            spent_s += time.perf_counter() - began_s
            done += CHUNK
        return Rate(done / spent_s, float("nan"), float("nan"))

    def _fill_up(self, policy: BatchingPolicy[Item], chance: random.Random) -> float:
        for n in range(self.queued):
            policy.offer(_item(n * BETWEEN_S, chance), n * BETWEEN_S)
        return self.queued * BETWEEN_S

    def _run(self, policy: BatchingPolicy[Item], items: list[tuple[Item, bool]], now: float) -> float:
        """Offer all of the items, and take a batch whenever enough wait; the time then."""
        for item, leaves in items:
            now += BETWEEN_S
            policy.offer(item, now)
            policy.expire(now)
            policy.next_deadline_s()
            if leaves:
                policy.cancel(item)
            if policy.queued_rows >= self.queued:
                policy.expire(now)
                batch = policy.take(now, flush=True)
                assert batch is not None
                policy.next_deadline_s()
                policy.complete(batch, OVERHEAD_S + CELL_S * batch.rows * batch.bucket.cells)
        return now


def _item(now: float, chance: random.Random) -> Item:
    return Item(1, chance.choice(BUCKETS), now + chance.uniform(1.0, 2.0))
