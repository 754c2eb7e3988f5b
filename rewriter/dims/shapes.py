"""The extents of what an operator gives, from those of what it reads: one short rule per operator.

Invariant: a rule answers per output with extents or with None (unknown rank); an extent that it does not follow is a
fresh symbol, or an opaque term of operator, settings and argument where these alone decide it. Where two axes may be
equal or one of them 1, as operands of an Add, nothing is assumed: such an extent is opaque too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, TypeAlias

from rewriter.dims import cuts, tensors, windows
from rewriter.dims.polynomials import UNORDERED, floored, nonnegative, opaque
from rewriter.dims.sizes import Dims, Size, fixed, total
from rewriter.graph.view import Node

if TYPE_CHECKING:
    from rewriter.dims.engine import Pass

Rule: TypeAlias = "Callable[[Pass, Node], Sequence[Dims | None]]"
ONE = fixed(1)

KEEPS = """identity dropout cast relu leaky_relu sigmoid silu tanh gelu hardswish hardsigmoid clip softmax logsoftmax
    hardmax bn layer_norm instancenormalization groupnormalization rmsnormalization lrn exp log sqrt abs neg floor ceil
    round sign erf softplus softsign elu selu celu mish thresholdedrelu reciprocal not isnan isinf prelu cumsum sin cos
    tan asin acos atan sinh cosh trilu scatter_nd scatterelements scatter lpnormalization meanvariancenormalization
    quantizelinear dequantizelinear bitwisenot assign""".split()  # noqa: SIM905

BROADCASTS = """add sub mul div sum pow mod min max mean where equal less greater lessorequal greaterorequal and or xor
    bitshift bitwiseand bitwiseor bitwisexor""".split()  # noqa: SIM905

REDUCES = """reducemean reducesum reducemax reducemin reduceprod reducel1 reducel2 reducelogsum reducelogsumexp
    reducesumsquare""".split()  # noqa: SIM905


def keep(of: Pass, node: Node) -> Sequence[Dims | None]:
    return (of.dims_of(node.data[0]),)


def broadcast(of: Pass, node: Node) -> Sequence[Dims | None]:
    if node.problem is not None or of.graph.opset < 7:  # before, operands broadcast by attributes
        return ()
    shapes = [of.dims_of(value) for value in node.data]
    shapes += [tuple([fixed(extent) for extent in constant.shape]) for constant in node.consts.values()]
    known = [shape for shape in shapes if shape is not None]
    return (joined(of, known) if len(known) == len(shapes) else None,)


def joined(of: Pass, shapes: Sequence[Dims]) -> Dims:
    found, *rest = shapes
    for other in rest:
        axes = [_meet(of, a, b) for a, b in zip_longest(reversed(found), reversed(other), fillvalue=ONE)]
        found = tuple(reversed(axes))
    return found


def _meet(of: Pass, a: Size, b: Size) -> Size:
    """The extent of two axes that broadcast: 1 yields; two that cannot be 1 are equal; else one of them, unknown which.

    An extent of 2 or more is the result whatever the other is: that is equal to it, or 1.
    """
    if a.expr == b.expr or b.expr.constant == 1:
        return a
    if a.expr.constant == 1:
        return b
    large = [size for size in (a, b) if nonnegative(size.expr - 2)]
    if len(large) == 2:
        return of.equal([a, b])
    if large:
        return large[0]
    arguments = tuple(sorted((a.expr, b.expr), key=hash))
    return a.joined(opaque(UNORDERED, *arguments), b)


def matmul(of: Pass, node: Node) -> Sequence[Dims | None]:
    shapes = [of.dims_of(value) for value in of.operands(node)[:2]]
    left, right = shapes
    if left is None or right is None or len(left) < 1 or len(right) < 1:
        return ()
    inner = [left[-1], right[-2] if len(right) > 1 else right[-1]]
    of.equal(inner)
    batch = joined(of, [left[:-2], right[:-2]])
    rows = left[-2:-1] if len(left) > 1 else ()
    return ((*batch, *rows, *(right[-1:] if len(right) > 1 else ())),)


def gemm(of: Pass, node: Node) -> Sequence[Dims | None]:
    left, right = (of.dims_of(value) for value in of.operands(node)[:2])
    if left is None or right is None or len(left) != 2 or len(right) != 2:
        return ()
    across, turned = of.attribute(node, "transA"), of.attribute(node, "transB")
    return ((left[1 if across else 0], right[0 if turned else 1]),)


def linear(of: Pass, node: Node) -> Sequence[Dims | None]:
    """A Gemm where the node says that it has two axes, else a MatMul."""
    return (gemm if node.attrs.get("rank") == 2 else matmul)(of, node)


def concat(of: Pass, node: Node) -> Sequence[Dims | None]:
    """Off its axis all operands agree; ranks do too."""
    shapes = [of.dims_of(value) for value in node.data]
    known = [shape for shape in shapes if shape is not None]
    if not known or "axis" not in node.attrs:
        return ()
    rank = len(known[0])
    axis = _axis(node.attrs["axis"], rank)
    found = [of.equal([shape[i] for shape in known]) if i != axis else ONE for i in range(rank)]
    found[axis] = of.unknown()
    if len(known) == len(shapes):
        first, *rest = [shape[axis] for shape in known]
        for other in rest:
            first = first.joined(first.expr + other.expr, other)
        found[axis] = first
    return (tuple(found),)


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise IndexError("there is no such axis")
    return axis % rank


def split(of: Pass, node: Node) -> Sequence[Dims | None]:
    shape = of.dims_of(node.data[0])
    if shape is None:
        return ()
    axis = _axis(node.attrs.get("axis", 0), len(shape))
    operands = of.operands(node)
    parts: Sequence[Size]
    if "sizes" in node.attrs:
        parts = [fixed(n) for n in node.attrs["sizes"]]
    elif len(operands) > 1 and operands[1] is not None:
        held = of.elements_of(operands[1])
        parts = [of.unknown() for _ in node.outputs] if held is None else held.items
    else:
        parts = _parts(shape[axis], int(of.attribute(node, "num_outputs") or len(node.outputs)))
    return [(*shape[:axis], each, *shape[axis + 1 :]) for each in parts]


def _parts(whole: Size, count: int) -> list[Size]:
    """Equal parts, the last one smaller where they cannot be."""
    each = floored(whole.expr + (count - 1), count)
    last = whole.expr - each * (count - 1)
    return [*[Size(each, whole.uses)] * (count - 1), Size(last, whole.uses)]


def transpose(of: Pass, node: Node) -> Sequence[Dims | None]:
    shape = of.dims_of(node.data[0])
    if shape is None:
        return ()
    order: tuple[int, ...] = node.attrs.get("perm", tuple(reversed(range(len(shape)))))
    if sorted(order) != list(range(len(shape))):
        return ()
    return (tuple([shape[axis] for axis in order]),)


def _axes(of: Pass, node: Node) -> tuple[int, ...] | None:
    """Axes as an attribute or a second input; None where there are none, LookupError where they are not known."""
    if "axes" in node.attrs:
        return tuple(node.attrs["axes"])
    operands = of.operands(node)
    if len(operands) < 2 or operands[1] is None:
        return None
    found = of.ints_of(operands[1])
    if found is None:
        raise LookupError("its axes are known only at run time")
    return found


def unsqueeze(of: Pass, node: Node) -> Sequence[Dims | None]:
    shape, axes = of.dims_of(node.data[0]), _axes(of, node)
    if shape is None or axes is None:
        return ()
    rank = len(shape) + len(axes)
    there = {_axis(axis, rank) for axis in axes}
    rest = iter(shape)
    return (tuple([ONE if i in there else next(rest) for i in range(rank)]),)


def squeeze(of: Pass, node: Node) -> Sequence[Dims | None]:
    shape, axes = of.dims_of(node.data[0]), _axes(of, node)
    if shape is None:
        return ()
    if axes is None:
        constants = [size.expr.constant for size in shape]
        if None in constants:
            return ()
        axes = tuple([i for i, extent in enumerate(constants) if extent == 1])
    there = {_axis(axis, len(shape)) for axis in axes}
    return (tuple([size for i, size in enumerate(shape) if i not in there]),)


def flatten(of: Pass, node: Node) -> Sequence[Dims | None]:
    shape = of.dims_of(node.data[0])
    if shape is None:
        return ()
    axis = node.attrs.get("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return ((total(shape[:axis]), total(shape[axis:])),)


def reduce(of: Pass, node: Node) -> Sequence[Dims | None]:
    shape, axes = of.dims_of(node.data[0]), _axes(of, node)
    if shape is None:
        return ()
    if not axes:
        axes = () if node.attrs.get("noop_with_empty_axes") else tuple(range(len(shape)))
    return (_without(shape, axes, bool(node.attrs.get("keepdims", 1))),)


def arg(of: Pass, node: Node) -> Sequence[Dims | None]:
    shape = of.dims_of(node.data[0])
    if shape is None:
        return ()
    return (_without(shape, [node.attrs.get("axis", 0)], bool(node.attrs.get("keepdims", 1))),)


def _without(shape: Dims, axes: Sequence[int], keepdims: bool) -> Dims:
    there = {_axis(axis, len(shape)) for axis in axes}
    if keepdims:
        return tuple([ONE if i in there else size for i, size in enumerate(shape)])
    return tuple([size for i, size in enumerate(shape) if i not in there])


def gather(of: Pass, node: Node) -> Sequence[Dims | None]:
    shape, places = (of.dims_of(value) for value in of.operands(node)[:2])
    if shape is None or places is None:
        return ()
    axis = _axis(node.attrs.get("axis", 0), len(shape))
    return ((*shape[:axis], *places, *shape[axis + 1 :]),)


def gather_elements(of: Pass, node: Node) -> Sequence[Dims | None]:
    return (of.dims_of(node.data[1]),)


def expand(of: Pass, node: Node) -> Sequence[Dims | None]:
    shape, wanted = of.dims_of(node.data[0]), of.elements_of(of.operands(node)[1])
    if shape is None or wanted is None:
        return ()
    target = tuple([size if of.nonnegative(size.expr) else of.unknown() for size in wanted.items])
    return (joined(of, [shape, target]),)


def full(of: Pass, node: Node) -> Sequence[Dims | None]:
    wanted = of.elements_of(node.data[0])
    return () if wanted is None else (wanted.items,)


def span(of: Pass, node: Node) -> Sequence[Dims | None]:
    """Range: the count of steps, which is limit − start where the step is 1 and that is not negative."""
    ends = [of.elements_of(value) for value in node.data]
    if any(end is None for end in ends) or len(ends) != 3:
        return ((of.unknown(),),)
    start, limit, step = (end.items[0] for end in ends if end is not None)
    count = limit.joined(limit.expr - start.expr, start, step)
    if step.expr.constant == 1 and of.nonnegative(count.expr):
        return ((count,),)
    return ((count.joined(opaque(("range",), start.expr, limit.expr, step.expr)),),)


def shape_of(of: Pass, node: Node) -> Sequence[Dims | None]:
    shape = of.dims_of(node.data[0])
    if shape is None:
        return ((of.unknown(),),)
    return ((fixed(len(tensors.part(len(shape), node.attrs.get("start"), node.attrs.get("end")))),),)


def size_of(of: Pass, node: Node) -> Sequence[Dims | None]:
    return ((),)


def pad(of: Pass, node: Node) -> Sequence[Dims | None]:
    shape, operands = of.dims_of(node.data[0]), of.operands(node)
    if shape is None:
        return ()
    given = of.attribute(node, "pads", "paddings")
    amounts = [fixed(n) for n in given] if given is not None else None
    if amounts is None and len(operands) > 1:
        held = of.elements_of(operands[1])
        amounts = None if held is None else list(held.items)
    named = operands[3] if len(operands) > 3 else None
    axes = range(len(shape)) if named is None else of.ints_of(named)
    if amounts is None or axes is None:
        return (tuple([of.unknown() for _ in shape]),)
    found = list(shape)
    for axis, before, after in zip(axes, amounts[: len(axes)], amounts[len(axes) :], strict=True):
        found[axis] = shape[axis].joined(shape[axis].expr + before.expr + after.expr, before, after)
    return (tuple(found),)


def tile(of: Pass, node: Node) -> Sequence[Dims | None]:
    shape, times = of.dims_of(node.data[0]), of.elements_of(node.data[1])
    if shape is None or times is None:
        return ()
    return (tuple([a.joined(a.expr * b.expr, b) for a, b in zip(shape, times.items, strict=True)]),)


def to_space(of: Pass, node: Node) -> Sequence[Dims | None]:
    shape, block = of.dims_of(node.data[0]), int(node.attrs["blocksize"])
    if shape is None:
        return ()
    batch, channels, *spatial = shape
    fewer = Size(floored(channels.expr, block * block), channels.uses)
    return ((batch, fewer, *[Size(size.expr * block, size.uses) for size in spatial]),)


def to_depth(of: Pass, node: Node) -> Sequence[Dims | None]:
    shape, block = of.dims_of(node.data[0]), int(node.attrs["blocksize"])
    if shape is None:
        return ()
    batch, channels, *spatial = shape
    more = Size(channels.expr * (block * block), channels.uses)
    return ((batch, more, *[Size(floored(size.expr, block), size.uses) for size in spatial]),)


def top(of: Pass, node: Node) -> Sequence[Dims | None]:
    shape, operands = of.dims_of(node.data[0]), of.operands(node)
    if shape is None:
        return ()
    count = of.elements_of(operands[1]) if len(operands) > 1 else None
    found = list(shape)
    found[node.attrs.get("axis", -1)] = of.unknown() if count is None else count.items[0]
    return (tuple(found), tuple(found))


def constant(of: Pass, node: Node) -> Sequence[Dims | None]:
    return (of.dims_of(node.output),)


def one_row(of: Pass, node: Node) -> Sequence[Dims | None]:
    """NonZero: as many rows as axes, and nobody knows how many columns."""
    shape = of.dims_of(node.data[0])
    return () if shape is None else ((fixed(len(shape)), of.unknown()),)


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(KEEPS, keep),
    **dict.fromkeys([*BROADCASTS, "scale", "shift"], broadcast),
    **dict.fromkeys(REDUCES, reduce),
    "argmax": arg,
    "argmin": arg,
    "conv": windows.conv,
    "conv_transpose": windows.conv_transpose,
    "avg_pool": windows.pool,
    "max_pool": windows.pool,
    "lppool": windows.pool,
    "globalaveragepool": windows.global_pool,
    "globalmaxpool": windows.global_pool,
    "globallppool": windows.global_pool,
    "resize": windows.resize,
    "matmul": matmul,
    "linear": linear,
    "concat": concat,
    "split": split,
    "transpose": transpose,
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    "flatten": flatten,
    "gather": gather,
    "gatherelements": gather_elements,
    "expand": expand,
    "constantofshape": full,
    "range": span,
    "shape": shape_of,
    "size": size_of,
    "pad": pad,
    "tile": tile,
    "depthtospace": to_space,
    "spacetodepth": to_depth,
    "topk": top,
    "constant": constant,
    "nonzero": one_row,
    "slice": cuts.slice_,
    "reshape": cuts.reshape,
}
