"""Public clients as judges: tritonclient and KServe's SDK, each over what it speaks."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

DTYPES = {
    "BOOL": np.bool_, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64, "INT8": np.int8,
    "INT16": np.int16, "INT32": np.int32, "INT64": np.int64, "FP16": np.float16, "FP32": np.float32, "FP64": np.float64,
    "BYTES": np.object_,
}  # fmt: skip


def sample(datatype: str) -> np.ndarray:
    if datatype == "BYTES":
        return np.array([[b"a", b""], ["é".encode(), b"long" * 100]], object)
    return np.array([[0, 1], [1, 0]], DTYPES[datatype])


@pytest.fixture(params=["http", "grpc"])
def triton(request: pytest.FixtureRequest, echo):
    """The module and a client of tritonclient, by protocol."""
    module = pytest.importorskip(f"tritonclient.{request.param}")
    with module.InferenceServerClient(echo.address) as client:
        yield module, client


def test_tritonclient_reads_health_and_metadata(triton) -> None:
    """Live, ready, and who the server and the model are."""
    module, client = triton
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("echo")
    assert client.is_model_ready("echo", "1")
    as_json = {"as_json": True} if module.__name__.endswith("grpc") else {}
    assert client.get_server_metadata(**as_json)["extensions"] == ["binary_tensor_data", "model_repository"]
    assert client.get_model_metadata("echo", **as_json)["versions"] == ["1"]


@pytest.mark.parametrize("datatype", DTYPES)
def test_tritonclient_gets_back_what_it_sends(triton, datatype: str) -> None:
    """Every datatype, binary or raw, with the request's id."""
    module, client = triton
    array = sample(datatype)
    tensor = module.InferInput("x", list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    result = client.infer("echo", [tensor], request_id="9", outputs=[module.InferRequestedOutput("x")])
    output = result.as_numpy("x")
    assert output.dtype == array.dtype
    np.testing.assert_array_equal(output, array)
    response = result.get_response()
    assert (response["id"] if isinstance(response, dict) else response.id) == "9"


@pytest.mark.parametrize("datatype", [name for name in DTYPES if name != "FP16"])
@pytest.mark.parametrize(("binary_in", "binary_out"), [(False, False), (False, True), (True, False)])
def test_tritonclient_mixes_json_and_binary(echo, datatype: str, binary_in: bool, binary_out: bool) -> None:
    """JSON and binary data in either direction."""
    module = pytest.importorskip("tritonclient.http")
    array = sample(datatype)
    with module.InferenceServerClient(echo.address) as client:
        tensor = module.InferInput("x", list(array.shape), datatype)
        tensor.set_data_from_numpy(array, binary_data=binary_in)
        output = module.InferRequestedOutput("x", binary_data=binary_out)
        result = client.infer("echo", [tensor], outputs=[output]).as_numpy("x")
    if datatype == "BYTES" and not binary_out:
        result = np.vectorize(str.encode, otypes=[object])(result)
    np.testing.assert_array_equal(result, array)


@pytest.mark.parametrize(("protocol", "binary_out"), [("http", True), ("http", False), ("grpc", True)])
def test_tritonclient_speaks_bf16(serve, protocol: str, binary_out: bool) -> None:
    """It sends ml_dtypes' arrays, as binary data always, and reads BF16 from binary data and from JSON."""
    module = pytest.importorskip(f"tritonclient.{protocol}")
    array = np.array([[1.5, -3.140625], [3e38, 1e-40]], ml_dtypes.bfloat16)
    options = {} if protocol == "grpc" else {"binary_data": binary_out}
    with module.InferenceServerClient(serve("halves").address) as client:
        tensor = module.InferInput("x", [2, 2], "BF16")
        tensor.set_data_from_numpy(array)
        output = client.infer("halves", [tensor], outputs=[module.InferRequestedOutput("x", **options)]).as_numpy("x")
    assert output.dtype == array.dtype
    np.testing.assert_array_equal(output.view(np.uint16), array.view(np.uint16))


def test_tritonclient_understands_errors(triton) -> None:
    """Its exception carries the server's text."""
    from tritonclient.utils import InferenceServerException

    module, client = triton
    tensor = module.InferInput("x", [1], "FP32")
    tensor.set_data_from_numpy(np.zeros(1, np.float32))
    with pytest.raises(InferenceServerException, match="model 'other' is unknown, must be one of echo"):
        client.infer("other", [tensor])


def test_tritonclient_sends_many_at_once(triton) -> None:
    """Calls in flight together get their own answers."""
    module, client = triton

    def tensor(number: int):
        made = module.InferInput("x", [1, 4], "INT32")
        made.set_data_from_numpy(np.full((1, 4), number, np.int32))
        return made

    if module.__name__.endswith("http"):
        with module.InferenceServerClient(
            client._client_stub.host + f":{client._client_stub.port}", concurrency=8
        ) as many:
            results = [call.get_result() for call in [many.async_infer("echo", [tensor(n)]) for n in range(40)]]
    else:
        import queue

        answers: queue.SimpleQueue = queue.SimpleQueue()
        for number in range(40):
            client.async_infer("echo", [tensor(number)], lambda result, error: answers.put((result, error)),
                               request_id=str(number))  # fmt: skip
        by_id = {}
        for _ in range(40):
            result, error = answers.get(timeout=20)
            assert error is None
            by_id[int(result.get_response().id)] = result
        results = [by_id[number] for number in range(40)]
    for number, result in enumerate(results):
        assert result.as_numpy("x").tolist() == [[number] * 4]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["/v1/models"], {"models": ["echo"]}),
        (["/v1/models/echo"], {"name": "echo", "ready": True}),
        (["/v1/models/echo:predict", "-d", "@input.json"], {"predictions": [[6.8, 2.8], [6.0, 3.4]]}),
        (["/v2/health/live"], {"live": True}),
        (["/v2/health/ready"], {"ready": True}),
        (["/v2/models/echo/ready"], {"name": "echo", "ready": True}),
        (["/v2/models"], {"models": ["echo"]}),
        (["/v2/models/echo"], {"name": "echo", "versions": ["1"], "platform": "torpor", "inputs": [], "outputs": []}),
        (
            ["/v2/models/echo/infer", "-d", "@input-v2.json"],
            {
                "model_name": "echo", "model_version": "1",
                "outputs": [{"name": "input-0", "shape": [2, 2], "datatype": "FP32", "data": [6.8, 2.8, 6.0, 3.4]}],
            },
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("options", [[], ["--http2-prior-knowledge"], ["--compressed"]], ids=["http1", "http2", "gzip"])
def test_the_curl_lines_of_kserves_documentation(echo, tmp_path, options, arguments, expected) -> None:
    """As its first examples and protocol pages have them: a Host that names the service, a file as body."""
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("needs curl")
    rows = [[6.8, 2.8], [6.0, 3.4]]
    tensor = {"name": "input-0", "shape": [2, 2], "datatype": "FP32", "data": rows}
    (tmp_path / "input.json").write_text(json.dumps({"instances": rows}))
    (tmp_path / "input-v2.json").write_text(json.dumps({"inputs": [tensor]}))
    path, *rest = arguments
    headers = ["-H", "Host: echo.default.example.com", "-H", "Content-Type: application/json"]
    command = [curl, "-sS", "--fail", *options, *headers, f"http://{echo.address}{path}", *rest]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True, timeout=20)
    assert json.loads(done.stdout) == expected


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_tritonclient_compresses_both_ways(triton, algorithm: str) -> None:
    """Its own options, a request and an answer that are worth it."""
    module, client = triton
    array = np.arange(100_000, dtype=np.int64).reshape(100, 1000) % 5
    tensor = module.InferInput("x", [100, 1000], "INT64")
    tensor.set_data_from_numpy(array)
    options = {"compression_algorithm": algorithm}
    if module.__name__.endswith("http"):
        options = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
    np.testing.assert_array_equal(client.infer("echo", [tensor], **options).as_numpy("x"), array)


