"""A VAE from the wire, ready for vae_core: our own, or a host's AutoencoderKL around the very same weights."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..vae_core import AutoencoderKL, AutoencoderKLConfig
from ..vae_core.checkpoints.key_map import OPTIONAL, is_attention_projection
from ..vae_core.checkpoints.plan import Plan, check_shapes
from ..vae_core.checkpoints.single_file import plan_single_file
from ..vae_core.checkpoints.tensor_file import TensorFile, TensorInfo
from ..vae_core.errors import CheckpointError, VAEError
from ..vae_core.layers import without_values
from . import host
from .first_stage import FirstStage

logger = logging.getLogger("seamless_vae")

_NORM_EPS = 1e-6
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


@dataclass
class Autoencoder:
    """A model and what the host knows of it.

    Attributes:
        vae: the object on the wire.
        model: on the meta device between runs, if its weights are the host's; see `loaded`.
    """

    vae: Any
    model: AutoencoderKL
    shared: _Shared | None = None

    @property
    def config(self) -> AutoencoderKLConfig:
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Where it will run."""
        patcher = getattr(self.vae, "patcher", None)
        device = getattr(patcher, "load_device", None) or getattr(self.vae, "device", None)
        return torch.device(device) if device is not None else self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.shared.dtype if self.shared is not None else self.model.dtype

    @property
    def output_device(self) -> torch.device:
        device = getattr(self.vae, "output_device", None)
        return torch.device(device) if device is not None else host.intermediate_device()

    @property
    def output_dtype(self) -> torch.dtype:
        ask = getattr(self.vae, "vae_output_dtype", None)
        return ask() if ask is not None else host.intermediate_dtype()

    @contextmanager
    def loaded(self, memory_required: int, device: torch.device | None = None) -> Iterator[AutoencoderKL]:
        """The model with its weights on its device, or copies of them on another one."""
        if device is None:
            patcher = getattr(self.vae, "patcher", None)
            copied = self._weight_bytes() if self.shared is not None and host.keeps_weights_back(patcher) else 0
            host.load_model(patcher, memory_required + copied)
            if self.shared is None:
                yield self.model
                return
        weights = self._weights()
        device = self.device if device is None else device
        moved = {key: w.to(device, self.dtype if w.is_floating_point() else None) for key, w in weights.items()}
        yield build(self.config, moved)

    def statistics(self) -> tuple[Tensor | None, Tensor | None]:
        """Mean and variance by which FLUX.2 normalises its latents; None and None for others."""
        if not self.config.has_batch_norm:
            return None, None
        weights = self._weights()
        return weights["bn.running_mean"], weights["bn.running_var"]

    def copy_on_cpu(self, dtype: torch.dtype | None = None) -> AutoencoderKL:
        """The model with its weights on the CPU, in another precision if one is given."""
        weights = self._weights()
        copy = build(
            self.config, {k: w.to("cpu", dtype if w.is_floating_point() else None) for k, w in weights.items()}
        )
        setattr(copy, "guesses", getattr(self.model, "guesses", {}))  # noqa: B010 (Module says that all are tensors)
        return copy

    def _weight_bytes(self) -> int:
        return sum(weight.numel() * weight.element_size() for weight in self._weights().values())

    def _weights(self) -> dict[str, Tensor]:
        return self.shared.weights() if self.shared is not None else dict(self.model.state_dict(keep_vars=True))


@dataclass
class Foreign:
    """A VAE that is no AutoencoderKL, or that somebody has changed: its own methods are called.

    Attributes:
        reason: why, as the end of a sentence.
    """

    vae: Any
    reason: str

    @property
    def note(self) -> str:
        """What falls away, for the person who uses it."""
        return (
            f"Seamless VAE: {self.reason}, so its own methods are used. Exact tiling, the posterior's variance, "
            f"circular padding and the memory budget are not available for it."
        )


def open_vae(vae: Any) -> Autoencoder | Foreign:
    """What is on the VAE wire.

    Raises:
        CheckpointError: nothing is, as from a checkpoint without a VAE.
    """
    first = getattr(vae, "first_stage_model", None)
    if first is None:
        raise CheckpointError(
            "this VAE is empty: its checkpoint does not include a VAE. Load one with Seamless VAE Load."
        )
    if isinstance(first, FirstStage):
        return Autoencoder(vae, first.autoencoder)
    change = _change_of(first) if isinstance(first, nn.Module) else "it is not a torch module"
    if change is not None:
        return Foreign(vae, f"this VAE has been patched ({change})")
    found = _known.get(first)
    if found is None or (isinstance(found, _Shared) and not found.is_current):
        found = _known[first] = _recognise(first)
    return Foreign(vae, found) if isinstance(found, str) else Autoencoder(vae, found.model, found)


