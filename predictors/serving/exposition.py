"""Prometheus's text format, in which Triton's counters have Triton's names.

These do not end with `_total`, as counters should and prometheus_client has it
(https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/metrics.html).
"""

import re
from typing import Any

_TRITONS = re.compile(rb"^((?:# (?:HELP|TYPE) )?nv_inference_\w+)_total\b", re.MULTILINE)


def exposition(*collectors: Any) -> bytes:
    """The text of prometheus_client's collectors."""
    # Imported when somebody asks: neither a supervisor nor a start should pay for it.
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    for collector in collectors:
        registry.register(collector)
    return _TRITONS.sub(rb"\1", generate_latest(registry))
