"""How a file's tensors are laid out, where that is not as torch has them.

Kernels with channels last (MLX's, Keras's), fused attention projections, 8-bit floats with scales, and weights that
are written as a direction and a length (weight norm).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import CheckpointError
from .tensor_file import KeptPart, TensorFile, TensorInfo

_KERNEL = re.compile(r".*\.conv[12]\.weight")
_FUSED = re.compile(r"(.*\.(?:attn_1|attn\.\d+|attentions\.\d+)\.)(?:to_)?qkv\.(weight|bias)")

# Beside an 8-bit weight: what it is to be multiplied by, in ComfyUI's words, in diffusers', and in those of files with
# one for each block, which say "inverse" of the scale that they were divided by.
SCALES = (".scale_weight", ".weight_scale", ".weight_scale_inv")
SCALED = "scaled_fp8"  # ComfyUI's mark of a file with scales
# Beside them: how a layer's input would be quantised, and a note of the format. A VAE that is not computed in 8 bits
# needs neither.
BESIDE_SCALES = (".scale_input", ".input_scale", ".output_scale", ".scale_output", ".comfy_quant")
# Beside a weight of weight norm, which is a direction: the length for each output. See `key_map.plain_name`.
LENGTHS = (".weight_g", ".parametrizations.weight.original0")
DIRECTIONS = (".weight_v", ".parametrizations.weight.original1")
EIGHT_BIT_FLOATS = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
_BLOCK = 128  # sides of the blocks that have a scale each

# Where a 3x3 kernel has its rows and columns -> the order that makes it torch's [out, in, H, W].
_ORDERS = {(2, 3): (0, 1, 2, 3), (1, 2): (0, 3, 1, 2), (0, 1): (3, 2, 0, 1)}


def channels_first(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Kernels [out, in, H, W], whether a file has them so, as MLX does, [out, H, W, in], or as Keras, [H, W, in, out].

    The 3x3 kernels of the residual blocks tell which it is: they have far more channels than 3. Nothing is changed
    where they do not agree: see `why_not`.
    """
    orders = _kernel_orders(tensors)
    if len(orders) != 1 or why_not(tensors) is not None:
        return dict(tensors)
    order = orders.pop()
    if order == (0, 1, 2, 3):
        return dict(tensors)
    return {name: _permuted(info, order) if len(info.shape) == 4 else info for name, info in tensors.items()}


def why_not(tensors: Mapping[str, TensorInfo]) -> str | None:
    """Why the order of a file's channels cannot be made torch's, as sentences; None where it can."""
    orders = _kernel_orders(tensors)
    if len(orders) > 1:
        return (
            "Some of its kernels have their channels first and some last, and nothing shows which of the others do: "
            "it was only partly converted. Convert it from the original again."
        )
    if orders == {(3, 2, 0, 1)} and any(len(info.shape) == 2 for info in tensors.values()):
        return (
            "Its kernels are [height, width, in, out], as Keras and Flax have them, and nothing shows whether its "
            "matrices are transposed as well. Get the VAE as PyTorch weights."
        )
    return None


def _kernel_orders(tensors: Mapping[str, TensorInfo]) -> set[tuple[int, ...]]:
    shapes = [info.shape for name, info in tensors.items() if _KERNEL.fullmatch(name) and len(info.shape) == 4]
    return {_ORDERS[place] for shape in shapes for place in _ORDERS if [shape[axis] for axis in place] == [3, 3]}


def _permuted(info: TensorInfo, order: tuple[int, ...]) -> TensorInfo:
    _, b, c, d = info.shape
    strides = info.stride or (b * c * d, c * d, d, 1)
    return info._replace(shape=tuple(info.shape[axis] for axis in order), stride=tuple(strides[axis] for axis in order))


