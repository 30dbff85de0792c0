"""The planner beside a real cluster: `planned.py [TRACE ...] [--rounds N] [--seconds S] [--measurement FILE] [--json FILE]`.

Seeded traces are played on a Knative Service of the MLP, each several times and from zero, and simulated by the planner's own
code. What the simulation knows was measured before the first run, as a user of `torpor plan` measures it: the predictor on
this machine, and on the cluster how long a request waits that wakes it (`--pod-start`) and one that does not (`--hop`).

A trace holds when the simulated pod-seconds are within 15 % of the runs' median, the cold starts within one of it, and the p95
in the runs' range widened by 15 %. It ends with 0 when all do, with 1 when one does not, with 2 after a wrong answer.

Needs $KUBECONFIG, $INGRESS (the address of Knative's ingress, http://HOST:PORT), kubectl, and as $TORPOR_IMAGE
(localhost/torpor:dev) the image that the Dockerfile makes. Alone on the machine: all together takes 40 minutes.
"""

import argparse
import asyncio
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
from torpor.knative.autoscaling import PREFIX, Autoscaling
from torpor.knative.plan import by_request
from torpor.knative.plan.measurement import Measurement
from torpor.knative.plan.measuring import measure
from torpor.knative.plan.setup import Platform, Setup
from torpor.knative.plan.shape import rates
from torpor.knative.plan.traffic import Drawn, Traffic
from torpor.predictors.batching.policy import BatchingSettings

from chain import MLP
from cluster import IMAGE, REQUESTS, Kubectl, Pods, check_environment, container, ingress, knative_service
from loads import BadAnswerError
from measurements import probe_rows
from probe import is_right
from report import machine
from run import alone, say
from wires import V2Binary

BATCHING = BatchingSettings(max_batch_size=32, batch_timeout_s=0.002)
TIMEOUT_S = 15
"""timeoutSeconds: what a start may take, and beyond 2 s how long a pod drains."""

WAKES = 5
LONE_ASKS = 100
AROUND = 0.15
"""What pod-seconds may be apart, and by how much the p95's range is widened."""


@dataclass(frozen=True)
class Trace:
    """annotations: of the revision, without their prefix. The panic window is 6 s, as that of Knative's default window."""

    name: str
    shape: str
    seed: int
    container_concurrency: int
    annotations: dict[str, str]

    @property
    def scaling(self) -> Autoscaling:
        return Autoscaling.of(self._prefixed, self.container_concurrency)

    @property
    def _prefixed(self) -> dict[str, str]:
        common = {"window": "10s", "panic-window-percentage": "60"}
        return {PREFIX + name: value for name, value in {**common, **self.annotations}.items()}

    def traffic(self, seconds: float) -> Traffic:
        drawn = Drawn(self.shape, rates(self.shape), seed=self.seed)
        return drawn.part(0.0, min(seconds, drawn.duration_s))

    def service(self) -> dict[str, Any]:
        env = [
            {"name": "TORPOR_MAX_BATCH_SIZE", "value": str(BATCHING.max_batch_size)},
            {"name": "TORPOR_BATCH_TIMEOUT_MICROS", "value": f"{1e6 * BATCHING.batch_timeout_s:.0f}"},
        ]
        mlp = container(IMAGE, args=["/opt/torpor/examples/mlp"], env=env, resources={"requests": REQUESTS})
        spec = {
            "containerConcurrency": self.container_concurrency,
            "timeoutSeconds": TIMEOUT_S,
            "containers": [mlp],
        }
        return knative_service(self.name, self._prefixed, spec)


TRACES = (
    Trace("sparse", "poisson 8/min for 2m", 171, 0, {"target": "10", "max-scale": "2"}),
    Trace("bursts", "bursts 12/s of 6s every 40s for 2m", 172, 8, {"max-scale": "2"}),
    Trace(
        "steps",
        "poisson 11/s for 15s then poisson 4/s for 25s then quiet for 40s then poisson 11/s for 15s then quiet for 25s",
        173,
        0,
        {"metric": "rps", "target": "10", "max-scale": "3"},
    ),
)


