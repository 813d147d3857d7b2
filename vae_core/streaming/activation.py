"""Norm and activation of a strip in torch's operations, on any device, in any precision."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IN_PLACE = (torch.float32, torch.float64)
"""Precisions in which a norm is applied without a wider copy."""

_NOTHING = 1e-12  # some of torch's batch norms refuse an eps of 0


def activate(x: Tensor, scale: Tensor, shift: Tensor, act: nn.Module, out: Tensor) -> None:
    """out = act(x * scale + shift) for [B, H, W, C] in any precision.

    scale and shift [B, C] are in float32, or in float64 for x in that.
    """
    if x.device.type == "cuda" and len(x) == 1 and x.dtype != torch.float64:
        out.copy_(act_of_batch_norm(x, scale[0], shift[0], act))
    elif out.dtype in IN_PLACE and isinstance(act, nn.SiLU):
        F.silu(torch.addcmul(shift[:, None, None], x, scale[:, None, None], out=out), inplace=True)
    else:
        out.copy_(act(torch.addcmul(shift[:, None, None], x.to(scale.dtype), scale[:, None, None])))


def act_of_batch_norm(x: Tensor, scale: Tensor, shift: Tensor, act: nn.Module) -> Tensor:
    """The same for one item, with scale and shift [C], in two kernels that write no more than the result.

    Batch norm with fixed statistics reads half precision, computes in float32 and writes half precision.
    """
    mean = torch.zeros_like(shift)
    variance = torch.ones_like(scale)  # 1 + _NOTHING is 1
    y = F.batch_norm(x.permute(0, 3, 1, 2), mean, variance, scale, shift, training=False, eps=_NOTHING)
    y = F.silu(y, inplace=True) if isinstance(act, nn.SiLU) else act(y)
    return y.permute(0, 2, 3, 1)
