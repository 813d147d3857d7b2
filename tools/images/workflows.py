"""Writes `example_workflows/`: `python tools/images/workflows.py [NAME ...] [--no-run] [--shots=FOLDER]`.

Each workflow is built in the front end of ComfyUI 0.3.64, saved as that saves it, and run if it needs no model. Its
thumbnail is made from its result; with `--no-run` only new ones get a thumbnail, of the graph before a run. A graph
with all of its nodes is written to the folder of `--shots`, to look at. What the notes say is in `notes.py`;
`stage.py` says what is needed.
"""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

from notes import texts
from PIL import Image
from stage import ROOT, Columns, Node, Stage, opened
from usual_nodes import decoded, encoded, preview, scaled, source_image, vae

FOLDER = ROOT / "example_workflows"
THUMBNAIL = (640, 400)
EXR_SAVER = "SaveImageAdvanced"  # of newer ComfyUIs' core
CHECKPOINT = {
    "name": "v1-5-pruned-emaonly-fp16.safetensors",
    "url": "https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/"
    "v1-5-pruned-emaonly-fp16.safetensors",
    "directory": "checkpoints",
}


def notes(name: str) -> list[Node]:
    return [
        Node(title, "MarkdownNote", values={"text": text}, title=title, size=(340, height))
        for title, text, height in zip(("Read me", "说明"), texts(name), (400, 360), strict=True)
    ]


def encode_and_decode() -> Columns:
    return [
        notes("encode_and_decode"),
        [source_image(), vae()],
        [encoded("image"), Node("inspect", "SeamlessVAEInspect", {"vae": ("vae", 0), "samples": ("encode", 0)})],
        [
            decoded("decode", "encode"),
            Node("core", "VAEDecode", {"samples": ("encode", 0), "vae": ("vae", 0)}, title="VAE Decode of the core"),
            Node("round", "SeamlessVAERoundTrip", {"pixels": ("image", 0), "vae": ("vae", 0)}, size=(340, 460)),
        ],
        [preview("shown", "decode"), preview("core_shown", "core", title="The same, by the core node")],
    ]


def tiled_upscale() -> Columns:
    size = {"upscale_method": "lanczos", "width": 2048, "height": 2048, "crop": "disabled"}
    return [
        notes("tiled_upscale"),
        [source_image(), Node("large", "ImageScale", {"image": ("image", 0)}, size), vae()],
        [encoded("large", True, memory_budget=0.5)],
        [decoded("decode", "encode", True, memory_budget=0.5)],
        [Node("saved", "SaveImage", {"images": ("decode", 0)}, {"filename_prefix": "seamless_2048"}, size=(420, 480))],
    ]


def tiled_upscale_with_sampler() -> Columns:
    size = {"upscale_method": "lanczos", "width": 1536, "height": 1536, "crop": "disabled"}
    model = ("checkpoint", 2)
    sampling = {"seed": 1, "control_after_generate": "fixed", "steps": 20, "cfg": 6.0, "sampler_name": "dpmpp_2m"}
    text_size = (340, 120)
    return [
        notes("tiled_upscale_with_sampler"),
        [source_image(), Node("large", "ImageScale", {"image": ("image", 0)}, size)],
        [
            Node(
                *("checkpoint", "CheckpointLoaderSimple", {}, {"ckpt_name": CHECKPOINT["name"]}),
                size=(340, 110),
                properties={"models": [CHECKPOINT]},
            ),
            *(
                Node(key, "CLIPTextEncode", {"clip": ("checkpoint", 1)}, {"text": words}, title, text_size)
                for key, words, title in (
                    ("positive", "a detailed painting of a girl on a green hill, blue sky", "Prompt"),
                    ("negative", "blurry, watermark", "Negative prompt"),
                )
            ),
        ],
        [encoded("large", True, model, memory_budget=1.0)],
        [
            Node(
                "sampler",
                "KSampler",
                {
                    "model": ("checkpoint", 0),
                    "positive": ("positive", 0),
                    "negative": ("negative", 0),
                    "latent_image": ("encode", 0),
                },
                {**sampling, "scheduler": "karras", "denoise": 0.35},
                size=(300, 280),
            ),
            decoded("decode", "sampler", True, model, memory_budget=1.0),
        ],
        [
            Node(
                "saved",
                "SaveImage",
                {"images": ("decode", 0)},
                {"filename_prefix": "seamless_upscale"},
                size=(420, 480),
            )
        ],
    ]


