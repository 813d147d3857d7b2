"""Graphs of nodes, built, run and photographed in the front end of a real ComfyUI.

COMFYUI_PATH names its checkout, COMFYUI_PYTHON the interpreter that has its requirements, if it is another one.
Chromium is needed, a Chinese font (Debian: fonts-noto-cjk), and what `pip install -e ".[test]"` brings.
"""

# ruff: noqa: E501 - prose and JavaScript

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests")]

from e2e import page  # noqa: E402
from e2e.real_host import Comfy, checkout  # noqa: E402
from given.web_models import write_checkpoint  # noqa: E402
from host.browser import FrontEnd  # noqa: E402

PHOTOGRAPH = ROOT / "vae_core" / "demo" / "chelsea.png"
VIEW = (1600, 1000)
RUN_SECONDS = 1800
BUILD = """async (columns) => {
    const workflow = app.extensionManager.workflow.activeWorkflow
    const empty = {last_node_id: 0, last_link_id: 0, nodes: [], links: [], groups: [], config: {}, extra: {}, version: 0.4}
    await app.loadGraphData(empty, true, false, workflow)
    const nodes = {}
    let number = 0
    for (const column of columns) for (const each of column) {
        const node = LiteGraph.createNode(each.type)
        if (!node) throw new Error(`there is no node ${each.type}`)
        node.id = ++number
        app.canvas.graph.add(node)
        if (each.title) node.title = each.title
        if (each.mode) node.mode = each.mode
        Object.assign(node.properties, each.properties)
        for (const [name, value] of Object.entries(each.values)) {
            const widget = node.widgets.find((one) => one.name === name) ?? (each.type.endsWith('Note') && node.widgets[0])
            if (!widget) throw new Error(`${each.type} has no ${name}`)
            widget.value = value
            widget.callback?.(value, app.canvas, node)
        }
        nodes[each.key] = node
    }
    for (const column of columns) for (const each of column) for (const [input, [from, output]] of Object.entries(each.links)) {
        const slot = nodes[each.key].inputs.findIndex((one) => one.name === input)
        if (slot < 0 || !nodes[from].connect(output, nodes[each.key], slot)) throw new Error(`no link to ${each.key}.${input}`)
    }
    app.nodeOutputs = {}
    app.canvas.links_render_mode = LiteGraph.SPLINE_LINK
}"""
LAYOUT = """([columns, gap, roomy]) => {
    const nodes = app.canvas.graph._nodes
    let x = 0, index = 0
    for (const column of columns) {
        let y = 0, width = 0
        for (const each of column) {
            const node = nodes[index++], least = node.computeSize()
            // Some nodes have grown over an image of their progress.
            const [w, h] = each.size ?? [Math.max(least[0], 300), Math.max(least[1], node.imgs ? node.size[1] : 0)]
            node.setSize([w, Math.max(h, each.size ? 0 : least[1])])
            node.pos = [x, y]
            y += node.size[1] + LiteGraph.NODE_TITLE_HEIGHT + gap + (roomy ? each.room : 0)
            width = Math.max(width, node.size[0])
        }
        x += width + gap
    }
}"""
FOCUS = """([columns, gap]) => {
    app.canvas.links_render_mode = LiteGraph.HIDDEN_LINK
    for (const node of app.canvas.graph._nodes) node.pos = [-20000, -20000]
    let x = 0
    for (const column of columns) {
        let y = 0, width = 0
        for (const index of column) {
            const node = app.canvas.graph._nodes[index]
            node.pos = [x, y]
            y += node.size[1] + LiteGraph.NODE_TITLE_HEIGHT + gap
            width = Math.max(width, node.size[0])
        }
        x += width + gap
    }
}"""
FRAME = """([view, margin]) => {
    const nodes = app.canvas.graph._nodes.filter((node) => node.pos[0] > -10000), title = LiteGraph.NODE_TITLE_HEIGHT
    const left = Math.min(...nodes.map((n) => n.pos[0])) - margin
    const top = Math.min(...nodes.map((n) => n.pos[1] - title)) - margin - 18  // badges
    const width = Math.max(...nodes.map((n) => n.pos[0] + n.size[0])) + margin - left
    const height = Math.max(...nodes.map((n) => n.pos[1] + (n.flags.collapsed ? 0 : n.size[1]))) + margin - top
    const scale = Math.min(1, (view[0] - 140) / width, (view[1] - 230) / height) // above what lies in the corner
    app.canvas.ds.scale = scale
    app.canvas.ds.offset = [-left + 70 / scale, -top + 70 / scale]
    app.canvas.deselectAll()
    app.canvas.setDirty(true, true)
    const box = app.canvas.canvas.getBoundingClientRect()
    return {x: box.left + 70, y: box.top + 70, width: width * scale, height: height * scale}
}"""
# By how much nodes grow in a run, over images of its progress and reports: in pixels, in whatever renderer.
PROGRESS, REPORT = 340, 120
ROOM = {
    **dict.fromkeys(("SeamlessVAEEncode", "SeamlessVAEDecode", "SeamlessVAEEncodeTiled"), PROGRESS),
    **dict.fromkeys(("SeamlessVAEDecodeTiled", "SeamlessVAESwap", "SeamlessVAEInpaintEncode"), PROGRESS),
    **dict.fromkeys(("SeamlessVAEInpaintComposite", "SeamlessVAERoundTrip", "VAEDecode", "KSampler"), PROGRESS),
    **dict.fromkeys(("SeamlessVAEInspect", "SeamlessLatentLoad", "SeamlessLatentSave", "SeamlessVAELoad"), REPORT),
    **dict.fromkeys(("SeamlessPosteriorPreview", "PreviewImage", "SaveImage", "LoadImage"), REPORT),
}
# What is over the canvas and is not part of the graph.
HIDE = """
    .side-tool-bar-container, .sidebar-content-container, .comfyui-menu, .p-toast, .p-button-group, .p-buttongroup, .actionbar,
    .comfy-menu-button-wrapper, .workflow-tabs-container, .splitter-overlay-root, .graph-canvas-menu,
    .minimap-main-container, .p-splitter, .floating-menu, [data-testid="canvas-menu"] { visibility: hidden !important }
"""


