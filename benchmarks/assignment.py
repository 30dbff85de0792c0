"""What the benchmark asks of the server that it starts.

It travels in the environment, since several peers start workers which import the server's file anew, or read the
command line themselves. `run.py`'s side writes it with `variables`; a peer's `server.py` reads the constants.
"""

import os

MAX_WAIT_S = 0.002
"""Long enough to fill a batch under load, small beside any model worth batching."""

MODEL = os.environ.get("BENCH_MODEL", "mlp")

MAX_BATCH_ROWS = int(os.environ.get("BENCH_BATCH_ROWS", "64"))

WORKERS = int(os.environ.get("BENCH_WORKERS", "1"))
"""Processes that run the model, where a peer is measured with several."""

FORM = os.environ.get("BENCH_FORM", "")
"""Which body the requests carry, where a peer needs another handler for each: `raw` or `json`; for echoes which."""

PORT = int(os.environ.get("BENCH_PORT", "8080"))
"""HTTP; the next three ports are the server's as well (gRPC, management)."""


def variables(model: str, form: str, port: int, batch_rows: int, workers: int) -> dict[str, str]:
    return {
        "BENCH_MODEL": model,
        "BENCH_FORM": form,
        "BENCH_PORT": str(port),
        "BENCH_BATCH_ROWS": str(batch_rows),
        "BENCH_WORKERS": str(workers),
    }
