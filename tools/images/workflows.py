"""Writes `example_workflows/`: `python tools/images/workflows.py [NAME ...] [--no-run] [--shots=FOLDER]`.

Each workflow is built in the front end of ComfyUI 0.3.64, saved as that saves it, and run if it needs no model. Its
thumbnail is made from its result; with `--no-run` only new ones get a thumbnail, of the graph before a run. `stage.py`
says what is needed.
"""

# ruff: noqa: E501 - prose and JavaScript

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from stage import ROOT, Columns, Node, Stage, note, opened
from usual_nodes import decoded, encoded, preview, scaled, source_image, vae

FOLDER = ROOT / "example_workflows"
THUMBNAIL = (640, 400)
CHECKPOINT = {
    "name": "v1-5-pruned-emaonly-fp16.safetensors",
    "url": "https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/"
    "v1-5-pruned-emaonly-fp16.safetensors",
    "directory": "checkpoints",
}
ANY_IMAGE = "`example.png` comes with every ComfyUI; any image of yours will do."
DEMO = "`demo` is a small VAE that comes with the pack, so that this runs without a download."


def encode_and_decode() -> Columns:
    text = (
        "## Encode and decode\n\nAn image is encoded to a latent and decoded again, and **Round Trip** shows what the VAE "
        f"preserves: drag the slider, switch to the error.\n\n- {DEMO}\n- {ANY_IMAGE}\n- The VAE also works in the core "
        "nodes, as the one at the bottom shows, and a VAE from *Load VAE* or *Load Checkpoint* works in the nodes here."
    )
    return [
        [note("note", text, (300, 300)), source_image(), vae()],
        [encoded("image"), Node("inspect", "SeamlessVAEInspect", {"vae": ("vae", 0), "samples": ("encode", 0)})],
        [
            decoded("decode", "encode"),
            Node("core", "VAEDecode", {"samples": ("encode", 0), "vae": ("vae", 0)}, title="VAE Decode of the core"),
            Node("round", "SeamlessVAERoundTrip", {"pixels": ("image", 0), "vae": ("vae", 0)}, size=(340, 460)),
        ],
        [preview("shown", "decode"), preview("core_shown", "core", title="The same, by the core node")],
    ]


def tiled_upscale() -> Columns:
    text = (
        "## A large image in little memory\n\nThe image is enlarged to 2048x2048, encoded and decoded with a "
        "`memory_budget` of 0.5 GiB. In the mode *exact* the result is the same as from the untiled nodes: no seams, no "
        "colour shift, with any tile size.\n\nThe panels in the tiled nodes show the plan: strips, memory and "
        f"cost.\n\n- {DEMO} Replace it with your own.\n- {ANY_IMAGE}\n- Replace *Upscale Image* with an upscale model "
        "to add detail."
    )
    size = {"upscale_method": "lanczos", "width": 2048, "height": 2048, "crop": "disabled"}
    return [
        [note("note", text, (300, 360)), source_image()],
        [Node("large", "ImageScale", {"image": ("image", 0)}, size), vae()],
        [encoded("large", True, memory_budget=0.5)],
        [decoded("decode", "encode", True, memory_budget=0.5)],
        [Node("saved", "SaveImage", {"images": ("decode", 0)}, {"filename_prefix": "seamless_2048"}, size=(420, 480))],
    ]


