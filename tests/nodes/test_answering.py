"""The routes as a server has them: what is refused, and that costly questions keep no other waiting."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import types
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from given.loops import in_loop
from host.stand_in import Host, Pack

pytest.importorskip("aiohttp", reason="aiohttp is not installed; it is part of the extra `test`")

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

PLAN = {"name": "demo", "direction": "decode", "width": 64, "height": 64}


@asynccontextmanager
async def serving(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TestClient]:
    routes = web.RouteTableDef()
    server = types.SimpleNamespace(routes=routes)
    monkeypatch.setattr(pack.module("nodes.host"), "prompt_server", lambda: server)
    pack.module("nodes.routes").register()

    @routes.get("/other")
    async def other(request: web.Request) -> web.Response:
        done = await asyncio.get_running_loop().run_in_executor(None, lambda: "the host's own")
        return web.Response(text=done)

    app = web.Application(client_max_size=100 << 20)
    app.add_routes(routes)
    async with TestClient(TestServer(app)) as client:
        yield client


@pytest.fixture
def serve(pack: Pack, host: Host, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Awaitable[Any]]], Any]:
    def run(use: Callable[[TestClient], Awaitable[Any]]) -> Any:
        async def main() -> Any:
            async with serving(pack, monkeypatch) as client:
                return await use(client)

        return in_loop(main())

    return run


REFUSED: dict[str, tuple[bytes, str, int, str]] = {
    "lists in lists": (b"[" * 100_000, "application/json", 413, "bytes"),
    "fewer lists in lists": (b"[" * 50_000, "application/json", 400, "lists and objects"),
    "an unknown charset": (json.dumps(PLAN).encode(), "application/json; charset=klingon", 415, "klingon"),
    "a codec that takes the square of its length": (
        b"a" * 60_000,
        "application/json; charset=punycode",
        415,
        "punycode",
    ),
    "a codec of bytes": (b"aa", "application/json; charset=hex", 415, "hex"),
    "UTF-16 cut": (b"\x7b", "application/json; charset=utf-16", 400, "not JSON"),
    "bytes of another charset": (b'{"name": "\xff"}', "application/json; charset=utf-8", 400, "not JSON"),
    "megabytes": (b" " * (3 << 20), "application/json", 413, "bytes"),
    "no JSON": (b"name=demo", "application/x-www-form-urlencoded", 400, "not JSON"),
    "nothing": (b"", "application/json", 400, "not JSON"),
    "a list": (b"[1]", "application/json", 400, "not a JSON object"),
    "no size": (b"{}", "application/json", 400, "missing"),
    "an endless number": (b'{"direction": "decode", "width": 1e999, "height": 8}', "application/json", 400, "wrong"),
    "many digits": (
        b'{"direction": "decode", "width": ' + b"9" * 9000 + b', "height": 8}',
        "application/json",
        400,
        "",
    ),
    "a tile of many digits": (json.dumps({**PLAN, "tile_size": 10**4000}).encode(), "text/plain", 400, "tile_size"),
    "an overlap of many digits": (json.dumps({**PLAN, "overlap": 10**4000}).encode(), "text/plain", 400, "overlap"),
    "far too large": (json.dumps({**PLAN, "width": 2**17, "height": 2**17}).encode(), "text/plain", 400, "too large"),
    "a budget of NaN": (
        json.dumps({**PLAN, "memory_budget": float("nan")}).encode(),
        "text/plain",
        400,
        "memory_budget from 0",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_question_is_refused(serve: Any, case: str) -> None:
    body, kind, status, text = REFUSED[case]

    async def use(client: TestClient) -> tuple[int, str]:
        answer = await client.post("/seamless_vae/plan", data=body, headers={"Content-Type": kind})
        return answer.status, await answer.text()

    found, sentence = serve(use)
    assert found == status and text in sentence and sentence.endswith(".")


def test_eight_costly_questions_keep_no_other_waiting(serve: Any, pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do questions whose page has gone: those that have not begun never do."""
    begun, may_end = [], threading.Event()

    def slow(name: str) -> dict[str, str]:
        begun.append(name)
        may_end.wait(20)
        return {"name": name}

    monkeypatch.setattr(pack.module("nodes.questions"), "describe_file", slow)
    answering = pack.module("nodes.answering")

    async def use(client: TestClient) -> int:
        asked = [asyncio.create_task(client.get("/seamless_vae/info", params={"name": str(i)})) for i in range(8)]
        while len(begun) < answering.WORKERS:
            await asyncio.sleep(0.01)
        start = time.monotonic()
        assert await (await client.get("/other")).text() == "the host's own"
        assert time.monotonic() - start < 5
        for task in asked[2:]:
            task.cancel()
        await asyncio.sleep(4 * answering.LOOK_AGAIN)  # until the server has looked whether they are there
        may_end.set()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        return sum(isinstance(each, Exception | asyncio.CancelledError) for each in answers)

    assert serve(use) == 6
    assert len(begun) == answering.WORKERS


