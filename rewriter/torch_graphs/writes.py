"""Writes into slices of a value that nobody else holds, as operators that give a new value, and back again.

The one idea: `a[:, :, 0:1] = b` is a view of `a` and a copy into it, so whoever reads `a` depends on nodes that it does
not name. Where `a` is new and every write comes before every read, `c = slice_scatter(a, b)`, read in place of `a`, is
the same, and edges tell everything.
Invariant: what is not proved to be so stays in place. A write that no edit took is in place again in the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewriter.torch_graphs.calls import END, SIZES, FxNode, alike, fake, is_assert, items, op_of


@dataclass(frozen=True, slots=True, eq=False)
class Write:
    """`node` copies into `view`, and `scatter` with its arguments is the operator that does so out of place."""

    node: FxNode
    target: Any
    view: str
    where: tuple[Any, ...]
    scatter: tuple[Any, ...]
    others: tuple[Any, ...]
    metas: tuple[dict[str, Any], dict[str, Any]]
    """Of the view and of the copy."""


def out_of_place(graph: Any) -> list[Write]:
    """Give the writes of a graph that is ours their out-of-place form, as far as nobody can tell."""
    place = {node: index for index, node in enumerate(graph.nodes)}
    found: list[Write] = []
    for node in list(place):
        if _is_new(node):
            found += _scattered(graph, node, place)
    return found


def in_place(graph: Any, writes: Sequence[Write]) -> None:
    """Write in place again, the last write first, wherever what is written to is still new and read by that alone.

    A write that has become an output gives its name to it, so it stays.
    """
    present, names = set(graph.nodes), {node.name for node in graph.nodes}
    for write in reversed([write for write in writes if write.node in present]):
        node = write.node
        base, source, *_ = node.args
        ours = any(base is other.node for other in writes)
        alone = all(user is node or not _reads(user) for user in base.users)
        if not alone or not (ours or _is_new(base)) or any(user.op == "output" for user in node.users):
            continue
        with graph.inserting_before(node):
            view = graph.create_node("call_function", write.target, (base, *write.where))
        if write.view not in names:
            view.name = write.view
        node.replace_all_uses_with(base)
        node.target, node.args = _aten().copy_.default, (view, source, *write.others)
        view.meta, node.meta = write.metas


def _aten() -> Any:
    import torch

    return torch.ops.aten


# --- what nobody can tell apart --------------------------------------------------------------------------------------


def _is_new(node: FxNode) -> bool:
    """Whether it gives elements that no other value shares: a pad by constants that adds to what it reads."""
    aten = _aten()
    if node.op != "call_function" or node.target not in (aten.pad.default, aten.constant_pad_nd.default):
        return False
    pads, *mode = *node.args[1:], *node.kwargs.values()
    adds = all(isinstance(n, int) and n >= 0 for n in items(pads)) and any(items(pads))
    return adds and (node.target is aten.constant_pad_nd.default or not mode or mode[0] == "constant")


def _reads(user: FxNode) -> bool:
    """Whether it reads elements, not types or sizes alone."""
    return not is_assert(user) and op_of(user) not in SIZES


def _scattered(graph: Any, base: FxNode, place: Mapping[FxNode, int]) -> list[Write]:
    """The writes into one value, in their order, with everybody behind them reading what the last gives."""
    found = {user: _write(user) for user in base.users if _reads(user)}
    writes = sorted([write for write in found.values() if write is not None], key=lambda write: place[write.node])
    readers = {user for user, write in found.items() if write is None}
    if not writes or any(user.op == "output" or place[user] < place[writes[-1].node] for user in readers):
        return []
    current = base
    for write in writes:
        view, source, *_ = write.node.args
        operator, *where = write.scatter
        write.node.target, write.node.args = operator, (current, source, *where)
        write.node.meta = {**write.node.meta, "val": fake(base)}
        graph.erase_node(view)
        current = write.node

    def is_reader(user: FxNode) -> bool:
        return user in readers

    base.replace_all_uses_with(current, delete_user_cb=is_reader)
    return writes


def _write(view: FxNode) -> Write | None:
    """What copies into a view of whole numbers, the view being for nothing else."""
    scatter = _scatter(view)
    if scatter is None or len(view.users) != 1:
        return None
    (node,) = view.users
    if node.target is not _aten().copy_.default or node.args[0] is not view or node.users or node.kwargs:
        return None
    _, source, *others = node.args
    if source is view or not alike(source, view):
        return None
    return Write(node, view.target, view.name, view.args[1:], scatter, tuple(others), (view.meta, node.meta))


def _scatter(view: FxNode) -> tuple[Any, ...] | None:
    """The operator that writes where a view is, and its arguments; None where that is no run of places of one axis."""
    aten, where = _aten(), view.args[1:]
    if view.kwargs or not all(isinstance(n, int) for n in where):
        return None
    if view.target is aten.select.int:
        return aten.select_scatter.default, *where
    if view.target is aten.narrow.default:
        dim, start, length = where
        return aten.slice_scatter.default, dim, start, start + length or END
    is_run = view.target is aten.slice.Tensor and where[3:] in ((), (1,))
    return (aten.slice_scatter.default, *where[:3]) if is_run else None
