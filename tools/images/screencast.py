"""Writes `docs/images/screencast.webp`: `python tools/images/screencast.py`.

A workflow, its plan as a widget moves, a run with its progress, and the slider over the result, as an animated WebP of
at most 1.5 MB. `stage.py` says what is needed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageChops
from playwright.sync_api import FloatRect
from stage import ROOT, VIEW, Columns, Node, Stage, opened

FILE = ROOT / "docs" / "images" / "screencast.webp"
MOST_BYTES = 1_500_000
WIDTH = 960  # pixels
LONG, SHORT = 1200, 120  # milliseconds that a frame is shown: where something is to be read, and where something moves
MOST_OF_A_RUN = 40  # frames
SLIDER = "Before and after"  # the panel
SET_WIDGET = """([name, value]) => {
    const node = app.canvas.graph._nodes.find((one) => one.type === 'SeamlessVAEDecodeTiled')
    const widget = node.widgets.find((one) => one.name === name)
    widget.value = value
    widget.callback?.(value, app.canvas, node)
    app.canvas.setDirty(true, true)
}"""
Frame = tuple[Image.Image, int]  # and the milliseconds that it is shown


def graph() -> Columns:
    size = {"upscale_method": "lanczos", "width": 1024, "height": 680, "crop": "disabled"}
    encode = {"pixels": ("large", 0), "vae": ("vae", 0)}
    return [
        [
            Node("image", "LoadImage", values={"image": "photograph.png"}, size=(300, 340)),
            Node("vae", "SeamlessVAELoad", values={"vae_name": "demo"}),
        ],
        [
            Node("large", "ImageScale", {"image": ("image", 0)}, size),
            Node("encode", "SeamlessVAEEncode", encode, {"control_after_generate": "fixed"}),
        ],
        [Node("decode", "SeamlessVAEDecodeTiled", {"samples": ("encode", 0), "vae": ("vae", 0)})],
        [Node("round", "SeamlessVAERoundTrip", {"pixels": ("image", 0), "vae": ("vae", 0)}, size=(420, 480))],
    ]


class Camera:
    """Takes images of one part of the page."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        stage.shot()  # brings the whole graph into view
        self.clip: FloatRect = {"x": 0, "y": 0, "width": VIEW[0], "height": VIEW[1]}

    def frame(self, milliseconds: int) -> Frame:
        shot = Image.open(BytesIO(self.stage.front_end.page.screenshot(clip=self.clip))).convert("RGB")
        shot.thumbnail((WIDTH, WIDTH), Image.Resampling.LANCZOS)
        return shot, milliseconds


def frames(stage: Stage) -> Iterator[Frame]:
    page = stage.front_end.page
    stage.build(graph(), roomy=True)
    camera = Camera(stage)
    yield camera.frame(LONG)
    for size in (512, 384, 256, 128, 0):  # the plan moves with the widget
        stage.front_end.js(SET_WIDGET, ["tile_size", size])
        page.wait_for_timeout(900)
        yield camera.frame(LONG // 2)
    running: list[Frame] = []
    stage.run(lambda: running.append(camera.frame(SHORT)))
    yield from thinned(changed(running), MOST_OF_A_RUN)
    yield camera.frame(LONG)
    slider = stage.front_end.panel(SLIDER).get_by_role("slider")
    slider.focus()
    for key in [*["ArrowLeft"] * 8, *["ArrowRight"] * 14, *["ArrowLeft"] * 6]:
        page.keyboard.press(key)
        page.wait_for_timeout(60)
        yield camera.frame(SHORT)
    yield camera.frame(LONG)


def changed(shots: list[Frame]) -> list[Frame]:
    """Without those that look like the one before."""
    kept: list[Frame] = []
    for shot in shots:
        if not kept or ImageChops.difference(shot[0], kept[-1][0]).getbbox():
            kept.append(shot)
    return kept


def thinned(shots: list[Frame], most: int) -> list[Frame]:
    """At most so many of them, evenly chosen."""
    return shots if len(shots) <= most else [shots[i * len(shots) // most] for i in range(most)]


def write(shots: list[Frame], path: Path) -> int:
    """Write them in the best quality that the limit admits; returns the bytes.

    Raises:
        SystemExit: none does.
    """
    images, durations = [image for image, _ in shots], [milliseconds for _, milliseconds in shots]

    def encoded(quality: int) -> bytes:
        buffer = BytesIO()
        rest = {"save_all": True, "append_images": images[1:], "duration": durations, "loop": 0}
        images[0].save(buffer, "WEBP", quality=quality, method=4, **rest)
        return buffer.getvalue()

    for quality in (80, 70, 60, 50, 40, 30, 20):
        data = encoded(quality)
        if len(data) <= MOST_BYTES:
            path.write_bytes(data)
            return len(data)
    raise SystemExit(f"{len(shots)} frames do not fit into {MOST_BYTES} bytes. Make fewer, or smaller ones.")


def main() -> None:
    with opened(scale=1.0) as stage:
        shots = list(frames(stage))
    size = write(shots, FILE)
    sys.stdout.write(f"{FILE.relative_to(ROOT)}: {len(shots)} frames, {size} bytes\n")


if __name__ == "__main__":
    main()
