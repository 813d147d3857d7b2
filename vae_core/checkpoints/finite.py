"""Weights that are not finite numbers: a damaged file, or a training run that failed.

What loading does not read is not looked at here; a run that makes NaN of finite numbers finds the weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..streaming.half import is_finite
from .layouts import is_length, scaled
from .plan import CheckpointPlan


def check_small(plan: CheckpointPlan) -> None:
    """Raise CheckpointError if a bias or a norm has NaN or infinity, or a scale of 8-bit weights.

    Those are a thousandth of the weights, and every layer has one, so that the check reads next to nothing of the
    file; a training run that diverged, or a file of NaN, spoils all of them. They are copied, because a file may be cut
    short while a server looks at it.
    """
    named = {key: plan.keys[key] for key in plan.keys if len(plan.info(key).shape) == 1}
    named |= {real: real for real in plan.scales.values()}
    read = plan.source.read(set(named.values()), mapped=False)
    small = {name: read[real] for name, real in named.items()}
    variance = next((weight for name, weight in small.items() if name.endswith("bn.running_var")), None)
    if variance is not None and bool((variance < 0).any()):
        raise CheckpointError(
            f"{plan.source.path.name} has a negative variance in bn.running_var ({variance.min().item():g}), by which "
            f"latents are normalised: the file is damaged. Get another copy."
        )
    same = [(weight if weight.dtype == torch.float32 else weight.float()).reshape(-1) for weight in small.values()]
    if not same or is_finite(torch.cat(same)):
        return
    bad = [name for name, weight in small.items() if not weight.float().isfinite().all()]
    kinds = "biases, norms and scales" if plan.scales else "biases and norms"
    raise CheckpointError(
        f"{plan.source.path.name} has weights that are not finite ({len(bad)} of the {len(small)} {kinds}, such as "
        f"{bad[0]}): the file is damaged or its training failed. Get another copy."
    )


def check_scales(plan: CheckpointPlan) -> None:
    """Raise CheckpointError if a scale of an 8-bit weight is negative, or 0 for numbers that are not 0.

    What scales are made of, the largest number of a weight, is neither; a weight of zeros alone is what has a scale
    of 0 in files of programs that do not look. Only such a weight is read.
    """
    scales = {key: real for key, real in plan.scales.items() if not is_length(real)}
    read = plan.source.read(scales.values(), mapped=False)
    for key, real in scales.items():
        scale = read[real].float()
        lowest = scale.min().item() if scale.numel() else 1.0
        if lowest > 0:
            continue
        if lowest == 0:
            [weight] = plan.source.read([plan.keys[key]], mapped=False).values()
            if not scaled(weight, (scale == 0).float(), torch.float32).count_nonzero():
                continue
        raise CheckpointError(
            f"{plan.source.path.name} has the scale {lowest:g} in {real}; a scale of 8-bit floats is above 0: the file "
            f"is damaged. Get another copy."
        )


def check_whole(plan: CheckpointPlan, key: str, weight: Tensor) -> None:
    """Raise CheckpointError if a weight has NaN or infinity. For weights that are read anyway: it reads all of it."""
    if not is_finite(weight):
        raise CheckpointError(f"{plan.source.path.name}: {key} {_what(weight)}. Get another copy.")


@torch.no_grad()
def _what(weight: Tensor) -> str:
    kind = "NaN" if bool(weight.float().isnan().any()) else "infinity"
    return f"has {kind} in it: the file is damaged or its training failed"
