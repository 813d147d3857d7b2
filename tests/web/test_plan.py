"""The tiled nodes show what a run will do."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from host.browser import FrontEnd
from PIL import Image
from playwright.sync_api import Locator, expect

pytestmark = pytest.mark.thorough

PANEL = "Run plan"
TILED = ("SeamlessVAEDecodeTiled", 420, 120)


def decode_graph(ui: FrontEnd, width: int = 2048, height: int = 1024, **values: Any) -> Locator:
    """A loader (1), an empty latent (2), a tiled decode (3)."""
    nodes = [("SeamlessVAELoad", 80, 120), ("EmptyLatentImage", 80, 450, {"width": width, "height": height})]
    ui.graph([*nodes, (*TILED, values)], [(1, 0, 3, "vae"), (2, 0, 3, "samples")])
    panel = ui.panel(PANEL)
    expect(panel).to_contain_text(f"{width} x {height} from")
    return panel


def row(panel: Locator, name: str) -> Locator:
    return panel.locator(".seamless-facts > div", has=panel.page.locator("dt", has_text=name)).locator("dd")


def asked(ui: FrontEnd) -> list[dict[str, Any]]:
    # A question that the page has taken back before its body arrived has none.
    return [json.loads(body) for _, _, body in ui.requests("/seamless_vae/plan") if body]


def test_what_matters_is_said_first(ui: FrontEnd) -> None:
    names = decode_graph(ui).locator("dt")
    assert names.all_text_contents() == ["Memory", "Disk", "Time", "Strips", "Compute"]


def test_details_are_behind_a_click(ui: FrontEnd) -> None:
    """And stay open while the plan follows the widgets."""
    panel = decode_graph(ui)
    expect(row(panel, "Memory")).to_be_visible()
    expect(row(panel, "Strips")).to_be_hidden()
    panel.get_by_text("Details", exact=True).click()
    expect(row(panel, "Strips")).to_be_visible()
    ui.set(3, "tile_size", 256)
    expect(panel.locator(".seamless-tile")).to_have_count(4)
    expect(row(panel, "Strips")).to_be_visible()
    expect(row(panel, "Time")).to_have_text("known after the first run")


def test_strips_follow_the_widgets(ui: FrontEnd) -> None:
    panel = decode_graph(ui)
    expect(panel).to_contain_text("2048 x 1024 from")
    ui.type_number(3, "tile_size", 256)
    tiles = panel.locator(".seamless-tile")
    expect(tiles).to_have_count(4)
    assert [tiles.nth(index).get_attribute("y") for index in range(4)] == ["0", "256", "512", "768"]
    ui.set(2, "height", 512)  # upstream
    expect(tiles).to_have_count(2)
    expect(panel).to_contain_text("2048 x 512 from")
    expect(row(panel, "Compute")).to_contain_text("FLOPs, same as untiled")
    expect(panel).to_contain_text("In strips, because")


def test_blended_tiles_are_counted_and_cost_more(ui: FrontEnd) -> None:
    panel = decode_graph(ui)
    ui.choose(3, "mode", "blended")
    expect(row(panel, "Tiles")).to_have_text("18 (6 x 3)")
    expect(panel.locator(".seamless-tile")).to_have_count(18)
    expect(row(panel, "Compute")).to_have_text(re.compile(r"^[\d.]+\sTFLOPs, 1\.\d\dx untiled$"))
    expect(panel).to_contain_text("In blended tiles, because")


def test_a_budget_offloads_to_disk(ui: FrontEnd) -> None:
    panel = decode_graph(ui)
    expect(row(panel, "Disk")).to_have_text("not used")
    ui.set(3, "memory_budget", 0.2)
    expect(row(panel, "Disk")).to_have_text(re.compile(r"^[\d.]+\s[MG]iB$"))
    expect(row(panel, "Memory")).to_have_text(re.compile(r"^(\d\d|1\d\d|20[0-5])\sMiB, [\d.]+\s[MG]iB free$"))
    ui.set(1, "vae_name", "sd15.safetensors [checkpoint]")
    ui.set(3, "memory_budget", 0.05)
    expect(panel.get_by_role("alert")).to_contain_text("memory budget is too small")


def test_what_does_not_apply_is_greyed_out(ui: FrontEnd) -> None:
    decode_graph(ui)

    def idle() -> list[str]:
        return ui.js("app.canvas.graph.getNodeById(3).widgets.filter((each) => each.disabled).map((each) => each.name)")

    ui.page.wait_for_function("app.canvas.graph.getNodeById(3).widgets.some((each) => each.disabled)")
    assert idle() == ["overlap"]
    if ui.vue:
        number = ui.page.locator('[data-node-id="3"] [data-widget-name="overlap"] input')
        expect(number).to_be_disabled()
        ui.page.wait_for_function(
            """getComputedStyle(document.querySelector('[data-node-id="3"] [data-widget-name=overlap]')).opacity < 1"""
        )
    ui.choose(3, "mode", "blended")
    ui.page.wait_for_function("app.canvas.graph.getNodeById(3).widgets.filter((each) => each.disabled).length === 2")
    assert idle() == ["memory_budget", "circular"]


def test_blended_circular_tiles_are_refused_and_can_be_mended(ui: FrontEnd) -> None:
    panel = decode_graph(ui, circular="x", mode="blended")
    expect(panel.get_by_role("alert")).to_contain_text("blended tiles cannot be circular")
    idle = "app.canvas.graph.getNodeById(3).widgets.filter((each) => each.disabled).map((each) => each.name)"
    assert ui.js(idle) == ["memory_budget"]
    ui.choose(3, "circular", "none")
    expect(row(panel, "Tiles")).to_have_text("18 (6 x 3)")
    assert ui.js(idle) == ["memory_budget", "circular"]


@pytest.mark.parametrize(
    "nodes, links, size",
    [
        ([("LoadImage", 80, 300)], [(2, 0, 1, "pixels")], "96 x 64 from"),
        (
            [("LoadImage", 80, 300), ("ImageScaleBy", 80, 600, {"scale_by": 4})],
            [(2, 0, 3, "image"), (3, 0, 1, "pixels")],
            "384 x 256 from",
        ),
        (
            [("LoadImage", 80, 300), ("ImageScale", 80, 600, {"width": 640, "height": 320})],
            [(2, 0, 3, "image"), (3, 0, 1, "pixels")],
            "640 x 320 from",
        ),
        (
            [("EmptyLatentImage", 80, 300, {"width": 640}), ("KSampler", 80, 450), ("VAEDecode", 80, 650)],
            [(2, 0, 3, "latent_image"), (3, 0, 4, "samples"), (4, 0, 1, "pixels")],
            "640 x 512 from",
        ),
        ([], [], "Assuming 1024 x 1024"),
        (
            [("LoadImage", 80, 300), ("ImageScale", 80, 600, {"width": 0, "height": 320})],
            [(2, 0, 3, "image"), (3, 0, 1, "pixels")],
            "Assuming 1024 x 1024",
        ),
        (
            [("LoadImage", 80, 300), ("ImageUpscaleWithModel", 80, 600)],
            [(2, 0, 3, "image"), (3, 0, 1, "pixels")],
            "Assuming 1024 x 1024",
        ),
    ],
    ids=["file", "factor", "size", "through a sampler", "nothing", "proportional", "by a model"],
)
def test_the_size_comes_from_upstream(ui: FrontEnd, nodes: list, links: list, size: str) -> None:
    ui.graph([("SeamlessVAEEncodeTiled", 420, 100), *nodes], links)
    expect(ui.panel(PANEL)).to_contain_text(size)


def test_the_vae_comes_from_upstream(ui: FrontEnd) -> None:
    ui.graph(
        [TILED, ("CheckpointLoaderSimple", 80, 120), ("VAELoader", 80, 300, {"vae_name": "flux1.safetensors"})],
        [(2, 2, 1, "vae")],
    )
    expect(ui.panel(PANEL)).to_contain_text("Strips")
    assert asked(ui)[-1]["name"] == "sd15.safetensors [checkpoint]"
    assert not ui.panel(PANEL).get_by_text("Assuming Stable Diffusion").count()
    before = len(asked(ui))
    ui.js("app.canvas.graph.getNodeById(3).connect(0, app.canvas.graph.getNodeById(1), 1)")
    ui.wait_for_requests("/seamless_vae/plan", before + 1)
    assert asked(ui)[-1]["name"] == "flux1.safetensors"
    ui.js("app.canvas.graph.getNodeById(3).mode = 2")  # muted: it gives nothing
    expect(ui.panel(PANEL)).to_contain_text("Assuming Stable Diffusion")


def test_the_last_run_tells_the_size(ui: FrontEnd) -> None:
    ui.graph([TILED])
    expect(ui.panel(PANEL)).to_contain_text("Assuming 1024 x 1024")
    run = {"done": 1, "total": 9, "pass": 1, "passes": 3, "memory": None, "seconds_left": 1}
    ui.send("seamless_vae.status", node="1", **run, width=96, height=64, batch=2)
    expect(ui.panel(PANEL)).to_contain_text("96 x 64 from the last run")
    assert asked(ui)[-1]["batch"] == 2


def test_a_image_written_anew_is_measured_anew(ui: FrontEnd, data: Path) -> None:
    place = data / "input" / "changing.png"
    Image.new("RGB", (96, 64)).save(place)
    ui.graph([("SeamlessVAEEncodeTiled", 420, 100), ("LoadImage", 80, 300)], [(2, 0, 1, "pixels")])
    ui.set(2, "image", "changing.png")
    expect(ui.panel(PANEL)).to_contain_text("96 x 64 from")
    Image.new("RGB", (160, 64)).save(place)
    ui.send("execution_start", prompt_id="p")
    expect(ui.panel(PANEL)).to_contain_text("160 x 64 from")
    ui.send("execution_success", prompt_id="p")


def test_a_plan_of_an_earlier_question_is_dimmed(ui: FrontEnd) -> None:
    panel = decode_graph(ui).locator(".seamless-content")
    opacity = "Number(getComputedStyle(document.querySelector('[aria-label=\"Run plan\"] > div')).opacity)"
    assert ui.js(opacity) == 1
    ui.rule("/seamless_vae/plan", delay=3)
    ui.set(3, "tile_size", 512)
    expect(panel).to_have_attribute("aria-busy", "true")
    ui.page.wait_for_function(f"{opacity} < 0.6")
    ui.post("/standin/rule", {})
    ui.set(3, "tile_size", 128)
    expect(panel.locator(".seamless-tile")).to_have_count(8)
    expect(panel).not_to_have_attribute("aria-busy", "true")
    ui.page.wait_for_function(f"{opacity} === 1")


def test_a_late_answer_is_dropped(ui: FrontEnd) -> None:
    panel = decode_graph(ui)
    ui.rule("/seamless_vae/plan", delay=1.5)
    ui.set(3, "tile_size", 512)
    ui.page.wait_for_timeout(600)  # the question is on its way
    ui.post("/standin/rule", {})
    ui.set(3, "tile_size", 128)
    expect(panel.locator(".seamless-tile")).to_have_count(8)
    ui.page.wait_for_timeout(1500)
    expect(panel.locator(".seamless-tile")).to_have_count(8)


def test_only_the_last_of_many_changes_is_asked_for(ui: FrontEnd) -> None:
    panel = decode_graph(ui)
    before = len(asked(ui))
    for size in range(64, 512, 32):
        ui.set(3, "tile_size", size)
    ui.set(3, "tile_size", 512)
    expect(panel.locator(".seamless-tile")).to_have_count(2)
    assert len(asked(ui)) - before <= 3


def test_the_drawing_of_very_many_tiles_covers_the_image(ui: FrontEnd) -> None:
    panel = decode_graph(ui, width=8192, height=4096, mode="blended", tile_size=64, overlap=0)
    expect(row(panel, "Tiles")).to_have_text("8192 (128 x 64)")
    frame = panel.locator(".seamless-frame").bounding_box()
    boxes = [tile.bounding_box() for tile in panel.locator(".seamless-tile").all()]
    assert frame and len(boxes) == 24 * 24
    bottom, right = (max(box[at] + box[side] for box in boxes if box) for at, side in (("y", "height"), ("x", "width")))
    assert abs(bottom - frame["y"] - frame["height"]) < 2 and abs(right - frame["x"] - frame["width"]) < 2


def test_the_drawing_shows_strips_where_they_are(ui: FrontEnd) -> None:
    panel = decode_graph(ui, width=1024, height=1024, tile_size=512)
    expect(panel.locator(".seamless-tile")).to_have_count(2)
    boxes = [panel.locator(".seamless-tile").nth(index).bounding_box() for index in range(2)]
    frame = panel.locator(".seamless-frame").bounding_box()
    assert frame and all(boxes)
    upper, lower = boxes  # type: ignore[misc]
    assert abs(upper["height"] - frame["height"] / 2) < 2 and abs(lower["y"] - upper["y"] - upper["height"]) < 2  # type: ignore[index]
