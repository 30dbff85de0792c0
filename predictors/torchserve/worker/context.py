"""The `context` that a handler gets, with the attributes and methods that TorchServe documents.

Index `idx` counts the rows of the list that the handler gets, so that a row of a joined batch leads to its own request.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from .metrics import Metrics, Noted

logger = logging.getLogger("torpor.handler")


class RequestHeaders(dict[str, Any]):
    """A request's header fields, found in any case: HTTP/2 knows lower case alone, and handlers ask as they please."""

    def get(self, key: str, default: Any = None) -> Any:
        return super().get(key, super().get(key.lower(), default))


class RequestProcessor:
    """One request, as a handler sees it, and what the handler says of its answer."""

    def __init__(self, headers: RequestHeaders) -> None:
        self._headers = headers
        self._status: tuple[int, str | None] = (200, None)
        self._response_headers: dict[str, str] = {}

    def get_request_property(self, key: str) -> Any:
        return self._headers.get(key)

    def get_request_properties(self) -> dict[str, Any]:
        return self._headers

    def report_status(self, code: int, reason_phrase: str | None = None) -> None:
        self._status = code, reason_phrase

    def get_response_status_code(self) -> int:
        return self._status[0]

    def get_response_status_phrase(self) -> str | None:
        return self._status[1]

    def add_response_property(self, key: str, value: str) -> None:
        self._response_headers[key] = value

    def get_response_headers(self) -> dict[str, str]:
        return self._response_headers

    def get_response_header(self, key: str) -> str | None:
        return self._response_headers.get(key)


class Context:
    """What a handler learns of its model and of the requests at hand, and tells of their answers.

    noted: what all contexts of a model share of its metrics.
    """

    def __init__(
        self,
        model_name: str,
        manifest: Mapping[str, Any] | None,
        system: Mapping[str, Any],
        yaml: Mapping[str, Any],
        noted: Noted,
    ) -> None:
        self.model_name = model_name
        self.manifest = manifest
        self.system_properties: dict[str, Any] = {**system, "server_name": "MMS"}
        self.model_yaml_config: dict[str, Any] = dict(yaml)
        self.metrics = Metrics(model_name, noted)
        self.request_ids: dict[int, str] | None = None
        self.request_processor: Sequence[RequestProcessor] | None = None
        self.stopping_criteria: Any = None
        self.cl_socket: Any = None

    def begin(self, ids: Sequence[str], processors: Sequence[RequestProcessor]) -> None:
        """The next call's rows, by index."""
        self.request_ids = self.metrics.request_ids = dict(enumerate(ids))
        self.request_processor = processors

    def _processor(self, idx: int) -> RequestProcessor:
        if self.request_processor is None:
            raise RuntimeError("there is no request while the model is loaded")
        return self.request_processor[idx]

    def get_request_id(self, idx: int = 0) -> str | None:
        return None if self.request_ids is None else self.request_ids.get(idx)

    def get_request_header(self, idx: int, key: str) -> Any:
        return self._processor(idx).get_request_property(key)

    def get_all_request_header(self, idx: int) -> dict[str, Any]:
        return self._processor(idx).get_request_properties()

    def get_sequence_id(self, idx: int) -> Any:
        return self.get_request_header(idx, os.environ.get("TS_REQUEST_SEQUENCE_ID", "ts_request_sequence_id"))

    def set_response_content_type(self, idx: int, value: str) -> None:
        self.set_response_header(idx, "content-type", value)

    def get_response_content_type(self, idx: int) -> str | None:
        return self.get_response_headers(idx).get("content-type")

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        if self.request_processor is not None:
            self.request_processor[idx].report_status(code, phrase)

    def set_all_response_status(self, code: int = 200, phrase: str = "") -> None:
        for processor in self.request_processor or ():
            processor.report_status(code, phrase)

    def get_response_status(self, idx: int) -> tuple[int, str | None]:
        processor = self._processor(idx)
        return processor.get_response_status_code(), processor.get_response_status_phrase()

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        self._processor(idx).add_response_property(key, value)

    def get_response_headers(self, idx: int) -> dict[str, str]:
        return self._processor(idx).get_response_headers()
