"""The clauses of a pattern that stand by themselves: parameters, outputs, histograms, reasons.

Invariant: each function reads exactly its clause and leaves the cursor behind it; what names mean is checked later,
once the whole pattern is known.
"""

from __future__ import annotations

from rewriter.errors import Reason
from rewriter.graph.vocabulary import FOLD_KINDS, OPERATORS
from rewriter.language.expressions import expression
from rewriter.language.functions import PARAM_KINDS
from rewriter.language.lexer import Cursor, Token
from rewriter.language.source import nearest
from rewriter.language.syntax import Literal, NetChain, NetOp, OutputsMatch, Param, Role, Vote

ROLES = ("named", "index", "deepest", "twin", "rest")


def net_ops(chain: NetChain) -> list[NetOp]:
    """Every operator and value that a chain of a net names, in order."""
    found: list[NetOp] = []
    for item in chain.items:
        if isinstance(item, NetOp):
            found.append(item)
        else:
            found += [op for _, operand in item.operands for op in net_ops(operand)]
    return found


def param(cursor: Cursor) -> Param:
    name = cursor.name("the name of a parameter", fresh=True)
    if name.text == "cost":
        raise cursor.error(name.pos, "'cost' is a parameter of every pattern already")
    cursor.expect(":", "param NAME: TYPE = VALUE")
    kind = cursor.name("a type")
    if kind.text not in PARAM_KINDS:
        hint = nearest(kind.text, PARAM_KINDS) or f"there are {', '.join(PARAM_KINDS)}"
        raise cursor.error(kind.pos, f"unknown type {kind}", hint)
    cursor.expect("=")
    return Param(name.text, kind.text, _param_value(cursor, kind.text), name.pos)


def _param_value(cursor: Cursor, kind: str) -> Literal | tuple[Literal, ...]:
    token = cursor.peek()
    if kind in ("names", "globs"):
        cursor.expect("[", f'{kind} are a list: [] or ["one", "two"]')
        items: list[str] = []
        while not cursor.accept("]"):
            items.append(cursor.string("a name in quotes")[0])
            if not cursor.at("]"):
                cursor.expect(",")
        return tuple(items)
    if kind == "bool":
        if token.text not in ("true", "false"):
            raise cursor.unexpected("true or false")
        return cursor.next().text == "true"
    if kind == "string":
        return cursor.string("a string")[0]
    return cursor.integer("a whole number") if kind == "int" else cursor.number("a number")


def outputs(cursor: Cursor, word: Token) -> OutputsMatch:
    cursor.next()
    cursor.expect("{")
    roles: list[Role] = []
    votes: list[Vote] = []
    while not cursor.accept("}"):
        token = cursor.peek()
        if token.text in ("vote", "report-only") and cursor.peek(1).text != ":":
            votes.append(_vote(cursor))
        else:
            roles.append(_role(cursor))
        cursor.accept(";")
    return OutputsMatch(tuple(roles), tuple(votes), word.pos)


def _vote(cursor: Cursor) -> Vote:
    silent = cursor.accept("report-only") is not None
    cursor.expect("vote")
    name = cursor.name("the name of a vote", fresh=True)
    cursor.expect("=")
    return Vote(name.text, expression(cursor), silent, name.pos)


def _role(cursor: Cursor) -> Role:
    name = cursor.name("a role or a vote", fresh=True)
    cursor.expect(":", "a role is NAME: named PARAM, index(0), deepest, twin of NAME, or rest")
    kind = cursor.name("what the role is")
    match kind.text:
        case "named":
            return Role(name.text, "named", cursor.name("a parameter").text, name.pos)
        case "twin":
            cursor.expect("of")
            return Role(name.text, "twin", cursor.name("a role").text, name.pos)
        case "index":
            cursor.expect("(")
            index = cursor.integer("the number of an output")
            cursor.expect(")")
            return Role(name.text, "index", index, name.pos)
        case "deepest" | "rest":
            return Role(name.text, kind.text, None, name.pos)
        case _:
            hint = nearest(kind.text, ROLES) or f"there are {', '.join(ROLES)}"
            raise cursor.error(kind.pos, f"unknown kind of role {kind}", hint)


def fold_kind(cursor: Cursor) -> str:
    token = cursor.name("what to fold to")
    if token.text not in FOLD_KINDS:
        hint = nearest(token.text, FOLD_KINDS) or f"there are {', '.join(FOLD_KINDS)}"
        raise cursor.error(token.pos, f"nothing folds to {token}", hint)
    return token.text


def histogram(cursor: Cursor) -> tuple[tuple[str, int], ...]:
    found: dict[str, int] = {}
    while True:
        op = cursor.name("an operator")
        if op.text not in OPERATORS:
            raise cursor.error(op.pos, f"unknown operator {op}", nearest(op.text, OPERATORS))
        if op.text in found:
            raise cursor.error(op.pos, f"{op} is counted twice")
        cursor.expect("=", f"write {op.text}=1")
        pos = cursor.peek().pos
        found[op.text] = cursor.integer("how many there are")
        if found[op.text] < 1:
            raise cursor.error(pos, "a count is at least 1", "what is not listed must not be there")
        if not cursor.accept(","):
            return tuple(found.items())


def reason(cursor: Cursor) -> Reason:
    token = cursor.name("a reason")
    if token.text not in [reason.value for reason in Reason]:
        hint = nearest(token.text, [reason.value for reason in Reason]) or f"there are {', '.join(Reason)}"
        raise cursor.error(token.pos, f"unknown reason {token}", hint)
    return Reason(token.text)
