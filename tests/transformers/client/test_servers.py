"""The client against real servers: torpor's own in every protocol, over a Unix socket and TLS, and one of KServe's SDK."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
import trustme
from torpor.predictors.errors import InvalidInput, ModelFailed, NotFound, QueueFull, TorporError, Unavailable
from torpor.predictors.protocol.datatypes import BFLOAT16, DTYPES, float32_from_bfloat16
from torpor.transformers.client import Backoff, BatchingSettings, InferRequest, PredictorClient, Terms

PROTOCOLS = ["auto", "v1", "v2-json", "v2-binary", "grpc-v2"]
ECHO = Path(__file__).parents[2] / "predictors" / "serving" / "models" / "echo"
REFUSE, RAISE, GIVE_NAN = 1001, 1000, 1003


def every_datatype() -> dict[str, np.ndarray]:
    """An array of two rows of each, with values that show a wrong reading."""
    arrays = {name: np.array([[0, 1], [1, 0]]).astype(dtype) for name, dtype in DTYPES.items() if dtype != BFLOAT16}
    arrays["BYTES"] = np.array([[b"a", b""], ["é".encode(), b"long" * 100]], object)
    arrays["BF16"] = np.array([[0, 0x3F80], [0x4000, 1]], "<u2").view(BFLOAT16)
    arrays["UINT64"][0, 0] = 2**64 - 1
    return arrays


def equal(left: np.ndarray, right: np.ndarray) -> bool:
    return (left.dtype, left.shape, left.tolist()) == (right.dtype, right.shape, right.tolist())


@pytest.fixture(scope="session")
def socket_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("socket") / "predictor.sock"


@pytest.fixture(scope="session")
def local_echo(serve, socket_path: Path) -> str:
    """The model `echo` behind a Unix socket; the socket's address."""
    serve("echo", "--unix-socket", str(socket_path))
    return f"unix:{socket_path}"


@pytest.mark.parametrize("where", ["port", "socket"])
@pytest.mark.parametrize("protocol", ["auto", "v2-json", "v2-binary", "grpc-v2"])
def test_every_datatype_comes_back_from_torpor(run, echo, local_echo, protocol: str, where: str) -> None:
    """In each protocol of v2, over TCP and over the socket of the same pod."""

    async def scenario() -> None:
        async with PredictorClient(echo.address if where == "port" else local_echo, "echo", protocol) as asking:
            for _ in range(2):
                for datatype, array in every_datatype().items():
                    answer = await asking.infer(InferRequest({"x": array}, Terms(id="7", outputs=("x",))), timeout_s=30)
                    expected = (
                        float32_from_bfloat16(array) if datatype == "BF16" else array
                    )  # a class of numpy's has no BF16
                    assert equal(answer.outputs["x"], expected), datatype
                    assert (answer.model_name, answer.model_version, answer.id) == ("echo", "1", "7")
            assert asking.protocol == {"auto": "v2-binary"}.get(protocol, protocol)
            assert await asking.is_ready()
            assert (await asking.metadata())["platform"] == "torpor"

    run(scenario())


def test_torpor_in_v1(run, marked) -> None:
    """Datatypes are the model's declaration there, and what JSON shows here."""

    async def scenario() -> None:
        async with PredictorClient(marked.address, "marked", "v1") as asking:
            answer = await asking.infer(InferRequest({"x": np.array([[1, 2]], np.float32)}))
            assert answer.outputs["doubled"].tolist() == [[2, 4]]
            assert answer.outputs["label"].tolist() == [b"1"]
            assert answer.model_version == "1"
            assert await asking.is_ready()
            assert await asking.metadata() == {"name": "marked", "ready": True}

    run(scenario())


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("mark", "kind", "text"),
    [(REFUSE, InvalidInput, "x = 1001 is not to this model's taste"), (RAISE, ModelFailed, "raised")],
)
def test_an_error_of_the_model_is_the_same_here(run, marked, protocol, mark, kind, text) -> None:
    """Of one class and with its text, whatever it came by."""

    async def scenario() -> None:
        async with PredictorClient(marked.address, "marked", protocol) as asking:
            with pytest.raises(kind, match=text):
                await asking.infer(InferRequest({"x": np.array([[mark, 0]], np.float32)}))

    run(scenario())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_unknown_model_is_not_found(run, marked, protocol: str) -> None:
    """When it is asked for anything."""

    async def scenario() -> None:
        async with PredictorClient(marked.address, "nobody", protocol) as asking:
            for ask in (
                asking.infer(InferRequest({"x": np.zeros((1, 2), np.float32)})),
                asking.metadata(),
                asking.is_ready(),
            ):
                with pytest.raises(NotFound, match="nobody"):
                    await ask

    run(scenario())


