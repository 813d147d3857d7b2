"""The round trip: original and reconstruction side by side, with zoom, pixel values and the heat map."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from given import web_models as models
from host.browser import FrontEnd
from PIL import Image
from playwright.sync_api import Locator, expect

pytestmark = pytest.mark.thorough

PANEL = "Before and after"
WIDTH, HEIGHT = 96, 64
RED, GREEN, BLUE = (200, 30, 30), (30, 160, 30), (30, 30, 220)


@pytest.fixture(scope="module", autouse=True)
def stored_images(data: Path) -> None:
    """Two of each kind: patterns that differ by 20 in red, and plain colours."""
    temp = data / "temp"
    for index, shift in enumerate((0, 20, 40)):
        Image.fromarray(models.pattern(WIDTH, HEIGHT, shift)).save(temp / f"pattern{index}.png")
    for index, colour in enumerate((RED, GREEN, BLUE)):
        Image.new("RGB", (WIDTH, HEIGHT), colour).save(temp / f"plain{index}.png")


def file(name: str) -> dict[str, str]:
    return {"filename": f"{name}.png", "subfolder": "", "type": "temp"}


def run(ui: FrontEnd, *kinds: str, **output: Any) -> Locator:
    """A round trip of the images of these kinds, as the back end reports it."""
    ui.graph([("SeamlessVAERoundTrip", 200, 120)])
    panel = ui.panel(PANEL)
    expect(panel).to_contain_text("Run the workflow")
    images = [file(f"{kind}{index}") for index in range(3) for kind in kinds]
    text = ["PSNR 31.20 dB, SSIM 0.9312"]
    ui.executed(1, images=images, text=text, **output)
    expect(panel.get_by_role("slider")).to_be_visible()
    ui.page.wait_for_function("[...document.querySelectorAll('.seamless-stage img')].every((each) => each.complete)")
    return panel


def stage_of(panel: Locator) -> tuple[Locator, dict[str, float]]:
    stage = panel.locator(".seamless-stage")
    box = stage.bounding_box()
    assert box is not None
    return stage, {side: float(box[side]) for side in ("x", "y", "width", "height")}


def colours(stage: Locator, *shares: float) -> list[tuple[int, ...]]:
    """Colours of the stage as the screen shows them, at these shares of its width, in the middle of its height."""
    shot = np.asarray(Image.open(io.BytesIO(stage.screenshot())).convert("RGB"))
    height, width = shot.shape[:2]
    return [tuple(int(c) for c in shot[height // 2, int(share * width)]) for share in shares]


def test_the_screen_shows_the_original_left_and_the_reconstruction_right(ui: FrontEnd) -> None:
    panel = run(ui, "plain")
    stage, box = stage_of(panel)
    expect(panel).to_contain_text("PSNR 31.20 dB, SSIM 0.9312")
    assert colours(stage, 0.25, 0.75) == [RED, GREEN]
    ui.page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] / 2)
    ui.page.mouse.down()
    ui.page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] / 2, steps=4)
    ui.page.mouse.up()
    expect(panel.get_by_role("slider")).to_have_attribute("aria-valuenow", "90")
    assert colours(stage, 0.25, 0.75) == [RED, RED]
    panel.get_by_role("button", name="Error").click()
    expect(panel.get_by_role("button", name="Error")).to_have_attribute("aria-pressed", "true")
    ui.settle()
    assert colours(stage, 0.75, 0.95) == [RED, BLUE]


def test_the_boundary_moves_by_keys(ui: FrontEnd) -> None:
    panel = run(ui, "plain")
    slider = panel.get_by_role("slider")
    slider.focus()
    expect(slider).to_be_focused()
    position = ui.js("[...app.canvas.graph.getNodeById(1).pos]")
    for key, value in (
        ("ArrowRight", 51),
        ("Shift+ArrowRight", 61),
        ("ArrowLeft", 60),
        ("PageDown", 50),
        ("End", 100),
        ("ArrowRight", 100),
        ("Home", 0),
        ("ArrowLeft", 0),
    ):
        slider.press(key)
        expect(slider).to_have_attribute("aria-valuenow", str(value))
    assert ui.js("[...app.canvas.graph.getNodeById(1).pos]") == position  # the graph took none of them


def test_pixels_are_read_under_the_pointer(ui: FrontEnd) -> None:
    panel = run(ui, "pattern")
    _, box = stage_of(panel)
    scale = min(box["width"] / WIDTH, box["height"] / HEIGHT)
    x, y = 30, 20
    left = box["x"] + (box["width"] - WIDTH * scale) / 2
    top = box["y"] + (box["height"] - HEIGHT * scale) / 2
    ui.page.mouse.move(left + (x + 0.5) * scale, top + (y + 0.5) * scale)
    before, after = (" ".join(map(str, models.pattern(WIDTH, HEIGHT, shift)[y, x])) for shift in (0, 20))
    expect(panel.locator(".seamless-pixel")).to_have_text(f"({x}, {y})  {before} → {after}")
    ui.page.mouse.move(box["x"] - 30, box["y"])
    expect(panel.locator(".seamless-pixel")).to_have_text("")


def test_pixels_are_the_reconstructions_while_its_error_is_shown(ui: FrontEnd) -> None:
    panel = run(ui, "plain")
    panel.get_by_role("button", name="Error").click()
    _, box = stage_of(panel)
    ui.page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + box["height"] / 2)
    expect(panel.locator(".seamless-pixel")).to_contain_text("200 30 30 → 30 160 30")


def test_images_that_are_gone_are_reported(ui: FrontEnd, data: Path) -> None:
    panel = run(ui, "plain")
    lost = panel.get_by_text("The image no longer exists.")
    expect(lost).not_to_be_visible()
    ui.executed(1, images=[file("plain0"), file("gone"), file("plain2")], text=["PSNR 1.00 dB"])
    expect(lost).to_be_visible()
    assert GREEN not in (seen := colours(stage_of(panel)[0], 0.25, 0.75)) and RED not in seen
    panel.get_by_role("button", name="Error").click()
    expect(lost).not_to_be_visible()
    assert colours(stage_of(panel)[0], 0.25, 0.75) == [RED, BLUE]
    ui.graph([("SeamlessPosteriorPreview", 200, 120)])
    posterior = ui.panel("Posterior")
    ui.executed(1, images=[file("gone"), file("plain1")])
    expect(posterior).to_contain_text("The image no longer exists.")
    expect(posterior.locator("img")).not_to_be_visible()
    posterior.get_by_role("button", name="Next image").click()
    expect(posterior.locator("img")).to_be_visible()
    expect(posterior.get_by_text("The image no longer exists.")).not_to_be_visible()
    ui.forgive_failed_requests()


def test_the_wheel_zooms_the_image_and_not_the_graph(ui: FrontEnd) -> None:
    panel = run(ui, "pattern")
    _, box = stage_of(panel)
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    image = panel.locator(".seamless-stage img").first

    def width() -> float:
        shown = image.bounding_box()
        assert shown is not None
        return shown["width"]

    fitted, graph = width(), ui.js("app.canvas.ds.scale")
    ui.page.mouse.click(*middle)  # until then the wheel is the graph's
    ui.page.mouse.wheel(0, -100)
    ui.settle()
    assert width() == pytest.approx(1.25 * fitted, rel=0.01)
    assert ui.js("app.canvas.ds.scale") == graph
    before = image.bounding_box()
    beside = box["x"] + box["width"] / 4, middle[1]  # not on the boundary
    ui.page.mouse.move(*beside)
    ui.page.mouse.down()
    ui.page.mouse.move(beside[0] + 8, beside[1] + 5, steps=3)
    ui.page.mouse.up()
    after = image.bounding_box()
    assert before and after and after["x"] - before["x"] == pytest.approx(8, abs=1)
    panel.get_by_role("button", name="Fit").click()
    assert width() == pytest.approx(fitted, rel=0.01)
    panel.get_by_role("button", name="Zoom in").click()
    assert width() == pytest.approx(1.25**2 * fitted, rel=0.01)
    panel.get_by_role("slider").press("0")
    assert width() == pytest.approx(fitted, rel=0.01)


def test_a_batch_is_gone_through(ui: FrontEnd) -> None:
    panel = run(ui, "pattern", "plain")
    expect(panel).to_contain_text("1 / 2")
    panel.get_by_role("button", name="Next image").click()
    expect(panel).to_contain_text("2 / 2")
    ui.settle()
    assert colours(panel.locator(".seamless-stage"), 0.25, 0.75) == [RED, GREEN]
    panel.get_by_role("button", name="Next image").click()
    expect(panel).to_contain_text("1 / 2")


def test_the_images_are_shown_once(ui: FrontEnd) -> None:
    run(ui, "plain")
    ui.page.wait_for_timeout(500)
    assert not ui.js("app.canvas.graph.getNodeById(1).imgs?.length ?? 0")
    assert ui.page.locator(".image-preview").count() == 0
