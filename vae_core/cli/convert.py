"""`seamless-vae convert`: one checkpoint format to another."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..checkpoints.generation import compared, guesses_of
from ..checkpoints.pretrained import CONFIG_NAME, WEIGHTS_STEM, write_folder
from ..checkpoints.single_file import ldm_state_dict
from ..checkpoints.weight_names import FLAX_WEIGHTS, SAFETENSORS_SUFFIXES, WEIGHT_SUFFIXES
from ..checkpoints.write import pickled, write_whole
from ..config import AutoencoderKLConfig
from ..errors import CheckpointError, VAEError
from ..loading import inspect_vae, load_vae, save_single_file
from .common import DTYPES, add_command, add_config_arguments, add_variant_argument, check_family, config_overrides
from .outputs import add_overwrite_argument, check_is_not_input, check_outputs, name_argument, path_argument
from .say import complain, say

EXAMPLES = """\
  seamless-vae convert vae_folder vae.safetensors                a diffusers folder to a single file
  seamless-vae convert model.ckpt vae_folder                     the VAE of a whole checkpoint, as a diffusers folder
  seamless-vae convert vae.safetensors half.safetensors --dtype float16
  seamless-vae convert sdxl.safetensors sdxl_vae --family sdxl   where the file does not say its family

A single file has LDM keys, which ComfyUI, A1111 and diffusers read. Weights are copied bit by bit unless --dtype asks
for another precision.
"""
PICKLE_ENDINGS = (".ckpt", ".pt", ".pth", ".bin")
# Endings of files that are not written here. A folder may have any other.
OTHER_ENDINGS = (
    *(".gguf", ".onnx", ".msgpack", ".npz", ".npy", ".h5", ".hdf5", ".pkl", ".json", ".zip", ".tar", ".latent"),
    *(".th", ".t7", ".pt2", ".ptl", ".jit", ".gz", ".distcp", ".flashpack", ".dduf", ".nemo", ".model"),
    *(".safetensor", ".ckp", ".weights", ".mlpackage", ".ggml", ".keras"),
    *(".pb", ".tflite", ".mlmodel", ".engine", ".trt", ".txt", ".png", ".jpg", ".jpeg", ".webp"),
)


def add(subparsers) -> argparse.ArgumentParser:
    parser = add_command(
        subparsers,
        "convert",
        "diffusers folder <-> single file",
        "Convert a VAE to another format or precision.",
        EXAMPLES,
    )
    parser.add_argument(
        "input",
        metavar="IN",
        type=name_argument,
        help="a VAE in any format; its files are mapped, not copied: do not change them while it runs",
    )
    parser.add_argument(
        "output", metavar="OUT", type=path_argument, help="a .safetensors, .ckpt, .pt, .pth or .bin file, or a folder"
    )
    parser.add_argument(
        "--format",
        choices=("diffusers", "single-file"),
        help="the format of OUT (default: single-file if its name ends like one, else a diffusers folder)",
    )
    add_variant_argument(parser)
    parser.add_argument("--dtype", choices=DTYPES, help="precision of the weights (default: as they are)")
    add_overwrite_argument(parser)
    add_config_arguments(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    output = arguments.output
    overwrite = arguments.overwrite
    ending = output.suffix.lower()
    single = ending in (*SAFETENSORS_SUFFIXES, *PICKLE_ENDINGS)
    if arguments.format is not None:
        single = arguments.format == "single-file"
    elif ending in OTHER_ENDINGS:
        raise CheckpointError(
            f"{output}: {ending} files are not written. End the name in "
            f"{', '.join((*SAFETENSORS_SUFFIXES, *PICKLE_ENDINGS))}, or pass --format diffusers for a folder."
        )
    inputs = [arguments.input, *([arguments.config] if arguments.config else [])]
    if single:
        check_outputs([output], inputs, overwrite, is_vae_alone)
    else:
        check_folder(output, inputs, overwrite)
    vae = load_vae(
        arguments.input,
        dtype=DTYPES.get(arguments.dtype),
        variant=arguments.variant,
        config=arguments.config,
        **config_overrides(arguments, arguments.input),
    )
    check_family(vae.config, arguments)
    if not single:
        write_folder(
            output,
            vae.weights_to_save(),
            vae.config,
            overwrite=overwrite,
            guessed=guesses_of(vae),
            release=vae.release_files,
        )
    elif ending in PICKLE_ENDINGS:
        weights = ldm_state_dict(vae.weights_to_save(), vae.config)
        write_whole(output, pickled(weights), overwrite=overwrite, release=vae.release_files)
        note_what_is_lost(output, vae.config)
    else:
        save_single_file(vae, output, overwrite=overwrite)
    guessed = [f"{name} {vae.config[name]}" for name in guesses_of(vae)]
    if guessed:
        complain(
            f"note: {', '.join(guessed)}: nothing in {arguments.input} says so. OUT marks "
            f"{'it as a guess' if len(guessed) == 1 else 'them as guesses'}, where its format can; pass --family, "
            f"--scaling-factor or --config if you know it."
        )
    say(f"wrote {output}: {vae.num_parameters():,} parameters in {str(vae.dtype).removeprefix('torch.')}")
    return 0


def note_what_is_lost(output: Path, config: AutoencoderKLConfig) -> None:
    """Say which fields a pickle, which has no room for a config, will be read with in place of these."""
    read = inspect_vae(output).config
    assert read is not None
    lost = compared(read, config)
    if lost:
        remedy = "Write a .safetensors file or a folder to keep them, or pass --config when you use it."
        complain(f"note: {output.name} has no room for a config, so it is read with {lost}. {remedy}")


def is_vae_alone(path: Path) -> bool:
    """Whether a file is an AutoencoderKL and nothing else, empty, or not there, where a link leads nowhere.

    What cannot be read may be anything.
    """
    if not path.exists() or not path.stat().st_size:
        return True
    try:
        info = inspect_vae(path)
    except VAEError:
        return False
    return info.problem is None and not info.prefix


def check_folder(folder: Path, inputs: list[str | Path], overwrite: bool) -> None:
    """Raise CheckpointError for a folder whose files are inputs, there already, or of something else."""
    if (folder / "model_index.json").exists():
        raise CheckpointError(f"{folder} is a pipeline's folder. Give another, such as {folder / 'vae'}.")
    taken = []
    if folder.is_dir():
        taken = [
            path
            for path in folder.iterdir()
            if path.name == CONFIG_NAME or path.name.startswith((WEIGHTS_STEM, FLAX_WEIGHTS))
        ]
    elif folder.exists():
        raise CheckpointError(f"{folder} is a file. Give a folder, or a name that ends in .safetensors.")
    check_outputs(taken if folder.exists() else [folder], inputs, overwrite=True)
    check_is_not_input(folder, inputs)
    if taken and not overwrite:
        raise CheckpointError(f"{taken[0]} exists already. Give another folder, or pass --overwrite.")
    if folder / CONFIG_NAME not in taken:  # which says of what model the weights are
        others = [path for path in taken if path.suffix in WEIGHT_SUFFIXES and not is_vae_alone(path)]
        if others:
            raise CheckpointError(f"{others[0]} is of another kind and would be overwritten. Give another output.")
