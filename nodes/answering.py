"""How the front end's questions are answered beside the host's own work: few at a time, each bounded.

The host runs everything else in the event loop and in its default executor, so nothing here uses either for work.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ..vae_core.errors import in_one_line
from .answers import RefusedError

MAX_BODY = 1 << 16  # bytes of a question; one of the page has some hundred
MAX_DEPTH = 8  # of JSON in JSON
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?')  # of JSON, whose marks are a text
SECONDS = 30.0  # that an answer may take
LOOK_AGAIN = 0.25  # seconds between two looks at whether the page still waits
WORKERS = 2
WAITING = 64  # questions at a time; a page asks one for each of its panels
# What JSON may be written in. Python has a hundred other codecs, some of which take the square of the length.
CHARSETS = {
    *("utf-8", "utf8", "us-ascii", "ascii", "utf-16", "utf-16le", "utf-16be", "utf-32", "utf-32le", "utf-32be"),
}


class Answering:
    """Threads of its own for questions."""

    def __init__(self, seconds: float = SECONDS, workers: int = WORKERS, waiting: int = WAITING) -> None:
        self._seconds = seconds
        self._waiting = waiting
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="seamless_vae")
        self._asked = 0

    async def answer(self, work: Callable[..., Any], *arguments: Any, is_gone: Callable[[], bool]) -> Any:
        """The result of `work`, in a thread of its own.

        Args:
            is_gone: whether the asker has gone; what has not begun by then is never done.

        Raises:
            RefusedError: too many questions wait, the answer takes too long, or the system has no thread for it.
        """
        if self._asked >= self._waiting:
            raise RefusedError(503, f"{self._asked} questions are being answered already. Ask again later.")
        future: Future[Any] = Future()
        self._asked += 1
        future.add_done_callback(self._one_less)
        try:
            self._pool.submit(_do, future, work, arguments)
        except (RuntimeError, MemoryError, OSError) as error:
            future.cancel()  # it may be in the pool's queue already
            raise RefusedError(
                503, f"The system has no thread for an answer ({in_one_line(error)}). Ask again later."
            ) from None
        try:
            return await self._result(future, is_gone)
        finally:  # also if the request itself is cancelled
            future.cancel()

    def _one_less(self, _: Future[Any]) -> None:
        self._asked -= 1

    async def _result(self, future: Future[Any], is_gone: Callable[[], bool]) -> Any:
        waiting = asyncio.wrap_future(future)
        until = asyncio.get_running_loop().time() + self._seconds
        while True:
            done, _ = await asyncio.wait([waiting], timeout=LOOK_AGAIN)
            if done:
                return waiting.result()
            if is_gone():
                raise RefusedError(499, "The question was withdrawn.")
            if asyncio.get_running_loop().time() > until:
                raise RefusedError(503, f"The answer takes more than {self._seconds:g} seconds, so it was given up.")


def _do(future: Future[Any], work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = work(*arguments)
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


async def read_json(request: Any) -> Any:
    """The body of a request (aiohttp's) as JSON.

    Raises:
        RefusedError: it is too long, or not JSON as a page writes it.
    """
    from aiohttp import web  # the host's

    if request.content_length is None:
        raise RefusedError(411, "The length of the question is not given.")
    if request.content_length > MAX_BODY:
        raise RefusedError(413, f"The question has more than {MAX_BODY} bytes.")
    try:
        raw = await request.read()  # once more if another part of the server has read it, which the stream cannot
    except web.RequestPayloadError as error:  # such as one that is not compressed as it says
        raise RefusedError(400, f"The question cannot be read: {in_one_line(error)}.") from None
    charset = (request.charset or "utf-8").lower()
    if charset not in CHARSETS:
        raise RefusedError(415, f"The charset {charset[:40]!r} is not known. Send UTF-8.")
    try:
        text = raw.decode(charset)
        marks = _STRING.sub("", text)
        if marks.count("[") + marks.count("{") > MAX_DEPTH:
            raise RefusedError(400, f"The question has more than {MAX_DEPTH} lists and objects in it.")
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"The body of the request is not JSON: {in_one_line(error)}.") from None
