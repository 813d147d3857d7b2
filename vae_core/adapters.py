"""LoRA and other adapters on the model: diffusers' methods, which are peft's. They need the extra `lora`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

from .likeness import theirs_for
from .optional import optional_import

PathLike = str | os.PathLike[str]
Weights = float | Mapping[str, Any] | list[Any] | None


class AdapterMixin:
    """Adapters by the methods of diffusers' PeftAdapterMixin, which run on this model as on theirs.

    Layers with an adapter run by the modules themselves (the reference path), merged into the weights or not;
    `unload_lora` after `fuse_lora` gives the engine plain layers again.

    Every method raises MissingDependencyError where peft or diffusers is not installed.
    """

    _hf_peft_config_loaded: bool | None = False
    _prepare_lora_hotswap_kwargs: dict[str, Any] | None = None

    def add_adapter(self, adapter_config: Any, adapter_name: str = "default") -> None:
        """Add a new adapter of a peft config, such as `peft.LoraConfig`, to train it."""
        _peft(self).add_adapter(self, adapter_config, adapter_name)

    def load_lora_adapter(
        self,
        pretrained_model_name_or_path_or_dict: PathLike | Mapping[str, Any],
        prefix: str | None = "transformer",
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Load a LoRA from a folder, a file, a repository on the Hub or a state dict.

        Args:
            prefix: what the names of its weights begin with; None for those that `save_lora_adapter` wrote.
            hotswap: replace the weights of an adapter that is there.
            kwargs: `adapter_name`, `weight_name`, `subfolder`, `network_alphas`, ..., as in diffusers.
        """
        _peft(self).load_lora_adapter(self, pretrained_model_name_or_path_or_dict, prefix, hotswap, **kwargs)

    def save_lora_adapter(
        self,
        save_directory: PathLike,
        adapter_name: str = "default",
        upcast_before_saving: bool = False,
        safe_serialization: bool = True,
        weight_name: str | None = None,
    ) -> None:
        """Write the weights of one adapter into a folder, and nothing of the model."""
        _peft(self).save_lora_adapter(
            self, save_directory, adapter_name, upcast_before_saving, safe_serialization, weight_name
        )

    def set_adapter(self, adapter_name: str | list[str]) -> None:
        """Use one adapter, or several at once, and no other."""
        _peft(self).set_adapter(self, adapter_name)

    def set_adapters(self, adapter_names: list[str] | str, weights: Weights = None) -> None:
        """Use these adapters, each with a weight; 1 without one."""
        _peft(self).set_adapters(self, adapter_names, weights)

    def active_adapters(self) -> list[str]:
        """The names of the adapters in use."""
        return _peft(self).active_adapters(self)

    def enable_adapters(self) -> None:
        """Use the adapters again after `disable_adapters`."""
        _peft(self).enable_adapters(self)

    def disable_adapters(self) -> None:
        """Run the model without its adapters, and keep them."""
        _peft(self).disable_adapters(self)

    def enable_lora(self) -> None:
        """Use the LoRA layers again after `disable_lora`."""
        _peft(self).enable_lora(self)

    def disable_lora(self) -> None:
        """Run the model without its LoRA layers, and keep them."""
        _peft(self).disable_lora(self)

    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """Remove adapters, and their layers where none is left."""
        _peft(self).delete_adapters(self, adapter_names)

    def fuse_lora(
        self, lora_scale: float = 1.0, safe_fusing: bool = False, adapter_names: list[str] | None = None
    ) -> None:
        """Merge LoRA layers into the weights that they stand beside."""
        _peft(self).fuse_lora(self, lora_scale, safe_fusing, adapter_names)

    def unfuse_lora(self) -> None:
        """Take merged LoRA layers out of the weights again."""
        _peft(self).unfuse_lora(self)

    def unload_lora(self) -> None:
        """Remove every LoRA layer. What was merged stays merged."""
        _peft(self).unload_lora(self)

    def enable_lora_hotswap(
        self, target_rank: int = 128, check_compiled: Literal["error", "warn", "ignore"] = "error"
    ) -> None:
        """Prepare a compiled model for LoRAs that are loaded with `hotswap`, of ranks up to `target_rank`."""
        _peft(self).enable_lora_hotswap(self, target_rank, check_compiled)


def _peft(model: object) -> Any:
    optional_import("peft", "LoRA adapters", "lora")
    return theirs_for(model, "LoRA adapters", "lora")
