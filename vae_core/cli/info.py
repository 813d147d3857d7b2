"""`seamless-vae info`: what a checkpoint is, from its header alone."""

from __future__ import annotations

import argparse

from ..loading import VAEInfo, inspect_vae
from .common import DEMO, add_command, add_variant_argument
from .outputs import name_argument
from .say import complain, say

EXAMPLES = """\
  seamless-vae info                         the bundled VAE
  seamless-vae info sdxl_vae.safetensors
  seamless-vae info stable-diffusion/vae    a diffusers folder
  seamless-vae info checkpoint.ckpt         the VAE within a whole checkpoint

Reads the header alone, so that files of many gigabytes are answered at once. The exit code is 1 if the file is not
an AutoencoderKL that can be loaded.
"""
MEGABYTE = 1e6


def add(subparsers) -> argparse.ArgumentParser:
    parser = add_command(
        subparsers,
        "info",
        "what is this file?",
        "Say what a VAE checkpoint is, and where each value comes from.",
        EXAMPLES,
    )
    parser.add_argument(
        "path",
        nargs="?",
        type=name_argument,
        default=DEMO,
        metavar="PATH",
        help="a file or a folder (default: the bundled VAE)",
    )
    add_variant_argument(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    info = inspect_vae(arguments.path, variant=arguments.variant)
    if info.container is not None:
        say(*table(rows(info)))
    for remark in info.remarks:
        complain(f"note: {remark}")
    if info.problem is not None:
        complain(f"seamless-vae: error: {info.problem}")
        return 1
    return 0


def rows(info: VAEInfo) -> list[tuple[str, str, str]]:
    """(what, value, where it comes from) of everything that is known."""
    result = [("file", str(info.path), ""), ("container", str(info.container), "")]
    result.append(("size", f"{(info.file_size or 0) / MEGABYTE:.1f} MB", ""))
    if info.config is None:
        return [*result, ("seems to be", str(info.seems_to_be), "")]
    family = "none that is known" if info.family is None else info.family
    result += [
        ("keys", f"{info.layout}{f', under {info.prefix}' if info.prefix else ''}", ""),
        ("family", f"{family}{' (a guess)' if info.family_is_guess else ''}", ""),
        ("parameters", f"{info.parameters:,}", ""),
        ("dtype", str(info.dtype).removeprefix("torch."), ""),
        ("downscale factor", str(info.config.downscale_factor), ""),
    ]
    for name, value in info.config.to_dict().items():
        if not name.startswith("_") and value is not None:
            result.append((name, _text(value), info.origins.get(name, "")))
    return result


def table(lines: list[tuple[str, str, str]]) -> list[str]:
    """Three columns, the last as wide as it comes."""
    first, second = (max(len(line[column]) for line in lines) for column in (0, 1))
    second = min(second, 48)
    return [f"{what:<{first}}  {value:<{second}}  {source}".rstrip() for what, value, source in lines]


def _text(value: object) -> str:
    if isinstance(value, list):
        names = [str(item) for item in value]
        return f"{names[0]} x{len(names)}" if len(names) > 2 and len(set(names)) == 1 else ", ".join(names)
    return str(value).lower() if isinstance(value, bool) else str(value)
