"""Nodes whose settings a graph computes from sizes, in the plain terms that they have where sizes are known.

The one idea: a bound, a place or an extent that follows from the size of a value is a number, or lies at a known
distance from the end of an axis; then the node says the same as one with constant settings. Invariant: it does for
every size for which the graph runs, and reads nothing but its data any more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from rewriter.dims.cuts import FAR
from rewriter.dims.declared import named_extents
from rewriter.dims.engine import Pass
from rewriter.dims.polynomials import Poly
from rewriter.dims.tensors import slice_lists
from rewriter.dims.writes import SCATTERS, Spreads, anchored, is_open, write
from rewriter.graph.view import Graph, Node


def has_computed(graph: Graph) -> bool:
    return any(node.op in RULES and _is_computed(node) for node in graph.nodes)


def plain_nodes(sizes: Pass) -> Mapping[int, Node]:
    """The nodes whose settings are computed from sizes, as such with known settings, by index; `sizes` are known."""
    spreads = Spreads(sizes)
    made: dict[int, Node] = {}
    for node in sizes.graph.nodes:
        if node.op not in RULES or not _is_computed(node):
            continue
        try:
            found = RULES[node.op](node, spreads)
        except (LookupError, ValueError, TypeError):  # a malformed node tells nothing
            continue
        if found is not None:
            made[node.index] = found
    return made


def _is_computed(node: Node) -> bool:
    if node.op in SCATTERS:
        return is_open(node)
    return len(node.data) > 1 and not node.attrs.keys() & {"shape", "starts"}


def _slice(node: Node, spreads: Spreads) -> Node | None:
    """Starts and ends that are numbers, or lie at a known distance from the end."""
    sizes = spreads.sizes
    extents = spreads.dims_of(node.data[0])
    starts, ends, axes, steps = slice_lists(sizes, node)
    if extents is None or starts is None or ends is None or axes is None or steps is None:
        return None
    found: list[tuple[int, int, int, int]] = []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        at, by = axis.expr.constant, step.expr.constant
        if at is None or by is None or by < 1 or not -len(extents) <= at < len(extents):
            return None
        begin, stop = (_cut_at(place.expr, extents[at], spreads) for place in (start, end))
        if begin is None or stop is None:
            return None
        found.append((begin, stop, at, by))
    if all((begin, by) == (0, 1) and stop >= FAR for begin, stop, _, by in found):
        return replace(node, op="identity", data=node.data[:1], attrs={}, problem=None)
    lists = dict(zip(("starts", "ends", "axes", "steps"), zip(*found, strict=True), strict=True))
    return replace(node, data=node.data[:1], attrs=lists, problem=None)


def _cut_at(place: Poly, extent: Poly, spreads: Spreads) -> int | None:
    """A place as Slice has it: what is beyond the end is the end."""
    beyond = (place - extent).constant
    if place.constant is not None:
        return place.constant
    if beyond is not None and beyond >= 0:
        return FAR
    return anchored(place, extent) if spreads.sizes.nonnegative(place) else None


def _reshape(node: Node, spreads: Spreads) -> Node | None:
    """A target of numbers, of which one that is not known is what the others leave; several are named by the inputs."""
    held = spreads.sizes.elements_of(node.data[1])
    if held is None or held.scalar:
        return None
    target = [size.expr.constant for size in held.items]
    open_ = [size.expr for size in held.items if size.expr.constant is None]
    if (open_ and -1 in target) or not all(spreads.sizes.nonnegative(expr - 1) for expr in open_):
        return None
    if len(open_) > 1:
        names = named_extents(spreads.sizes.graph, spreads.sizes.dims)
        extents = tuple([names.get(size.expr) if n is None else n for size, n in zip(held.items, target, strict=True)])
        attrs = {**node.attrs, "extents": extents}
        return None if None in extents else replace(node, data=node.data[:1], attrs=attrs)
    attrs = {**node.attrs, "shape": tuple([-1 if n is None else n for n in target])}
    return replace(node, data=node.data[:1], attrs=attrs)


Rule = Callable[[Node, Spreads], Node | None]

RULES: Mapping[str, Rule] = {"slice": _slice, "reshape": _reshape} | dict.fromkeys(SCATTERS, write)
