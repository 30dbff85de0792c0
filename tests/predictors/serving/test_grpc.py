"""The gRPC services, judged by grpcio's own client and stubs."""

import json
from collections import Counter
from types import SimpleNamespace

import grpc
import hpack
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from hyperframe.frame import HeadersFrame
from torpor.predictors.errors import InvalidInput, QueueFull, TorporError, Unavailable
from torpor.predictors.protocol.messages import message
from torpor.predictors.serving.grpc_wire import Grpc
from torpor.predictors.serving.http2 import Http2
from torpor.predictors.serving.http2_fields import encode_field

SERVICE = "inference.GRPCInferenceService"


@pytest.fixture
def call(grpc_channel):
    """Call a unary method of the inference service by name."""

    def make(server, method: str, request=None):
        stub = grpc_channel(server).unary_unary(
            f"/{SERVICE}/{method}",
            lambda m: m.SerializeToString(),
            message(f"inference.{method}Response").FromString,
        )
        return stub(request or message(f"inference.{method}Request")())

    return make


def infer_request(model: str, raw: bool, **fields: object):
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 2]}
    values = np.array([[1, 2], [3, 4]], "<f4")
    if raw:
        fields["raw_input_contents"] = [values.tobytes()]
    else:
        tensor["contents"] = {"fp32_contents": values.ravel()}
    return message("inference.ModelInferRequest")(model_name=model, inputs=[tensor], **fields)


def test_server_and_model_tell_about_themselves(call, marked) -> None:
    """Live, ready, and metadata as over REST."""
    assert call(marked, "ServerLive").live
    assert call(marked, "ServerReady").ready
    assert call(marked, "ModelReady", message("inference.ModelReadyRequest")(name="marked", version="1")).ready
    server = call(marked, "ServerMetadata")
    assert (server.name, list(server.extensions)) == ("torpor", ["binary_tensor_data", "model_repository"])
    model = call(marked, "ModelMetadata", message("inference.ModelMetadataRequest")(name="marked"))
    assert (model.name, list(model.versions), model.platform) == ("marked", ["1"], "torpor")
    assert [(t.name, t.datatype, list(t.shape)) for t in model.inputs] == [("x", "FP32", [-1, 2])]
    assert [t.name for t in model.outputs] == ["doubled", "label", "batch_rows"]


@pytest.mark.parametrize("method", ["ModelReady", "ModelMetadata"])
def test_an_unknown_model_is_not_found(call, marked, method: str) -> None:
    """Also where nothing is to be computed."""
    with pytest.raises(grpc.RpcError) as error:
        call(marked, method, message(f"inference.{method}Request")(name="other"))
    assert error.value.code() == grpc.StatusCode.NOT_FOUND


def test_an_unknown_method_is_unimplemented(grpc_channel, marked) -> None:
    """As every gRPC server says it."""
    stub = grpc_channel(marked).unary_unary(f"/{SERVICE}/SystemSharedMemoryStatus")
    with pytest.raises(grpc.RpcError) as error:
        stub(b"")
    assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_streaming_inference_is_refused_in_plain_words(grpc_channel, marked) -> None:
    """Triton's streaming method says what there is instead."""
    stub = grpc_channel(marked).stream_stream(f"/{SERVICE}/ModelStreamInfer")
    with pytest.raises(grpc.RpcError) as error:
        next(stub(iter([b""])))
    assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert "this server does not stream, ModelInfer answers" in error.value.details()


def test_typed_contents_are_answered_with_typed_contents(call, marked) -> None:
    """Values in the fields of their datatypes, the id, model and version of the request."""
    response = call(marked, "ModelInfer", infer_request("marked", raw=False, id="7"))
    assert (response.model_name, response.model_version, response.id) == ("marked", "1", "7")
    doubled, label, _ = response.outputs
    assert (doubled.datatype, list(doubled.shape)) == ("FP32", [2, 2])
    assert list(doubled.contents.fp32_contents) == [2, 4, 6, 8]
    assert list(label.contents.bytes_contents) == [b"1", b"3"]
    assert not response.raw_output_contents


