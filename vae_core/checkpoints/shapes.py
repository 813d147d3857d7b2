"""Whether the weights of a file have the shapes that a model needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..errors import CheckpointError
from .plan import CheckpointPlan, inner, what_it_is


def check_shapes(plan: CheckpointPlan, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError where a weight of the file does not have the shape that the model needs.

    Matrices may be 1x1 kernels, and 1x1 kernels matrices.
    """
    wrong = [_is_where(plan, key, shapes) for key in _of_other_shapes(plan, shapes)]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        what = what_it_is(
            inner(plan.source, plan.prefix),
            "Use the config that belongs to these weights, or leave out the overrides that contradict them.",
        )
        raise CheckpointError(f"{plan.source.path.name}: {'; '.join(wrong[:3])}{more}. {what}")


def without_mismatched(plan: CheckpointPlan, shapes: Mapping[str, tuple[int, ...]]) -> CheckpointPlan:
    """The plan without the weights whose shapes are not those that the model needs, and with a remark that lists them.

    Raises:
        CheckpointError: that would be all of them.
    """
    others = _of_other_shapes(plan, shapes)
    if not others:
        return plan
    if len(others) == len(plan.keys):
        check_shapes(plan, shapes)
    wrong = "; ".join(_is_where(plan, key, shapes) for key in others)
    remark = f"left {len(others)} weights as they are initialised ({wrong}). Train the model before you use it."
    return replace(
        plan,
        keys={key: name for key, name in plan.keys.items() if key not in others},
        scales={key: name for key, name in plan.scales.items() if key not in others},
        mismatched={key: plan.info(key).shape for key in others},
        remarks=(*plan.remarks, remark),
    )


def _of_other_shapes(plan: CheckpointPlan, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    return [
        key
        for key in plan.keys
        if plan.info(key).shape != tuple(shapes[key]) and not _is_same_matrix(plan.info(key).shape, tuple(shapes[key]))
    ]


def _is_where(plan: CheckpointPlan, key: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    return f"{plan.keys[key]} is {_size(plan.info(key).shape)} where {_size(tuple(shapes[key]))} is needed"


def _is_same_matrix(found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether both are the same matrix [out, in], each with or without ones behind it."""
    if not (2 <= len(found) <= 4 and 2 <= len(expected) <= 4):
        return False
    return found[:2] == expected[:2] and set(found[2:]) | set(expected[2:]) <= {1}


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a single number"
