"""Rules of a pod, whoever makes it: resources, mounts, probes, names."""

from collections.abc import Iterator

from .fields import Field
from .findings import Finding
from .quantities import amount

_LEAST_MEMORY = 1 << 20
_HANDLERS = ("httpGet", "tcpSocket", "grpc", "exec")
PROBES = ("readinessProbe", "livenessProbe", "startupProbe")


def pod(spec: Field) -> Iterator[Finding]:
    """spec: one with containers and volumes; a part of an InferenceService, or a runtime's, is one too."""
    names: dict[str, Field] = {}
    for container in containers(spec):
        yield from resources(container["resources"])
        yield from _probes(container)
        yield from _mounts(container, spec["volumes"])
        name = container["name"]
        if name.text and name.text in names and names[name.text].place[:-2] != name.place[:-2]:
            yield name.finding("duplicate-item", "unique", "a container and an init container share it")
        names.setdefault(name.text, name)


def containers(spec: Field) -> list[Field]:
    """The init containers too."""
    return [*spec["containers"], *spec["initContainers"]]


def resources(resources: Field) -> Iterator[Finding]:
    """requests and limits of a container."""
    for part in ("requests", "limits"):
        for name, quantity in resources[part].entries.items():
            try:
                size = amount(quantity.value if isinstance(quantity.value, str | int | float) else "")
            except ValueError:
                yield quantity.finding("resources", "a quantity, like 500m, 2 or 1.5Gi", "Kubernetes refuses it")
                continue
            if name == "memory" and 0 < size < _LEAST_MEMORY:
                why = "m is a thousandth of a byte" if str(quantity.value).endswith("m") else "it counts bytes"
                yield quantity.finding("memory-unit", "at least 1Mi", f"{why}; no process starts in it")
            if name == "cpu" and size >= 1 << 20:
                yield quantity.finding("resources", "in cores, like 500m or 2", "it is a size of memory")
            if part == "limits" and name in resources["requests"].entries:
                request = resources["requests"][name]
                try:
                    least = amount(request.value)
                except ValueError:
                    continue
                if size < least:
                    yield quantity.finding(
                        "resources", f"at least its request, {request.value}", "Kubernetes refuses it"
                    )


def _probes(container: Field) -> Iterator[Finding]:
    ports = {port["name"].text for port in container["ports"]} - {""}
    for name in PROBES:
        probe = container[name]
        given = [handler for handler in _HANDLERS if handler in probe.entries]
        if len(given) > 1:
            yield probe.finding("probe", f"one of {', '.join(_HANDLERS)}", f"{' and '.join(given)} are refused")
        for handler in ("httpGet", "tcpSocket"):
            port = probe[handler]["port"]
            if port.text and not port.text.isdigit() and port.text not in ports:
                yield port.finding("probe", f"a number or the name of a port ({', '.join(sorted(ports)) or 'none'})",
                                   "the kubelet finds no port of that name, and the pod never gets ready")  # fmt: skip
        for part in ("periodSeconds", "timeoutSeconds", "failureThreshold", "successThreshold", "initialDelaySeconds"):
            if (number := probe[part].number) is not None and number < 0:
                yield probe[part].finding("probe", "at least 0", "Kubernetes refuses it")
        if name != "readinessProbe" and (probe["successThreshold"].number or 1) != 1:
            yield probe["successThreshold"].finding("probe", "1", f"a {name} may have no other")


def _mounts(container: Field, volumes: Field) -> Iterator[Finding]:
    known = {volume["name"].text for volume in volumes}
    paths: dict[str, int] = {}
    for number, mount in enumerate(container["volumeMounts"]):
        name, path = mount["name"], mount["mountPath"]
        if name.text and name.text not in known:
            names = f"one of the volumes, {', '.join(sorted(known))}" if known else "a volume: there are none"
            yield name.finding("mount", names, "the pod is refused")
        if path.text and not path.text.startswith("/"):
            yield path.finding("mount", "an absolute path", "the pod is refused")
        clean = path.text.rstrip("/") or "/"
        if path.text and clean in paths:
            yield path.finding("mount", "unique", f"volumeMounts[{paths[clean]}] is mounted there")
        paths.setdefault(clean, number)