def test_an_answer_that_takes_too_long_is_given_up(pack: Pack, host: Host) -> None:
    module, may_end = pack.module("nodes.answering"), threading.Event()

    async def ask(waiting: int, gone: bool) -> None:
        answering = module.Answering(seconds=0.05, workers=1, waiting=waiting)
        await answering.answer(may_end.wait, 20, is_gone=lambda: gone)

    for waiting, gone, text in ((5, False, "more than 0.05 seconds"), (5, True, "withdrawn"), (0, False, "Ask again")):
        with pytest.raises(module.RefusedError, match=text):
            in_loop(ask(waiting, gone))
    may_end.set()


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_body_that_is_not_compressed_as_it_says(serve: Any, encoding: str) -> None:
    async def use(client: TestClient) -> tuple[int, str]:
        headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
        answer = await client.post("/seamless_vae/plan", data=b"xx", headers=headers)
        return answer.status, await answer.text()

    status, sentence = serve(use)
    assert status == 400 and "cannot be read" in sentence


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", "utf-16", "utf-32le", "us-ascii"])
def test_honest_charsets_are_read(serve: Any, charset: str) -> None:
    async def use(client: TestClient) -> tuple[int, str]:
        headers = {"Content-Type": f"application/json; charset={charset}"}
        answer = await client.post("/seamless_vae/plan", data=json.dumps([1]).encode(charset), headers=headers)
        return answer.status, await answer.text()

    status, sentence = serve(use)
    assert status == 400 and "not a JSON object" in sentence


@pytest.mark.parametrize("name", ["[SD] {1.5} [[[[[[fp16]]]]]].safetensors", '"[{' * 20, "\\[" * 20])
def test_marks_in_names_are_no_lists(serve: Any, name: str) -> None:
    async def use(client: TestClient) -> tuple[int, str]:
        answer = await client.post("/seamless_vae/plan", json={**PLAN, "name": name})
        return answer.status, await answer.text()

    _, sentence = serve(use)
    assert "lists and objects" not in sentence


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError(), OSError(11, "no thread")])
def test_a_thread_that_cannot_start_closes_nothing(
    error: Exception, pack: Pack, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More questions than may wait are refused because there is no thread; later ones are answered."""
    module = pack.module("nodes.answering")
    done: list[int] = []

    def fail(*_: Any) -> None:
        raise error

    async def ask(answering: Any, number: int) -> Any:
        return await answering.answer(lambda: done.append(number), is_gone=lambda: False)

    async def main() -> None:
        answering = module.Answering(workers=1, waiting=3)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            for number in range(5):
                with pytest.raises(module.RefusedError, match="has no thread.*Ask again later.$") as refused:
                    await ask(answering, number)
                assert refused.value.status == 503
        for number in range(5, 10):
            await ask(answering, number)
        with pytest.raises(ZeroDivisionError):
            await answering.answer(lambda: 1 // 0, is_gone=lambda: False)
        assert answering._asked == 0

    in_loop(main())
    assert done == list(range(5, 10))
