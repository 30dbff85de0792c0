"""The management API: what is there, what is added, scaled and taken away."""

import json
import re
from typing import Any

from judge.calls import BYTES, JSON, TEXT, asked, case, manage, post, predictions, registered
from judge.scenes import Call, Scene


def described(body: bytes) -> Any:
    """Without what differs from run to run."""
    answer = json.loads(body)
    for model in answer if isinstance(answer, list) else []:
        for worker in model["workers"]:
            for key in ("id", "startTime", "memoryUsage", "pid", "gpuUsage"):
                worker[key] = type(worker[key]).__name__
        model["modelUrl"] = model["modelUrl"].rpartition("/")[2]
    return answer


def plain(body: bytes) -> Any:
    """Paths and times of a message gone."""
    return re.sub(r"(/[\w.-]+)+/", "/…/", body.decode())


IDLE = post("idle", "text", TEXT)

MANAGED = Scene(
    "managed",
    ["echo", "two-1", "two-2", "named", "modes", "two_classes", "no_class", "bad_import", "bad_initialize", "vllm",
     "no_weights", "weightless", "explained"],
    [
        case("list", manage("GET", "/models")),
        case("list, one a page", manage("GET", "/models?limit=1")),
        case("describe", manage("GET", "/models/echo"), normal=described),
        case("describe a version", manage("GET", "/models/echo/1.0"), normal=described),
        case("describe all versions", manage("GET", "/models/echo/all"), normal=described),
        case("describe nobody", manage("GET", "/models/nobody"), status=404),
        case("describe no version", manage("GET", "/models/echo/7.0"), status=404),
        case("describe with the handler's words", manage("GET", "/models/echo?customized=true"), normal=described),
        case("register", registered("named.mar"), post("named", b"x")),
        case("register again", registered("named.mar"), status=409),
        case("register nothing", manage("POST", "/models"), status=400),
        case("register a missing file", registered("missing.mar"), status=404),
        case("register outside the store", registered("../config/config.properties"), status=404),
        case("register under another name", registered("modes.mar", model_name="other"),
             post("other", "text", TEXT)),
        case("register with settings",
             registered("explained.mar", batch_size=3, max_batch_delay=70, response_timeout=9),
             manage("GET", "/models/explained"), normal=described),
        case("describe with the handler's own words", manage("GET", "/models/explained?customized=true"), normal=described),
        case("register by json",
             Call("POST", "/models", b'{"url": "modes.mar", "model_name": "by-json", "initial_workers": 1, '
                  b'"batch_size": 2, "synchronous": true}', JSON, True),
             manage("GET", "/models/by-json"), manage("DELETE", "/models/by-json"), normal=described),
        case("register without workers", registered("modes.mar", model_name="idle", workers=0), IDLE, status=[200, 503]),
        case("ping beside a model without workers", Call("GET", "/ping")),
        case("scale from none", manage("PUT", "/models/idle?min_worker=1&synchronous=true"), IDLE),
        case("scale by and by", manage("PUT", "/models/idle?min_worker=1"), status=202),
        case("scale to none", manage("PUT", "/models/idle?min_worker=0&synchronous=true"), IDLE, status=[200, 503]),
        case("scale to nonsense", manage("PUT", "/models/idle?min_worker=5&max_worker=1"), status=400),
        case("scale nobody", manage("PUT", "/models/nobody?min_worker=1"), status=404),
        *(case(f"register {name.replace('_', ' ')}", registered(f"{name}.mar"),
               manage("GET", f"/models/{name}"), status=[500, 404], normal=plain)
          for name in ("two_classes", "no_class", "bad_import", "bad_initialize", "vllm", "no_weights")),
        case("register eager without weights", registered("weightless.mar")),
        case("first version", registered("two-1.mar"), post("two", b"x")),
        case("second version", registered("two-2.mar"), post("two/2.0", b"x"), post("two", b"x")),
        case("describe both", manage("GET", "/models/two/all"), normal=described),
        case("another default", manage("PUT", "/models/two/2.0/set-default"), post("two", b"x")),
        case("a default that is none", manage("PUT", "/models/two/9.0/set-default"), status=404),
        case("unregister the default", manage("DELETE", "/models/two/2.0"), status=403),
        case("unregister the other", manage("DELETE", "/models/two/1.0"), post("two/1.0", b"x"), status=[200, 404]),
        case("unregister the last", manage("DELETE", "/models/two"), post("two", b"x"), status=[200, 404]),
        case("unregister nobody", manage("DELETE", "/models/nobody"), status=404),
        case("wrong method", manage("PATCH", "/models/echo"), status=405),
        case("gRPC describe", asked("DescribeModel", model_name="echo"), status="OK", normal=described),
        case("gRPC describe nobody", asked("DescribeModel", model_name="nobody"), status="NOT_FOUND"),
        case("gRPC list", asked("ListModels", limit=1), status="OK"),
        case("gRPC list, a page later", asked("ListModels", limit=1, next_page_token=1), status="OK"),
        case("gRPC describe a version", asked("DescribeModel", model_name="echo", model_version="1.0"), status="OK",
             normal=described),
        case("gRPC describe all versions", asked("DescribeModel", model_name="echo", model_version="all"), status="OK",
             normal=described),
        case("gRPC describe no version", asked("DescribeModel", model_name="echo", model_version="7.0"),
             status="NOT_FOUND"),
        case("gRPC describe with the handler's own words",
             asked("DescribeModel", model_name="explained", customized=True), status="OK", normal=described),
        case("gRPC register",
             asked("RegisterModel", url="modes.mar", model_name="by-grpc", initial_workers=1, synchronous=True,
                   batch_size=2, max_batch_delay=30, response_timeout=9),
             predictions("by-grpc", body=b"text"), asked("DescribeModel", model_name="by-grpc"), status=["OK"] * 3,
             normal=described),
        case("gRPC register again", asked("RegisterModel", url="modes.mar", model_name="by-grpc"), status="UNKNOWN"),
        case("gRPC register nothing", asked("RegisterModel"), status="INVALID_ARGUMENT"),
        case("gRPC register a missing file", asked("RegisterModel", url="missing.mar"), status="NOT_FOUND"),
        case("gRPC register no class",
             asked("RegisterModel", url="no_class.mar", initial_workers=1, synchronous=True), status="INTERNAL"),
        case("gRPC scale", asked("ScaleWorker", model_name="by-grpc", min_worker=2, max_worker=2, synchronous=True),
             asked("DescribeModel", model_name="by-grpc"), status=["OK"] * 2, normal=described),
        case("gRPC scale by and by", asked("ScaleWorker", model_name="by-grpc", min_worker=2, max_worker=2), status="OK"),
        case("gRPC scale by a version",
             asked("ScaleWorker", model_name="by-grpc", model_version="1.0", min_worker=2, max_worker=2, synchronous=True),
             status="OK"),
        case("gRPC scale to nonsense", asked("ScaleWorker", model_name="by-grpc", min_worker=5, max_worker=1),
             status="INVALID_ARGUMENT"),
        case("gRPC scale nobody", asked("ScaleWorker", model_name="nobody", min_worker=1), status="NOT_FOUND"),
        case("gRPC default", asked("SetDefault", model_name="by-grpc", model_version="1.0"), status="OK"),
        case("gRPC default that is none", asked("SetDefault", model_name="by-grpc", model_version="9.0"),
             status="NOT_FOUND"),
        case("gRPC default of nobody", asked("SetDefault", model_name="nobody", model_version="1.0"), status="NOT_FOUND"),
        case("gRPC unregister by a version", asked("UnregisterModel", model_name="by-grpc", model_version="1.0"),
             status="OK"),
        case("gRPC unregister", asked("UnregisterModel", model_name="other"), predictions("other", body=b"text"),
             status=["OK", "INTERNAL"]),
        case("gRPC unregister nobody", asked("UnregisterModel", model_name="nobody"), status="NOT_FOUND"),
        case("inference on the management port", Call("POST", "/predictions/echo", b"x", BYTES, True), status=404),
        case("management on the inference port", Call("GET", "/models"), status=404),
    ],
    loaded="echo.mar",
    models=["echo"],
)  # fmt: skip
