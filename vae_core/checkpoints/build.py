"""From a plan to a model: built on the meta device, then given the file's tensors as its weights."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .key_map import OPTIONAL
from .plan import Plan, check_shapes

logger = logging.getLogger("seamless_vae")

Model = TypeVar("Model", bound=nn.Module)
DTYPES = {
    "float64": torch.float64,
    "fp64": torch.float64,
    "float32": torch.float32,
    "fp32": torch.float32,
    "float16": torch.float16,
    "fp16": torch.float16,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
}


def parse_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A floating-point torch type from itself or its name; None for None and "auto", the type of the file.

    Raises:
        CheckpointError: anything else.
    """
    if dtype is None or dtype == "auto":
        return None
    found = DTYPES.get(dtype.removeprefix("torch.").lower()) if isinstance(dtype, str) else dtype
    if found not in DTYPES.values():
        raise CheckpointError(f"dtype is {dtype!r}; give float32, float16, bfloat16, float64 or auto.")
    return found


def dtype_of(plan: Plan) -> torch.dtype:
    """The number type of a plan's weights: the one that holds all of them, where the file mixes types.

    Raises:
        CheckpointError: the weights are no floating-point numbers.
    """
    dtypes = {plan.info(key).dtype for key in plan.keys if not key.endswith("num_batches_tracked")}
    wrong = [dtype for dtype in dtypes if dtype is None or not dtype.is_floating_point]
    if wrong:
        raise CheckpointError(
            f"{plan.source.path.name} has weights of type {wrong[0] or 'unknown'}: it is quantised or packed. "
            f"Get the VAE in float16, bfloat16 or float32."
        )
    widest, *rest = sorted(dtypes, key=str)  # type: ignore[type-var]
    for dtype in rest:
        widest = _wider(widest, dtype)
    assert widest is not None
    return widest


def _wider(a: torch.dtype | None, b: torch.dtype | None) -> torch.dtype:
    assert a is not None and b is not None
    if a.itemsize == 1 or b.itemsize == 1:  # torch promotes no 8-bit floats
        return a if b.itemsize == 1 and a.itemsize > 1 else b if b.itemsize > 1 else torch.float32
    return torch.promote_types(a, b)


def build_model(
    model_class: Callable[..., Model],
    plan: Plan,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
) -> Model:
    """The model of a plan, in eval mode, its weights mapped from the file where neither type nor device changes.

    Raises:
        CheckpointError: a weight has the wrong shape or type, or weights are not finite.
    """
    wanted = parse_dtype(dtype) or dtype_of(plan)
    with torch.device("meta"):
        model = model_class(**plan.config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    check_shapes(plan, shapes)
    for remark in plan.remarks:
        logger.warning("%s: %s", plan.source.path.name, remark)

    read = plan.source.read(plan.keys.values())
    weights = {key: _fit(read[name], shapes[key]) for key, name in plan.keys.items()}
    check_finite(plan, weights)
    for key in OPTIONAL & shapes.keys() - weights.keys():
        weights[key] = torch.zeros(shapes[key], dtype=torch.int64)
    weights = {key: weight.to(device, wanted if weight.is_floating_point() else None) for key, weight in weights.items()}
    model.load_state_dict(weights, assign=True)
    return model.eval()


def _fit(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """LDM's 1x1 convolutions as matrices; a view."""
    return tensor if tuple(tensor.shape) == shape else tensor.view(shape)


def check_finite(plan: Plan, weights: dict[str, Tensor]) -> None:
    """Raise CheckpointError if a bias, a norm, or the first or last layer holds NaN or infinity.

    Those are a thousandth of the weights, from every layer, so that the check reads little of the file; a
    training run that diverged spoils all of them.
    """
    small = {key: w for key, w in weights.items() if w.ndim == 1 or ".conv_in." in key or ".conv_out." in key}
    if torch.cat([weight.flatten().float() for weight in small.values()]).isfinite().all():
        return
    bad = [key for key, weight in small.items() if not weight.float().isfinite().all()]
    raise CheckpointError(
        f"{plan.source.path.name} has weights that are no finite numbers ({len(bad)} of the {len(small)} looked at, "
        f"such as {bad[0]}): the file is damaged or its training failed. Get another copy."
    )
