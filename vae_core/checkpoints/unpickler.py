"""The instructions of pickles, those that honest files of weights use. See `machine` for what they may do.

Absent are the registry of extensions, buffers outside of the file, byte arrays, and objects made by OBJ.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, BinaryIO

from .allowed import Dummy, Marker, Placeholder, Rebuild
from .machine import COST, MAX_INTEGER_BYTES, DamagedError, Machine

MAX_PROTOCOL = 5
SET_COST = 256

Instruction = Callable[[Machine], None]
_INSTRUCTIONS: dict[int, Instruction] = {}


def load(file: BinaryIO, size: int, name: str, until: float) -> tuple[Any, Machine]:
    """What the pickle at a file's position describes, and the machine that has read it.

    Args:
        size: bytes of the file from there on.
        name: for messages.
        until: see `machine.time_limit`.

    Raises:
        UnsafeCheckpointError: it names, calls or changes something that a file of weights does not.
        ValueError, KeyError, ...: it is damaged.
    """
    machine = Machine(file, size, name, until)
    while True:
        code = machine.read(1)[0]
        if code == pickle.STOP[0]:
            break
        machine.charge(COST)
        instruction = _INSTRUCTIONS.get(code)
        if instruction is None:
            machine.refuse(f"uses a pickle instruction ({code:#04x}) that no file of weights has")
        instruction(machine)
    if len(machine.stack) != 1 or machine.marks:
        raise DamagedError(f"{len(machine.stack)} objects are left at its end")
    return machine.stack[0], machine


def _on(code: bytes) -> Callable[[Instruction], Instruction]:
    def register(instruction: Instruction) -> Instruction:
        _INSTRUCTIONS[code[0]] = instruction
        return instruction

    return register


def _text(form: str) -> Instruction:
    def method(machine: Machine) -> None:
        raw = machine.read(machine.number(form))
        machine.push_text(raw, raw.decode("utf-8"))

    return method


def _old_text(form: str) -> Instruction:
    """Text of Python 2, whose strings are bytes."""

    def method(machine: Machine) -> None:
        raw = machine.read(machine.number(form))
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            text = raw.decode("latin1")
        machine.push_text(raw, text)

    return method


@_on(pickle.PROTO)
def _proto(machine: Machine) -> None:
    if machine.position != 1 or machine.read(1)[0] > MAX_PROTOCOL:
        raise DamagedError("its protocol is unknown, or given twice")


@_on(pickle.FRAME)
def _frame(machine: Machine) -> None:
    size = machine.number("<Q")
    if machine.frame_left is not None or not 4 <= size <= machine.left:
        raise DamagedError("a frame is inside another one, or has an impossible size")
    machine.frame_left = size


@_on(pickle.MARK)
def _mark(machine: Machine) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


@_on(pickle.POP_MARK)
def _pop_to_mark(machine: Machine) -> None:
    machine.pop_mark()


@_on(pickle.POP)
def _pop(machine: Machine) -> None:
    machine.pop_mark() if not machine.stack else machine.stack.pop()


_on(pickle.DUP)(lambda machine: machine.push(machine.top()))
_on(pickle.NONE)(lambda machine: machine.push(None))
_on(pickle.NEWTRUE)(lambda machine: machine.push(True))
_on(pickle.NEWFALSE)(lambda machine: machine.push(False))
_on(pickle.BININT)(lambda machine: machine.push(machine.number("<i")))
_on(pickle.BININT1)(lambda machine: machine.push(machine.number("<B")))
_on(pickle.BININT2)(lambda machine: machine.push(machine.number("<H")))
_on(pickle.BINFLOAT)(lambda machine: machine.push(machine.number(">d")))
_on(pickle.FLOAT)(lambda machine: machine.push(float(machine.line())))
_on(pickle.SHORT_BINSTRING)(_old_text("<B"))
_on(pickle.BINSTRING)(_old_text("<I"))
_on(pickle.SHORT_BINUNICODE)(_text("<B"))
_on(pickle.BINUNICODE)(_text("<I"))
_on(pickle.BINUNICODE8)(_text("<Q"))
_on(pickle.SHORT_BINBYTES)(lambda machine: machine.push(machine.read(machine.number("<B"))))
_on(pickle.BINBYTES)(lambda machine: machine.push(machine.read(machine.number("<I"))))
_on(pickle.BINBYTES8)(lambda machine: machine.push(machine.read(machine.number("<Q"))))
_on(pickle.BYTEARRAY8)(lambda machine: machine.push(machine.read(machine.number("<Q"))))  # arrays of NumPy
_on(pickle.EMPTY_LIST)(lambda machine: machine.push([]))
_on(pickle.EMPTY_DICT)(lambda machine: machine.push({}))
_on(pickle.EMPTY_TUPLE)(lambda machine: machine.push(()))
_on(pickle.TUPLE)(lambda machine: machine.push(tuple(machine.pop_mark())))
_on(pickle.LIST)(lambda machine: machine.push(list(machine.pop_mark())))
_on(pickle.GLOBAL)(lambda machine: machine.push(machine.find(machine.line(), machine.line())))
_on(pickle.BINPERSID)(lambda machine: machine.push(machine.persistent(machine.pop())))
_on(pickle.PERSID)(lambda machine: machine.push(machine.persistent(machine.line())))


@_on(pickle.UNICODE)
def _unicode(machine: Machine) -> None:
    raw = machine.raw_line()
    text = raw.decode("raw-unicode-escape")
    text.encode("utf-8")  # raises for half of a surrogate pair, as the other instructions of texts do
    machine.push_text(raw, text)


@_on(pickle.STRING)
def _string(machine: Machine) -> None:
    """Text of Python 2 between quotes. Its escapes stay: no name of a weight has one."""
    raw = machine.raw_line()[1:-1]
    machine.push_text(raw, raw.decode("utf-8"))


@_on(pickle.INT)
def _int(machine: Machine) -> None:
    text = machine.line()
    machine.push({"00": False, "01": True}.get(text) if text in ("00", "01") else _whole(text))


@_on(pickle.LONG)
def _long(machine: Machine) -> None:
    machine.push(_whole(machine.line().removesuffix("L")))


def _read_long(form: str) -> Instruction:
    def method(machine: Machine) -> None:
        size = machine.number(form)
        if not 0 <= size <= MAX_INTEGER_BYTES:
            machine.refuse(f"has an integer of {size} bytes")
        machine.push(int.from_bytes(machine.read(size), "little", signed=True))

    return method


_INSTRUCTIONS[pickle.LONG1[0]] = _read_long("<B")
_INSTRUCTIONS[pickle.LONG4[0]] = _read_long("<i")


def _whole(text: str) -> int:
    if len(text) > 3 * MAX_INTEGER_BYTES:  # digits, of which a byte makes less than three
        raise DamagedError("an integer is too long")
    return int(text)


def _tuple_of(count: int) -> Instruction:
    def method(machine: Machine) -> None:
        items = [machine.pop() for _ in range(count)]
        machine.push(tuple(reversed(items)))

    return method


for _count, _code in enumerate((pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3), start=1):
    _INSTRUCTIONS[_code[0]] = _tuple_of(_count)


@_on(pickle.DICT)
def _dict(machine: Machine) -> None:
    made: dict[Any, Any] = {}
    machine.set_items(made, machine.pop_mark())
    machine.push(made)


@_on(pickle.EMPTY_SET)
def _empty_set(machine: Machine) -> None:
    machine.charge(SET_COST)
    machine.push(set())


@_on(pickle.FROZENSET)
def _frozenset(machine: Machine) -> None:
    machine.charge(SET_COST)
    machine.push(frozenset(map(machine.key, machine.pop_mark())))


@_on(pickle.ADDITEMS)
def _add_items(machine: Machine) -> None:
    items = machine.pop_mark()
    target = machine.top()
    if isinstance(target, Placeholder):
        return
    if type(target) is not set:
        machine.refuse(f"adds items to a {type(target).__name__}, which is not a set")
    target.update(map(machine.key, items))


@_on(pickle.APPEND)
def _append(machine: Machine) -> None:
    value = machine.pop()
    machine.append(machine.top(), [value])


@_on(pickle.APPENDS)
def _appends(machine: Machine) -> None:
    items = machine.pop_mark()
    machine.append(machine.top(), items)


@_on(pickle.SETITEM)
def _set_item(machine: Machine) -> None:
    value = machine.pop()
    key = machine.pop()
    machine.set_items(machine.top(), [key, value])


@_on(pickle.SETITEMS)
def _set_items(machine: Machine) -> None:
    items = machine.pop_mark()
    machine.set_items(machine.top(), items)


@_on(pickle.PUT)
def _put(machine: Machine) -> None:
    machine.remember(_whole(machine.line()))


@_on(pickle.GET)
def _get(machine: Machine) -> None:
    machine.push(machine.memo[_whole(machine.line())])


def _put_at(form: str) -> Instruction:
    return lambda machine: machine.remember(machine.number(form))


def _get_at(form: str) -> Instruction:
    return lambda machine: machine.push(machine.memo[machine.number(form)])


_on(pickle.BINPUT)(_put_at("<B"))
_on(pickle.LONG_BINPUT)(_put_at("<I"))
_on(pickle.BINGET)(_get_at("<B"))
_on(pickle.LONG_BINGET)(_get_at("<I"))


@_on(pickle.MEMOIZE)
def _memoize(machine: Machine) -> None:
    machine.remember(len(machine.memo))


@_on(pickle.STACK_GLOBAL)
def _stack_global(machine: Machine) -> None:
    name = machine.pop()
    module = machine.pop()
    machine.push(machine.find(module, name))


@_on(pickle.REDUCE)
def _reduce(machine: Machine) -> None:
    arguments = machine.pop()
    kind = machine.pop()
    machine.push(machine.make(kind, arguments))


@_on(pickle.NEWOBJ)
def _new_object(machine: Machine) -> None:
    arguments = machine.pop()
    kind = machine.pop()
    if isinstance(kind, Rebuild | Marker):
        machine.refuse(f"makes an object of {kind.name}")
    machine.push(machine.make(kind, arguments))


@_on(pickle.NEWOBJ_EX)
def _new_object_ex(machine: Machine) -> None:
    options = machine.pop()
    arguments = machine.pop()
    kind = machine.pop()
    if not isinstance(kind, Dummy) or not isinstance(options, dict):
        machine.refuse("makes an object with named arguments")
    machine.push(machine.make(kind, arguments))


@_on(pickle.BUILD)
def _build(machine: Machine) -> None:
    state = machine.pop()
    machine.build(machine.top(), state)


@_on(pickle.INST)
def _inst(machine: Machine) -> None:
    machine.find(machine.line(), machine.line())  # names what it asks for, if that is not harmless
    machine.refuse("makes an object by an instruction (INST) that no file of weights has")
