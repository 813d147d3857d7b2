"""Panels show answers of the back end as they are now, ask for no more than is seen, and wait for none for ever."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from host.browser import FrontEnd
from playwright.sync_api import expect

pytestmark = pytest.mark.thorough

INFO, PLAN = "About this VAE file", "Run plan"
NODES = [("SeamlessVAELoad", 80, 120), ("SeamlessVAEDecodeTiled", 400, 120)]
TOAST = "the server did not answer. If"
PATIENCE = "async (time) => (await import('/extensions/seamless-vae/js/panels/ask.js')).patience.milliseconds = time"


@pytest.fixture
def ui(ui: FrontEnd) -> Iterator[FrontEnd]:
    """A page on which no question waits to be answered when the test ends; failed requests were meant."""
    ui.clear_messages(TOAST)  # of an earlier test
    yield ui
    ui.post("/standin/rule", {})
    ui.graph(NODES, [(1, 0, 2, "vae")])
    expect(ui.panel(PLAN)).to_contain_text("Strips")
    expect(ui.panel(INFO)).to_contain_text("channels")
    ui.forgive_failed_requests()


@pytest.fixture
def file(data: Path) -> Path:
    """A VAE in the list of the models that tests may overwrite."""
    folder = data / "models" / "vae"
    return Path(shutil.copy(folder / "sdxl.safetensors", folder / "changing.safetensors"))


@pytest.mark.parametrize("how", ["refreshed", "run", "reconnected"])
def test_a_file_that_was_replaced_is_described_anew(ui: FrontEnd, file: Path, how: str) -> None:
    ui.graph(NODES)
    ui.set(1, "vae_name", file.name)
    expect(ui.panel(INFO)).to_contain_text("SDXL")
    shutil.copy(file.with_name("flux1.safetensors"), file)
    if how == "refreshed":
        ui.js("app.refreshComboInNodes()")
    elif how == "run":
        ui.send("execution_start", prompt_id="p")
        ui.send("execution_success", prompt_id="p")
    else:
        ui.reconnect()
    expect(ui.panel(INFO)).to_contain_text("FLUX.1")


def test_free_memory_is_asked_for_after_each_run(ui: FrontEnd) -> None:
    ui.graph(NODES)
    expect(ui.panel(PLAN)).to_contain_text("Strips")
    before = len(ui.requests("/seamless_vae/plan"))
    ui.send("execution_start", prompt_id="p")
    ui.send("execution_interrupted", prompt_id="p", node_id="2", node_type="X", executed=[])
    ui.wait_for_requests("/seamless_vae/plan", before + 1)


@pytest.fixture
def unanswered(ui: FrontEnd) -> Iterator[FrontEnd]:
    """A page with little patience, whose panel has just asked what is answered too late."""
    ui.js(PATIENCE, 1500)
    try:
        ui.graph(NODES)
        expect(ui.panel(PLAN)).to_contain_text("Strips")
        ui.rule("/seamless_vae/plan", delay=20)
        ui.set(2, "tile_size", 512)
        yield ui
    finally:
        ui.js(PATIENCE, 20000)


def test_a_question_that_is_never_answered_is_given_up(unanswered: FrontEnd) -> None:
    expect(unanswered.panel(PLAN)).to_contain_text("Not available: the server did not answer.")
    unanswered.wait_until_it_says(TOAST, 1)
    unanswered.post("/standin/rule", {})
    unanswered.set(2, "tile_size", 256)
    expect(unanswered.panel(PLAN)).to_contain_text("Strips")


def test_a_node_that_goes_asks_no_more(unanswered: FrontEnd) -> None:
    content = unanswered.panel(PLAN).locator(".seamless-content")
    expect(content).to_have_attribute("aria-busy", "true")
    unanswered.js("app.canvas.graph.remove(app.canvas.graph.getNodeById(2))")
    unanswered.page.wait_for_timeout(2000)
    assert unanswered.says(TOAST) == 0


def test_one_route_that_fails_is_said_once_while_the_other_answers(ui: FrontEnd) -> None:
    ui.graph(NODES)
    expect(ui.panel(PLAN)).to_contain_text("Strips")
    ui.rule("/seamless_vae/plan", status=500)
    for size, name, family in ((512, "sdxl.safetensors", "SDXL"), (256, "flux1.safetensors", "FLUX.1")):
        ui.set(2, "tile_size", size)
        ui.set(1, "vae_name", name)
        expect(ui.panel(INFO)).to_contain_text(family)
        expect(ui.panel(PLAN)).to_contain_text("Not available")
        ui.page.wait_for_timeout(500)
    assert ui.says(TOAST) == 1


def test_a_refused_question_is_reported_in_the_panel(ui: FrontEnd) -> None:
    double = [("ImageScale", 80, 600, {"width": 16384, "height": 16384})]
    more = [("ImageScaleBy", 80 + 300 * index, 800, {"scale_by": 8}) for index in range(2)]
    ui.graph(
        [("SeamlessVAEEncodeTiled", 420, 100), ("LoadImage", 80, 300), *double, *more],
        [(2, 0, 3, "image"), (3, 0, 4, "image"), (4, 0, 5, "image"), (5, 0, 1, "pixels")],
    )
    expect(ui.panel(PLAN).get_by_role("alert")).to_contain_text("1048576x1048576 in a batch of 1 is not a valid size")
    assert ui.says(TOAST) == 0


def test_a_hidden_panel_asks_nothing_until_it_is_shown(ui: FrontEnd) -> None:
    show = "(shown) => app.extensionManager.setting.set('SeamlessVAE.Panels', shown)"
    ui.js(show, False)
    try:
        before = len(ui.requests("/seamless_vae/"))
        ui.graph(NODES)
        ui.page.wait_for_function("app.canvas.graph.getNodeById(2).widgets.some((each) => each.disabled)")
        ui.page.wait_for_timeout(500)
        assert len(ui.requests("/seamless_vae/")) == before
    finally:
        ui.js(show, True)
    expect(ui.panel(PLAN)).to_contain_text("Strips")
    expect(ui.panel(INFO)).to_contain_text("channels")