def swap_vae() -> Columns:
    return [
        notes("swap_vae"),
        [source_image(), vae("vae", "VAE of the first model"), vae("second", "VAE of the second model")],
        [encoded("image")],
        [
            Node(
                *("swap", "SeamlessVAESwap"),
                {"samples": ("encode", 0), "from_vae": ("vae", 0), "to_vae": ("second", 0)},
            ),
            decoded("decode", "swap", vae_of=("second", 0)),
        ],
        [
            preview("between", "swap", 1, "The image in between"),
            preview("shown", "decode", title="Decoded with the second VAE"),
        ],
    ]


def posterior_grid() -> Columns:
    values = {"seed": 7, "control_after_generate": "fixed", "temperature": 100.0, "count": 9}
    return [
        notes("posterior_grid"),
        [source_image(), scaled(256, 256), vae()],
        [
            encoded("scaled"),
            Node("posterior", "SeamlessPosteriorPreview", {"posterior": ("encode", 1)}, size=(340, 300)),
        ],
        [
            Node("samples", "SeamlessVAESamplePosterior", {"posterior": ("encode", 1)}, values),
            decoded("decode", "samples"),
        ],
        [preview("shown", "decode", title="Nine samples", size=(480, 520))],
    ]


def inpaint_with_composite() -> Columns:
    area, hole = {"value": 0.0, "width": 768, "height": 768}, {"value": 1.0, "width": 288, "height": 256}
    place = {"x": 240, "y": 320, "operation": "add"}
    return [
        notes("inpaint_with_composite"),
        [source_image(), vae()],
        [
            Node("area", "SolidMask", values=area, title="Mask of the whole image"),
            Node("hole", "SolidMask", values=hole, title="Area to inpaint"),
            Node("mask", "MaskComposite", {"destination": ("area", 0), "source": ("hole", 0)}, place),
        ],
        [
            Node(
                *("encode", "SeamlessVAEInpaintEncode"),
                {"pixels": ("image", 0), "vae": ("vae", 0), "mask": ("mask", 0)},
                {"grow": 6, "feather": 8},
            ),
            Node(
                *("sampler", "LatentFlip", {"samples": ("encode", 0)}, {"flip_method": "y-axis: horizontally"}),
                title="Your KSampler goes here",
            ),
        ],
        [
            Node(
                *("composite", "SeamlessVAEInpaintComposite"),
                {"samples": ("sampler", 0), "vae": ("vae", 0), "original": ("image", 0), "mask": ("mask", 0)},
            ),
            preview("shown", "composite", size=(420, 460)),
        ],
    ]


def seamless_texture() -> Columns:
    below = {"direction": "down", "match_image_size": False, "spacing_width": 0, "spacing_color": "white"}
    stitch = "ImageStitch"
    return [
        notes("seamless_texture"),
        [source_image(), vae()],
        [
            scaled(384, 256),
            Node("flipped", "ImageFlip", {"image": ("scaled", 0)}, {"flip_method": "x-axis: vertically"}),
            Node("tile", stitch, {"image1": ("scaled", 0), "image2": ("flipped", 0)}, below, "The texture"),
        ],
        [encoded("tile", True, circular="y")],
        [
            decoded("decode", "encode", True, circular="y"),
            Node("twice", stitch, {"image1": ("decode", 0), "image2": ("decode", 0)}, below, "Below itself"),
        ],
        [preview("shown", "twice", title="Repeated", size=(330, 560))],
    ]


def compare_vaes() -> Columns:
    stitch = {"direction": "right", "match_image_size": True, "spacing_width": 8, "spacing_color": "white"}
    kinds = ("float32", "bfloat16", "float16")
    columns = [
        [
            Node(
                f"vae{i}", "SeamlessVAELoad", values={"vae_name": "demo", "dtype": kind}, title=f"VAE {i + 1}: {kind}"
            ),
            Node(
                *(f"round{i}", "SeamlessVAERoundTrip", {"pixels": ("scaled", 0), "vae": (f"vae{i}", 0)}),
                size=(300, 440),
            ),
        ]
        for i, kind in enumerate(kinds)
    ]
    joins = [
        Node(
            *(f"joined{i}", "ImageStitch", {"image1": left, "image2": (f"round{i}", 0)}, stitch),
            title=f"Beside VAE {i + 1}",
        )
        for i, left in enumerate((("scaled", 0), ("joined0", 0), ("joined1", 0)))
    ]
    return [
        notes("compare_vaes"),
        [source_image(), scaled(384, 384)],
        *columns,
        [*joins, preview("shown", "joined2", title="Original, VAE 1, VAE 2, VAE 3", size=(520, 210))],
    ]