def test_raw_contents_are_answered_with_raw_contents(call, marked) -> None:
    """Only the outputs asked for, in that order, one entry each."""
    request = infer_request("marked", raw=True, outputs=[{"name": "label"}, {"name": "doubled"}])
    response = call(marked, "ModelInfer", request)
    assert [output.name for output in response.outputs] == ["label", "doubled"]
    assert response.raw_output_contents[0] == b"\1\0\0\x001\1\0\0\x003"
    assert np.frombuffer(response.raw_output_contents[1], "<f4").tolist() == [2, 4, 6, 8]


def test_calls_at_the_same_time_get_their_own_answers(grpc_infer, echo) -> None:
    """A hundred calls on one channel."""
    infer = grpc_infer(echo)
    calls = []
    for number in range(100):
        request = infer_request("echo", raw=True)
        request.raw_input_contents[0] = np.full(4, number, "<f4").tobytes()
        calls.append(infer.future(request))
    for number, future in enumerate(calls):
        assert np.frombuffer(future.result().raw_output_contents[0], "<f4").tolist() == [number] * 4


@pytest.mark.parametrize("service", ["", SERVICE, "grpc.health.v1.Health", "echo"])
def test_health_check_serves(grpc_channel, echo, service: str) -> None:
    """The server, its services and its model are what a check can name."""
    stub = health_pb2_grpc.HealthStub(grpc_channel(echo))
    assert stub.Check(health_pb2.HealthCheckRequest(service=service)).status == health_pb2.HealthCheckResponse.SERVING


def test_health_of_an_unknown_service(grpc_channel, echo) -> None:
    """NOT_FOUND by a check, SERVICE_UNKNOWN in a watch, as the health protocol has it."""
    stub = health_pb2_grpc.HealthStub(grpc_channel(echo))
    request = health_pb2.HealthCheckRequest(service="other")
    with pytest.raises(grpc.RpcError) as error:
        stub.Check(request)
    assert error.value.code() == grpc.StatusCode.NOT_FOUND
    watch = stub.Watch(request)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


@pytest.mark.parametrize("version", ["v1alpha", "v1"])
def test_reflection_lists_and_describes_the_services(grpc_channel, echo, version: str) -> None:
    """Both versions of reflection: the list, a file by the symbol that it defines and by its name."""
    request_type = message(f"grpc.reflection.{version}.ServerReflectionRequest")
    stub = grpc_channel(echo).stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        lambda m: m.SerializeToString(),
        message(f"grpc.reflection.{version}.ServerReflectionResponse").FromString,
    )
    requests = [
        request_type(list_services=""),
        request_type(file_containing_symbol=SERVICE, host="here"),
        request_type(file_containing_symbol="inference.ModelInferRequest.InferInputTensor"),
        request_type(file_by_filename="health.proto"),
        request_type(file_containing_symbol="health.proto"),
        request_type(file_by_filename="other.proto"),
    ]
    services, by_symbol, by_nested, by_name, *unknown = stub(iter(requests))
    names = [service.name for service in services.list_services_response.service]
    assert {SERVICE, "grpc.health.v1.Health", f"grpc.reflection.{version}.ServerReflection"} <= set(names)
    for answer in (by_symbol, by_nested, by_name):
        assert len(answer.file_descriptor_response.file_descriptor_proto) == 1
    assert (by_symbol.original_request, by_symbol.valid_host) == (requests[1], "here")
    assert [answer.error_response.error_code for answer in unknown] == [5, 5]


def test_reflection_is_enough_to_call(grpc_channel, echo) -> None:
    """grpcio's own database finds every service and method with their messages."""
    channel = grpc_channel(echo)
    database = ProtoReflectionDescriptorDatabase(channel)
    pool = DescriptorPool(database)
    for name in database.get_services():
        assert pool.FindServiceByName(name).methods
    infer = pool.FindServiceByName(SERVICE).methods_by_name["ModelInfer"]
    assert infer.input_type.fields_by_name["raw_input_contents"].number == 7
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    (answer,) = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    assert answer.HasField("list_services_response")


