"""Pattern files as JSON, for programs that write patterns, and the JSON Schema of that form.

Invariant: form and schema are both derived from the dataclasses of the syntax tree, so neither can forget a field. A
node says its class under "is" where several may stand; fields at their defaults are left out. A document is accepted
when the text it prints as parses to the same tree, so it is checked exactly as a file is.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterator, Mapping
from enum import StrEnum
from functools import cache
from typing import Any, cast

from rewriter.errors import PatternError
from rewriter.graph.vocabulary import FOLD_KINDS, OPERATORS
from rewriter.language import syntax
from rewriter.language.clauses import ROLES
from rewriter.language.expressions import PRECEDENCE
from rewriter.language.functions import FUNCTIONS, PARAM_KINDS
from rewriter.language.grammar import VERSION
from rewriter.language.parser import parse
from rewriter.language.printer import to_text
from rewriter.language.source import clean
from rewriter.language.syntax import PatternFile

SCHEMA_ID = "https://json-schema.org/draft/2020-12/schema"
MAX_NESTING = 430
"""Levels of a document; what the text form may nest comes to fewer."""

_SKIPPED = frozenset({"pos", "path"})
_NAME = {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*(-[A-Za-z0-9_]+)*$"}
_FIELDS: Mapping[tuple[type, str], Mapping[str, Any]] = types.MappingProxyType(
    {
        (syntax.PatternFile, "version"): {"const": VERSION},
        (syntax.OpAtom, "op"): {"enum": [op.name for op in OPERATORS.values() if not op.joins]},
        (syntax.Predicate, "op"): {"enum": ["=", "!=", "<", "<=", ">", ">="]},
        (syntax.Junction, "kind"): {"enum": ["sum", "concat"]},
        (syntax.NetSum, "kind"): {"enum": ["sum", "concat"]},
        (syntax.Branch, "sign"): {"enum": ["", "-", "±"]},
        (syntax.Binary, "op"): {"enum": list(PRECEDENCE)},
        (syntax.Apply, "function"): {"enum": list(FUNCTIONS)},
        (syntax.Param, "type"): {"enum": list(PARAM_KINDS)},
        (syntax.Role, "kind"): {"enum": list(ROLES)},
        (syntax.Fold, "kinds"): {"type": "array", "items": {"enum": list(FOLD_KINDS)}, "minItems": 1},
        **{(kind, "name"): _NAME for kind in (syntax.Pattern, syntax.Chain, syntax.Param, syntax.Branch, syntax.Role)},
    }
)
"""What the schema says of a field beyond its type, from the tables of the language."""


def to_json(file: PatternFile) -> dict[str, Any]:
    """The document of a file, of plain JSON values."""
    return _encode(file)


def from_json(document: object, path: str) -> PatternFile:
    """The file that a document describes; a PatternError where it describes none."""
    _limit(document, path)
    tree = cast(PatternFile, _decode(PatternFile, document, clean(path), "$"))
    tree = dataclasses.replace(tree, path=path)
    parsed = parse(to_text(tree), path)
    if parsed != tree:
        raise PatternError(f"{clean(path)}: the document is no pattern file: its text form reads as something else")
    return parsed


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of `to_json`'s documents."""
    definitions = {_tag(cls): _class_schema(cls) for cls in _classes(PatternFile)}
    return {
        "$schema": SCHEMA_ID,
        "title": f"fxrewrite pattern file, version {VERSION}",
        "$ref": f"#/$defs/{_tag(PatternFile)}",
        "$defs": dict(sorted(definitions.items())),
    }


# --- dataclasses ---------------------------------------------------------------------------------------------------


@cache
def _hints(cls: type) -> Mapping[str, Any]:
    """The fields of a class that take part in the document, with their types."""
    hints = typing.get_type_hints(cls, dict(vars(syntax)))
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.name not in _SKIPPED}


@cache
def _defaults(cls: type) -> Mapping[str, Any]:
    return {f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING}


