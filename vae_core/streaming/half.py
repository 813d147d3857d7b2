"""What a job runs: one direction of a model, as the engine needs it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..tensor_kinds import FREED, is_freed
from .internals import is_compiled, memory_of
from .program import Pass, Shape


@dataclass(frozen=True)
class Half:
    """One direction of a model: its modules, and the program that computes the same.

    Attributes:
        takes: what goes in, in words: "image" or "latent".
        modules: by name; run one after the other they are the reference path.
        placement: device and precision of the weights, which may change between two runs.
        program: makes the passes of the modules; their weights are read when they run.
        nominal_program: the passes of unmodified modules, whatever has become of these: to count FLOPs.
        find_patch: the first thing that is patched in the modules, in words, or None.
        check: raises ShapeError unless inputs of a shape [B, C, H, W] fit.
        out_channels: of what comes out.
        in_unit, out_unit: pixels along one side of a latent pixel, in what goes in and in what comes out.
    """

    takes: str
    modules: Mapping[str, nn.Module]
    placement: Callable[[], tuple[torch.device, torch.dtype]]
    program: Callable[[], list[Pass]]
    nominal_program: Callable[[], list[Pass]]
    find_patch: Callable[[], str | None]
    check: Callable[[Sequence[int]], None]
    out_channels: int
    in_unit: int
    out_unit: int

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return self.placement()[0]

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.placement()[1]

    @property
    def is_compiled(self) -> bool:
        """Whether a part of it was compiled, whose inside cannot be observed."""
        return any(is_compiled(part) for module in self.modules.values() for part in module.modules())

    def reference(self, x: Tensor) -> Tensor:
        """The reference path: the modules as they are."""
        for module in self.modules.values():
            x = module(x)
        return x

    def on(self, device: torch.device, dtype: torch.dtype) -> Half:
        """The same with weights on a device and of a type: itself, or copies of the modules, patches included."""
        if self.placement() == (device, dtype):
            return self
        modules = {name: copy.deepcopy(module).to(device, dtype) for name, module in self.modules.items()}
        return replace(self, modules=modules, placement=lambda: (device, dtype))

    def find_damage(self) -> str | None:
        """The name of the first weight that has NaN or infinite values; None if all are finite."""
        for prefix, module in self.modules.items():
            if (name := first_not_finite(module.named_parameters())) is not None:
                return f"{prefix}.{name}"
        return None

    def check_weights(self) -> None:
        """Raise ConfigError if a weight has no values: it is on the meta device, or has given its memory back."""
        for prefix, module in self.modules.items():
            for name, weight in module.named_parameters():
                if weight.is_meta:
                    raise ConfigError(
                        f"{prefix}.{name} is on the meta device, without values. A model can be planned so, but not "
                        f"run: load its weights first, by load_state_dict(..., assign=True) or load_vae."
                    )
                if is_freed(weight):
                    raise ConfigError(f"{prefix}.{name} has no values: such weights {FREED.what}. {FREED.remedy}")

    def written(self) -> list[object]:
        """What tells of each weight that it was changed: what it is kept in, and how often that was written to."""
        weights = [weight for module in self.modules.values() for weight in module.parameters()]
        return [(_version(each), each.dtype, each.shape, memory_of(each)) for each in weights]

    def is_covered(self, shape: Sequence[int], tile: int) -> bool:
        """Whether one blended tile, of so many latent pixels a side, covers an input [B, C, H, W].

        In pixels of the input, as diffusers compares: an image may have some that make no whole latent pixel.
        """
        return max(shape[2:]) <= tile * self.in_unit

    def latent_size(self, shape: Sequence[int]) -> tuple[int, int]:
        """Height and width in latent pixels, for inputs [B, C, H, W]."""
        return shape[2] // self.in_unit, shape[3] // self.in_unit

    def output_shape(self, shape: Sequence[int]) -> Shape:
        """Of what comes out, for inputs [B, C, H, W]."""
        height, width = self.latent_size(shape)
        return shape[0], self.out_channels, height * self.out_unit, width * self.out_unit


def first_not_finite(weights: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first weight that has values, and not all of them finite."""
    return next((name for name, weight in weights if _has_values(weight) and not is_finite(weight.detach())), None)


def _version(weight: Tensor) -> int:
    return 0 if weight.is_inference() else weight._version


def _has_values(weight: Tensor) -> bool:
    return not weight.is_meta and not is_freed(weight)


def is_finite(weight: Tensor) -> bool:
    """Whether all numbers of a tensor are finite. Takes no memory beside it unless a sum overflows."""
    if not weight.is_floating_point() or weight.numel() == 0:
        return True
    if weight.dtype.itemsize == 1:  # 8-bit floats cannot be summed
        return bool(weight.float().isfinite().all())
    total = weight.sum(dtype=torch.float64 if weight.dtype == torch.float64 else torch.float32)
    return bool(total.isfinite()) or bool(weight.isfinite().all())