@pytest.mark.parametrize("protocol", ["v1", "v2-binary", "grpc-v2"])
def test_a_full_queue_says_when_to_come_again(run, marked, gated, protocol: str) -> None:
    """By Retry-After, and over gRPC by its own trailer; it is waited out when there is time."""
    request = InferRequest({"x": np.ones((12, 2), np.float32)})

    async def scenario() -> None:
        no_more = Backoff(retries=0)
        async with PredictorClient(marked.address, "marked", protocol, backoff=no_more) as asking:
            with gated(marked) as gate:
                waiting = asyncio.create_task(asking.infer(request))
                await asyncio.to_thread(gate.wait_for_rows, 12)
                with pytest.raises(QueueFull) as refused:
                    await asking.infer(request)
                assert refused.value.retry_after_s >= 1
                patient = PredictorClient(marked.address, "marked", protocol)
                coming = asyncio.create_task(patient.infer(request))
                await asyncio.sleep(0)
            assert (await waiting).outputs["doubled"].tolist() == [[2, 2]] * 12
            assert (await coming).outputs["doubled"].tolist() == [[2, 2]] * 12
            await patient.close()

    run(scenario())


@pytest.mark.parametrize("protocol", ["v2-binary", "grpc-v2"])
def test_closing_ends_what_is_under_way(run, marked, gated, protocol: str) -> None:
    """Nobody waits for an answer that will not come, and the rows are dropped at the server."""
    request = InferRequest({"x": np.ones((3, 2), np.float32)})

    async def scenario() -> None:
        with gated(marked) as gate:
            asking = PredictorClient(marked.address, "marked", protocol)
            waiting = asyncio.create_task(asking.infer(request))
            await asyncio.to_thread(gate.wait_for_rows, 3)
            await asking.close()
            with pytest.raises(Unavailable, match="the client has been closed"):
                await waiting
            await asyncio.to_thread(gate.wait_for_rows, 0)

    run(scenario())


@pytest.mark.parametrize("protocol", ["v2-json", "v2-binary", "grpc-v2"])
def test_headers_parameters_and_the_deadline_arrive(run, serve, protocol: str) -> None:
    """As the model sees them."""
    server = serve("asks")
    trace = "00-" + "1" * 32 + "-" + "2" * 16 + "-00"
    terms = Terms(id="9", parameters={"a": 1, "b": True, "c": "d"}, tensor_parameters={"x": {"e": 2.5}})

    async def scenario() -> None:
        async with PredictorClient(server.address, "asks", protocol) as asking:
            request = InferRequest({"x": np.zeros(1, np.float32)}, terms)
            answer = await asking.infer(request, {"TraceParent": trace}, 20)
        text = answer.outputs["said"][0].decode()
        for part in ('"id": "9"', '"a": 1', '"b": true', '"c": "d"', '"tensor_parameters": {"x": {"e": 2.5}}', trace):
            assert part in text
        assert 15 < float(text.partition('"remaining_s": ')[2].partition(",")[0]) <= 20

    run(scenario())


