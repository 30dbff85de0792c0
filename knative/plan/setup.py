"""A revision as it is simulated: its settings, and what its predictor was measured to take."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torpor.predictors.batching.policy import BatchingSettings

from ..autoscaling import Autoscaling
from .measurement import BatchTimes, Measurement

_DRAIN_S = 30.0
"""queue-proxy's preStop hook waits so long for quiet before a pod gets SIGTERM (knative/serving, pkg/queue/drain), but no
longer than timeoutSeconds, which is the pod's grace period too.
"""

_EXIT_S = 1.0
"""After SIGTERM until a pod is gone; on a cluster of one node 0.7 to 1.4 s."""

_PROBE_PERIOD_S, _PROBE_TIMEOUT_S = 10.0, 1.0
"""The kubelet's, of queue-proxy, unless the predictor's readinessProbe says otherwise; queue-proxy keeps a probe waiting until
the predictor is ready (knative/serving, pkg/reconciler/revision/resources/queue.go and pkg/queue/readiness).
"""


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
    def known_after_s(self) -> float:
        """From then until Kubernetes calls it ready: who looks at that are the autoscaler and, past the activator, routing.

        The activator asks each pod itself. The kubelet's first probe comes with the process's start; one that is given up
        is followed by the next a period later.
        """
        start_s = self.measurement.start_s
        given_up = math.ceil(max(0.0, start_s - _PROBE_TIMEOUT_S) / _PROBE_PERIOD_S)
        return max(0.0, _PROBE_PERIOD_S * given_up - start_s)

    @property
    def around_s(self) -> float:
        """Of each answer, beside the pod's work."""
        return self.platform.hop_s + self.measurement.around_s

    @property
    def going_s(self) -> float:
        """From the decision to end a pod until it is gone."""
        return min(_DRAIN_S, self.timeout_s) + _EXIT_S

    def batch_seconds(self) -> Callable[[int, int], float]:
        """By rows and cells; `request_s` of each request comes on top, on the same core."""
        return BatchTimes(self.measurement.batches)
