"""Which sizes to run a model at: names of free dimensions to numbers, from what the graph itself needs.

Invariant: one symbol has one size everywhere; what the user gave is bound first and never changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import lcm

import onnx
from onnx import GraphProto, NodeProto

from rewriter.checking.net import Net, attribute, input_names, integer, ints, sorted_nodes
from rewriter.checking.wire import Array
from rewriter.errors import UsageError

Dim = int | str
Sizes = Mapping[str, int]

_BATCH = "?batch"  # the leading dimensions that the model leaves unnamed
_SMALLEST = 16
_STEP = 8
_LARGEST_STRIDE = 4096
_MODEST = 64


@dataclass(frozen=True, slots=True)
class InputSpec:
    """An input as declared: `dims` holds numbers and symbols, None where not even the rank is known."""

    name: str
    elem_type: int  # 0 for what is not a tensor
    dims: tuple[Dim, ...] | None

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in self.dims or ())


def input_specs(graph: GraphProto) -> tuple[InputSpec, ...]:
    fed = set(input_names(graph))
    return tuple(_spec(value) for value in graph.input if value.name in fed)


def _spec(value: onnx.ValueInfoProto) -> InputSpec:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        return InputSpec(value.name, 0, None)
    if not kind.HasField("shape"):
        return InputSpec(value.name, kind.elem_type, None)
    dims: list[Dim] = []
    for axis, dim in enumerate(kind.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            dims.append(dim.dim_value)
        elif dim.dim_param:
            dims.append(dim.dim_param)
        else:
            leading = axis == 0 and len(kind.shape.dim) > 1
            dims.append(_BATCH if leading else f"?{value.name}[{axis}]")
    return InputSpec(value.name, kind.elem_type, tuple(dims))


def bind(
    specs: Sequence[InputSpec], shapes: Mapping[str, tuple[int, ...]], where: str = "--shape"
) -> tuple[tuple[InputSpec, ...], dict[str, int]]:
    """The specs with the given shapes in place, and the sizes these give to symbols; UsageError where they disagree."""
    known = {spec.name: spec for spec in specs}
    for name in shapes:
        if name not in known:
            raise UsageError(f"{where}: the model has no input {name!r}; its inputs are {', '.join(known) or 'none'}")
    sizes: dict[str, int] = {}
    bound: list[InputSpec] = []
    for spec in specs:
        given = shapes.get(spec.name)
        if given is None:
            bound.append(spec)
            continue
        wanted = spec.dims if spec.dims is not None else given
        words = "x".join(map(str, given))
        if len(wanted) != len(given) or any(size < 0 for size in given):
            raise UsageError(f"{where}: {spec.name!r} has {len(wanted)} dimensions ({_words(wanted)}), not {words}")
        for dim, size in zip(wanted, given, strict=True):
            if isinstance(dim, str) and not dim.startswith("?"):
                if sizes.setdefault(dim, size) != size:
                    raise UsageError(f"{where}: {dim!r} is both {sizes[dim]} and {size}")
            elif isinstance(dim, int) and dim != size:
                raise UsageError(f"{where}: {spec.name!r} is {_words(wanted)}, not {words}")
        bound.append(InputSpec(spec.name, spec.elem_type, given))
    return tuple(bound), sizes


def _words(dims: Sequence[Dim]) -> str:
    return "x".join("?" if str(dim).startswith("?") else str(dim) for dim in dims)


def candidates(specs: Sequence[InputSpec], bound: Sizes, stride: int) -> list[dict[str, int]]:
    """Sizes to try, best first: two that differ in batch and in every axis, then ever more ordinary ones.

    With no free dimension there is one. A caller takes the first two that the original can run. Few models need images
    of a large stride: what divides most is a branch that pools, for which maps of any size do. What a model declares as
    a multiple, as torch writes it (`32*h`), is one.
    """
    declared = lcm(*(_declared(dim) for spec in specs for dim in spec.dims or ()))
    tries = _candidates(specs, bound, lcm(min(stride, _MODEST), declared))
    if stride > _MODEST:
        tries += _candidates(specs, bound, lcm(stride, declared))
    return [sizes for at, sizes in enumerate(tries) if sizes not in tries[:at]]


def _declared(dim: Dim) -> int:
    """The factor of an extent that is named as a multiple."""
    named = re.fullmatch(r"([1-9]\d{0,3})\*\w+", dim) if isinstance(dim, str) else None
    return int(named[1]) if named else 1


def _candidates(specs: Sequence[InputSpec], bound: Sizes, stride: int) -> list[dict[str, int]]:
    leading = {s.dims[0] for s in specs if s.dims is not None and len(s.dims) > 1}
    free: dict[str, None] = {d: None for s in specs for d in s.dims or () if isinstance(d, str) and d not in bound}
    batch = [dim for dim in free if dim in leading]
    rest = [dim for dim in free if dim not in leading]
    if not free:
        return [dict(bound)]

    def sized(number: int, lengths: Sequence[int]) -> dict[str, int]:
        return {**bound, **dict.fromkeys(batch, number), **dict(zip(rest, lengths, strict=True))}

    def equal(length: int) -> list[int]:
        return [_round_up(length, stride)] * len(rest)

    base = _round_up(max(2 * stride, _SMALLEST), stride)
    step = _round_up(_STEP, stride)
    rising = [base + step * at for at in range(len(rest))]
    falling = [2 * base + step * (len(rest) - 1 - at) for at in range(len(rest))]
    tries = [sized(2, rising), sized(1, falling), sized(1, rising), sized(2, equal(base)), sized(1, equal(base))]
    return tries + [sized(1, equal(length)) for length in (2 * base, 224, 512, 640)]


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def total_stride(net: Net) -> int:
    """By how much the graph divides its input at most; resizes give back what they undo, so a pyramid counts once."""
    stored = net.stored()
    reach: dict[str, float] = {}
    for node in sorted_nodes(net.graph):
        if node.op_type in ("Shape", "Size"):
            continue
        here = max((reach.get(name, 1.0) for name in node.input), default=1.0)
        there = min(max(here * _factor(node, stored), 1.0), float(_LARGEST_STRIDE))
        reach.update(dict.fromkeys(node.output, there))
    return round(max(reach.values(), default=1.0))


def _factor(node: NodeProto, stored: Mapping[str, Array]) -> float:
    """How much coarser a node's output is than its input."""
    kind = node.op_type
    stride = max(ints(node, "strides"), default=1)
    if kind in ("ConvTranspose", "MaxUnpool"):
        return 1 / max(stride, 1)
    if attribute(node, "strides") is not None:
        return stride
    if kind == "SpaceToDepth":
        return integer(node, "blocksize", 1)
    if kind == "DepthToSpace":
        return 1 / max(integer(node, "blocksize", 1), 1)
    if kind in ("Resize", "Upsample"):
        scales = stored.get(node.input[-1] if kind == "Upsample" else (*node.input, "", "")[2])
        largest = float(scales.max()) if scales is not None and scales.size else float(_LARGEST_STRIDE)
        return 1 / largest if largest > 0 else 1.0
    if kind == "Slice":
        steps = stored.get((*node.input, "", "", "", "")[4])
        return float(abs(steps).max()) if steps is not None and steps.size else 1.0
    return 1.0
