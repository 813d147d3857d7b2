"""Makes the images of the help pages, `web/docs/images/`: `python tools/images/nodes.py [NodeId ...]`.

Each shows the node after a run, with what came of it, in English and below `zh` in Chinese. `stage.py` says what is
needed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from PIL import Image
from stage import PHOTOGRAPH, ROOT, Columns, Node, opened

FOLDER = ROOT / "web" / "docs" / "images"
LANGUAGES = {"en": FOLDER, "zh": FOLDER / "zh"}
WIDTH, QUALITY = 900, 82
SMALL, LARGE = (300, 270), (380, 320)


def photograph() -> Node:
    return Node("image", "LoadImage", values={"image": PHOTOGRAPH.name}, size=(300, 310))


def vae(key: str = "vae") -> Node:
    return Node(key, "SeamlessVAELoad", values={"vae_name": "demo"})


def inputs() -> list[Node]:
    return [photograph(), vae()]


def encode(tiled: bool = False, source: tuple[str, int] = ("image", 0)) -> Node:
    type_ = "SeamlessVAEEncodeTiled" if tiled else "SeamlessVAEEncode"
    return Node("encode", type_, {"pixels": source, "vae": ("vae", 0)}, {"control_after_generate": "fixed"})


def decode(source: str = "encode", tiled: bool = False) -> Node:
    type_ = "SeamlessVAEDecodeTiled" if tiled else "SeamlessVAEDecode"
    return Node("decode", type_, {"samples": (source, 0), "vae": ("vae", 0)})


def shown(source: str = "decode", output: int = 0, key: str = "shown", size: tuple[int, int] = LARGE) -> Node:
    return Node(key, "PreviewImage", {"images": (source, output)}, size=size)


def enlarged() -> Node:
    values = {"upscale_method": "lanczos", "width": 1024, "height": 680, "crop": "disabled"}
    return Node("large", "ImageScale", {"image": ("image", 0)}, values)


def hole() -> list[Node]:
    return [
        Node("area", "SolidMask", values={"value": 0.0, "width": 451, "height": 300}),
        Node("hole", "SolidMask", values={"value": 1.0, "width": 190, "height": 130}),
        Node(
            *("mask", "MaskComposite", {"destination": ("area", 0), "source": ("hole", 0)}),
            values={"x": 130, "y": 90, "operation": "add"},
        ),
    ]


def inpaint_encode(**values: int) -> Node:
    return Node(
        *("encode", "SeamlessVAEInpaintEncode"),
        {"pixels": ("image", 0), "vae": ("vae", 0), "mask": ("mask", 0)},
        values,
    )


def inpaint_composite() -> Columns:
    flip = Node("flip", "LatentFlip", {"samples": ("encode", 0)}, title="instead of a sampler")
    links = {"samples": ("flip", 0), "vae": ("vae", 0), "original": ("image", 0), "mask": ("mask", 0)}
    composite = Node("composite", "SeamlessVAEInpaintComposite", links)
    return [inputs(), hole(), [inpaint_encode(), flip], [composite, shown("composite")]]


def inpaint_encode_graph() -> Columns:
    as_image_tensor = Node("noise", "MaskToImage", {"mask": ("mask", 0)})
    return [inputs(), hole(), [inpaint_encode(grow=6, feather=8), as_image_tensor, shown("noise", size=SMALL)]]


def sample() -> Columns:
    values = {"control_after_generate": "fixed", "temperature": 60.0, "count": 4, "seed": 5}
    samples = Node("samples", "SeamlessVAESamplePosterior", {"posterior": ("encode", 1)}, values)
    return [inputs(), [encode()], [samples, decode("samples")], [shown(size=(440, 380))]]


def scale() -> Columns:
    scaled = Node("scale", "SeamlessLatentScale", {"samples": ("encode", 0), "vae": ("vae", 0)})
    back = Node("raw", "SeamlessLatentScale", {"samples": ("scale", 0), "vae": ("vae", 0)}, {"to": "raw"})
    return [inputs(), [encode()], [scaled, back, decode("raw")], [shown()]]


def swap() -> Columns:
    node = Node("swap", "SeamlessVAESwap", {"samples": ("encode", 0), "from_vae": ("vae", 0), "to_vae": ("other", 0)})
    return [[photograph()], [vae(), vae("other")], [encode()], [node, shown("swap", 1, size=SMALL)]]


def on_vae(type_: str, size: tuple[int, int] | None = None) -> Callable[[], Columns]:
    return lambda: [[vae()], [Node("node", type_, {"vae": ("vae", 0)}, size=size)]]


GRAPHS: dict[str, Callable[[], Columns]] = {
    "SeamlessVAELoad": lambda: [inputs(), [encode(), decode()], [shown()]],
    "SeamlessVAEEncode": lambda: [inputs(), [encode()], [decode(), shown()]],
    "SeamlessVAEDecode": lambda: [inputs(), [encode()], [decode()], [shown()]],
    "SeamlessVAEEncodeTiled": lambda: [inputs(), [enlarged(), encode(True, ("large", 0))], [decode(), shown()]],
    "SeamlessVAEDecodeTiled": lambda: [
        inputs(),
        [enlarged(), encode(True, ("large", 0))],
        [decode(tiled=True)],
        [shown()],
    ],
    "SeamlessVAESamplePosterior": sample,
    "SeamlessVAESwap": swap,
    "SeamlessVAEInpaintEncode": inpaint_encode_graph,
    "SeamlessVAEInpaintComposite": inpaint_composite,
    "SeamlessLatentScale": scale,
    "SeamlessVAERoundTrip": lambda: [
        inputs(),
        [Node("round", "SeamlessVAERoundTrip", {"pixels": ("image", 0), "vae": ("vae", 0)}, size=(420, 480))],
        [shown("round", 1)],
    ],
    "SeamlessPosteriorPreview": lambda: [
        inputs(),
        [encode()],
        [Node("preview", "SeamlessPosteriorPreview", {"posterior": ("encode", 1)}, size=(440, 330))],
    ],
    "SeamlessVAEInspect": on_vae("SeamlessVAEInspect", (400, 330)),
    "SeamlessVAESave": on_vae("SeamlessVAESave"),
    "SeamlessLatentLoad": lambda: [
        [vae(), Node("load", "SeamlessLatentLoad", values={"count": 6, "control_after_generate": "fixed"})],
        [decode("load")],
        [shown()],
    ],
    "SeamlessLatentSave": lambda: [
        inputs(),
        [encode()],
        [Node("save", "SeamlessLatentSave", {"samples": ("encode", 1), "vae": ("vae", 0)})],
    ],
}
# What is seen of a graph: mostly the node and the last one.
SEEN: dict[str, tuple[str, ...]] = {
    "SeamlessVAELoad": ("vae", "shown"),
    "SeamlessVAEEncode": ("encode", "shown"),
    "SeamlessVAEDecode": ("decode", "shown"),
    "SeamlessVAEEncodeTiled": ("encode", "shown"),
    "SeamlessVAEDecodeTiled": ("decode", "shown"),
    "SeamlessVAESamplePosterior": ("samples", "shown"),
    "SeamlessVAESwap": ("swap", "shown"),
    "SeamlessVAEInpaintEncode": ("encode", "shown"),
    "SeamlessVAEInpaintComposite": ("composite", "shown"),
    "SeamlessLatentScale": ("scale", "shown"),
    "SeamlessVAERoundTrip": ("round", "shown"),
    "SeamlessPosteriorPreview": ("encode", "preview"),
    "SeamlessVAEInspect": ("vae", "node"),
    "SeamlessVAESave": ("vae", "node"),
    "SeamlessLatentLoad": ("load", "shown"),
    "SeamlessLatentSave": ("encode", "save"),
}


def main() -> None:
    for language, folder in LANGUAGES.items():
        folder.mkdir(parents=True, exist_ok=True)
        with opened(language=language) as stage:
            for name in sys.argv[1:] or GRAPHS:
                stage.build(GRAPHS[name]())
                stage.run()
                stage.focus(*SEEN[name])
                shot = stage.shot()
                shot.thumbnail((WIDTH, WIDTH), Image.Resampling.LANCZOS)
                shot.save(folder / f"{name}.webp", quality=QUALITY, method=6)


if __name__ == "__main__":
    main()
