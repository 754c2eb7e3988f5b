"""Expressions of `where`, `cost` and `vote`: text to tree, without looking at what the names mean.

Invariant: an expression has at most `MAX_PARTS` operands, so that every walk over the tree may recurse.
"""

from __future__ import annotations

from rewriter.language.lexer import Cursor
from rewriter.language.syntax import Apply, Attribute, Binary, Expr, Name, Not, Number, Pos

MAX_PARTS = 200
"""Operands of one expression."""

PRECEDENCE = {
    "or": 1,
    "and": 2,
    **dict.fromkeys(("=", "!=", "<", "<=", ">", ">=", "~"), 4),
    "+": 5,
    "-": 5,
    "*": 6,
    "/": 6,
}
"""How tightly operators bind; `not` stands at 3, unary minus above all."""

NOT, COMPARISON, UNARY = 3, 4, 7


class _Budget:
    def __init__(self) -> None:
        self.left = MAX_PARTS


def expression(cursor: Cursor) -> Expr:
    return _binary(cursor, 1, _Budget())


def _binary(cursor: Cursor, least: int, budget: _Budget) -> Expr:
    left = _prefix(cursor, least, budget)
    compared = False
    while (precedence := PRECEDENCE.get(cursor.peek().text, 0)) >= least:
        operator = cursor.next()
        if precedence == COMPARISON:
            if compared:
                raise cursor.error(operator.pos, "comparisons do not chain", "write a < b and b < c")
            compared = True
        right = _binary(cursor, precedence + 1, budget)
        left = Binary(operator.text, left, right, operator.pos)
    return left


def _prefix(cursor: Cursor, least: int, budget: _Budget) -> Expr:
    token = cursor.peek()
    budget.left -= 1
    if budget.left < 0:
        raise cursor.error(token.pos, f"an expression has at most {MAX_PARTS} parts", "write several 'where' clauses")
    if token.text == "not":
        if least > NOT:
            raise cursor.unexpected("a value", "put the negation in parentheses")
        cursor.next()
        with cursor.nested():
            return Not(_binary(cursor, NOT, budget), token.pos)
    if token.text == "-" and cursor.peek(1).kind != "number":
        cursor.next()
        with cursor.nested():
            return Binary("-", Number(0, token.pos), _prefix(cursor, UNARY, budget), token.pos)
    if token.text == "-" or token.kind == "number":
        return Number(cursor.number("a number"), token.pos)
    if cursor.accept("("):
        with cursor.nested():
            inner = _binary(cursor, 1, budget)
        cursor.expect(")")
        return inner
    return _named(cursor)


def _named(cursor: Cursor) -> Expr:
    """`name`, `owner.attribute` or `function(name)`."""
    token = cursor.peek()
    if token.text in ("and", "or"):
        raise cursor.unexpected("a value")
    cursor.name("a value")
    if cursor.accept("("):
        argument = cursor.name("a name")
        close = cursor.expect(")")
        return Apply(token.text, argument.text, _span(token.pos, close.pos))
    if cursor.accept("."):
        attribute = cursor.name("an attribute")
        return Attribute(token.text, attribute.text, _span(token.pos, attribute.pos))
    return Name(token.text, token.pos)


def _span(first: Pos, last: Pos) -> Pos:
    if first.line != last.line:
        return first
    return Pos(first.line, first.column, last.column + last.length - first.column)
