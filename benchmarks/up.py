"""What `torpor up` adds to a request while its component is awake: the same process asked through its activator and directly.

Both are asked in turns, by the same blocking client on a kept connection, and the medians are compared.
"""

import http.client
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from chain import MLP, asking, timed
from loads import BadAnswerError, Rate
from measurements import load_rows
from servers import free_port
from wires import V2Binary

LIMIT_S = 120.0

YAML = f"""\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {{ name: mlp }}
spec:
  predictor:
    containerConcurrency: 64
    model: {{ modelFormat: {{ name: torpor }}, storageUri: "file://{MLP}", args: [--log-level, error] }}
"""


@dataclass(frozen=True)
class Added:
    """Milliseconds at the median; beside it both medians and what is added at p99."""

    label: str
    is_grpc: bool = False

    def measure(self, seconds: float) -> Rate:
        make = asking_grpc if self.is_grpc else asking_rest
        with awake() as (through, direct):
            look = {"through": timed(make(through)), "direct": timed(make(direct))}
            taken: dict[str, list[float]] = {name: [] for name in look}
            for times in look.values():
                times()
            end_s = time.perf_counter() + seconds
            while time.perf_counter() < end_s:
                for name, times in look.items():
                    taken[name] += times()
        middle = {name: statistics.median(times) for name, times in taken.items()}
        late = {name: statistics.quantiles(times, n=100)[-1] for name, times in taken.items()}
        beside = {f"{name} ms": value * 1e3 for name, value in middle.items()}
        beside["added at p99 ms"] = (late["through"] - late["direct"]) * 1e3
        return Rate((middle["through"] - middle["direct"]) * 1e3, math.nan, math.nan, beside)


def asking_rest(port: int) -> Callable[[], object]:
    return asking(port, V2Binary("mlp").encode(load_rows("mlp")[0]).http1())


def asking_grpc(port: int) -> Callable[[], object]:
    import grpc
    from torpor.predictors.protocol.messages import message

    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 784], "contents": {"fp32_contents": [0.5] * 784}}
    request = message("inference.ModelInferRequest")(model_name="mlp", inputs=[tensor]).SerializeToString()
    call = grpc.insecure_channel(f"127.0.0.1:{port}").unary_unary("/inference.GRPCInferenceService/ModelInfer")
    return lambda: call(request)


@contextmanager
def awake() -> Iterator[tuple[int, int]]:
    """The ports of an activator and of the process behind it."""
    with tempfile.TemporaryDirectory(prefix="bench-up-") as scratch:
        file = Path(scratch) / "mlp.yaml"
        file.write_text(YAML)
        port = free_port()
        torpor = Path(sys.executable).with_name("torpor")
        command = [str(torpor), "up", str(file), "--port", str(port), "--state", scratch]
        with (Path(scratch) / "log").open("w") as log:
            process = subprocess.Popen(command, stderr=log)
        try:
            yield port, process_port(port + 1, process)
        finally:
            process.terminate()
            process.wait()


def process_port(page: int, process: subprocess.Popen[bytes]) -> int:
    """Where the component listens itself, once it is awake."""
    end_s = time.monotonic() + LIMIT_S
    while time.monotonic() < end_s and process.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", page, timeout=LIMIT_S)
            connection.request("GET", "/state.json")
            (component,) = json.loads(connection.getresponse().read())["components"]
            connection.close()
        except OSError:
            component = {"process": ""}
        if component["process"]:
            return int(component["process"].rpartition(":")[2])
        time.sleep(0.05)
    raise BadAnswerError("torpor up did not bring it up")
