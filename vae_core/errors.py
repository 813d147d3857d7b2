"""The exceptions of the pack. Every one says what was found, what was expected and what to do.

Each is also the built-in exception that a caller of diffusers or torch would have caught in its place.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

OPEN_FILES = "Close files or raise the limit (ulimit -n), and try again."  # where libraries open files of their own
_LONGEST = 120  # characters of a value in a message
_LONGEST_REASON = 300  # characters of what another program or a file says


class VAEError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(VAEError, ValueError):
    """A model configuration that cannot be built, or that names unknown things."""


class ShapeError(VAEError, ValueError):
    """A tensor whose number of dimensions, channels or size does not fit the model."""


class ImageError(VAEError, ValueError):
    """An image that cannot be read, converted or fitted."""


class TilingError(VAEError, ValueError):
    """A tile size or overlap that makes no tiling."""


class MemoryBudgetError(VAEError, MemoryError):
    """A memory budget that no way of running fits, or a disk with no room for what it keeps out of memory."""


class NonFiniteError(VAEError, ArithmeticError):
    """Numbers that are not finite: in what was given, or made by a precision that is too small."""


class DamagedWeightError(VAEError, ArithmeticError):
    """A weight with values that are not finite, found by what it has made."""


class CheckpointError(VAEError, ValueError, OSError):
    """A checkpoint that cannot be read, or that is not a whole AutoencoderKL."""


class UnsafeCheckpointError(CheckpointError):
    """A pickled checkpoint that asks for code to be run."""


class MissingDependencyError(VAEError, ImportError):
    """A package that is needed for what was asked, and that only an extra of this one installs."""


class DatasetError(VAEError, RuntimeError):
    """A collection of images or latents that cannot be read, written or resumed."""


def brief(value: object) -> str:
    """A value that a file or a caller has given, as a message shows it: as in Python, in one line, and cut if it is
    long.
    """
    try:
        text = repr(value[:_LONGEST]) if isinstance(value, str | bytes) else " ".join(repr(value).split())
    except ValueError:  # Python writes no integer of more than some thousand digits
        return f"a {type(value).__name__} with a number of thousands of digits"
    except RecursionError:
        return f"a {type(value).__name__} that is nested too deeply"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]}..."


def check_choice(name: str, value: object, choices: Sequence[str], error: type[VAEError] = ConfigError) -> None:
    """Raise an error unless a value is one of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise error(f"{name} is {brief(value)}; it must be one of {', '.join(choices)}.")


def as_plain_int(value: Any) -> Any:
    """A whole number of NumPy's as Python's own; anything else as it is."""
    return int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else value


def in_one_line(text: object) -> str:
    """What an error of another package, or a text of a file, says, as a part of a sentence.

    In one line, without a full stop at its end, and cut if it is long. Of an error of the system that is its reason
    alone, because the sentence names the file; of an error that says nothing, its type. The errors of this package are
    sentences, and stay whole.
    """
    if isinstance(text, VAEError):
        return " ".join(str(text).split())
    said = str(getattr(text, "strerror", None) or text)[: 2 * _LONGEST_REASON]
    said = " ".join(said.split())[:_LONGEST_REASON].rstrip(". ")
    return said or (type(text).__name__ if isinstance(text, BaseException) else "")