@pytest.mark.parametrize("protocol", ["auto", "grpc-v2"])
def test_torpor_over_tls(run, serve, tmp_path: Path, protocol: str) -> None:
    """By the certificates that the client is told to trust, and not without them."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    chain, key, trusted = tmp_path / "tls.crt", tmp_path / "tls.key", tmp_path / "ca.crt"
    chain.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(key))
    authority.cert_pem.write_to_path(str(trusted))
    server = serve("echo", "--tls-cert", str(chain), "--tls-key", str(key))
    request = InferRequest({"x": np.arange(3)})

    async def scenario() -> None:
        address = f"https://localhost:{server.port}"
        async with PredictorClient(address, "echo", protocol, ca_file=str(trusted)) as asking:
            assert (await asking.infer(request)).outputs["x"].tolist() == [0, 1, 2]
        async with PredictorClient(address, "echo", protocol, backoff=Backoff(0)) as asking:
            with pytest.raises(TorporError, match=r"(?i)certificate"):
                await asking.infer(request, timeout_s=10)

    run(scenario())


def test_a_prefix_precedes_every_path(run, echo) -> None:
    """As KServe's ingress may have it; this server has none there."""

    async def scenario() -> None:
        async with PredictorClient(f"http://{echo.address}/serving", "echo", "v2-json") as asking:
            with pytest.raises(NotFound, match="/serving/v2/models/echo/infer"):
                await asking.infer(InferRequest({"x": np.arange(3)}))

    run(scenario())


def test_joined_requests_of_many_callers(run, echo) -> None:
    """Everybody's own rows, from fewer requests than callers."""

    async def scenario() -> None:
        async with PredictorClient(echo.address, "echo", batching=BatchingSettings()) as asking:
            answers = await asyncio.gather(*(asking.infer(InferRequest({"x": np.array([[n, n]])})) for n in range(200)))
        assert [answer.outputs["x"].tolist() for answer in answers] == [[[n, n]] for n in range(200)]

    run(scenario())


def test_a_server_that_is_started_again_is_found_again(run, start, tmp_path: Path) -> None:
    """Its connections are stale, its socket's file is another's."""
    path = tmp_path / "s.sock"

    async def scenario() -> None:
        request = InferRequest({"x": np.arange(3)})
        first = await asyncio.to_thread(start, "echo", "--unix-socket", str(path))
        async with PredictorClient(f"unix:{path}", "echo") as asking:
            await asyncio.gather(*(asking.infer(request) for _ in range(4)))
            assert await asyncio.to_thread(first.stop) == 0
            assert not path.exists()
            assert not await asking.is_ready()
            await asyncio.to_thread(start, "echo", "--unix-socket", str(path))
            for _ in range(4):
                assert (await asking.infer(request)).outputs["x"].tolist() == [0, 1, 2]

    run(scenario())


@pytest.fixture(scope="module")
def kserve(kserve_server):
    with kserve_server(ECHO) as ports:
        yield ports


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_stock_server_of_kserves_sdk(run, kserve, protocol: str) -> None:
    """It does not say that it reads binary data, so auto speaks JSON with it; FP16 and BF16 are not in its JSON."""
    missing = {"BF16"} | ({"FP16"} if protocol in ("auto", "v2-json") else set())

    async def scenario() -> None:
        address = kserve.grpc if protocol == "grpc-v2" else f"127.0.0.1:{kserve.http}"
        async with PredictorClient(address, "echo", protocol) as asking:
            assert await asking.is_ready()
            assert isinstance(await asking.metadata(), dict)
            for datatype, array in every_datatype().items():
                if protocol == "v1":
                    rows = np.array([[1, 2], [3, 4]])
                    assert (await asking.infer(InferRequest({"x": rows}))).outputs[
                        "predictions"
                    ].tolist() == rows.tolist()
                    break
                if datatype in missing:
                    with pytest.raises(TorporError):
                        await asking.infer(InferRequest({"x": array}))
                    continue
                answer = await asking.infer(InferRequest({"x": array}))
                assert equal(answer.outputs["x"], array), datatype
            assert asking.protocol == {"auto": "v2-json"}.get(protocol, protocol)

    run(scenario())
