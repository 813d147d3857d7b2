"""`seamless-vae decode-dataset`: a collection of latents back to images, and what they kept."""

from __future__ import annotations

import argparse
import math

from ..datasets.decode import decode_dataset
from .common import add_command, add_model_arguments, load_model, memory_budget
from .outputs import add_overwrite_argument
from .say import say

EXAMPLES = """\
  seamless-vae decode-dataset latents --out images --vae sdxl_vae.safetensors
  seamless-vae decode-dataset latents --out images --vae sdxl_vae.safetensors --limit 10

The table has the PSNR of each image against its source, resized and cropped as it was encoded, where that is still
there.
"""


def add(subparsers) -> argparse.ArgumentParser:
    parser = add_command(
        subparsers,
        "decode-dataset",
        "a collection of latents to images",
        "Decode a collection that encode-dataset wrote to PNG files, and measure them.",
        EXAMPLES,
    )
    parser.add_argument("collection", metavar="DIR", help="a folder that encode-dataset wrote")
    parser.add_argument("--out", required=True, metavar="IMAGES", help="a folder for the images")
    parser.add_argument("--limit", type=int, metavar="N", help="decode so many images (default: all)")
    parser.add_argument("--no-compare", action="store_true", help="do not read the source to measure the PSNR")
    add_overwrite_argument(parser)
    add_model_arguments(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    vae = load_model(arguments)
    count = 0
    measured = []
    for image in decode_dataset(
        arguments.collection,
        arguments.out,
        vae,
        limit=arguments.limit,
        memory_budget=memory_budget(arguments),
        compare=not arguments.no_compare,
        overwrite=arguments.overwrite,
    ):
        say(f"{'' if image.psnr is None else f'{image.psnr:.2f} dB':>10}  {image.key}")
        count += 1
        if image.psnr is not None:
            measured.append(image.psnr)
    if measured:
        finite = [value for value in measured if math.isfinite(value)]
        mean = sum(finite) / len(finite) if finite else math.inf
        say(f"{mean:7.2f} dB  mean of {len(measured)}, from {min(measured):.2f} to {max(measured):.2f} dB")
    say(f"wrote {count} images to {arguments.out}")
    return 0