@dataclass
class Run:
    """What a run or a simulation came to.

    pods: seconds since the trace's begin at which each was created, called ready, told to go, and gone.
    """

    pod_seconds: float
    cold_starts: float
    p50_s: float
    p95_s: float
    pods: Sequence[Sequence[float]] = ()
    late_s: Sequence[float] = field(default=(), repr=False)
    """Latencies in the order of arrival."""


class Client:
    """Sends rows of the MLP through the ingress, each on a connection of its own, and looks at the answers."""

    def __init__(self, host: str) -> None:
        self._wire = V2Binary("mlp")
        rows, self._expected = probe_rows("mlp")
        exchanges = [self._wire.encode(row) for row in rows]
        closing = [replace(one, headers={**one.headers, "Connection": "close"}) for one in exchanges]
        self._messages = [exchange.http1(host) for exchange in closing]
        self._address = ingress()

    async def ask(self, index: int) -> None:
        """Raises BadAnswerError."""
        index %= len(self._messages)
        reader, writer = await asyncio.open_connection(*self._address)
        writer.write(self._messages[index])
        answer = await reader.read()
        writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        if " 200 " not in f"{status} ":
            raise BadAnswerError(f"{status}: {body[:200]!r}")
        values = self._wire.decode(headers, body)[0]
        if not is_right(values, self._expected[index]):
            raise BadAnswerError(f"{values[:4]}... instead of {self._expected[index][:4]}...")

    async def play(self, arrivals: Sequence[float], began_s: float) -> list[float]:
        """Latencies, each from when its request was due, whatever became of those before."""

        async def one(index: int, due_s: float) -> float:
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            await self.ask(index)
            return time.monotonic() - due_s

        return await asyncio.gather(*(one(index, began_s + at_s) for index, at_s in enumerate(arrivals)))


@contextmanager
def deployed(kubectl: Kubectl, trace: Trace) -> Iterator[tuple[Client, Pods]]:
    """At zero, once it has been ready."""
    kubectl.apply(trace.service())
    host = kubectl.host(trace.name)
    pods = Pods(kubectl, trace.name)
    try:
        time.sleep(1.0)
        pods.wait_for_none()
        yield Client(host), pods
    finally:
        pods.stop()
        kubectl("delete", "ksvc", trace.name)


def platform(kubectl: Kubectl, measurement: Measurement) -> Platform:
    """What the cluster adds to a start and to a request, medians of requests one at a time."""

    async def timed(client: Client, index: int) -> float:
        began_s = time.monotonic()
        await client.ask(index)
        return time.monotonic() - began_s

    async def awake(client: Client) -> list[float]:
        taken = []
        for index in range(LONE_ASKS):
            await asyncio.sleep(0.03)
            taken.append(await timed(client, index))
        return taken

    woken, lone = [], []
    with deployed(kubectl, TRACES[0]) as (client, pods):
        for _ in range(WAKES):
            pods.wait_for_none()
            time.sleep(2.0)
            woken.append(asyncio.run(timed(client, 0)))
            say(f"zero to the first answer: {woken[-1]:.2f} s")
            lone += asyncio.run(awake(client))
    lone_s = median(lone)
    model_s = measurement.batches[0].seconds + measurement.request_s
    hop_s = max(0.0, lone_s - model_s - measurement.around_s)
    say(f"awake: {1e3 * lone_s:.1f} ms, p95 {1e3 * quantiles(lone, n=20)[-1]:.1f} ms; --hop {1e3 * hop_s:.1f} ms")
    start_s = median(woken) - lone_s - measurement.start_s
    say(f"a start: {measurement.start_s:.2f} s here as a process; --pod-start {start_s:.2f} s")
    return Platform(start_s, hop_s)


def play(client: Client, pods: Pods, traffic: Traffic) -> Run:
    pods.wait_for_none()
    time.sleep(2.0)
    pods.forget()
    began_s = time.monotonic() + 0.5
    late_s = asyncio.run(client.play([request.sent_s for request in traffic.arrivals()], began_s))
    time.sleep(max(0.0, began_s + traffic.duration_s - time.monotonic()))
    pods.wait_for_none()
    seen = [[at_s - began_s for at_s in pod] for pod in pods.seen.values()]
    return Run(
        sum(min(gone_s, traffic.duration_s) - min(created_s, traffic.duration_s) for created_s, _, _, gone_s in seen),
        len(pods.wakes),
        median(late_s),
        float(np.quantile(late_s, 0.95, method="inverted_cdf")),
        seen,
        late_s,
    )