def test_tritonclients_classification_is_refused(triton) -> None:
    """In words, and with the output's name."""
    from tritonclient.utils import InferenceServerException

    module, client = triton
    tensor = module.InferInput("x", [1], "FP32")
    tensor.set_data_from_numpy(np.zeros(1, np.float32))
    with pytest.raises(InferenceServerException, match="output 'x': parameter classification is not supported"):
        client.infer("echo", [tensor], outputs=[module.InferRequestedOutput("x", class_count=3)])


@pytest.fixture(scope="module")
def kserve_answers(echo) -> dict[str, str]:
    """What KServe's clients got, "" for what they had sent; another process, as its protobuf excludes tritonclient's."""
    if importlib.util.find_spec("kserve") is None:
        pytest.skip("needs kserve")
    script = Path(__file__).with_name("kserve_client.py")
    run = subprocess.run([sys.executable, script, echo.address], stdout=subprocess.PIPE, timeout=120, check=True)
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("datatype", DTYPES)
@pytest.mark.parametrize("form", ["v2 REST JSON", "v2 REST binary", "gRPC typed", "gRPC raw"])
def test_kserve_clients_get_back_what_they_send(kserve_answers, form: str, datatype: str) -> None:
    """Health, then every datatype that the SDK's clients have; FP16 is neither in its JSON nor in typed contents."""
    if datatype != "FP16" or form in ("v2 REST binary", "gRPC raw"):
        assert kserve_answers[f"{form} {datatype}"] == ""


def test_kserve_rest_client_speaks_v1(kserve_answers) -> None:
    """v1 by the SDK's REST client."""
    assert kserve_answers["v1"] == ""
    assert kserve_answers["v1 compressed"] == ""
