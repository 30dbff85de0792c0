"""MLServer 1.7: adaptive batching, the model in the server's own process.

`parallel_workers` 0 keeps it there: with one worker every tensor would cross a queue, and that pool did not start
reliably where these settings were chosen. Its batching joins only inputs of equal shape, so that sentences can't share a batch.
"""

import json
import os
import sys
from pathlib import Path

from assignment import MAX_BATCH_ROWS, MAX_WAIT_S, MODEL, PORT


def main() -> None:
    folder = Path("models") / MODEL
    folder.mkdir(parents=True)
    server = {
        "host": "127.0.0.1",
        "http_port": PORT,
        "grpc_port": PORT + 1,
        "metrics_port": PORT + 2,
        "parallel_workers": 0,
        "debug": False,
        "use_structured_logging": False,
        "metrics_endpoint": None,
    }
    model = {
        "name": MODEL,
        "implementation": "execution.Served",
        "max_batch_size": MAX_BATCH_ROWS,
        "max_batch_time": MAX_WAIT_S,
    }
    Path("models/settings.json").write_text(json.dumps(server))
    (folder / "model-settings.json").write_text(json.dumps(model))
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = f"{here}:{os.environ['PYTHONPATH']}"
    mlserver = Path(sys.executable).with_name("mlserver")
    os.execv(mlserver, ["mlserver", "start", "models"])


if __name__ == "__main__":
    main()
