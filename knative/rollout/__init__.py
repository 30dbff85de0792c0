"""A new revision of an InferenceService or Knative Service, tried on a part of the traffic, and promoted or taken back.

`Rollout` drives one over a cluster; what is decided is `course.Course`'s, a state machine without either.
"""

from torpor.knative.cluster import ApiServer, ClusterAway, ClusterRefused

from .course import Terms
from .judgement import Tolerance
from .metrics import PodMetrics, PrometheusMetrics
from .rollout import Outcome, Rollout, Superseded
from .smoke import Smoke
from .targets import find_target, target_of

__all__ = [
    "ApiServer",
    "ClusterAway",
    "ClusterRefused",
    "Outcome",
    "PodMetrics",
    "PrometheusMetrics",
    "Rollout",
    "Smoke",
    "Superseded",
    "Terms",
    "Tolerance",
    "find_target",
    "target_of",
]
