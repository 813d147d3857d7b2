"""`seamless-vae roundtrip`: how well does a VAE keep an image?"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..errors import ImageError
from ..image import BYTE_MAX, FittedImage, from_pil, open_image, to_numpy, to_pil, write_image
from ..metrics import psnr, ssim
from .common import (
    DEMO_PHOTOGRAPH,
    add_command,
    add_model_arguments,
    add_sampling_arguments,
    decode_latent,
    encode_image,
    load_model,
    model_inputs,
    shape_text,
)
from .jax_model import JaxModel
from .outputs import add_overwrite_argument, check_outputs, path_argument
from .say import say

CAPTION_HEIGHT = 28
GAP = 8
EXAMPLES = """\
  seamless-vae roundtrip                          the bundled photograph through the bundled VAE
  seamless-vae roundtrip photo.jpg --out results
  seamless-vae roundtrip photo.jpg --vae sdxl_vae.safetensors --sample --seed 7
  seamless-vae roundtrip --backend jax            the same in JAX (extra: flax)
"""


def add(subparsers) -> argparse.ArgumentParser:
    parser = add_command(
        subparsers,
        "roundtrip",
        "encode and decode an image, and compare",
        "Encode an image, decode it again, and say how much of it is kept: PSNR in dB, and SSIM, at most 1; more is\n"
        "better. Writes NAME-reconstruction.png, and NAME-roundtrip.png with the original, the reconstruction and the\n"
        "amplified error side by side. Images of any size: the padding that the model needs is taken off again.",
        EXAMPLES,
    )
    parser.add_argument(
        "image", nargs="?", type=path_argument, metavar="IMAGE", help="an image (default: the bundled photograph)"
    )
    add_overwrite_argument(parser)
    parser.add_argument(
        "--out", type=path_argument, default=Path("output"), metavar="DIR", help="where to write (default: output)"
    )
    parser.add_argument(
        "--amplify", type=amplification, default=5.0, metavar="X", help="how much the error is amplified (default: 5)"
    )
    add_sampling_arguments(parser)
    add_model_arguments(parser)
    parser.add_argument(
        "--backend",
        choices=("torch", "jax"),
        default="torch",
        help="what runs the model; jax needs the extra `flax`, with other random numbers for --sample (default: torch)",
    )
    return parser


class TorchModel:
    """The VAE on the streaming engine. Like JaxModel, it takes and gives tensors on the CPU, in float32."""

    compiling = 0.0

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._vae = load_model(arguments)
        self._arguments = arguments
        self.config = self._vae.config

    def encode(self, image: FittedImage) -> Tensor:
        return encode_image(self._vae, image, self._arguments, "encoding")

    def decode(self, z: Tensor) -> Tensor:
        return decode_latent(self._vae, z, self._arguments, "decoding")


def amplification(text: str) -> float:
    """How much an error is amplified. For argparse."""
    value = float(text)
    if not 0 < value <= BYTE_MAX:  # by which the smallest error is white
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most {BYTE_MAX}")
    return value


def run(arguments: argparse.Namespace) -> int:
    path = arguments.image or DEMO_PHOTOGRAPH
    reconstruction_path = arguments.out / f"{path.stem}-reconstruction.png"
    comparison_path = arguments.out / f"{path.stem}-roundtrip.png"
    check_outputs([reconstruction_path, comparison_path], [path, *model_inputs(arguments)], arguments.overwrite)
    opened = open_image(path)
    vae = JaxModel(arguments) if arguments.backend == "jax" else TorchModel(arguments)
    image = from_pil(opened, channels=vae.config.in_channels, multiple=vae.config.downscale_factor)

    start = time.perf_counter()
    z = vae.encode(image)
    encoding = time.perf_counter() - start - vae.compiling
    compiling = vae.compiling
    start = time.perf_counter()
    decoded = image.restore(vae.decode(z))
    decoding = time.perf_counter() - start - (vae.compiling - compiling)

    reconstruction = to_pil(decoded, image.alpha if decoded.shape[1] < 4 else None)[0]
    # Bytes are compared with bytes, in colours that model and image share.
    original, kept = (to_numpy(pixels)[0] for pixels in (image.restore(image.pixels), decoded))
    if original.shape != kept.shape:
        raise ImageError(
            f"this VAE takes {original.shape[-1]} channels and gives {kept.shape[-1]}, which cannot be compared. "
            f"Use encode and decode."
        )
    scores = [torch.from_numpy(values.astype(np.float64)).movedim(-1, 0)[None] for values in (kept, original)]

    write_image(reconstruction, reconstruction_path, overwrite=arguments.overwrite)
    sheet = side_by_side(original, kept, arguments.amplify)
    write_image(sheet, comparison_path, overwrite=arguments.overwrite)

    height, width = image.size
    bottleneck = original.size / z.numel()
    try:
        similarity = f"{ssim(*scores, data_range=255).item():.4f}"
    except ImageError:
        similarity = "none: the image is too small"
    say(f"image         {path.name}, {width}x{height}")
    say(f"latent          {shape_text(z.shape)}, {bottleneck:.1f} times fewer numbers")
    say(f"PSNR            {psnr(*scores, data_range=255).item():.2f} dB")
    say(f"SSIM            {similarity}")
    before = f" (and {vae.compiling:.2f} s to compile)" if vae.compiling else ""
    say(f"time            {encoding:.2f} s to encode, {decoding:.2f} s to decode{before}")
    say(f"reconstruction  {reconstruction_path}")
    say(f"side by side    {comparison_path}")
    return 0


def side_by_side(original: np.ndarray, kept: np.ndarray, amplify: float) -> Image.Image:
    """Original, reconstruction and amplified error, each [H, W, C] of bytes, under their captions."""
    error = np.abs(original[..., :3].astype(np.float32) - kept[..., :3]) * amplify
    panels = [original[..., :3], kept[..., :3], error.clip(0, 255).astype(np.uint8)]
    captions = ["original", "reconstruction", f"error x{amplify:g}"]
    height, width = original.shape[:2]
    sheet = Image.new("RGB", (3 * width + 2 * GAP, CAPTION_HEIGHT + height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (panel, caption) in enumerate(zip(panels, captions, strict=True)):
        left = i * (width + GAP)
        grey = panel[..., 0] if panel.shape[-1] == 1 else panel
        sheet.paste(Image.fromarray(grey).convert("RGB"), (left, CAPTION_HEIGHT))
        draw.text((left + 4, 6), caption, fill="black", font=ImageFont.load_default())
    return sheet
