"""What several subcommands share: their arguments, and running the model on one image."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..autoencoder_kl import AutoencoderKL
from ..checkpoints.families import FAMILIES, Family
from ..config import AutoencoderKLConfig
from ..errors import ConfigError, MemoryBudgetError
from ..image import FittedImage
from ..loading import load_vae
from ..posterior import MAX_SEED, seeded
from ..running import decode, encode
from ..streaming import Progress, ProgressCallback
from ..streaming.devices import accelerators, why_unusable
from .outputs import name_argument, path_argument

DEMO = Path(__file__).resolve().parents[1] / "demo"
DEMO_PHOTOGRAPH = DEMO / "chelsea.png"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
GIGABYTE = 1e9
MOST_GIGABYTES = 1e9


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
        type=name_argument,
        metavar="PATH",
        help="a VAE in any format: a safetensors, ckpt or pt file, a whole checkpoint, a diffusers folder "
        "(default: the small one that is bundled). Its files are mapped, not copied: do not change them while it runs",
    )
    add_variant_argument(group)
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps, ... (default: auto)")
    group.add_argument("--dtype", choices=DTYPES, default="float32", help="precision to work in (default: %(default)s)")
    group.add_argument(
        "--memory",
        type=float,
        metavar="GB",
        help="working memory to keep to; what needs more is offloaded to CPU memory or disk, the result is the same "
        "(default: what is free)",
    )


def add_variant_argument(parser: Any) -> None:
    """The option by which one of several variants of a folder's weights is chosen."""
    parser.add_argument(
        "--variant",
        type=name_argument,
        metavar="NAME",
        help="which weights of a folder, such as fp16, if it has several",
    )


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """The options by which a user says what a file does not say of its VAE."""
    group = parser.add_argument_group("what the file does not say")
    group.add_argument(
        "--family",
        type=family,
        metavar="NAME",
        help=f"the family that the VAE belongs to: {', '.join(map(short, FAMILIES))}",
    )
    group.add_argument("--scaling-factor", type=float, metavar="X", help="the scale of the diffusion model's latents")
    group.add_argument("--shift-factor", type=float, metavar="X", help="their shift")
    group.add_argument(
        "--config", type=path_argument, metavar="PATH", help="a config.json or its folder, for a single file"
    )


def model_inputs(arguments: argparse.Namespace) -> list[Path]:
    """What a command reads its model from, which its outputs may not be."""
    return [each for each in (arguments.vae, getattr(arguments, "config", None)) if each]


def short(family: Family) -> str:
    """A family's name as the command line takes it: sd1, sdxl, flux1."""
    return re.sub(r"[^a-z0-9]", "", re.sub(r"\.x$", "", family.name.lower()))


def family(name: str) -> Family:
    """A family by its name, however it is spelled. For argparse."""
    wanted = re.sub("[^a-z0-9]", "", name.lower())
    for each in FAMILIES:
        if wanted in (short(each), re.sub("[^a-z0-9]", "", each.name.lower())):
            return each
    raise argparse.ArgumentTypeError(f"{name!r} is not a family; choose from {', '.join(map(short, FAMILIES))}")


def config_overrides(arguments: argparse.Namespace, path: str | Path) -> dict[str, Any]:
    """The config fields that the options of `add_config_arguments` give for the VAE at a path."""
    found: dict[str, Any] = {}
    if arguments.family is not None:
        found = dict(arguments.family.scaling)
        if arguments.config is None and Path(path).is_file():
            found["sample_size"] = arguments.family.fields["sample_size"]
    given = {"scaling_factor": arguments.scaling_factor, "shift_factor": arguments.shift_factor}
    found |= {name: value for name, value in given.items() if value is not None}
    for name, value in found.items():
        if isinstance(value, float) and (not math.isfinite(value) or (name == "scaling_factor" and value == 0)):
            wanted = "a finite number other than 0" if name == "scaling_factor" else "a finite number"
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; give {wanted}.")
    return found


