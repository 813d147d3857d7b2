"""What several subcommands share: their arguments, and running the model on one picture."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from ..autoencoder_kl import AutoencoderKL
from ..image import Picture
from ..loading import load_vae

DEMO = Path(__file__).resolve().parents[1] / "demo"
DEMO_PHOTOGRAPH = DEMO / "chelsea.png"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Item = TypeVar("Item")


def add_command(subparsers: Any, name: str, summary: str, description: str, examples: str) -> argparse.ArgumentParser:
    """A subcommand whose help ends with examples."""
    return subparsers.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The options by which a subcommand chooses its VAE and how it runs."""
    group = parser.add_argument_group("the model")
    group.add_argument(
        "--vae",
        metavar="PATH",
        help="a VAE in any format: a safetensors, ckpt or pt file, a whole checkpoint, a diffusers folder "
        "(default: the small one that is bundled)",
    )
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps, ... (default: auto)")
    group.add_argument("--dtype", choices=DTYPES, default="float32", help="precision to work in (default: %(default)s)")
    group.add_argument("--tiled", action="store_true", help="work in tiles, for pictures too large for the memory")


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """The options by which z is taken from the posterior."""
    group = parser.add_argument_group("the latent")
    group.add_argument("--sample", action="store_true", help="draw the latent at random instead of taking the mean")
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="for --sample; picture i is drawn with seed N + i (default: 0)"
    )


def load_model(arguments: argparse.Namespace) -> AutoencoderKL:
    """The VAE that the arguments name, on its device, ready to run."""
    device = pick_device() if arguments.device == "auto" else arguments.device
    vae = load_vae(arguments.vae or DEMO, dtype=DTYPES[arguments.dtype], device=device)
    if arguments.tiled:
        vae.enable_tiling()
    return vae.eval()


def pick_device() -> str:
    """The accelerator, if there is one."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


@torch.no_grad()
def encode_picture(vae: AutoencoderKL, picture: Picture, seed: int | None = None) -> Tensor:
    """Raw z of a picture, [B, C, h, w] in float32 on the CPU: the posterior's mode, or a draw if there is a seed."""
    posterior = vae.encode(picture.pixels.to(vae.device, vae.dtype)).latent_dist
    z = posterior.mode() if seed is None else posterior.sample(torch.Generator().manual_seed(seed))
    return z.float().cpu()


@torch.no_grad()
def decode_latent(vae: AutoencoderKL, z: Tensor) -> Tensor:
    """Pixels of raw z, [B, C, H, W] in about [-1, 1], in float32 on the CPU."""
    return vae.decode(z.to(vae.device, vae.dtype)).sample.float().cpu()


def progress(items: Sequence[Item], what: str) -> Iterable[Item]:
    """The items, with a progress bar on stderr if there are several and someone to see it."""
    return tqdm(items, desc=what, unit="picture", disable=True if len(items) < 2 else None)


def shape_text(shape: Sequence[int]) -> str:
    """1x16x37x56."""
    return "x".join(str(side) for side in shape)
