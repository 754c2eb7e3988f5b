"""Nets: the small models of tests and of `replace with`, as text.

Invariant: every name in a net is an operator of the signature table or a value that stands above; every statement can
be built. Shapes are the builder's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rewriter.graph.vocabulary import DTYPES
from rewriter.language.lexer import Cursor, Token
from rewriter.language.signatures import SIGNATURES, ArgumentKind, NetArgument, Signature
from rewriter.language.source import nearest, quote
from rewriter.language.syntax import Argument, Literal, Net, NetChain, NetOp, NetStatement, NetSum, Pos

MAX_RANK = 8
MAX_EXTENT = 65536
_LISTS = (ArgumentKind.WINDOW, ArgumentKind.PADS, ArgumentKind.INTS)


@dataclass
class _Values:
    """Values known so far; `given`, the entry of a replacement, is known from the start (no input is declared then)."""

    given: str | None
    known: dict[str, Pos] = field(default_factory=dict[str, Pos])


def net(cursor: Cursor, given: Mapping[str, Pos] | None = None) -> Net:
    """`net stmt { ";" stmt }` or `net file("…")`, from the word `net` on."""
    word = cursor.expect("net")
    if cursor.at("file") and cursor.peek(1).text == "(":
        return _file(cursor, word)
    values = _Values(next(iter(given)) if given else None, dict(given or {}))
    statements = [_statement(cursor, values)]
    while cursor.accept(";"):
        statements.append(_statement(cursor, values))
    return Net(tuple(statements), pos=word.pos)


def _file(cursor: Cursor, word: Token) -> Net:
    cursor.next()
    cursor.expect("(")
    path, pos = cursor.string("the path of a model")
    steps = path.split("/")
    if not path or "\\" in path or ":" in path or any(step in ("", ".", "..") for step in steps):
        raise cursor.error(
            pos, "the path of a model is relative, inside the folder of the pattern file", "name/of.onnx"
        )
    cursor.expect(")")
    return Net(file=path, pos=word.pos)


def _statement(cursor: Cursor, values: _Values) -> NetStatement:
    name = cursor.name("the name of a value", fresh=True)
    if name.text in SIGNATURES:
        raise cursor.error(name.pos, f"{name} is an operator and cannot name a value")
    cursor.expect("=")
    chain = _chain(cursor, values, fed=False)
    _define(cursor, values, name)
    return NetStatement(name.text, chain, name.pos)


def _define(cursor: Cursor, values: _Values, name: Token) -> None:
    if name.text in values.known:
        raise cursor.error(name.pos, f"value {name} is defined twice", first=values.known[name.text])
    values.known[name.text] = name.pos


def _chain(cursor: Cursor, values: _Values, *, fed: bool) -> NetChain:
    """`fed`: a running value comes in, so the chain may begin with an operator."""
    items = [_item(cursor, values, head=True, fed=fed)]
    while cursor.accept("->"):
        items.append(_item(cursor, values, head=False, fed=True))
    return NetChain(tuple(items))


def _item(cursor: Cursor, values: _Values, *, head: bool, fed: bool) -> NetOp | NetSum:
    token = cursor.name("an operator of the net" if not head else "a value or an operator of the net")
    if token.text in ("sum", "concat") and cursor.at("{"):
        return _junction(cursor, values, token, fed=fed)
    if head and cursor.at("["):
        return _input(cursor, values, token)
    if token.text in SIGNATURES:
        if not fed:
            raise cursor.error(token.pos, f"{token} has nothing to work on", "begin with a value: x[1,8,7,7] -> …")
        return NetOp(token.text, _arguments(cursor, SIGNATURES[token.text], token), pos=token.pos)
    if token.text in values.known:
        if not head:
            raise cursor.error(token.pos, f"value {token} cannot stand after '->'", "a value begins a path")
        return NetOp(token.text, pos=token.pos)
    known = [*SIGNATURES, *(values.known if head else ()), "sum", "concat"]
    what = "operator or value" if head else "operator"
    hint = nearest(token.text, known)
    if head and not hint and values.given is None:
        hint = f"an input is declared with its shape: {token.text}[1,8,7,7]"
    raise cursor.error(token.pos, f"unknown {what} {token} in a net", hint)


def _input(cursor: Cursor, values: _Values, token: Token) -> NetOp:
    if token.text in SIGNATURES:
        raise cursor.error(token.pos, f"{token} is an operator and cannot name an input")
    if values.given is not None:
        raise cursor.error(token.pos, f"a replacement has no inputs but the entry '{values.given}'")
    cursor.expect("[")
    shape = [_dim(cursor)]
    while cursor.accept(","):
        shape.append(_dim(cursor))
    cursor.expect("]")
    if len(shape) > MAX_RANK:
        raise cursor.error(token.pos, f"an input has at most {MAX_RANK} dimensions")
    _define(cursor, values, token)
    return NetOp(token.text, shape=tuple(shape), pos=token.pos)


def _dim(cursor: Cursor) -> int | str:
    token = cursor.peek()
    if token.kind == "name":
        return cursor.next().text
    extent = cursor.integer("an extent or a symbol")
    if not 1 <= extent <= MAX_EXTENT:
        raise cursor.error(token.pos, f"an extent is from 1 to {MAX_EXTENT}")
    return extent


def _junction(cursor: Cursor, values: _Values, token: Token, *, fed: bool) -> NetSum:
    cursor.expect("{")
    operands: list[tuple[str, NetChain]] = []
    with cursor.nested():
        while True:
            minus = cursor.accept("-")
            if minus is not None and token.text == "concat":
                raise cursor.error(minus.pos, "an operand of a concat has no sign")
            operands.append(("-" if minus else "", _chain(cursor, values, fed=fed)))
            if not cursor.accept(";"):
                break
    cursor.expect("}", "operands are separated by ';'")
    if len(operands) < 2:
        raise cursor.error(token.pos, f"a {token.text} needs at least two operands")
    return NetSum(token.text, tuple(operands), token.pos)


def _arguments(cursor: Cursor, signature: Signature, token: Token) -> tuple[Argument, ...]:
    found: list[Argument] = []
    given: dict[str, Pos] = {}
    if cursor.accept("("):
        while True:
            argument, target = _argument(cursor, signature, len(found), bool(found and found[-1].name))
            if target in given:
                raise cursor.error(argument.pos, f"argument {quote(target)} is given twice", first=given[target])
            given[target] = argument.pos
            found.append(argument)
            if not cursor.accept(","):
                break
        cursor.expect(")")
    for wanted in signature.arguments:
        if wanted.default is None and not wanted.optional and wanted.name not in given:
            raise cursor.error(token.pos, f"{token} needs its argument '{wanted.name}'", f"write {signature}")
    return tuple(found)


def _argument(cursor: Cursor, signature: Signature, place: int, named: bool) -> tuple[Argument, str]:
    """An argument, and the name it has in the table."""
    token = cursor.peek()
    if cursor.peek(1).text == "=":
        name = cursor.name("an argument")
        cursor.next()
        wanted = signature.argument(name.text)
        if wanted is None:
            hint = nearest(name.text, [a.name for a in signature.arguments]) or f"write {signature}"
            raise cursor.error(name.pos, f"'{signature.op}' has no argument {name}", hint)
        return Argument(_value(cursor, wanted), name.text, token.pos), wanted.name
    if named or place >= signature.positional:
        what = f"'{signature.op}' has no argument in this place" if signature.arguments else "it has no arguments"
        raise cursor.error(token.pos, what, f"write {signature}")
    wanted = signature.arguments[place]
    return Argument(_value(cursor, wanted), None, token.pos), wanted.name


def _value(cursor: Cursor, wanted: NetArgument) -> Literal | tuple[Literal, ...]:
    token = cursor.peek()
    if wanted.kind in (ArgumentKind.SWITCH, ArgumentKind.TYPE):
        words = ("yes", "no") if wanted.kind is ArgumentKind.SWITCH else DTYPES
        if token.text not in words:
            raise cursor.unexpected(f"{wanted.kind} for '{wanted.name}'", nearest(token.text, words))
        return cursor.next().text
    if wanted.kind in _LISTS and cursor.accept("["):
        values = [_whole(cursor, wanted)]
        while cursor.accept(","):
            values.append(_whole(cursor, wanted))
        cursor.expect("]")
        return tuple(values)
    if wanted.kind is ArgumentKind.INTS:
        raise cursor.unexpected(f"a {wanted.kind} for '{wanted.name}'", "write [0,2,1]")
    return cursor.number("a number") if wanted.kind is ArgumentKind.NUMBER else _whole(cursor, wanted)


def _whole(cursor: Cursor, wanted: NetArgument) -> int:
    pos = cursor.peek().pos
    value = cursor.integer(f"a whole number for '{wanted.name}'")
    least = {ArgumentKind.COUNT: 1, ArgumentKind.WINDOW: 1, ArgumentKind.PADS: 0}.get(wanted.kind, -MAX_EXTENT)
    if not least <= value <= MAX_EXTENT:
        raise cursor.error(pos, f"'{wanted.name}' is from {least} to {MAX_EXTENT}")
    return value
