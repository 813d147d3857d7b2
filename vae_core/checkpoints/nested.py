"""Which part of what a training script has saved is the model: state dicts inside of dictionaries."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..tensor_kinds import obstacle
from .detect import find_prefixes
from .key_map import plain_name
from .rebuild import Array, InlineTensor, StoredTensor, UnreadTensor

AnyTensor = StoredTensor | InlineTensor | UnreadTensor | Tensor  # a tensor itself in a dictionary that never was a file

# Names under which scripts save the weights, the one to take first. Moving averages come last.
WEIGHTS_FIRST = (
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "vae",
    "autoencoder",
    "net",
    "generator",
    "params",
)
AVERAGES = ("ema_model_state_dict", "ema_state_dict", "ema_model", "ema", "model_ema", "params_ema", "shadow_params")
MAX_DEPTH = 6
MAX_STEPS = 500_000  # items looked at; the largest real checkpoints have some ten thousand
MAX_NAME = 1_000  # characters, in any file of weights; real ones have a tenth
NAMES = 32 << 20  # bytes that all names may take, those of dictionaries in one another again
_NAME = 100  # bytes of one beside its characters


class _Steps:
    """Counts the items that are looked at and the names that are made, because one thing may be in a million places."""

    def __init__(self) -> None:
        self.left = MAX_STEPS
        self.names_left = NAMES

    def take(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise ValueError("its dictionaries are nested more deeply than those of any checkpoint")

    def name(self, prefix: str, name: str | int) -> str:
        """A name behind those that it is below, made only if there is room for it."""
        last = str(name)
        length = len(prefix) + len(last)
        self.names_left -= length + _NAME
        if length > MAX_NAME or self.names_left < 0:
            raise ValueError(f"its tensors have names of {length} characters or more, or too many names for any model")
        return prefix + last


class Found(NamedTuple):
    """The tensors of a model by name, and remarks on what was passed over."""

    tensors: dict[str, AnyTensor]
    remarks: tuple[str, ...] = ()


def find_tensors(content: Mapping[Any, Any]) -> Found:
    """The tensors of the model in a saved dictionary.

    Of several dictionaries in it that have both halves of an autoencoder, the first of the names above is taken. Where
    none has, everything is listed by dotted names, so that what it is can be said.
    """
    steps = _Steps()
    whole = [
        (path, tensors) for path, tensors in _dictionaries(content, steps) if find_prefixes(map(plain_name, tensors))
    ]
    inner = [
        (path, tensors)
        for path, tensors in whole
        if not any(other != path and other[: len(path)] == path for other, _ in whole)
    ]
    if inner:
        path, tensors = min(inner, key=lambda item: (_is_unread(item[1]), *_rank(item[0])))
        others = [other for other, _ in inner if other != path]
        if not others:
            return Found(tensors)
        took, left = (".".join(part[:40] for part in each) for each in (path, others[0]))
        return Found(tensors, (f"there are several models in the file; took {took}, not {left}.",))
    named = [content[name] for name in WEIGHTS_FIRST if isinstance(content.get(name), Mapping)]
    return Found(_flat(named[0] if named else content, steps))


def _is_unread(tensors: Mapping[str, AnyTensor]) -> bool:
    """Whether none of the tensors has values that can be read: an offloaded model beside its average."""
    return all(
        isinstance(each, UnreadTensor) or (isinstance(each, Tensor) and obstacle(each)) for each in tensors.values()
    )


def _rank(path: tuple[str, ...]) -> tuple[int, int]:
    average = any(part in AVERAGES for part in path)
    known = [WEIGHTS_FIRST.index(part) for part in path if part in WEIGHTS_FIRST]
    return (1 if average else 0), min(known, default=len(WEIGHTS_FIRST))


def _dictionaries(content: Mapping[Any, Any], steps: _Steps) -> Iterator[tuple[tuple[str, ...], dict[str, AnyTensor]]]:
    """(path, tensors below it by dotted names) of a dictionary and of those in it, each once."""
    seen: set[int] = set()
    waiting: deque[tuple[tuple[str, ...], Mapping[Any, Any]]] = deque([((), content)])
    while waiting:
        path, mapping = waiting.popleft()
        if id(mapping) in seen:
            continue
        seen.add(id(mapping))
        yield path, _flat(mapping, steps, depth=2)
        steps.take(len(mapping))
        if len(path) < MAX_DEPTH:
            inner = [(name, value) for name, value in mapping.items() if isinstance(name, str)]
            waiting.extend(((*path, name), value) for name, value in inner if isinstance(value, Mapping))


def _flat(content: Mapping[Any, Any], steps: _Steps, depth: int = MAX_DEPTH) -> dict[str, AnyTensor]:
    """Tensors by dotted names; dictionaries and lists that are in several places are looked into once."""
    found: dict[str, AnyTensor] = {}
    seen: set[int] = set()
    waiting: deque[tuple[str, int, Any]] = deque([("", 0, content)])
    while waiting:
        prefix, level, container = waiting.popleft()
        if id(container) in seen:
            continue
        seen.add(id(container))
        steps.take(len(container))
        items = container.items() if isinstance(container, Mapping) else enumerate(container)
        for name, value in items:
            if type(name) not in (str, int):
                continue
            if isinstance(value, AnyTensor):
                found[steps.name(prefix, name)] = value
            elif isinstance(value, Array) and value.has_numbers:
                found[steps.name(prefix, name)] = InlineTensor(value)
            elif isinstance(value, np.ndarray):  # in a dictionary that never was a file
                if value.dtype.kind in "fiub" and value.dtype.isnative:
                    found[steps.name(prefix, name)] = torch.from_numpy(value if value.flags.writeable else value.copy())
            elif level < depth and (type(value) in (list, tuple) or isinstance(value, Mapping)) and value:
                waiting.append((f"{steps.name(prefix, name)}.", level + 1, value))
    return found
