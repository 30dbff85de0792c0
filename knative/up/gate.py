"""Who may go to a component now, and who waits: containerConcurrency with a queue in order of arrival, open while it is awake.

The bounds are Knative's: its activator lets 10 000 wait; without it in the path (target-burst-capacity 0) a pod's queue-proxy
lets 10 times containerConcurrency wait.
"""

from collections import OrderedDict
from collections.abc import Callable

from torpor.predictors.errors import QueueFull

from ..autoscaling import Autoscaling

_ACTIVATOR_QUEUE = 10_000
_QUEUE_PROXY_FACTOR = 10


class Ticket:
    """One request. granted: called when it may go, perhaps at once."""

    __slots__ = ("began_s", "granted", "is_granted")

    def __init__(self, granted: Callable[[], None], now_s: float) -> None:
        self.granted = granted
        self.began_s = now_s
        self.is_granted = False


class Gate:
    """Belongs to one component."""

    def __init__(self, autoscaling: Autoscaling) -> None:
        self._limit = autoscaling.container_concurrency
        is_activator_out = bool(self._limit) and autoscaling.target_burst_capacity == 0
        self._awake_depth = self._limit * _QUEUE_PROXY_FACTOR if is_activator_out else _ACTIVATOR_QUEUE
        self.is_open = False
        self.inside = 0
        self._waiting: OrderedDict[Ticket, None] = OrderedDict()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def enter(self, ticket: Ticket) -> None:
        """Grant it now or later. Raises QueueFull."""
        depth = self._awake_depth if self.is_open else _ACTIVATOR_QUEUE
        if len(self._waiting) >= depth:  # nobody waits while there is room
            raise QueueFull(f"requests that wait = {len(self._waiting)}, must stay below {depth}", 1.0)
        self._waiting[ticket] = None
        self._let_in()

    def pass_by(self, ticket: Ticket) -> None:
        """Grant it although the gate is closed."""
        self._grant(ticket)

    def leave(self, ticket: Ticket) -> None:
        """It has been answered, or nobody waits for it any more."""
        if ticket.is_granted:
            self.inside -= 1
            self._let_in()
        else:
            self._waiting.pop(ticket, None)

    def open(self) -> None:
        self.is_open = True
        self._let_in()

    def close(self) -> None:
        self.is_open = False

    def _has_room(self) -> bool:
        return self.is_open and (not self._limit or self.inside < self._limit)

    def _let_in(self) -> None:
        while self._waiting and self._has_room():
            self._grant(self._waiting.popitem(last=False)[0])

    def _grant(self, ticket: Ticket) -> None:
        self.inside += 1
        ticket.is_granted = True
        ticket.granted()
