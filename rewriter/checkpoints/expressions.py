"""Texts inside a .pt2 archive that torch evaluates as Python, held against a list of what they may be.

Invariant: what passes is arithmetic on sizes. It holds no attribute but a size, no name but of a listed function or a
symbol, no text that is more than a word, and no number or power that takes time to compute.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any, Final, cast

MOST_TEXT: Final = 4000
_MOST_INTEGER: Final = 1 << 63
_WORD: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,200}")
_KEY: Final = re.compile(r"[A-Za-z0-9_]{0,200}")
_PLAIN_TEXT: Final = re.compile(r"[A-Za-z0-9_ \[\]().,'+\-*/%<>=!&|~]*")
_FUNCTIONS: Final = frozenset(
    {"Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Max", "Min", "Abs", "FloorDiv", "ModularIndexing"}
    | {"Where", "PythonMod", "Mod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv", "PowByNatural", "FloatTrueDiv"}
    | {"IntTrueDiv", "IsNonOverlappingAndDenseIndicator", "TruncToFloat", "TruncToInt", "RoundToInt", "RoundDecimal"}
    | {"ToFloat", "Identity", "Equality", "Unequality", "GreaterThan", "LessThan", "StrictGreaterThan"}
    | {"StrictLessThan", "Eq", "Ne", "Ge", "Le", "Gt", "Lt", "And", "Or", "Not", "Piecewise"}
)
_POWERS: Final = frozenset({"Pow", "PowByNatural"})
_MOST_POWER: Final = 8
_NAMES: Final = re.compile(r"(s|u|zuf|zf|z)\d+|true|false|True|False|None")
_ALLOWED: Final = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp, ast.UnaryOp, ast.BoolOp,
    ast.Compare, ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Div, ast.Mod, ast.USub, ast.UAdd, ast.Not, ast.And,
    ast.Or, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Tuple,
)  # fmt: skip
_OF_TENSORS: Final = frozenset({"size", "stride", "storage_offset", "shape", "ndim", "dtype", "device"})
_OF_MATH: Final = frozenset({"floor", "ceil", "trunc", "sqrt", "isnan", "inf"})
_CONTAINERS: Final = frozenset(
    {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}
    | {f"torch.fx.immutable_collections.immutable_{kind}" for kind in ("list", "dict")}  # what traced modules give
)


def is_word(text: object) -> bool:
    """True for an identifier, which code that torch writes can hold without harm."""
    return isinstance(text, str) and _WORD.fullmatch(text) is not None


def wrong_size(text: object) -> str | None:
    """Why an expression of sizes must not reach sympify; None where it may."""
    tree = _parsed(text)
    if tree is None:
        return "is no expression"
    return next((why for node in ast.walk(tree) if (why := _wrong_in_size(node))), None) or _wrong_powers(tree)


def wrong_guard(text: object) -> str | None:
    """Why a guard must not be compiled; None where it may."""
    if not isinstance(text, str) or not _PLAIN_TEXT.fullmatch(text):
        return "holds characters that no guard needs"
    tree = _parsed(text)
    if tree is None:
        return "is no expression"
    return next((why for node in ast.walk(tree) if (why := _wrong_in_guard(node))), None) or _wrong_powers(tree)


def _parsed(text: object) -> ast.Expression | None:
    if not isinstance(text, str) or len(text) > MOST_TEXT or not text.isascii() or "\n" in text:
        return None
    try:
        return ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _wrong_in_size(node: ast.AST) -> str | None:
    if not isinstance(node, _ALLOWED):
        return f"holds {type(node).__name__}, which no size needs"
    if isinstance(node, ast.Call):
        function = node.func
        if not isinstance(function, ast.Name) or function.id not in _FUNCTIONS:
            return f"calls {ast.unparse(function)[:60]}"
    if isinstance(node, ast.Name) and node.id not in _FUNCTIONS and not _NAMES.fullmatch(node.id):
        return f"names {node.id[:60]}"
    return _wrong_constant(node)


def _wrong_in_guard(node: ast.AST) -> str | None:
    if isinstance(node, ast.Subscript):
        return None
    if isinstance(node, ast.Attribute):
        of_math = isinstance(node.value, ast.Name) and node.value.id == "math"
        allowed = _OF_MATH if of_math else _OF_TENSORS
        return None if node.attr in allowed else f"reads .{node.attr[:60]}"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return None  # the attribute itself is judged above
    if isinstance(node, ast.Name) and node.id in ("L", "math", "inf"):
        return None
    return _wrong_in_size(node)


def _wrong_constant(node: ast.AST) -> str | None:
    if not isinstance(node, ast.Constant):
        return None
    value = node.value
    if isinstance(value, str):
        return None if _KEY.fullmatch(value) else "holds a text that is no word"
    if isinstance(value, bool | float | None):
        return None
    if isinstance(value, int):
        return None if value < _MOST_INTEGER else "holds a number beyond 64 bits"
    return f"holds a {type(value).__name__}"


def _wrong_powers(tree: ast.AST) -> str | None:
    """Towers of powers are short to write and take for ever; sizes have at most one small power."""
    powers = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _POWERS
    ]
    for node in powers:
        exponent = node.args[1] if len(node.args) == 2 else None
        if isinstance(exponent, ast.Call) and len(exponent.args) == 1:
            exponent = exponent.args[0]
        if isinstance(exponent, ast.UnaryOp) and isinstance(exponent.op, ast.USub):
            exponent = exponent.operand
        small = isinstance(exponent, ast.Constant) and isinstance(exponent.value, int) and exponent.value <= _MOST_POWER
        if not small or len(powers) > 4:
            return "holds powers that take long to compute"
    inside = any(child is not node and child in powers for node in powers for child in ast.walk(node))
    return "holds powers of powers" if inside else None


def wrong_treespec(text: object) -> str | None:
    """Why the description of nested inputs or outputs must not be read; None where it may."""
    if not isinstance(text, str):
        return "is no text"
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        return "is no JSON"
    if not isinstance(found, list) or len(cast("list[Any]", found)) != 2 or found[0] != 1:
        return "is of a version that is not known"
    return next((why for spec in _specs(found[1]) if (why := _wrong_spec(spec))), None)


def _specs(spec: Any) -> Iterator[Any]:
    waiting = [spec]
    while waiting:
        found = waiting.pop()
        yield found
        if isinstance(found, dict):
            children: Any = cast("dict[str, Any]", found).get("children_spec")
            waiting += cast("list[Any]", children) if isinstance(children, list) else []


def _wrong_spec(spec: Any) -> str | None:
    if not isinstance(spec, dict) or {*cast("dict[str, Any]", spec)} != {"type", "context", "children_spec"}:
        return "has other fields than torch writes"
    kind, context = cast("dict[str, Any]", spec)["type"], cast("dict[str, Any]", spec)["context"]
    if kind not in _CONTAINERS:
        return f"holds a {str(kind)[:60]}"
    if context is None:
        return None
    try:
        keys: Any = json.loads(context)
    except (ValueError, TypeError, RecursionError):
        return "has a context that is no JSON"
    items = cast("list[Any]", keys) if isinstance(keys, list) else [] if keys is None else [keys]
    wrong = [key for key in items if not (is_word(key) or (type(key) is int and 0 <= key < 1 << 31))]
    return "has keys that are no words" if wrong else None
