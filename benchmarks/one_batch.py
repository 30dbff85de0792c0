"""Raw torch on sentences of one length: `one_batch.py TOKENS ROWS…` prints a JSON object of the median seconds by rows."""

import json
import statistics
import sys
import time

import numpy as np

from models import MODELS, run

RUNS, DROPPED = 30, 5


def main() -> None:
    tokens, *counts = map(int, sys.argv[1:])
    model = MODELS["minilm"]()
    row = {name: np.ones((1, tokens), np.int64) for name in ("input_ids", "attention_mask")}
    seconds: dict[int, float] = {}
    for rows in counts:
        taken: list[float] = []
        for _ in range(RUNS):
            began_s = time.perf_counter()
            run(model, [row] * rows)
            taken.append(time.perf_counter() - began_s)
        seconds[rows] = statistics.median(taken[DROPPED:])
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
