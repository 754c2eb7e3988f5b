"""Nested inputs and outputs of a module: without one of their leaves, and put together of their leaves.

Invariant: what stays keeps its place in its list, tuple or dict; a container that is left empty goes too. Structures of
other kinds (named tuples, dataclasses) are left to the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

GONE = object()


def without(found: Any, gone: object) -> Any:
    """The structure without the leaf `gone`; GONE where nothing is left."""

    def goes(leaf: object) -> bool:
        return leaf is gone

    return pruned(found, goes)


def pruned(found: Any, goes: Callable[[Any], bool]) -> Any:
    if isinstance(found, dict):
        entries = cast("dict[Any, Any]", found)
        made = {key: part for key, item in entries.items() if (part := pruned(item, goes)) is not GONE}
        return type(entries)(made) if made or not entries else GONE
    if isinstance(found, list | tuple):
        items = cast("Sequence[Any]", found)
        if hasattr(items, "_fields"):
            return items
        kept = [part for item in items if (part := pruned(item, goes)) is not GONE]
        return (tuple(kept) if isinstance(items, tuple) else kept) if kept or not items else GONE
    return GONE if goes(found) else found


# --- graphs of leaves ------------------------------------------------------------------------------------------------


def without_leaves(spec: Any, count: int, places: set[int]) -> tuple[Sequence[int | None], Any]:
    """A structure of `count` leaves without some: which ones are left, None where one is blank, and its spec."""
    import torch.utils._pytree as pytree

    def goes(leaf: Any) -> bool:
        return isinstance(leaf, int) and leaf in places

    def blank(leaf: Any) -> Any:
        return None if leaf in places else leaf

    tree: Any = pytree
    left = tree.tree_map(blank, pruned(tree.tree_unflatten(list(range(count)), spec), goes))
    return tree.tree_leaves(left), tree.tree_structure(left)


def leaves_info(module: Any) -> Any:
    """What a traced module says of its structures where its graph takes and gives leaves; None where it does not."""
    return getattr(module.graph._codegen, "pytree_info", None)


def as_called(module: Any, leaves: Sequence[Any]) -> tuple[Sequence[Any], dict[str, Any]]:
    """The arguments that a traced module is called with, of one value for each placeholder."""
    import torch.utils._pytree as pytree

    info, tree = leaves_info(module), cast("Any", pytree)
    if info is None:
        return leaves, {}
    found = tree.tree_unflatten(list(leaves), info.in_spec)
    parts = [part.type for part in info.in_spec.children()]
    return (found[0], found[1]) if parts == [tuple, dict] else (found, {})
