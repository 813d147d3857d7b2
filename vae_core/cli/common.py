"""What several subcommands share: their arguments, and running the model on one image."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..autoencoder_kl import AutoencoderKL
from ..image import FittedImage
from ..loading import load_vae
from ..streaming import decode, encode

DEMO = Path(__file__).resolve().parents[1] / "demo"
DEMO_PHOTOGRAPH = DEMO / "chelsea.png"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
GIGABYTE = 1e9


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
    group.add_argument(
        "--memory",
        type=float,
        metavar="GB",
        help="working memory to keep to; more goes to a temporary file, the result is the same (default: what is free)",
    )


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """The options by which z is taken from the posterior."""
    group = parser.add_argument_group("the latent")
    group.add_argument("--sample", action="store_true", help="draw the latent at random instead of taking the mean")
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="for --sample; image i is drawn with seed N + i (default: 0)"
    )


def load_model(arguments: argparse.Namespace) -> AutoencoderKL:
    """The VAE that the arguments name, on its device, ready to run."""
    device = pick_device() if arguments.device == "auto" else arguments.device
    return load_vae(arguments.vae or DEMO, dtype=DTYPES[arguments.dtype], device=device)


def pick_device() -> str:
    """The accelerator, if there is one."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def encode_image(
    vae: AutoencoderKL, picture: FittedImage, arguments: argparse.Namespace, what: str, i: int = 0
) -> Tensor:
    """Raw z of an image, [1, C, h, w] in float32 on the CPU: the posterior's mode, or a draw if that is asked for.

    Args:
        what: for the progress bar.
        i: number of the image in its batch, which is added to the seed.
    """
    with progress_bar(what) as progress:
        pixels = picture.pixels.to(vae.device, vae.dtype)
        posterior = encode(vae, pixels, memory_budget=memory_budget(arguments), progress=progress)
    generator = torch.Generator().manual_seed(arguments.seed + i)
    return (posterior.sample(generator) if arguments.sample else posterior.mode()).float().cpu()


def decode_latent(vae: AutoencoderKL, z: Tensor, arguments: argparse.Namespace, what: str) -> Tensor:
    """Pixels of raw z, [1, C, H, W] in about [-1, 1], in float32 on the CPU."""
    with progress_bar(what) as progress:
        z = z.to(vae.device, vae.dtype)
        return decode(vae, z, memory_budget=memory_budget(arguments), progress=progress).float().cpu()


def memory_budget(arguments: argparse.Namespace) -> int | None:
    """Bytes that --memory allows; None if it was not given."""
    return None if arguments.memory is None else int(arguments.memory * GIGABYTE)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A function that is told (done, total), and shows a bar if it takes over a second and someone is there to see."""
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    with tqdm(desc=what, total=1, delay=1, leave=False, disable=None, bar_format=form) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


def shape_text(shape: Sequence[int]) -> str:
    """1x16x37x56."""
    return "x".join(str(side) for side in shape)
