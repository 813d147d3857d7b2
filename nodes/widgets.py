"""Values of widgets as a node gets them: the host checks what is typed into one, but not what is linked to it."""

from __future__ import annotations

import functools
import inspect
import operator
import os
from collections.abc import Callable
from typing import Any

from ..vae_core.errors import ConfigError, brief

Widget = tuple[str, dict[str, Any]]  # its kind and its options


def check_values(node: Any) -> None:
    """Have a node's function raise ConfigError unless the values of its widgets are of their kinds and in their ranges.

    What is as good becomes what the function expects: 2.0 or NumPy's 2 a whole number, and so on.
    """
    run = getattr(node, node.FUNCTION)
    run = getattr(run, "unchecked", run)  # of a node that it is inherited from
    signature = inspect.signature(run)

    @functools.cache
    def widgets() -> dict[str, Widget]:
        groups = node.INPUT_TYPES()
        declared = {**groups.get("required", {}), **groups.get("optional", {})}
        kinds = {name: "COMBO" if isinstance(kind, list) else kind for name, (kind, _) in declared.items()}
        return {name: (kind, declared[name][1]) for name, kind in kinds.items() if kind in _KINDS}

    def checked(name: str, value: Any) -> Any:
        parameter = signature.parameters.get(name)
        if name not in widgets() or (parameter is not None and value is parameter.default):
            return value
        kind, options = widgets()[name]
        if getattr(node, "INPUT_IS_LIST", False) and isinstance(value, list):
            return [_KINDS[kind](name, each, options) for each in value]
        return _KINDS[kind](name, value, options)

    @functools.wraps(run)
    def with_checks(*args: Any, **kwargs: Any) -> Any:
        given: dict[str, Any] = {}
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            given |= value if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD else {name: value}
        return run(**{name: checked(name, value) for name, value in given.items()})

    with_checks.__dict__["unchecked"] = run
    setattr(node, node.FUNCTION, with_checks)


def _number(name: str, value: Any, options: dict[str, Any], what: str, convert: Callable[[Any], Any]) -> Any:
    try:
        found = convert(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last of a tensor
        raise ConfigError(f"{name} is {brief(value)}; it must be {what}.") from None
    if not found >= options["min"]:  # NaN is not
        raise ConfigError(f"{name} is {brief(value)}; it must be {options['min']:g} or more.")
    if not found <= options["max"]:
        raise ConfigError(f"{name} is {brief(value)}; it must be {options['max']} or less.")
    return found


def _whole(value: Any) -> int:
    whole: Any = int(value) if isinstance(value, float) and value.is_integer() else value
    return operator.index(whole)


def _real(value: Any) -> float:
    if isinstance(value, str | bytes | bytearray):
        raise TypeError
    return float(value)


def _truth(name: str, value: Any, options: dict[str, Any]) -> bool:
    try:
        if (found := operator.index(value)) in (0, 1):
            return bool(found)
    except (TypeError, RuntimeError):
        if type(value).__name__ in ("bool", "bool_"):  # NumPy's has no __index__
            return bool(value)
    raise ConfigError(f"{name} is {brief(value)}; it must be true or false.")


def _text(name: str, value: Any, options: dict[str, Any]) -> str:
    try:
        if isinstance(value, str):
            os.fsencode(value)  # the name of a file may have bytes that are not text
            return value
    except UnicodeEncodeError:
        raise ConfigError(f"{name} is {brief(value)}, which has characters that are none. Use others.") from None
    raise ConfigError(f"{name} is {brief(value)}; it must be text.")


_KINDS: dict[str, Callable[[str, Any, dict[str, Any]], Any]] = {
    "INT": functools.partial(_number, what="a whole number", convert=_whole),
    "FLOAT": functools.partial(_number, what="a number", convert=_real),
    "BOOLEAN": _truth,
    "STRING": _text,
    "COMBO": _text,
}
