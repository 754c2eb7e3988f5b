"""Outputs in groups, one per head: a decoded output with the raw maps inside its cone, or the raw maps of one head.

Maps of one head differ in size; those of two heads end alike in size but not in their last layers, or in what only
they share. Maps of several sizes of which the finest is as large as an image that the model reads are the sides of a
net that is supervised at several depths: each is a group of its own. Invariant: a group depends on the structure of
the graph and on the declared types of its outputs, never on names or on the order of outputs. Where structure leaves
open which maps belong together the group says so (`unclear`), and no vote is taken on it: maps that are split wrongly
would be pruned wrongly (the coarsest map of one head is deeper than its finest, and only it has a bottom-up path).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

from rewriter.graph.view import Dim, Value
from rewriter.matching.cones import Cones
from rewriter.matching.tails import in_step

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """`leaders` lie in no other output's cone, `members` are they and the outputs inside their cones."""

    leaders: tuple[Value, ...]
    members: tuple[Value, ...]
    unclear: bool = False

    @property
    def name(self) -> str:
        return ", ".join(value.name for value in self.leaders)


def groups_of(cones: Cones) -> tuple[Group, ...]:
    """Every output in at least one group; a raw map that two heads decode is in the groups of both."""
    leaders = [value for value in cones.outputs if not cones.inside(value)]
    found: list[Group] = []
    for alike in components(leaders, lambda a, b: cones.computed(a) and cones.computed(b) and twins(a, b)):
        parts = _heads(cones, alike)
        whole = parts is None
        found.extend(group_of(cones, part, unclear=whole) for part in ([alike] if parts is None else parts))
    return tuple(sorted(found, key=lambda group: cones.mask(group.leaders) & -cones.mask(group.leaders)))


def siblings(cones: Cones, one: Group, other: Group) -> bool:
    """True where a leading output of one group is the like of an output of the other.

    What lies in both groups is no rival of either, and groups that part behind the last layer are none: the states of
    an LSTM, a mean and a variance cut from one map. Leaving one of them out would save nothing.
    """
    pairs = [(a, b) for a in one.leaders for b in other.members if b not in one.members]
    pairs += [(a, b) for b in other.leaders for a in one.members if a not in other.members]
    if not any(a is not b and cones.computed(a) and cones.computed(b) and twins(a, b) for a, b in pairs):
        return False
    return cones.apart(cones.mask(one.members), cones.mask(other.members))


