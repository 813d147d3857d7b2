"""What a browser can ask of the routes: names of files, and questions as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from host.stand_in import Pack, installed
from hypothesis import given
from hypothesis import strategies as st

from fuzz.beside import VALUES
from fuzz.limits import folder, limits

NUMBERS = st.one_of(
    st.integers(-2, 2**17 + 2),
    st.sampled_from([8, 64, 512, 1024, 2**17, 2**63, 10**400, 1e999, -0.0, 0.5, True, None, "64", "x", [8]]),
    st.floats(),
)
QUESTION = st.fixed_dictionaries(
    {
        "direction": st.one_of(st.sampled_from(["encode", "decode"]), VALUES),
        "width": st.one_of(st.sampled_from([8, 64, 512]), NUMBERS),
        "height": st.one_of(st.sampled_from([8, 64, 512]), NUMBERS),
    },
    optional={
        "name": st.one_of(st.sampled_from(["demo", None, "../x", "a\0b", "\ud800", "x" * 5000]), VALUES),
        "batch": NUMBERS,
        "mode": st.one_of(st.sampled_from(["exact", "blended"]), VALUES),
        "tile_size": NUMBERS,
        "overlap": NUMBERS,
        "memory_budget": NUMBERS,
        "circular": st.one_of(st.sampled_from(["none", "x", "y", "both"]), VALUES),
        "device": st.one_of(st.sampled_from(["auto", "cpu", "cuda", "cuda:99"]), VALUES),
        "dtype": st.one_of(st.sampled_from(["auto", "float32", "bfloat16"]), VALUES),
        "more": VALUES,
    },
)
TYPES = ["application/json", "text/plain", "application/json; charset=utf-16", "application/json; charset=no-such"]


class Server:
    """The pack's routes, as a server has them, in a loop and a thread of its own."""

    def __init__(self) -> None:
        self.loop, self.thread = asyncio.new_event_loop(), ThreadPoolExecutor(1)
        routes = web.RouteTableDef()
        self.pack = Pack()
        sys.modules["server"].PromptServer.instance.routes = routes  # type: ignore[attr-defined]
        self.pack.module("nodes.routes").register()
        app = web.Application()
        app.add_routes(routes)
        self.client = TestClient(TestServer(app, loop=self.loop), loop=self.loop)
        self._run(self.client.start_server())

    def ask(self, method: str, path: str, **options: Any) -> tuple[int, str]:
        async def asked() -> tuple[int, str]:
            async with self.client.request(method, path, **options) as answer:
                return answer.status, await answer.text()

        return self._run(asked())

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.thread.submit(self.loop.run_until_complete, work).result()


@cache
def server() -> Server:
    return Server()


@given(data=st.data())
def routes(data: st.DataObject) -> None:
    """An answer in JSON, or a sentence with 4xx; never 500."""
    with installed("new", folder() / "host"):
        asked = server()
        if data.draw(st.booleans()):
            name = data.draw(st.one_of(st.text(max_size=20), st.sampled_from(["demo", "../demo", "", "demo [folder]"])))
            size, arguments = 0, ("GET", "/seamless_vae/info")
            options: dict[str, Any] = {"params": {"name": name.encode("utf-8", "replace").decode()}}
        else:
            question = data.draw(st.one_of(QUESTION, QUESTION, VALUES))
            raw = bytearray(json.dumps(question).encode())
            for _ in range(data.draw(st.integers(0, 1))):
                raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.sampled_from(b'{}[]",:0-.eN \\\xff\x00'))
            if data.draw(st.integers(0, 19)) == 0:
                raw = bytearray(b"[" * 100_000)
            size, arguments = len(raw), ("POST", "/seamless_vae/plan")
            kind = data.draw(st.sampled_from([TYPES[0], *TYPES]))
            options = {"data": bytes(raw), "headers": {"Content-Type": kind}}
        with limits(size):
            status, text = asked.ask(*arguments, **options)
    assert status == 200 or 400 <= status < 500, (status, text)
    if status == 200:
        json.loads(text, parse_constant=lambda name: (_ for _ in ()).throw(AssertionError(name)))
    else:
        assert 0 < len(text) < 900
