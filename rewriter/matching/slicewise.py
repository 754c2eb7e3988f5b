"""Operators that compute every slice along an axis from the same slice of what they read alone.

Invariant: each rule says where the slices lie in what the node makes, or None where slices meet, where a setting may
differ from slice to slice, or where an extent is not known well enough to tell. Extents are expressions; what is
compared holds for every input that the graph runs on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from rewriter.dims.cuts import bound
from rewriter.dims.engine import Pass
from rewriter.dims.polynomials import Poly, number
from rewriter.dims.tensors import slice_lists
from rewriter.graph.view import Constant, Node, Value

SOFTMAX_OF_ONE_AXIS = 13
"""The opset since which Softmax sums over one axis; before, over that one and all behind it."""

BROADCASTS_BY_SHAPE = 7
"""The opset since which the shapes of operands alone say how they broadcast."""

COMPUTED = frozenset({"slice", "split"})
"""Operators whose settings the sizes know where the node itself does not."""

MOST_PICKED = 64
"""Slices that a Gather of a stack may list."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the slices of a stack lie in a value: on which axis, from which on, and how many."""

    axis: int
    rank: int
    first: Poly
    count: Poly

    @property
    def end(self) -> Poly:
        return self.first + self.count


Rule = Callable[[Node, Place, Pass], "Sequence[Place] | None"]


def results(node: Node, places: Mapping[str, Place], sizes: Pass) -> Sequence[Place] | None:
    """Where the slices lie in the outputs of the node; None where it does not compute slice by slice."""
    if node.problem and node.op not in COMPUTED:
        return None
    if node.op in ELEMENTWISE:
        return _elementwise(node, places, sizes)
    if node.op == "concat":
        return _joined(node, places)
    rule = RULES.get(node.op)
    operands = [value for value in node.data if value.name in places]
    if rule is None or operands != [node.data[0]]:
        return None
    if node.op not in COMPUTED and any(value.constant is None for value in node.data[1:]):
        return None
    return rule(node, places[node.data[0].name], sizes)


def gathered(node: Node, place: Place, sizes: Pass) -> tuple[Poly, ...] | None:
    """The slices that a Gather or GatherND with constant indices takes, as places in the stack."""
    indices = indices_of(node)
    if indices is None or not 0 < indices.size <= MOST_PICKED:
        return None
    if node.op == "gathernd":
        along = 0 if indices.shape[-1:] == (1,) and not node.attrs.get("batch_dims") else None
    else:
        along = int(node.attrs.get("axis", 0)) % place.rank
    listed = [int(index) for index in indices.load().reshape(-1)]
    if along != place.axis or not all(_has(place, index, sizes) for index in listed):
        return None
    return tuple([place.first + index if index >= 0 else place.end + index for index in listed])


def indices_of(node: Node) -> Constant | None:
    """The constant indices of a Gather or GatherND."""
    if node.op == "gathernd":
        return node.data[1].constant if len(node.data) > 1 else None
    return node.consts.get("indices") if node.op == "gather" else None


def _has(place: Place, index: int, sizes: Pass) -> bool:
    return sizes.nonnegative(place.count - 1 - index if index >= 0 else place.count + index)


def _elementwise(node: Node, places: Mapping[str, Place], sizes: Pass) -> list[Place] | None:
    """Operands whose slices lie alike, and others that are the same for all slices."""
    found = dict.fromkeys(places[value.name] for value in node.data if value.name in places)
    if len(found) != 1 or (sizes.graph.opset < BROADCASTS_BY_SHAPE and len(node.data) > 1):
        return None
    (place,) = found
    others = [value for value in node.data if value.name not in places]
    shapes = [_extents(value, sizes) for value in others] + [constant.shape for constant in node.consts.values()]
    return [place] if all(shape is not None and _spares(shape, place) for shape in shapes) else None


