"""`seamless-vae decode`: a file of latents to images."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ..errors import CheckpointError, ImageError, in_one_line
from ..file_names import safe_path
from ..image import check_writable, to_pil, write_image
from .common import add_command, add_config_arguments, add_model_arguments, decode_latent, load_model, model_inputs
from .latent_file import Latent, is_packed, raw_latent, read_latents
from .outputs import add_overwrite_argument, check_outputs, path_argument, unlike
from .say import complain, say

EXAMPLES = """\
  seamless-vae decode latents.safetensors -o image.png
  seamless-vae decode latents.safetensors -o images/           one PNG each, under their own names
  seamless-vae decode latents.safetensors -o image.jpg         image-0.jpg, image-1.jpg, ... if there are several
  seamless-vae decode pipeline.safetensors --scaled -o image.png --vae sdxl_vae.safetensors --family sdxl

Reads what encode writes, ComfyUI's .latent, diffusers' `latents` and kohya's .npz. Latents are taken as raw where the
file does not say otherwise; --scaled takes them as a diffusion model's. Use the VAE that encoded them.
"""


def add(subparsers) -> argparse.ArgumentParser:
    parser = add_command(subparsers, "decode", "latents to images", "Decode a file of latents to images.", EXAMPLES)
    parser.add_argument("latents", metavar="LATENTS", type=path_argument, help="a file of latents")
    parser.add_argument(
        "-o", "--output", required=True, metavar="IMAGE", help="an image (its ending is the format), or a folder"
    )
    add_overwrite_argument(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--scaled",
        dest="form",
        action="store_const",
        const="scaled",
        help="the latents are a diffusion model's, scaled and shifted, as diffusers' pipelines give them",
    )
    form.add_argument(
        "--raw",
        dest="form",
        action="store_const",
        const="raw",
        help="they are raw, whatever the file says; FLUX.2's packed ones are unpacked and not scaled",
    )
    add_model_arguments(parser)
    add_config_arguments(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    path_of(arguments.output)
    latents = read_latents(arguments.latents)
    paths = output_paths(arguments.output, latents)
    inputs = [arguments.latents, *model_inputs(arguments)]
    check_outputs(paths, inputs, arguments.overwrite)
    vae = load_model(arguments)
    if arguments.form is None and latents[0].form == "unknown" and not is_packed(latents[0], vae):
        complain("seamless-vae: the latents are taken as raw; pass --scaled if a pipeline made them")
    samples = [raw_latent(latent, vae, arguments.form) for latent in latents]
    channels = vae.config.out_channels
    for path, latent in zip(paths, latents, strict=True):  # before the first is decoded
        alpha = (
            torch.ones(1, 1, 1, dtype=torch.float32, device="cpu")
            if latent.alpha is not None and channels < 4
            else None
        )
        check_writable(to_pil(torch.zeros(1, channels, 1, 1, dtype=torch.float32, device="cpu"), alpha)[0], path)
    for i, (path, latent, z) in enumerate(zip(paths, latents, samples, strict=True), start=1):
        decoded = decode_latent(vae, z, arguments, f"{path.name} ({i} of {len(paths)})")
        height, width = latent.size or decoded.shape[2:]
        if height > decoded.shape[2] or width > decoded.shape[3]:
            raise CheckpointError(
                f"this VAE makes {decoded.shape[3]}x{decoded.shape[2]} pixels of a latent that came from an image of "
                f"{width}x{height}. Use the VAE that encoded it."
            )
        alpha = latent.alpha if decoded.shape[1] < 4 else None
        write_image(to_pil(decoded[:, :, :height, :width], alpha)[0], path, overwrite=arguments.overwrite)
    for path in paths:
        say(f"wrote {path}")
    return 0


def path_of(text: str) -> Path:
    """An output of the command line. Raises ImageError if it is empty or has characters that no name has."""
    try:
        return path_argument(text)
    except argparse.ArgumentTypeError as error:
        raise ImageError(f"cannot write {text!r}: {in_one_line(error)}. Give an image or a folder.") from None


def output_paths(output: str, latents: list[Latent]) -> list[Path]:
    """Where each image goes: the path itself, numbered, or a folder and the names that the images had."""
    path = Path(output)
    if path.is_dir() or output.endswith(("/", "\\")):
        stems = [safe_path(latent.name or "").rpartition("/")[2] for latent in latents]
        stems = unlike([stem or f"image-{i}" for i, stem in enumerate(stems)])
        return [path / f"{stem}.png" for stem in stems]
    if len(latents) == 1:
        return [path]
    return [path.with_stem(f"{path.stem}-{i}") for i in range(len(latents))]
