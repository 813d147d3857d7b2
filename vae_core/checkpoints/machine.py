"""What the program of a pickle may do: read, keep a stack, and make descriptions of tensors.

A pickle is a program that may call whatever it names. Python's unpickler is not used: it imports what is named, it
reserves memory for lengths that a file only claims, and it hashes and prints what it is given. Here names become
stand-ins (`allowed`), lengths are checked before they are read, keys are plain, and work and memory are limited by what
the largest real files need. Nothing of a file is ever printed but names and numbers.

Python's hashes of numbers are the same in every process, so that keys can be chosen that all have one hash, and each
then takes as long as there are others. Whole numbers are therefore smaller than the modulus of that hash, texts are
short; and what is left of such ways, the time limit ends.
"""

from __future__ import annotations

import struct
import sys
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, BinaryIO, NoReturn

from ..errors import UnsafeCheckpointError
from . import rebuild
from .allowed import (
    CONTAINERS,
    PLACEHOLDER,
    STATE_DICT_METADATA,
    Dummy,
    Placeholder,
    Rebuild,
    StorageType,
    is_model_class,
    resolve,
)
from .rebuild import Array, NumpyType, Storage

MAX_LINE = 1 << 16  # of an instruction that is written as a line of text
MAX_INTEGER_BYTES = 64
MAX_KEY_ITEMS = 8  # of a tuple that is a key
MAX_KEY_TEXT = 4096  # characters
MAX_KEY_INTEGER = sys.hash_info.modulus  # from there on, numbers have the hashes of smaller ones
MAX_MEMO = 1 << 32  # as many as the instructions with a number of four bytes reach
COST_LIMIT = 40 << 20  # bytes that the objects of a program may take, its texts apart; full checkpoints take a quarter
COST = 96  # of an instruction
KEY_COST = 48  # of a key beside it
SECONDS = 8  # of the processor, for all pickles of a file: thirty times what full checkpoints take
LOOK_EVERY = 64 * COST  # between two looks at the clock


class DamagedError(ValueError):
    """Bytes that are not a whole pickle."""


def time_limit() -> float:
    """The time of this thread's clock at which a file whose reading begins now has taken too long."""
    return time.thread_time() + SECONDS