def check_family(vae_config: AutoencoderKLConfig, arguments: argparse.Namespace) -> None:
    """Raise ConfigError if --family names one whose shapes the VAE does not have."""
    wanted = arguments.family
    if wanted is not None and not wanted.has_shapes_of(vae_config):
        raise ConfigError(
            f"this VAE has {vae_config.latent_channels} latent channels at 1/{vae_config.downscale_factor} size, which "
            f"{wanted.name} does not have. Leave --family out, or name the family that it belongs to."
        )


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """The options by which z is taken from the posterior."""
    group = parser.add_argument_group("the latent")
    group.add_argument("--sample", action="store_true", help="sample the latent at random instead of taking the mean")
    group.add_argument(
        "--seed",
        type=seed,
        default=0,
        metavar="N",
        help="for --sample, 0 to 2^64-1; image i is sampled with seed N + i (default: 0)",
    )


def seed(text: str) -> int:
    """A seed of the command line, for argparse; a negative one counts from 2^64, as torch has it."""
    value = int(text)
    if not -(2**63) <= value <= MAX_SEED:
        raise argparse.ArgumentTypeError(f"{text} is not a seed; give a whole number from 0 to {MAX_SEED}")
    return value % (MAX_SEED + 1)


def load_model(arguments: argparse.Namespace) -> AutoencoderKL:
    """The VAE that the arguments name, on its device, ready to run."""
    device = pick_device() if arguments.device == "auto" else checked_device(arguments.device)
    memory_budget(arguments)  # refuses before any work
    path = arguments.vae or DEMO
    dtype = DTYPES[arguments.dtype]
    if not hasattr(arguments, "family"):
        return load_vae(path, dtype=dtype, device=device, variant=arguments.variant)
    vae = load_vae(
        path,
        dtype=dtype,
        device=device,
        variant=arguments.variant,
        config=arguments.config,
        **config_overrides(arguments, path),
    )
    check_family(vae.config, arguments)
    return vae


def checked_device(name: str) -> str:
    """The name of a device that is there. Raises ConfigError if it is not."""
    reason = why_unusable(name)
    if reason is None and torch.device(name).type == "meta":
        reason = "nothing is computed there"
    if reason is not None:
        raise ConfigError(
            f"--device is {name!r}, which cannot be used here: {reason}. Give cpu, cuda, cuda:1, mps or auto."
        )
    return name


def pick_device() -> str:
    """The accelerator, if there is one."""
    return next(iter(accelerators()), "cpu")


def encode_image(
    vae: AutoencoderKL, image: FittedImage, arguments: argparse.Namespace, what: str, i: int = 0
) -> Tensor:
    """Raw z of an image, [1, C, h, w] in float32 on the CPU: the posterior's mean, or a sample if that is asked for.

    Args:
        what: for the progress bar.
        i: number of the image in its batch, which is added to the seed.
    """
    with progress_bar(what) as progress:
        pixels = image.pixels.to(vae.device, vae.dtype)
        posterior = encode(vae, pixels, memory_budget=memory_budget(arguments), progress=progress)
    return (posterior.sample(seeded(arguments.seed, i)) if arguments.sample else posterior.mode()).float().cpu()


def decode_latent(vae: AutoencoderKL, z: Tensor, arguments: argparse.Namespace, what: str) -> Tensor:
    """Pixels of raw z, [1, C, H, W] in about [-1, 1], in float32 on the CPU."""
    with progress_bar(what) as progress:
        z = z.to(vae.device, vae.dtype)
        return decode(vae, z, memory_budget=memory_budget(arguments), progress=progress).float().cpu()


def memory_budget(arguments: argparse.Namespace) -> int | None:
    """Bytes that --memory allows; None if it was not given. Raises MemoryBudgetError for what is not an amount."""
    if arguments.memory is None:
        return None
    if not 1 / GIGABYTE <= arguments.memory <= MOST_GIGABYTES:  # NaN is neither
        raise MemoryBudgetError(
            f"--memory is {arguments.memory:g}, which is not a memory budget. Give gigabytes, such as 2 or 0.5."
        )
    return int(arguments.memory * GIGABYTE)


@contextmanager
def progress_bar(what: str) -> Iterator[ProgressCallback]:
    """A callback that shows a bar in a terminal, if the work takes over a second."""
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    disable = True if sys.stderr is None else None  # where it is closed, and where it is not a terminal
    with tqdm(desc=what, total=1, delay=1, leave=False, disable=disable, bar_format=form) as bar:

        def progress(step: Progress) -> None:
            bar.total = step.total
            bar.update(step.done - bar.n)

        yield progress


def shape_text(shape: Sequence[int]) -> str:
    """1x16x37x56."""
    return "x".join(str(side) for side in shape)
