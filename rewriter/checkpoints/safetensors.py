"""safetensors files: a header of JSON that says where each tensor lies, and the bytes.

Invariant: a header is believed only when every tensor has exactly the bytes of its type and shape, none overlap, none
are left over, and no name comes twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Final, cast

from rewriter.checkpoints.bytesource import Source
from rewriter.errors import InputError
from rewriter.graph.tensors import shown
from rewriter.reporting.checkpoint import TensorRecord

MOST_HEADER: Final = 100_000_000  # the format's own limit
_TYPES: Final[Mapping[str, tuple[str, int]]] = {
    "F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2), "I64": ("int64", 8),
    "I32": ("int32", 4), "I16": ("int16", 2), "I8": ("int8", 1), "U8": ("uint8", 1), "BOOL": ("bool", 1),
    "U16": ("uint16", 2), "U32": ("uint32", 4), "U64": ("uint64", 8), "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Header:
    tensors: tuple[TensorRecord, ...]
    bytes: Mapping[str, int]
    metadata: tuple[tuple[str, str], ...]


def header(source: Source) -> Header:
    """The header of a safetensors file, checked; InputError where it does not describe the bytes that follow."""
    data, what = source.data, shown(source.path)
    length = int.from_bytes(data[:8], "little")
    if length > MOST_HEADER or 8 + length > len(data):
        raise InputError(f"{what}: its header is cut off or too long; download it again")
    try:
        found: Any = json.loads(data[8 : 8 + length], object_pairs_hook=_unique)
        return _checked(found, len(data) - 8 - length)
    except RecursionError:
        raise InputError(f"{what}: its header is nested too deeply") from None
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        why = problem.args[0] if isinstance(problem, _Wrong) else "its header is no header of safetensors"
        raise InputError(f"{what}: {why}; download or save it again") from None


class _Wrong(ValueError):
    pass


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise _Wrong("its header names something twice")
    return made


def _checked(found: dict[str, Any], room: int) -> Header:
    metadata: dict[str, Any] = found.pop("__metadata__", {})
    spans: list[tuple[int, int]] = []
    records: list[TensorRecord] = []
    for name, entry in found.items():
        dtype, width = _TYPES[entry["dtype"]]
        shape = cast("list[Any]", entry["shape"])
        begin, end = entry["data_offsets"]
        if any(type(number) is not int or number < 0 for number in (*shape, begin, end)):
            raise _Wrong(f"tensor {shown(name)} has sizes or offsets that are no numbers")
        if end - begin != prod(shape) * width:
            raise _Wrong(f"tensor {shown(name)} has {end - begin:,} bytes for {prod(shape):,} elements of {dtype}")
        spans.append((begin, end))
        records.append(TensorRecord(name, dtype, tuple(shape)))
    behind = 0
    for begin, end in sorted(spans):
        if begin != behind:
            raise _Wrong("its tensors overlap or leave gaps")
        behind = end
    if behind != room:
        raise _Wrong(f"its tensors have {behind:,} bytes and {room:,} follow the header")
    sizes = {record.name: end - begin for record, (begin, end) in zip(records, spans, strict=True)}
    return Header(tuple(records), sizes, tuple((str(key), str(value)) for key, value in metadata.items()))
