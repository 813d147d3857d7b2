"""The example workflows stay tidy: no node overlaps another before, during or after a run, in a real host, in both
front ends and with both ways of drawing nodes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="playwright is not installed; it is part of the extra `test`")

from e2e.page import finished, opened, run
from e2e.real_host import ROOT, checkout
from host.browser import FrontEnd

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
# Images of 2048x2048 take minutes, and previews of them are as large as of these.
SMALLER = """() => {
    for (const widget of app.canvas.graph._nodes.flatMap((node) => node.type === 'ImageScale' ? node.widgets : []))
        if (widget.value > 1024) widget.value = 512
}"""


@pytest.fixture(scope="module", params=["old-canvas", "new-canvas", "new-vue"])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontEnd]:
    folder, example = tmp_path_factory.mktemp("page") / "comfy", checkout() / "input" / "example.png"
    with opened(request.param, folder, [example], viewport={"width": 1600, "height": 1000}) as (ui, _):
        yield ui


def has_its_own_saver() -> bool:
    """Whether the host saves images as floats by a node of its own."""
    return "SaveImageAdvanced" in (checkout() / "comfy_extras" / "nodes_images.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_node_overlaps_another(real: FrontEnd, file: Path, request: pytest.FixtureRequest) -> None:
    ui, saved = real, json.loads(file.read_text(encoding="utf-8"))
    if file.stem == "float_exr" and "old" in str(request.node.name) and has_its_own_saver():
        pytest.skip("this front end is older than the host's node, whose widget brings others")
    ui.load()  # nodes of a new graph show what those of the last one with the same ids have shown
    ui.js("(data) => app.loadGraphData(data, true, false, app.extensionManager.workflow.activeWorkflow)", saved)
    ui.js(SMALLER)
    ui.js(SEE_ALL)
    ui.page.wait_for_timeout(1500)
    ui.js(WATCH, ui.vue)
    if file.stem != NEEDS_A_MODEL:
        run(ui)
        done = finished(ui, RUN_SECONDS)
        assert done["status"]["status_str"] == "success", done["status"]["messages"][-1]
        ui.page.wait_for_timeout(2500)
    assert ui.js("window.seamlessBoxes") == len(saved["nodes"]), "every node is drawn"
    assert ui.js("window.seamlessOverlaps") == {}
