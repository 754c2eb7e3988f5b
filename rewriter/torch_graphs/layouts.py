"""ATen operators that move elements and compute none: joins, cuts, pads, and views of the same elements.

Invariant: where elements go is a list of whole numbers here, or the rule does not answer; sizes known at run time only
stay inputs of Reshape and Expand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rewriter.graph.raw import Canonical
from rewriter.graph.view import Constant, Dim
from rewriter.torch_graphs.calls import END, Call, fake, is_node, items, op_of
from rewriter.torch_graphs.onnx_terms import Reading, onnx


def _cat(call: Call) -> Reading:
    return onnx("Concat", *call.tensors("tensors"), axis=int(call.args.get("dim", 0)))


def _split(call: Call) -> Reading | None:
    """The extents of the parts are those that the export found."""
    x, axis = call.value("self"), call.args.get("dim", 0)
    parts = fake(call.node)
    if x is None or not isinstance(axis, int) or not isinstance(parts, list | tuple):
        return None
    sizes: list[Any] = [part.shape[axis] for part in items(parts)]
    if not all(type(size) is int for size in sizes):
        return None
    return onnx("Split", x, call.listed("sizes", sizes), axis=axis)


def _slice(call: Call) -> Reading | None:
    start, end = call.args.get("start"), call.args.get("end")
    return _cut(call, 0 if start is None else start, END if end is None else end, call.args.get("step", 1))


def _getitem(call: Call) -> Reading | None:
    """Slices of whole numbers, an axis each; behind `...` they are those of the last axes."""
    x, index = call.value("self"), items(call.args.get("index"))
    if x is None or x.shape is None:
        return None
    if ... in index:
        place = index.index(...)
        index[place : place + 1] = [slice(None)] * (len(x.shape) - len(index) + 1)
    if not all(isinstance(cut, slice) for cut in index):
        return None
    cuts = [(axis, *_ends(cut)) for axis, cut in enumerate(index) if cut != slice(None)]
    if not cuts or not all(type(number) is int for cut in cuts for number in cut):
        return None
    axes, starts, ends, steps = zip(*cuts, strict=True)
    lists = {"starts": starts, "ends": ends, "axes": axes, "steps": steps}
    return onnx("Slice", x, *[call.listed(name, numbers) for name, numbers in lists.items()])


def _ends(cut: Any) -> tuple[Any, Any, Any]:
    """Where a slice of Python begins and ends, and its step."""
    start, stop, step = cut.start, cut.stop, cut.step
    return 0 if start is None else start, END if stop is None else stop, 1 if step is None else step


def _narrow(call: Call) -> Reading | None:
    start, length = call.args.get("start"), call.args.get("length")
    if not isinstance(start, int) or not isinstance(length, int):
        return None
    return _cut(call, start, END if start + length == 0 else start + length, 1)


def _cut(call: Call, start: Any, end: Any, step: Any) -> Reading | None:
    numbers = {"starts": start, "ends": end, "axes": call.args.get("dim", 0), "steps": step}
    if not all(isinstance(number, int) for number in numbers.values()):
        return None
    return onnx("Slice", call.value("self"), *[call.listed(name, [number]) for name, number in numbers.items()])


def _select(call: Call) -> Reading | None:
    index = call.args.get("index")
    if not isinstance(index, int):
        return None
    return onnx("Gather", call.value("self"), call.held("index", np.asarray(index), "int64"), axis=call.args["dim"])


def _index_select(call: Call) -> Reading:
    return onnx("Gather", call.value("self"), call.value("index"), axis=call.args["dim"])


def _reshape(name: str) -> Callable[[Call], Reading | None]:
    def rule(call: Call) -> Reading | None:
        return _shaped(call, call.args[name])

    return rule


def _shaped(call: Call, wanted: Sequence[Any]) -> Reading | None:
    if _same(call, wanted):
        return onnx("Identity", call.value("self"))
    if all(isinstance(extent, int) for extent in wanted):
        return onnx("Reshape", call.value("self"), call.listed("shape", wanted), allowzero=1)
    sizes = [call.values(extent) for extent in wanted if is_node(extent)]
    return onnx("Reshape", call.value("self"), *sizes, allowzero=1)


def _same(call: Call, wanted: Sequence[Any]) -> bool:
    """Whether a value has these extents anyway, which are known."""
    x = call.value("self")
    return x is not None and x.shape == tuple(wanted) and all(isinstance(extent, int) for extent in wanted)


def _flatten(call: Call) -> Reading | None:
    found = fake(call.node)
    shape = [extent if type(extent) is int else None for extent in found.shape]
    if shape.count(None) > 1:
        x = call.value("self")
        return None if x is None else Canonical("reshape", (x,), {}, {"allowzero": True})
    return _shaped(call, [-1 if extent is None else extent for extent in shape])


def _expand(call: Call) -> Reading | None:
    """-1 keeps an extent, which one element does in ONNX."""
    wanted: Any = call.args["size"]
    if _same(call, wanted):
        return onnx("Identity", call.value("self"))
    if not all(isinstance(extent, int) for extent in wanted):
        return onnx("Expand", call.value("self"), *[call.values(extent) for extent in wanted if is_node(extent)])
    return onnx("Expand", call.value("self"), call.listed("size", [1 if n == -1 else n for n in wanted]))


def _permute(call: Call) -> Reading | None:
    order = [axis % len(call.args["dims"]) for axis in call.args["dims"]]
    return onnx("Transpose", call.value("self"), perm=tuple(order))


def _transpose(call: Call) -> Reading | None:
    x = call.value("self")
    if x is None or x.shape is None:
        return None
    order = list(range(len(x.shape)))
    if len(order) > 1:
        one, other = call.args.get("dim0", 0), call.args.get("dim1", 1)
        order[one], order[other] = order[other], order[one]
    return onnx("Transpose", x, perm=tuple(order))


def _unsqueeze(call: Call) -> Reading | None:
    x, axis = call.value("self"), call.args["dim"]
    if x is None or x.shape is None:
        return None
    return onnx("Unsqueeze", x, call.listed("axes", [axis % (len(x.shape) + 1)]))


def _squeeze(call: Call) -> Reading | None:
    """Axes of another extent than one are left as they are, and one that is not known is neither."""
    x = call.value("self")
    if x is None or x.shape is None:
        return None
    named = items(call.args.get("dim", [*range(len(x.shape))]))
    axes: list[int] = [axis % len(x.shape) for axis in named] if x.shape else []
    if not all(isinstance(x.shape[axis], int) for axis in axes):
        return None
    dropped = [axis for axis in axes if x.shape[axis] == 1]
    return onnx("Squeeze", x, call.listed("axes", dropped)) if dropped else onnx("Identity", x)


def _size(call: Call) -> Reading | None:
    """One extent, which any value of the same could give."""
    x, axis = call.value("self"), call.args.get("dim")
    if x is None or x.shape is None or not isinstance(axis, int):
        return None
    return onnx("Shape", x, start=axis % len(x.shape), end=axis % len(x.shape) + 1)


MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def _pad(call: Call) -> Reading | None:
    """(begin, end) from the last axis backwards, to all begins and all ends of every axis."""
    x, flat = call.value("self"), call.args["pad"]
    mode = MODES.get(call.args.get("mode", "constant"))
    if x is None or x.shape is None or mode is None or not all(isinstance(number, int) for number in flat):
        return None
    pairs = [*zip(flat[::2], flat[1::2], strict=True)]
    pairs = [*pairs, *[(0, 0)] * (len(x.shape) - len(pairs))][::-1]
    pads = call.listed("pad", [begin for begin, _ in pairs] + [end for _, end in pairs])
    filled = call.args.get("value")
    return onnx("Pad", x, pads, call.held("value", np.asarray(float(filled or 0)), call.dtype), mode=mode)


def _slice_scatter(call: Call) -> Reading | None:
    start, end = call.args.get("start"), call.args.get("end")
    end = END if end is None else end
    return _assigned(call, 0 if start is None else start, end) if call.args.get("step", 1) == 1 else None


def _select_scatter(call: Call) -> Reading | None:
    index = call.args.get("index")
    return _assigned(call, index, END if index == -1 else index + 1, axis_lost=True) if isinstance(index, int) else None


def _assigned(call: Call, start: Any, stop: Any, axis_lost: bool = False) -> Reading | None:
    """Constants over a run of places of one axis, which may be missing in them."""
    x, axis = call.value("self"), call.args.get("dim", 0)
    if x is None or x.shape is None or not all(isinstance(n, int) for n in (axis, start, stop)):
        return None
    rank = len(x.shape)
    axis = int(axis) % rank
    constant, ends = _spread(call, call.args.get("src")), _from_the_near_end(start, stop, x.shape[axis])
    if constant is None or ends is None:
        problem = "it writes what is no constant, or nothing"
        return Canonical("scatter_nd", (x, *call.tensors("src")), {}, {"reduction": "none"}, problem)
    shape = [1] * (rank - axis_lost - len(constant.shape)) + [*constant.shape]
    shape[axis:axis] = [1] * axis_lost
    values = replace(constant, shape=tuple(shape), load=lambda: constant.load().reshape(shape), made_of=constant.stored)
    starts = tuple([ends[0] if i == axis else 0 for i in range(rank)])
    stops = tuple([ends[1] if i == axis else None for i in range(rank)])
    return Canonical("assign", (x,), {"values": values}, {"starts": starts, "stops": stops})


def _from_the_near_end(start: int, stop: int, extent: Dim) -> tuple[int, int | None] | None:
    """The ends of a run, counted from the end of the axis where it lies in the second half of one that is known.

    None where nothing is between them.
    """
    if not isinstance(extent, int):
        return start, None if stop >= END else stop
    start, stop, _ = slice(start, stop).indices(extent)
    back = extent if 2 * start >= extent else 0
    return (start - back, None if stop == extent else stop - back) if start < stop else None


def _spread(call: Call, source: Any) -> Constant | None:
    """The constant of which a value holds copies; nobody changes what lies between the two."""
    while is_node(source):
        value = call.values(source)
        if value.captured or op_of(source) not in ("expand", "clone"):
            return value.constant
        source = source.args[0]
    return None


RULES: Mapping[str, Callable[[Call], Reading | None]] = {
    "cat": _cat,
    "concat": _cat,
    "concatenate": _cat,
    "chunk": _split,
    "split": _split,
    "split_with_sizes": _split,
    "slice": _slice,
    "narrow": _narrow,
    "getitem": _getitem,
    "select": _select,
    "index_select": _index_select,
    "view": _reshape("size"),
    "_unsafe_view": _reshape("size"),
    "reshape": _reshape("shape"),
    "flatten": _flatten,
    "expand": _expand,
    "permute": _permute,
    "transpose": _transpose,
    "t": _transpose,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "slice_scatter": _slice_scatter,
    "select_scatter": _select_scatter,
    "sym_size": _size,
    "pad": _pad,
    "constant_pad_nd": _pad,
}
