"""What expressions may call, and the kinds of value they deal in.

Invariant: a table; the checker, the matcher's evaluator and the reference page agree because they read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Kind(StrEnum):
    NUMBER = "number"
    BOOL = "truth value"
    STRING = "string"
    TYPE = "element type"
    NAMES = "list of names"
    GLOBS = "list of globs"


class Target(StrEnum):
    """What a name in parentheses may stand for."""

    PART = "branch or label"
    OP = "operator"
    WHOLE = "after or before"
    ROLE = "role"


@dataclass(frozen=True, slots=True)
class Function:
    """`clauses` are those whose expressions may call it."""

    name: str
    clauses: tuple[str, ...]
    targets: tuple[Target, ...]
    gives: Kind
    doc: str


_BODY, _COST, _VOTE = ("where", "cost"), ("cost",), ("vote",)
_TABLE = (
    Function(
        "count", _BODY, (Target.PART, Target.OP), Kind.NUMBER, "how many operands or nodes of this match it names"
    ),
    Function("has", _BODY, (Target.PART, Target.OP), Kind.BOOL, "whether there is at least one of it in this match"),
    Function("nodes", _COST, (Target.PART, Target.WHOLE), Kind.NUMBER, "number of nodes"),
    Function("params", (*_COST, *_VOTE), (Target.PART, Target.WHOLE, Target.ROLE), Kind.NUMBER, "elements of weights"),
    Function("macs", (*_COST, *_VOTE), (Target.PART, Target.WHOLE, Target.ROLE), Kind.NUMBER, "multiply-adds"),
    Function("depth", _VOTE, (Target.ROLE,), Kind.NUMBER, "longest path to it in convs and linears"),
    Function("pan", _VOTE, (Target.ROLE,), Kind.BOOL, "whether a bottom-up path leads to it after the top-down one"),
    Function("tapped", _VOTE, (Target.ROLE,), Kind.BOOL, "whether it leaves the way to the other role half way"),
    Function("alike", _VOTE, (Target.ROLE,), Kind.NUMBER, "last operators that are like the other role's, in step"),
    Function("place", _VOTE, (Target.ROLE,), Kind.NUMBER, "position of its first output among those of the model"),
    Function("stem", _VOTE, (Target.ROLE,), Kind.BOOL, "whether it reads the image by layers of its own"),
    Function("scope", _VOTE, (Target.ROLE,), Kind.STRING, "module path of what computes it, to compare with ~"),
)

FUNCTIONS: Mapping[str, Function] = MappingProxyType({function.name: function for function in _TABLE})

WHOLES = ("after", "before")
"""The match as it would be after the action, and as it is."""

PARAM_KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "int": Kind.NUMBER,
        "number": Kind.NUMBER,
        "bool": Kind.BOOL,
        "string": Kind.STRING,
        "names": Kind.NAMES,
        "globs": Kind.GLOBS,
    }
)
"""The types that a `param` may have."""
