"""Nodes that read the size of a value: which of its extents somebody wants.

Invariant: an extent that is not listed has no influence on anything but lists of which other places are picked.
"""

from __future__ import annotations

from collections.abc import Sequence

from rewriter.dims.tensors import part
from rewriter.graph.view import Constant, Graph, Node, Value


def extents_read(graph: Graph, node: Node, rank: int) -> Sequence[int]:
    """The axes of a value of this rank, of which a Shape reads the extents that are wanted."""
    read = part(rank, node.attrs.get("start"), node.attrs.get("end"))
    return [read[place] for place in places_read(graph, node, len(read))]


def places_read(graph: Graph, anchor: Node, count: int) -> tuple[int, ...]:
    """The places of the list that are read: all, unless every reader picks some that are known."""
    value, found = anchor.output, set[int]()
    for index in value.readers:
        picked = _picked(graph.nodes[index], value, count)
        if picked is None:
            return tuple(range(count))
        found.update(picked)
    return tuple(range(count)) if value.is_output or value.captured else tuple(sorted(found))


def _picked(reader: Node, value: Value, count: int) -> set[int] | None:
    """The places that a Gather or a Slice with constant indices picks."""
    if not reader.data or reader.data[0] is not value:
        return None
    if reader.op == "gather" and reader.attrs.get("axis", 0) in (0, -1):
        chosen = _numbers(reader.consts.get("indices"))
        known = chosen is not None and all(-count <= place < count for place in chosen)
        return {place % count for place in chosen or ()} if known else None
    if reader.op == "slice" and reader.attrs.get("axes") in ((0,), (-1,)):
        (start,), (end,), (step,) = (reader.attrs[key] for key in ("starts", "ends", "steps"))
        return set(range(count)[start:end:step])
    return None


def _numbers(constant: Constant | None) -> list[int] | None:
    """A short constant list of whole numbers."""
    if constant is None or constant.size > 64 or constant.dtype not in ("int64", "int32"):
        return None
    return [int(number) for number in constant.load().reshape(-1)]
