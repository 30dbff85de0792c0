"""Is a candidate worse than the stable revision beside it? Both are counted over the same time.

Errors and slow answers are judged alike: of n there were k, where the stable revision lets one expect a share p. If k or more
of n would come by chance in less than one case in a thousand, the candidate is bad, however few n are: three errors of three
are enough. So a verdict can be asked for every second, and what is bad is known early.
"""

import math
from dataclasses import dataclass

from .counts import LATENCIES, Counts

CHANCE = 0.001
"""Of taking back a candidate that is as good as the stable revision, at one look."""
FEWEST_BAD = 3
"""Errors or slow answers that anything follows from."""


@dataclass(frozen=True)
class Tolerance:
    """errors: the share of errors above the stable revision's that is put up with. latency_ratio, latency_slack_s: an answer is
    slow when it took longer than the stable revision's 99th percentile so many times, and this in addition. requests: that a
    candidate must have answered to be called good.
    """

    errors: float = 0.01
    latency_ratio: float = 2.0
    latency_slack_s: float = 0.02
    requests: int = 20


@dataclass(frozen=True)
class Verdict:
    """good: None while there is too little to say. why: of a bad one the reason, of an open one what is missing."""

    good: bool | None
    why: str = ""


def judge(candidate: Counts, stable: Counts, tolerance: Tolerance) -> Verdict:
    """What can be said by now."""
    expected = tolerance.errors + (stable.errors / stable.requests if stable.requests else 0.0)
    errors = f"{candidate.errors:.0f} errors of {candidate.requests:.0f} requests"
    beside = f"the stable revision had {stable.errors:.0f} of {stable.requests:.0f}"
    if _more_than_chance(candidate.errors, candidate.requests, expected):
        return Verdict(False, f"{errors}; {beside}")
    for name, what in LATENCIES.items():
        if not stable.observed(name):
            continue
        limit_s = stable.p99_s(name) * tolerance.latency_ratio + tolerance.latency_slack_s
        slow, of = candidate.slower(name, limit_s), candidate.observed(name)
        if _more_than_chance(slow, of, 0.01):
            p99 = f"p99 of {what} is {candidate.p99_s(name):g} s, the stable revision's {stable.p99_s(name):g} s"
            return Verdict(False, f"{p99}: {slow:.0f} of {of:.0f} took longer than {limit_s:g} s")
    if candidate.requests < tolerance.requests:
        return Verdict(None, f"{candidate.requests:.0f} requests of the {tolerance.requests} that it takes to judge")
    if candidate.errors and candidate.errors / candidate.requests > expected:
        return Verdict(None, f"{errors}, too many to promote and too few to be certain; {beside}")
    return Verdict(True)


def _more_than_chance(bad: float, of: float, expected: float) -> bool:
    """Whether `bad` or more of `of` are unlikely at this share: the upper tail of the binomial distribution."""
    count, total = round(bad), round(of)
    if count < FEWEST_BAD or count <= expected * total or expected >= 1:
        return False
    if expected <= 0:
        return True
    log_p, log_q = math.log(expected), math.log1p(-expected)
    tail = 0.0
    for k in range(count, total + 1):
        ways = math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1)
        term = math.exp(ways + k * log_p + (total - k) * log_q)
        tail += term
        if term < tail * 1e-9:  # they only fall from here on
            break
    return tail < CHANCE
