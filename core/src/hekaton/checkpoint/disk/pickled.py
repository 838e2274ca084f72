"""Pickle streams read as plain data: no class is looked up, nothing is called, no attribute is set.

A pickle is a program for a small machine, and carrying it out hands that machine to whoever wrote it: with
admitted names alone its ``BUILD`` can patch the classes behind them. So it is not carried out. Names stay
names, calls and objects become records of what was asked for, and whoever reads them checks every field.

Source of the opcodes: Python's ``pickletools``, protocols 2 to 5.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

MAX_BYTES = 1 << 28
"""Of a stream: some million pieces of tensors."""
_MAX_OBJECTS = 1 << 25
_MAX_STACK = 10_000
"""Values on the stack: Python's pickler puts 2,000 there at most."""
_MAX_MARKS = 100
_MAX_INTEGER_BYTES = 9
_MAX_NAME = 200


class NotPlain(ValueError):
    """A stream asks for more than plain data, or is broken; the message follows the name of its file."""


# Compared by identity and never shown: a stream can nest them in ways that take forever to compare or print.
@dataclass(eq=False, repr=False, slots=True)
class Name:
    """The name of a class, function or constant of a module."""

    path: str


@dataclass(eq=False, repr=False, slots=True)
class Call:
    """A call that was asked for, and not made."""

    function: str
    arguments: tuple[Any, ...]


@dataclass(eq=False, repr=False, slots=True)
class Instance:
    """An object that was asked for, and not made."""

    of: str
    state: Any = None


@dataclass(eq=False, repr=False, slots=True)
class Table:
    """A dict, as its pairs in their order: keys of any kind, twice the same ones as well."""

    pairs: list[tuple[Any, Any]]


@dataclass(eq=False, repr=False, slots=True)
class Reference:
    """A persistent id, by which ``torch.save`` names a storage."""

    to: Any


Arguments: TypeAlias = Callable[[tuple[Any, ...]], bool]


@dataclass(frozen=True)
class Vocabulary:
    """The names that may stand in a stream, and what may be done with them."""

    functions: Mapping[str, Arguments]
    """May be called, where the arguments are accepted."""
    classes: frozenset[str] = frozenset()
    """May be made, without arguments, and given a state once."""
    constants: frozenset[str] = frozenset()
    references: bool = False
    """Whether there may be persistent ids."""

    def has(self, path: str) -> bool:
        return path in self.functions or path in self.classes or path in self.constants


def read_pickle(data: bytes, vocabulary: Vocabulary) -> Any:
    """Read a stream.

    :returns: ``None``, ``bool``, ``int``, ``str``, tuples, lists, and the records of this module. They may
        be nested deeply, and in themselves: go down into them only as far as what is expected there does.
    :raises NotPlain: when it holds an opcode, a name or a call that is not in the vocabulary, is cut short,
        or exceeds a bound.
    """
    if len(data) > MAX_BYTES:
        raise NotPlain(f"has {len(data):,} bytes, more than {MAX_BYTES:,}: refused")
    return _Machine(data, vocabulary).run()


