"""Where sizes, names and values come from: through links to widgets, and across the edges of subgraphs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from host.browser import FrontEnd
from playwright.sync_api import expect

pytestmark = pytest.mark.thorough

PANEL = "Run plan"
NODES = [
    ("SeamlessVAELoad", 80, 120, {"vae_name": "sdxl.safetensors"}),
    ("EmptyLatentImage", 80, 450, {"width": 2048, "height": 1024}),
    ("SeamlessVAEDecodeTiled", 420, 120, {"tile_size": 256}),
]
LINKS = [(1, 0, 3, "vae"), (2, 0, 3, "samples")]
# A node of another pack that gives out a number, under a widget of this name.
NUMBER = """([type, name]) => {
    if (LiteGraph.registered_node_types[type]) return
    class NumberNode extends LiteGraph.LGraphNode {
        constructor() {
            super(type)
            this.addWidget('number', name, 640, () => {})
            this.addOutput('INT', 'INT')
        }
    }
    LiteGraph.registerNodeType(type, NumberNode)
}"""
INTO_SUBGRAPH = """(ids) => {
    const graph = app.canvas.graph
    const { node } = graph.convertToSubgraph(new Set(ids.map((id) => graph.getNodeById(id))))
    return String(node.id)
}"""
ENTER = "app.canvas.setGraph([...app.graph.subgraphs.values()].at(-1))"
LEAVE = "app.canvas.setGraph(app.canvas.graph.rootGraph ?? app.graph)"


@pytest.fixture
def ui(ui: FrontEnd) -> Iterator[FrontEnd]:
    """A page that shows the outermost graph again when the test ends."""
    yield ui
    ui.js(LEAVE)


def asked(ui: FrontEnd) -> dict[str, Any]:
    return json.loads(ui.requests("/seamless_vae/plan")[-1][2])


@pytest.mark.parametrize("widget, size", [("value", "640 x 1024 from"), ("sum", "Assuming 1024 x 1024")])
def test_a_linked_width_is_that_of_the_other_node_or_not_known(ui: FrontEnd, widget: str, size: str) -> None:
    ui.js(NUMBER, [f"test/{widget}", widget])
    ui.graph([*NODES, (f"test/{widget}", 80, 700)], LINKS)
    expect(ui.panel(PANEL)).to_contain_text("2048 x 1024 from")
    ui.js(
        """() => {
            const latent = app.canvas.graph.getNodeById(2)
            app.canvas.graph.getNodeById(4).connect(0, latent, latent.inputs.findIndex((each) => each.name === 'width'))
        }"""
    )
    expect(ui.panel(PANEL)).to_contain_text(size)


@pytest.mark.parametrize("widget, value", [("value", 640), ("sum", None)])
def test_a_linked_tile_size_is_that_of_the_other_node_or_shown_as_assumed(
    ui: FrontEnd, widget: str, value: int | None
) -> None:
    ui.js(NUMBER, [f"test/{widget}", widget])
    ui.graph([*NODES, (f"test/{widget}", 80, 700)], [*LINKS, (4, 0, 3, "tile_size")])
    note = ui.panel(PANEL).get_by_text("Assuming the default tile_size")
    if value:
        expect(ui.panel(PANEL).locator(".seamless-tile")).to_have_count(2)
    expect(note).to_have_count(0 if value else 1)
    assert asked(ui).get("tile_size") == value


def test_a_node_in_a_subgraph_knows_what_is_outside(ui: FrontEnd) -> None:
    ui.graph(NODES, LINKS)
    ui.js(INTO_SUBGRAPH, [3])
    ui.js(ENTER)
    panel = ui.panel(PANEL).filter(visible=True)
    expect(panel).to_contain_text("2048 x 1024 from")
    assert asked(ui)["name"] == "sdxl.safetensors"
    ui.js(LEAVE)
    ui.set(2, "width", 640)
    ui.js(ENTER)
    expect(panel).to_contain_text("640 x 1024 from")


def test_a_node_knows_what_is_in_a_subgraph_before_it(ui: FrontEnd) -> None:
    ui.graph(NODES, LINKS)
    subgraph = ui.js(INTO_SUBGRAPH, [1, 2])
    panel = ui.panel(PANEL).filter(visible=True)
    expect(panel).to_contain_text("2048 x 1024 from")
    assert asked(ui)["name"] == "sdxl.safetensors"
    # A widget of the node inside is shown at the outer one, and counts from there.
    ui.js(
        """(id) => {
            const node = app.canvas.graph.nodes.find((each) => String(each.id) === id)
            const inner = node.subgraph.nodes.find((each) => each.type === 'EmptyLatentImage')
            const index = inner.inputs.findIndex((each) => each.name === 'width')
            node.subgraph.addInput('width', 'INT').connect(inner.inputs[index], inner)
            node.widgets.find((each) => each.name === 'width').value = 640
        }""",
        subgraph,
    )
    expect(panel).to_contain_text("640 x 1024 from")
    prompt = ui.js("async () => (await app.graphToPrompt()).output")
    latent = next(each for each in prompt.values() if each["class_type"] == "EmptyLatentImage")
    assert latent["inputs"]["width"] == 640


def test_a_subgraph_that_is_used_twice_has_no_single_answer(ui: FrontEnd) -> None:
    ui.graph(NODES, LINKS)
    subgraph = ui.js(INTO_SUBGRAPH, [3])
    ui.js(
        """(id) => {
            const first = app.canvas.graph.nodes.find((each) => String(each.id) === id)
            const second = LiteGraph.createNode(first.type)
            second.pos = [800, 120]
            app.canvas.graph.add(second)
        }""",
        subgraph,
    )
    ui.js(ENTER)
    expect(ui.panel(PANEL).filter(visible=True)).to_contain_text("Assuming 1024 x 1024")
