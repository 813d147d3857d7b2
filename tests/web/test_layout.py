"""Panels fit their nodes: no overlap, no overflow, in narrow and wide nodes, both themes, and on dense screens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from given import web_models as models
from host.browser import FrontEnd, front_end
from PIL import Image
from playwright.sync_api import Browser, expect

pytestmark = pytest.mark.thorough

OVERFLOWS = """() => {
    const found = []
    const name = (each) => `${each.tagName}.${each.getAttribute('class')} ${each.textContent.slice(0, 30)}`
    for (const panel of document.querySelectorAll('.seamless-panel:not(.seamless-hidden)')) {
        const frame = panel.getBoundingClientRect()
        if (!frame.width) { found.push('not shown: ' + panel.ariaLabel); continue }
        for (const each of panel.querySelectorAll('*')) {
            if (each.closest('.seamless-layer, [hidden], details:not([open]) > p')) continue
            const box = each.getBoundingClientRect()
            const out = Math.max(frame.left - box.left, box.right - frame.right, frame.top - box.top,
                                 box.bottom - frame.bottom)
            if (!each.checkVisibility()) continue  // what is folded away has a place, but is not seen
            if (box.width && out > 1.5) found.push(`${out.toFixed(1)} px out: ${name(each)}`)
            if (each instanceof HTMLElement && each.scrollWidth > each.clientWidth + 1 && each.clientWidth &&
                !each.matches('.seamless-stage, .seamless-handle')) found.push(`overflows: ${name(each)}`)
        }
        const parts = [...panel.querySelectorAll('.seamless-content > *, .seamless-plan > *')].filter(
            (each) => each.getBoundingClientRect().height && !each.matches('.seamless-plan'))
        for (const [index, one] of parts.entries()) for (const other of parts.slice(index + 1)) {
            const [a, b] = [one.getBoundingClientRect(), other.getBoundingClientRect()]
            const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left)
            const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top)
            if (wide > 1 && high > 1) found.push(`overlap: ${name(one)} and ${name(other)}`)
        }
    }
    return found
}"""
NODES = [
    ("SeamlessVAELoad", 60, 120),
    ("SeamlessVAEDecodeTiled", 400, 120),
    ("SeamlessVAERoundTrip", 760, 120),
    ("SeamlessPosteriorPreview", 60, 520),
    ("SeamlessVAEInspect", 400, 620),
]


@pytest.fixture(scope="module", autouse=True)
def stored_images(data: Path) -> None:
    for index in range(3):
        Image.fromarray(models.pattern(192, 128, 20 * index)).save(data / "temp" / f"layout{index}.png")


def fill(ui: FrontEnd, width: float | None) -> None:
    """Every panel with something in it, in nodes of this width."""
    ui.graph(NODES, [(1, 0, 2, "vae")])
    images = [{"filename": f"layout{index}.png", "subfolder": "", "type": "temp"} for index in range(3)]
    long = "a decode of 1 image of 1024x1024: 10.47 TFLOP in 35 passes, 1.58 GiB of working memory\n" * 3
    ui.send("execution_start", prompt_id="p")
    outputs = {
        "3": {"images": images, "text": ["PSNR 31.20 dB, SSIM 0.9312"]},
        "4": {"images": images},
        "5": {"text": [long]},
    }
    for node, output in outputs.items():
        ui.executed(node, **output)
    status = {"done": 999, "total": 1000, "pass": 34, "passes": 35, "memory": 9.9e9, "seconds_left": 3599}
    ui.send("seamless_vae.status", node="2", **status)
    expect(ui.panel("Run progress").filter(has_text="99 %")).to_be_visible()
    expect(ui.panel("Run plan")).to_contain_text("Strips")
    if width is not None:
        resize(ui, width)
        ui.js("app.canvas.setDirty(true, true)")
    ui.settle()
    if width is not None and not ui.vue:  # Nodes 2.0 has a least width of its own
        shown = ui.js(
            "[...document.querySelectorAll('.seamless-panel:not(.seamless-hidden)')].map((p) => p.offsetWidth)"
        )
        assert len(shown) == 6 and set(shown) == {width - 12}


def resize(ui: FrontEnd, width: float) -> None:
    """Every node becomes so wide; older front ends draw that only when something else has to be drawn."""
    ui.js("(width) => { for (const node of app.canvas.graph.nodes) node.setSize([width, node.size[1]]) }", width)


@pytest.mark.parametrize("width", [190, None, 640])
def test_nothing_overlaps_or_overflows(ui: FrontEnd, width: float | None) -> None:
    fill(ui, width)
    assert ui.js(OVERFLOWS) == []
    ui.send("execution_success", prompt_id="p")


def test_a_panel_grows_in_a_node_that_was_resized_and_not_drawn(ui: FrontEnd) -> None:
    ui.graph([("SeamlessVAEDecodeTiled", 60, 120)])
    expect(ui.panel("Run plan")).to_contain_text("Strips")
    ui.settle()
    resize(ui, 640)
    ui.panel("Run plan").evaluate(
        """(panel) => {
            const lines = document.createElement('pre')
            lines.textContent = 'a line of an answer\\n'.repeat(20)
            panel.firstChild.append(lines)
        }"""
    )
    ui.settle()
    assert ui.panel("Run plan").locator("pre").evaluate("(lines) => lines.offsetHeight") > 200
    assert ui.js(OVERFLOWS) == []


@pytest.fixture(params=["dark", "light", "arc"])
def palette(ui: FrontEnd, request: pytest.FixtureRequest) -> Iterator[str]:
    ui.js("(palette) => app.extensionManager.setting.set('Comfy.ColorPalette', palette)", request.param)
    yield request.param
    ui.js("app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")


def test_text_stands_out_in_every_theme(ui: FrontEnd, palette: str) -> None:
    fill(ui, None)
    contrasts = ui.js(
        """() => {
            const probe = document.createElement('canvas').getContext('2d', {willReadFrequently: true})
            const light = (colour, under) => {
                probe.fillStyle = under; probe.fillRect(0, 0, 1, 1)
                probe.fillStyle = colour; probe.fillRect(0, 0, 1, 1)
                const [r, g, b] = [...probe.getImageData(0, 0, 1, 1).data].map((each) => {
                    const share = each / 255
                    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4
                })
                return 0.2126 * r + 0.7152 * g + 0.0722 * b
            }
            return [...document.querySelectorAll('.seamless-content :is(dt, dd, p, pre)')]
                .filter((each) => each.offsetHeight && !each.closest('.seamless-stage'))
                .map((each) => {
                    const ground = getComputedStyle(each.closest('.seamless-content')).backgroundColor
                    const [text, under] = [light(getComputedStyle(each).color, ground), light(ground, 'black')].sort()
                    return [(under + 0.05) / (text + 0.05), each.textContent.slice(0, 20)]
                })
        }"""
    )
    assert len(contrasts) > 15
    low = [each for each in contrasts if each[0] < 3]
    assert low == [], palette
    ui.send("execution_success", prompt_id="p")


def test_a_dense_screen_is_no_different(ui: FrontEnd, browser: Browser) -> None:
    size = {"viewport": {"width": 1280, "height": 900}, "device_scale_factor": 2}
    with front_end(browser, ui.url, "vue" if ui.vue else "canvas", **size) as dense:
        dense.load()
        fill(dense, None)
        assert dense.js(OVERFLOWS) == []
        dense.check()
    ui.post("/standin/send", {"type": "execution_success", "data": {"prompt_id": "p"}})
