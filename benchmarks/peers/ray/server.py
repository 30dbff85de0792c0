"""Ray Serve 2.60: its HTTP proxy and one replica with `serve.batch`.

The replica reads the request itself (Starlette), as raw bytes or as JSON.
"""

import os
import signal
from typing import Any

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from assignment import FORM, MAX_BATCH_ROWS, MAX_WAIT_S, MODEL, PORT
from bodies import Row, from_json, from_raw
from models import MODELS, run


@serve.deployment(num_replicas=1, max_ongoing_requests=1000, ray_actor_options={"num_cpus": 1})
class Served:
    def __init__(self) -> None:
        self.model = MODELS[MODEL]()

    @serve.batch(max_batch_size=MAX_BATCH_ROWS, batch_wait_timeout_s=MAX_WAIT_S)
    async def predict(self, rows: list[Row]) -> list[Any]:
        return list(run(self.model, rows))

    async def __call__(self, request: Request) -> Any:
        if FORM == "raw":
            output = await self.predict(from_raw(MODEL, await request.body()))
            return Response(output.tobytes())
        output = await self.predict(from_json(await request.json()))
        return {"predictions": [output.tolist()]}


if __name__ == "__main__":
    ray.init(
        _temp_dir=os.getcwd(), include_dashboard=False, log_to_driver=False, logging_level="error",
        configure_logging=False,
    )  # fmt: skip
    serve.start(http_options={"host": "127.0.0.1", "port": PORT, "access_log": False})
    serve.run(Served.bind(), route_prefix="/predict", logging_config={"enable_access_log": False, "log_level": "ERROR"})
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
