"""The values a model is run on: for each size, noise, zeros, ones and an impulse in two corners.

Invariant: the same specs and sizes give the same bytes, and integers stay inside what their readers can index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from onnx import NodeProto, TensorProto

from rewriter.checking.net import Net, integer, is_float, reads
from rewriter.checking.sizes import InputSpec, Sizes
from rewriter.checking.wire import Array, dtype_of

KINDS = ("gaussian", "zeros", "ones", "impulse")
GIVEN = "given"
LARGEST = 1 << 27  # elements of one input; more is not a probe but a load

_UNKNOWN_BOUND = 2  # integers whose use is not known are 0 or 1, which suits masks and flags
_PASS = {"Identity", "Cast", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Transpose", "Expand", "Concat", "Clip"}


@dataclass(frozen=True, slots=True)
class Case:
    """One set of inputs. `size` numbers the sizes; `anchor` marks the set that the original's own error is taken on."""

    label: str
    size: int
    anchor: bool
    feeds: Mapping[str, Array]


def unsupported(specs: Sequence[InputSpec], given: Mapping[str, Array]) -> str:
    """Why inputs cannot be made up for these specs; empty if they can."""
    for spec in specs:
        if spec.name in given:
            continue
        if spec.elem_type == TensorProto.STRING or spec.elem_type == 0:
            return f"input {spec.name!r} is not a numeric tensor; give it with --inputs FILE.npz"
        if spec.dims is None:
            return f"input {spec.name!r} declares no shape; give it with --shape {spec.name}=…"
    return ""


def cases(
    specs: Sequence[InputSpec], sizes: Sizes, number: int, bounds: Mapping[str, int], given: Mapping[str, Array]
) -> list[Case]:
    """The input sets for one size, the anchor first; a single one if everything is given."""
    made = [spec for spec in specs if spec.name not in given]
    kinds = KINDS if made else (GIVEN,)
    shapes = [given[s.name].shape if s.name in given else s.shape(sizes) for s in specs]
    words = ", ".join("x".join(map(str, shape)) or "scalar" for shape in shapes)
    return [
        Case(
            f"{kind} {words}".strip(),
            number,
            kind in ("gaussian", GIVEN),
            {**given, **{s.name: _values(kind, s, s.shape(sizes), bounds.get(s.name, 0)) for s in made}},
        )
        for kind in kinds
    ]


def _values(kind: str, spec: InputSpec, shape: tuple[int, ...], bound: int) -> Array:
    dtype = dtype_of(spec.elem_type)
    rng = np.random.default_rng([crc32(spec.name.encode()), *shape])
    if is_float(spec.elem_type) or dtype.kind == "c":
        return _floats(kind, rng, shape).astype(dtype)
    if dtype == np.bool_:
        bound = 2
    elif not bound:
        bound = 256 if dtype == np.uint8 else _UNKNOWN_BOUND
    if kind == "gaussian":
        return rng.integers(0, bound, shape).astype(dtype)
    values = np.full(shape, min(1, bound - 1) if kind == "ones" else 0)
    if kind == "impulse" and values.size:
        values.flat[0] = bound - 1
    return values.astype(dtype)


def _floats(kind: str, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    if kind == "gaussian":
        return rng.standard_normal(shape)
    values = np.full(shape, 1.0 if kind == "ones" else 0.0)
    if kind == "impulse" and values.size:
        # In both corners, and of unequal height: what is wrong at a border is wrong in only one of them.
        corner = (..., 0, 0) if len(shape) > 2 else (..., 0)
        other = (..., -1, -1) if len(shape) > 2 else (..., -1)
        if shape:
            values[other] = 2.0
            values[corner] = 1.0
        else:
            values[...] = 1.0
    return values


def integer_bounds(net: Net) -> dict[str, int]:
    """For each integer input, the number of values it may take where what reads it says so."""
    stored = net.stored()
    readers: dict[str, list[NodeProto]] = {}
    for node in net.graph.node:
        for name in reads(node):
            readers.setdefault(name, []).append(node)
    bounds: dict[str, int] = {}
    for value in net.graph.input:
        seen: set[str] = set()
        work = [value.name]
        found: list[int] = []
        while work:
            name = work.pop()
            if name in seen:
                continue
            seen.add(name)
            for node in readers.get(name, ()):
                if node.op_type in _PASS and node.input and node.input[0] == name:
                    work.extend(node.output)
                limit = _limit(node, name, stored)
                if limit is not None:
                    found.append(limit)
        if found:
            bounds[value.name] = max(min(found), 1)
    return bounds


def _limit(node: NodeProto, name: str, stored: Mapping[str, Array]) -> int | None:
    """How many values `name` may take as an index of `node`; None if it is not one, or the table is not known."""
    inputs = list(node.input)
    if name not in inputs:
        return None
    at = inputs.index(name)
    table = stored.get(inputs[0])
    if node.op_type in ("Gather", "GatherElements") and at == 1 and table is not None and table.ndim:
        return table.shape[integer(node, "axis", 0) % table.ndim]
    if node.op_type == "GatherND" and at == 1 and table is not None and table.ndim:
        return min(table.shape)
    if node.op_type == "OneHot" and at == 0:
        depth = stored.get(inputs[1])
        return int(depth.reshape(-1)[0]) if depth is not None and depth.size else None
    if node.op_type == "Slice" and at in (1, 2):
        return 2  # 0 or 1 starts and ends inside any axis that is not empty
    return None
