"""Small tensors of whole numbers: what Shape gives, and the arithmetic that exporters do on it.

Invariant: a rule answers with every element or with None; an element that it cannot follow ends the whole tensor, so
nothing wrong is ever passed on. Only lists and single numbers are followed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import cycle
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from onnx import TensorProto, numpy_helper

from rewriter.dims.polynomials import POSITIVE_PART, floored, nonnegative, number, opaque
from rewriter.dims.sizes import Elements, Size, fixed, total
from rewriter.graph.view import Constant, Node

if TYPE_CHECKING:
    from rewriter.dims.engine import Pass

Rule: TypeAlias = "Callable[[Pass, Node], Elements | None]"

WHOLE = frozenset({"int64", "int32"})
EXACT = WHOLE | {"float32", "float64", "bool"}


def part(size: int, start: object, end: object) -> range:
    """The axes that Shape reads, of `size` in all."""
    return range(size)[start if isinstance(start, int) else 0 : end if isinstance(end, int) else None]


def _shape(of: Pass, node: Node) -> Elements | None:
    dims = of.dims_of(node.data[0])
    if dims is None:
        return None
    return Elements(tuple([dims[i] for i in part(len(dims), node.attrs.get("start"), node.attrs.get("end"))]))


def _size(of: Pass, node: Node) -> Elements | None:
    dims = of.dims_of(node.data[0])
    return None if dims is None else Elements((total(dims),), scalar=True)


def _same(of: Pass, node: Node) -> Elements | None:
    return of.elements_of(node.data[0])


def _cast(of: Pass, node: Node) -> Elements | None:
    """Numbers that stay whole and exact: not through float16, nor to a narrow integer or a truth value."""
    held, to = of.elements_of(node.data[0]), node.attrs.get("to")
    return held if to in EXACT and to != "bool" else None


def _gather(of: Pass, node: Node) -> Elements | None:
    held, places = of.elements_of(node.data[0]), of.operands(node)[1]
    at, chosen = of.elements_of(places), of.ints_of(places)
    if held is None or at is None or chosen is None or held.scalar or node.attrs.get("axis", 0) not in (0, -1):
        return None
    return Elements(tuple([held.items[i] for i in chosen]), at.scalar)


def _slice(of: Pass, node: Node) -> Elements | None:
    held = of.elements_of(node.data[0])
    if held is None or held.scalar:
        return None
    lists = slice_lists(of, node)
    starts, ends, axes, steps = ((part or ()) for part in lists)
    found = held.items
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        begin, stop, stride = start.expr.constant, end.expr.constant, step.expr.constant
        if begin is None or stop is None or stride is None or axis.expr.constant not in (0, -1):
            return None
        if not stride or (stride < 0 and begin < -len(found)):  # ONNX starts at the first element, Python takes none
            return None
        found = found[begin:stop:stride]
    return Elements(found) if lists[0] is not None and lists[1] is not None else None


Lists: TypeAlias = "tuple[tuple[Size, ...] | None, ...]"


def slice_lists(of: Pass, node: Node) -> Lists:
    """Starts, ends, axes and steps of a Slice, constant or followed; None where neither."""
    if "starts" in node.attrs:
        starts, ends = (tuple([fixed(n) for n in node.attrs[key]]) for key in ("starts", "ends"))
        axes, steps = node.attrs["axes"], node.attrs["steps"]
        return starts, ends, tuple([fixed(n) for n in axes]), tuple([fixed(n) for n in steps])
    given = of.operands(node)[1:]
    held = [None if value is None else of.elements_of(value) for value in given]
    held += [None] * (4 - len(held))
    count = next((len(each.items) for each in held if each is not None), None)
    if count is None:
        return None, None, None, None
    defaults = (None, None, tuple([fixed(n) for n in range(count)]), tuple([fixed(1)] * count))
    return tuple(
        [
            each.items if each is not None else default if i >= len(given) or given[i] is None else None
            for i, (each, default) in enumerate(zip(held, defaults, strict=True))
        ]
    )


def _concat(of: Pass, node: Node) -> Elements | None:
    items: list[Size] = []
    for value in node.data:
        held = of.elements_of(value)
        if held is None or held.scalar:
            return None
        items += held.items
    return Elements(tuple(items))


def _squeeze(of: Pass, node: Node) -> Elements | None:
    held = of.elements_of(node.data[0])
    return None if held is None or len(held.items) != 1 else Elements(held.items, scalar=True)


def _unsqueeze(of: Pass, node: Node) -> Elements | None:
    held = of.elements_of(node.data[0])
    axes = node.attrs.get("axes") or of.ints_of(of.operands(node)[1])
    return None if held is None or not held.scalar or axes is None or len(axes) != 1 else Elements(held.items)


def _reshape(of: Pass, node: Node) -> Elements | None:
    held = of.elements_of(node.data[0])
    operands = of.operands(node)
    target = of.ints_of(operands[1]) if len(operands) > 1 else node.attrs.get("shape")
    if held is None or target is None or len(target) > 1 or (target and target[0] not in (-1, len(held.items))):
        return None
    return Elements(held.items, scalar=not target)


def _binary(function: Callable[[Pass, Size, Size], Size | None]) -> Rule:
    def rule(of: Pass, node: Node) -> Elements | None:
        if node.problem is not None or len(node.data) != 2:
            return None
        left, right = (of.elements_of(value) for value in node.data)
        return None if left is None or right is None else _zipped(of, left, right, function)

    return rule


def _zipped(
    of: Pass, left: Elements, right: Elements, function: Callable[[Pass, Size, Size], Size | None]
) -> Elements | None:
    counts = {len(left.items), len(right.items)}
    if len(counts) > 1 and 1 not in counts:
        return None
    count = 0 if 0 in counts else max(counts)
    pairs = [
        pair for pair, _ in zip(zip(cycle(left.items), cycle(right.items), strict=False), range(count), strict=False)
    ]
    items = [function(of, a, b) for a, b in pairs]
    if None in items:
        return None
    return Elements(tuple([item for item in items if item is not None]), scalar=left.scalar and right.scalar)


def _plus(of: Pass, a: Size, b: Size) -> Size:
    return a.joined(a.expr + b.expr, b)


def _minus(of: Pass, a: Size, b: Size) -> Size:
    return a.joined(a.expr - b.expr, b)


def _times(of: Pass, a: Size, b: Size) -> Size:
    return a.joined(a.expr * b.expr, b)


def _divided(of: Pass, a: Size, b: Size) -> Size | None:
    """Division of whole numbers goes towards zero: the floor where nothing is negative, and 0 just below it."""
    divisor, dividend = b.expr.constant, a.expr.constant
    if divisor is None or divisor == 0:
        return None
    if dividend is not None:
        whole = abs(dividend) // abs(divisor)
        return a.joined(number(whole if (dividend < 0) == (divisor < 0) else -whole), b)
    if divisor < 0 or not of.nonnegative(a.expr + (divisor - 1)):
        return None
    quotient = floored(a.expr, divisor)
    return a.joined(quotient if of.nonnegative(a.expr) else opaque(POSITIVE_PART, quotient), b)


def _div(of: Pass, node: Node) -> Elements | None:
    """Only of whole numbers, a quotient of floats need not be one; both operands are of one type."""
    types = {value.dtype for value in node.data} - {None}
    if not types or not types <= WHOLE:
        return None
    return _binary(_divided)(of, node)


def _floor_mod(of: Pass, a: Size, b: Size) -> Size | None:
    """The remainder with the sign of the divisor, which is exact whatever the sign of the dividend."""
    divisor = b.expr.constant
    if divisor is None or divisor < 1:
        return None
    return a.joined(a.expr - floored(a.expr, divisor) * divisor, b)


def _mod(of: Pass, node: Node) -> Elements | None:
    return None if node.attrs.get("fmod") else _binary(_floor_mod)(of, node)


def _equal(of: Pass, a: Size, b: Size) -> Size | None:
    difference = a.expr - b.expr
    if difference.constant is not None:
        return a.joined(number(int(difference.constant == 0)), b)
    for one, other in ((a, b), (b, a)):
        constant = one.expr.constant
        if constant is not None and constant < 0 and of.nonnegative(other.expr):
            return a.joined(number(0), b)
    return None


def _neg(of: Pass, node: Node) -> Elements | None:
    held = of.elements_of(node.data[0])
    return None if held is None else Elements(tuple([Size(-s.expr, s.uses) for s in held.items]), held.scalar)


def _where(of: Pass, node: Node) -> Elements | None:
    operands = of.operands(node)
    condition, yes, no = (of.elements_of(value) for value in operands)
    chosen = of.ints_of(operands[0])
    if condition is None or yes is None or no is None or chosen is None:
        return None
    if not len(yes.items) == len(no.items) == len(chosen):
        return None
    items = zip(condition.items, chosen, yes.items, no.items, strict=True)
    made = tuple([(a if on else b).joined((a if on else b).expr, why) for why, on, a, b in items])
    return Elements(made, scalar=condition.scalar and yes.scalar and no.scalar)


def _full(of: Pass, node: Node) -> Elements | None:
    count = of.ints_of(node.data[0])
    if count is None or len(count) > 1 or any(n > 256 for n in count):
        return None
    tensor = node.attrs.get("value")
    held = 0 if tensor is None else _single(tensor)
    return None if held is None else Elements(tuple([fixed(held)] * (count[0] if count else 1)), scalar=not count)


def _single(tensor: object) -> int | None:
    if not isinstance(tensor, TensorProto) or tensor.data_type not in (TensorProto.INT64, TensorProto.INT32):
        return None
    return int(numpy_helper.to_array(tensor).reshape(-1)[0])


def _affine(role: str, function: Callable[[Size, int], Size]) -> Rule:
    """Whole numbers as floats, times or plus a whole constant; a fraction ends them."""

    def rule(of: Pass, node: Node) -> Elements | None:
        held, constant = of.elements_of(node.data[0]), node.consts.get(role)
        factor = None if constant is None else _whole(constant)
        if held is None or factor is None or constant is None:
            return None
        return Elements(tuple([function(item, factor) for item in held.items]), held.scalar and not constant.shape)

    return rule


def _whole(constant: Constant) -> int | None:
    if constant.size != 1 or len(constant.shape) > 1 or constant.dtype not in ("float32", "float64"):
        return None
    value = float(np.asarray(constant.load()).reshape(-1)[0])
    return int(value) if value.is_integer() and abs(value) < 1 << 24 else None


def _shift(of: Pass, node: Node) -> Elements | None:
    if node.attrs.get("sign", 1) == 1:
        return _affine("term", lambda item, term: Size(item.expr + term, item.uses))(of, node)
    return _affine("term", lambda item, term: Size(-item.expr + term, item.uses))(of, node)


def _range(of: Pass, node: Node) -> Elements | None:
    ends = [of.ints_of(value) for value in node.data]
    if len(ends) != 3 or any(end is None or len(end) != 1 for end in ends):
        return None
    start, limit, step = (end[0] for end in ends if end)
    run = range(start, limit, step)
    return Elements(tuple([fixed(n) for n in run])) if len(run) <= 256 else None


def _least(of: Pass, a: Size, b: Size) -> Size | None:
    if nonnegative(b.expr - a.expr):
        return a.joined(a.expr, b)
    return a.joined(b.expr, b) if nonnegative(a.expr - b.expr) else None


def _greatest(of: Pass, a: Size, b: Size) -> Size | None:
    if nonnegative(a.expr - b.expr):
        return a.joined(a.expr, b)
    return a.joined(b.expr, b) if nonnegative(b.expr - a.expr) else None


RULES: Mapping[str, Rule] = {
    "shape": _shape,
    "size": _size,
    "identity": _same,
    "floor": _same,
    "ceil": _same,
    "round": _same,
    "cast": _cast,
    "gather": _gather,
    "slice": _slice,
    "concat": _concat,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "reshape": _reshape,
    "add": _binary(_plus),
    "sub": _binary(_minus),
    "mul": _binary(_times),
    "div": _div,
    "mod": _mod,
    "min": _binary(_least),
    "max": _binary(_greatest),
    "equal": _binary(_equal),
    "neg": _neg,
    "where": _where,
    "constantofshape": _full,
    "scale": _affine("factor", lambda item, factor: Size(item.expr * factor, item.uses)),
    "shift": _shift,
    "range": _range,
}
