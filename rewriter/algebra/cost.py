"""What a region and its fold cost, and the gate between them.

Invariant: figures are exact, so "not more" is a comparison of whole numbers wherever strides divide. They are per image
where the sizes of all values are known, else per output pixel of the region. A conv costs out * in / groups * taps
multiply-adds, a matrix in * out per row, a norm or scale one per channel; additions (sums, shifts, biases, means) are
free. Parameters are float elements that reach a weight, bias, scale or shift, each stored tensor once; running
statistics are buffers, which count as bytes only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType

from rewriter.algebra.conv import TransposedForm
from rewriter.algebra.linear import Form
from rewriter.algebra.operators import VIEWS, slides
from rewriter.errors import Reason, Refusal
from rewriter.graph.measure import Shapes
from rewriter.graph.view import Node
from rewriter.matching.region import Region
from rewriter.reporting.record import Cost

PARAMETER_ROLES = frozenset({"weight", "bias", "scale", "factor", "term"})
BUFFER_ROLES = frozenset({"mean", "var"})
ITEM = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
"""Bytes of an element."""

NO_SHAPES: Shapes = MappingProxyType({})
"""Sizes decide what is worth doing, never what is right; without any, costs are per output pixel."""


@dataclass(frozen=True, slots=True)
class TooDear(Refusal):
    """A fold that would be exact and was left alone for its cost."""

    before: Cost
    after: Cost


@dataclass(frozen=True, slots=True)
class Work:
    """Multiply-adds of nodes by index, and how often the window of a conv stands on each value, all in one unit.

    `whole`: the unit is the image; else it is one output pixel of the last node.
    """

    by_node: Mapping[int, float]
    positions: Mapping[str, float]
    whole: bool

    def of_form(self, form: Form, region: Region, views: Sequence[Node] = ()) -> float:
        """The window of a transposed convolution stands on what it reads; `views` stay behind what is written."""
        exit_ = views[0].data[0] if views else region.exit
        value = region.entry if isinstance(form, TransposedForm) else exit_
        return form.kernel.size * self.positions.get(value.name, 1.0)


def work_of(nodes: Sequence[Node], shapes: Shapes = NO_SHAPES) -> Work:
    """The work of nodes in topological order."""
    return _on_image(nodes, shapes) or _per_pixel(nodes)


def _on_image(nodes: Sequence[Node], shapes: Shapes) -> Work | None:
    """On the sizes that are known; None where one is missing."""
    by_node: dict[int, float] = {}
    positions: dict[str, float] = {}
    if any(node.op == "linear" or node.op in VIEWS for node in nodes) and not any(map(slides, nodes)):
        return None  # of features: views may join rows, so that only what one row costs compares
    for node in nodes:
        for value in (*node.data, *node.outputs):
            sizes = shapes.get(value.name, ())[1:]
            known = [n for n in sizes if isinstance(n, int)]
            if len(known) != len(sizes) or not known:
                return None
            positions[value.name] = prod(known[:-1] if node.op == "linear" else known[1:])
        at = positions[node.data[0].name if node.op == "conv_transpose" else node.output.name]
        everywhere = prod(n for n in shapes[node.output.name][1:] if isinstance(n, int))
        by_node[node.index] = _weight_size(node) * at if node.op in WEIGHTED else everywhere * (node.op in PER_CHANNEL)
    return Work(by_node, positions, whole=True)


def _per_pixel(nodes: Sequence[Node]) -> Work:
    channels = _channels(nodes)
    positions = {nodes[-1].output.name: 1.0} if nodes else {}
    by_node: dict[int, float] = {}
    for node in reversed(nodes):
        here = positions.setdefault(node.output.name, 1.0)
        step = prod(node.attrs.get("strides") or (1,)) if node.op in ("conv", "avg_pool", "conv_transpose") else 1
        before = here / step if node.op == "conv_transpose" else here * step
        for value in node.data:
            positions[value.name] = before
        if node.op in WEIGHTED:
            by_node[node.index] = _weight_size(node) * (before if node.op == "conv_transpose" else here)
        else:
            by_node[node.index] = here * channels.get(node.output.name, 1) * (node.op in PER_CHANNEL)
    return Work(by_node, positions, whole=False)


WEIGHTED = frozenset({"conv", "conv_transpose", "linear"})
"""A conv's weight is (out, in / groups, *window): its size is the multiply-adds of one position."""

