"""Writes `docs/images/screencast.webp`: `python tools/images/screencast.py [--frames=FOLDER]`.

A workflow, its plan as a widget moves, a run with its progress, and the slider over the result, as an animated WebP of
at most 1.5 MB. With `--frames` each frame is also written to that folder, to look at. `stage.py` says what is needed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageChops
from playwright.sync_api import FloatRect
from stage import PHOTOGRAPH, ROOM, ROOT, VIEW, Columns, Node, Stage, opened

FILE = ROOT / "docs" / "images" / "screencast.webp"
MOST_BYTES = 1_500_000
WIDTH = 960  # pixels
BAR, MENU = 64, 80  # pixels at the left and at the top of the page that are not canvas
CANVAS = (BAR, MENU, VIEW[0] - BAR, VIEW[1] - MENU)
LONG, MEDIUM, SHORT = 2000, 1300, 140  # milliseconds that a frame is shown: to be read, to be seen, and in motion
MOST_OF_A_RUN = 40  # frames
SLIDER = "Before and after"  # the panel
BUDGETS = (0.15, 0.1, 0.05)  # GiB
KEYS = (*["ArrowLeft"] * 8, *["ArrowRight"] * 14, *["ArrowLeft"] * 6)
LOOK = """([indices, rooms, [x, y, w, h], closest]) => {
    const title = LiteGraph.NODE_TITLE_HEIGHT, margin = 30
    const nodes = indices.map((index) => app.canvas.graph._nodes[index])
    const canvas = app.canvas.canvas.getBoundingClientRect()  // which may begin beside the page's bars
    const left = Math.min(...nodes.map((n) => n.pos[0])) - margin
    const top = Math.min(...nodes.map((n) => n.pos[1] - title)) - margin
    const width = Math.max(...nodes.map((n) => n.pos[0] + n.size[0])) + margin - left
    const height = Math.max(...nodes.map((n, at) => n.pos[1] + n.size[1] + rooms[at])) + margin - top
    const scale = Math.min(closest, w / width, h / height)
    app.canvas.ds.scale = scale
    app.canvas.ds.offset = [
        (x - canvas.left + w / 2) / scale - width / 2 - left, (y - canvas.top + h / 2) / scale - height / 2 - top,
    ]
    app.canvas.deselectAll()
    app.canvas.setDirty(true, true)
}"""
Frame = tuple[Image.Image, int]  # and the milliseconds that it is shown


def graph() -> Columns:
    size = {"upscale_method": "lanczos", "width": 1024, "height": 680, "crop": "disabled"}
    encode = {"pixels": ("large", 0), "vae": ("vae", 0)}
    return [
        [
            Node("image", "LoadImage", values={"image": PHOTOGRAPH.name}, size=(300, 300)),
            Node("large", "ImageScale", {"image": ("image", 0)}, size),
        ],
        [
            Node("vae", "SeamlessVAELoad", values={"vae_name": "demo"}),
            Node("encode", "SeamlessVAEEncode", encode, {"control_after_generate": "fixed"}),
        ],
        [Node("decode", "SeamlessVAEDecodeTiled", {"samples": ("encode", 0), "vae": ("vae", 0)})],
        [Node("shown", "PreviewImage", {"images": ("decode", 0)}, size=(420, 330))],
        [Node("round", "SeamlessVAERoundTrip", {"pixels": ("image", 0), "vae": ("vae", 0)}, size=(420, 480))],
    ]


class Camera:
    """Takes frames of the page."""

    def __init__(self, stage: Stage, columns: Columns) -> None:
        self.stage = stage
        self.nodes = [node for column in columns for node in column]
        self.order = [node.key for node in self.nodes]

    def look(self, keys: Sequence[str], closest: float = 1.0, growing: bool = False) -> None:
        """Bring these nodes into view, enlarged at most so much.

        Args:
            growing: with the room below them that they take in a run.
        """
        indices = [self.order.index(key) for key in keys]
        rooms = [ROOM.get(self.nodes[index].type, 0) if growing else 0 for index in indices]
        self.stage.front_end.js(LOOK, [indices, rooms, CANVAS, closest])
        self.stage.front_end.page.wait_for_timeout(800)

    def frame(self, milliseconds: int) -> Frame:
        x, y, width, height = CANVAS
        clip: FloatRect = {"x": x, "y": y, "width": width, "height": height}
        shot = Image.open(BytesIO(self.stage.front_end.page.screenshot(clip=clip))).convert("RGB")
        shot.thumbnail((WIDTH, WIDTH), Image.Resampling.LANCZOS)
        return shot, milliseconds


def frames(stage: Stage) -> Iterator[Frame]:
    ui, columns = stage.front_end, graph()
    stage.build(columns, roomy=True)
    camera = Camera(stage, columns)
    camera.look(camera.order)
    yield camera.frame(LONG)
    camera.look(["decode"], 1.7)
    yield camera.frame(MEDIUM)
    decode = camera.order.index("decode") + 1
    for budget in BUDGETS:  # the plan moves with the widget
        ui.set(decode, "memory_budget", budget)
        ui.page.wait_for_timeout(1500)
        yield camera.frame(MEDIUM)
    camera.look(["encode", "decode", "shown"], 1.2, growing=True)
    running: list[Frame] = []
    stage.run(lambda: running.append(camera.frame(SHORT)))
    yield from thinned(changed(running), MOST_OF_A_RUN)
    yield camera.frame(LONG)
    camera.look(["round"], 1.7)
    yield camera.frame(MEDIUM)
    ui.panel(SLIDER).get_by_role("slider").focus()
    for key in KEYS:
        ui.page.keyboard.press(key)
        ui.page.wait_for_timeout(60)
        yield camera.frame(SHORT)
    ui.panel(SLIDER).get_by_role("button", name="Error map").click()
    ui.page.wait_for_timeout(800)
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
    folder = next((Path(each.removeprefix("--frames=")) for each in sys.argv if each.startswith("--frames=")), None)
    with opened() as stage:
        shots = list(frames(stage))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for number, (image, _) in enumerate(shots):
            image.save(folder / f"{number:03}.png")
    size = write(shots, FILE)
    sys.stdout.write(f"{FILE.relative_to(ROOT)}: {len(shots)} frames, {size} bytes\n")


if __name__ == "__main__":
    main()
