"""Bare echoes of the request's body: what the transport alone costs, without a protocol, a queue or a model."""

from assignment import FORM, PORT


async def echo(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
    """The smallest ASGI application that answers with what it got."""
    chunks = []
    while True:
        message = await receive()
        chunks.append(message.get("body", b""))
        if not message.get("more_body"):
            break
    body = b"".join(chunks)
    headers = [(b"content-type", b"application/octet-stream"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def over_h2corn() -> None:
    import h2corn

    config = h2corn.Config(bind=(f"127.0.0.1:{PORT}",), lifespan="off", access_log=False)
    await h2corn.Server(echo, config).serve()


async def over_uvicorn() -> None:
    import uvicorn

    config = uvicorn.Config(echo, port=PORT, http="httptools", lifespan="off", log_level="error", access_log=False)
    await uvicorn.Server(config).serve()


async def over_grpc() -> None:
    """Bytes in, bytes out for every method: no message is parsed."""
    import grpc.aio

    class Everything(grpc.GenericRpcHandler):
        def service(self, _: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            async def same(message: bytes, __: grpc.aio.ServicerContext) -> bytes:
                return message

            return grpc.unary_unary_rpc_method_handler(same)

    server = grpc.aio.server(handlers=[Everything()])
    server.add_insecure_port(f"127.0.0.1:{PORT}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    import uvloop

    uvloop.run({"h2corn": over_h2corn, "uvicorn": over_uvicorn, "grpc": over_grpc}[FORM]())