def _options(hint: Any) -> tuple[Any, ...]:
    """The members of a union; a type that is none is its only option."""
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _is_node(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


@cache
def _tag(cls: type) -> str:
    """`OpAtom` as "op-atom"."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()


@cache
def _alternatives() -> frozenset[type]:
    """The classes that stand somewhere beside other classes, and therefore say which one they are."""
    found: set[type] = set()
    for cls in _classes(PatternFile):
        for hint in _inner(list(_hints(cls).values())):
            nodes = [option for option in _options(hint) if _is_node(option)]
            found.update(nodes if len(nodes) > 1 else ())
    return frozenset(found)


def _inner(hints: list[Any]) -> Iterator[Any]:
    """Types, and the types of the items of the tuples among them."""
    while hints:
        hint = hints.pop()
        yield hint
        hints += [item for item in typing.get_args(hint) if item is not ...]


def _classes(root: type) -> Iterator[type]:
    """The node classes that a document of `root` may hold, each once."""
    seen: set[type] = set()
    waiting: list[Any] = [root]
    while waiting:
        hint = waiting.pop()
        if _is_node(hint) and hint not in seen:
            seen.add(hint)
            yield hint
            waiting += _hints(hint).values()
        elif not _is_node(hint):
            waiting += typing.get_args(hint)


# --- both ways -----------------------------------------------------------------------------------------------------


def _encode(node: object) -> dict[str, Any]:
    cls = type(node)
    document: dict[str, Any] = {"is": _tag(cls)} if cls in _alternatives() else {}
    for name, hint in _hints(cls).items():
        value = getattr(node, name)
        if name not in _defaults(cls) or value != _defaults(cls)[name]:
            document[name] = _encode_value(value, hint)
    return document


def _encode_value(value: Any, hint: Any) -> Any:
    if _is_node(type(value)):
        return _encode(value)
    if isinstance(value, tuple):
        items = cast("tuple[Any, ...]", value)
        shapes = [_item_hints(option, len(items)) for option in _options(hint) if typing.get_origin(option) is tuple]
        return [_encode_value(item, item_hint) for item, item_hint in zip(items, shapes[0], strict=True)]
    return value.value if isinstance(value, StrEnum) else value


def _item_hints(hint: Any, count: int) -> list[Any]:
    """The types of the items of a tuple of `count`."""
    inner = typing.get_args(hint)
    return [inner[0]] * count if len(inner) == 2 and inner[1] is ... else list(inner)


def _decode(hint: Any, value: object, path: str, where: str) -> Any:
    """The value of type `hint` that `value` stands for; `where` is its place in the document."""
    options = _options(hint)
    nodes = [option for option in options if _is_node(option)]
    if nodes and isinstance(value, dict):
        return _decode_node(nodes, cast("dict[str, object]", value), path, where)
    items = _decode_items(options, value, path, where)
    if items is not None:
        return items
    for option in options:
        if isinstance(option, type) and issubclass(option, StrEnum) and value in [member.value for member in option]:
            return option(value)
        if type(value) is option or (option is type(None) and value is None):
            return value
    raise PatternError(f"{path}: {where}: expected {_words(hint)}, found {_shown(value)}")


def _decode_items(options: tuple[Any, ...], value: object, path: str, where: str) -> tuple[Any, ...] | None:
    """The tuple that a list stands for; None for what is no list, or not of a length that fits."""
    if not isinstance(value, list):
        return None
    items = cast("list[object]", value)
    for option in options:
        shapes = _item_hints(option, len(items)) if typing.get_origin(option) is tuple else None
        if shapes is not None and len(shapes) == len(items):
            found: list[Any] = []
            for index, (item, hint) in enumerate(zip(items, shapes, strict=True)):
                found.append(_decode(hint, item, path, f"{where}[{index}]"))
            return tuple(found)
    return None


def _decode_node(nodes: list[Any], value: dict[str, object], path: str, where: str) -> Any:
    fields = dict(value)
    cls = nodes[0]
    if len(nodes) > 1:
        tag = fields.pop("is", None)
        found = [node for node in nodes if _tag(node) == tag]
        if not found:
            tags = ", ".join(map(_tag, nodes))
            raise PatternError(f'{path}: {where}: "is" has to be one of {tags}, found {_shown(tag)}')
        cls = found[0]
    hints = _hints(cls)
    for name in fields:
        if name not in hints:
            raise PatternError(f"{path}: {where}: a {_tag(cls)} has no field {_shown(name)}")
    for name in hints:
        if name not in fields and name not in _defaults(cls):
            raise PatternError(f'{path}: {where}: a {_tag(cls)} needs the field "{name}"')
    known: dict[str, Any] = {"path": path} if cls is PatternFile else {}
    for name, item in fields.items():
        known[name] = _decode(hints[name], item, path, f"{where}.{name}")
    return cls(**known)


def _words(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "a string", bool: "true or false", type(None): "null"}
    return " or ".join(
        names.get(option) or (f"a {_tag(option)}" if isinstance(option, type) else "a list")
        for option in _options(hint)
    )


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
    return clean(text if len(text) <= 60 else text[:57] + "...")


def _limit(document: object, path: str) -> None:
    """Refuse documents that nest deeper than any pattern file can."""
    level: list[object] = [document]
    for _ in range(MAX_NESTING):
        below: list[object] = []
        for value in level:
            if isinstance(value, dict):
                below += cast("dict[object, object]", value).values()
            elif isinstance(value, list):
                below += cast("list[object]", value)
        if not below:
            return
        level = below
    raise PatternError(f"{clean(path)}: the document is nested more than {MAX_NESTING} levels deep")


# --- schema --------------------------------------------------------------------------------------------------------


def _class_schema(cls: type) -> dict[str, Any]:
    properties: dict[str, Any] = {"is": {"const": _tag(cls)}} if cls in _alternatives() else {}
    for name, hint in _hints(cls).items():
        properties[name] = dict(_FIELDS.get((cls, name)) or _type_schema(hint))
    required = [name for name in properties if name not in _defaults(cls)]
    result: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    if cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}("):
        result["description"] = " ".join(cls.__doc__.split())
    return result | ({"required": required} if required else {})


def _type_schema(hint: Any) -> dict[str, Any]:
    options = _options(hint)
    if len(options) == 1:
        return _plain_schema(hint)
    return {"anyOf": [_plain_schema(option) for option in options]}


def _plain_schema(hint: Any) -> dict[str, Any]:
    plain = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}
    if hint in plain:
        return {"type": plain[hint]}
    if _is_node(hint):
        return {"$ref": f"#/$defs/{_tag(hint)}"}
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return {"enum": [member.value for member in hint]}
    inner = typing.get_args(hint)
    if len(inner) == 2 and inner[1] is ...:
        return {"type": "array", "items": _type_schema(inner[0])}
    items = [_type_schema(item) for item in inner]
    return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
