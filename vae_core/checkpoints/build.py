"""From a plan to a model: built on the meta device, then given the file's tensors as its weights."""

from __future__ import annotations

import gc
import inspect
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..config import is_field
from ..errors import CheckpointError, MemoryBudgetError, brief
from ..layers import without_values
from ..streaming.devices import why_unusable
from ..streaming.internals import weight_places
from ..streaming.shortage import is_out_of_memory
from ..units import MIB
from .config_file import others_in, passed_over
from .finite import check_scales, check_small, check_whole
from .key_map import OPTIONAL, weight_shapes, with_counters
from .layouts import is_length, of_length, scaled
from .plan import OWN, CheckpointPlan, inner, with_extra
from .shapes import check_shapes

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
        raise CheckpointError(f"dtype is {brief(dtype)}; give float32, float16, bfloat16, float64 or auto.")
    return found


def usable_device(device: torch.device | str | int | None) -> torch.device | str | int | None:
    """The device itself. Raises CheckpointError for one that nothing can be put on here."""
    if device is not None and (reason := why_unusable(device)) is not None:
        raise CheckpointError(
            f"the device {brief(device)} cannot be used here: {reason}. Give cpu, cuda, cuda:1 or mps, or leave it out."
        )
    return device


def dtype_of(plan: CheckpointPlan) -> torch.dtype:
    """The number type of a plan's weights: the one that can represent all of them, where the file mixes types.

    Of 8-bit floats with scales it is the type of the other weights, or float32 where there are none: a product with
    a scale is not an 8-bit float.

    Raises:
        CheckpointError: the weights are not floating-point numbers.
    """
    dtypes = {
        plan.info(key).dtype
        for key in plan.keys
        if (key not in plan.scales or is_length(plan.scales[key])) and not key.endswith("num_batches_tracked")
    }
    if plan.scales and not any(dtype is not None and dtype.itemsize > 1 for dtype in dtypes):
        dtypes.add(torch.float32)
    wrong = [dtype for dtype in dtypes if dtype is None or not dtype.is_floating_point]
    if wrong:
        raise CheckpointError(
            f"{plan.source.path.name} has weights of type {_name(wrong[0])}: it is quantised or packed. "
            f"Get the VAE in float16, bfloat16 or float32."
        )
    widest, *rest = sorted(dtypes, key=str)  # type: ignore[type-var]
    for dtype in rest:
        widest = _wider(widest, dtype)
    assert widest is not None
    return widest


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.") if dtype is not None else "that torch does not have"


def _wider(a: torch.dtype | None, b: torch.dtype | None) -> torch.dtype:
    assert a is not None and b is not None
    if a.itemsize == 1 or b.itemsize == 1:  # torch promotes no 8-bit floats
        return a if b.itemsize == 1 and a.itemsize > 1 else b if b.itemsize > 1 else torch.float32
    return torch.promote_types(a, b)


def check_weights(plan: CheckpointPlan) -> None:
    """Raise CheckpointError for whatever keeps a plan's weights from being loaded: shapes, types, damaged numbers.

    Reads the biases and norms, a thousandth of the file.
    """
    check_shapes(plan, weight_shapes(plan.config))
    dtype_of(plan)
    check_small(plan)
    if plan.scales:
        check_scales(plan)


def build_model(
    model_class: Callable[..., Model],
    plan: CheckpointPlan,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | int | None = None,
    mapped: bool = True,
) -> Model:
    """The model of a plan, in eval mode, its weights mapped from the file where neither type nor device changes.

    Args:
        mapped: False for weights that are copies; see `tensor_file`.

    Raises:
        CheckpointError: a weight has the wrong shape or type, or weights are not finite.
        MemoryBudgetError: there is no memory for them.
    """
    device = usable_device(device)
    check_shapes(plan, weight_shapes(plan.config))  # first, as inspect_vae says it
    wanted = parse_dtype(dtype) or dtype_of(plan)
    if wanted.itemsize == 1:
        wanted = torch.bfloat16  # has every 8-bit float, which nothing can be computed with
    # Weights made under inference_mode could never be trained, moved or saved after it.
    with torch.inference_mode(False), _no_garbage_collection(), _enough_memory(plan):
        return _build(model_class, plan, wanted, device, mapped, looked_at=dtype is not None or device is not None)


