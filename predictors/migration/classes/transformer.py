"""Images as TorchServe's handlers for them take and answer them, around a network that knows tensors alone.

A row is `{"data": …}` or `{"body": …}` with the file in base64, or with a tensor as nested lists. In v2 and gRPC it may be the
file itself, or its base64, in an element of BYTES.
"""

import json
from base64 import b64decode
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from torpor.predictors.errors import InvalidInput
from torpor.predictors.protocol.datatypes import Array
from torpor.transformers.image import Image


class Images(Image):
    """The way in.

    Parameters, beside those of `Image`:
    labels: a JSON file of the classes' names by index; without it an index is the name.
    """

    def load(self, folder: Path, parameters: Mapping[str, Any]) -> None:  # type: ignore[override]
        own = dict(parameters)
        labels = own.pop("labels", "")
        self.labels = _labels(json.loads((folder / labels).read_text())) if labels else None
        super().load(own)

    def preprocess(self, data: Annotated[Array, "json[rows]"]) -> dict[str, list[Array]]:
        return {"image": [self._image(f"input 'data': row {row}", element) for row, element in enumerate(data)]}

    def _image(self, row: str, element: bytes) -> Array:
        """[channels, height, width]."""
        try:
            value = json.loads(element)
        except ValueError:
            value = _decoded(element)
        if isinstance(value, dict):
            value = value.get("data") or value.get("body")
        if isinstance(value, str):
            try:
                value = b64decode(value)
            except ValueError as error:
                raise InvalidInput(f"{row} is not base64: {error}") from None
        if isinstance(value, bytes):
            return self._tensor(row, value)
        try:
            image: Array = np.array(value, np.float32)
        except (ValueError, TypeError):
            image = np.empty(0, np.float32)
        if image.ndim != 3:
            raise InvalidInput(f"{row} must be an image in base64, or a tensor [channels, height, width]")
        return image

    def label(self, index: int) -> str:
        return str(index) if self.labels is None else self.labels[str(index)]


class Classifier(Images):
    """The answer is an object of names and probabilities."""

    def postprocess(self, probability: Array, index: Array) -> Annotated[Array, "json[rows]"]:
        rows = [
            {self.label(one): chance for one, chance in zip(indices, chances, strict=True)}
            for indices, chances in zip(index.tolist(), probability.tolist(), strict=True)
        ]
        return [json.dumps(row) for row in rows]  # type: ignore[return-value]


class Detector(Images):
    """The answer is a list of objects, each with its name, its box and its score."""

    threshold = 0.5
    """Of the score."""

    def postprocess(self, box: Array, index: Array, score: Array) -> Annotated[Array, "json[rows]"]:
        rows = [
            [
                {self.label(one): place, "score": sure}
                for place, one, sure in zip(*found, strict=True)
                if sure >= self.threshold
            ]
            for found in zip(box.tolist(), index.tolist(), score.tolist(), strict=True)
        ]
        return [json.dumps(row) for row in rows]  # type: ignore[return-value]


def _decoded(element: bytes) -> bytes:
    """Of base64, which no image's file is by itself."""
    try:
        return b64decode(element, validate=True)
    except ValueError:
        return element


def _labels(said: Any) -> dict[str, str]:
    """By index, of any of the forms that TorchServe takes."""
    if "object_type_names" in said:
        return {str(index): name for index, name in enumerate(said["object_type_names"])}
    return {index: name[-1] if isinstance(name, list) else name for index, name in said.items()}
