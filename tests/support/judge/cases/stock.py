"""The stock handlers, with tiny seeded models."""

import json

from judge.calls import JSON, TEXT, case, form, multipart, post
from judge.cases.images import IMAGE, IMAGE_TEXT
from judge.scenes import Scene

STOCK = Scene(
    "stock",
    ["classifier", "unlabelled", "detector", "segmenter", "text", "onnx", "compiled", "scripted"],
    [
        case("image", post("classifier", IMAGE)),
        case("image by multipart", multipart("classifier", ("data", "a.png", "image/png", IMAGE))),
        case("image as text", post("classifier", json.dumps({"data": IMAGE_TEXT}), JSON), status=503),
        case("image as base64 text", post("classifier", IMAGE_TEXT, TEXT)),
        case("image as a form", form("classifier", data="x"), status=503),
        case("no image", post("classifier", b"no image"), status=503),
        case("image, no labels", post("unlabelled", IMAGE)),
        case("image explained", post("classifier", IMAGE, path="/explanations/"), normal=len),
        case("detector", post("detector", IMAGE)),
        case("segmenter", post("segmenter", IMAGE)),
        case("text", post("text", "The film I'm good", TEXT)),
        case("text as bytes", post("text", "<b>The film</b>")),
        case("text with unknown words", post("text", "unheard", TEXT), status=503),
        case("text explained", post("text", "the film", TEXT, "/explanations/")),
        case("onnx", post("onnx", "[1.0, 2.0, 3.0]", JSON)),
        case("compiled", post("compiled", "[1.0, 2.0, 3.0]", JSON)),
        case("base handler, no envelope", post("scripted", "[1.0, 2.0, 3.0]", JSON), status=503),
    ],
)
