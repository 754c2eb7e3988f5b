"""A node as an ONNX file has it, and what canonical rules share in reading it.

Invariant: reading never fails with anything but `Malformed`, which becomes the node's `problem`; a constant that a rule
names by role leaves the data inputs, everything else stays among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import numpy as np

from rewriter.graph.view import Constant, Value
from rewriter.graph.vocabulary import canonical_name

Attrs: TypeAlias = "Mapping[str, Any]"
Ints: TypeAlias = "tuple[int, ...]"
Extents: TypeAlias = "tuple[int | None, ...]"


@dataclass(slots=True)
class Raw:
    """A node as the file has it: inputs by position, None where an optional input is absent."""

    op: str
    inputs: Sequence[Value | None]
    attrs: Attrs
    outputs: int  # that have a name
    extra_outputs: int  # beyond the first, that somebody reads
    opset: int
    size: Extents = ()  # of the first input, as far as it was proved

    def value(self, position: int) -> Value | None:
        return self.inputs[position] if position < len(self.inputs) else None

    def const(self, position: int) -> Constant | None:
        value = self.value(position)
        return None if value is None else value.constant


@dataclass(slots=True)
class Canonical:
    op: str
    data: tuple[Value, ...]
    consts: Mapping[str, Constant] = field(default_factory=dict[str, Constant])
    attrs: Attrs = field(default_factory=dict[str, Any])
    problem: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Foreign:
    """A node of another kind of graph, as the `native` of a view node: the ONNX operator that it is, if it is one."""

    raw: Raw | None


class Malformed(Exception):
    """An attribute or input that no version of the operator has; `canonical` turns it into a problem."""


def plain(raw: Raw, op: str | None = None, problem: str | None = None) -> Canonical:
    """A node without a rule of its own: its name in the vocabulary, all inputs as data, attributes as stored."""
    return Canonical(op or canonical_name(raw.op), present(raw), {}, raw.attrs, problem)


def present(raw: Raw) -> tuple[Value, ...]:
    return tuple([v for v in raw.inputs if v is not None])


def others(raw: Raw, roles: Mapping[str, int], consts: Mapping[str, Constant]) -> tuple[Value, ...]:
    """The inputs that are not in `consts`: what carries activations, and parameters that are not constant."""
    known = {position for role, position in roles.items() if role in consts}
    return tuple([v for i, v in enumerate(raw.inputs) if v is not None and i not in known])


def first(raw: Raw) -> tuple[Value]:
    value = raw.value(0)
    if value is None:
        raise Malformed("its input is missing")
    return (value,)


# --- attributes ----------------------------------------------------------------------------------------------------


def whole_numbers(raw: Raw, name: str) -> Ints | None:
    found: Any = raw.attrs.get(name)
    if found is None:
        return None
    if type(found) is tuple:
        numbers = cast("tuple[Any, ...]", found)
        if not numbers or type(numbers[0]) is int:  # a list of protobuf has elements of one type
            return numbers
    raise Malformed(f"its attribute {name} is not a list of whole numbers")


def whole_number(raw: Raw, name: str, default: int) -> int:
    found = raw.attrs.get(name, default)
    if isinstance(found, int):
        return found
    raise Malformed(f"its attribute {name} is not a whole number")


def number(raw: Raw, name: str, default: float) -> float:
    """A float attribute as runtimes have it, in float32."""
    found = raw.attrs.get(name)
    if found is None:
        return float(np.float32(default))
    if isinstance(found, float):  # protobuf gives the stored float32
        return found
    raise Malformed(f"its attribute {name} is not a number")


def parameters(raw: Raw, roles: Mapping[str, int], needed: int) -> tuple[dict[str, Constant], str | None]:
    """The constants by role, and a problem where one of the first `needed` is absent or one present is no constant."""
    consts: dict[str, Constant] = {}
    problem = None
    for count, (role, position) in enumerate(roles.items()):
        value = raw.value(position)
        if value is None:
            if count < needed:
                problem = problem or f"its {role} is missing"
        elif value.constant is not None:
            consts[role] = value.constant
        else:
            problem = problem or f"its {role} {_why_not(value)}"
    return consts, problem


def _why_not(value: Value) -> str:
    if value.is_input:
        return "is also an input of the model and can be overridden"
    return "is not a constant" if value.unknown is None else f"is computed, but {value.unknown}"
