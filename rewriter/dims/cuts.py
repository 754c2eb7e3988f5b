"""Extents of Slice and Reshape, whose targets are themselves numbers that a graph computes.

Invariant: bounds that cannot be compared give an opaque term of extent and bounds; so does a quotient that does not
come out even by itself. Both are equal to another only where everything that they are made of is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rewriter.dims.polynomials import POSITIVE_PART, Poly, floored, number, opaque
from rewriter.dims.sizes import Dims, Size, total
from rewriter.dims.tensors import slice_lists
from rewriter.graph.view import Node, Value

if TYPE_CHECKING:
    from rewriter.dims.engine import Pass

FAR = (1 << 31) - 1
"""Ends from here on mean "to the end"; the most negative starts mean "from the start"."""


def slice_(of: Pass, node: Node) -> Sequence[Dims | None]:
    shape = of.dims_of(node.data[0])
    if shape is None:
        return ()
    starts, ends, axes, steps = slice_lists(of, node)
    unknown = [of.unknown() for _ in shape]
    if axes is None:
        return (tuple(unknown),)
    found = list(shape)
    for i, named in enumerate(axes):
        axis = named.expr.constant
        if axis is None:
            return (tuple(unknown),)
        if starts is None or ends is None or steps is None:
            found[axis] = unknown[axis]
        else:
            found[axis] = _cut(of, shape[axis], starts[i], ends[i], steps[i])
    return (tuple(found),)


def _cut(of: Pass, size: Size, start: Size, end: Size, step: Size) -> Size:
    known = size.expr.constant, start.expr.constant, end.expr.constant, step.expr.constant
    extent, first, last, stride = known
    if extent is not None and first is not None and last is not None and stride and (stride > 0 or first >= -extent):
        return size.joined(number(len(range(*slice(first, last, stride).indices(extent)))), start, end, step)
    if stride is not None and stride > 0:
        low, high = bound(of, size.expr, start.expr), bound(of, size.expr, end.expr)
        if first is not None and 0 <= first < stride:
            low = number(first)  # where the extent ends before it, the floor is 0 all the same
        if low is not None and high is not None:
            taken = floored(high - low + number(stride - 1), stride)
            if of.nonnegative(high - low + number(stride - 1)):
                return size.joined(taken, start, end, step)
            return size.joined(opaque(POSITIVE_PART, taken), start, end, step)
    arguments = (size.expr, start.expr, end.expr, step.expr)
    return size.joined(opaque(("slice",), *arguments), start, end, step)


def bound(of: Pass, extent: Poly, place: Poly) -> Poly | None:
    """Where a start or an end lies, between 0 and the extent; None where that cannot be told."""
    fixed = place.constant
    if fixed is not None and fixed >= FAR:
        return extent
    if fixed is not None and fixed <= -FAR:
        return number(0)
    if of.nonnegative(place):
        return place if of.nonnegative(extent - place) else extent if of.nonnegative(place - extent) else None
    if fixed is not None and of.nonnegative(extent + fixed):
        return extent + fixed
    return None


def reshape(of: Pass, node: Node) -> Sequence[Dims | None]:
    shape, operands = of.dims_of(node.data[0]), of.operands(node)
    if "shape" in node.attrs:
        target: Dims | None = tuple([Size(number(n)) for n in node.attrs["shape"]])
    else:
        held = of.elements_of(operands[1])
        target = None if held is None else held.items
    if target is None:
        return (_of_rank(of, operands),)
    found: list[Size | None] = []
    for axis, wanted in enumerate(target):
        constant = wanted.expr.constant
        if constant == 0 and not node.attrs.get("allowzero"):
            found.append(of.unknown() if shape is None else shape[axis])
        elif constant == -1:
            found.append(None)
        else:
            found.append(wanted if of.nonnegative(wanted.expr) else of.unknown())
    return (_completed(of, shape, found),)


def _of_rank(of: Pass, operands: Sequence[Value | None]) -> Dims | None:
    """As many unknown extents as the target has elements."""
    target = operands[1] if len(operands) > 1 else None
    length = of.dims_of(target)
    rank = None if length is None or len(length) != 1 else length[0].expr.constant
    return None if rank is None or not 0 <= rank <= 64 else tuple([of.unknown() for _ in range(rank)])


def _completed(of: Pass, shape: Dims | None, found: Sequence[Size | None]) -> Dims:
    """With the extent that −1 stands for: all elements over those of the other axes."""
    others = [size for size in found if size is not None]
    if len(others) == len(found):
        return tuple(others)
    if shape is None or len(others) + 1 != len(found):
        return tuple([size or of.unknown() for size in found])
    rest = quotient(shape, others)
    return tuple([rest if size is None else size for size in found])


def quotient(whole: Sequence[Size], parts: Sequence[Size]) -> Size:
    """The product of `whole` over that of `parts`, which comes out even wherever the node runs."""
    above, below = Counter(size.expr for size in whole), Counter(size.expr for size in parts)
    shared = above & below
    uses = total([*whole, *parts]).uses
    dividend, divisor = _product(above - shared), _product(below - shared)
    fixed = divisor.constant
    if fixed is not None and fixed > 0:
        return Size(floored(dividend, fixed), uses)
    return Size(opaque(("quotient",), dividend, divisor), uses)


def _product(factors: Counter[Poly]) -> Poly:
    found = number(1)
    for factor, times in factors.items():
        for _ in range(times):
            found = found * factor
    return found
