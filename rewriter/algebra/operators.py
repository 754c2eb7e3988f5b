"""What an operator makes of an affine map: one rule each, written from the operator's definition.

Invariant: a rule gives the exact map of the result, for every extent that the region may have, or a refusal that names
the node. It asks the layout where the channels are and leaves everything it does not understand to the refusal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from rewriter.algebra import layout, placement, places
from rewriter.algebra.affine import Affine, Size, Spread
from rewriter.algebra.constants import name_of, normalisation, per_channel, tensor, vector
from rewriter.algebra.placement import Placement
from rewriter.algebra.rows import Indices
from rewriter.algebra.terms import Space, Term
from rewriter.errors import Reason, Refusal
from rewriter.graph.view import Node

Rule: TypeAlias = "Callable[[Node, Term, Affine, Space], Term | Refusal]"
Result: TypeAlias = "Affine | Refusal"


def _of(term: Term, found: Result) -> Term | Refusal:
    """The term of a step that is not per channel: views before it stay where they are."""
    return found if isinstance(found, Refusal) else _fixed(term.of(found))


def _fixed(term: Term) -> Term:
    return replace(term, views=None) if term.views else term


# --- per channel -----------------------------------------------------------------------------------------------------


def _bn(node: Node, term: Term, inner: Affine, space: Space) -> Term | Refusal:
    if term.channels != 1:
        return Refusal(Reason.SHAPE, name_of(node), "normalises axis 1, which does not hold the channels")
    norm = normalisation(node, inner.outputs)
    if isinstance(norm, Refusal):
        return norm
    factor, shift = norm
    return term.of(inner.scaled(factor).shifted(shift))


def _scale(node: Node, term: Term, inner: Affine, space: Space) -> Term | Refusal:
    factor = per_channel(node, "factor", inner.outputs, term.channels, len(term.layout))
    return factor if isinstance(factor, Refusal) else term.of(inner.scaled(factor))


def _shift(node: Node, term: Term, inner: Affine, space: Space) -> Term | Refusal:
    shift = per_channel(node, "term", inner.outputs, term.channels, len(term.layout))
    if isinstance(shift, Refusal):
        return shift
    return term.of((inner.negated() if node.attrs["sign"] < 0 else inner).shifted(shift))


# --- products --------------------------------------------------------------------------------------------------------


def _linear(node: Node, term: Term, inner: Affine, space: Space) -> Term | Refusal:
    """A product along the last axis: of rows of channels, a convolution without a window."""
    weight, name = tensor(node, "weight"), name_of(node)
    if isinstance(weight, Refusal):
        return weight
    if term.channels is None or term.channels != len(term.layout) - 1:
        return Refusal(Reason.SHAPE, name, "multiplies along the last axis, which does not hold the channels")
    if not weight.size or weight.ndim != 2:
        return Refusal(Reason.SHAPE, name, f"its weight has shape {list(weight.shape)}")
    bias = vector(node, "bias", len(weight)) if "bias" in node.consts else None
    if isinstance(bias, Refusal):
        return bias
    ones = (1,) * inner.rank
    outer = Affine.conv(
        weight.reshape(*weight.shape, *ones), bias, stride=ones, pads=((0, 0),) * inner.rank, dilation=ones
    )
    return _of(term, inner.then(outer, at=name, size=space.size))


def is_product(node: Node) -> bool:
    """Whether it is a convolution that looks at no neighbour: a matrix along channels, wherever the others lie."""
    weight = node.consts.get("weight")
    if node.op != "conv" or node.problem is not None or weight is None or len(weight.shape) < 3:
        return False
    ones = (*weight.shape[2:], *node.attrs["strides"])
    return all(n == 1 for n in ones) and not any(pad for ends in node.attrs["pads"] for pad in ends)


def slides(node: Node) -> bool:
    """Whether it looks at neighbours, so that it needs an image: channels on axis 1, places on every axis behind it."""
    return node.op in ("conv", "conv_transpose", "avg_pool", "pad") and not is_product(node)


def _along_channels(node: Node, term: Term, inner: Affine, outer: Affine, space: Space) -> Term | Refusal:
    """A product along axis 1 of a value whose other axes are rows, in whatever order."""
    if term.channels != 1 or len(term.layout) != len(node.consts["weight"].shape):
        return Refusal(Reason.SHAPE, name_of(node), "multiplies along axis 1, which does not hold the channels")
    return _of(term, inner.then(outer, at=name_of(node), size=space.size))


def _conv(node: Node, term: Term, inner: Affine, space: Space) -> Term | Refusal:
    kernel, name = tensor(node, "weight"), name_of(node)
    if isinstance(kernel, Refusal):
        return kernel
    groups, strides, pads, dilations = (node.attrs[key] for key in ("groups", "strides", "pads", "dilations"))
    if not kernel.size or kernel.ndim < 3:
        return Refusal(Reason.SHAPE, name, f"its weight has shape {list(kernel.shape)}")
    if groups < 1 or len(kernel) % groups or min(strides) < 1 or min(dilations) < 1:
        return Refusal(Reason.VALUE, name, "groups, strides and dilations have to be positive, groups divide channels")
    if any(pad < 0 for ends in pads for pad in ends):
        return Refusal(Reason.VALUE, name, "its pads are negative")
    bias = vector(node, "bias", len(kernel)) if "bias" in node.consts else None
    if isinstance(bias, Refusal):
        return bias
    if is_product(node) and term.layout != space.layout:
        ones = (1,) * inner.rank
        flat = kernel.reshape(*kernel.shape[:2], *ones)
        outer = Affine.conv(flat, bias, stride=ones, pads=((0, 0),) * inner.rank, dilation=ones, groups=groups)
        return _along_channels(node, term, inner, outer, space)
    if {len(strides), len(pads), len(dilations), kernel.ndim - 2} != {inner.rank}:
        return Refusal(Reason.SHAPE, name, f"strides, pads, dilations and weight are not all for {inner.rank} axes")
    outer = Affine.conv(kernel, bias, stride=tuple(strides), pads=tuple(pads), dilation=tuple(dilations), groups=groups)
    return _windowed(node, term, space, lambda: inner.then(outer, at=name, size=space.size))


def _conv_transpose(node: Node, term: Term, inner: Affine, space: Space) -> Term | Refusal:
    """Its weight is stored as (in, out / groups, *window)."""
    stored, name = tensor(node, "weight"), name_of(node)
    if isinstance(stored, Refusal):
        return stored
    groups = int(node.attrs["groups"])
    spread = Spread(*(tuple(node.attrs[key]) for key in ("strides", "pads", "dilations", "output_padding")))
    if not stored.size or stored.ndim != inner.rank + 2 or len(spread.strides) != inner.rank:
        return Refusal(Reason.SHAPE, name, f"its weight has shape {list(stored.shape)} for {inner.rank} axes")
    if groups < 1 or len(stored) % groups:
        return Refusal(Reason.VALUE, name, "its groups do not divide its channels")
    ones = (1,) * inner.rank
    kernel = (
        stored.reshape(groups, -1, *stored.shape[1:])
        .swapaxes(1, 2)
        .reshape(-1, len(stored) // groups, *stored.shape[2:])
    )
    bias = vector(node, "bias", len(kernel)) if "bias" in node.consts else None
    if isinstance(bias, Refusal):
        return bias
    plain = Affine.conv(kernel, bias, stride=ones, pads=((0, 0),) * inner.rank, dilation=ones, groups=groups)
    outer = replace(plain, spread=spread)
    return _windowed(node, term, space, lambda: inner.then(outer, at=name, size=space.size))


def _avg_pool(node: Node, term: Term, inner: Affine, space: Space) -> Term | Refusal:
    """A depthwise conv with equal weights, where every window counts as many elements."""
    window, strides, pads, dilations = (node.attrs[key] for key in ("window", "strides", "pads", "dilations"))
    name = name_of(node)
    if len(window) != inner.rank:
        return Refusal(Reason.SHAPE, name, f"has a window of {len(window)} axes on {inner.rank}")
    if not node.attrs["include_pad"] and any(pad for ends in pads for pad in ends):
        return Refusal(Reason.EXACT, name, "leaves the padding out of its averages: it is another map at the border")
    kernel = np.full((inner.outputs, 1, *window), 1 / np.prod(window, dtype=np.float64))
    mean = Affine.conv(kernel, stride=strides, pads=pads, dilation=dilations, groups=inner.outputs)
    spare = zip(inner.extent(space.size), mean.growth, strides, strict=True)
    if node.attrs["ceil"] and any(s > 1 and (n is None or (n + g - 1) % s) for n, g, s in spare):
        return Refusal(Reason.EXACT, name, "rounds its size up: its last window may stand outside the image")
    return _windowed(node, term, space, lambda: inner.then(mean, at=name, size=space.size))


def _windowed(node: Node, term: Term, space: Space, found: Callable[[], Result]) -> Term | Refusal:
    """What slides a window needs the axes as the entry has them."""
    if not space.windows or term.layout != space.layout:
        return Refusal(Reason.SHAPE, name_of(node), "slides a window over a value whose axes lie otherwise")
    return _of(term, found())


# --- borders ---------------------------------------------------------------------------------------------------------


def _pad(node: Node, term: Term, inner: Affine, space: Space) -> Term | Refusal:
    pads, name = node.attrs["pads"], name_of(node)
    if node.attrs["mode"] != "constant":
        return Refusal(Reason.EXACT, name, f"what it pads with ({node.attrs['mode']}) is no part of an affine map")
    if len(pads) != len(term.layout):
        return Refusal(Reason.SHAPE, name, f"pads {len(pads)} axes of a value with {len(term.layout)}")
    if any(pad for ends in pads[:2] for pad in ends):
        return Refusal(Reason.OP, name, "pads images or channels, not borders")
    if term.layout != space.layout or not space.windows:
        return Refusal(Reason.SHAPE, name, "pads a value whose axes lie otherwise")
    fill = float(node.attrs["value"])
    if any(pad < 0 for ends in pads for pad in ends):
        return _of(term, inner.padded(pads[2:], fill, at=name, size=space.size))
    return replace(_fixed(term), placement=Placement(name, pads[2:], fill))


# --- channels and places ---------------------------------------------------------------------------------------------


def _slice(node: Node, term: Term, inner: Affine, space: Space) -> Term | Refusal:
    """Of channels: some of the rows. Of places: a box that is smaller, or a stride."""
    found: Term | Refusal = term
    for start, end, axis, step in zip(*(node.attrs[key] for key in ("starts", "ends", "axes", "steps")), strict=True):
        if not isinstance(found, Term) or found.map is None:
            break
        axis = _axis(axis, term)
        if axis == term.channels:
            found = _fixed(found.of(found.map.take(_chosen(range(found.map.outputs)[start:end:step]))))
        elif space.windows and term.layout == space.layout and axis > 1:
            found = _of(found, _cut(node, found.map, space.size, axis - 2, (start, end, step)))
        else:
            found = Refusal(Reason.OP, name_of(node), "takes some of the rows")
    if isinstance(found, Term) and found.map is not None and not found.map.outputs:
        return Refusal(Reason.SHAPE, name_of(node), "leaves no channel")
    return found


def _axis(axis: int, term: Term) -> int:
    """Counted from the front; -1, which is no axis, where it is out of range."""
    rank = len(term.layout)
    return axis % rank if -rank <= axis < rank else -1


def _chosen(places: Sequence[int]) -> Indices:
    return np.asarray(places, dtype=np.intp)


def _cut(node: Node, inner: Affine, size: Size, axis: int, run: tuple[int, int, int]) -> Result:
    """Every `step`-th place of one spatial axis from a start on, up to an end that is the value's own or known."""
    (start, end, step), extent = run, inner.extent(size)[axis]
    if extent is not None and step > 0:
        first, last, _ = slice(start, end, step).indices(
            max(extent, 0)
        )  # a window that does not fit has less than none
        growth = last - extent - first
        if last <= first:
            return Refusal(Reason.SHAPE, name_of(node), "leaves nothing of the image")
    elif step > 0 and start >= 0 and (end < 0 or end >= _OPEN):
        first, growth = start, min(end, 0) - start
    else:
        return Refusal(Reason.DYNAMIC, name_of(node), "where it cuts depends on a size that is not known")
    ones, zeros = (1,) * inner.rank, (0,) * inner.rank

    def along(plain: tuple[int, ...], changed: int) -> tuple[int, ...]:
        return (*plain[:axis], changed, *plain[axis + 1 :])

    idle = Affine.identity(inner.outputs, inner.rank)
    cut = Affine(idle.kernel, idle.bias, along(ones, step), along(zeros, first), ones, along(zeros, growth), idle.rows)
    return inner.then(cut, at=name_of(node), size=size)