def simulated(setup: Setup, traffic: Traffic) -> Run:
    outcome = by_request.simulate(setup, traffic, awake=0)
    return Run(outcome.pod_seconds, outcome.wakes, outcome.latencies.at(0.5), outcome.latencies.at(0.95))


def verdicts(simulated: Run, runs: Sequence[Run]) -> dict[str, bool]:
    p95_s = [run.p95_s for run in runs]
    return {
        "pod-seconds": abs(simulated.pod_seconds / median(run.pod_seconds for run in runs) - 1) <= AROUND,
        "cold starts": abs(simulated.cold_starts - median(run.cold_starts for run in runs)) <= 1,
        "p95, s": (1 - AROUND) * min(p95_s) <= simulated.p95_s <= (1 + AROUND) * max(p95_s),
    }


def table(found: dict[str, tuple[Run, list[Run]]]) -> str:
    columns = {"pod-seconds": "pod_seconds", "cold starts": "cold_starts", "p50, s": "p50_s", "p95, s": "p95_s"}
    rounds = max(len(runs) for _, runs in found.values())
    lines = [f"{'':<20} {'simulated':>9}  {'runs':<{9 * rounds}} {'median':>8}"]
    for name, (expected, runs) in found.items():
        judged = verdicts(expected, runs)
        for column, attribute in columns.items():
            values = [getattr(run, attribute) for run in runs]
            digits = 3 if attribute.endswith("_s") else 0
            each = "".join(f"{value:9.{digits}f}" for value in values)
            verdict = {True: "holds", False: "MISSED", None: ""}[judged.get(column)]
            ours = f"{getattr(expected, attribute):9.{digits}f}"
            lines.append(f"{name + ': ' + column:<20} {ours}  {each} {median(values):8.{digits}f}  {verdict}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="planned.py", description="The planner beside a real cluster.")
    known = [trace.name for trace in TRACES]
    parser.add_argument("names", nargs="*", metavar="TRACE", help=f"of {', '.join(known)}; without any, all")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each trace (default 5)")
    parser.add_argument("--seconds", type=float, default=math.inf, help="only so much of each trace")
    parser.add_argument("--measurement", type=Path, metavar="FILE",
                        help="of examples/mlp, by `torpor plan --save-measurement`; else it is measured now")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run there as well")
    options = parser.parse_args()
    traces = {trace.name: trace for trace in TRACES if trace.name in (options.names or known)}
    if unknown := {*options.names} - {*traces}:
        parser.error(f"unknown trace {unknown.pop()}, must be one of {', '.join(known)}")
    check_environment(parser)
    found: dict[str, tuple[Run, list[Run]]] = {}
    with alone(), Kubectl("planned") as kubectl:
        measurement = Measurement.read(options.measurement) if options.measurement else measure(MLP, say=say)
        adds = platform(kubectl, measurement)
        for name, trace in traces.items():
            traffic = trace.traffic(options.seconds)
            setup = Setup(measurement, trace.scaling, BATCHING, TIMEOUT_S, adds)
            found[name] = simulated(setup, traffic), []
            say(f"{name}: simulated {found[name][0]}")
            with deployed(kubectl, trace) as (client, pods):
                for number in range(options.rounds):
                    found[name][1].append(run := play(client, pods, traffic))
                    say(f"{name} {number + 1}/{options.rounds}: {run}")
            print(table({name: found[name]}), flush=True)
    if options.json:
        traced = {
            name: {"simulated": asdict(expected), "runs": [*map(asdict, runs)], "holds": verdicts(expected, runs)}
            for name, (expected, runs) in found.items()
        }
        told = {"traces": traced, "platform": asdict(adds), "measurement": asdict(measurement), "machine": machine()}
        options.json.write_text(json.dumps(told, indent=2) + "\n")
    return 0 if all(all(verdicts(*each).values()) for each in found.values()) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BadAnswerError as error:
        say(f"WRONG OR REFUSED: {error}")
        sys.exit(2)