def test_a_server_that_leaves_says_so_first(serve, grpc_channel, connect) -> None:
    """At SIGTERM readiness turns, watches end with it, requests are answered still, and the process ends with 0."""
    server = serve("echo", "--drain-quiet-s", "2")
    watch = health_pb2_grpc.HealthStub(grpc_channel(server)).Watch(health_pb2.HealthCheckRequest())
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    connection = connect(server)
    assert connection.request("GET", "/v2/health/ready").status == 200
    server.process.terminate()
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    with pytest.raises(grpc.RpcError) as error:
        next(watch)
    assert error.value.code() == grpc.StatusCode.UNAVAILABLE
    ready = connection.request("GET", "/v2/health/ready")
    assert (ready.status, ready.json()) == (503, {"ready": False})
    assert ("connection" in ready.headers) == (connection.version == "HTTP/1.1")
    tensor = {"name": "x", "datatype": "INT8", "shape": [1], "data": [7]}
    reply = connect(server).request("POST", "/v2/models/echo/infer", json.dumps({"inputs": [tensor]}).encode())
    assert reply.json()["outputs"][0]["data"] == [7]
    assert server.wait() == 0


def test_a_watcher_that_does_not_read_holds_up_nobody(serve, grpc_channel, connect_http2) -> None:
    """A stream whose window is closed gets no message; others and the server's end do not wait for it."""
    server = serve("echo", "--drain-quiet-s", "0", "--drain-timeout-s", "1")
    stalled = connect_http2(server)
    stalled.close_windows()
    request = b"\0\0\0\0\0"
    stalled.send(
        "POST", "/grpc.health.v1.Health/Watch", request, {"content-type": "application/grpc", "te": "trailers"}
    )
    stub = health_pb2_grpc.HealthStub(grpc_channel(server))
    watch = stub.Watch(health_pb2.HealthCheckRequest())
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    server.process.terminate()
    assert server.wait() == 0
    watch.cancel()


@pytest.mark.parametrize(
    ("error", "status", "pushback"),
    [
        (QueueFull("full", 0.2), ("14", "UNAVAILABLE"), "200"),
        (QueueFull("full", 1.2345), ("14", "UNAVAILABLE"), "1235"),
        (Unavailable("elsewhere", None), ("14", "UNAVAILABLE"), None),
        (InvalidInput("no"), ("3", "INVALID_ARGUMENT"), None),
    ],
)
@pytest.mark.parametrize("method", ["ModelInfer", "ModelReady"])
def test_who_may_come_again_is_told_when(
    bench, method: str, error: TorporError, status: tuple[str, str], pushback: str | None
) -> None:
    """In whole milliseconds, upwards, as gRPC's clients read it; errors of inferences are counted."""
    at = bench(Http2)
    fields = encode_field(b"te", b"trailers") + encode_field(b"content-type", b"application/grpc")
    block = at.post(1, f"/{SERVICE}/{method}".encode()).data + fields
    at.frames(HeadersFrame(1, block, flags=["END_HEADERS", "END_STREAM"]))
    at.sent()
    requests: Counter[tuple[str, str]] = Counter()
    data_plane = SimpleNamespace(metrics=SimpleNamespace(requests=requests))
    Grpc(data_plane, None, None).fail(at.app.asked[0], error)  # type: ignore[arg-type]
    _, trailers = at.sent()
    answer = dict(hpack.Decoder().decode(trailers.data))
    assert (answer["grpc-status"], answer["grpc-message"]) == (status[0], str(error))
    assert answer.get("grpc-retry-pushback-ms") == pushback
    assert requests == ({("grpc", status[1]): 1} if method == "ModelInfer" else {})
