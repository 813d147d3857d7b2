"""Weights that are not finite, found by a half itself, however it is called: directly, or by a compiler."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .errors import DamagedWeightError
from .streaming.choose import is_watched
from .streaming.executor import damaged_message
from .streaming.half import first_not_finite
from .streaming.source import count_not_finite
from .wrappers import plain_name

COMPILERS_CALL_IT = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 6)
"""Whether torch's compiler can call `check_weights`: the one of 2.4 hands no modules to what it does not look into."""


def checked(half: nn.Module, name: str, result: Tensor) -> Tensor:
    """The result of a half that is called, by the model or by itself.

    Raises:
        DamagedWeightError: it is not finite, because a weight of the half is not.
    """
    if not is_watched(result) and count_not_finite(result):
        check_weights(half, name)
    return result


@torch.compiler.assume_constant_result
def check_weights(module: nn.Module, called: str = "") -> None:
    """Raise DamagedWeightError for the first weight of a module, by its plain name, that is NaN or infinite.

    In what is compiled it runs once, while that is compiled; the compiler's error says the same.
    """
    name = first_not_finite(each for each in module.named_parameters() if type(each[1]) is nn.Parameter)
    if name is not None:
        raise DamagedWeightError(damaged_message(f"{called}.{plain_name(module, name)}".lstrip(".")))
