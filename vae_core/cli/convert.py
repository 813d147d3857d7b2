"""`seamless-vae convert`: one checkpoint format to another."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..loading import load_vae, save_single_file
from .common import DTYPES, add_command

EXAMPLES = """\
  seamless-vae convert vae_folder vae.safetensors                a diffusers folder to a single file
  seamless-vae convert model.ckpt vae_folder                     the VAE of a whole checkpoint, as a diffusers folder
  seamless-vae convert vae.safetensors half.safetensors --dtype float16

A single file has LDM keys, which ComfyUI, A1111 and diffusers read. Weights are copied bit by bit unless --dtype asks
for another precision.
"""
SINGLE_FILE_ENDINGS = (".safetensors", ".sft")


def add(subparsers) -> argparse.ArgumentParser:
    parser = add_command(
        subparsers,
        "convert",
        "diffusers folder <-> single file",
        "Convert a VAE to another format or precision.",
        EXAMPLES,
    )
    parser.add_argument("input", metavar="IN", type=Path, help="a VAE in any format")
    parser.add_argument("output", metavar="OUT", type=Path, help="a .safetensors file, or a folder")
    parser.add_argument(
        "--format",
        choices=("diffusers", "single-file"),
        help="of OUT (default: single-file if it ends in .safetensors, else a diffusers folder)",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="precision of the weights (default: as they are)")
    return parser


def run(arguments: argparse.Namespace) -> int:
    output = arguments.output
    single = output.suffix.lower() in SINGLE_FILE_ENDINGS
    if arguments.format is not None:
        single = arguments.format == "single-file"
    vae = load_vae(arguments.input, dtype=DTYPES.get(arguments.dtype))
    if single:
        save_single_file(vae, output)
    else:
        vae.save_pretrained(output)
    print(f"wrote {output}: {vae.num_parameters():,} parameters in {str(vae.dtype).removeprefix('torch.')}")
    return 0
