"""Whatever fails, the graph stays usable, and nothing is kept where it would be lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from host.browser import LOST_IMAGE, FrontEnd
from playwright.sync_api import Route, expect

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).resolve().parents[2]
NODES = [("SeamlessVAELoad", 80, 120), ("SeamlessVAEDecodeTiled", 400, 120), ("SeamlessVAEEncodeTiled", 720, 120)]
TOAST = "the server did not answer. If"


def test_a_failed_route_is_said_once(ui: FrontEnd) -> None:
    ui.rule("/seamless_vae/", status=500)
    ui.graph(NODES, [(1, 0, 2, "vae")])
    expect(ui.page.get_by_text("Not available: the server did not answer.")).to_have_count(3)
    ui.set(2, "tile_size", 256)
    ui.set(1, "vae_name", "sdxl.safetensors")
    ui.page.wait_for_timeout(800)
    assert ui.says(TOAST) == 1
    ui.post("/standin/rule", {})
    ui.set(2, "tile_size", 512)
    ui.set(1, "vae_name", "demo")
    expect(ui.panel("About this VAE file")).to_contain_text("16 channels")
    expect(ui.panel("Run plan").first).to_contain_text("Strips")
    # The browser itself writes failed requests to the console; nothing else may be there.
    ui.forgive_failed_requests()


def test_a_missing_back_end_leaves_the_graph_usable(ui: FrontEnd) -> None:
    ui.graph(NODES)
    expect(ui.panel("About this VAE file")).to_contain_text("channels")
    ui.page.route("**/seamless_vae/**", lambda route: route.abort())
    try:
        ui.set(1, "vae_name", "sdxl.safetensors")
        expect(ui.panel("About this VAE file")).to_contain_text("Not available")
        ui.graph([("VAEDecode", 100, 120)])
        assert ui.js("app.canvas.graph.nodes.length") == 1
    finally:
        ui.page.unroute("**/seamless_vae/**")
    ui.forgive_failed_requests()


def test_nodes_and_widgets_that_were_renamed_leave_the_graph_usable(ui: FrontEnd) -> None:
    """As with another release of the pack: a node is gone, and widgets have other names."""
    renames = {"vae_name": "file", "mode": "method", "tile_size": "size", "samples": "latent"}

    def renamed(route: Route) -> None:
        answer = route.fetch()
        nodes = answer.json()
        del nodes["SeamlessVAEInspect"]
        for name in ("SeamlessVAELoad", "SeamlessVAEDecodeTiled"):
            text = json.dumps(nodes[name])
            for before, after in renames.items():
                text = text.replace(f'"{before}"', f'"{after}"')
            nodes[name] = json.loads(text)
        route.fulfill(response=answer, json=nodes)

    ui.graph([*NODES, ("SeamlessVAEInspect", 1000, 120)], [(1, 0, 2, "vae")])
    saved = ui.js("app.canvas.graph.serialize()")
    ui.page.route("**/object_info", renamed)
    try:
        ui.load()
        ui.js("async (saved) => app.loadGraphData(saved, true, false)", saved)
        expect(ui.panel("About this VAE file")).to_contain_text("Not known until the workflow runs.")
        expect(ui.panel("Run plan").first).to_contain_text("Strips")
        ui.page.keyboard.press("Escape")  # the host's own list of nodes that are missing
        ui.js("app.canvas.graph.remove(app.canvas.graph.getNodeById(2))")
        expect(ui.panel("Run plan")).to_have_count(1)
    finally:
        ui.page.unroute("**/object_info")
        # The host's own warning of the node that is missing is meant.
        ui.complaints[:] = [each for each in ui.complaints if "seamless-vae/js" in each]
        ui.check()
        ui.load()


def test_a_node_of_another_pack_that_fails_stops_nothing_else(ui: FrontEnd) -> None:
    ui.graph([("LoadImage", 80, 300), ("SeamlessVAEEncodeTiled", 420, 120)], [(1, 0, 2, "pixels")])
    expect(ui.panel("Run plan")).to_contain_text("96 x 64")
    ui.js("() => { app.canvas.graph.getNodeById(2).getInputNode = () => { throw new Error('of another pack') } }")
    expect(ui.page.get_by_text("could not follow the links before a node").last).to_be_visible()
    ui.js(
        """() => {
            const node = LiteGraph.createNode('SeamlessVAELoad')
            node.pos = [800, 120]
            app.canvas.graph.add(node)
        }"""
    )
    expect(ui.panel("About this VAE file")).to_contain_text("16 channels")
    assert ui.says("could not follow the links before a node") == 1


def test_panels_are_not_saved(ui: FrontEnd) -> None:
    ui.graph(NODES, [(1, 0, 2, "vae")])
    saved = ui.js("app.canvas.graph.serialize().nodes.map((node) => node.widgets_values)")
    assert saved[:2] == [["demo", "auto", "auto", "auto"], [True, "exact", 0, 128, 0, "none"]]
    prompt = ui.js("async () => (await app.graphToPrompt()).output")
    assert set(prompt["2"]["inputs"]) >= {"clamp", "mode", "tile_size", "overlap", "memory_budget", "circular", "vae"}
    assert not [name for name in prompt["2"]["inputs"] if name.startswith("seamless_")]


def test_a_graph_is_opened_again_with_its_values(ui: FrontEnd) -> None:
    ui.graph([(*NODES[1], {"tile_size": 320, "mode": "blended"}), ("SeamlessVAERoundTrip", 720, 120)])
    ui.js("app.canvas.graph.getNodeById(1).title = 'Renamed'")
    expect(ui.panel("Run plan")).to_contain_text("Tiles")
    ui.js("async () => app.loadGraphData(app.canvas.graph.serialize(), true, false)")
    values = "app.canvas.graph.getNodeById(1).widgets.filter((w) => w.serialize !== false).map((w) => w.value)"
    assert ui.js(values) == [True, "blended", 320, 128, 0, "none"]
    expect(ui.panel("Run plan")).to_contain_text("Tiles")
    assert ui.js("app.canvas.graph.getNodeById(1).title") == "Renamed"


def test_the_size_of_a_node_does_not_grow_with_each_opening(ui: FrontEnd) -> None:
    ui.graph([("SeamlessVAELoad", 80, 150), ("SeamlessVAEDecodeTiled", 400, 150), ("SeamlessVAERoundTrip", 720, 150)])
    expect(ui.panel("Run plan")).to_contain_text("Strips")
    ui.settle()
    sizes = "app.canvas.graph.nodes.map((node) => [...node.size].map(Math.round))"
    ui.js("async () => app.loadGraphData(app.canvas.graph.serialize(), true, false)")
    ui.settle()
    before = ui.js(sizes)
    for _ in range(2):
        ui.js("async () => app.loadGraphData(app.canvas.graph.serialize(), true, false)")
        ui.settle()
    assert ui.js(sizes) == before


def test_what_a_panel_adds_to_a_node_is_neither_saved_nor_a_step_to_undo(ui: FrontEnd) -> None:
    """The host takes any change of a node's size for a step; what an answer changes again after each undoing would
    stand before all other steps for ever."""
    saved = "app.canvas.graph.serialize().nodes.map((node) => node.size.map(Math.round))"
    live = "app.canvas.graph.nodes.map((node) => [...node.size].map(Math.round))"
    ui.graph([("SeamlessVAEDecodeTiled", 80, 150)])
    reopen = "async () => app.loadGraphData(app.canvas.graph.serialize(), true, false)"
    ui.js("app.canvas.graph.getNodeById(1).setSize([250, app.canvas.graph.getNodeById(1).size[1]])")
    ui.js(reopen)
    before = ui.js(saved)
    expect(ui.panel("Run plan")).to_contain_text("Strips")
    if not ui.vue:  # which lays out by itself
        ui.page.wait_for_function(f"(height) => {live}[0][1] > height", arg=before[0][1])
    assert ui.js(saved) == before
    status = {"done": 1, "total": 2, "pass": 1, "passes": 2, "memory": None, "seconds_left": None}
    ui.send("seamless_vae.status", node="1", **status)
    expect(ui.panel("Run progress")).to_be_visible()
    assert ui.js(saved) == before
    ui.send("execution_success", prompt_id="p")
    expect(ui.panel("Run progress")).not_to_be_visible()
    assert ui.js(saved) == before
    grown = ui.js(live)
    ui.js(reopen)
    expect(ui.panel("Run plan")).to_contain_text("Strips")
    ui.page.wait_for_function(f"(sizes) => JSON.stringify({live}) === JSON.stringify(sizes)", arg=grown)
    assert ui.js(saved) == before


def test_a_new_node_has_its_size_at_once(ui: FrontEnd) -> None:
    names = ("SeamlessVAELoad", "SeamlessVAEInspect", "SeamlessVAERoundTrip", "SeamlessPosteriorPreview")
    ui.graph([(name, 60 + 300 * index, 120) for index, name in enumerate(names)])
    sizes = "app.canvas.graph.serialize().nodes.map((node) => node.size)"
    before = ui.js(sizes)
    expect(ui.panel("About this VAE file")).to_contain_text("16 channels")
    ui.settle()
    assert ui.js(sizes) == before


def test_copied_and_removed_nodes_have_panels_of_their_own(ui: FrontEnd) -> None:
    ui.graph([("SeamlessVAELoad", 80, 150)])
    expect(ui.panel("About this VAE file")).to_contain_text("16 channels")
    ui.js(
        """() => {
            const node = app.canvas.graph.getNodeById(1)
            const copy = node.clone()
            copy.pos = [480, 150]
            app.canvas.graph.add(copy)
            copy.widgets[0].value = 'sdxl.safetensors'
        }"""
    )
    panels = ui.panel("About this VAE file")
    expect(panels.nth(1)).to_contain_text("SDXL")
    expect(panels.first).to_contain_text("16 channels")
    ui.js("app.canvas.graph.remove(app.canvas.graph.getNodeById(1))")
    expect(panels).to_have_count(1)
    before = len(ui.requests("/seamless_vae/info"))
    ui.page.wait_for_timeout(500)
    assert len(ui.requests("/seamless_vae/info")) == before


def test_callbacks_of_others_still_run(ui: FrontEnd) -> None:
    ui.js(
        """() => {
            window.heard = []
            app.registerExtension({name: 'Test.Others.' + Math.random(), nodeCreated(node) {
                if (node.comfyClass !== 'SeamlessVAEInspect') return
                const before = node.onExecuted
                node.onExecuted = function (output) { window.heard.push('after'); return before?.call(this, output) }
            }})
            const type = LiteGraph.registered_node_types.SeamlessVAEInspect
            const before = type.prototype.onExecuted
            type.prototype.onExecuted = function (output) {
                window.heard.push('before')
                return before?.call(this, output)
            }
        }"""
    )
    ui.graph([("SeamlessVAEInspect", 200, 120)])
    ui.executed(1, text=["all of it"])
    expect(ui.panel("Report").locator("pre")).to_have_text("all of it")
    assert ui.js("window.heard") == ["after", "before"]


def test_every_module_is_harmless_alone(ui: FrontEnd) -> None:
    modules = [
        file.relative_to(ROOT / "web").as_posix()
        for file in (ROOT / "web" / "js").rglob("*.js")
        if file.name != "main.js"
    ]
    before = ui.js("app.extensions.length")
    for module in modules:
        ui.js("(path) => import(path).then(() => null)", f"/extensions/seamless-vae/{module}?again")
    assert ui.js("app.extensions.length") == before


@pytest.mark.parametrize(
    "output",
    [
        {},
        {"images": []},
        {"images": [{"filename": LOST_IMAGE, "subfolder": "", "type": "temp"}] * 3},
        {"images": [{"filename": "photo.png", "subfolder": "", "type": "input"}] * 2},
        {"text": []},
    ],
    ids=["nothing", "no images", "lost files", "two images", "no text"],
)
def test_odd_outputs_break_nothing(ui: FrontEnd, output: dict) -> None:
    ui.graph(
        [("SeamlessVAERoundTrip", 80, 120), ("SeamlessPosteriorPreview", 480, 120), ("SeamlessVAEInspect", 880, 120)]
    )
    for node in ("1", "2", "3"):
        ui.executed(node, **output)
    ui.page.wait_for_timeout(300)
