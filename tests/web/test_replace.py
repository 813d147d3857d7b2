"""Core VAE nodes become Seamless ones from the menus, and back, in one step that can be undone."""

from __future__ import annotations

from typing import Any

import pytest
from host.browser import FrontEnd
from playwright.sync_api import expect

pytestmark = pytest.mark.thorough

TO_SEAMLESS, TO_CORE = "Replace VAE nodes with Seamless VAE", "Replace Seamless VAE with core VAE nodes"
NODES = [
    ("VAELoader", 80, 120, {"vae_name": "sdxl.safetensors"}),
    ("EmptyLatentImage", 80, 300),
    ("VAEDecodeTiled", 420, 120, {"tile_size": 768, "overlap": 96}),
    ("VAEEncode", 700, 120),
    ("VAEDecode", 950, 250),
    ("PreviewImage", 950, 450),
    ("SaveImage", 700, 350),
]
LINKS = [
    (1, 0, 3, "vae"),
    (2, 0, 3, "samples"),
    (3, 0, 4, "pixels"),
    (1, 0, 4, "vae"),
    (4, 0, 5, "samples"),
    (1, 0, 5, "vae"),
    (5, 0, 6, "images"),
    (3, 0, 7, "images"),
]
GRAPH = """() => {
    const graph = app.canvas.graph
    const name = (node) => node.type.replace('SeamlessVAELoad', 'VAELoader').replace('Seamless', '')
    const links = [...graph.links.values()].map((link) => {
        const [from, to] = [graph.getNodeById(link.origin_id), graph.getNodeById(link.target_id)]
        return `${name(from)}.${link.origin_slot} ${name(to)}.${to.inputs[link.target_slot].name}`
    })
    return {types: graph.nodes.map((node) => node.type).sort(), links: links.sort(),
            places: graph.nodes.map((node) => [name(node), ...node.pos]).sort()}
}"""


STEPS = "() => app.extensionManager.workflow.activeWorkflow.changeTracker.undoQueue.length"
# The front end keeps 50 steps: after as many of earlier tests, their number grows no more.
FORGET_STEPS = "() => { app.extensionManager.workflow.activeWorkflow.changeTracker.undoQueue.length = 0 }"


def graph(ui: FrontEnd) -> dict[str, Any]:
    return ui.js(GRAPH)


def value(ui: FrontEnd, kind: str, widget: str) -> Any:
    return ui.js(
        """([type, name]) => app.canvas.graph.nodes.find((node) => node.type === type)
            .widgets.find((widget) => widget.name === name).value""",
        [kind, widget],
    )


def from_the_canvas_menu(ui: FrontEnd, item: str) -> None:
    ui.page.mouse.click(640, 700, button="right")
    ui.page.locator(".litecontextmenu .litemenu-entry").get_by_text(item, exact=True).click()


def count(ui: FrontEnd, kind: str) -> int:
    return graph(ui)["types"].count(kind)


def test_there_and_back_and_undone(ui: FrontEnd) -> None:
    ui.graph(NODES, LINKS)
    ui.js("app.canvas.graph.getNodeById(5).title = 'My decode'; app.canvas.graph.getNodeById(5).mode = 4")
    ui.js("app.extensionManager.workflow.activeWorkflow.changeTracker.checkState?.()")
    ui.js(FORGET_STEPS)
    before, steps = graph(ui), ui.js(STEPS)
    from_the_canvas_menu(ui, TO_SEAMLESS)
    ui.page.wait_for_function(f"({STEPS})() === {steps + 1}")  # one step to undo
    there = graph(ui)
    assert [kind for kind in there["types"] if kind.startswith("Seamless")] == [
        "SeamlessVAEDecode",
        "SeamlessVAEDecodeTiled",
        "SeamlessVAEEncode",
        "SeamlessVAELoad",
    ]
    assert there["links"] == before["links"] and there["places"] == before["places"]
    assert value(ui, "SeamlessVAELoad", "vae_name") == "sdxl.safetensors"
    assert value(ui, "SeamlessVAEDecodeTiled", "tile_size") == 768
    assert value(ui, "SeamlessVAEDecodeTiled", "overlap") == 96
    decode = "app.canvas.graph.nodes.find((node) => node.type === 'SeamlessVAEDecode')"
    assert ui.js(f"[{decode}.title, {decode}.mode]") == ["My decode", 4]

    # Were the node's size another once its panel has answered, that would be the step that is undone.
    expect(ui.panel("About this VAE file")).to_contain_text("SDXL")
    ui.page.mouse.click(300, 600)  # elsewhere, or it is a double click
    ui.page.wait_for_function("document.activeElement?.tagName === 'CANVAS'")
    ui.page.keyboard.press("ControlOrMeta+z")
    ui.page.wait_for_function("app.canvas.graph.nodes.some((node) => node.type === 'VAEDecode')")
    undone = graph(ui)
    assert undone["types"] == before["types"] and undone["links"] == before["links"]

    from_the_canvas_menu(ui, TO_SEAMLESS)
    from_the_canvas_menu(ui, TO_CORE)
    back = graph(ui)
    assert back["types"] == before["types"] and back["links"] == before["links"]
    assert value(ui, "VAEDecodeTiled", "tile_size") == 768
    assert value(ui, "VAELoader", "vae_name") == "sdxl.safetensors"


