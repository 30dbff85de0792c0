"""A real Envoy in front of the pods: no retries, endpoints from a file that is replaced as the control plane would.

The header `x-upstream` of its answers, its own errors included, is the local port of its connection to the pod, and
`x-flags` its response flags (`-`: the pod answered; UC: the connection ended, UF: there was none).
"""

import http.client
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environments import UnavailableError, python_of
from servers import free_port

_LIMIT_S = 10.0
_TYPES = "type.googleapis.com/envoy"
_UNBOUNDED = 1_000_000


@dataclass(frozen=True)
class Envoy:
    port: int
    folder: Path
    process: subprocess.Popen[bytes]

    def set_endpoints(self, ports: Sequence[int]) -> None:
        """Replace the endpoints; returns when Envoy has."""
        write_endpoints(self.folder, ports)
        limit_s = time.monotonic() + _LIMIT_S
        while self._endpoints() != sorted(ports):
            if time.monotonic() > limit_s:
                raise UnavailableError(f"Envoy did not take the endpoints {ports}")
            time.sleep(0.005)

    def _endpoints(self) -> list[int]:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port + 1, timeout=5)
            connection.request("GET", "/clusters?format=json")
            (cluster,) = json.loads(connection.getresponse().read())["cluster_statuses"]
            connection.close()
        except OSError:
            return []
        hosts = cluster.get("host_statuses", [])
        return sorted(host["address"]["socket_address"]["port_value"] for host in hosts)


@contextmanager
def envoy(endpoints: Sequence[int], upstream: str) -> Iterator[Envoy]:
    """upstream: http, or http2, as Envoy's options are called."""
    binary = next((python_of("envoy").parents[1] / "lib").glob("python*/site-packages/envoy/_bin/envoy"))
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="bench-envoy-"))
    write_endpoints(folder, endpoints)
    (folder / "envoy.json").write_text(json.dumps(_configuration(folder, port, upstream)))
    command = [str(binary), "-c", str(folder / "envoy.json"), "--concurrency", "2", "--disable-hot-restart",
               "--log-level", "error"]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
        running = Envoy(port, folder, process)
        try:
            running.set_endpoints(endpoints)
        except UnavailableError as error:
            raise UnavailableError(f"{error}: {(folder / 'log').read_text()[-500:]}") from error
        yield running
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


def write_endpoints(folder: Path, ports: Sequence[int]) -> None:
    """Envoy watches for the file's replacement."""
    endpoints = [{"endpoint": {"address": _address(port)}} for port in ports]
    assignment = {
        "@type": f"{_TYPES}.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": "pods",
        "endpoints": [{"lb_endpoints": endpoints}],
    }
    draft = folder / "endpoints.draft"
    draft.write_text(json.dumps({"resources": [assignment]}))
    draft.rename(folder / "endpoints.json")


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _configuration(folder: Path, port: int, upstream: str) -> dict[str, Any]:
    route = {
        "match": {"prefix": "/"},
        "route": {"cluster": "pods", "timeout": "60s"},
        "response_headers_to_add": [
            {"header": {"key": "x-upstream", "value": "%UPSTREAM_LOCAL_ADDRESS%"}},
            {"header": {"key": "x-flags", "value": "%RESPONSE_FLAGS%"}},
        ],
    }
    manager = {
        "@type": f"{_TYPES}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "callers",
        "route_config": {"virtual_hosts": [{"name": "pods", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_TYPES}.extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    listener = {
        "address": _address(port),
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }
    limits = ("max_connections", "max_pending_requests", "max_requests")
    cluster = {
        "name": "pods",
        "type": "EDS",
        "connect_timeout": "5s",
        "eds_cluster_config": {
            "eds_config": {
                "resource_api_version": "V3",
                "path_config_source": {"path": str(folder / "endpoints.json")},
            }
        },
        "circuit_breakers": {"thresholds": [dict.fromkeys(limits, _UNBOUNDED)]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{_TYPES}.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {f"{upstream}_protocol_options": {}},
            }
        },
    }
    return {
        "node": {"id": "bench", "cluster": "bench"},
        "admin": {"address": _address(port + 1)},
        "static_resources": {"listeners": [listener], "clusters": [cluster]},
    }
