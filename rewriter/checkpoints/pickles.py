"""What a pickle would build, found by walking its opcodes; nothing is imported, called or built.

The one idea: a pickle is a program for a stack machine, and every name it would import and every call it would make is
written in its opcodes. The walk keeps plain values as they are and puts a `Call` where a name would be called.
Invariant: only numbers, texts, bytes, lists, tuples and this module's own types come out; work and memory are bounded
by the number of opcodes, which is bounded; shared values stay shared, so what is made of them may hold cycles.
"""

from __future__ import annotations

import io
import pickletools
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from rewriter.errors import InputError, LimitError

MOST_OPCODES: Final = 8_000_000
MOST_BYTES: Final = 512 << 20
_MARK: Final = object()

Symbol: TypeAlias = Any
"""A plain value or one of the types below."""


@dataclass(frozen=True, slots=True)
class Name:
    """Something that unpickling would import."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False, repr=False)
class Pairs:
    """A dict, as the pairs that would be set in it, in order; keys may be anything."""

    items: list[tuple[Symbol, Symbol]] = field(default_factory=list[tuple[Symbol, Symbol]])

    def get(self, key: str) -> Symbol:
        """The last value under a text; None where there is none."""
        return next((value for k, value in reversed(self.items) if isinstance(k, str) and k == key), None)

    def names(self) -> list[str]:
        return [key for key, _ in self.items if isinstance(key, str)]


@dataclass(slots=True, eq=False, repr=False)
class Call:
    """An object that unpickling would make by calling `function`, and what it would do to it then."""

    function: Symbol
    arguments: Symbol
    state: Symbol = None
    pairs: Pairs = field(default_factory=Pairs)
    items: list[Symbol] = field(default_factory=list[Symbol])


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Stored:
    """A reference to something outside the pickle: in torch's files a storage."""

    reference: Symbol


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Pickle:
    """What one pickle would give, every name it would import, and where it ends."""

    value: Symbol
    names: tuple[Name, ...]
    end: int


def walk(data: bytes | memoryview, what: str, start: int = 0) -> Pickle:
    """The program of one pickle, run on symbols; InputError where it is damaged, LimitError where it is too long."""
    if len(data) - start > MOST_BYTES and start == 0:
        raise LimitError(f"{what}: a pickle of {len(data):,} bytes; {MOST_BYTES:,} are the most that are read")
    stream = io.BytesIO(data)
    stream.seek(start)
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count > MOST_OPCODES:
                raise LimitError(f"{what}: a pickle of more than {MOST_OPCODES:,} steps")
            machine.step(opcode.name, argument)
        return Pickle(machine.result(), tuple(dict.fromkeys(machine.names)), stream.tell())
    except (ValueError, IndexError, KeyError, TypeError, struct.error, OverflowError, AttributeError) as problem:
        raise InputError(f"{what}: its pickle is damaged or cut off ({type(problem).__name__})") from None


def each(value: Symbol) -> Iterator[Symbol]:
    """Everything inside a value, itself first, each object once; no recursion, so nesting and cycles do no harm."""
    seen: set[int] = set()
    waiting: list[Symbol] = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, _HOLDERS):
            if id(found) in seen:
                continue
            seen.add(id(found))  # the root keeps them all alive, so that no number stands for two
        yield found
        waiting += reversed(_parts(found))


_HOLDERS: Final[tuple[type, ...]] = (Pairs, Call, Stored, list, tuple)


def _parts(value: Symbol) -> list[Symbol]:
    match value:
        case Pairs():
            return [part for pair in value.items for part in pair]
        case Call():
            return [value.function, value.arguments, value.state, value.pairs, *value.items]
        case Stored():
            return [value.reference]
        case list() | tuple():
            return [*value]  # pyright: ignore[reportUnknownVariableType]
        case _:
            return []


