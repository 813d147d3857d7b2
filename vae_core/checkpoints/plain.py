"""The plain weights of a model that others have compiled, wrapped or adapted, for saving."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..config import AutoencoderKLConfig
from ..errors import CheckpointError
from ..tensor_kinds import obstacle
from .identify import identify
from .key_map import OPTIONAL, weight_shapes, without_wrappers
from .plan import LORA, OWN
from .tensor_file import TensorInfo

FUSED = ".to_qkv."  # made of three others by `fuse_qkv_projections`


def plain_weights(model: nn.Module, config: AutoencoderKLConfig) -> dict[str, Tensor]:
    """A model's weights by diffusers' keys, whatever wraps its modules: views, in the model's order.

    Names that torch.compile, DataParallel and the like put in are taken out. A LoRA that is merged into the weights is
    in them; fused attention projections are left out, because the three that they were made of are there.

    Raises:
        CheckpointError: the weights are not those of an AutoencoderKL of this config: a LoRA that is not merged,
            quantised weights, weights that are elsewhere, or exchanged modules. Says what to do.
    """
    found: dict[str, Tensor] = {}
    adapters: list[str] = []
    for name, weight in model.state_dict().items():
        if FUSED in name:
            continue
        if LORA.fullmatch(name):
            adapters.append(name)
        else:
            found[without_wrappers(name)] = weight
    if adapters and not _is_merged(model):
        raise CheckpointError(
            f"the model has a LoRA that is not merged into its weights ({adapters[0]} and {len(adapters) - 1} more). "
            f"Call fuse_lora() first to save the VAE with it; save_lora_adapter() saves the LoRA by itself."
        )
    own = {name: weight for name, weight in found.items() if name.partition(".")[0] in OWN}
    _check_names(own, weight_shapes(config))
    return own


def extra_weights(model: nn.Module) -> dict[str, Tensor]:
    """What a class of one's own, or its user, has put beside the parts of an AutoencoderKL: a head, a loss."""
    state = {without_wrappers(name): weight for name, weight in model.state_dict().items()}
    return {name: weight for name, weight in state.items() if name.partition(".")[0] not in OWN}


def _is_merged(model: nn.Module) -> bool:
    """Whether every layer with a LoRA (peft's) has it in its weight."""
    layers = [module for module in model.modules() if hasattr(module, "lora_A") and hasattr(module, "base_layer")]
    return bool(layers) and all(getattr(layer, "merged", False) for layer in layers)


def _check_names(found: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    tensors = {key: weight for key, weight in found.items() if isinstance(weight, Tensor)}
    hindered = {key: why for key, weight in tensors.items() if (why := obstacle(weight)) is not None}
    if hindered:
        first, why = next(iter(hindered.items()))
        count = sum(other.what == why.what for other in hindered.values())
        raise CheckpointError(f"{count} weights, such as {first}, {why.what}. {why.remedy}")
    others = [key for key in shapes if key in found and not _is_plain(found[key], shapes[key])]
    packed = [key for key in others if not _is_number(found[key], shapes[key])]
    if packed:
        weight = found[packed[0]]
        raise CheckpointError(
            f"{len(packed)} weights, such as {packed[0]}, are quantised or packed ({type(weight).__name__} of "
            f"{weight.dtype}, shape {tuple(weight.shape)}). Dequantise the model first, or save the one that it was "
            f"made from."
        )
    if others:
        key = others[0]
        raise CheckpointError(
            f"{len(others)} weights have other shapes than the model's config says, such as {key}: "
            f"{tuple(found[key].shape)} and not {shapes[key]}. Put them into a model of their shapes, made with "
            f"AutoencoderKL.from_config(vae.config, ...), and save that."
        )
    missing = [key for key in shapes if key not in found and key not in OPTIONAL]
    others = [key for key in found if key not in shapes]
    if missing or others:
        first = (missing or others)[0]
        identity = identify({key: TensorInfo(None, (), 0) for key in others})
        remedy = "Undo what was put around its modules (adapters, quantisation, parametrizations), then save it"
        if identity is not None:
            remedy = f"They seem to be {identity.what}: undo that, or save the model that it was made from"
        raise CheckpointError(
            f"the model's weights are not those of its config: {len(missing)} are missing and {len(others)} are others "
            f"(such as {first}). {remedy}; or save model.state_dict() with torch.save."
        )


def _is_plain(weight: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a weight has this shape, and numbers of a type that files of weights have."""
    return _is_number(weight, shape) and tuple(weight.shape) == shape


def _is_number(weight: Tensor, shape: tuple[int, ...]) -> bool:
    if type(weight) not in (Tensor, nn.Parameter, nn.Buffer if hasattr(nn, "Buffer") else Tensor):
        return False
    is_number = weight.dtype.is_floating_point or (shape == () and weight.dtype == torch.int64)
    return is_number and not weight.is_quantized
