"""Names in a pattern: every one stands for one thing, and every expression asks only what that thing can answer.

Invariant: after `check`, an evaluator needs no error path for unknown names or for values of the wrong kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rewriter.graph.vocabulary import DTYPES, OPERATORS, AttributeKind
from rewriter.language.functions import FUNCTIONS, PARAM_KINDS, WHOLES, Kind, Target
from rewriter.language.measure import Measure, measure
from rewriter.language.source import Source, an, nearest, quote
from rewriter.language.syntax import (
    Apply,
    Attribute,
    Binary,
    Body,
    BodyMatch,
    Branch,
    Call,
    Expr,
    Group,
    Junction,
    Name,
    Not,
    Number,
    OpAtom,
    OutputsMatch,
    Param,
    Pattern,
    Pos,
    RemoveOutput,
)

_KINDS = {AttributeKind.FLAG: Kind.BOOL, AttributeKind.TYPE: Kind.TYPE}


@dataclass(frozen=True, slots=True)
class Part:
    """A branch or a label: where it is named and which operators it may stand for."""

    name: str
    ops: frozenset[str]
    pos: Pos


def parts(body: Body, measures: Mapping[str, Measure]) -> Iterator[Part]:
    """The branches and labels of a body in order (those inside chains belong to the chains)."""
    for item in (item for seq in body.alternatives for item in seq.items):
        match item.atom:
            case OpAtom(op=op, label=str(label), pos=pos):
                yield Part(label, frozenset({op}), pos)
            case Call(chain=chain, label=str(label), pos=pos):
                yield Part(label, measures[chain].ops, pos)
            case Group(body=inner):
                yield from parts(inner, measures)
            case Junction(branches=branches):
                for branch in branches:
                    yield from _branch_parts(branch, measures)
            case _:
                pass


def _branch_parts(branch: Branch, measures: Mapping[str, Measure]) -> Iterator[Part]:
    yield Part(branch.name, measure(branch.body, measures).ops, branch.pos)
    yield from parts(branch.body, measures)


@dataclass(frozen=True, slots=True)
class Names:
    """What the names of one pattern stand for."""

    source: Source
    parts: Mapping[str, Part]
    params: Mapping[str, Param]
    roles: Mapping[str, Pos]

    def kind(self, expr: Expr, *, clause: str) -> Kind:
        """The kind of value that `expr`, of a `clause`, gives."""
        match expr:
            case Number():
                return Kind.NUMBER
            case Name():
                return self._name(expr)
            case Attribute():
                return self._attribute(expr)
            case Apply():
                return self._apply(expr, clause=clause)
            case Not(operand=operand, pos=pos):
                self._want(self.kind(operand, clause=clause), Kind.BOOL, pos, "not")
                return Kind.BOOL
            case Binary():
                return self._binary(expr, self._side(expr.left, expr, clause), self._side(expr.right, expr, clause))

    def condition(self, expr: Expr, clause: str) -> None:
        kind = self.kind(expr, clause=clause)
        if kind is not Kind.BOOL:
            raise self.source.error(
                expr.pos, f"'{clause}' wants a condition, this is {an(kind)}", "compare it with something"
            )

    def _side(self, side: Expr, expr: Binary, clause: str) -> Kind:
        """One side of `expr`; beside an element type, a bare name may be one."""
        other = expr.right if side is expr.left else expr.left
        typed = isinstance(other, Attribute) and self._attribute(other) is Kind.TYPE and expr.op in ("=", "!=")
        if typed and isinstance(side, Name) and side.name in DTYPES and side.name not in self.params:
            return Kind.TYPE
        return self.kind(side, clause=clause)

    def _name(self, name: Name) -> Kind:
        if name.name in self.params:
            return PARAM_KINDS[self.params[name.name].type]
        if name.name in self.parts:
            hint = f"write {name.name}.k, or count({name.name})"
            raise self.source.error(name.pos, f"{quote(name.name)} is a branch or label, not a value", hint)
        if name.name in self.roles:
            hint = f"write depth({name.name}), params({name.name}), …"
            raise self.source.error(name.pos, f"{quote(name.name)} is a role, not a value", hint)
        hint = nearest(name.name, self.params) or (f"there are {', '.join(self.params)}" if self.params else "")
        raise self.source.error(name.pos, f"unknown parameter {quote(name.name)}", hint)

    def _attribute(self, expr: Attribute) -> Kind:
        part = self.parts.get(expr.owner)
        if part is None:
            hint = nearest(expr.owner, self.parts) or (f"there are {', '.join(self.parts)}" if self.parts else "")
            raise self.source.error(expr.pos, f"unknown branch or label {quote(expr.owner)}", hint)
        known = {a.name: a.kind for op in sorted(part.ops) if op in OPERATORS for a in OPERATORS[op].attributes}
        if expr.name not in known:
            hint = nearest(expr.name, known) or (f"it has {', '.join(known)}" if known else "it has none")
            raise self.source.error(expr.pos, f"{quote(expr.owner)} has no attribute {quote(expr.name)}", hint)
        return _KINDS.get(known[expr.name], Kind.NUMBER)

    def _apply(self, expr: Apply, *, clause: str) -> Kind:
        function = FUNCTIONS.get(expr.function)
        if function is None or clause not in function.clauses:
            usable = [name for name, f in FUNCTIONS.items() if clause in f.clauses]
            hint = nearest(expr.function, usable) or f"there are {', '.join(usable)}"
            what = "unknown function" if function is None else f"no '{clause}' can call"
            raise self.source.error(expr.pos, f"{what} {quote(expr.function)}", hint)
        known: dict[Target, list[str]] = {
            Target.PART: list(self.parts),
            Target.OP: list(OPERATORS),
            Target.WHOLE: list(WHOLES),
            Target.ROLE: list(self.roles),
        }
        targets = [t for t in function.targets if (t is Target.ROLE) is (clause == "vote")]
        names = [name for target in targets for name in known[target]]
        if expr.argument not in names:
            message = f"{function.name}() wants a {' or '.join(targets)}, not {quote(expr.argument)}"
            raise self.source.error(expr.pos, message, nearest(expr.argument, names))
        return function.gives

    def _binary(self, expr: Binary, left: Kind, right: Kind) -> Kind:
        match expr.op:
            case "and" | "or":
                wanted, gives = Kind.BOOL, Kind.BOOL
            case "+" | "-" | "*" | "/":
                wanted, gives = Kind.NUMBER, Kind.NUMBER
            case "~":
                self._want(right, Kind.GLOBS, expr.pos, "~", "right")
                wanted, gives = left if left in (Kind.STRING, Kind.NAMES) else Kind.STRING, Kind.BOOL
                right = wanted
            case "=" | "!=":
                wanted, gives = left, Kind.BOOL
            case _:
                wanted, gives = Kind.NUMBER, Kind.BOOL
        self._want(left, wanted, expr.pos, expr.op, "left")
        self._want(right, wanted, expr.pos, expr.op, "right")
        return gives

    def _want(self, found: Kind, wanted: Kind, pos: Pos, operator: str, side: str = "right") -> None:
        if found is not wanted:
            raise self.source.error(pos, f"'{operator}' wants {an(wanted)} on its {side}, found {an(found)}")


def check(pattern: Pattern, measures: Mapping[str, Measure], source: Source) -> None:
    """Raise a PatternError at the first name that is unknown, taken, or used for what it is not."""
    names = _collect(pattern, measures, source)
    for expr in pattern.where:
        names.condition(expr, "where")
    if pattern.cost is not None:
        names.condition(pattern.cost, "cost")
    if isinstance(pattern.match, OutputsMatch):
        _check_outputs(pattern.match, names)
    if isinstance(pattern.action, RemoveOutput) and pattern.action.role not in names.roles:
        hint = nearest(pattern.action.role, names.roles)
        raise source.error(pattern.action.pos, f"unknown role {quote(pattern.action.role)}", hint)


def _collect(pattern: Pattern, measures: Mapping[str, Measure], source: Source) -> Names:
    taken: dict[str, Pos] = {}

    def take(name: str, pos: Pos) -> None:
        if name in taken:
            raise source.error(pos, f"{quote(name)} is defined twice", first=taken[name])
        taken[name] = pos

    found: dict[str, Part] = {}
    roles: dict[str, Pos] = {}
    match pattern.match:
        case BodyMatch(body=body):
            for part in parts(body, measures):
                take(part.name, part.pos)
                found[part.name] = part
        case OutputsMatch(roles=declared):
            for role in declared:
                take(role.name, role.pos)
                roles[role.name] = role.pos
    for param in pattern.params:
        take(param.name, param.pos)
    return Names(source, found, {param.name: param for param in pattern.params}, roles)


def _check_outputs(match: OutputsMatch, names: Names) -> None:
    votes: dict[str, Pos] = {}
    for role in match.roles:
        if role.kind == "named":
            param = names.params.get(str(role.argument))
            if param is None or param.type != "names":
                lists = [p.name for p in names.params.values() if p.type == "names"]
                hint = nearest(str(role.argument), lists) or f"declare it: param {role.argument}: names = []"
                raise names.source.error(
                    role.pos, f"'named' wants a parameter of type names, not {role.argument}", hint
                )
        if role.kind == "twin" and (role.argument not in names.roles or role.argument == role.name):
            hint = nearest(str(role.argument), [name for name in names.roles if name != role.name])
            raise names.source.error(role.pos, f"'twin of' wants another role, not {quote(str(role.argument))}", hint)
    for vote in match.votes:
        if vote.name in votes:
            raise names.source.error(vote.pos, f"vote {quote(vote.name)} is defined twice", first=votes[vote.name])
        votes[vote.name] = vote.pos
        names.condition(vote.expr, "vote")