def tiled_upscale_with_sampler() -> Columns:
    text = (
        "## Upscale with a sampler in between\n\nEnlarge an image, encode it, let the sampler add detail, "
        "and decode it. Both VAE nodes use the checkpoint's own VAE, without a copy of its weights, within a memory budget "
        "of 1 GiB.\n\n- Choose your checkpoint; this is set up for Stable Diffusion 1.5.\n- "
        "`denoise` 0.35 keeps the image; higher values change more.\n- " + ANY_IMAGE
    )
    size = {"upscale_method": "lanczos", "width": 1536, "height": 1536, "crop": "disabled"}
    model = ("checkpoint", 2)
    sampling = {"seed": 1, "control_after_generate": "fixed", "steps": 20, "cfg": 6.0, "sampler_name": "dpmpp_2m"}
    text_size = (340, 120)
    return [
        [note("note", text, (300, 320)), source_image()],
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
            Node("large", "ImageScale", {"image": ("image", 0)}, size),
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
    text = (
        "## Another VAE in the middle of a workflow\n\nOne model cannot read the latents of another. **Swap** decodes a "
        "latent with its own VAE and encodes the image for the second model: SDXL for the composition, FLUX.1 for the "
        "finish.\n\n- Both loaders are set to `demo`, so that this runs without a "
        "download. Choose the VAEs of your models.\n- Put your samplers before and after *Swap*.\n- " + ANY_IMAGE
    )
    return [
        [note("note", text, (300, 340)), source_image()],
        [vae("vae", "VAE of the first model"), vae("second", "VAE of the second model")],
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
    text = (
        "## Where the encoder is certain\n\nAn encoder gives a distribution, not one latent. **Posterior Preview** shows "
        "its mean and its standard deviation; **Sample Posterior** takes nine samples from it, which are decoded to nine "
        "images.\n\n- `temperature` multiplies the standard deviation. The VAEs of diffusion models have very small "
        f"variances, so 1 shows nothing; at 100 you see which details the latent leaves undetermined.\n- {DEMO}\n- {ANY_IMAGE}"
    )
    values = {"seed": 7, "control_after_generate": "fixed", "temperature": 100.0, "count": 9}
    return [
        [note("note", text, (300, 340)), source_image()],
        [scaled(256, 256), vae()],
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
    text = (
        "## Inpaint, and keep the rest unchanged\n\nA VAE changes every pixel a little, even where nothing was inpainted. "
        "**Inpaint Composite** decodes the latent and pastes it into the original with the mask: where the mask is 0, the "
        "image is unchanged, bit for bit.\n\n- *Flip Latent* is a placeholder for your KSampler, so that this runs without "
        "a model. Replace it, and use the VAE of your checkpoint.\n- The mask is made of two rectangles here. Paint "
        "your own: right-click on *Load Image*, *Open in MaskEditor*, and connect its MASK.\n"
        "- " + ANY_IMAGE
    )
    area, hole = {"value": 0.0, "width": 768, "height": 768}, {"value": 1.0, "width": 288, "height": 256}
    place = {"x": 240, "y": 320, "operation": "add"}
    return [
        [note("note", text, (300, 390)), source_image()],
        [
            Node("area", "SolidMask", values=area, title="Mask of the whole image"),
            Node("hole", "SolidMask", values=hole, title="Area to inpaint"),
            Node("mask", "MaskComposite", {"destination": ("area", 0), "source": ("hole", 0)}, place),
            vae(),
        ],
        [
            Node(
                *("encode", "SeamlessVAEInpaintEncode"),
                {"pixels": ("image", 0), "vae": ("vae", 0), "mask": ("mask", 0)},
                {"grow": 6, "feather": 8},
            ),
            Node(
                *("sampler", "LatentFlip", {"samples": ("encode", 0)}, {"flip_method": "y-axis: horizontally"}),
                title="Flip Latent: replace with your KSampler",
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
    text = (
        "## A texture that repeats\n\nA VAE pads the edges of an image with zeros, so a seamless texture shows a line "
        "there. With `circular` it sees the opposite edge instead. The image is mirrored here, so that it repeats "
        "downwards, is encoded and decoded with `circular` *y*, and put below itself to show the joint.\n\n- With the "
        "VAE of your model, choose *both* for textures that repeat in both directions. The demo VAE supports *y* only, "
        "because it stores the level of the colours at the right edge of its latent.\n- A sampler goes between the two "
        f"tiled nodes; its model must use circular padding too.\n- {ANY_IMAGE}"
    )
    below = {"direction": "down", "match_image_size": False, "spacing_width": 0, "spacing_color": "white"}
    stitch = "ImageStitch"
    return [
        [note("note", text, (300, 390)), source_image()],
        [
            scaled(384, 256),
            Node("flipped", "ImageFlip", {"image": ("scaled", 0)}, {"flip_method": "x-axis: vertically"}),
            Node("tile", stitch, {"image1": ("scaled", 0), "image2": ("flipped", 0)}, below, "The texture"),
            vae(),
        ],
        [encoded("tile", True, circular="y")],
        [
            decoded("decode", "encode", True, circular="y"),
            Node("twice", stitch, {"image1": ("decode", 0), "image2": ("decode", 0)}, below, "Below itself"),
        ],
        [preview("shown", "twice", title="Repeated", size=(330, 560))],
    ]


def compare_vaes() -> Columns:
    text = (
        "## Several VAEs on one image\n\nEach **Round Trip** encodes and decodes the same image with the VAE above it, and "
        "shows PSNR and SSIM below: higher is better. Drag the slider over a detail, or switch to the error.\n\n- All "
        "loaders are set to `demo` in three precisions, so that this runs without a download. Choose your VAEs, and copy a "
        f"column for one more.\n- At the right the results are side by side, the original first.\n- {ANY_IMAGE}"
    )
    stitch = {"direction": "right", "match_image_size": True, "spacing_width": 8, "spacing_color": "white"}
    kinds = ("float32", "bfloat16", "float16")
    columns = [
        [
            Node(
                f"vae{i}", "SeamlessVAELoad", values={"vae_name": "demo", "dtype": kind}, title=f"VAE {i + 1}: {kind}"
            ),
            Node(
                *(f"round{i}", "SeamlessVAERoundTrip", {"pixels": ("image", 0), "vae": (f"vae{i}", 0)}),
                size=(340, 460),
            ),
        ]
        for i, kind in enumerate(kinds)
    ]
    joins = [
        Node(
            *(f"joined{i}", "ImageStitch", {"image1": left, "image2": (f"round{i}", 0)}, stitch),
            title=f"Beside VAE {i + 1}",
        )
        for i, left in enumerate((("image", 0), ("joined0", 0), ("joined1", 0)))
    ]
    return [
        [note("note", text, (300, 330)), source_image()],
        *columns,
        joins,
        [preview("shown", "joined2", title="Original, VAE 1, VAE 2, VAE 3", size=(620, 260))],
    ]


def extract_vae() -> Columns:
    text = (
        "## The VAE inside a checkpoint\n\nA checkpoint has a VAE baked in. **Load** reads it alone, without the rest of the "
        "file; **Inspect** says what it is, and **Save** writes it to `output/vae` as one file that ComfyUI, A1111 and "
        "diffusers read.\n\n- Choose your checkpoint in *Load*: entries that end in `[checkpoint]`. It is set to `demo`, so "
        "that this runs without a download.\n- *Round Trip* shows what the VAE preserves of an image.\n- Set `format` to "
        f"*diffusers* for a folder, and `dtype` to halve the file.\n- {ANY_IMAGE}"
    )
    of_vae = {"vae": ("vae", 0)}
    return [
        [note("note", text, (300, 360)), source_image()],
        [vae(title="Choose your checkpoint"), Node("inspect", "SeamlessVAEInspect", of_vae, size=(400, 330))],
        [
            Node("save", "SeamlessVAESave", of_vae, {"format": "single_file", "filename_prefix": "vae/extracted"}),
            Node("round", "SeamlessVAERoundTrip", {"pixels": ("image", 0), **of_vae}, size=(340, 460)),
        ],
    ]


def dataset_latents() -> Columns:
    text = (
        "## Latents of a dataset\n\n**Latent Load** reads latents that `seamless-vae encode-dataset`, *Latent Save* or "
        "kohya's trainers wrote, as raw latents like all others here, and says how their scale was converted. Below, an image "
        "is encoded and its posterior saved as a collection of one, in `output/latents`.\n\n- `demo` is a collection of six "
        "photographs that comes with the pack. Yours appear in the list once they are in ComfyUI's `input` or `output` folder; "
        "press *R*.\n- To go through a collection, set `count` to 1 and connect an *Int* node, set to increment, to `start`.\n- Decode with the VAE that the "
        f"latents were encoded with.\n- {ANY_IMAGE}"
    )
    return [
        [note("note", text, (300, 390)), source_image()],
        [
            Node(
                "load", "SeamlessLatentLoad", values={"folder": "demo", "count": 6, "control_after_generate": "fixed"}
            ),
            vae(),
        ],
        [
            decoded("decode", "load"),
            encoded("image"),
        ],
        [
            preview("shown", "decode", title="Six photographs", size=(420, 420)),
            Node("save", "SeamlessLatentSave", {"samples": ("encode", 1), "vae": ("vae", 0)}),
        ],
    ]


WORKFLOWS: dict[str, tuple[Callable[[], Columns], bool]] = {
    each.__name__: (each, each is not tiled_upscale_with_sampler)
    for each in (
        *(encode_and_decode, tiled_upscale, tiled_upscale_with_sampler, swap_vae),
        *(posterior_grid, inpaint_with_composite, seamless_texture),
        *(compare_vaes, extract_vae, dataset_latents),
    )
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
    stage.arrange()
    shot = stage.shot()
    if shots is not None:
        shot.save(shots / f"{name}.png")
    thumbnail(shot).save(file.with_suffix(".jpg"), quality=88)


def main() -> None:
    arguments = sys.argv[1:]
    names = [each for each in arguments if not each.startswith("--")]
    shots = next((Path(each.removeprefix("--shots=")) for each in arguments if each.startswith("--shots=")), None)
    with opened(scale=1.0) as stage:
        checkpoints = stage.comfy.folder / "models" / "checkpoints"
        (checkpoints / CHECKPOINT["name"]).touch()  # so that the list offers it; it is not read
        stage.front_end.load()
        for name in names or WORKFLOWS:
            write(stage, name, "--no-run" not in arguments, shots)


if __name__ == "__main__":
    main()