class Machine:
    """The state of one pickle that is read from where a file stands.

    Args:
        file: open at the first byte of the pickle; left behind its last one.
        size: bytes of the file from there on.
        name: for messages.
        until: see `time_limit`.

    Attributes:
        storages: every storage that the pickle refers to, by key.
    """

    def __init__(self, file: BinaryIO, size: int, name: str, until: float) -> None:
        self.file = file
        self.left = size
        self.name = name
        self.until = until
        self.frame_left: int | None = None
        self.position = 0
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.cost = self.look_at = 0
        self.copies_left = size
        self.storages: dict[str, Storage] = {}
        self.views: dict[str, Storage] = {}

    # Reading.

    def read(self, count: int) -> bytes:
        frame = self.frame_left
        if count > self.left or (frame is not None and count > frame):
            raise DamagedError(f"it ends where {count} more bytes should follow")
        raw = self.file.read(count)
        if len(raw) != count:
            raise DamagedError("it ends too early")
        self.left -= count
        self.position += count
        if frame is not None:
            self.frame_left = frame - count or None
        return raw

    def line(self) -> str:
        return self.raw_line().decode("utf-8")

    def raw_line(self) -> bytes:
        frame = self.frame_left
        raw = self.file.readline(min(MAX_LINE, self.left, self.left if frame is None else frame))
        if not raw.endswith(b"\n"):
            raise DamagedError(f"a line of text does not end within {len(raw)} bytes")
        self.left -= len(raw)
        self.position += len(raw)
        if frame is not None:
            self.frame_left = frame - len(raw) or None
        return raw[:-1]

    def number(self, form: str) -> int:
        return struct.unpack(form, self.read(struct.calcsize(form)))[0]

    # Limits.

    def charge(self, cost: int) -> None:
        self.cost += cost
        if self.cost > self.look_at:
            self._look()

    def _look(self) -> None:
        if self.cost > COST_LIMIT:
            self.refuse(f"describes more objects ({self.cost // COST} and more) than any file of weights")
        if time.thread_time() > self.until:
            self.refuse(f"takes more than {SECONDS:g} seconds to read, as no file of weights does")
        self.look_at = min(COST_LIMIT, self.cost + LOOK_EVERY)

    def copied(self, count: int) -> None:
        """Charge a copy of so many bytes or characters of what the file has: an honest one has each copied once."""
        self.copies_left -= count
        if self.copies_left < 0:
            self.refuse("copies more text than it contains")

    def refuse(self, what: str) -> NoReturn:
        raise UnsafeCheckpointError(
            f"{self.name} {what}. Nothing was run. Do not trust it; get the weights as safetensors, or save a plain "
            f"state dict."
        )

    # The stack.

    def push_text(self, raw: bytes, text: str) -> None:
        """A text of the file, which may take four bytes a character where the file has one."""
        self.charge(max(0, sys.getsizeof(text) - len(raw)))
        self.push(text)

    def pop(self) -> Any:
        if not self.stack:
            raise DamagedError("it takes an object from an empty stack")
        return self.stack.pop()

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop_mark(self) -> list[Any]:
        if not self.marks:
            raise DamagedError("it goes back to a mark that is not there")
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def top(self) -> Any:
        if not self.stack:
            raise DamagedError("it changes an object that is not there")
        return self.stack[-1]

    # What programs do.

    def find(self, module: Any, name: Any) -> Any:
        """The stand-in for a name. Raises UnsafeCheckpointError for one that files of weights have no use for."""
        if not isinstance(module, str) or not isinstance(name, str):
            self.refuse(f"names something by a {type(module).__name__} and a {type(name).__name__}, not by text")
        found = resolve(module, name)
        if found is None:
            shown = f"{'builtins' if module == '__builtin__' else module}.{name}"
            shown = shown if len(shown) <= 120 and shown.isprintable() else ascii(shown[:120])
            if shown == "torch.storage._load_from_bytes":
                raise UnsafeCheckpointError(
                    f"{self.name} was saved by Python's pickle and not by torch.save: each tensor in it is a file of "
                    f"its own, which is not opened here. Nothing was run. Save it where it was made: "
                    f"torch.save(state_dict, ...)."
                )
            if is_model_class(module, name):
                raise UnsafeCheckpointError(
                    f"{self.name} has a whole model in it, saved as an object of the class {shown}, which is not made "
                    f"here: nothing was run. Save its state dict where it was made: "
                    f"torch.save(model.state_dict(), ...)."
                )
            self.refuse(f"asks for {shown}, which no file of weights needs and which could run code")
        return found

    def make(self, kind: Any, arguments: Any) -> Any:
        """A call, as one of the stand-ins does it."""
        if not isinstance(arguments, tuple):
            self.refuse(f"calls something with a {type(arguments).__name__} for arguments")
        if isinstance(kind, Dummy):
            return PLACEHOLDER
        if isinstance(kind, Rebuild):
            return rebuild.call(kind.name, arguments, self.copied)
        if isinstance(kind, type) and kind in CONTAINERS.values():
            return self._container(kind, arguments)
        self.refuse(f"calls a {type(kind).__name__}, which is not a function that files of weights call")

    def _container(self, kind: type, arguments: tuple[Any, ...]) -> Any:
        if not arguments:
            return kind()
        items = arguments[0]
        if len(arguments) > 1 or not isinstance(items, list | tuple | set | frozenset | dict):
            self.refuse(f"makes a {kind.__name__} of a {type(items).__name__}")
        self.charge(COST * len(items))
        if issubclass(kind, dict):
            pairs = items.items() if isinstance(items, Mapping) else items
            made = kind()
            for pair in pairs:
                if not isinstance(pair, list | tuple) or len(pair) != 2:
                    raise DamagedError("a dictionary is made of something that is not pairs")
                made[self.key(pair[0])] = pair[1]
            return made
        return kind(map(self.key, items)) if issubclass(kind, set | frozenset) else kind(items)

    def key(self, value: Any) -> Any:
        """A key of a dictionary or an item of a set: plain, because hashing what a file builds may take for ever."""
        self.charge(KEY_COST)
        kind = type(value)
        if kind is tuple and len(value) <= MAX_KEY_ITEMS and all(type(each) in (str, int, bool) for each in value):
            parts = value
        elif kind in (str, int, float, bool, bytes, type(None), Dummy, Placeholder):
            parts = (value,)
        else:
            self.refuse(f"has a key that is a {kind.__name__}; keys are texts and numbers")
        for each in parts:
            if type(each) is int and abs(each) >= MAX_KEY_INTEGER:
                self.refuse(f"has a key that is a whole number of {each.bit_length()} bits; keys have up to 60")
            if isinstance(each, str | bytes) and len(each) > MAX_KEY_TEXT:
                self.refuse(f"has a key of {len(each)} characters; keys have up to {MAX_KEY_TEXT}")
        return value

    def remember(self, place: int) -> None:
        """Put what is on top of the stack into the memo."""
        if not 0 <= place < MAX_MEMO:
            raise DamagedError("it remembers something at an impossible place")
        self.memo[place] = self.top()

    def set_items(self, target: Any, items: list[Any]) -> None:
        if isinstance(target, Placeholder):
            return
        if not isinstance(target, dict):
            self.refuse(f"sets items of a {type(target).__name__}, which has none")
        if len(items) % 2:
            raise DamagedError("a key has no value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[self.key(key)] = value

    def append(self, target: Any, items: list[Any]) -> None:
        if isinstance(target, Placeholder):
            return
        if not isinstance(target, list):
            self.refuse(f"appends to a {type(target).__name__}, which cannot be appended to")
        target.extend(items)

    def build(self, target: Any, state: Any) -> None:
        """State of an object. Only what is passed over and arrays of NumPy have one that matters or may be ignored."""
        if isinstance(target, Placeholder):
            return
        if isinstance(target, Array | NumpyType):
            target.set_state(state)
            return
        if type(target) is OrderedDict and isinstance(state, dict):  # `_metadata` of a state dict
            shadowed = [name for name in state if not isinstance(name, str) or hasattr(OrderedDict, name)]
            if not shadowed:
                target.__dict__[STATE_DICT_METADATA] = state.get(STATE_DICT_METADATA)  # the rest is passed over
                return
        self.refuse(f"changes the attributes of a {type(target).__name__}")

    def persistent(self, reference: Any) -> Storage:
        """A storage of the file, by torch's reference to it."""
        if type(reference) is not tuple or not 5 <= len(reference) <= 6 or type(reference[0]) is not str:
            self.refuse(f"refers to something by a {type(reference).__name__}, as torch does not")
        word, kind, key, _, numel, *view = reference
        if word != "storage" or not isinstance(kind, StorageType) or type(key) not in (str, int):
            self.refuse("refers to something that is not a block of numbers")
        if type(numel) is not int or not 0 <= numel < 2**63:
            raise DamagedError("a storage has an impossible number of elements")
        storage = self.storages.setdefault(str(key), Storage(str(key), kind.dtype, numel))
        if storage.dtype != kind.dtype or storage.numel != numel:
            raise DamagedError(f"storage {storage.key[:40]} is described in two ways")
        if not view or view[0] is None:
            return storage
        if type(view[0]) is not tuple or len(view[0]) != 3 or type(view[0][0]) not in (str, int):
            raise DamagedError("a view of a storage has another form than torch's")
        view_key, offset, size = view[0]  # legacy: a part of another storage
        if not all(type(each) is int and 0 <= each <= numel for each in (offset, size)) or offset + size > numel:
            raise DamagedError("a view reaches out of its storage")
        return self.views.setdefault(str(view_key), storage._replace(offset=offset, numel=size))
