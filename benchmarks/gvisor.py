"""torpor in a container of gVisor (runsc) beside the same container by runc: what the sandbox costs.

The load comes from outside, through a pair of virtual Ethernet devices, as a pod's does: gVisor's own network stack is in
the way, and this machine's kernel in both. One container runs at a time.
"""

import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from torpor.edge.profiles.sandbox import VARIABLES

import loads
from environments import BENCHMARKS
from loads import CONNECTIONS, Rate
from measurements import CORES, THREADS, load_rows, probe_rows
from probe import START_LIMIT_S, Probe
from sandbox import contained, network
from servers import Torpor, environment_of, started
from wires import V2Binary

PORT = 8080

FLAGS = {"runc": (), "runsc": ("--overlay2=none",)}
"""The root is an overlay already."""


@dataclass(frozen=True)
class Contained:
    """Requests a second; beside it the seconds from the runtime's start to the first right answer, and MiB of memory."""

    label: str
    runtime: str
    model: str
    is_profiled: bool = False
    """As `torpor edge profile` has it for gVisor, with an instance for each core; else as a server is by itself."""

    def measure(self, seconds: float) -> Rate:
        loads.require("wrk")
        wire, peer = V2Binary(self.model), Torpor("torpor")
        command = peer.command(self.model, PORT, CONNECTIONS)
        threads = 1 if self.is_profiled else THREADS[self.model]
        variables = environment_of(peer, self.model, "", PORT, CONNECTIONS, threads, "")
        variables["TORPOR_THREADS"] = str(threads)
        if self.is_profiled:
            variables |= {"TORPOR_DEVICE": ",".join(["cpu"] * CORES)}
            variables |= {name: value for name, (value, _) in VARIABLES.items()}
        with (
            tempfile.TemporaryDirectory(prefix="bench-gvisor-") as scratch,
            network() as net,
            contained(self.runtime, FLAGS[self.runtime], command, variables, BENCHMARKS, net) as container,
        ):
            probe = Probe(wire, *probe_rows(self.model), host=net.address)
            file = Path(scratch) / "bodies"
            loads.write_requests([wire.encode(row) for row in load_rows(self.model)], file)
            began_s = time.perf_counter()
            with started(container.command, Path(scratch), variables, PORT) as server:
                end_s = time.monotonic() + START_LIMIT_S
                while not _is_open(net.address) and time.monotonic() < end_s:
                    server.check_alive()
                    time.sleep(0.001)
                probe.wait_ready(server, PORT)
                start_s = time.perf_counter() - began_s
                first_mib = container.memory_mib()
                loads.over_http1(PORT, file, peer.warm_s, host=net.address)
                with probe.beside(PORT):
                    rate = loads.over_http1(PORT, file, seconds, host=net.address)
                beside = {"cold start s": start_s, "MiB after the first answer": first_mib,
                          "MiB under load": container.memory_mib()}  # fmt: skip
        return Rate(rate.value, rate.p50_ms, rate.p99_ms, beside)


def _is_open(address: str) -> bool:
    try:
        # Briefly: what comes while gVisor takes the device over is dropped, and would be repeated after a second.
        socket.create_connection((address, PORT), 0.05).close()
    except OSError:
        return False
    return True
