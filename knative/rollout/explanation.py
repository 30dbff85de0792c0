"""Why a revision is not ready, or went wrong: conditions, events and last lines of its log, as a person would look for."""

from collections.abc import Iterator

from torpor.knative.cluster import Cluster, ClusterAway, ClusterRefused, Object

from .targets import SERVING

LOG_LINES = 12
MOST_EVENTS = 6
SIDECARS = ("queue-proxy", "agent")


def pods_of(cluster: Cluster, namespace: str, revision: str) -> list[Object]:
    return cluster.list("v1", "Pod", namespace, labels=f"serving.knative.dev/revision={revision}")


def model_container(pod: Object) -> Object:
    """The one that is no sidecar of Knative or KServe."""
    containers = pod["spec"]["containers"]
    found: Object = next((each for each in containers if each["name"] not in SIDECARS), containers[0])
    return found


def failed_conditions(shown: Object | None, of: str) -> list[str]:
    """Those that are False, with what they say."""
    conditions = (shown or {}).get("status", {}).get("conditions") or ()
    return [
        f"{of}: {condition['type']} is False: "
        + ": ".join(str(condition[key]) for key in ("reason", "message") if condition.get(key))
        for condition in conditions
        if condition.get("status") == "False" and (condition.get("reason") or condition.get("message"))
    ]


def explain(cluster: Cluster, namespace: str, objects: list[tuple[str, str, str]], revisions: list[str]) -> list[str]:
    """Lines to print. objects: (apiVersion, kind, name) whose conditions count. What cannot be had is left out."""
    lines: list[str] = []
    try:
        for api_version, kind, name in [*objects, *((SERVING, "Revision", revision) for revision in revisions)]:
            lines += failed_conditions(cluster.get(api_version, kind, namespace, name), f"{kind} {name}")
        for revision in revisions:
            lines += _events(cluster, namespace, revision)
            lines += _log(cluster, namespace, revision)
    except (ClusterAway, ClusterRefused) as error:
        lines.append(f"there may be more to say, but the API server: {error}")
    return list(dict.fromkeys(lines))


def _events(cluster: Cluster, namespace: str, revision: str) -> Iterator[str]:
    """Warnings about the revision and what was made for it: Deployment, ReplicaSet and pods have names that begin with its."""
    found = [
        event
        for event in cluster.list("v1", "Event", namespace, fields="type=Warning")
        if str(event["involvedObject"].get("name", "")).startswith(revision)
    ]
    found.sort(key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""))
    for event in found[-MOST_EVENTS:]:
        about = event["involvedObject"]
        text = " ".join(str(event.get("message", "")).split())
        yield f"event of {about['kind']} {about['name']}: {event.get('reason', '')}: {text[:400]}"


def _log(cluster: Cluster, namespace: str, revision: str) -> Iterator[str]:
    for pod in pods_of(cluster, namespace, revision):
        container = model_container(pod)["name"]
        status: Object = next(
            (each for each in pod.get("status", {}).get("containerStatuses") or () if each["name"] == container), {}
        )
        state = status.get("state") or {}
        if "waiting" in state and not status.get("restartCount"):
            yield f"pod {pod['metadata']['name']}: {state['waiting'].get('reason')}: {state['waiting'].get('message', '')}"
            continue
        ended = (status.get("lastState") or {}).get("terminated") or state.get("terminated")
        if ended:
            yield f"pod {pod['metadata']['name']}: ended with {ended.get('exitCode')}, {ended.get('reason', '')}"
        previous = "running" not in state and bool(status.get("restartCount"))
        try:
            text = cluster.log(namespace, pod["metadata"]["name"], container, LOG_LINES, previous)
        except ClusterRefused:
            continue
        yield from (f"log of {pod['metadata']['name']}: {line}" for line in text.splitlines()[-LOG_LINES:] if line)
