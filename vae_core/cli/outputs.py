"""What the command line may write to: never over an input or another model, and over nothing else unasked."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from ..atomic import given_name, place_of
from ..checkpoints.config_file import CONFIG_NAME
from ..checkpoints.weight_names import PIPELINE_NAME, WEIGHT_SUFFIXES
from ..errors import CheckpointError, in_one_line
from ..file_names import folded_name


def path_argument(text: str) -> Path:
    """A path of the command line, for argparse. (`Path("")` would be the current folder.)"""
    try:
        return given_name(text)
    except OSError as error:
        raise argparse.ArgumentTypeError(error.strerror) from None


def name_argument(text: str) -> str:
    """A path, or a name on the Hub, of the command line. For argparse."""
    path_argument(text)
    return text


def add_overwrite_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files that exist; inputs and other models are never replaced"
    )


def check_outputs(
    paths: Iterable[Path],
    inputs: Iterable[str | os.PathLike[str]],
    overwrite: bool,
    is_same_kind: Callable[[Path], bool] = lambda _: True,
) -> None:
    """Check where a command is going to write, before it does any work.

    Args:
        inputs: files and folders that the command reads.
        is_same_kind: whether an existing file is of the kind that would replace it.

    Raises:
        CheckpointError: a path is an input, is in a folder that is one or would be a part of its model, exists, or
            cannot be written.
    """
    given = [Path(os.path.realpath(each)) for each in inputs]
    for path in paths:
        check_is_not_input(path, given)
        target = Path(os.path.realpath(path))
        exists = os.path.lexists(path)
        above = next(each for each in Path(os.path.abspath(path)).parents if os.path.lexists(each))
        if not above.is_dir():
            raise CheckpointError(f"{path} would be in {above}, which is a file and no folder. Give another output.")
        within = [each for each in given if each in target.parents and each.is_dir()]
        if exists and within:
            raise CheckpointError(f"{path} belongs to an input of this command. Give another output.")
        if any(_is_of_a_model(target, each) for each in within):
            raise CheckpointError(
                f"{path} would be in a folder that is an input of this command, and change what the folder is. Give "
                f"another output."
            )
        if not exists:
            continue
        if not overwrite:
            raise CheckpointError(f"{path} exists already. Give another name, or pass --overwrite.")
        try:
            place_of(path)
        except OSError as error:
            raise CheckpointError(f"cannot write {path}: {in_one_line(error)}. Give another output.") from None
        if not is_same_kind(target):
            raise CheckpointError(f"{path} is a file of another kind and would be overwritten. Give another output.")


def _is_of_a_model(path: Path, folder: Path) -> bool:
    """Whether a file is where a loader of the folder looks: beside a config, in a pipeline's folder of a model, ..."""
    if not (folder / CONFIG_NAME).exists() and not (folder / PIPELINE_NAME).exists():
        return False
    beside = path.parent == folder or any((path.parent / name).exists() for name in (CONFIG_NAME, PIPELINE_NAME))
    return beside and path.name.endswith((*WEIGHT_SUFFIXES, ".json", ".msgpack"))


def check_is_not_input(path: Path, inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Raise CheckpointError if an output is one of the inputs, by whatever name."""
    if any(_is_same(path, Path(each)) for each in inputs):
        raise CheckpointError(f"{path} is an input of this command and would be overwritten. Give another output.")


def _is_same(a: Path, b: Path) -> bool:
    try:
        return os.path.realpath(a) == os.path.realpath(b) or os.path.samefile(a, b)
    except OSError:
        return False


def unlike(stems: list[str]) -> list[str]:
    """The same names, numbered where some are alike to a file system that ignores case, or the form of accents."""
    folded = [folded_name(stem) for stem in stems]
    if len(set(folded)) == len(folded):
        return stems
    return [f"{stem}-{i}" for i, stem in enumerate(stems)]