# Models of the host that were looked at -> what they are, or why they are nothing of ours.
_known: weakref.WeakKeyDictionary[nn.Module, _Shared | str] = weakref.WeakKeyDictionary()


@dataclass
class _Shared:
    """A host's model read as an AutoencoderKL.

    Attributes:
        keys: diffusers key -> the host's name of that weight.
        model: of the same config, on the meta device.
    """

    first: weakref.ref[nn.Module]
    keys: Mapping[str, str]
    model: AutoencoderKL

    @property
    def is_current(self) -> bool:
        """Whether the host's model still has these weights; parts of a model can be exchanged."""
        first = self.first()
        return first is not None and set(_tensors(first)) == set(self.keys.values())

    def weights(self) -> dict[str, Tensor]:
        """The host's tensors, as they lie now, by diffusers keys and in diffusers' shapes; views, no copies."""
        first = self.first()
        assert first is not None
        tensors = _tensors(first)
        found = {key: tensors[name] for key, name in self.keys.items()}
        return {
            key: weight[:, :, 0, 0] if is_attention_projection(key) and weight.ndim == 4 else weight
            for key, weight in found.items()
        }

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.weights().values())).dtype


def build(config: AutoencoderKLConfig, weights: Mapping[str, Tensor]) -> AutoencoderKL:
    """A model in eval mode whose weights are the given tensors themselves, by diffusers keys."""
    with without_values():
        model = AutoencoderKL.from_config(config)
    for prefix, module in model.named_modules():
        module.training = False
        for holder in (module._parameters, module._buffers):
            for name, old in holder.items():
                if old is None:
                    continue
                key = f"{prefix}.{name}" if prefix else name
                weight = weights[key] if key in weights else torch.zeros(old.shape, dtype=torch.int64)
                is_weight = isinstance(old, nn.Parameter)
                holder[name] = nn.Parameter(weight.detach(), requires_grad=False) if is_weight else weight  # type: ignore
    return model


def _recognise(first: nn.Module) -> _Shared | str:
    tensors = _tensors(first)
    if any(type(tensor) not in (Tensor, nn.Parameter) for tensor in tensors.values()):
        return f"the weights of {type(first).__name__} are quantized or of a custom tensor type"
    infos = {name: TensorInfo(tensor.dtype, tuple(tensor.shape), 0) for name, tensor in tensors.items()}
    source = TensorFile(Path(type(first).__name__), "memory", infos, {})
    norms = [module for module in first.modules() if isinstance(module, nn.GroupNorm)]
    if not norms or any(norm.eps != _NORM_EPS or norm.num_groups != norms[0].num_groups for norm in norms):
        return f"{type(first).__name__} is not an AutoencoderKL"
    try:
        plan = plan_single_file(source, {"norm_num_groups": norms[0].num_groups})
        with without_values():
            model = AutoencoderKL.from_config(plan.config)
        shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        check_shapes(plan, shapes)
        _check_whole(plan, shapes)
    except VAEError as error:
        logger.debug("%s is not adopted: %s", type(first).__name__, error)
        return f"{type(first).__name__} is not an AutoencoderKL"
    model.__dict__["guesses"] = plan.guesses
    return _Shared(weakref.ref(first), plan.keys, model.eval())


def _check_whole(plan: Plan, shapes: Mapping[str, Any]) -> None:
    if set(shapes) - OPTIONAL != set(plan.keys) - OPTIONAL or len(plan.keys) != len(plan.source.tensors):
        raise CheckpointError("its weights are not those of an AutoencoderKL. Call its own methods.")


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and lasting buffers by their names, without what hooks of `state_dict` make of them."""
    found: dict[str, Tensor] = dict(module.named_parameters())
    for prefix, child in module.named_modules():
        for name, buffer in child._buffers.items():
            if buffer is not None and name not in child._non_persistent_buffers_set:
                found[f"{prefix}.{name}" if prefix else name] = buffer
    return found


def _change_of(first: nn.Module) -> str | None:
    """What somebody has changed in a model of the host, in words: its own methods are to be called then."""
    for name, module in first.named_modules():
        if any(getattr(module, hooks, None) for hooks in _HOOKS):
            return f"{name or type(module).__name__} has a hook"
        if any(method in module.__dict__ for method in ("forward", "encode", "decode", "_conv_forward")):
            return f"{name or type(module).__name__} has a patched method"
        if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
            return f"{name} has padding mode {module.padding_mode}"
    return None
