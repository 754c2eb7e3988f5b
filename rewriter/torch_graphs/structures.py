"""Nested outputs of a module without one of their leaves.

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
