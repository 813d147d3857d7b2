"""Inspect and the posterior preview render in the node, and can be copied."""

from __future__ import annotations

from pathlib import Path

import pytest
from host.browser import FrontEnd
from PIL import Image
from playwright.sync_api import expect

pytestmark = pytest.mark.thorough

TEXT = "family: SDXL\nlatents: 4 channels at 1/8 of the size\n<b>not markup</b>"


def test_the_report_is_text_and_is_copied(ui: FrontEnd) -> None:
    ui.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    ui.graph([("SeamlessVAEInspect", 200, 120)])
    panel = ui.panel("Report")
    expect(panel).to_contain_text("Run the workflow")
    expect(panel.get_by_role("button", name="Copy")).not_to_be_visible()
    ui.executed(1, text=[TEXT])
    expect(panel.locator("pre")).to_have_text(TEXT)
    assert panel.locator("b").count() == 0
    panel.get_by_role("button", name="Copy").click()
    ui.page.wait_for_function("async (text) => (await navigator.clipboard.readText()) === text", arg=TEXT)


def test_the_posterior_is_shown_and_copied(ui: FrontEnd, data: Path) -> None:
    ui.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    for index in range(2):
        Image.new("RGB", (128, 64), (50 * index, 100, 0)).save(data / "temp" / f"posterior{index}.png")
    ui.graph([("SeamlessPosteriorPreview", 200, 120)])
    panel = ui.panel("Posterior")
    expect(panel).to_contain_text("Run the workflow")
    images = [{"filename": f"posterior{index}.png", "subfolder": "", "type": "temp"} for index in range(2)]
    ui.executed(1, images=images)
    image = panel.locator("img")
    expect(image).to_be_visible()
    ui.page.wait_for_function("document.querySelector('.seamless-image').naturalWidth === 128")
    expect(panel).to_contain_text("1 / 2")
    panel.get_by_role("button", name="Previous image").click()
    expect(image).to_have_attribute("src", "/api/view?filename=posterior1.png&subfolder=&type=temp")
    panel.get_by_role("button", name="Copy image").click()
    ui.page.wait_for_function("async () => (await navigator.clipboard.read())[0]?.types.includes('image/png')")
    assert not ui.js("app.canvas.graph.getNodeById(1).imgs?.length ?? 0")


def test_outputs_in_a_subgraph_come_back_to_their_own_node(ui: FrontEnd) -> None:
    ui.graph([("SeamlessVAEInspect", 200, 120), ("SeamlessVAELoad", 600, 120)])
    outside, edge, inside = ui.js(
        """() => {
            const graph = app.canvas.graph
            const { subgraph, node } = graph.convertToSubgraph(new Set([graph.getNodeById(1)]))
            const other = LiteGraph.createNode('SeamlessVAEInspect')
            other.id = subgraph.nodes[0].id // the old front end allows it
            other.pos = [200, 400]
            graph.add(other)
            return [other.id, node.id, subgraph.nodes[0].id]
        }"""
    )
    ui.settle()  # both nodes are on the page
    ui.executed(outside, text=["of the outer"])
    ui.executed(f"{edge}:{inside}", text=["of the inner"])
    ui.settle()
    ui.js("async () => app.loadGraphData(app.graph.serialize(), false, false)")
    expect(ui.panel("Report").filter(visible=True).locator("pre")).to_have_text("of the outer")
    ui.js("app.canvas.setGraph([...app.graph.subgraphs.values()][0])")
    expect(ui.panel("Report").filter(visible=True).locator("pre")).to_have_text("of the inner")
    ui.js("app.canvas.setGraph(app.canvas.graph.rootGraph ?? app.graph)")


def test_outputs_come_back_with_their_graph(ui: FrontEnd) -> None:
    ui.graph([("SeamlessVAEInspect", 200, 120)])
    ui.executed(1, text=[TEXT])
    expect(ui.panel("Report").locator("pre")).to_have_text(TEXT)
    ui.js("async () => app.loadGraphData(app.graph.serialize(), false, false)")
    expect(ui.panel("Report").locator("pre")).to_have_text(TEXT)
