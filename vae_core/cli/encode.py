"""`seamless-vae encode`: images to a file of latents."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..image import from_pil, open_image
from .common import (
    add_command,
    add_model_arguments,
    add_sampling_arguments,
    encode_image,
    load_model,
    shape_text,
)
from .latent_file import Latent, write_latents

EXAMPLES = """\
  seamless-vae encode photo.jpg -o photo.safetensors
  seamless-vae encode *.png -o latents.safetensors --vae sdxl_vae.safetensors
  seamless-vae encode photo.jpg -o photo.safetensors --fit crop --sample --seed 7

The file holds raw latents (not scaled for a diffusion model) in `latent_tensor`, which ComfyUI's LoadLatent reads,
and the size of each image, so that decode gives back exactly the size that came in. Images whose latents have
different sizes are kept apart, in `latent_tensor.0`, `latent_tensor.1`, ...; transparency is kept as `alpha.0`, ...
"""


def add(subparsers) -> argparse.ArgumentParser:
    parser = add_command(
        subparsers, "encode", "images to latents", "Encode images to a safetensors file of latents.", EXAMPLES
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", type=Path, help="images of any mode and size")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FILE", help="where to write the latents")
    parser.add_argument(
        "--fit",
        choices=("pad", "crop", "error"),
        default="pad",
        help="for sides that are no multiple of the model's ratio: pad by reflection and cut again when decoding, "
        "crop to the centre, or refuse (default: pad)",
    )
    add_sampling_arguments(parser)
    add_model_arguments(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    vae = load_model(arguments)
    config = vae.config
    latents = []
    for i, path in enumerate(arguments.images):
        picture = from_pil(
            open_image(path), channels=config.in_channels, multiple=config.spatial_ratio, fit=arguments.fit
        )
        z = encode_image(vae, picture, arguments, f"{path.name} ({i + 1} of {len(arguments.images)})", i)
        alpha = picture.alpha if config.out_channels < 4 else None
        latents.append(Latent(z, picture.size, path.stem, alpha))
    write_latents(arguments.output, latents)
    for path, latent in zip(arguments.images, latents, strict=True):
        print(f"{path}: {shape_text(latent.z.shape)}")
    print(f"wrote {arguments.output}")
    return 0
