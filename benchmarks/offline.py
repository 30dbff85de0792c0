"""Raw torch on sentences sorted by length: what the machine can do when nobody has to wait for anybody.

A process of its own, so that thread counts start clean: `offline.py SECONDS BATCH:THREADS ...` prints one JSON object
of rates. Batches of the sorted list carry some padding, the more the larger: 5 to 7 % of the cells with 16 rows, 19 to
27 % with 64, since a thousand sentences have few of each length. A rate is taken over whole passes through evenly spaced
batches, so that it has the mixture of lengths of all sentences.
"""

import json
import os
import sys
import time
from collections.abc import Sequence

import torch

from environments import minilm_folder
from models import MODELS, MiniLm, Mlp, Row, run
from rows import sentences

SEED, COUNT = 1, 1024
"""The same sentences as the load."""


def rate(model: Mlp | MiniLm, rows: Sequence[Row], batch: int, seconds: float) -> float:
    """Sentences per second."""
    batches = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    run(model, batches[-1])
    # A pass may take longer than the time there is: then every second batch, every fourth, ...
    began = time.perf_counter()
    for group in batches[:: max(1, len(batches) // 4)]:
        run(model, group)
    step = max(1, round((time.perf_counter() - began) / 4 * len(batches) / seconds))
    done, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        for group in batches[step // 2 :: step]:
            run(model, group)
            done += len(group)
    return done / took


def main() -> None:
    seconds = float(sys.argv[1])
    folder = minilm_folder()
    os.environ["BENCH_MINILM"] = str(folder)
    rows = sorted(sentences(SEED, COUNT, folder), key=lambda row: row["input_ids"].shape[1])
    model = MODELS["minilm"]()
    rates = {}
    for choice in sys.argv[2:]:
        batch, threads = map(int, choice.split(":"))
        torch.set_num_threads(threads)
        rates[choice] = rate(model, rows, batch, seconds)
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
