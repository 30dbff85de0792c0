"""The course of a roll-out that is watched, as a function of counts: when its share is raised, when it stops by itself."""

from dataclasses import dataclass
from enum import Enum

from .reports import Standing
from .rollout import WHOLE, Rollout


@dataclass(frozen=True)
class Terms:
    """steps: shares of all nodes, ascending. hold_s: of each. most_failed: share of the nodes that have tried the version, in
    [0, 1). least: reports without which no share is raised; before there are so many, failures are counted as if there were.
    """

    steps: tuple[int, ...] = ()
    hold_s: float = 600.0
    most_failed: float = 0.05
    least: int = 5


class Do(Enum):
    WAIT = "wait"
    RAISE = "raise"
    STOP = "stop"
    END = "end"


@dataclass(frozen=True)
class Order:
    """what: to be done. share: to raise to. why: for people."""

    what: Do
    share: int = 0
    why: str = ""


def order(rollout: Rollout, standing: Standing, since_s: float, terms: Terms) -> Order:
    """since_s: since the share was last raised."""
    failed, tried = len(standing.failed), standing.tried
    bound = terms.most_failed * max(tried, terms.least)
    if failed > bound:
        return Order(Do.STOP, why=f"{failed} of {tried} nodes failed, more than {100 * terms.most_failed:g} %")
    if rollout.is_paused:
        return Order(Do.END, why="the roll-out is paused")
    if since_s < terms.hold_s:
        return Order(Do.WAIT, why=f"held for {terms.hold_s - since_s:.0f} s more")
    if tried < terms.least and rollout.share > 0:
        return Order(Do.WAIT, why=f"{tried} nodes have reported, {terms.least} must have")
    step = next((step for step in terms.steps if step > rollout.share), None)
    if step is not None:
        return Order(Do.RAISE, step)
    if terms.steps or rollout.share == WHOLE:
        return Order(Do.END, why="the last step was held")
    return Order(Do.WAIT, why="no further step")