class _Machine:
    """The stack, the marks and the memo of the pickle machine."""

    def __init__(self) -> None:
        self.stack: list[Symbol] = []
        self.memo: dict[int, Symbol] = {}
        self.names: list[Name] = []
        self.stopped = False

    def step(self, name: str, argument: Any) -> None:
        if name in _PLAIN:
            self.stack.append(_PLAIN[name](argument))
            return
        if name in _NOTHING:
            return
        if name in _PUTS:
            self.memo[len(self.memo) if argument is None else int(argument)] = self._top()
        elif name in _GETS:
            self.stack.append(self.memo[int(argument)])
        elif name == "POP":
            self.stack.pop()
        else:
            getattr(self, f"_{name.lower()}")(argument)  # one of the methods below; another is a damaged pickle

    def result(self) -> Symbol:
        if not self.stopped or len(self.stack) != 1:
            raise ValueError("the stack does not hold one value")
        return self._top()

    def _top(self) -> Symbol:
        if self.stack[-1] is _MARK:
            raise ValueError("a mark where a value was expected")
        return self.stack[-1]

    def _pop(self) -> Symbol:
        value = self._top()
        self.stack.pop()
        return value

    def _since_mark(self) -> list[Symbol]:
        found: list[Symbol] = []
        while self.stack[-1] is not _MARK:
            found.append(self.stack.pop())
        self.stack.pop()
        return found[::-1]

    def _import(self, module: Symbol, name: Symbol) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a name that is no text")
        found = Name(module, name)
        self.names.append(found)
        self.stack.append(found)

    def _stop(self, _: Any) -> None:
        self.stopped = True

    def _mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def _pop_mark(self, _: Any) -> None:
        self._since_mark()

    def _dup(self, _: Any) -> None:
        self.stack.append(self._top())

    def _list(self, _: Any) -> None:
        self.stack.append(self._since_mark())

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._since_mark()))

    def _tuple1(self, _: Any) -> None:
        self.stack.append((self._pop(),))

    def _tuple2(self, _: Any) -> None:
        last, first = self._pop(), self._pop()
        self.stack.append((first, last))

    def _tuple3(self, _: Any) -> None:
        last, middle, first = self._pop(), self._pop(), self._pop()
        self.stack.append((first, middle, last))

    def _dict(self, _: Any) -> None:
        made = Pairs()
        _set(made, self._since_mark())
        self.stack.append(made)

    def _setitem(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        _set(self._top(), [key, value])

    def _setitems(self, _: Any) -> None:
        found = self._since_mark()
        _set(self._top(), found)

    def _append(self, _: Any) -> None:
        value = self._pop()
        _append(self._top(), [value])

    def _appends(self, _: Any) -> None:
        found = self._since_mark()
        _append(self._top(), found)

    _additems = _appends

    def _frozenset(self, _: Any) -> None:
        self.stack.append(self._since_mark())

    def _global(self, argument: Any) -> None:
        module, _, name = str(argument).partition(" ")
        self._import(module, name)

    def _stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        self._import(module, name)

    def _ext1(self, argument: Any) -> None:
        self._import("copyreg", f"extension {argument}")

    _ext2 = _ext4 = _ext1

    def _reduce(self, _: Any) -> None:
        arguments, function = self._pop(), self._pop()
        self.stack.append(Call(function, arguments))

    _newobj = _reduce

    def _newobj_ex(self, _: Any) -> None:
        named, arguments, function = self._pop(), self._pop(), self._pop()
        self.stack.append(Call(function, (arguments, named)))

    def _inst(self, argument: Any) -> None:
        arguments = tuple(self._since_mark())
        self._global(argument)
        self.stack.append(Call(self._pop(), arguments))

    def _obj(self, _: Any) -> None:
        function, *arguments = self._since_mark()
        self.stack.append(Call(function, tuple(arguments)))

    def _build(self, _: Any) -> None:
        state = self._pop()
        made = self._top()
        if not isinstance(made, Call):
            raise TypeError("state for what is no object")
        made.state = state

    def _persid(self, argument: Any) -> None:
        self.stack.append(Stored(argument))

    def _binpersid(self, _: Any) -> None:
        self.stack.append(Stored(self._pop()))

    def _next_buffer(self, _: Any) -> None:
        raise ValueError("a buffer outside the pickle")


def _set(target: Symbol, flat: list[Symbol]) -> None:
    pairs = target.pairs if isinstance(target, Call) else target
    if not isinstance(pairs, Pairs) or len(flat) % 2:
        raise TypeError("pairs for what is no dict")
    pairs.items += zip(flat[::2], flat[1::2], strict=True)


def _append(target: Symbol, items: list[Symbol]) -> None:
    found = target.items if isinstance(target, Call) else target
    if not isinstance(found, list):
        raise TypeError("items for what is no list")
    found += items  # pyright: ignore[reportUnknownVariableType]


def _itself(argument: Any) -> Symbol:
    return argument


_ITSELF = (
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 "
    "BYTEARRAY8 UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 FLOAT BINFLOAT"
)
_PLAIN: Final[dict[str, Callable[[Any], Symbol]]] = {
    **dict.fromkeys(_ITSELF.split(), _itself),
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_LIST": lambda _: [],
    "EMPTY_TUPLE": lambda _: (),
    "EMPTY_DICT": lambda _: Pairs(),
    "EMPTY_SET": lambda _: [],
}
_NOTHING: Final = frozenset({"PROTO", "FRAME", "READONLY_BUFFER"})
_PUTS: Final = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_GETS: Final = frozenset({"GET", "BINGET", "LONG_BINGET"})
