"""A revision as it is simulated: its settings, and what its predictor was measured to take."""

from collections.abc import Callable
from dataclasses import dataclass

from torpor.predictors.batching.policy import BatchingSettings

from ..autoscaling import Autoscaling
from .measurement import BatchTimes, Measurement

_DRAIN_S = 30.0
"""queue-proxy's preStop hook waits so long for quiet before a pod gets SIGTERM (knative/serving, pkg/queue/drain)."""

_KILL_S = 2.0
"""After timeoutSeconds a pod is killed; it was gone about two seconds later on a cluster."""


@dataclass(frozen=True)
class Platform:
    """What a cluster adds, in seconds. pod_start_s: from the decision to start a pod to the start of its process, with its
    image there, and from its first answer's being possible to its getting requests; hop_s: of a request through ingress,
    activator and queue-proxy, there and back.

    The defaults are those of a quiet one-node cluster, on which a bare Python server answered 0.86 s after a request woke it.
    """

    pod_start_s: float = 0.7
    hop_s: float = 0.003


@dataclass(frozen=True)
class Setup:
    """timeout_s: the revision's timeoutSeconds."""

    measurement: Measurement
    scaling: Autoscaling
    batching: BatchingSettings
    timeout_s: float = 60.0
    platform: Platform = Platform()

    @property
    def start_s(self) -> float:
        """From the decision to a pod that takes requests."""
        return self.platform.pod_start_s + self.measurement.start_s

    @property
    def around_s(self) -> float:
        """Of each answer, beside the pod's work."""
        return self.platform.hop_s + self.measurement.around_s

    @property
    def going_s(self) -> float:
        """From the decision to end a pod until it is gone."""
        return min(_DRAIN_S, self.timeout_s + _KILL_S)

    def batch_seconds(self) -> Callable[[int, int], float]:
        """By rows and cells; `request_s` of each request comes on top, on the same core."""
        return BatchTimes(self.measurement.batches)