# Two signs of a language look the same where its font is missing: as an empty box.
GLYPHS = {"en": "ab", "zh": "编解"}
WITHOUT_GLYPHS = """([first, second]) => {
    const drawn = (sign) => {
        const canvas = Object.assign(document.createElement('canvas'), {width: 40, height: 40})
        const context = canvas.getContext('2d')
        context.font = '30px sans-serif'
        context.fillText(sign, 4, 32)
        return canvas.toDataURL()
    }
    return drawn(first) === drawn(second)
}"""


@dataclass
class Node:
    """A node of a graph.

    Attributes:
        links: input -> (key of another node, index of its output).
        values: widget -> value.
        mode: LiteGraph's: 0 at work, 2 muted, 4 bypassed.
    """

    key: str
    type: str
    links: dict[str, tuple[str, int]] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    title: str = ""
    size: tuple[int, int] | None = None
    mode: int = 0
    properties: dict[str, Any] = field(default_factory=dict)


Columns = Sequence[Sequence[Node]]


class Stage:
    """A page with the front end, and the host behind it."""

    def __init__(self, comfy: Comfy, front_end: FrontEnd) -> None:
        self.comfy, self.front_end = comfy, front_end
        self._laid_out: list[Any] = []

    def add_checkpoint(self, name: str) -> None:
        """The header of a checkpoint, for the list and the plans. Call it before the front end loads."""
        write_checkpoint(self.comfy.folder / "models" / "checkpoints" / name)

    def build(self, columns: Columns, gap: int = 44, roomy: bool = False) -> None:
        """A new graph of columns of nodes.

        Args:
            roomy: leave below each node the room that it takes in a run.
        """
        described = [[{**vars(node), "room": ROOM.get(node.type, 0)} for node in column] for column in columns]
        self.front_end.js(BUILD, described)
        self._laid_out = [described, gap]
        self.arrange(roomy)
        self.arrange(roomy)

    def arrange(self, roomy: bool = False) -> None:
        """Put the nodes side by side: what is shown in them grows once it is there."""
        self.front_end.page.wait_for_timeout(1000)
        self.front_end.js(LAYOUT, [*self._laid_out, roomy])

    def focus(self, *columns: str) -> None:
        """Put these nodes side by side, and the others and all links out of sight.

        Args:
            columns: keys of nodes; several in one column have spaces between them.
        """
        order = [node["key"] for column in self._laid_out[0] for node in column]
        chosen = [[order.index(key) for key in column.split()] for column in columns]
        self.front_end.js(FOCUS, [chosen, self._laid_out[1] // 2])

    def run(self, meanwhile: Callable[[], object] | None = None) -> None:
        """Run the graph and wait until its results are shown.

        Args:
            meanwhile: called about twice a second until then.

        Raises:
            RuntimeError: it failed.
        """
        before = set(self.comfy.get("/history"))
        self.front_end.js("() => app.queuePrompt(0)")
        for _ in range(RUN_SECONDS * 2):
            if meanwhile is not None:
                meanwhile()
            self.front_end.page.wait_for_timeout(500)
            done = {key: each for key, each in self.comfy.get("/history").items() if key not in before}
            if done:
                break
        else:
            raise RuntimeError("the graph did not run: look at the page's errors")
        status = next(iter(done.values()))["status"]
        if status["status_str"] != "success":
            raise RuntimeError(f"the run failed: {status['messages'][-1]}")
        self.front_end.page.wait_for_timeout(2500)

    def saved(self) -> dict[str, Any]:
        """The graph as the front end saves it."""
        return json.loads(self.front_end.js("() => JSON.stringify(app.graph.serialize())"))

    def open(self, workflow: dict[str, Any]) -> None:
        """Open a saved graph as from the template browser."""
        self.front_end.js("(data) => app.loadGraphData(data, true, true)", workflow)
        self.front_end.page.wait_for_timeout(1500)

    def prompt(self) -> dict[str, Any]:
        """The graph in the API's form."""
        return self.front_end.js("async () => (await app.graphToPrompt()).output")

    def shot(self, margin: int = 14) -> Image.Image:
        """The whole graph."""
        clip = self.front_end.js(FRAME, [list(VIEW), margin])
        self.front_end.page.wait_for_timeout(1200)
        return Image.open(BytesIO(self.front_end.page.screenshot(clip=clip))).convert("RGB")


@contextlib.contextmanager
def opened(kind: str = "old-canvas", language: str = "en") -> Iterator[Stage]:
    """A stage with a front end (see `e2e.page`) in a language of the pack."""
    if not os.environ.get("COMFYUI_PATH"):
        raise SystemExit("COMFYUI_PATH is not set. Give the path of a checkout of ComfyUI.")
    with tempfile.TemporaryDirectory() as folder:
        images, view = [checkout() / "input" / "example.png", PHOTOGRAPH], {"width": VIEW[0], "height": VIEW[1]}
        with page.opened(kind, Path(folder) / "comfy", images, {"Comfy.Locale": language}, viewport=view) as (
            ui,
            comfy,
        ):
            ui.page.add_style_tag(content=HIDE)
            if ui.js(WITHOUT_GLYPHS, GLYPHS[language]):
                raise SystemExit(f"There is no font for the language {language!r}. Install one.")
            yield Stage(comfy, ui)
