"""What goes into a run: one tensor, or parts of a batch one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ImageError, NonFiniteError, ShapeError
from ..tensor_kinds import check_given, given_obstacle
from .internals import GRAIN
from .options import PRECISIONS
from .program import Shape

_GROWTH = 2**10  # by which values may grow before they come to a norm


@dataclass(frozen=True)
class Source:
    """A batch [B, C, H, W] in parts.

    Attributes:
        parts: [b, C, H, W] each, on any device.
        what: "image" or "latent", for messages.
    """

    parts: tuple[Tensor, ...]
    what: str

    @classmethod
    def of(cls, source: Tensor | Sequence[Tensor] | Source, what: str) -> Source:
        """Raise ShapeError or ImageError unless it has real floating-point values, or is a source already."""
        if isinstance(source, Source):
            return source
        parts: tuple[Any, ...] = tuple(source) if isinstance(source, list | tuple) else (source,)
        for part in parts:
            check_tensor(part, what)
            if part.is_meta:
                raise ShapeError(
                    f"this {what} is on the meta device, where tensors have no values. Give one with values."
                )
        return cls(parts, what)

    def check_shape(self, shape: Shape) -> None:
        """Raise ShapeError unless it has the planned shape."""
        sizes = [tuple(part.shape) for part in self.parts]
        fits = all(len(size) == 4 and size[1:] == shape[1:] for size in sizes)
        if not fits or sum(size[0] for size in sizes) != shape[0]:
            raise ShapeError(
                f"this {self.what} has shape {' and '.join(map(str, sizes)) or 'nothing'}, but the job was prepared "
                f"for {tuple(shape)}. Prepare one for this shape."
            )

    def part(self, items: slice) -> Tensor:
        """Some items of the batch, [b, C, H, W], together on the device of the first."""
        found = []
        start = 0
        for part in self.parts:
            chosen = part[max(0, items.start - start) : max(0, items.stop - start)]
            start += len(part)
            if len(chosen):
                found.append(chosen)
        return found[0] if len(found) == 1 else torch.cat([each.to(found[0].device) for each in found])

    def check_finite(self) -> None:
        """Raise NonFiniteError if there are NaN or infinite values."""
        bad = sum(count_not_finite(part) for part in self.parts)
        if bad:
            raise NonFiniteError(not_finite_message(self.what, bad, sum(part.numel() for part in self.parts)))

    def check_range(self, dtype: torch.dtype) -> None:
        """Raise NonFiniteError if values are so large that the variance of a norm would go out of a type's range.

        A norm divides by it, so that what comes out is finite and wrong.
        """
        ends = [float(end) for part in self.parts if part.numel() for end in torch.aminmax(part.detach())]
        most = max(map(abs, ends), default=0.0)
        if dtype != torch.float16 and most > torch.finfo(dtype).max ** 0.5 / _GROWTH:
            raise NonFiniteError(
                f"this {self.what} has values of up to {most:.3g}, whose squares go out of the range of {dtype}. Look "
                f"at what made the {self.what}, or run this model in float64."
            )

    def check_output(self, out: Any, shape: Shape) -> None:
        """Raise ShapeError unless `out` can take the result."""
        why = given_obstacle(out)
        if why is not None or tuple(out.shape) != shape or out.dtype not in PRECISIONS:
            found = f"is {tuple(out.shape)} of {out.dtype}" if why is None else why.what
            raise ShapeError(f"out {found}; the result is {shape}, in a floating-point type. Give such a tensor.")


def check_tensor(x: Any, what: str) -> None:
    """Raise ShapeError or ImageError unless x is a dense tensor of real floating-point numbers."""
    check_given(x, f"this {what}", ShapeError)
    if x.dtype not in PRECISIONS:
        name = str(x.dtype).removeprefix("torch.")
        if what == "image" and not x.is_floating_point() and not x.is_complex():
            raise ImageError(
                f"this image has dtype {name}; the model takes floating point from -1 to 1. Convert it, such as by "
                f"image / 127.5 - 1 for bytes from 0 to 255."
            )
        raise ShapeError(f"this {what} has dtype {name}; give float32, bfloat16, float16 or float64.")


def count_not_finite(x: Tensor) -> int:
    """How many values are NaN or infinite, of any type of number.

    Nothing is made that is as large as x unless there are some, or torch has no order for its type.
    """
    x = torch.view_as_real(x) if x.is_complex() else x
    if not x.is_floating_point():
        return 0
    return sum(map(_count_not_finite, _pieces(x.detach())))


def _pieces(x: Tensor) -> Sequence[Tensor]:
    """Parts of a tensor of the CPU so small that torch looks at each without other threads.

    This is done before it is known whether there can be any; OpenMP ends the process if there cannot.
    """
    count = -(-x.numel() // GRAIN)
    if count < 2 or x.device.type != "cpu":
        return [x]
    longest = max(range(x.dim()), key=lambda axis: x.shape[axis])
    parts = x.tensor_split(min(count, x.shape[longest]), longest)
    return [piece for part in parts for piece in _pieces(part)]


def _count_not_finite(x: Tensor) -> int:
    if x.dtype.itemsize == 1:
        x = x.float()
    least, most = torch.aminmax(x)  # NaN is both
    if torch.isfinite(least) and torch.isfinite(most):
        return 0
    return x.numel() - int(torch.isfinite(x).sum())


def not_finite_message(what: str, bad: int, count: int, where: str = "the VAE") -> str:
    """The sentence for what has NaN or infinite values before it comes to `where`."""
    return (
        f"this {what} already has {bad} values that are NaN or infinite, of {count}. The fault is before {where}: look "
        f"at what made the {what}."
    )