def _extents(value: Value, sizes: Pass) -> tuple[int | None, ...] | None:
    dims = sizes.dims_of(value)
    return None if dims is None else tuple([size.expr.constant for size in dims])


def _spares(shape: Sequence[int | None], place: Place) -> bool:
    """Whether an operand of this shape is one for all slices, and makes no new axes."""
    behind = place.rank - place.axis
    return len(shape) <= place.rank and (len(shape) < behind or shape[-behind] == 1)


def _joined(node: Node, places: Mapping[str, Place]) -> list[Place] | None:
    """A Concat along another axis, of values whose slices lie alike."""
    found = [places.get(value.name) for value in node.data]
    place, axis = found[0], node.attrs.get("axis")
    if place is None or any(each != place for each in found) or not isinstance(axis, int):
        return None
    return None if axis % place.rank == place.axis else [place]


def _linear(node: Node, place: Place, sizes: Pass) -> list[Place] | None:
    del sizes
    return [place] if place.axis < place.rank - 1 and not node.attrs.get("transA", 0) else None


def _layer_norm(node: Node, place: Place, sizes: Pass) -> list[Place] | None:
    del sizes
    return [place] if place.axis < int(node.attrs.get("axis", -1)) % place.rank else None


def _softmax(node: Node, place: Place, sizes: Pass) -> list[Place] | None:
    one = sizes.graph.opset >= SOFTMAX_OF_ONE_AXIS or sizes.graph.opset == 0
    axis = int(node.attrs.get("axis", -1 if one else 1)) % place.rank
    apart = place.axis != axis if one else place.axis < axis
    return [place] if apart else None


def _per_image(node: Node, place: Place, sizes: Pass) -> list[Place] | None:
    """Images of a batch do not meet."""
    del node, sizes
    return [place] if place.axis == 0 else None


def _per_channel(node: Node, place: Place, sizes: Pass) -> list[Place] | None:
    del node, sizes
    return [place] if place.axis < 2 else None


def _transpose(node: Node, place: Place, sizes: Pass) -> list[Place] | None:
    del sizes
    perm = node.attrs.get("perm")
    return None if perm is None else [replace(place, axis=list(perm).index(place.axis))]


def _flatten(node: Node, place: Place, sizes: Pass) -> list[Place] | None:
    del sizes
    axis = int(node.attrs.get("axis", 1)) % place.rank
    return [replace(place, rank=2)] if place.axis == 0 and axis == 1 else None


def _reshape(node: Node, place: Place, sizes: Pass) -> list[Place] | None:
    """All axes up to that of the slices stay: each slice keeps its elements."""
    before, after = sizes.dims.get(node.data[0].name), sizes.dims.get(node.output.name)
    target = node.attrs.get("shape")
    if before is None or after is None or target is None or len(after) <= place.axis:
        return None
    same = all(before[axis].expr == after[axis].expr for axis in range(place.axis + 1))
    return [replace(place, rank=len(after))] if same else None


def _resize(node: Node, place: Place, sizes: Pass) -> list[Place] | None:
    """By scales: target sizes name the extent of the batch, too."""
    given = sizes.operands(node)
    before, after = sizes.dims.get(node.data[0].name), sizes.dims.get(node.output.name)
    if len(given) > 3 or before is None or after is None or before[0].expr != after[0].expr:
        return None
    crops = node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    return [place] if place.axis == 0 and not crops else None


def axes_of(node: Node, rank: int, sizes: Pass) -> list[int] | None:
    """The axes that a node names, in an attribute or a constant."""
    named = node.attrs.get("axes")
    if named is None:
        named = sizes.ints_of(node.data[1]) if len(node.data) > 1 else None
    return sorted({axis % rank for axis in named}) if named else None


def _unsqueeze(node: Node, place: Place, sizes: Pass) -> list[Place] | None:
    made = sizes.dims.get(node.output.name)
    axes = None if made is None else axes_of(node, len(made), sizes)
    if made is None or axes is None:
        return None
    left = [axis for axis in range(len(made)) if axis not in axes]
    return [replace(place, axis=left[place.axis], rank=len(made))] if len(left) == place.rank else None