class _Machine:
    def __init__(self, data: bytes, vocabulary: Vocabulary) -> None:
        self._data = data
        self._words = vocabulary
        self._at = 0
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._objects = 0

    def run(self) -> Any:
        data, end = self._data, len(self._data)
        handlers = {code[0]: getattr(self, f"_{name}") for code, name in _HANDLERS.items()}
        try:
            while self._at < end:
                opcode = data[self._at]
                self._at += 1
                if opcode == _STOP:
                    return self._result()
                handler = handlers.get(opcode)
                if handler is None:
                    raise NotPlain(f"contains {_opcode_name(opcode)}, which no tensor needs: refused")
                handler()
                if len(self._stack) > _MAX_STACK or self._objects > _MAX_OBJECTS:
                    raise NotPlain("describes more than a checkpoint can have: refused")
        except (IndexError, KeyError, UnicodeDecodeError) as error:
            raise NotPlain(f"cannot be read: broken at byte {self._at}") from error
        raise NotPlain("cannot be read: cut short")

    def _result(self) -> Any:
        if len(self._stack) != 1 or self._below or self._at != len(self._data):
            raise NotPlain(f"cannot be read: broken at byte {self._at}")
        return self._stack[0]

    def _take(self, size: int) -> bytes:
        taken = self._data[self._at : self._at + size]
        if len(taken) != size:
            raise NotPlain("cannot be read: cut short")
        self._at += size
        return taken

    def _unsigned(self, size: int) -> int:
        return int.from_bytes(self._take(size), "little")

    def _line(self) -> str:
        end = self._data.find(b"\n", self._at, self._at + _MAX_NAME)
        if end < 0:
            raise NotPlain(f"cannot be read: broken at byte {self._at}")
        line = self._take(end - self._at).decode()
        self._at += 1
        return line

    def _made(self, value: Any) -> None:
        self._objects += 1
        self._stack.append(value)

    def _to_mark(self) -> list[Any]:
        """The values since the last mark; what was below it is the stack again."""
        values, self._stack = self._stack, self._below.pop()
        return values

    def _protocol(self) -> None:
        version = self._unsigned(1)
        if not 2 <= version <= 5:
            raise NotPlain(f"cannot be read: protocol {version} of pickle")

    def _frame(self) -> None:
        if self._unsigned(8) > len(self._data) - self._at:
            raise NotPlain("cannot be read: cut short")

    def _mark(self) -> None:
        if len(self._below) == _MAX_MARKS:
            raise NotPlain("describes more than a checkpoint can have: refused")
        self._below.append(self._stack)
        self._stack = []

    def _remember(self, key: int) -> None:
        self._objects += 1
        self._memo[key] = self._stack[-1]

    def _memoize(self) -> None:
        self._remember(len(self._memo))

    def _put1(self) -> None:
        self._remember(self._unsigned(1))

    def _put4(self) -> None:
        self._remember(self._unsigned(4))

    def _get1(self) -> None:
        self._stack.append(self._memo[self._unsigned(1)])

    def _get4(self) -> None:
        self._stack.append(self._memo[self._unsigned(4)])

    def _none(self) -> None:
        self._stack.append(None)

    def _true(self) -> None:
        self._stack.append(True)

    def _false(self) -> None:
        self._stack.append(False)

    def _unsigned1(self) -> None:
        self._stack.append(self._unsigned(1))

    def _unsigned2(self) -> None:
        self._stack.append(self._unsigned(2))

    def _signed4(self) -> None:
        self._stack.append(int.from_bytes(self._take(4), "little", signed=True))

    def _long1(self) -> None:
        self._long(self._unsigned(1))

    def _long4(self) -> None:
        self._long(self._unsigned(4))

    def _long(self, size: int) -> None:
        if size > _MAX_INTEGER_BYTES:
            raise NotPlain(f"contains an integer of {size:,} bytes: refused")
        self._made(int.from_bytes(self._take(size), "little", signed=True))

    def _text1(self) -> None:
        self._made(self._take(self._unsigned(1)).decode())

    def _text4(self) -> None:
        self._made(self._take(self._unsigned(4)).decode())

    def _text8(self) -> None:
        self._made(self._take(self._unsigned(8)).decode())

    def _tuple0(self) -> None:
        self._stack.append(())

    def _tuple1(self) -> None:
        self._tuple_of(1)

    def _tuple2(self) -> None:
        self._tuple_of(2)

    def _tuple3(self) -> None:
        self._tuple_of(3)

    def _tuple_of(self, count: int) -> None:
        if len(self._stack) < count:
            raise IndexError(count)
        values = tuple(self._stack[-count:])
        del self._stack[-count:]
        self._made(values)

    def _tuple(self) -> None:
        self._made(tuple(self._to_mark()))

    def _list0(self) -> None:
        self._made([])

    def _append(self) -> None:
        value = self._stack.pop()
        self._top(list).append(value)

    def _appends(self) -> None:
        values = self._to_mark()
        self._top(list).extend(values)

    def _dict0(self) -> None:
        self._made(Table([]))

    def _set_item(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._top(Table).pairs.append((key, value))

    def _set_items(self) -> None:
        values = self._to_mark()
        if len(values) % 2:
            raise NotPlain(f"cannot be read: broken at byte {self._at}")
        self._objects += len(values)
        self._top(Table).pairs.extend(zip(values[::2], values[1::2], strict=True))

    def _top(self, kind: type[Any]) -> Any:
        if not isinstance(self._stack[-1], kind):
            raise NotPlain(f"cannot be read: broken at byte {self._at}")
        return self._stack[-1]

    def _global(self) -> None:
        self._named(self._line(), self._line())

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise NotPlain(f"cannot be read: broken at byte {self._at}")
        self._named(module, name)

    def _named(self, module: str, name: str) -> None:
        path = f"{module}.{name}"
        if "." in name or not self._words.has(path):
            raise NotPlain(f"asks for {path[:_MAX_NAME]}, which no tensor needs: refused")
        self._made(Name(path))

    def _call(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        accepts = self._words.functions.get(function.path) if isinstance(function, Name) else None
        if accepts is None or not isinstance(arguments, tuple):
            raise NotPlain("contains a call that no tensor needs: refused")
        if not accepts(arguments):
            raise NotPlain(f"calls {function.path} on something that is no part of a tensor: refused")
        self._made(Call(function.path, arguments))

    def _new(self) -> None:
        arguments, of = self._stack.pop(), self._stack.pop()
        if not isinstance(of, Name) or of.path not in self._words.classes or arguments != ():
            raise NotPlain("contains an object that no tensor needs: refused")
        self._made(Instance(of.path))

    def _build(self) -> None:
        state = self._stack.pop()
        instance = self._stack[-1]
        if not isinstance(instance, Instance) or instance.state is not None:
            raise NotPlain("sets attributes of what is not an object of a tensor: refused")
        if not isinstance(state, Table | tuple):
            raise NotPlain(f"cannot be read: broken at byte {self._at}")
        instance.state = state

    def _reference(self) -> None:
        if not self._words.references:
            raise NotPlain("contains BINPERSID, which no tensor needs: refused")
        self._made(Reference(self._stack.pop()))


_STOP = pickle.STOP[0]
_HANDLERS = {
    pickle.PROTO: "protocol",
    pickle.FRAME: "frame",
    pickle.MARK: "mark",
    pickle.MEMOIZE: "memoize",
    pickle.BINPUT: "put1",
    pickle.LONG_BINPUT: "put4",
    pickle.BINGET: "get1",
    pickle.LONG_BINGET: "get4",
    pickle.NONE: "none",
    pickle.NEWTRUE: "true",
    pickle.NEWFALSE: "false",
    pickle.BININT1: "unsigned1",
    pickle.BININT2: "unsigned2",
    pickle.BININT: "signed4",
    pickle.LONG1: "long1",
    pickle.LONG4: "long4",
    pickle.SHORT_BINUNICODE: "text1",
    pickle.BINUNICODE: "text4",
    pickle.BINUNICODE8: "text8",
    pickle.EMPTY_TUPLE: "tuple0",
    pickle.TUPLE1: "tuple1",
    pickle.TUPLE2: "tuple2",
    pickle.TUPLE3: "tuple3",
    pickle.TUPLE: "tuple",
    pickle.EMPTY_LIST: "list0",
    pickle.APPEND: "append",
    pickle.APPENDS: "appends",
    pickle.EMPTY_DICT: "dict0",
    pickle.SETITEM: "set_item",
    pickle.SETITEMS: "set_items",
    pickle.GLOBAL: "global",
    pickle.STACK_GLOBAL: "stack_global",
    pickle.REDUCE: "call",
    pickle.NEWOBJ: "new",
    pickle.BUILD: "build",
    pickle.BINPERSID: "reference",
}


def _opcode_name(opcode: int) -> str:
    names = {ord(known.code): known.name for known in pickletools.opcodes}
    return f"the pickle opcode {names[opcode]}" if opcode in names else f"the byte {opcode:#04x}"
