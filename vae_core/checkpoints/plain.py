"""The plain weights of a model that others have compiled, wrapped or adapted, for saving."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ..config import AutoencoderKLConfig
from ..errors import CheckpointError
from ..tensor_kinds import obstacle
from ..wrappers import computed_weights, look_through, place_in_model, plain_name
from .identify import identify
from .key_map import FUSED, OPTIONAL, weight_shapes
from .plan import LORA, OWN
from .tensor_file import TensorInfo

_HALVES = ("encoder", "decoder")


def plain_weights(model: nn.Module, config: AutoencoderKLConfig) -> dict[str, Tensor]:
    """A model's weights by diffusers' keys, whatever wraps its modules: views, in the model's order.

    Names that torch.compile, DataParallel, peft and the like put in are taken out. An adapter that is merged into the
    weights is in them; a weight that is made of others, by weight norm or pruning say, is saved as what they make;
    fused attention projections are left out, because the three that they were made of are there.

    Raises:
        CheckpointError: the weights are not those of an AutoencoderKL of this config: an adapter that is not merged,
            quantised weights, weights that are elsewhere, removed or exchanged modules. Says what to do.
    """
    state = {name: weight for name, weight in model.state_dict().items() if FUSED not in name}
    for computed in computed_weights(model):
        state = {name: weight for name, weight in state.items() if not _is_one_of(name, computed.parts)}
        state[computed.name] = computed.value
    found: dict[str, Tensor] = {}
    adapters: dict[str, nn.Module] = {}  # names of their weights, and the layers that they are beside
    for name, weight in state.items():
        place = place_in_model(model, name)
        if place.beside is None:
            found[place.name] = weight
        elif hasattr(place.beside, "base_layer"):
            adapters[name] = place.beside
    if not all(getattr(layer, "merged", False) for layer in adapters.values()):
        raise CheckpointError(_not_merged(model, adapters))
    own = {name: weight for name, weight in found.items() if name.partition(".")[0] in OWN}
    _check_names(model, own, weight_shapes(config))
    return own


def extra_weights(model: nn.Module) -> dict[str, Tensor]:
    """What a class of one's own, or its user, has put beside the parts of an AutoencoderKL: a head, a loss."""
    state = {plain_name(model, name): weight for name, weight in model.state_dict().items()}
    return {name: weight for name, weight in state.items() if name.partition(".")[0] not in OWN}


def _is_one_of(name: str, parts: Iterable[str]) -> bool:
    return any(name == part or (part.endswith(".") and name.startswith(part)) for part in parts)


def _not_merged(model: nn.Module, adapters: Mapping[str, nn.Module]) -> str:
    first, *others = adapters
    kind = "LoRA" if LORA.fullmatch(first) else "adapter"
    owners = {plain_name(model, name): part for name, part in model.named_modules() if hasattr(part, "merge_adapter")}
    layers = {*adapters.values()}
    around = [f"vae.{name}" for name, part in owners.items() if name and layers.intersection(part.modules())]
    if around:
        merge, alone = (
            " and ".join(f"{part}.{call}()" for part in around) for call in ("merge_adapter", "save_pretrained")
        )
    else:
        merge = "fuse_lora()"
        alone = "save_lora_adapter()"
    return (
        f"the model has {'a' if kind == 'LoRA' else 'an'} {kind} that is not merged into its weights "
        f"({plain_name(model, first)} and {len(others)} more). Call {merge} first to save the VAE with it; {alone} "
        f"saves the {kind} by itself."
    )


def _check_names(model: nn.Module, found: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
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
    if not missing and not others:
        return
    removed = [half for half in _HALVES if getattr(model, half, None) is None]
    if removed:
        raise CheckpointError(
            f"the {removed[0]} was removed from this model, and a VAE's file has both halves. Put it back, or load the "
            f"VAE again."
        )
    identity = identify({key: TensorInfo(None, (), 0) for key in others})
    if identity is not None and identity.what.startswith("quantised"):
        remedy = f"They seem to be {identity.what}: undo that, or save the model that it was made from"
    elif missing and (wrapper := _around(model, missing[0])) is not None:
        remedy = wrapper
    else:
        remedy = "Undo what was put around its modules (adapters, quantisation, parametrizations), then save it"
    raise CheckpointError(
        f"the model's weights are not those of its config: {len(missing)} are missing and {len(others)} are others "
        f"(such as {(missing or others)[0]}). {remedy}; or save model.state_dict() with torch.save."
    )


def _around(model: nn.Module, key: str) -> str | None:
    """What has taken the place of a part on the way to a weight, and what to do about it."""
    module = model
    way = ""
    for part in key.split("."):
        through = look_through(module) if way else module
        if hasattr(through, part):
            module = getattr(through, part)
            way = f"{way}.{part}".lstrip(".")
            continue
        inside = [name for name, each in through.named_modules() if name and hasattr(each, part)]
        what = f"{way} is of the class {type(through).__name__}"
        if not inside:
            return f"{what}, which has no {part}: put the VAE's own part back, then save it"
        return (
            f"{what}, whose own computation is in no file of a VAE: put what it is around, {way}.{inside[0]}, back in "
            f"its place, then save it"
        )
    return None


def _is_plain(weight: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a weight has this shape, and numbers of a type that files of weights have."""
    return _is_number(weight, shape) and tuple(weight.shape) == shape


def _is_number(weight: Tensor, shape: tuple[int, ...]) -> bool:
    if type(weight) not in (Tensor, nn.Parameter, nn.Buffer if hasattr(nn, "Buffer") else Tensor):
        return False
    is_number = weight.dtype.is_floating_point or (shape == () and weight.dtype == torch.int64)
    return is_number and not weight.is_quantized
