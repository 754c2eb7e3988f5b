"""What is allowed in a pattern file but probably not meant.

Invariant: a finding never depends on anything outside the file; a file without findings says of every pattern where it
applies and where it must not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from rewriter.language.clauses import net_ops
from rewriter.language.measure import Measure, measure
from rewriter.language.names import parts
from rewriter.language.parser import prelude
from rewriter.language.signatures import SIGNATURES
from rewriter.language.source import quote
from rewriter.language.syntax import (
    LOST,
    Apply,
    Attribute,
    Binary,
    Body,
    BodyMatch,
    Branch,
    Call,
    Expr,
    Group,
    Item,
    Junction,
    Name,
    Net,
    NetChain,
    NetSum,
    Not,
    OutputsMatch,
    Pattern,
    PatternFile,
    Pos,
    RemoveOutput,
)

UNCOUNTED = frozenset({"identity"})
"""Operators that no histogram counts."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`code` is a short name for the kind of finding, stable across versions."""

    path: str
    pos: Pos
    code: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.pos.line}:{self.pos.column}: {self.message} [{self.code}]"


def lint(file: PatternFile) -> list[Finding]:
    """Findings in the order of the file."""
    measures: dict[str, Measure] = {}
    for chain in (*prelude().values(), *file.chains):
        measures[chain.name] = measure(chain.body, measures)
    found = [(pos, code, text) for pattern in file.patterns for pos, code, text in _pattern(pattern, measures)]
    used = {name for pattern in file.patterns for name in _chains(pattern)}
    used |= {name for chain in file.chains for name in _called(chain.body)}
    for chain in file.chains:
        if chain.name not in used:
            found.append((chain.pos, "unused-chain", f"chain {quote(chain.name)} is used by nothing"))
    found.sort(key=lambda item: (item[0].line, item[0].column))
    return [Finding(file.path, pos, code, text) for pos, code, text in found]


def _pattern(pattern: Pattern, measures: dict[str, Measure]) -> Iterator[tuple[Pos, str, str]]:
    if not pattern.tests:
        yield pattern.pos, "no-test", f"pattern {quote(pattern.name)} has no test"
    if not pattern.refuses:
        yield pattern.pos, "no-refuse", f"pattern {quote(pattern.name)} has no refuse: say where it must not apply"
    if not pattern.doc.strip():
        yield pattern.pos, "empty-doc", f"pattern {quote(pattern.name)} says nothing in its doc"
    for test in pattern.tests:
        if test.net.file is None and histogram(test.net) == dict(test.gives):
            yield test.pos, "vacuous-test", f"the net of {quote(test.name)} has these operators already"
        for op in sorted(UNCOUNTED & dict(test.gives).keys()):
            yield test.pos, "uncounted", f"{quote(test.name)} expects {quote(op)}, which is never counted"
    used = _used(pattern)
    for param in pattern.params:
        if param.name not in used:
            yield param.pos, "unused-param", f"parameter {quote(param.name)} is used by nothing"
    if isinstance(pattern.match, BodyMatch):
        branches = set(_branch_names(pattern.match.body))
        for part in parts(pattern.match.body, measures):
            if part.name not in used and part.name not in branches:
                yield part.pos, "unused-label", f"label {quote(part.name)} is used by nothing"
    else:
        yield from _unused_roles(pattern, pattern.match, used)


def _unused_roles(pattern: Pattern, match: OutputsMatch, used: set[str]) -> Iterator[tuple[Pos, str, str]]:
    named = {str(role.argument) for role in match.roles if role.kind == "twin"}
    if isinstance(pattern.action, RemoveOutput):
        named.add(pattern.action.role)
    for role in match.roles:
        if role.name not in used | named:
            yield role.pos, "unused-role", f"role {quote(role.name)} is used by nothing"


def histogram(net: Net) -> dict[str, int]:
    """The operators of a net as it is written, as a graph view would count them."""
    count: Counter[str] = Counter()
    for statement in net.statements:
        for op in net_ops(statement.chain):
            if op.shape is None and op.name in SIGNATURES and op.name not in UNCOUNTED:
                count.update(("sigmoid", "mul") if op.name == "silu" else (op.name,))
                count.update(
                    "mul" for argument in op.arguments if (argument.name, argument.value) == ("computed", "yes")
                )
        count.update(_joins(statement.chain))
    return dict(count)


def _joins(chain: NetChain) -> Iterator[str]:
    for item in chain.items:
        if isinstance(item, NetSum):
            signs = [sign for sign, _ in item.operands]
            yield from ("concat",) if item.kind == "concat" else ("neg",) if signs[0] else ()
            yield from ("sub" if sign else "add" for sign in signs[1:] if item.kind == "sum")
            for _, operand in item.operands:
                yield from _joins(operand)


# --- what is used --------------------------------------------------------------------------------------------------


def _used(pattern: Pattern) -> set[str]:
    """Every name that the expressions and roles of a pattern mention."""
    exprs = [*pattern.where, *([pattern.cost] if pattern.cost is not None else [])]
    names: set[str] = set()
    if isinstance(pattern.match, OutputsMatch):
        names.add(LOST)
        exprs += [vote.expr for vote in pattern.match.votes]
        names |= {str(role.argument) for role in pattern.match.roles if role.kind == "named"}
    for expr in exprs:
        names |= set(_mentioned(expr))
    return names


def _mentioned(expr: Expr) -> Iterator[str]:
    match expr:
        case Name(name=name) | Attribute(owner=name) | Apply(argument=name):
            yield name
        case Not(operand=operand):
            yield from _mentioned(operand)
        case Binary(left=left, right=right):
            yield from _mentioned(left)
            yield from _mentioned(right)
        case _:
            pass


def _items(body: Body) -> Iterator[Item]:
    """Every item of a body at any depth."""
    for item in (item for seq in body.alternatives for item in seq.items):
        yield item
        match item.atom:
            case Group(body=inner):
                yield from _items(inner)
            case Junction(branches=branches):
                for branch in branches:
                    yield from _items(branch.body)
            case _:
                pass


def _branch_names(body: Body) -> Iterator[str]:
    branches: list[Branch] = [b for item in _items(body) if isinstance(item.atom, Junction) for b in item.atom.branches]
    yield from (branch.name for branch in branches)


def _called(body: Body) -> Iterator[str]:
    yield from (item.atom.chain for item in _items(body) if isinstance(item.atom, Call))


def _chains(pattern: Pattern) -> Iterator[str]:
    if isinstance(pattern.match, BodyMatch):
        yield from _called(pattern.match.body)