def extract_vae() -> Columns:
    of_vae = {"vae": ("vae", 0)}
    return [
        notes("extract_vae"),
        [vae(title="Choose your checkpoint"), source_image()],
        [
            Node("inspect", "SeamlessVAEInspect", of_vae, size=(400, 370)),
            Node("save", "SeamlessVAESave", of_vae, {"format": "single_file", "filename_prefix": "vae/extracted"}),
        ],
        [Node("round", "SeamlessVAERoundTrip", {"pixels": ("image", 0), **of_vae}, size=(340, 460))],
    ]


def dataset_latents() -> Columns:
    return [
        notes("dataset_latents"),
        [
            Node(
                "load", "SeamlessLatentLoad", values={"folder": "demo", "count": 6, "control_after_generate": "fixed"}
            ),
            source_image(),
        ],
        [vae(), encoded("image")],
        [
            decoded("decode", "load"),
            Node("save", "SeamlessLatentSave", {"samples": ("encode", 1), "vae": ("vae", 0)}),
        ],
        [preview("shown", "decode", title="Six photographs", size=(420, 340))],
    ]


def float_exr() -> Columns:
    save = {"filename_prefix": "seamless", "format": "exr", "format.bit_depth": "32-bit float"}
    return [
        notes("float_exr"),
        [source_image(), vae()],
        [encoded("image")],
        [decoded("decode", "encode", clamp=False)],
        [
            Node(
                "saved",
                EXR_SAVER,
                {"images": ("decode", 0)},
                {**save, "format.input_color_space": "sRGB"},
                size=(400, 340),  # in Nodes 2.0 it grows with its preview
            ),
            preview("shown", "decode", title="As a screen shows it"),
        ],
    ]


WORKFLOWS: dict[str, tuple[Callable[[], Columns], bool]] = {
    each.__name__: (each, each is not tiled_upscale_with_sampler)
    for each in (
        *(encode_and_decode, tiled_upscale, tiled_upscale_with_sampler, swap_vae),
        *(posterior_grid, inpaint_with_composite, seamless_texture),
        *(compare_vaes, extract_vae, dataset_latents, float_exr),
    )
}


# What is seen of a workflow on its thumbnail.
SEEN: dict[str, tuple[str, ...]] = {
    "encode_and_decode": ("image vae", "encode", "round"),
    "tiled_upscale": ("decode", "saved"),
    "tiled_upscale_with_sampler": ("encode", "sampler", "decode"),
    "swap_vae": ("vae second", "swap", "shown"),
    "posterior_grid": ("posterior samples", "shown"),
    "inpaint_with_composite": ("image", "encode composite", "shown"),
    "seamless_texture": ("encode", "decode", "shown"),
    "compare_vaes": ("vae0 round0", "vae1 round1", "vae2 round2"),
    "extract_vae": ("vae save", "inspect"),
    "dataset_latents": ("load", "shown"),
    "float_exr": ("decode saved", "shown"),
}


def thumbnail(shot: Image.Image) -> Image.Image:
    """The graph on the template browser's format, as large as it fits."""
    shot = shot.copy()
    shot.thumbnail(THUMBNAIL, Image.Resampling.LANCZOS)
    page = Image.new("RGB", THUMBNAIL, shot.getpixel((2, 2)))  # type: ignore[arg-type]
    page.paste(shot, ((THUMBNAIL[0] - shot.width) // 2, (THUMBNAIL[1] - shot.height) // 2))
    return page


def write(stage: Stage, name: str, run: bool, shots: Path | None) -> None:
    make, runs = WORKFLOWS[name]
    stage.build(make(), roomy=True)
    saved = stage.saved()
    saved["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"seamless-vae/{name}"))
    saved["extra"] = {"ds": {"scale": 0.7, "offset": [60, 80]}}
    file = FOLDER / f"{name}.json"
    file.write_text(json.dumps(saved, ensure_ascii=False, indent=2) + "\n", encoding="utf-8", newline="\n")
    if not run and file.with_suffix(".jpg").exists():
        return
    if run and runs:
        stage.run()
    if shots is not None:
        shots.mkdir(parents=True, exist_ok=True)
        stage.shot().save(shots / f"{name}.png")
    stage.arrange()
    stage.focus(*SEEN[name])
    thumbnail(stage.shot()).save(file.with_suffix(".jpg"), quality=88)


def main() -> None:
    arguments = sys.argv[1:]
    names = [each for each in arguments if not each.startswith("--")]
    shots = next((Path(each.removeprefix("--shots=")) for each in arguments if each.startswith("--shots=")), None)
    with opened() as stage:
        stage.add_checkpoint(CHECKPOINT["name"])
        stage.front_end.load()
        for name in names or WORKFLOWS:
            write(stage, name, "--no-run" not in arguments, shots)


if __name__ == "__main__":
    main()
