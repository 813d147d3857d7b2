"""`seamless-vae encode`: images to a file of latents."""

from __future__ import annotations

import argparse

from PIL import Image

from ..errors import CheckpointError
from ..image import from_pil, open_image
from ..image_formats import load_formats
from .common import (
    add_command,
    add_config_arguments,
    add_model_arguments,
    add_sampling_arguments,
    encode_image,
    load_model,
    model_inputs,
    shape_text,
)
from .convert import OTHER_ENDINGS as NO_MODELS
from .convert import PICKLE_ENDINGS
from .latent_file import Latent, is_latent_file, write_latents
from .outputs import add_overwrite_argument, check_outputs, path_argument
from .say import say

OTHER_ENDINGS = {*NO_MODELS, *PICKLE_ENDINGS} - {".latent"}
EXAMPLES = """\
  seamless-vae encode photo.jpg -o photo.safetensors
  seamless-vae encode *.png -o latents.safetensors --vae sdxl_vae.safetensors
  seamless-vae encode photo.jpg -o photo.safetensors --fit crop --sample --seed 7

The file has raw latents (not scaled for a diffusion model) in `latent_tensor`, which ComfyUI's LoadLatent reads,
and the size of each image, so that decode gives back exactly the size that came in. Images whose latents have
different sizes are kept apart, in `latent_tensor.0`, `latent_tensor.1`, ...; transparency is kept as `alpha.0`, ...
"""


def add(subparsers) -> argparse.ArgumentParser:
    parser = add_command(
        subparsers, "encode", "images to latents", "Encode images to a safetensors file of latents.", EXAMPLES
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", type=path_argument, help="images of any mode and size")
    parser.add_argument(
        "-o", "--output", required=True, type=path_argument, metavar="FILE", help="where to write the latents"
    )
    add_overwrite_argument(parser)
    parser.add_argument(
        "--fit",
        choices=("pad", "crop", "error"),
        default="pad",
        help="for sides that are not multiples of the model's downscale factor: pad by reflection and cut again when "
        "decoding, crop to the centre, or refuse (default: pad)",
    )
    add_sampling_arguments(parser)
    add_model_arguments(parser)
    add_config_arguments(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    check_output(arguments)
    vae = load_model(arguments)
    config = vae.config
    latents = []
    for i, path in enumerate(arguments.images):
        image = from_pil(
            open_image(path), channels=config.in_channels, multiple=config.downscale_factor, fit=arguments.fit
        )
        z = encode_image(vae, image, arguments, f"{path.name} ({i + 1} of {len(arguments.images)})", i)
        alpha = image.alpha if config.out_channels < 4 else None
        latents.append(Latent(z, image.size, path.stem, alpha))
    write_latents(arguments.output, latents, overwrite=arguments.overwrite)
    for path, latent in zip(arguments.images, latents, strict=True):
        say(f"{path}: {shape_text(latent.z.shape)}")
    say(f"wrote {arguments.output}")
    return 0


def check_output(arguments: argparse.Namespace) -> None:
    """Raise CheckpointError for an output that is an input, an image, or there already."""
    output = arguments.output
    inputs = [*arguments.images, *model_inputs(arguments)]
    check_outputs([output], inputs, arguments.overwrite, is_latent_file)
    load_formats()
    if output.suffix.lower() in Image.EXTENSION:
        raise CheckpointError(f"{output} has the ending of an image. Latents need another, such as .safetensors.")
    if output.suffix.lower() in OTHER_ENDINGS:
        raise CheckpointError(
            f"{output}: {output.suffix} files are not written. Latents are safetensors; end the name in .safetensors "
            f"or .latent."
        )