PER_CHANNEL = frozenset({"bn", "scale"})


def _weight_size(node: Node) -> int:
    weight = node.consts.get("weight")
    return 0 if weight is None else weight.size


def cost_of_nodes(nodes: Sequence[Node], shapes: Shapes = NO_SHAPES) -> Cost:
    """What the nodes of a region cost, in topological order; the last gives the output pixels."""
    work = work_of(nodes, shapes)
    return cost_of_part(nodes, work)


def cost_of_part(nodes: Sequence[Node], work: Work) -> Cost:
    """The share of some nodes in a work that was counted over more."""
    parameters: dict[str, int] = {}
    stored: dict[str, int] = {}
    for node in nodes:
        for role, constant in node.consts.items():
            if role in PARAMETER_ROLES:
                parameters[constant.name] = constant.size
            if role in PARAMETER_ROLES or role in BUFFER_ROLES:
                stored[constant.name] = constant.size * ITEM.get(constant.dtype, 0)
    operations = float(sum(work.by_node[node.index] for node in nodes))
    return Cost(sum(parameters.values()), operations, not work.whole, sum(stored.values()))


def cost_of_form(
    form: Form, work: Work | None = None, region: Region | None = None, views: Sequence[Node] = ()
) -> Cost:
    """What a conv or matrix in place of a region costs, in the unit of the region's `work`; `views` stay behind it."""
    operations = float(form.kernel.size if work is None or region is None else work.of_form(form, region, views))
    return Cost(form.parameters, operations, work is None or not work.whole, form.parameters * ITEM[form.dtype])


def gate(before: Cost, after: Cost, *, at: str, bias: int = 0) -> TooDear | None:
    """A Refusal where the fold would cost more: in multiply-adds, or in parameters beyond its own bias.

    `bias` is the number of bias elements of the result: a conv without bias followed by `+ 0.5` needs one per channel,
    which is no reason to leave it.
    """
    if after.multiply_adds <= before.multiply_adds and after.parameters - bias <= before.parameters:
        return None
    return TooDear(Reason.COST, at, f"folded it would cost {in_words(before, after)}", before, after)


def saves(before: Cost, after: Cost, nodes: int, stay: int) -> bool:
    """Whether a fold makes progress: fewer nodes, or as many that multiply less. So rewriting ends."""
    return stay < nodes or (stay == nodes and after.multiply_adds < before.multiply_adds)


def in_words(before: Cost, after: Cost) -> str:
    unit = "multiply-adds per output pixel" if before.per_pixel else "multiply-adds"
    return (
        f"{after.multiply_adds:,.0f} {unit} instead of {before.multiply_adds:,.0f}"
        f" and {after.parameters:,} parameters instead of {before.parameters:,}"
    )


def _channels(nodes: Iterable[Node]) -> dict[str, int]:
    """Channels of every value that the nodes give, from the weights, norms and shapes on the way."""
    known: dict[str, int] = {}
    for node in nodes:
        given = [known[value.name] for value in node.data if value.name in known]
        for value in (node.output, *node.data):
            shape = value.shape
            if shape is not None and len(shape) > 1 and isinstance(shape[1], int):
                given.append(shape[1])
        if node.op in ("conv", "linear") and "weight" in node.consts:
            given = [node.consts["weight"].shape[0]]
        elif node.op == "conv_transpose" and "weight" in node.consts:
            given = [node.consts["weight"].shape[1] * int(node.attrs["groups"])]
        elif node.op == "bn" and "scale" in node.consts:
            given = [node.consts["scale"].size]
        elif node.op == "scale" and not given:
            given = [node.consts["factor"].size]
        elif node.op == "concat":
            given = [sum(given)]
        if given:
            known[node.output.name] = max(given)
    return known