@contextmanager
def _enough_memory(plan: CheckpointPlan) -> Iterator[None]:
    """Say it in a sentence if memory runs out."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        size = sum(plan.source.tensors[name].size for name in plan.keys.values())
        raise MemoryBudgetError(
            f"there is not enough memory for the weights of {plan.source.path.name}, {size / MIB:.0f} MiB as they are "
            f"in the file. Close other programs, or raise this process's limit of memory if it has one."
        ) from error


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A model is some thousand objects that all live; looking for dead ones among them takes a tenth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _build(
    model_class: Callable[..., Model],
    plan: CheckpointPlan,
    wanted: torch.dtype,
    device: torch.device | str | int | None,
    mapped: bool,
    looked_at: bool,
) -> Model:
    """A model as `build_model` makes it.

    Args:
        looked_at: look weights that are converted through for damage, which `inspect_vae` does not.
    """
    with without_values():
        model = _made(model_class, plan)
    plan = _with_own_arguments(plan, own_arguments(model_class))
    places = {place.key: place for place in weight_places(model)}
    own = {*plan.keys, *plan.mismatched} - OPTIONAL
    extra = set(places) - own - OPTIONAL
    if own - set(places) or any(key.partition(".")[0] in OWN for key in extra):
        raise CheckpointError(
            f"{model_class} has other weights than an AutoencoderKL with its config. Load an AutoencoderKL instead, "
            f"and take its state dict."
        )
    beside = _read_extra(plan, {key: tuple(places[key].value.shape) for key in extra}, mapped)
    plan = with_extra(plan, beside)
    weights = read_weights(plan, weight_shapes(plan.config), wanted, mapped)
    absent = extra - beside.keys()
    if absent:
        names = ", ".join(sorted(absent)[:5])
        logger.warning("%s has no %s: left as they are initialised.", plan.source.path.name, names)
    weights |= beside | _initialised(model_class, plan, absent)
    for key in list(weights):
        weight = weights.pop(key)  # so that a copy that is converted is not kept
        if device is not None or (weight.dtype is not wanted and weight.is_floating_point()):
            if looked_at:
                check_whole(plan, key, weight)  # it is read anyway
            weight = weight.to(device=device, dtype=wanted if weight.is_floating_point() else None)
        places[key].fill(weight, places[key].value.requires_grad)
    for module in model.modules():
        module.__dict__["training"] = False  # what eval() does, through a slower setter
    model.__dict__["guesses"] = plan.guesses  # so that saving does not make facts of them
    model.register_to_config(**{**plan.config.extras, "_class_name": type(model).__name__})  # type: ignore[operator]
    return model


def _made(model_class: Callable[..., Model], plan: CheckpointPlan) -> Model:
    extras = plan.config.extras
    own = {name: extras[name] for name in own_arguments(model_class) if name in extras}
    return model_class(**accepted(model_class, {**plan.config.without_extras(), **own}))


def _with_own_arguments(plan: CheckpointPlan, own: set[str]) -> CheckpointPlan:
    """The plan without the remark on fields of the config that a class of one's own takes."""
    names = others_in(plan.config.extras)
    said = passed_over(names)
    others = passed_over([name for name in names if name not in own])
    return plan if said == others else replace(plan, remarks=(*(r for r in plan.remarks if r not in said), *others))


def own_arguments(model_class: Callable[..., Any]) -> set[str]:
    """The named arguments of a derived class's constructor that are not fields of an AutoencoderKL."""
    return {name for name in _parameters(model_class) if not is_field(name)}


def accepted(model_class: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that a class's constructor takes: one of a derived class may fix some fields itself."""
    names = _parameters(model_class)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in _signature(model_class))
    return {name: value for name, value in arguments.items() if takes_any or not names or name in names}


def _parameters(model_class: Callable[..., Any]) -> set[str]:
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {parameter.name for parameter in _signature(model_class) if parameter.kind not in several} - {"self"}


def _signature(model_class: Callable[..., Any]) -> list[inspect.Parameter]:
    if not isinstance(model_class, type):
        return []
    return list(inspect.signature(model_class.__init__).parameters.values())


def _read_extra(plan: CheckpointPlan, shapes: Mapping[str, tuple[int, ...]], mapped: bool) -> dict[str, Tensor]:
    """Those weights that a class derived from AutoencoderKL has beside it, and the file as well, in these shapes."""
    if not shapes:
        return {}
    names = inner(plan.source, plan.prefix).names
    found = {key: names[key] for key, shape in shapes.items() if key in names}
    found = {key: name for key, name in found.items() if plan.source.tensors[name].shape == shapes[key]}
    read = plan.source.read(found.values(), mapped)
    return {key: read[name] for key, name in found.items()}


def _initialised(
    model_class: Callable[..., nn.Module], plan: CheckpointPlan, extra: Collection[str]
) -> dict[str, Tensor]:
    """The values that a new model begins with, of those weights that a plan does not take from its file."""
    keys = {*plan.mismatched, *extra}
    if not keys:
        return {}
    with torch.device("cpu"):
        values = _made(model_class, plan).state_dict()
    return {key: values[key] for key in keys}


def read_weights(
    plan: CheckpointPlan, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype | None = None, mapped: bool = True
) -> dict[str, Tensor]:
    """A plan's weights by their diffusers keys, in the shapes that a model has: views of the file
    where it has them row after row.

    Args:
        dtype: of 8-bit floats that have scales, which are multiplied by them; None for that of the other weights.
        mapped: False for copies.

    Raises:
        CheckpointError: a weight has another shape, or weights are not finite.
    """
    check_weights(plan)
    check_shapes(plan, shapes)
    for remark in plan.remarks:
        logger.warning("%s: %s", plan.source.path.name, remark)
    read = plan.source.read([*plan.keys.values(), *plan.scales.values()], mapped)
    weights = {key: read.pop(name) for key, name in plan.keys.items()}
    for key, name in plan.scales.items():
        one = weights[key]
        weights[key] = (
            of_length(one, read[name]) if is_length(name) else scaled(one, read[name], dtype or dtype_of(plan))
        )
    weights = with_counters(weights, shapes)
    for key, weight in weights.items():
        if weight.shape != shapes[key]:  # LDM's 1x1 kernels: matrices
            weights[key] = weight.reshape(shapes[key])
        elif weight.ndim == 4 and not weight.is_contiguous():  # MLX's kernels: rows of torch's
            weights[key] = weight.contiguous()
    return weights
