"""Records as JSON, and the JSON Schema of that, both derived from the dataclasses so that they cannot drift apart.

Invariant: `from_json(to_json(report)) == report`. Numbers JSON has no words for are the strings "NaN", "Infinity" and
"-Infinity"; every field is always present; an unknown field or schema version is an error, never dropped.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from enum import Enum

from rewriter.checking.record import Verification
from rewriter.errors import InputError
from rewriter.reporting.checkpoint import CheckpointInspection
from rewriter.reporting.record import SCHEMA_VERSION, Inspection, Report

Json = dict[str, "Json"] | list["Json"] | str | int | float | bool | None
_NOT_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def dumps(record: object) -> str:
    """The JSON text of a record: ASCII only, so that it survives any encoding, and ending in a line break."""
    return json.dumps(to_json(record), indent=2, allow_nan=False) + "\n"


def to_json(record: object) -> Json:
    """A record (or any value inside one) as values that `json.dumps` takes."""
    if dataclasses.is_dataclass(record):
        return {field.name: to_json(getattr(record, field.name)) for field in dataclasses.fields(record)}
    if isinstance(record, Enum):
        return str(record.value)
    if isinstance(record, tuple | list):
        return [to_json(item) for item in typing.cast("tuple[object, ...]", record)]
    if isinstance(record, float) and not math.isfinite(record):
        return "NaN" if math.isnan(record) else "Infinity" if record > 0 else "-Infinity"
    if record is None or isinstance(record, str | int | float):
        return record
    raise TypeError(f"a record holds plain data only, not {type(record).__name__}")


def from_json(data: Json) -> Report:
    """The report that `to_json` wrote. Raises InputError, naming the field, where `data` is not one of this version."""
    version = data.get("schema") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(f"not a report of schema {SCHEMA_VERSION}, the one this version reads (found: {version})")
    return typing.cast("Report", _decode(Report, data, "report"))


def schema(record: type = Report) -> dict[str, Json]:
    """JSON Schema 2020-12 of a record (`Report` or `Inspection`), descriptions from the docstrings."""
    definitions: dict[str, Json] = {}
    _define(record, definitions)
    return {
        "$schema": DIALECT,
        "$id": f"urn:fxrewrite:{record.__name__.lower()}:{SCHEMA_VERSION}",
        "title": f"fxrewrite {record.__name__.lower()}, schema {SCHEMA_VERSION}",
        "$ref": f"#/$defs/{record.__name__}",
        "$defs": {name: definitions[name] for name in sorted(definitions)},
    }


SCHEMAS: Mapping[str, type] = {
    "report": Report,
    "inspection": Inspection,
    "checkpoint": CheckpointInspection,
    "verification": Verification,
}


def _hints(record: type) -> dict[str, object]:
    """Field name -> resolved type, in order of declaration."""
    hints = typing.get_type_hints(record)
    return {field.name: hints[field.name] for field in dataclasses.fields(record)}


def _define(record: type, definitions: dict[str, Json]) -> None:
    if record.__name__ in definitions:
        return
    definitions[record.__name__] = None  # seen, so that records which hold each other end
    hints = _hints(record)
    properties: dict[str, Json] = {name: _schema_of(hint, definitions) for name, hint in hints.items()}
    if "schema" in hints:
        properties["schema"] = {"const": SCHEMA_VERSION}
    entry: dict[str, Json] = {
        "type": "object",
        "properties": properties,
        "required": list(hints),
        "additionalProperties": False,
    }
    if record.__doc__ and not record.__doc__.startswith(f"{record.__name__}("):
        entry["description"] = " ".join(record.__doc__.split())
    definitions[record.__name__] = entry


def _schema_of(hint: object, definitions: dict[str, Json]) -> Json:
    if record := _record_in(hint):
        _define(record, definitions)
        return {"$ref": f"#/$defs/{record.__name__}"}
    if members := _members_of(hint):
        return {"enum": [str(member.value) for member in members]}
    if hint is float:
        return {"anyOf": [{"type": "number"}, {"enum": [*_NOT_NUMBERS]}]}
    if hint in _PLAIN:
        return {"type": _PLAIN[hint]}
    arguments = typing.get_args(hint)
    if _is_union(hint):
        return {"anyOf": [_schema_of(part, definitions) for part in arguments]}
    if typing.get_origin(hint) is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return {"type": "array", "items": _schema_of(arguments[0], definitions)}
    if typing.get_origin(hint) is tuple:
        parts: list[Json] = [_schema_of(part, definitions) for part in arguments]
        return {"type": "array", "prefixItems": parts, "items": False, "minItems": len(parts)}
    raise TypeError(f"a record holds plain data only, not {hint}")


_PLAIN: dict[object, str] = {str: "string", int: "integer", bool: "boolean", type(None): "null"}


def _record_in(hint: object) -> type | None:
    return hint if isinstance(hint, type) and dataclasses.is_dataclass(hint) else None


def _members_of(hint: object) -> tuple[Enum, ...]:
    return tuple(hint) if isinstance(hint, type) and issubclass(hint, Enum) else ()


def _is_union(hint: object) -> bool:
    return isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union


def _decode(hint: object, data: Json, where: str) -> object:
    """`data` as a value of type `hint`; `where` is the path of the field, for the message."""
    if record := _record_in(hint):
        return _decode_record(record, data, where)
    if members := _members_of(hint):
        for member in members:
            if member.value == data:
                return member
        raise InputError(f"{where}: {data!r} is not one of {', '.join(str(member.value) for member in members)}")
    if hint is float and isinstance(data, str) and data in _NOT_NUMBERS:
        return _NOT_NUMBERS[data]
    if hint is float and isinstance(data, int | float) and not isinstance(data, bool):
        return float(data)
    if hint in _PLAIN and type(data) is hint:  # `type is`: True is no integer here
        return data
    if _is_union(hint):
        return _decode_union(hint, data, where)
    if typing.get_origin(hint) is tuple and isinstance(data, list):
        return _decode_tuple(typing.get_args(hint), data, where)
    raise InputError(f"{where}: {type(data).__name__} where {getattr(hint, '__name__', hint)} was expected")


def _decode_record(record: type, data: Json, where: str) -> object:
    if not isinstance(data, dict):
        raise InputError(f"{where}: an object was expected")
    hints = _hints(record)
    if odd := sorted(hints.keys() ^ data.keys()):
        raise InputError(f"{where}: fields missing or unknown: {', '.join(odd)}")
    return record(**{name: _decode(hint, data[name], f"{where}.{name}") for name, hint in hints.items()})


def _decode_union(hint: object, data: Json, where: str) -> object:
    problem = InputError(f"{where}: no value of {hint}")
    for part in typing.get_args(hint):
        try:
            return _decode(part, data, where)
        except InputError as failed:
            problem = failed
    raise problem


def _decode_tuple(arguments: tuple[object, ...], data: list[Json], where: str) -> object:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_decode(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(data))
    if len(arguments) != len(data):
        raise InputError(f"{where}: {len(arguments)} values were expected, not {len(data)}")
    pairs = zip(arguments, data, strict=True)
    return tuple(_decode(part, item, f"{where}[{index}]") for index, (part, item) in enumerate(pairs))
