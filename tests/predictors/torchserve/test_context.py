"""What a handler asks its context, and tells it."""

import pytest
from torpor.predictors.torchserve.worker.context import Context, RequestHeaders, RequestProcessor
from torpor.predictors.torchserve.worker.metrics import Noted


@pytest.fixture
def context() -> Context:
    """Of a model that is loaded."""
    return Context("m", {"model": {}}, {"gpu_id": 1, "server_name": "?"}, {"minWorkers": 2}, Noted())


@pytest.fixture
def asked(context: Context) -> Context:
    """With a call of two rows."""
    headers = ({"x-own": "1", "X-Odd": "2", "ts_request_sequence_id": "s"}, {})
    context.begin(["a", "b"], [RequestProcessor(RequestHeaders(each)) for each in headers])
    return context


def test_a_handler_knows_its_model(context: Context) -> None:
    """And the server by TorchServe's name for it."""
    assert (context.model_name, context.manifest) == ("m", {"model": {}})
    assert context.system_properties == {"gpu_id": 1, "server_name": "MMS"}
    assert context.model_yaml_config == {"minWorkers": 2}
    assert context.metrics.model_name == "m"


def test_while_it_is_loaded_there_is_no_request(context: Context) -> None:
    """Asking for one is a mistake; a status is for nobody, since TorchServe's own functions set it then too."""
    assert context.get_request_id() is None
    for ask in (context.get_all_request_header, context.get_response_status, context.get_response_headers):
        with pytest.raises(RuntimeError, match="there is no request while the model is loaded"):
            ask(0)
    context.set_response_status(500, "no", 0)
    context.set_all_response_status(500, "no")


def test_a_row_leads_to_its_request(asked: Context) -> None:
    """Its id, and its header fields in any case."""
    assert [asked.get_request_id(), asked.get_request_id(1), asked.get_request_id(2)] == ["a", "b", None]
    assert asked.metrics.request_ids == {0: "a", 1: "b"}
    assert [asked.get_request_header(0, name) for name in ("x-own", "X-Own", "X-Odd", "x-odd")] == ["1", "1", "2", None]
    assert asked.get_request_header(1, "x-own") is None
    assert asked.get_all_request_header(0).get("Nothing", "else") == "else"


def test_a_sequence_has_its_id_from_a_header(asked: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose name TorchServe's variable may say."""
    assert (asked.get_sequence_id(0), asked.get_sequence_id(1)) == ("s", None)
    monkeypatch.setenv("TS_REQUEST_SEQUENCE_ID", "x-own")
    assert asked.get_sequence_id(0) == "1"


def test_each_row_has_a_status_of_its_own(asked: Context) -> None:
    """Or all of them one."""
    assert [asked.get_response_status(row) for row in (0, 1)] == [(200, None)] * 2
    asked.set_response_status(404, "not here", 1)
    assert [asked.get_response_status(row) for row in (0, 1)] == [(200, None), (404, "not here")]
    asked.set_response_status(418)
    assert [asked.get_response_status(row) for row in (0, 1)] == [(418, ""), (404, "not here")]
    asked.set_all_response_status(503, "gone")
    assert [asked.get_response_status(row) for row in (0, 1)] == [(503, "gone")] * 2
    asked.set_all_response_status()
    assert [asked.get_response_status(row) for row in (0, 1)] == [(200, "")] * 2
    asked.set_response_status(idx=1)
    assert asked.get_response_status(1) == (200, "")


def test_each_row_has_header_fields_of_its_own(asked: Context) -> None:
    """The content type is one of them."""
    assert asked.get_response_content_type(0) is None
    asked.set_response_content_type(0, "text/x")
    asked.set_response_header(0, "X-More", "1")
    assert asked.get_response_content_type(0) == "text/x"
    assert asked.get_response_headers(0) == {"content-type": "text/x", "X-More": "1"}
    assert asked.get_response_headers(1) == {}
    assert asked.request_processor is not None
    assert [asked.request_processor[0].get_response_header(name) for name in ("X-More", "x")] == ["1", None]