# Where on the page a node's title is.
TITLE_OF = """(id) => {
    const { left, top } = app.canvas.canvas.getBoundingClientRect()
    const { pos } = app.canvas.graph.getNodeById(id)
    const { offset, scale } = app.canvas.ds
    return [left + (pos[0] + 40 + offset[0]) * scale, top + (pos[1] - 12 + offset[1]) * scale]
}"""


def test_one_node_from_its_own_menu(ui: FrontEnd) -> None:
    ui.graph(NODES, LINKS)
    if ui.vue:
        ui.page.locator('[data-node-id="4"] .lg-node-header').click(button="right")
        ui.page.get_by_text("Replace with Seamless VAE", exact=True).click()
    else:
        x, y = ui.js(TITLE_OF, 4)
        ui.page.mouse.click(x, y, button="right")
        menu = ui.page.locator(".litecontextmenu .litemenu-entry")
        menu.get_by_text("Replace with Seamless VAE", exact=True).click()
    ui.page.wait_for_function("app.canvas.graph.nodes.some((node) => node.type === 'SeamlessVAEEncode')")
    assert [kind for kind in graph(ui)["types"] if kind.startswith("Seamless")] == ["SeamlessVAEEncode"]


def test_what_cannot_be_replaced_stays_and_is_listed(ui: FrontEnd) -> None:
    ui.graph(
        [
            ("VAELoader", 80, 120, {"vae_name": "pixel_space"}),
            ("SeamlessVAEEncode", 380, 120),
            ("SeamlessVAESamplePosterior", 680, 120),
            ("SeamlessVAEDecodeTiled", 680, 400, {"tile_size": 0, "memory_budget": 2}),
            ("SeamlessVAELoad", 80, 400),
        ],
        [(2, 1, 3, "posterior")],
    )
    ui.js("app.extensionManager.command.execute('SeamlessVAE.ToSeamless')")
    assert count(ui, "VAELoader") == 1
    expect(ui.page.get_by_text("does not offer pixel_space").last).to_be_visible()
    ui.js("app.extensionManager.command.execute('SeamlessVAE.ToCore')")
    assert count(ui, "SeamlessVAEEncode") == 1  # its posterior is in use
    assert count(ui, "SeamlessVAELoad") == 1  # core has no demo VAE
    assert count(ui, "VAEDecodeTiled") == 1 and value(ui, "VAEDecodeTiled", "tile_size") == 512
    expect(ui.page.get_by_text("its output posterior is in use").last).to_be_visible()
    expect(ui.page.get_by_text("memory_budget = 2").last).to_be_visible()


def test_a_saved_vae_has_the_format_that_core_writes(ui: FrontEnd) -> None:
    ui.graph([("VAELoader", 80, 120), ("VAESave", 380, 120, {"filename_prefix": "mine"})], [(1, 0, 2, "vae")])
    ui.js("app.extensionManager.command.execute('SeamlessVAE.ToSeamless')")
    assert [value(ui, "SeamlessVAESave", name) for name in ("filename_prefix", "format")] == ["mine", "single_file"]
    ui.js("app.extensionManager.command.execute('SeamlessVAE.ToCore')")
    assert graph_types(ui) == ["VAELoader", "VAESave"] and value(ui, "VAESave", "filename_prefix") == "mine"


def test_only_chosen_nodes_are_replaced(ui: FrontEnd) -> None:
    ui.graph(NODES, LINKS)
    ui.js("app.canvas.select(app.canvas.graph.getNodeById(5))")
    ui.js("app.extensionManager.command.execute('SeamlessVAE.ToSeamless')")
    assert [kind for kind in graph(ui)["types"] if kind.startswith("Seamless")] == ["SeamlessVAEDecode"]
    assert ui.js("[...app.canvas.selectedItems].map((node) => node.type)") == ["SeamlessVAEDecode"]


def test_reroutes_stay_on_their_links(ui: FrontEnd) -> None:
    ui.graph(NODES, LINKS)
    ui.js(
        """() => {
            const graph = app.canvas.graph
            const link = [...graph.links.values()].find((each) => each.target_id == 6)
            graph.createReroute([900, 320], link)
        }"""
    )
    ui.js("app.extensionManager.command.execute('SeamlessVAE.ToSeamless')")
    assert ui.js("[...app.canvas.graph.links.values()].find((each) => each.target_id == 6).parentId") is not None
    assert ui.js("app.canvas.graph.reroutes.size") == 1


def test_nodes_in_a_subgraph_keep_their_links_to_its_edges(ui: FrontEnd) -> None:
    ui.graph(NODES, LINKS)
    ui.js(
        """() => {
            const graph = app.canvas.graph
            const chosen = new Set([graph.getNodeById(5)])
            const {subgraph, node} = graph.convertToSubgraph(chosen)
            app.canvas.setGraph(subgraph)
        }"""
    )
    edges = """() => [...app.canvas.graph.links.values()].map((link) => [link.origin_slot, link.target_slot]).sort()"""
    before = ui.js(edges)
    assert len(before) == 3
    ui.js("app.extensionManager.command.execute('SeamlessVAE.ToSeamless')")
    assert graph_types(ui) == ["SeamlessVAEDecode"]
    assert ui.js(edges) == before
    ui.js("app.canvas.setGraph(app.canvas.graph.rootGraph ?? app.graph)")


def graph_types(ui: FrontEnd) -> list[str]:
    return ui.js("app.canvas.graph.nodes.map((node) => node.type)")
