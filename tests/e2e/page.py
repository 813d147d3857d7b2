"""A page of a real host: one of the front ends in a browser, and the host behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import copy
from typing import Any

from e2e.real_host import Comfy, checkout, running
from host.browser import FrontEnd, front_end, launched
from host.frontend import VERSIONS, static_files


@contextmanager
def opened(
    kind: str, folder: Path, images: Sequence[Path] = (), settings: dict[str, Any] | None = None, **context: Any
) -> Iterator[tuple[FrontEnd, Comfy]]:
    """A page that is loaded, and its host.

    Args:
        kind: the front end's age and what draws its nodes, such as old-canvas.
        folder: the host's base directory, empty.
        images: copied to the host's inputs.
        settings: of the front end.
        context: of the browser, such as its viewport.
    """
    age, renderer = kind.split("-")
    (folder / "input").mkdir(parents=True)
    for image in images:
        copy(image, folder / "input")
    static = str(static_files(VERSIONS[age]))
    with (
        running(checkout(), folder, "--front-end-root", static) as host,
        launched() as browser,
        front_end(browser, host.address, renderer, **context) as ui,
    ):
        ui.load(**settings or {})
        yield ui, host


def finished(ui: FrontEnd, seconds: float) -> dict[str, Any]:
    """The last run in the host's history, once there is one.

    Raises:
        AssertionError: there is none after so many seconds.
    """
    for _ in range(int(seconds * 5)):
        runs = list(ui.page.request.get(f"{ui.url}/history").json().values())
        if runs:
            return runs[-1]
        ui.page.wait_for_timeout(200)
    raise AssertionError(f"the host's history is empty after {seconds} s")


def run(ui: FrontEnd) -> None:
    """Run the workflow on the page, with an empty history."""
    assert ui.page.request.post(f"{ui.url}/history", data={"clear": True}).ok
    ui.js("() => { void app.queuePrompt(0) }")
