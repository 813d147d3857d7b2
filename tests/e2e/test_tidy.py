"""The example workflows stay tidy: no node overlaps another before, during or after a run, in a real host, in both
front ends and with both ways of drawing nodes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright", reason="playwright is not installed; it is part of the extra `test`")

from e2e.real_host import ROOT, running
from host.browser import FrontEnd, front_end, launched
from host.frontend import VERSIONS, static_files

FILES = sorted((ROOT / "example_workflows").glob("*.json"))
NEEDS_A_MODEL = "tiled_upscale_with_sampler"
RUN_SECONDS = 1200
# Nodes as they are drawn, in the graph's own units, and what overlaps of them, looked at ten times a second.
WATCH = """(vue) => {
    const seen = window.seamlessOverlaps = {}
    const boxes = () => {
        const nodes = app.canvas.graph._nodes, title = LiteGraph.NODE_TITLE_HEIGHT, scale = app.canvas.ds.scale
        if (!vue) return nodes.map((n) => [n.title, n.pos[0], n.pos[1] - title, n.size[0], n.size[1] + title])
        return nodes.flatMap((n) => {
            const element = document.querySelector(`.lg-node[data-node-id="${n.id}"]`)
            if (!element) return []
            const box = element.getBoundingClientRect()
            return [[n.title, box.x / scale, box.y / scale, box.width / scale, box.height / scale]]
        })
    }
    const look = () => {
        const found = boxes()
        window.seamlessBoxes = found.length
        found.forEach(([one, x, y, w, h], i) => found.slice(i + 1).forEach(([other, X, Y, W, H]) => {
            const wide = Math.min(x + w, X + W) - Math.max(x, X), high = Math.min(y + h, Y + H) - Math.max(y, Y)
            if (wide > 1 && high > 1) seen[`${one} and ${other}`] = `${Math.round(wide)}x${Math.round(high)}`
        }))
    }
    clearInterval(window.seamlessWatch)
    window.seamlessWatch = setInterval(look, 100)
    look()
}"""
SEE_ALL = "() => { app.canvas.ds.scale = 0.35; app.canvas.ds.offset = [60, 80]; app.canvas.setDirty(true, true) }"


@pytest.fixture(scope="module", params=["old-canvas", "new-canvas", "new-vue"])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontEnd]:
    checkout = os.environ.get("COMFYUI_PATH")
    if not checkout:
        pytest.skip("COMFYUI_PATH is not set; it names a checkout of ComfyUI to test with")
    age, renderer = request.param.split("-")
    folder = tmp_path_factory.mktemp("comfy")
    (folder / "input").mkdir()
    shutil.copy(Path(checkout) / "input" / "example.png", folder / "input")
    static = str(static_files(VERSIONS[age]))
    with (
        running(Path(checkout), folder, "--front-end-root", static) as host,
        launched() as browser,
        front_end(browser, host.address, renderer, viewport={"width": 1600, "height": 1000}) as ui,
    ):
        ui.load()
        yield ui


def finished(ui: FrontEnd) -> dict[str, Any]:
    """The run in the host's history, once it is there."""
    for _ in range(RUN_SECONDS * 2):
        runs = list(ui.page.request.get(f"{ui.url}/history").json().values())
        if runs:
            return runs[-1]
        ui.page.wait_for_timeout(500)
    raise AssertionError("the run did not end")


@pytest.mark.parametrize(
    "file",
    [
        # An image of 2048x2048 takes minutes on two cores.
        pytest.param(file, id=file.stem, marks=[pytest.mark.slow] if file.stem == "tiled_upscale" else [])
        for file in FILES
    ],
)
def test_no_node_overlaps_another(real: FrontEnd, file: Path) -> None:
    ui, saved = real, json.loads(file.read_text(encoding="utf-8"))
    ui.js("(data) => app.loadGraphData(data, true, false, app.extensionManager.workflow.activeWorkflow)", saved)
    ui.js(SEE_ALL)
    ui.page.wait_for_timeout(1500)
    ui.js(WATCH, ui.vue)
    if file.stem != NEEDS_A_MODEL:
        assert ui.page.request.post(f"{ui.url}/history", data={"clear": True}).ok
        ui.js("() => { void app.queuePrompt(0) }")
        done = finished(ui)
        assert done["status"]["status_str"] == "success", done["status"]["messages"][-1]
        ui.page.wait_for_timeout(2500)
    assert ui.js("window.seamlessBoxes") == len(saved["nodes"]), "every node is drawn"
    assert ui.js("window.seamlessOverlaps") == {}
