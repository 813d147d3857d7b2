"""The front ends that every test here runs in: old and new, with both ways of drawing nodes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="playwright is not installed; it is part of the extra `test`")
pytest.importorskip("aiohttp", reason="aiohttp is not installed; it is part of the extra `test`")

from given import web_models as models
from host.browser import FrontEnd, front_end, launched, stand_in
from host.frontend import VERSIONS
from playwright.sync_api import Browser

# ComfyUI 0.3.64's front end draws no DOM widgets in its experimental Vue mode; Nodes 2.0 is the new one's.
KINDS = ("old-canvas", "new-canvas", "new-vue")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("host")
    models.write(folder)
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with launched() as opened:
        yield opened


@pytest.fixture(scope="session")
def servers(data: Path) -> Iterator[dict[str, str]]:
    with ExitStack() as stack:
        yield {age: stack.enter_context(stand_in(version, data)) for age, version in VERSIONS.items()}


@pytest.fixture(scope="session", params=KINDS)
def opened(request: pytest.FixtureRequest, browser: Browser, servers: dict[str, str]) -> Iterator[FrontEnd]:
    age, renderer = request.param.split("-")
    with front_end(browser, servers[age], renderer) as page:
        yield page


@pytest.fixture
def ui(opened: FrontEnd) -> Iterator[FrontEnd]:
    """A page of each kind, without rules of earlier tests, whose console is clean when the test ends."""
    opened.post("/standin/rule", {})
    if not opened.settings:
        opened.load()
    opened.page.keyboard.press("Escape")
    opened.close_messages()
    opened.graph([])
    opened.check()
    yield opened
    opened.check()
