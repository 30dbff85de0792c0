"""Which protocol a predictor speaks, asked of its metadata."""

import asyncio
import json

import pytest
from torpor.predictors.errors import InvalidInput, NotFound, PredictorFailed, Unavailable
from torpor.transformers.client import Backoff, PredictorClient

V2 = {"name": "m", "platform": "any", "inputs": [], "outputs": []}
BINARY = {"name": "s", "version": "1", "extensions": ["binary_tensor_data"]}
PLAIN = {"name": "s", "version": "1", "extensions": ["model_repository_extension"]}
V1 = {"name": "m", "ready": "True"}


def speaking(ok, asked: list[str], pages: dict[str, object], prefix: str = ""):
    """Serves JSON pages by path, else 404; an error by its status line."""

    async def behave(caller) -> None:
        while True:
            head, _ = await caller.request()
            path = head.split(b" ")[1].decode()
            asked.append(path)
            page = pages.get(path.removeprefix(prefix))
            if isinstance(page, bytes):
                await caller.send(ok(b"no", status=page))
            elif page is None:
                await caller.send(ok(b"{}", status=b"404 Not Found"))
            else:
                await caller.send(ok(json.dumps(page).encode()))

    return behave


@pytest.mark.parametrize(
    ("protocol", "pages", "spoken"),
    [
        ("auto", {"/v2/models/m": V2, "/v2": BINARY, "/v1/models/m": V1}, "v2-binary"),
        ("auto", {"/v2/models/m": V2, "/v2": PLAIN, "/v1/models/m": V1}, "v2-json"),
        ("auto", {"/v2/models/m": V2}, "v2-json"),
        ("auto", {"/v2/models/m": V2, "/v2": [1]}, "v2-json"),
        ("auto", {"/v1/models/m": V1}, "v1"),
        ("auto", {"/v2/models/m": b"405 Method Not Allowed", "/v1/models/m": V1}, "v1"),
        ("auto", {"/v2/models/m": b"500 Internal Server Error", "/v1/models/m": V1}, "v1"),
        ("auto", {"/v2/models/m": [1], "/v1/models/m": V1}, "v1"),
        ("v2", {"/v2/models/m": V2, "/v2": BINARY}, "v2-binary"),
        ("v2", {"/v2/models/m": V2, "/v2": PLAIN}, "v2-json"),
    ],
)
def test_the_best_protocol_that_the_predictor_has_is_spoken(run, predictor, ok, protocol, pages, spoken) -> None:
    """Binary v2 before JSON before v1; a page that is no metadata says no."""

    async def scenario() -> None:
        asked: list[str] = []
        async with (
            predictor(speaking(ok, asked, pages)) as server,
            PredictorClient(server.address, "m", protocol) as asking,
        ):
            assert asking.protocol is None
            await asking.metadata()
            assert asking.protocol == spoken
            asked.clear()
            await asking.metadata()
            assert len(asked) == 1

    run(scenario())


def test_a_predictor_without_the_model_is_named_with_what_it_answered(run, predictor, ok) -> None:
    """Which paths, and what came."""

    async def scenario() -> None:
        async with predictor(speaking(ok, [], {})) as server:
            async with PredictorClient(f"http://{server.address}/x", "m") as asking:
                with pytest.raises(NotFound) as caught:
                    await asking.metadata()
                assert str(caught.value) == (
                    f"the predictor at http://{server.address}/x has no model 'm': "
                    "/x/v2/models/m answered 404, /x/v1/models/m answered 404"
                )
            async with PredictorClient(server.address, "m", "v2") as asking:
                with pytest.raises(NotFound, match=r"/v2/models/m answered 404$"):
                    await asking.is_ready()

    run(scenario())


@pytest.mark.parametrize(
    ("status", "kind"), [(b"503 Service Unavailable", Unavailable), (b"401 Unauthorized", InvalidInput)]
)
def test_a_predictor_that_does_not_say_is_not_taken_for_an_old_one(run, predictor, ok, status, kind) -> None:
    """One that starts, or that wants credentials, would else be asked in v1 from then on."""

    async def scenario() -> None:
        pages = {"/v2/models/m": status, "/v1/models/m": V1}
        async with predictor(speaking(ok, [], pages)) as server, PredictorClient(server.address, "m") as asking:
            with pytest.raises(kind):
                await asking.metadata()
            assert asking.protocol is None
            if kind is Unavailable:
                assert not await asking.is_ready()

    run(scenario())


def test_many_first_requests_ask_once(run, predictor, small, ok) -> None:
    """And wait for the answer, unless they leave; the caller's credentials go with the question."""

    async def scenario() -> None:
        heads: list[bytes] = []

        async def behave(caller) -> None:
            while True:
                head, _ = await caller.request()
                heads.append(head)
                page = {b"/v2/models/m": V2, b"/v2": PLAIN}.get(head.split(b" ")[1])
                await caller.send(ok() if page is None else ok(json.dumps(page).encode()))

        async with predictor(behave) as server, PredictorClient(server.address, "m") as asking:
            headers = {"authorization": "Bearer t", "ce-id": "5"}
            leaving = asyncio.create_task(asking.infer(small, headers))
            staying = [asyncio.create_task(asking.infer(small, headers)) for _ in range(20)]
            await asyncio.sleep(0)
            leaving.cancel()
            answers = await asyncio.gather(*staying)
            assert {answer.outputs["y"].tolist()[0] for answer in answers} == {5}
        questions = [head for head in heads if head.startswith(b"GET")]
        assert len(questions) == 2
        assert len(heads) == 22
        assert all(b"authorization: Bearer t\r\n" in head and b"ce-id" not in head for head in questions)

    run(scenario())


@pytest.mark.parametrize("failure", ["404 Not Found", "nonsense", "gone"])
def test_a_failure_that_another_protocol_may_explain_makes_it_ask_anew(run, predictor, small, ok, failure: str) -> None:
    """The predictor behind an address can be replaced by one of another kind."""

    async def scenario() -> None:
        asked: list[str] = []
        pages: dict[str, object] = {"/v2/models/m": V2, "/v2": PLAIN, "/v1/models/m": V1}

        async def old(caller) -> None:
            for _ in range(2):
                head, _ = await caller.request()
                await caller.send(ok(json.dumps(pages[head.split(b" ")[1].decode()]).encode()))
            await caller.request()
            if failure != "gone":
                await caller.send(ok(b"{}", status=b"200 OK" if failure == "nonsense" else failure.encode()))

        new = {"/v1/models/m": V1, "/v1/models/m:predict": {"predictions": [5]}}
        async with (
            predictor(old, speaking(ok, asked, new)) as server,
            PredictorClient(server.address, "m", backoff=Backoff(0)) as asking,
        ):
            with pytest.raises((NotFound, PredictorFailed)):
                await asking.infer(small)
            assert asking.protocol is None
            if failure != "gone":  # the old connection was kept
                asking._pool._idle[0].abort()
            assert (await asking.infer(small)).outputs["predictions"].tolist() == [5]
            assert asking.protocol == "v1"

    run(scenario())


def test_an_unreachable_predictor_is_asked_anew_within_the_deadline(run, small, unused_address) -> None:
    """The question is part of the try."""

    async def scenario() -> None:
        tries: list[int] = []
        backoff = Backoff(2, 0.0, random=lambda: tries.append(1) or 0.0)
        async with PredictorClient(unused_address, "m", backoff=backoff) as asking:
            with pytest.raises(Unavailable, match="cannot be reached"):
                await asking.infer(small)
        assert len(tries) == 2

    run(scenario())
