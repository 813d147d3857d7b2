"""Weights that are in memory already: a state dict, or the tensors of another model. Nothing is copied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from ..config import AutoencoderKLConfig
from ..errors import CheckpointError, in_one_line
from ..layers import without_values
from ..streaming.internals import weight_places
from .key_map import is_attention_projection, with_counters
from .nested import find_tensors
from .plan import CheckpointPlan
from .single_file import plan_single_file
from .tensor_file import TensorFile, in_memory

Model = TypeVar("Model", bound=nn.Module)


def memory_tensors(tensors: Mapping[str, Any], name: str) -> TensorFile:
    """A source of these tensors; a state dict that is deeper, as in training checkpoints, is taken out as of a file.

    Args:
        name: what messages call it.

    Raises:
        CheckpointError: there are no tensors.
    """
    try:
        found = find_tensors(tensors)
    except ValueError as error:
        raise CheckpointError(
            f"{name} cannot be looked through: {in_one_line(error)}. Give the state dict of a model."
        ) from None
    values = {key: each for key, each in found.tensors.items() if isinstance(each, Tensor)}
    if not values:
        raise CheckpointError(f"{name} has no tensors. Give the state dict of a model: names and tensors.")
    return in_memory(values, name, found.remarks)


def plan_tensors(
    tensors: Mapping[str, Any],
    name: str,
    overrides: Mapping[str, Any] | None = None,
    config: AutoencoderKLConfig | None = None,
) -> CheckpointPlan:
    """How to make an AutoencoderKL of these tensors, by their names and shapes.

    Raises:
        CheckpointError: they are not those of a whole AutoencoderKL.
        ConfigError: an override that no AutoencoderKL has.
    """
    return plan_single_file(memory_tensors(tensors, name), overrides, config)


def planned_weights(keys: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by diffusers keys and in diffusers' shapes (LDM's 1x1 kernels as matrices): views, no copies."""
    found = {key: tensors[name] for key, name in keys.items()}
    return {
        key: weight[:, :, 0, 0] if is_attention_projection(key) and weight.ndim == 4 else weight
        for key, weight in found.items()
    }


def build_around(
    model_class: Callable[..., Model], config: AutoencoderKLConfig, weights: Mapping[str, Tensor]
) -> Model:
    """A model in eval mode whose weights are the given tensors themselves, by diffusers keys.

    A tensor that is a parameter becomes the very same parameter of the model, any other one without gradients.
    """
    with without_values():
        model = model_class(**config.without_extras())
    places = weight_places(model)
    weights = with_counters(weights, [place.key for place in places])
    for place in places:
        place.fill(weights[place.key])
    return model.eval()
