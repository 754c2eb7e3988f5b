"""The syntax tree of pattern files, version 1: what the parser gives, what the matcher and the printers read.

Invariant: the tree is what was written, with a source position on everything an error may point at; chains are
references (`Call`), never inlined, so that printing gives the file back. Positions do not take part in equality.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from rewriter.errors import Reason


@dataclass(frozen=True, slots=True)
class Pos:
    """A place in a pattern file; line and column count from 1, `length` is what the caret underlines."""

    line: int = 0
    column: int = 0
    length: int = 1


NOWHERE = Pos()

Literal: TypeAlias = int | float | str | bool
"""INT, NUMBER (as in `value=1.5`), NAME or STRING, true/false."""


# --- bodies -----------------------------------------------------------------------------------------------------


class Repeat(StrEnum):
    ONCE = ""
    OPTIONAL = "?"
    ANY = "*"
    SOME = "+"


@dataclass(frozen=True, slots=True)
class Predicate:
    """`k>=7`, `groups=out`, or a bare flag such as `depthwise` (then `op` and `value` are None)."""

    name: str
    op: str | None = None  # one of = != < <= > >=
    value: Literal | None = None
    pos: Pos = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class OpAtom:
    """One operator of the vocabulary, with its predicates, perhaps named by `as`."""

    op: str
    predicates: tuple[Predicate, ...] = ()
    label: str | None = None
    pos: Pos = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Call:
    """A chain by its name (`cbn`); `label` where `as` follows it."""

    chain: str
    label: str | None = None
    pos: Pos = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Pass:
    """The empty reading: the operand is the entry itself."""

    pos: Pos = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class LinearRegion:
    pos: Pos = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Branch:
    """A branch of a sum or concat; `sign` is "", "-" or "±"; `most` None means no upper bound."""

    name: str
    body: Body
    sign: str = ""
    least: int = 1
    most: int | None = 1
    pos: Pos = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Junction:
    """`sum { … }` or `concat { … }`."""

    kind: str  # "sum" | "concat"
    branches: tuple[Branch, ...]
    pos: Pos = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Group:
    """A parenthesised body."""

    body: Body
    pos: Pos = field(default=NOWHERE, compare=False)


Atom: TypeAlias = OpAtom | Call | Pass | LinearRegion | Junction | Group


@dataclass(frozen=True, slots=True)
class Item:
    atom: Atom
    repeat: Repeat = Repeat.ONCE


@dataclass(frozen=True, slots=True)
class Seq:
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Body:
    """Alternatives, each a sequence in the direction of the data: first item nearest the entry."""

    alternatives: tuple[Seq, ...]


# --- expressions (where, cost, vote) -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Number:
    value: int | float
    pos: Pos = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Name:
    """A bare name: a parameter, a label, or a role (`main`)."""

    name: str
    pos: Pos = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Attribute:
    """`big.k`: an attribute of what a label or branch stands for."""

    owner: str
    name: str
    pos: Pos = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Apply:
    """`count(pool)`, `params(after)`, `depth(aux)`."""

    function: str
    argument: str
    pos: Pos = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Binary:
    """`op` is one of + - * /, = != < <= > >= ~ , and or."""

    op: str
    left: Expr
    right: Expr
    pos: Pos = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Not:
    operand: Expr
    pos: Pos = field(default=NOWHERE, compare=False)


Expr: TypeAlias = Number | Name | Attribute | Apply | Binary | Not


# --- nets (tests) ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of an op in a net: `8`, `k=3`, `pad=1`, `k=[1,3]`; positional ones have no name."""

    value: Literal | tuple[Literal, ...]
    name: str | None = None
    pos: Pos = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class NetOp:
    """`conv(8,k=3,pad=1)`, `bn`, or (with a shape) the declaration of an input: `x[1,8,7,7]`."""

    name: str
    arguments: tuple[Argument, ...] = ()
    shape: tuple[int | str, ...] | None = None
    pos: Pos = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class NetSum:
    """`sum { a -> bn; -b; x }`: signed chains over one running value, or from named values; same for concat."""

    kind: str
    operands: tuple[tuple[str, NetChain], ...]  # ("" | "-", chain)
    pos: Pos = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class NetChain:
    """`x[1,8,7,7] -> conv(8,k=3) -> bn`; the head may be a value of the net, an input, or an op fed by the context."""

    items: tuple[NetOp | NetSum, ...]


@dataclass(frozen=True, slots=True)
class NetStatement:
    name: str
    chain: NetChain
    pos: Pos = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Net:
    """Statements, or `file("…")`; values that no statement reads are the outputs."""

    statements: tuple[NetStatement, ...] = ()
    file: str | None = None
    pos: Pos = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Test:
    """`test "…" { net … gives conv=1, … }`: `gives` is the complete op histogram of the result."""

    name: str
    net: Net
    gives: tuple[tuple[str, int], ...]
    pos: Pos = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class RefuseTest:
    """`refuse "…" { net … because REASON }`."""

    name: str
    net: Net
    because: Reason
    pos: Pos = field(default=NOWHERE, compare=False)


# --- patterns ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Param:
    """`param keep: names = []`; TYPE is one of int, number, bool, string, names, globs."""

    name: str
    type: str
    value: Literal | tuple[Literal, ...]
    pos: Pos = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Role:
    """`main: named keep`, `aux: twin of main`, `x: index(0)`, `x: deepest`, `x: rest`."""

    name: str
    kind: str  # named | index | deepest | twin | rest
    argument: str | int | None = None
    pos: Pos = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Vote:
    name: str
    expr: Expr
    report_only: bool = False
    pos: Pos = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class BodyMatch:
    """`match y = x -> body`: `exit` is y, `entry` is x."""

    exit: str
    entry: str
    body: Body
    pos: Pos = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class OutputsMatch:
    roles: tuple[Role, ...]
    votes: tuple[Vote, ...]
    pos: Pos = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Fold:
    """`fold to conv or linear`."""

    kinds: tuple[str, ...]
    pos: Pos = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Bypass:
    pos: Pos = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class RemoveOutput:
    role: str
    pos: Pos = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class ReplaceWith:
    net: Net
    pos: Pos = field(default=NOWHERE, compare=False)


Action: TypeAlias = Fold | Bypass | RemoveOutput | ReplaceWith


LOST = "lost"
"""A `bool` parameter that the removal of outputs reads: may sizes be equal only by what the removed branch checks?"""


@dataclass(frozen=True, slots=True)
class Pattern:
    name: str
    doc: str
    match: BodyMatch | OutputsMatch
    action: Action
    papers: tuple[str, ...] = ()
    priority: int = 0
    params: tuple[Param, ...] = ()
    where: tuple[Expr, ...] = ()
    cost: Expr | None = None
    tests: tuple[Test, ...] = ()
    refuses: tuple[RefuseTest, ...] = ()
    pos: Pos = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Chain:
    name: str
    body: Body
    pos: Pos = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class PatternFile:
    """A parsed file: `path` for messages, `version` of the language, own chains and patterns in order."""

    path: str
    version: int
    chains: tuple[Chain, ...]
    patterns: tuple[Pattern, ...]
