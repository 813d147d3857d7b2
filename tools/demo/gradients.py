"""The gradient of a 3x3 convolution by matrix products, for training on a processor.

oneDNN takes four to seven times as long for the gradient of a few channels' weights as for the convolution itself.
With each image padded by one pixel and its rows one after the other, the gradient of each of the nine taps is one
product of two views: gradient of the output by the input, moved by the tap's offset.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 4096  # of the products at a time: they stay in the cache for all nine taps


class Convolution3x3(torch.autograd.Function):
    """A 3x3 convolution with padding 1 and stride 1; tensors are channels-last."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        of_input = None
        if ctx.needs_input_grad[0]:
            turned = weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)
            of_input = F.conv2d(gradient, turned, padding=1)
        return of_input, weight_gradient(x, gradient), gradient.sum((0, 2, 3))


def weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """Gradient [O, C, 3, 3] of the weights from the input [B, C, H, W] and the gradient [B, O, H, W] of the output."""
    width = x.shape[3] + 2
    inputs = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).reshape(-1, x.shape[1])
    outputs = F.pad(gradient.permute(0, 2, 3, 1), (0, 0, 0, 2, 0, 2)).reshape(-1, gradient.shape[1])
    taps = x.new_zeros(3, 3, gradient.shape[1], x.shape[1])
    rows = len(outputs) - 2 * width - 2  # those after them are padding
    for start in range(0, rows, ROWS):
        stop = min(start + ROWS, rows)
        turned = outputs[start:stop].t()
        for row in range(3):
            for column in range(3):
                offset = row * width + column
                taps[row, column].addmm_(turned, inputs[start + offset : stop + offset])
    return taps.permute(2, 3, 0, 1)


def use_products(model: nn.Module) -> None:
    """Let every 3x3 convolution of stride 1 of a model have its gradient by products."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and module.stride == (1, 1):
            module._conv_forward = lambda x, weight, bias: Convolution3x3.apply(x, weight, bias)  # type: ignore
