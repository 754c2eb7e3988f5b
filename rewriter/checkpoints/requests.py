"""What a trace is asked for: inputs, names, dynamic axes and types, as values read from words.

Invariant: what cannot be read is a UsageError that names the option and shows a right form; torch is not needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, get_args

from rewriter.errors import UsageError

Exporter = Literal["dynamo", "legacy"]
EXPORTERS: Final[tuple[Exporter, ...]] = get_args(Exporter)
DTYPES: Final = ("float32", "float16", "bfloat16", "float64", "keep")
_INPUT: Final = re.compile(r"(?:([A-Za-z_][A-Za-z0-9_.]*)=)?([0-9]+(?:x[0-9]+)*)(?::([a-z0-9]+))?")
_INPUT_TYPES: Final = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "uint8", "bool")
_AXIS: Final = re.compile(r"([0-9]+):(?:([0-9]+)\*)?([A-Za-z_][A-Za-z0-9_]*)")
_MOST_ELEMENTS: Final = 1 << 31


@dataclass(frozen=True, slots=True)
class Input:
    """An example input: its name in the result (None: the parameter of `forward`), sizes, and type (None: floats)."""

    name: str | None
    shape: tuple[int, ...]
    dtype: str | None = None


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis that stays open: `times * name` elements."""

    name: str
    times: int = 1


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """Everything that `fxrewrite trace` is told beside the checkpoint and the output."""

    model: str | None
    inputs: tuple[Input, ...]
    arguments: tuple[str, ...] = ()
    key: str | None = None
    output_names: tuple[str, ...] = ()
    dynamic: Mapping[int, Mapping[int, Axis]] = field(default_factory=dict[int, Mapping[int, Axis]])
    dtype: str = "float32"
    opset: int | None = None
    exporter: Exporter = "dynamo"
    trust: bool = False
    code: Path | None = None


def inputs(words: Sequence[str]) -> tuple[Input, ...]:
    """("images=1x3x640x640", "ids=1x16:int64") -> what the model is called with, in this order."""
    found: list[Input] = []
    for word in words:
        read = _INPUT.fullmatch(word)
        if read is None:
            raise UsageError(f"--input: {word!r} is not [NAME=]DIMS[:TYPE], for example --input images=1x3x640x640")
        name, dims, dtype = read.groups()
        shape = tuple(int(dim) for dim in dims.split("x"))
        size = 1
        for dim in shape:
            size *= dim
        if not 0 < size < _MOST_ELEMENTS:
            raise UsageError(f"--input: {word!r} is empty or too large")
        if dtype is not None and dtype not in _INPUT_TYPES:
            raise UsageError(f"--input: {dtype!r} is not one of {', '.join(_INPUT_TYPES)}")
        if name is not None and any(other.name == name for other in found):
            raise UsageError(f"--input: {name!r} is given twice")
        found.append(Input(name, shape, dtype))
    if len({item.name is None for item in found}) > 1:
        raise UsageError("--input: name every input or none")
    return tuple(found)


def dynamic(words: Sequence[str], given: Sequence[Input]) -> dict[int, dict[int, Axis]]:
    """("images=0:batch,2:32*high",) -> the open axes of each input, by its place."""
    found: dict[int, dict[int, Axis]] = {}
    for word in words:
        name, equals, axes = word.rpartition("=")
        places = [place for place, item in enumerate(given) if item.name == name] if equals else [0]
        if not places or (not equals and len(given) != 1):
            raise UsageError(f"--dynamic: {word!r} names no input; name one of --input: --dynamic images=0:batch")
        for part in axes.split(","):
            read = _AXIS.fullmatch(part)
            if read is None or int(read[1]) >= len(given[places[0]].shape):
                raise UsageError(
                    f"--dynamic: {part!r} is not AXIS:WORD or AXIS:N*WORD of that input, for example "
                    "--dynamic images=0:batch,2:32*high,3:32*wide"
                )
            size, times = given[places[0]].shape[int(read[1])], int(read[2] or 1)
            if times < 1 or (size > 1 and size % times):
                raise UsageError(f"--dynamic: {part!r}: the size {size} of --input is no multiple of {times}")
            found.setdefault(places[0], {})[int(read[1])] = Axis(read[3], times)
    return found
