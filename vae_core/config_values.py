"""Values of a config: numbers and sequences of any library as Python's own, and what JSON can hold."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Iterable, Mapping
from decimal import Decimal
from numbers import Rational
from typing import Any

LARGEST_COUNT = 2**31 - 1  # no model has a side as large
A_COUNT = f"a whole number from 1 to {LARGEST_COUNT}"


def has_order(value: Any) -> bool:
    """Whether a value is a sequence, of any library. A set has no order, and an iterator is used up by its reader.

    Nor is an array or a tensor without dimensions one: it is a number.
    """
    is_other = isinstance(value, str | bytes | Mapping) or getattr(value, "ndim", None) == 0
    return not is_other and isinstance(value, Iterable) and hasattr(value, "__len__") and hasattr(value, "__getitem__")


def plain_number(value: Any) -> Any:
    """A number of any library as Python's own; anything else as it is, such as a tensor without a value."""
    if type(value) in (bool, int, float, str, tuple, type(None)):
        return value
    item = getattr(value, "item", None)  # a number of numpy or torch
    if item is not None and getattr(value, "ndim", None) == 0 and not getattr(value, "is_meta", False):
        return item()
    if isinstance(value, Rational | Decimal) and not isinstance(value, int):
        return float(value)
    try:
        return operator.index(value)
    except TypeError:
        return value


def to_json(value: Any) -> Any:
    """What JSON can hold in place of a value of a config."""
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [to_json(item) for item in value]
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    for method in ("to_dict", "tolist"):
        if callable(getattr(value, method, None)):
            return to_json(getattr(value, method)())
    return str(value)


def is_count(value: Any) -> bool:
    """Whether a value is a whole number from 1 to `LARGEST_COUNT`."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST_COUNT


def is_number(value: Any) -> bool:
    """Whether a value is a finite number that a float has."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) < math.inf and abs(value) <= sys.float_info.max  # false for NaN, and for an int beyond floats
