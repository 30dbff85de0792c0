"""An archive's requests as rows of the batching policy: which may share a batch."""

from contextlib import ExitStack
from typing import Any

import pytest
from torpor.predictors.batching.policy import BatchingPolicy, BatchingSettings
from torpor.predictors.batching.run_times import RunTimes
from torpor.predictors.serving.calls import Call
from torpor.predictors.torchserve.model_settings import ModelSettings
from torpor.predictors.torchserve.served import Origin, ServedArchive
from torpor.predictors.torchserve.workers import Row


class Batcher:
    """Takes everything."""

    policy = BatchingPolicy[Any](BatchingSettings(), RunTimes())

    def submit(self, row: Row, answer: Any, timeout_s: float | None) -> None: ...


class Workers:
    devices = 1


def row(body: bytes, settings: ModelSettings | None = None, protocol: str = "predictions", **more: Any) -> Row:
    origin = Origin("m.mar", "python", settings or ModelSettings(), has_gpus=False, is_from_start=True)
    served = ServedArchive("m", "1.0", origin, Batcher(), Workers(), None, ExitStack(), 0.0)  # type: ignore[arg-type]
    return served.call(Call(protocol, {}, body, **more), None, lambda result: None)


def test_bodies_of_like_length_are_of_one_bucket() -> None:
    """Others are of its family, so that the policy weighs what padding costs."""
    short, alike, long = (row(bytes(size)).bucket for size in (33, 64, 65))
    assert short == alike != long
    assert short.family == long.family
    assert long.cells == 3
    assert row(b"").bucket.cells == 1
    assert row(b"", fields={"data": bytes(40), "more": bytes(30)}).bucket == long


def test_bodies_that_are_no_texts_are_not_told_apart() -> None:
    """The length of an image pads nothing."""
    assert row(bytes(20_000)).bucket == row(bytes(1 << 20)).bucket


@pytest.mark.parametrize("protocol", ["v1", "v2"])
def test_the_length_of_a_document_says_nothing_of_its_rows(protocol: str) -> None:
    """KServe's protocols may have several in one."""
    assert row(bytes(10), protocol=protocol).bucket == row(bytes(1000), protocol=protocol).bucket


def test_a_model_may_do_without() -> None:
    """Where the length is none of its batches' cost."""
    settings = ModelSettings().changed({"bucketByLength": False}, "model.yaml")
    assert row(bytes(10), settings).bucket == row(bytes(1000), settings).bucket


def test_an_explanation_shares_no_batch() -> None:
    """Nor what was learned of predictions' times."""
    explained = row(bytes(10), is_explained=True).bucket
    assert explained.alone
    assert explained.family != row(bytes(10)).bucket.family
