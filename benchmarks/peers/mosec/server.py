"""mosec 0.9: a Rust front and one worker process or more, bodies as raw tensors or as JSON.

mosec's batch waits at most `max_wait_time` after the first request of a batch. It reads the command line itself, so the
port goes through its own environment variable.
"""

import os
from typing import Any

from mosec import Server, Worker

from assignment import FORM, MAX_BATCH_ROWS, MAX_WAIT_S, MODEL, PORT, WORKERS
from bodies import from_json, from_raw
from models import MODELS, run


class Raw(Worker):
    """Bytes in, bytes out: the codec is replaced, which is mosec's documented way to skip JSON."""

    def __init__(self) -> None:
        self.model = MODELS[MODEL]()

    def deserialize(self, data: bytes) -> bytes:
        return data

    def serialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: list[bytes]) -> list[bytes]:
        outputs = run(self.model, [from_raw(MODEL, body) for body in data])
        return [row.tobytes() for row in outputs]


class Json(Worker):
    """mosec's default codec: JSON both ways."""

    def __init__(self) -> None:
        self.model = MODELS[MODEL]()

    def forward(self, data: list[Any]) -> list[Any]:
        outputs = run(self.model, [from_json(body) for body in data])
        return [{"predictions": [row]} for row in outputs.tolist()]


if __name__ == "__main__":
    os.environ |= {"MOSEC_PORT": str(PORT), "MOSEC_LOG_LEVEL": "error", "MOSEC_TIMEOUT": "30000"}
    server = Server()
    wait_ms = round(MAX_WAIT_S * 1e3)
    server.append_worker(
        Raw if FORM == "raw" else Json, num=WORKERS, max_batch_size=MAX_BATCH_ROWS, max_wait_time=wait_ms
    )
    server.run()
