"""How a file's tensors lie in memory, where that is not as torch has them: MLX's kernels, 8-bit floats with scales."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import CheckpointError
from .tensor_file import TensorInfo

_KERNEL = re.compile(r".*\.conv[12]\.weight")

# Beside an 8-bit weight: what it is to be multiplied by, in ComfyUI's words and in diffusers'.
SCALES = (".scale_weight", ".weight_scale")
# Beside them: how a layer's input would be quantised, and a note of the format. A VAE that is not computed in 8 bits
# needs neither.
BESIDE_SCALES = (".scale_input", ".input_scale", ".comfy_quant")
EIGHT_BIT_FLOATS = (torch.float8_e4m3fn, torch.float8_e5m2)


def channels_first(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Kernels [out, in, H, W], whether a file has them so or as MLX does: [out, H, W, in].

    The 3x3 kernels of the residual blocks tell which it is: they have far more channels than 3.
    """
    kernels = [info.shape for name, info in tensors.items() if _KERNEL.fullmatch(name) and len(info.shape) == 4]
    last = [shape for shape in kernels if shape[1:3] == (3, 3)]
    if not kernels or len(last) < len(kernels) or all(shape[2:] == (3, 3) for shape in kernels):
        return dict(tensors)
    return {name: _permuted(info) if len(info.shape) == 4 else info for name, info in tensors.items()}


def _permuted(info: TensorInfo) -> TensorInfo:
    out, height, width, channels = info.shape
    strides = info.stride or (height * width * channels, width * channels, channels, 1)
    return info._replace(shape=(out, channels, height, width), stride=(strides[0], strides[3], strides[1], strides[2]))


def check_scale(file: str, name: str, weight: TensorInfo, scale: TensorInfo) -> None:
    """Raise CheckpointError unless a scale is one number for an 8-bit weight, or one for each of its outputs."""
    numbers = 1
    for side in scale.shape:
        numbers *= side
    if weight.dtype not in EIGHT_BIT_FLOATS or scale.dtype is None or not scale.dtype.is_floating_point:
        raise CheckpointError(
            f"{file} has {name} of type {scale.dtype} for a weight of type {weight.dtype}: it is quantised in a way "
            f"that is not known here. Get the VAE in float16, bfloat16 or float32."
        )
    if numbers != 1 and (not weight.shape or numbers != weight.shape[0]):
        raise CheckpointError(
            f"{file} has {name} of shape {scale.shape} for a weight of shape {weight.shape}; it may be one number, or "
            f"one for each output. Get the VAE in float16, bfloat16 or float32."
        )


def scaled(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """An 8-bit weight times its scale, worked out in float32 and rounded once to `dtype`."""
    scale = scale.float().reshape(-1, *(1,) * (weight.ndim - 1)) if scale.numel() > 1 else scale.float().reshape(())
    return (weight.float() * scale).to(dtype)
