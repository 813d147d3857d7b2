"""diffusers' methods on a model as a whole: offloading, casting, attention backends, checkpointing, memory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, ClassVar, cast

import torch
from torch import nn

from .attention import Attention, AttentionProcessor, AttnProcessor2_0, BackendAttnProcessor
from .blocks import CHECKPOINT
from .errors import ConfigError
from .likeness import theirs_for
from .optional import optional_import

_MODELING = "diffusers.models.modeling_utils"
_PROCESSORS = "diffusers.models.attention_processor"


class ModelMixin:
    """The model as a module among others, with the interface of diffusers' class of that name.

    Layerwise casting, group offloading and attention backends are diffusers' own, called here: they need the extra
    `diffusers`. A model that has their hooks is run by its modules themselves (the reference path).
    """

    _supports_gradient_checkpointing: ClassVar[bool] = True
    _supports_group_offloading: ClassVar[bool] = True
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str] | None] = None
    _keep_in_fp32_modules: ClassVar[list[str] | str | None] = None
    _skip_layerwise_casting_patterns: ClassVar[tuple[str, ...] | None] = None
    _no_split_modules: ClassVar[list[str]] = ["ResnetBlock", "Attention"]
    _repeated_blocks: ClassVar[list[str]] = ["ResnetBlock"]
    _group_offload_block_modules: ClassVar[list[str]] = ["quant_conv", "post_quant_conv", "encoder", "decoder"]
    _parallel_config: Any = None
    _cp_plan: ClassVar[Any] = None
    _tp_plan: ClassVar[Any] = None
    _skip_keys: ClassVar[Any] = None

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights: of the first that are floating-point numbers, or what layerwise casting computes in."""
        theirs = _hooked(self)
        if theirs is not None:
            return theirs.get_parameter_dtype(self)
        module = cast(nn.Module, self)
        found = next((each for each in module.parameters() if each.is_floating_point()), None)
        return next(module.parameters()).dtype if found is None else found.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights, or the one that group offloading brings them to."""
        theirs = _hooked(self)
        if theirs is not None:
            return theirs.get_parameter_device(self)
        return next(cast(nn.Module, self).parameters()).device

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As torch's; a model with group offloading stays where its hooks put it, as in diffusers."""
        owner = nn.Module if _hooked(self) is None else theirs_for(self, "Hooks of diffusers")
        return owner.to(cast(Any, self), *args, **kwargs)

    def cuda(self, device: int | torch.device | None = None) -> Any:
        """As torch's; a model with group offloading stays where its hooks put it, as in diffusers."""
        owner = nn.Module if _hooked(self) is None else theirs_for(self, "Hooks of diffusers")
        return owner.cuda(cast(Any, self), device)

    def half(self, *args: Any) -> Any:
        """Convert the weights to float16."""
        return nn.Module.half(cast(nn.Module, self), *args)

    def float(self, *args: Any) -> Any:
        """Convert the weights to float32."""
        return nn.Module.float(cast(nn.Module, self), *args)

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Number of weights. It has none in embeddings to exclude; the argument is diffusers'."""
        parameters = cast(nn.Module, self).parameters()
        return sum(p.numel() for p in parameters if p.requires_grad or not only_trainable)

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the weights, and of the buffers if asked for."""
        module = cast(nn.Module, self)
        tensors = (*module.parameters(), *(module.buffers() if return_buffers else ()))
        return sum(tensor.nbytes for tensor in tensors)

    def dequantize(self) -> Any:
        """diffusers' way back from quantised weights. Ours are never quantised.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("this model is not quantised: there is nothing to undo.")

    # Hooks of diffusers.

    def enable_layerwise_casting(
        self,
        storage_dtype: torch.dtype = torch.float8_e4m3fn,
        compute_dtype: torch.dtype | None = None,
        skip_modules_pattern: tuple[str, ...] | None = None,
        skip_modules_classes: tuple[type[nn.Module], ...] | None = None,
        non_blocking: bool = False,
    ) -> None:
        """Store the weights in one type and compute in another, layer by layer (diffusers' hooks)."""
        theirs_for(self, "Layerwise casting").enable_layerwise_casting(
            self, storage_dtype, compute_dtype, skip_modules_pattern, skip_modules_classes, non_blocking
        )

    def enable_group_offload(
        self,
        onload_device: torch.device,
        offload_device: torch.device = torch.device("cpu"),  # noqa: B008 - diffusers' default
        offload_type: str = "block_level",
        num_blocks_per_group: int | None = None,
        non_blocking: bool = False,
        use_stream: bool = False,
        record_stream: bool = False,
        low_cpu_mem_usage: bool = False,
        offload_to_disk_path: str | None = None,
        block_modules: str | list[str] | None = None,
        exclude_kwargs: str | list[str] | None = None,
    ) -> None:
        """Keep groups of layers on one device, and bring each to another when it runs (diffusers' hooks)."""
        # An older diffusers has fewer of these: what was left at its default is not passed on.
        later = {
            "block_modules": block_modules,
            "exclude_kwargs": exclude_kwargs,
            "offload_to_disk_path": offload_to_disk_path,
        }
        theirs_for(self, "Group offloading").enable_group_offload(
            self,
            onload_device=onload_device,
            offload_device=offload_device,
            offload_type=offload_type,
            num_blocks_per_group=num_blocks_per_group,
            non_blocking=non_blocking,
            use_stream=use_stream,
            record_stream=record_stream,
            low_cpu_mem_usage=low_cpu_mem_usage,
            **{name: value for name, value in later.items() if value is not None},
        )

    def enable_parallelism(self, *, config: Any, cp_plan: Any = None) -> None:
        """Split a transformer over devices, in diffusers. This model has nothing that it could split.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "an AutoencoderKL has no plan for context or tensor parallelism. To use several devices, give each its "
            "own part of the batch."
        )

    # How attention is computed.

    def set_attention_backend(self, backend: str) -> None:
        """Compute attention by one of diffusers' backends: "native", "flash", "sage", ... (see its documentation)."""
        theirs_for(self, "Attention backends").set_attention_backend(self, backend)  # checks it
        _set_processors(self, BackendAttnProcessor(backend.lower()))

    def reset_attention_backend(self) -> None:
        """Compute attention by torch's own function again."""
        _set_processors(self, AttnProcessor2_0(), only="BackendAttnProcessor")

    def set_use_memory_efficient_attention_xformers(
        self, valid: bool, attention_op: Callable[..., Any] | None = None
    ) -> None:
        """Compute attention by xFormers, or by torch's own function again.

        Raises:
            MissingDependencyError: xFormers or diffusers is not installed.
        """
        if not valid:
            _set_processors(self, AttnProcessor2_0(), only="XFormersAttnProcessor")
            return
        optional_import("xformers.ops", "xFormers' attention", None)
        theirs = optional_import(_PROCESSORS, "xFormers' attention", "diffusers")
        _set_processors(self, theirs.XFormersAttnProcessor(attention_op=attention_op))

    def enable_xformers_memory_efficient_attention(self, attention_op: Callable[..., Any] | None = None) -> None:
        """Compute attention by xFormers."""
        self.set_use_memory_efficient_attention_xformers(True, attention_op)

    def disable_xformers_memory_efficient_attention(self) -> None:
        """Compute attention by torch's own function again."""
        self.set_use_memory_efficient_attention_xformers(False)

    def set_use_npu_flash_attention(self, valid: bool) -> None:
        """Compute attention by torch_npu's flash attention, or by torch's own function again."""
        if not valid:
            _set_processors(self, AttnProcessor2_0(), only="AttnProcessorNPU")
            return
        optional_import("torch_npu", "NPU flash attention", None)
        theirs = optional_import(_PROCESSORS, "NPU flash attention", "diffusers")
        _set_processors(self, theirs.AttnProcessorNPU())

    def enable_npu_flash_attention(self) -> None:
        """Compute attention by torch_npu's flash attention."""
        self.set_use_npu_flash_attention(True)

    def disable_npu_flash_attention(self) -> None:
        """Compute attention by torch's own function again."""
        self.set_use_npu_flash_attention(False)

    def set_use_xla_flash_attention(
        self, use_xla_flash_attention: bool, partition_spec: Callable[..., Any] | None = None, **kwargs: Any
    ) -> None:
        """Compute attention by torch_xla's flash attention, or by torch's own function again."""
        if not use_xla_flash_attention:
            _set_processors(self, AttnProcessor2_0(), only="XLAFlashAttnProcessor2_0")
            return
        optional_import("torch_xla", "XLA flash attention", None)
        theirs = optional_import(_PROCESSORS, "XLA flash attention", "diffusers")
        _set_processors(self, theirs.XLAFlashAttnProcessor2_0(partition_spec))

    def enable_xla_flash_attention(self, partition_spec: Callable[..., Any] | None = None, **kwargs: Any) -> None:
        """Compute attention by torch_xla's flash attention."""
        self.set_use_xla_flash_attention(True, partition_spec, **kwargs)

    def disable_xla_flash_attention(self) -> None:
        """Compute attention by torch's own function again."""
        self.set_use_xla_flash_attention(False)

    # Compiling and training.

    def compile_repeated_blocks(self, *args: Any, **kwargs: Any) -> None:
        """Compile the blocks that occur many times over, each with `torch.compile`'s arguments: quicker to compile."""
        for module in cast(nn.Module, self).modules():
            if type(module).__name__ in self._repeated_blocks:
                module.compile(*args, **kwargs)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether the backward pass recomputes the blocks."""
        return any(getattr(module, "gradient_checkpointing", False) for module in cast(nn.Module, self).modules())

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Callable[..., Any] | None = None) -> None:
        """Recompute each block in the backward pass instead of keeping its activations: less memory, more time.

        Args:
            gradient_checkpointing_func: `f(block, *inputs)` in place of torch's checkpoint.
        """
        self._set_gradient_checkpointing(True, gradient_checkpointing_func or CHECKPOINT)

    def disable_gradient_checkpointing(self) -> None:
        """Keep all activations for the backward pass again."""
        self._set_gradient_checkpointing(False)

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable[..., Any] = CHECKPOINT
    ) -> None:
        for module in cast(nn.Module, self).modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = enable  # type: ignore[assignment]
                module._gradient_checkpointing_func = gradient_checkpointing_func  # type: ignore[assignment]


def _hooked(model: Any) -> ModuleType | None:
    """diffusers' modeling_utils if some module has hooks of diffusers on it, which say where the weights belong."""
    theirs = sys.modules.get(_MODELING)
    if theirs is None or not any(hasattr(module, "_diffusers_hook") for module in model.modules()):
        return None
    return theirs


def _attentions(model: Any) -> list[Attention]:
    return [module for module in model.modules() if isinstance(module, Attention)]


def _set_processors(model: Any, processor: AttentionProcessor, only: str | None = None) -> None:
    for attention in _attentions(model):
        if only is None or type(attention.processor).__name__ == only:
            attention.set_processor(processor)
