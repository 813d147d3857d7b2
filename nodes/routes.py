"""The routes by which the front end asks its questions."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

from . import host, questions
from .answering import Answering, read_json
from .answers import RefusedError

logger = logging.getLogger("seamless_vae")


def register() -> None:
    """Add the routes to the host's server, if there is one."""
    server = host.prompt_server()
    routes = getattr(server, "routes", None)
    if routes is None:
        return
    from aiohttp import web

    answering = Answering()

    def reply(content: object) -> web.Response:
        return web.Response(text=json.dumps(content, default=str, allow_nan=False), content_type="application/json")

    async def answered(request: web.Request, work: Callable[..., Any], *arguments: Any) -> web.Response:
        def is_gone() -> bool:
            return request.transport is None or request.transport.is_closing()

        try:
            return reply(await answering.answer(work, *arguments, is_gone=is_gone))
        except RefusedError as refused:
            return web.Response(status=refused.status, text=str(refused))
        except Exception:  # whatever is asked, the server's request must end with an answer
            logger.exception("a question of the front end could not be answered")
            return web.Response(status=500, text="The question could not be answered; see the log.")

    @routes.get("/seamless_vae/info")
    async def info(request: web.Request) -> web.Response:
        return await answered(request, questions.describe_file, request.query.get("name", ""))

    @routes.post("/seamless_vae/plan")
    async def plan(request: web.Request) -> web.Response:
        try:
            question = questions.Question.read(await read_json(request))
        except RefusedError as refused:
            return web.Response(status=refused.status, text=str(refused))
        return await answered(request, questions.plan, question)
