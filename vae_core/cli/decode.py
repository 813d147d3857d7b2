"""`seamless-vae decode`: a file of latents to images."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import CheckpointError
from ..image import to_pil, write_image
from .common import add_command, add_model_arguments, decode_latent, load_model
from .latent_file import Latent, read_latents

EXAMPLES = """\
  seamless-vae decode latents.safetensors -o image.png
  seamless-vae decode latents.safetensors -o images/           one PNG each, by the names they had
  seamless-vae decode latents.safetensors -o image.jpg         image-0.jpg, image-1.jpg, ... if there are several

Reads what encode writes, and what ComfyUI's SaveLatent writes. Latents are taken as raw: the model does not scale
them. Use the VAE that encoded them.
"""


def add(subparsers) -> argparse.ArgumentParser:
    parser = add_command(
        subparsers, "decode", "latents to images", "Decode a safetensors file of latents to images.", EXAMPLES
    )
    parser.add_argument("latents", metavar="LATENTS", type=Path, help="a file that encode wrote")
    parser.add_argument(
        "-o", "--output", required=True, metavar="IMAGE", help="an image (its ending is the format), or a folder"
    )
    add_model_arguments(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    latents = read_latents(arguments.latents)
    paths = output_paths(arguments.output, latents)
    vae = load_model(arguments)
    for i, (path, latent) in enumerate(zip(paths, latents, strict=True), start=1):
        decoded = decode_latent(vae, latent.z, arguments, f"{path.name} ({i} of {len(paths)})")
        height, width = latent.size or decoded.shape[2:]
        if height > decoded.shape[2] or width > decoded.shape[3]:
            raise CheckpointError(
                f"this VAE makes {decoded.shape[3]}x{decoded.shape[2]} pixels of a latent that came from an image of "
                f"{width}x{height}. Use the VAE that encoded it."
            )
        alpha = latent.alpha if decoded.shape[1] < 4 else None
        write_image(to_pil(decoded[:, :, :height, :width], alpha)[0], path)
    for path in paths:
        print(f"wrote {path}")
    return 0


def output_paths(output: str, latents: list[Latent]) -> list[Path]:
    """Where each image goes: the path itself, numbered, or a folder and the names that the images had."""
    path = Path(output)
    if path.is_dir() or output.endswith(("/", "\\")):
        names = [latent.name or f"image-{i}" for i, latent in enumerate(latents)]
        if len(set(names)) < len(names):
            names = [f"{name}-{i}" for i, name in enumerate(names)]
        return [path / f"{Path(name).name}.png" for name in names]
    if len(latents) == 1:
        return [path]
    return [path.with_stem(f"{path.stem}-{i}") for i in range(len(latents))]