_OPEN = (1 << 31) - 1
"""What exporters write for "to the end"; an extent is smaller."""


def _gather(node: Node, term: Term, inner: Affine, space: Space) -> Term | Refusal:
    """Channels in another order; one alone loses its axis."""
    name, indices = name_of(node), node.consts.get("indices")
    if indices is None or len(indices.shape) != 1 or not indices.size or indices.dtype not in ("int32", "int64"):
        return Refusal(Reason.OP, name, "gathers by indices that are no constant list")
    if _axis(node.attrs["axis"], term) != term.channels:
        return Refusal(Reason.OP, name, "takes some of the rows")
    places = _chosen([int(i) for i in indices.load().reshape(-1)])
    if (places < -inner.outputs).any() or (places >= inner.outputs).any():
        return Refusal(Reason.VALUE, name, "an index is out of range")
    return _fixed(term.of(inner.take(places % inner.outputs)))


def parts(node: Node, term: Term, inner: Affine) -> list[Term] | Refusal:
    """What a split of channels gives, as several values or as one sequence."""
    if _axis(node.attrs["axis"], term) != term.channels:
        return Refusal(Reason.OP, name_of(node), "splits the rows")
    sizes = _sizes(node, inner.outputs)
    if min(sizes) < 1 or sum(sizes) != inner.outputs:
        return Refusal(Reason.SHAPE, name_of(node), f"splits {inner.outputs} channels into {list(sizes)}")
    ends = np.cumsum(sizes)
    return [
        _fixed(term.of(inner.take(_chosen(range(end - n, end))))) for end, n in zip(ends.tolist(), sizes, strict=True)
    ]


