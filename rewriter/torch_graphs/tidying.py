"""What an exported program says about views and sizes, in fewer words: done to a graph that is ours, before it is read.

Invariant: every node that stays gives the same values, and those that go were views or copies of something that stays.
Where somebody could tell a value from a view of it (it is given, or changed otherwise than by a copy), it stays.
"""

from __future__ import annotations

from typing import Any

from rewriter.torch_graphs.calls import END, FxNode, alike, fake, is_node, op_of


def tidied(graph: Any) -> None:
    import torch

    aten = torch.ops.aten
    rules = {
        aten.reshape_as.default: _sizes_named,
        aten.view_as.default: _sizes_named,
        aten.expand_as.default: _sizes_named,
        aten.copy.default: _source_alone,
        aten.slice.Tensor: _without_whole_slice,
        aten.slice_scatter.default: _without_whole_scatter,
    }
    for node in graph.nodes:
        rule = rules.get(node.target) if node.op == "call_function" else None
        if rule is not None:
            rule(graph, node)


def _sizes_named(graph: Any, node: FxNode) -> None:
    """Where a value is read for its sizes alone, and these are known, they are written out: it may go then."""
    import torch

    del graph
    aten = torch.ops.aten
    shape = [extent if type(extent) is int else -1 for extent in fake(node).shape]
    expands = node.target is aten.expand_as.default
    if shape.count(-1) < (1 if expands else 2):
        node.target, node.args = aten.expand.default if expands else aten.reshape.default, (node.args[0], shape)


def _source_alone(graph: Any, node: FxNode) -> None:
    """A copy that is no longer written into anything, of the type and sizes that it has anyway."""
    import torch

    like, source, *_ = node.args
    if alike(like, source):
        node.target, node.args = torch.ops.aten.clone.default, (source,)
        _drop(graph, like)


def _without_whole_slice(graph: Any, node: FxNode) -> None:
    """A slice from end to end, where it is cut further, written into, or asked for its sizes."""
    if not _is_whole(*node.args[1:], **node.kwargs) or not all(_takes_any_view(user) for user in node.users):
        return
    node.replace_all_uses_with(node.args[0])
    graph.erase_node(node)


def _without_whole_scatter(graph: Any, node: FxNode) -> None:
    """A new value all of which is written, as what is written, where only this reads it; outputs keep their names."""
    base, source, *where = node.args
    new = is_node(source) and op_of(source) in ("clone", "slice_scatter", "select_scatter")
    if not new or any(user.op == "output" for user in node.users):
        return
    if not _is_whole(*where, **node.kwargs) or len(source.users) > 1 or not alike(base, source):
        return
    node.replace_all_uses_with(source)
    graph.erase_node(node)
    _drop(graph, base)


def _drop(graph: Any, view: FxNode) -> None:
    while not view.users and view.op == "call_function" and op_of(view) in ("slice", "select"):
        base = view.args[0]
        graph.erase_node(view)
        view = base


def _is_whole(dim: int = 0, start: Any = None, end: Any = None, step: Any = 1) -> bool:
    del dim
    return start in (None, 0) and (end is None or (isinstance(end, int) and end >= END)) and step == 1


def _takes_any_view(user: FxNode) -> bool:
    return user.op == "call_function" and op_of(user) in TAKERS


TAKERS = frozenset({"slice", "select", "narrow", "copy", "expand_as", "slice_scatter", "select_scatter"})
"""Operators to which a value and a view of all of it are the same, in place or not."""
