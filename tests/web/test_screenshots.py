"""The panels look as they did: each beside a stored image of it, dark and light. The canvases of both front ends
share their images; Nodes 2.0, whose margins are wider, has its own.

    SEAMLESS_VAE_WRITE_SCREENSHOTS=1 pytest tests/web/test_screenshots.py

takes the images again; look at them before they are kept. Nothing of the machine is in them: the letters are of a font
that every front end brings along, unhinted, and what the back end answers is given here.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from given import web_models as models
from host.browser import FrontEnd
from PIL import Image
from playwright.sync_api import Locator, expect

pytestmark = pytest.mark.thorough

STORED = Path(__file__).with_name("screenshots")
SEEN = Path(__file__).resolve().parents[2] / "build" / "screenshots"
WRITE = bool(os.environ.get("SEAMLESS_VAE_WRITE_SCREENSHOTS"))
# Another release of the browser may round the edges of letters otherwise: a little on many pixels, much on a few. Text
# that has moved by one pixel differs much in 4 to 7 % of all pixels, names as bright as their values in 0.6 to 1 %.
MUCH = 40  # of 255, in any channel
FEW = 0.004  # of all pixels

FONT = """
@font-face { font-family: Pinned; font-weight: 100 900; src: url(/fonts/inter-latin-normal.woff2) }
.seamless-panel, .seamless-panel * { font-family: Pinned !important; text-rendering: geometricPrecision !important }
"""
INFO = {
    "name": "flux1.safetensors",
    "problem": None,
    "seems_to_be": None,
    "family": "FLUX.1",
    "family_is_guess": True,
    "prefix": "",
    "file_size": 335304388,
    "parameters": 83819683,
    "dtype": "float32",
    "latent_channels": 16,
    "downscale_factor": 8,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "remarks": ["The file has no quant_conv: none is needed."],
}
BROKEN = {
    "name": "clip.safetensors",
    "problem": "clip.safetensors has no decoder.conv_out.weight (found 196 other tensors). Give a whole VAE.",
    "seems_to_be": "a text encoder",
}
EXACT = {
    "problem": None,
    "assumed_vae": False,
    "downscale_factor": 8,
    "width": 2048,
    "height": 1536,
    "device": "cuda:0",
    "way": "strips",
    "reason": "it does not fit into the device's memory whole",
    "tiles": [],
    "count": 0,
    "columns": 0,
    "rows": 0,
    "passes": 35,
    "strips": 420,
    "places": {"device": 2**30, "cpu": 2.5 * 2**30, "disk": 640 * 2**20},
    "peak_bytes": 1.5 * 2**30,
    "free_bytes": 12.25 * 2**30,
    "cost": 1.0,
    "flops": 31.4e12,
    "seconds": {"likely": 75.0, "low": 62.0, "high": 90.0},
}
BLENDED = {
    **EXACT,
    "assumed_vae": True,
    "way": "tiles",
    "reason": "you chose blended tiles",
    "tiles": [[x, y, 768, 768] for y in (0, 640, 768) for x in (0, 640, 1280)],
    "count": 9,
    "columns": 3,
    "rows": 3,
    "passes": 9,
    "strips": 0,
    "places": {"device": 13.5 * 2**30, "cpu": 0, "disk": 0},
    "peak_bytes": 13.5 * 2**30,
    "cost": 1.69,
    "flops": 53e12,
    "seconds": None,
}
REPORT = """SDXL, 83.7 M weights, float32, cpu
4 latent channels at 1/8
scaling 0.13025
a decode of 1 image of 1024x1024: 10.47 TFLOP
"""
STATUS = {"done": 340, "total": 1000, "pass": 12, "passes": 35, "memory": 1.5 * 2**30, "seconds_left": 75}


def images(name: str) -> list[dict[str, str]]:
    return [{"filename": f"{name}{index}.png", "subfolder": "", "type": "temp"} for index in range(3)]


# Of each case: the node, its panel, the back end's answers, what the node gives out, and a text to wait for.
CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any], str]] = {
    "info": ("SeamlessVAELoad", "About this VAE file", {"info": INFO}, {}, "0.3611"),
    "info-broken": ("SeamlessVAELoad", "About this VAE file", {"info": BROKEN}, {}, "a text encoder"),
    "plan-exact": ("SeamlessVAEDecodeTiled", "Run plan", {"plan": EXACT}, {}, "In strips, because"),
    "plan-blended": ("SeamlessVAEEncodeTiled", "Run plan", {"plan": BLENDED}, {}, "9 (3 x 3)"),
    "compare": (
        "SeamlessVAERoundTrip",
        "Before and after",
        {},
        {"images": images("looks"), "text": ["PSNR 31.20 dB, SSIM 0.9312"]},
        "PSNR",
    ),
    "posterior": ("SeamlessPosteriorPreview", "Posterior", {}, {"images": images("looks")}, "1 / 3"),
    "report": ("SeamlessVAEInspect", "Report", {}, {"text": [REPORT]}, "TFLOP"),
    "running": ("SeamlessVAEDecode", "Run progress", {}, {}, "34 %"),
}


@pytest.fixture(scope="module", autouse=True)
def files(data: Path) -> None:
    for index in range(3):
        Image.fromarray(models.pattern(192, 128, 40 * index)).save(data / "temp" / f"looks{index}.png")


@pytest.fixture
def pinned(ui: FrontEnd) -> Iterator[FrontEnd]:
    """A page whose panels have the font of the images."""
    ui.js(
        """async (css) => {
            const style = document.createElement('style')
            style.id = 'pinned'
            style.textContent = css
            document.head.append(style)
            await Promise.all(['11px', 'bold 11px'].map((font) => document.fonts.load(`${font} Pinned`)))
        }""",
        FONT,
    )
    yield ui
    ui.js("document.getElementById('pinned').remove()")
    ui.js("app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")


def show(ui: FrontEnd, case: str) -> Locator:
    """The panel of a case, filled."""
    node, label, answers, output, text = CASES[case]
    ui.post("/standin/rule", {})
    for name, answer in answers.items():
        ui.post("/standin/rule", {"path": f"/seamless_vae/{name}", "json": answer})
    ui.graph([(node, 200, 150)])
    ui.js("(height) => app.canvas.graph.getNodeById(1).setSize([340, height])", 440 if "images" in output else 300)
    if output:
        ui.executed(1, **output)
    if case == "running":
        ui.send("seamless_vae.status", node="1", **STATUS)
    panel = ui.panel(label)
    expect(panel).to_contain_text(text)
    ui.page.wait_for_function(
        "[...document.querySelectorAll('.seamless-panel img')].every((each) => each.complete && each.decode())"
    )
    ui.page.mouse.move(1270, 790)  # over nothing
    return panel.locator(".seamless-content")


def look(ui: FrontEnd, panel: Locator) -> np.ndarray:
    """An image of a panel [height, width, 3], once it no longer changes."""
    last = None
    for _ in range(20):
        seen = np.asarray(Image.open(io.BytesIO(panel.screenshot(animations="disabled"))).convert("RGB"))
        if last is not None and np.array_equal(last, seen):
            return seen
        last = seen
        ui.page.wait_for_timeout(200)
    raise AssertionError("the panel does not come to rest")


def difference(seen: np.ndarray, stored: np.ndarray) -> str | None:
    """What is wrong with an image; None if it is as stored."""
    if seen.shape != stored.shape:
        (height, width), (was_height, was_width) = seen.shape[:2], stored.shape[:2]
        return f"is {width} x {height} and was {was_width} x {was_height}"
    far = np.abs(seen.astype(int) - stored.astype(int)).max(axis=-1) > MUCH
    if far.mean() > FEW:
        return f"differs much in {100 * far.mean():.2f} % of its pixels; {100 * FEW:.2f} % may"
    return None


@pytest.mark.parametrize("case", CASES)
def test_a_panel_looks_as_it_did(pinned: FrontEnd, case: str) -> None:
    ui = pinned
    wrong = []
    for palette in ("dark", "light"):
        ui.js("(palette) => app.extensionManager.setting.set('Comfy.ColorPalette', palette)", palette)
        seen = look(ui, show(ui, case))
        name = f"{case}-{palette}-{'vue' if ui.vue else 'canvas'}"
        stored = STORED / f"{name}.webp"
        if WRITE:
            STORED.mkdir(exist_ok=True)
            Image.fromarray(seen).save(stored, lossless=True, quality=100, method=6)
            continue
        fault = difference(seen, np.asarray(Image.open(stored).convert("RGB")))
        if fault:
            SEEN.mkdir(parents=True, exist_ok=True)
            Image.fromarray(seen).save(SEEN / f"{name}.png")
            wrong.append(f"{name} {fault}; see {SEEN / name}.png")
    ui.send("execution_success", prompt_id="p")
    assert not wrong, "\n".join(wrong)
