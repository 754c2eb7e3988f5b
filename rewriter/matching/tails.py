"""The last layers of outputs, walked backward in step: how alike two of them end, and what modules they end in.

Invariant: `in_step` speaks of operators and windows alone, never of widths (the levels of one head differ in them) or
of names. Names only ever say how candidates are listed for people who have to choose.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rewriter.graph.view import Node, Value
from rewriter.matching.cones import DEEPENING, ELEMENTS_KEPT, SIZE_ONLY, Cones

FAR = 64
"""Steps that are compared at most."""

TOLD = ("groups", "strides", "dilations", "axis", "perm")
"""Settings that tell two layers apart."""


def in_step(cones: Cones, one: Value, other: Value) -> int:
    """How many of the last operators of two values are alike, up to the first that is not or that joins values."""
    steps = 0
    while steps < FAR:
        pair = _maker(cones, one), _maker(cones, other)
        if pair[0] is None or pair[1] is None or pair[0] is pair[1] or _kind(pair[0]) != _kind(pair[1]):
            return steps
        steps += 1
        first, second = _before(cones, pair[0]), _before(cones, pair[1])
        if first is None or second is None:
            return steps
        one, other = first, second
    return steps


def named_parts(cones: Cones, values: Sequence[Value]) -> list[list[Value]]:
    """`values` by the module of their last layer, numbers left out; each alone where that splits nothing."""
    parts: dict[str, list[Value]] = {}
    for value in values:
        parts.setdefault(_module(cones, value), []).append(value)
    return list(parts.values()) if len(parts) > 1 else [[value] for value in values]


def _maker(cones: Cones, value: Value) -> Node | None:
    """The node that makes it, behind those that hand on elements as they are."""
    node = cones.graph.producer(value)
    while node is not None and node.op in ELEMENTS_KEPT and node.data:
        node = cones.graph.producer(node.data[0])
    return node


def _kind(node: Node) -> tuple[Any, ...]:
    settings = tuple(str(node.attrs.get(name)) for name in TOLD)
    window = {role: constant.shape[2:] for role, constant in node.consts.items() if role == "weight"}
    return node.op, settings, tuple(window.items())


def _before(cones: Cones, node: Node) -> Value | None:
    """The one value that carries the image's elements into the node; None where there are several, or none."""
    carried = {v.name: v for v in node.data if v.producer is not None and cones.alive[v.producer]}
    if node.op in SIZE_ONLY or len(carried) != 1:
        return None
    return next(iter(carried.values()))


def _module(cones: Cones, value: Value) -> str:
    """The scope of the last layer, or of the output's maker, with every number as #."""
    node = _maker(cones, value)
    first = node
    for _ in range(FAR):
        if node is None or node.op in DEEPENING:
            break
        before = _before(cones, node)
        node = None if before is None else _maker(cones, before)
    named = node or first
    return re.sub(r"[0-9]+", "#", named.scope) if named is not None else ""