def _squeeze(node: Node, place: Place, sizes: Pass) -> list[Place] | None:
    return _dropped(place, axes_of(node, place.rank, sizes))


def _reduced(node: Node, place: Place, sizes: Pass) -> list[Place] | None:
    axes = axes_of(node, place.rank, sizes)
    if axes is None or place.axis in axes:
        return None
    return [place] if int(node.attrs.get("keepdims", 1)) else _dropped(place, axes)


def _dropped(place: Place, axes: Sequence[int] | None) -> list[Place] | None:
    if axes is None or place.axis in axes:
        return None
    before = sum(axis < place.axis for axis in axes)
    return [replace(place, axis=place.axis - before, rank=place.rank - len(axes))]


def _gather(node: Node, place: Place, sizes: Pass) -> list[Place] | None:
    """Along another axis, at constant places."""
    del sizes
    indices, axis = node.consts.get("indices"), int(node.attrs.get("axis", 0)) % place.rank
    if indices is None or axis == place.axis:
        return None
    more = len(indices.shape) - 1
    return [replace(place, axis=place.axis + (more if axis < place.axis else 0), rank=place.rank + more)]


def _slice(node: Node, place: Place, sizes: Pass) -> list[Place] | None:
    starts, ends, axes, steps = slice_lists(sizes, node)
    if starts is None or ends is None or axes is None or steps is None:
        return None
    if not len(starts) == len(ends) == len(axes) == len(steps):
        return None
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        at = axis.expr.constant
        if at is None:
            return None
        if at % place.rank == place.axis:
            low, high = (bound(sizes, place.count, cut.expr) for cut in (start, end))
            if step.expr.constant != 1 or low is None or high is None or not sizes.nonnegative(high - low):
                return None
            place = replace(place, first=place.first + low, count=high - low)
    return [place]


def _split(node: Node, place: Place, sizes: Pass) -> list[Place] | None:
    made = [sizes.dims.get(value.name) for value in node.outputs]
    if int(node.attrs.get("axis", 0)) % place.rank != place.axis:
        return [place] * len(made)
    counts = [dims[place.axis].expr for dims in made if dims is not None]
    starts = [number(0)]
    for count in counts:
        starts.append(starts[-1] + count)
    if len(counts) < len(made) or starts.pop() != place.count:
        return None
    return [replace(place, first=place.first + s, count=n) for s, n in zip(starts, counts, strict=True)]


ELEMENTWISE = frozenset(
    """relu leaky_relu sigmoid silu tanh gelu hardswish hardsigmoid clip neg cast identity dropout erf exp log sqrt abs
    softplus softsign elu selu celu mish reciprocal sin cos floor ceil round sign scale shift add sub mul div sum pow
    min max where prelu equal less greater lessorequal greaterorequal and or not""".split()  # noqa: SIM905
)
IMAGES = "conv conv_transpose bn avg_pool max_pool instancenormalization groupnormalization lrn".split()  # noqa: SIM905
REDUCTIONS = "reducemean reducesum reducemax reducemin reduceprod reducel1 reducel2".split()  # noqa: SIM905

RULES: Mapping[str, Rule] = {
    "linear": _linear,
    "layer_norm": _layer_norm,
    "softmax": _softmax,
    "logsoftmax": _softmax,
    "transpose": _transpose,
    "flatten": _flatten,
    "reshape": _reshape,
    "resize": _resize,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "gather": _gather,
    "slice": _slice,
    "split": _split,
    **dict.fromkeys(IMAGES, _per_image),
    **dict.fromkeys(("globalaveragepool", "globalmaxpool"), _per_channel),
    **dict.fromkeys(REDUCTIONS, _reduced),
}
