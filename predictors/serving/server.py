"""The HTTP server under the application: h2corn, and nowhere else.

Why h2corn (docs/decisions.md has the figures): one port takes HTTP/1.1, prior-knowledge HTTP/2 and gRPC with trailers,
limits and time-outs are built in, and its I/O runs in Rust beside the interpreter's lock. Known limits: a caller that
leaves is noticed on HTTP/2 (the task is cancelled), on HTTP/1.1 only when the answer is written.
"""

from h2corn import Config, Server

from .app import App


class HttpServer:
    """Serves the application until `shutdown`, then lets what is in flight finish."""

    def __init__(self, app: App, host: str, port: int, drain_timeout_s: float) -> None:
        bind = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        config = Config(
            bind=(bind,),
            grpc=True,
            lifespan="off",
            access_log=False,
            # One thread moves bytes, the other core is for Python and the model. Two are not shown to be worse: docs/status.md.
            runtime_threads=1,
            max_request_body_size=0,  # the exchange counts, and answers in the protocol's form
            limit_request_head_size=64 << 10,
            h2_max_header_list_size=64 << 10,
            h2_max_header_block_size=64 << 10,
            timeout_graceful_shutdown=max(1.0, drain_timeout_s),
        )
        self._server = Server(app, config)

    async def serve(self) -> None:
        await self._server.serve()

    async def wait_started(self) -> str:
        """Wait until the port is open; its address."""
        await self._server.wait_started()
        return self._server.addresses[0]

    def shutdown(self) -> None:
        """Close the port, send GOAWAY, finish what is in flight."""
        self._server.shutdown()