def unfused(source: TensorFile, names: Mapping[str, str]) -> tuple[TensorFile, dict[str, str]]:
    """A file whose fused attention projections are three, where the three are not in it as well.

    Args:
        names: plain name -> the file's name.

    Returns:
        The file with more tensors, which are thirds of those in it, and `names` with theirs.
    """
    tensors = dict(source.tensors)
    files = dict(source.files)
    values = dict(source.values)
    found = dict(names)
    for name, real in names.items():
        match = _FUSED.fullmatch(name)
        info = source.tensors[real]
        if match is None:
            continue
        if any(f"{match[1]}{word}.{match[2]}" in names for word in ("to_q", "q", "query")):
            del found[name]  # it repeats them
            continue
        if not info.shape or info.shape[0] % 3 or info.dtype is None:
            continue
        shape = (info.shape[0] // 3, *info.shape[1:])
        del found[name]
        third = info._replace(shape=shape)
        step = third.elements if info.stride is None else shape[0] * info.stride[0]
        for i, letter in enumerate("qkv"):
            part = f"{real}[{letter}]"
            tensors[part] = third._replace(start=info.start + i * step * info.dtype.itemsize)
            if real in values:
                values[part] = KeptPart(values[real], i, 3)
                tensors[part] = third
            else:
                files[part] = source.files[real]
            found[f"{match[1]}to_{letter}.{match[2]}"] = part
    if found == names:
        return source, found
    return replace(source, tensors=tensors, files=files, values=values), found


def is_wide(dtype: torch.dtype | None) -> bool:
    """Whether a type is one that a model computes with: floating-point numbers of at least 16 bits."""
    return dtype is not None and dtype.is_floating_point and dtype.itemsize > 1


def type_name(dtype: torch.dtype | None) -> str:
    """A number type in words."""
    return "a type that torch does not have" if dtype is None else f"type {str(dtype).removeprefix('torch.')}"


def is_length(name: str) -> bool:
    """Whether what is beside a weight is the length of weight norm, and not a scale of 8-bit floats."""
    return name.endswith(LENGTHS)


def check_scale(file: str, name: str, weight: TensorInfo, scale: TensorInfo) -> None:
    """Raise CheckpointError unless a scale is what its weight can be multiplied by, with one meaning.

    That is a number, one for each output, in the shape [1, in, ...] one for each input, or for a matrix one for each
    block of it; for weight norm one for each output.
    """
    if is_length(name):
        if not weight.shape or scale.shape != (weight.shape[0],) + (1,) * (len(weight.shape) - 1):
            raise CheckpointError(
                f"{file} has {name} of shape {scale.shape} for a weight of shape {weight.shape}: weight norm has one "
                f"length for each output. Remove weight norm where the model was made, and save it again."
            )
        return
    if weight.dtype not in EIGHT_BIT_FLOATS or scale.dtype is None or not scale.dtype.is_floating_point:
        raise CheckpointError(
            f"{file} has {name} of {type_name(scale.dtype)} for a weight of {type_name(weight.dtype)}: it is quantised "
            f"in a way that is not known here. Get the VAE in float16, bfloat16 or float32."
        )
    kinds = (_is_by_output, _is_spread, _blocks)
    if not (_is_one(scale.shape) or any(fits(scale.shape, weight.shape) for fits in kinds)):
        raise CheckpointError(
            f"{file} has {name} of shape {scale.shape} for a weight of shape {weight.shape}; it may be one number, "
            f"one for each output, one for each input as [1, in], or one for each block of {_BLOCK} by {_BLOCK} of a "
            f"matrix. Get the VAE in float16, bfloat16 or float32."
        )


def check_every_scale(
    file: str, weights: Mapping[str, TensorInfo], scales: Mapping[str, str], is_marked: bool = False
) -> None:
    """Raise CheckpointError if a kernel or a matrix of 8-bit floats lacks a scale that it seems to have had.

    Args:
        weights, scales: by diffusers keys; see `CheckpointPlan`.
        is_marked: whether the file is marked as one of scaled weights. Without the mark all may be without scales.
    """
    stored = [key for key, info in weights.items() if info.dtype in EIGHT_BIT_FLOATS and len(info.shape) > 1]
    without = [key for key in stored if key not in scales]
    if without and (is_marked or len(without) < len(stored)):
        kind = type_name(weights[without[0]].dtype)
        raise CheckpointError(
            f"{file} has no scale of {without[0]}, which is of {kind} ({len(stored) - len(without)} of "
            f"{len(stored)} such weights have one): without it the weight has other numbers. The file is incomplete: "
            f"get another copy, or the VAE in float16, bfloat16 or float32."
        )


def _is_one(scale: tuple[int, ...]) -> bool:
    return all(side == 1 for side in scale)


def _is_by_output(scale: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    return bool(scale) and bool(weight) and scale[0] == weight[0] and _is_one(scale[1:])


def _is_spread(scale: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Whether each side of a scale is that of its weight, or 1. A single side could be the outputs or the inputs."""
    if not (2 <= len(scale) <= 4 and 2 <= len(weight) <= 4):
        return False
    return all(side in (1, whole) for side, whole in zip(_sides(scale), _sides(weight), strict=True))


def _sides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A matrix as a 1x1 kernel."""
    return shape + (1,) * (4 - len(shape))


def _blocks(scale: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Whether a matrix, which may be a 1x1 kernel, has one number for each block."""
    if len(scale) != 2 or len(weight) < 2 or not _is_one(weight[2:]):
        return False
    return all(count == -(-side // _BLOCK) for count, side in zip(scale, weight, strict=False))


def scaled(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """An 8-bit weight times its scale, worked out in float32 and rounded once to `dtype`."""
    scale = scale.float()
    if _is_one(tuple(scale.shape)):
        scale = scale.reshape(())
    elif _is_by_output(tuple(scale.shape), tuple(weight.shape)):
        scale = scale.reshape(-1, *(1,) * (weight.ndim - 1))
    elif _is_spread(tuple(scale.shape), tuple(weight.shape)):
        scale = scale.reshape(_sides(tuple(scale.shape))[: weight.ndim])
    else:
        for axis in (0, 1):
            scale = scale.repeat_interleave(_BLOCK, axis).narrow(axis, 0, weight.shape[axis])
        scale = scale.reshape(*scale.shape, *(1,) * (weight.ndim - 2))
    return (weight.float() * scale).to(dtype)


def of_length(direction: Tensor, length: Tensor) -> Tensor:
    """The weight of weight norm (Salimans & Kingma, 2016, equation 2): the direction, made as long as `length`."""
    wide = direction.double()
    norms = wide.flatten(1).norm(dim=1).reshape(length.shape)
    return (wide * (length.double() / norms)).to(direction.dtype)