def components(items: Sequence[T], linked: Callable[[T, T], bool]) -> list[list[T]]:
    """The connected parts of `items`, each in the order given, by their first."""
    parent = list(range(len(items)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for a, b in combinations(range(len(items)), 2):
        if root(a) != root(b) and linked(items[a], items[b]):
            low, high = sorted((root(a), root(b)))
            parent[high] = low
    parts: dict[int, list[T]] = {}
    for i, item in enumerate(items):
        parts.setdefault(root(i), []).append(item)
    return list(parts.values())


def group_of(cones: Cones, leaders: Sequence[Value], *, unclear: bool = False) -> Group:
    led = cones.mask(leaders)
    members = (v for v in cones.outputs if cones.bit(v) & led or cones.inside(v) & led)
    return Group(tuple(leaders), tuple(members), unclear)


def _heads(cones: Cones, alike: Sequence[Value]) -> list[list[Value]] | None:
    """The leaders that could be each other's twins, by head; None where that cannot be told.

    Outputs of one size are rivals: a head has one map per size. Nodes that no two rivals need belong to one head, and
    what they feed belongs together. That is an answer only when every head then has one map for each map of every
    other. Without rivals, what shares anything at all is taken for the levels of a single head.
    """
    if len(alike) == 1:
        return [list(alike)]
    rivals: dict[int, int] = {cones.bit(value): 0 for value in alike}
    for a, b in combinations(alike, 2):
        same = same_size(a, b)
        if same is None:
            return None
        if same:
            rivals[cones.bit(a)] |= cones.bit(b)
            rivals[cones.bit(b)] |= cones.bit(a)
    links = [s for s in cones.signatures(cones.mask(alike)) if not any(s & bit and s & rivals[bit] for bit in rivals)]
    parts = components(alike, lambda a, b: any(s & cones.bit(a) and s & cones.bit(b) for s in links))
    if not any(rivals.values()):
        return [[value] for value in alike] if _as_large_as_an_image(cones, alike) else parts
    return parts if _one_of_each_size(cones, parts, rivals) else _by_last_layers(cones, alike, rivals)


def _by_last_layers(cones: Cones, alike: Sequence[Value], rivals: Mapping[int, int]) -> list[list[Value]] | None:
    """The leaders by how alike they end: further than any two rivals do, who are of different heads."""
    steps = {(a.name, b.name): in_step(cones, a, b) for a, b in combinations(alike, 2)}
    most = max(steps[a.name, b.name] for a, b in combinations(alike, 2) if rivals[cones.bit(a)] & cones.bit(b))
    parts = components(alike, lambda a, b: steps[a.name, b.name] > most)
    return parts if _one_of_each_size(cones, parts, rivals) else None


def _as_large_as_an_image(cones: Cones, maps: Sequence[Value]) -> bool:
    """Whether the finest of maps of several sizes is as large as an input of the model."""
    images = {value.shape[2:] for value in cones.graph.inputs if value.shape is not None and len(value.shape) > 3}
    return any(value.shape is not None and value.shape[2:] in images for value in maps)


def _one_of_each_size(cones: Cones, parts: Sequence[Sequence[Value]], rivals: Mapping[int, int]) -> bool:
    """Every part has exactly one rival for each map of every other part, and none within."""
    masks = [cones.mask(part) for part in parts]
    for mask, part in zip(masks, parts, strict=True):
        for other in masks:
            expected = 0 if mask == other else 1
            if any((rivals[cones.bit(value)] & other).bit_count() != expected for value in part):
                return False
    return True


# --- declared types --------------------------------------------------------------------------------------------------


def twins(a: Value, b: Value) -> bool:
    """True where two outputs agree in element type, rank and channel (or class) extent, as far as is declared.

    The first axis is the batch. Other extents may be equal, symbolic, or in one integer ratio, rounded up or down; at
    least one has to be known and equal. What is not declared agrees with nothing.
    """
    if a.dtype is None or a.dtype != b.dtype or a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return False
    pairs = list(zip(a.shape, b.shape, strict=True))[1:]
    if not any(x is not None and x == y for x, y in pairs):
        return False
    unequal = [i for i, (x, y) in enumerate(pairs) if isinstance(x, int) and isinstance(y, int) and x != y]
    return not unequal or _scaled(pairs, unequal)


def _scaled(pairs: Sequence[tuple[Dim, Dim]], unequal: Sequence[int]) -> bool:
    """True where the unequal axes are spatial, and all by one whole factor.

    Several neighbouring axes are spatial wherever the channels stand. A single one may as well be the channels (boxes
    and scores are [1, N, 4] and [1, N, 80]): it is spatial when it is longer than the axis that agrees, on both sides.
    """
    if len(pairs) < 2 or unequal[-1] - unequal[0] >= len(unequal):
        return False
    known = [(x, y) for x, y in (pairs[i] for i in unequal) if isinstance(x, int) and isinstance(y, int)]
    if any(min(x, y) < 1 for x, y in known):
        return False
    if not (_one_ratio(known) or _one_ratio([(y, x) for x, y in known])):
        return False
    if len(unequal) > 1:
        return True
    channels = [x for i, (x, y) in enumerate(pairs) if i not in unequal and x == y and isinstance(x, int)]
    return len(pairs) == 2 and bool(channels) and max(channels) < min(*known[0])


def _one_ratio(pairs: Sequence[tuple[int, int]]) -> bool:
    """True where every first extent over one whole number is the second; maps round, all up or all down."""
    large, small = pairs[0]
    if len(pairs) == 1:
        return large % small == 0
    factors = range(max(2, large // (small + 1)), large // max(small - 1, 1) + 2)
    down = any(all(x // factor == y for x, y in pairs) for factor in factors)
    return down or any(all(-(-x // factor) == y for x, y in pairs) for factor in factors)


def same_size(a: Value, b: Value) -> bool | None:
    """Whether two twins have one size; None where symbols leave it open for what may be maps of different levels.

    Below rank 4 there is no map to have levels: a length that is only symbolic counts as the same.
    """
    pairs = list(zip(a.shape or (), b.shape or (), strict=True))[1:]
    if any(isinstance(x, int) and isinstance(y, int) and x != y for x, y in pairs):
        return False
    if len(pairs) < 3 or all(x is not None and x == y for x, y in pairs):
        return True
    return None
