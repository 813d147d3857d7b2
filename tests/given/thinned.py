"""Fewer combinations by default: each pair of values once, the whole product behind `-m slow`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest


def thinned(**axes: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrise a test with every combination of values; those that add no new pair of them are slow.

    Each pair of values of any two axes is in a combination that is not slow, so that what goes wrong where two values
    meet is found by default. The choice is greedy and always the same.
    """
    values = [list(each) for each in axes.values()]
    every = list(itertools.product(*values))
    indices = list(itertools.product(*(range(len(each)) for each in values)))
    missing = set(itertools.chain.from_iterable(map(_pairs, indices)))
    quick = set()
    while missing:
        best = max(indices, key=lambda each: len(missing.intersection(_pairs(each))))
        quick.add(best)
        missing.difference_update(_pairs(best))
    cases = [
        pytest.param(*case, marks=() if index in quick else pytest.mark.slow, id="-".join(map(_name, case)))
        for index, case in zip(indices, every, strict=True)
    ]
    return pytest.mark.parametrize(list(axes), cases)


def mostly_slow(values: Iterable[Any], *quick: Any) -> list[Any]:
    """Values of one axis, of which all but some are slow.

    Raises:
        ValueError: a quick one that is not among the values.
    """
    listed = list(values)
    if not set(quick) <= set(listed):
        raise ValueError(f"{set(quick) - set(listed)} are not among {listed}")
    return [pytest.param(value, marks=() if value in quick else pytest.mark.slow, id=_name(value)) for value in listed]


def _pairs(indices: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
    return [(a, i, b, j) for (a, i), (b, j) in itertools.combinations(enumerate(indices), 2)]


def _name(value: Any) -> str:
    return str(value).replace(", ", "x").strip("()")
