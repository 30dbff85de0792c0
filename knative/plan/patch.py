"""A plan as YAML: an InferenceService's fields, each with its reason as a comment, to be merged into one that there is.

`kubectl patch inferenceservice NAME --type merge --patch-file` takes it as well, but for the containers, whose list a merge
would replace: `torpor render` merges them by name.
"""

from ..autoscaling import PREFIX
from ..durations import duration
from .search import Plan


def patch(plan: Plan, name: str) -> str:
    setup, reasons = plan.setup, plan.reasons
    scaling, batching = setup.scaling, setup.batching
    memory = f"{plan.memory_bytes >> 20}Mi"
    lines = [
        ("apiVersion: serving.kserve.io/v1beta1", ""),
        ("kind: InferenceService", ""),
        ("metadata:", ""),
        (f"  name: {name}", ""),
        ("  annotations:", ""),
        ("    serving.kserve.io/deploymentMode: Knative", "always written: a missing one means the cluster's default"),
        (f'    {PREFIX}window: "{duration(scaling.window_s)}"', reasons["window"]),
        (f'    {PREFIX}scale-to-zero-pod-retention-period: "{duration(scaling.retention_s)}"', reasons["retention"]),
        (f'    {PREFIX}initial-scale: "{scaling.initial_scale}"', reasons["initial_scale"]),
        (f'    {PREFIX}target-utilization-percentage: "{scaling.target_utilization_percentage:g}"', "Knative's default"),
        ("spec:", ""),
        ("  predictor:", ""),
        (f"    minReplicas: {scaling.min_scale}", reasons["min_scale"]),
        (f"    maxReplicas: {scaling.max_scale}", reasons["max_scale"]),
        ("    scaleMetric: concurrency", ""),
        (f"    scaleTarget: {scaling.target or scaling.container_concurrency or 100:g}", reasons["target"]),
        (f"    containerConcurrency: {scaling.container_concurrency}", reasons["container_concurrency"]),
        (f"    timeout: {setup.timeout_s:g}", f"seconds; a start takes {setup.start_s:.2g} of them, {_phases(plan)}"),
        ("    containers:", ""),
        ("      - name: kserve-container", ""),
        ("        env:", ""),
        (f'          - {{ name: TORPOR_MAX_BATCH_SIZE, value: "{batching.max_batch_size}" }}', reasons["max_batch_size"]),
        (f'          - {{ name: TORPOR_BATCH_TIMEOUT_MICROS, value: "{1e6 * batching.batch_timeout_s:.0f}" }}',
         reasons["batch_timeout_micros"]),
        ("        resources:", ""),
        ("          requests:", ""),
        (f"            cpu: {_cores(plan.cpu_request)}", reasons["cpu_request"]),
        (f"            memory: {memory}", reasons["memory"]),
        ("          limits:", ""),
        (f"            cpu: {_cores(plan.cpu_limit)}", reasons["cpu_limit"]),
        (f"            memory: {memory}", "as requested: memory cannot be lent"),
    ]  # fmt: skip
    return "".join(f"{text} # {reason}\n" if reason else f"{text}\n" for text, reason in lines)


def _cores(value: float) -> str:
    return f'"{value:g}"' if value == int(value) else f"{round(1000 * value)}m"


def _phases(plan: Plan) -> str:
    start = plan.setup.measurement.start
    named = ", ".join(f"{phase} {seconds:.2g}" for phase, seconds in start.items() if seconds >= 0.01)
    return f"pod {plan.setup.platform.pod_start_s:g}, {named}"
