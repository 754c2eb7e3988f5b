"""Bodies: paths of operators and chains, alternatives, sums and concats, as they stand after `match y = x ->`.

Invariant: what comes out names only operators of the table and chains defined above, repeats nothing that repeats or
that may be empty, and stays within the limits with every chain written out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from rewriter.graph.vocabulary import DTYPES, OPERATORS, AttributeKind, Operator
from rewriter.language.lexer import MAX_DEPTH, Cursor, Token
from rewriter.language.measure import MAX_SIZE, Measure, measure, measure_atom
from rewriter.language.source import an, nearest, quote
from rewriter.language.syntax import (
    Atom,
    Body,
    Branch,
    Call,
    Chain,
    Group,
    Item,
    Junction,
    LinearRegion,
    Literal,
    OpAtom,
    Pass,
    Pos,
    Predicate,
    Repeat,
    Seq,
)

COMPARISONS = ("=", "!=", "<", "<=", ">", ">=")


@dataclass(frozen=True, slots=True)
class Scope:
    """The chains that a body may name, each with its measure; in a chain (`labels` off) nothing takes a label."""

    chains: Mapping[str, Chain]
    measures: Mapping[str, Measure]
    labels: bool = True

    @property
    def words(self) -> list[str]:
        return [*OPERATORS, *self.chains, "pass", "linear-region", "sum", "concat"]


def whole_body(cursor: Cursor, scope: Scope) -> tuple[Body, Measure]:
    """A body that stands by itself, of a pattern or a chain, within the limits."""
    start = cursor.peek()
    result = body(cursor, scope)
    size = measure(result, scope.measures)
    if size.depth > MAX_DEPTH:
        raise cursor.error(start.pos, f"with its chains written out, this is nested more than {MAX_DEPTH} deep")
    if size.size > MAX_SIZE:
        raise cursor.error(start.pos, f"with its chains written out, this has more than {MAX_SIZE} operators")
    return result, size


def body(cursor: Cursor, scope: Scope) -> Body:
    with cursor.nested():
        alternatives = [_sequence(cursor, scope)]
        while cursor.accept("|"):
            alternatives.append(_sequence(cursor, scope))
    return Body(tuple(alternatives))


def _sequence(cursor: Cursor, scope: Scope) -> Seq:
    start = cursor.peek()
    items = [_item(cursor, scope)]
    while cursor.accept("->"):
        items.append(_item(cursor, scope))
    for item in items:
        if len(items) > 1 and isinstance(item.atom, Pass):
            raise cursor.error(
                item.atom.pos, "'pass' stands alone: it is the path without any operator", "leave it out"
            )
    if len(items) > 1 and any(isinstance(item.atom, LinearRegion) for item in items):
        raise cursor.error(start.pos, "'linear-region' stands alone: it takes whatever lies between entry and exit")
    return Seq(tuple(items))


def _item(cursor: Cursor, scope: Scope) -> Item:
    start = cursor.peek()
    atom = _atom(cursor, scope)
    mark = cursor.accept("?", "*", "+")
    if mark is None:
        return Item(atom)
    if cursor.at("?", "*", "+"):
        raise cursor.error(cursor.peek().pos, f"'{mark.text}' and {cursor.peek()} on one item", "keep one of them")
    repeat = Repeat(mark.text)
    inner = measure_atom(Item(atom), scope.measures)
    if isinstance(atom, LinearRegion | Pass):
        raise cursor.error(mark.pos, f"'{mark.text}' cannot follow '{start.text}'")
    if repeat is not Repeat.OPTIONAL and inner.repeats:
        what = f"chain '{atom.chain}'" if isinstance(atom, Call) else "this"
        raise cursor.error(mark.pos, f"'{mark.text}' may not repeat {what}, which itself contains '*' or '+'")
    if repeat is not Repeat.OPTIONAL and inner.nullable:
        raise cursor.error(mark.pos, f"'{mark.text}' may not repeat what can be empty")
    return Item(atom, repeat)


def _atom(cursor: Cursor, scope: Scope) -> Atom:
    token = cursor.peek()
    if cursor.accept("("):
        inner = body(cursor, scope)
        cursor.expect(")")
        return Group(inner, token.pos)
    if token.kind != "name":
        raise cursor.unexpected("an operator, a chain, 'sum {', or '('")
    cursor.next()
    if token.text == "pass":
        return Pass(token.pos)
    if token.text == "linear-region":
        return LinearRegion(token.pos)
    if token.text in ("sum", "concat"):
        return _junction(cursor, scope, token)
    if token.text in OPERATORS:
        return _operator(cursor, scope, token)
    if token.text not in scope.chains:
        below = re.search(rf"\bchain\s+{token.text}\s*=", cursor.source.text)
        hint = "a chain is defined above its first use" if below else nearest(token.text, scope.words)
        raise cursor.error(token.pos, f"unknown operator {token}", hint)
    if cursor.at("["):
        raise cursor.error(cursor.peek().pos, "a chain takes no predicates", "write out the operator that is meant")
    return Call(token.text, _label(cursor, scope), token.pos)


def _operator(cursor: Cursor, scope: Scope, token: Token) -> OpAtom:
    operator = OPERATORS[token.text]
    if operator.joins:
        hint = "write sum { … }" if token.text in ("add", "sub") else ""
        raise cursor.error(token.pos, f"{token} joins several values and cannot be a step of a path", hint)
    predicates: list[Predicate] = []
    if cursor.accept("["):
        predicates.append(_predicate(cursor, operator))
        while cursor.accept(","):
            predicates.append(_predicate(cursor, operator))
        cursor.expect("]")
    return OpAtom(token.text, tuple(predicates), _label(cursor, scope), token.pos)


def _label(cursor: Cursor, scope: Scope) -> str | None:
    word = cursor.accept("as")
    if word is None:
        return None
    if not scope.labels:
        raise cursor.error(word.pos, "a chain cannot name its parts", "put 'as' where the chain is used")
    return _part_name(cursor, "a label").text


def _part_name(cursor: Cursor, what: str) -> Token:
    token = cursor.name(what, fresh=True)
    if token.text in OPERATORS:
        raise cursor.error(
            token.pos, f"{token} is an operator and cannot be {what}", "count(…) could not tell them apart"
        )
    return token


def _predicate(cursor: Cursor, operator: Operator) -> Predicate:
    token = cursor.name("an attribute")
    attribute = operator.attribute(token.text)
    names = [a.name for a in operator.attributes]
    if attribute is None:
        known = f"it has {', '.join(names)}" if names else "it has none"
        hint = nearest(token.text, names) or known
        raise cursor.error(token.pos, f"'{operator.name}' has no attribute {token}", hint)
    sign = cursor.accept(*COMPARISONS)
    if sign is None:
        if attribute.kind is not AttributeKind.FLAG:
            raise cursor.error(token.pos, f"{token} is {an(attribute.kind)}, not a flag", f"write {token.text}=…")
        return Predicate(token.text, pos=token.pos)
    if attribute.kind is AttributeKind.FLAG:
        raise cursor.error(sign.pos, f"{token} is a flag and is not compared", f"write {token.text} alone")
    if attribute.kind is AttributeKind.TYPE and sign.text not in ("=", "!="):
        raise cursor.error(sign.pos, "element types are equal or not, never less", "use = or !=")
    return Predicate(token.text, sign.text, _value(cursor, operator, attribute.kind), token.pos)


def _value(cursor: Cursor, operator: Operator, kind: AttributeKind) -> Literal:
    token = cursor.peek()
    if token.kind == "name":
        names = [a.name for a in operator.attributes if a.kind is kind or (a.kind.numeric and kind.numeric)]
        names += DTYPES if kind is AttributeKind.TYPE else ()
        if token.text not in names:
            hint = nearest(token.text, names) or f"there are {', '.join(names)}"
            raise cursor.error(token.pos, f"{token} cannot be compared with {an(kind)}", hint)
        return cursor.next().text
    if kind is AttributeKind.TYPE:
        raise cursor.unexpected("an element type")
    return cursor.integer("a whole number") if kind.whole else cursor.number("a number")


def _junction(cursor: Cursor, scope: Scope, token: Token) -> Junction:
    cursor.expect("{", f"write {token.text} {{ name: path … }}")
    branches: list[Branch] = []
    with cursor.nested():
        while not cursor.at("}"):
            branches.append(_branch(cursor, scope, token.text, branches))
            cursor.accept(";")
    cursor.expect("}")
    counts = [branch.most for branch in branches]
    if None not in counts and sum(most or 0 for most in counts) < 2:
        raise cursor.error(token.pos, f"this {token.text} has room for fewer than two operands and can never match")
    return Junction(token.text, tuple(branches), token.pos)


def _branch(cursor: Cursor, scope: Scope, kind: str, earlier: list[Branch]) -> Branch:
    sign = cursor.accept("-", "±")
    if sign is not None and kind == "concat":
        raise cursor.error(sign.pos, "a branch of a concat has no sign")
    name = _part_name(cursor, "the name of a branch")
    for other in earlier:
        if other.name == name.text:
            raise cursor.error(name.pos, f"branch {quote(other.name)} is defined twice", first=other.pos)
    least, most = _count(cursor) if cursor.accept("{") else (1, 1)
    cursor.expect(":", "a branch is NAME: path, or NAME{0..1}: path")
    return Branch(name.text, body(cursor, scope), sign.text if sign else "", least, most, name.pos)


def _count(cursor: Cursor) -> tuple[int, int | None]:
    """`1}`, `0..1}` or `1..}`, after the brace."""
    pos: Pos = cursor.peek().pos
    least = cursor.integer("a count such as 0..1")
    most: int | None = least
    if cursor.accept(".."):
        most = None if cursor.at("}") else cursor.integer("the largest count")
    cursor.expect("}")
    if least < 0 or (most is not None and (most < least or most == 0)):
        raise cursor.error(pos, "this count can never be met", "write {1}, {0..1}, {0..} or {1..}")
    return least, most
