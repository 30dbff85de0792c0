"""The load: wrk for HTTP/1.1, h2load for gRPC; both count what went wrong, and anything wrong fails the run.

wrk rotates prepared requests, so that no server can live on one cached body. h2load knows only one body for all; it
sees the HTTP status but not `grpc-status`, therefore the received data must have the size of as many good answers as
it counted: a gRPC error carries no data.
"""

import json
import math
import re
import shutil
import struct
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from environments import BENCHMARKS, UnavailableError
from wires import Exchange

CONNECTIONS = 64
PACKAGES = {"wrk": "wrk", "h2load": "nghttp2-client"}


class BadAnswerError(Exception):
    """A wrong or refused answer: the figure is void, whatever its rate."""


@dataclass(frozen=True)
class Rate:
    value: float
    p50_ms: float
    p99_ms: float
    beside: Mapping[str, float] = field(default_factory=dict)
    """What helps to read the value, by name."""


def require(tool: str) -> None:
    if shutil.which(tool) is None:
        raise UnavailableError(f"{tool} is missing; install the Debian package {PACKAGES[tool]}")


def write_requests(exchanges: Sequence[Exchange], file: Path) -> None:
    """The file that `rotate.lua` reads."""
    messages = [exchange.http1() for exchange in exchanges]
    file.write_bytes(b"".join(struct.pack("<I", len(message)) + message for message in messages))


def over_http1(port: int, file: Path, seconds: float, connections: int = CONNECTIONS, host: str = "127.0.0.1") -> Rate:
    output = _run(
        ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{max(1, round(seconds))}s",
         "--timeout", "30s", "--script", str(BENCHMARKS / "rotate.lua"), f"http://{host}:{port}", "--", str(file)]
    )  # fmt: skip
    seen = json.loads(output[output.index("JSON ") + 5 :])
    wrong = {name: seen[name] for name in ("not_2xx", "socket", "timeout") if seen[name]}
    if wrong:
        raise BadAnswerError(f"wrk saw {wrong} beside {seen['requests']} answers")
    return Rate(seen["requests"] / seen["duration_us"] * 1e6, seen["p50_us"] / 1e3, seen["p99_us"] / 1e3)


def over_http2(port: int, exchange: Exchange, file: Path, seconds: float, connections: int) -> Rate:
    """h2load with one body for all."""
    file.write_bytes(exchange.body)
    headers = [part for name, value in exchange.headers.items() for part in ("-H", f"{name}: {value}")]
    command = ["h2load", "-t", "1", "-c", str(connections), "-m", "1", "-d", str(file), *headers]
    output = _run([*command, "-D", str(max(1, round(seconds))), f"http://127.0.0.1:{port}{exchange.path}"])
    wrong = _numbers(r"status codes: \d+ 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", output)
    if any(wrong):
        raise BadAnswerError(f"h2load: 3xx, 4xx and 5xx answers were {wrong}")
    return Rate(_per_s(output), math.nan, math.nan)


def over_grpc(port: int, exchange: Exchange, answer_bytes: int, file: Path, warm_s: float, seconds: float) -> Rate:
    """`answer_bytes` is the size of a good answer's message, without the frame's five bytes.

    The warm-up estimates how many calls the time holds; the measurement makes just so many, since h2load's counts are
    exact for a number of calls and not for a duration.
    """
    file.write_bytes(exchange.body)
    headers = [part for name, value in exchange.headers.items() for part in ("-H", f"{name}: {value}")]
    command = ["h2load", "-t", "1", "-c", str(CONNECTIONS), "-m", "1", "-d", str(file), *headers]
    url = f"http://127.0.0.1:{port}{exchange.path}"
    expected_per_s = _per_s(_run([*command, "-D", str(max(1, round(warm_s))), url]))
    calls = max(CONNECTIONS, round(expected_per_s * seconds))
    output = _run([*command, "-n", str(calls), url])
    (good,) = _numbers(r"status codes: (\d+) 2xx", output)
    # The traffic line's last number is the data without headers.
    (data,) = _numbers(r"traffic: .*\((\d+)\) data", output)
    wanted = calls * (answer_bytes + 5)
    if good != calls or data != wanted:
        raise BadAnswerError(f"h2load: {good} of {calls} answers were 2xx, with {data} bytes, not {wanted}")
    # Minimum, maximum, mean: the mean stands in for the median and the maximum for the 99th percentile.
    _, longest, mean = output.split("time for request:")[1].split()[:3]
    return Rate(_per_s(output), _milliseconds(mean), _milliseconds(longest))


def _per_s(output: str) -> float:
    found = re.search(r"finished in \S+, ([\d.]+) req/s", output)
    if found is None or not float(found.group(1)):
        raise BadAnswerError(f"h2load finished no call: {output[-500:]}")
    return float(found.group(1))


def _numbers(pattern: str, text: str) -> list[int]:
    found = re.search(pattern, text)
    if found is None:
        raise BadAnswerError(f"unexpected output of the load: {text[-500:]}")
    return [int(number) for number in found.groups()]


def _milliseconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(\w+)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]


def _run(command: list[str]) -> str:
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode:
        raise BadAnswerError(f"{command[0]} failed: {result.stdout[-500:]}")
    return result.stdout