def _sizes(node: Node, channels: int) -> Sequence[int]:
    """Named, or of one extent but for the last; (0,) where they do not fit the outputs."""
    count = len(node.outputs)
    if "sizes" in node.attrs:
        named: Sequence[int] = node.attrs["sizes"]
        return named if named and (node.op != "split" or len(named) == count) else (0,)
    each = node.attrs["each"] if "each" in node.attrs else -(-channels // count)
    count = count if node.op == "split" else -(-channels // max(each, 1))
    return [each] * (count - 1) + [channels - each * (count - 1)]


def join(node: Node, read: Sequence[Term], space: Space) -> Term | Refusal:
    """A concatenation of channels: the rows of all, on one box."""
    name = name_of(node)
    if any(term.map is None or term.open for term in read):
        return Refusal(Reason.OP, name, "joins a leftover of the sum")
    if any(term.layout != read[0].layout or term.cut is not None for term in read):
        return Refusal(Reason.SHAPE, name, "joins values whose axes lie differently")
    if _axis(node.attrs["axis"], read[0]) != read[0].channels:
        return Refusal(Reason.OP, name, "joins rows, not channels")
    total: Result | None = None
    for term in read:
        assert term.map is not None
        if isinstance(total, Refusal):
            return total
        total = term.map if total is None else total.beside(term.map, at=name, size=space.size)
    assert total is not None
    return _of(read[0], total)


# --- views -----------------------------------------------------------------------------------------------------------


def _view(node: Node, term: Term, inner: Affine, space: Space) -> Term | Refusal:
    found = VIEWS[node.op](node.attrs, term.layout, lambda name: space.size_of(inner, name))
    if found is None and (maps := places.cut(node, term, inner, space)) is not None:
        return maps
    if found is None:
        return Refusal(Reason.SHAPE, name_of(node), "cuts through the axes of what it reads, or they are not known")
    return replace(term, layout=found, views=None if term.views is None else (*term.views, node))


def _reshaped(attrs: Mapping[str, Any], axes: layout.Layout, size_of: layout.SizeOf) -> layout.Layout | None:
    shape = attrs.get("shape", attrs.get("extents"))
    return None if shape is None else layout.reshaped(axes, shape, size_of, zero_copies=not attrs.get("allowzero"))


def _flattened(attrs: Mapping[str, Any], axes: layout.Layout) -> layout.Layout | None:
    axis = attrs.get("axis", 1)
    return layout.flattened(axes, axis) if isinstance(axis, int) else None


VIEWS: Mapping[str, Callable[[Mapping[str, Any], layout.Layout, layout.SizeOf], layout.Layout | None]] = {
    "reshape": _reshaped,
    "flatten": lambda attrs, axes, size_of: _flattened(attrs, axes),
    "transpose": lambda attrs, axes, size_of: layout.transposed(axes, attrs.get("perm")),
    "squeeze": lambda attrs, axes, size_of: layout.squeezed(axes, attrs.get("axes")),
    "unsqueeze": lambda attrs, axes, size_of: layout.unsqueezed(axes, attrs.get("axes")),
}
"""The same elements under other axes."""

RULES: Mapping[str, Rule] = {
    "bn": _bn,
    "scale": _scale,
    "shift": _shift,
    "linear": _linear,
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "avg_pool": _avg_pool,
    "pad": _pad,
    "slice": _slice,
    "gather": _gather,
    "scatter_nd": placement.scattered,
    "assign": placement.assigned,
    "where": placement.chosen,
    "concat": placement.joined,
} | dict.fromkeys(VIEWS, _view)
"""How an operator with one operand continues an affine map."""
