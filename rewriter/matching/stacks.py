"""Heads that run on several values joined along an axis of their own, of which slices are taken afterwards.

DETR stacks the outputs of its decoder layers, runs its heads on the stack, and takes one layer's result. The one idea:
from the Concat on, follow the operators that compute every slice along its axis from the same slice alone, and see
which slices are taken at the end. Invariant: an operator that is not in the table here, or whose axes are not known,
ends the way, and what it reads counts as read whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rewriter.dims.sizes import Dims
from rewriter.graph.view import Graph, Node

ELEMENTWISE = frozenset(
    {
        *("relu", "leaky_relu", "sigmoid", "silu", "tanh", "gelu", "hardswish", "clip", "neg", "cast", "identity"),
        *("dropout", "erf", "exp", "log", "sqrt", "abs", "pow", "softplus", "elu", "hardsigmoid", "reciprocal"),
    }
)
WITH_CONSTANT = frozenset({"scale", "shift"})


@dataclass(frozen=True, slots=True)
class Place:
    """Where the slices of a stack lie in a value: on which axis, of how many, and which part of them."""

    axis: int
    rank: int
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Taken:
    """A node that takes the slices `first` … `first + count − 1` of the stack from what it reads."""

    node: Node
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Stack:
    """A Concat, how many slices each of its operands gives, where they lie in what is computed of them by slices, the
    nodes that compute so, and what is taken in the end.
    """

    concat: Node
    counts: tuple[int, ...]
    places: Mapping[str, Place]
    nodes: tuple[Node, ...]
    taken: tuple[Taken, ...]

    def operand(self, taken: Taken) -> int | None:
        """The one operand that all of the slices taken lie in."""
        start = 0
        for number, count in enumerate(self.counts):
            if start <= taken.first and taken.first + taken.count <= start + count:
                return number
            start += count
        return None

    def start(self, operand: int) -> int:
        return sum(self.counts[:operand])


def stacks(graph: Graph, dims: Mapping[str, Dims]) -> list[Stack]:
    """The stacks of `graph`, not inside each other, from which slices are taken; `dims` are the sizes of its values."""
    found: list[Stack] = []
    for node in graph.nodes:
        if node.op == "concat" and not node.captures and len({v.name for v in node.data}) > 1:
            walk = _walked(graph, node, dims)
            if walk is not None and any(taken.count < sum(walk.counts) for taken in walk.taken):
                found.append(walk)
    return found


def _walked(graph: Graph, concat: Node, dims: Mapping[str, Dims]) -> Stack | None:
    whole, axis = dims.get(concat.output.name), concat.attrs.get("axis")
    operands = [dims.get(value.name) for value in concat.data]
    if whole is None or not isinstance(axis, int) or any(value.constant is not None for value in concat.data):
        return None
    axis %= len(whole)
    counts = [given[axis].expr.constant if given is not None else None for given in operands]
    known = tuple(count for count in counts if count is not None)
    if len(known) < len(counts) or concat.output.is_output or concat.output.captured:
        return None
    walk = _Walk(graph, dims, {concat.output.name: Place(axis, len(whole), 0, sum(known))})
    for index in range(concat.index + 1, len(graph.nodes)):
        walk.step(graph.nodes[index])
    return Stack(concat, known, walk.places, tuple(walk.nodes), tuple(walk.taken))


@dataclass(slots=True)
class _Walk:
    graph: Graph
    dims: Mapping[str, Dims]
    places: dict[str, Place]
    nodes: list[Node] = field(default_factory=list[Node])
    taken: list[Taken] = field(default_factory=list[Taken])

    def step(self, node: Node) -> None:
        """One node, if it reads something that has a place."""
        read = [self.places[v.name] for v in node.data if v.name in self.places]
        captured = [self.places[v.name] for v in node.captures if v.name in self.places]
        if not read and not captured:
            return
        index = gathered(node, read[0]) if len(read) == 1 and not captured else None
        if index is not None:
            self.taken.append(Taken(node, index, 1))
            return
        outputs = None if captured or node.problem else self._outputs(node, read)
        if outputs is None or len(outputs) != len(node.outputs):
            self.taken += [Taken(node, place.first, place.count) for place in (*read, *captured)]
            return
        if any(value.captured for value in node.outputs):
            self.taken += [Taken(node, place.first, place.count) for place in read]
            return
        self.nodes.append(node)
        for value, place in zip(node.outputs, outputs, strict=True):
            self.places[value.name] = place
            if value.is_output:
                self.taken.append(Taken(node, place.first, place.count))

    def _outputs(self, node: Node, read: Sequence[Place]) -> list[Place] | None:
        """Where the slices lie in what the node makes; None where it does not compute slice by slice."""
        place = read[0]
        if len(node.data) != 1 or node.data[0].name not in self.places:
            return [place] if self._joins(node, read) else None
        if node.op in ELEMENTWISE:
            return [place]
        if node.op in WITH_CONSTANT:
            return [place] if _spares(node, place) else None
        match node.op:
            case "linear":
                spared = place.axis < place.rank - 1 and not node.attrs.get("transA", 0)
                return [place] if spared else None
            case "layer_norm":
                return [place] if place.axis < int(node.attrs.get("axis", -1)) % place.rank else None
            case "softmax":
                return [place] if place.axis != int(node.attrs.get("axis", -1)) % place.rank else None
            case "transpose":
                perm = node.attrs.get("perm")
                return None if perm is None else [Place(list(perm).index(place.axis), *_rest(place))]
            case "slice":
                return _sliced(node, place)
            case "split":
                return _split(node, place)
            case _:
                return None

    def _joins(self, node: Node, read: Sequence[Place]) -> bool:
        """Elementwise arithmetic of values whose slices lie alike: x · sigmoid(x) of a SiLU."""
        alike = len(read) == len(node.data) and all(place == read[0] for place in read)
        return alike and node.op in ("add", "sub", "mul", "div")


def _rest(place: Place) -> tuple[int, int, int]:
    return place.rank, place.first, place.count


def _spares(node: Node, place: Place) -> bool:
    """Whether the constant operand is one for all slices, and makes no new axes."""
    shapes = [constant.shape for constant in node.consts.values()]
    behind = place.rank - place.axis
    return bool(shapes) and all(len(s) <= place.rank and (len(s) < behind or s[-behind] == 1) for s in shapes)


def _sliced(node: Node, place: Place) -> list[Place] | None:
    starts, ends, axes, steps = (node.attrs.get(name) for name in ("starts", "ends", "axes", "steps"))
    if starts is None or ends is None or axes is None:
        return None
    steps = steps or (1,) * len(axes)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if axis % place.rank == place.axis:
            part = range(place.count)[start:end:step]
            if step != 1 or not part:
                return None
            place = Place(place.axis, place.rank, place.first + part.start, len(part))
    return [place]


def _split(node: Node, place: Place) -> list[Place] | None:
    sizes, axis = node.attrs.get("sizes"), node.attrs.get("axis", 0)
    if axis % place.rank != place.axis:
        return [place] * len(node.outputs)
    if sizes is None or any(size is None for size in sizes) or sum(sizes) != place.count:
        return None
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [Place(place.axis, place.rank, place.first + s, n) for s, n in zip(starts, sizes, strict=True)]


def gathered(node: Node, place: Place) -> int | None:
    """The one slice that a Gather with a constant index takes, as a place in the stack."""
    indices = node.consts.get("indices")
    if node.op != "gather" or indices is None or indices.size != 1:
        return None
    if int(node.attrs.get("axis", 0)) % place.rank != place.axis:
        return None
    index = int(indices.load().reshape(-1)[0])
    if not -place.count <= index < place.count:
        return None
    return place.first + index % place.count
