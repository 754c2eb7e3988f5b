"""A region as one affine map of its entry: each op is read as what it does to such a map.

Invariant: the result is exact for every input extent (or, where sums align only there, for the entry's known one), or
there is a Refusal that names the node. Leftovers (`Region.rest`) read as zero: exit = map(entry) + sum(sign * rest).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from rewriter.algebra import layout, operators, placement, places
from rewriter.algebra.affine import Affine
from rewriter.algebra.constants import FLOATS, name_of, tensor
from rewriter.algebra.terms import Aside, Parts, Space, Term, aside
from rewriter.errors import Reason, Refusal
from rewriter.graph.view import Dim, Node
from rewriter.matching.region import Region

Found: TypeAlias = "Term | Parts | Refusal"


def interpret(region: Region) -> Affine | Refusal:
    """The affine map that the region computes of its entry, or why there is none."""
    total = maps(region).get(region.exit.name)
    if isinstance(total, Refusal):
        return total
    for sign, value in region.rest:  # an entry that is left over as well was read as itself: take it out again
        if value.name == region.entry.name and total is not None:
            entry = Affine.identity(total.inputs, total.rank)
            space = space_of(region)
            assert not isinstance(space, Refusal)
            total = total.plus(entry.negated() if sign > 0 else entry, at=region.name, size=space.size)
            if isinstance(total, Refusal):
                return total
    return Refusal(Reason.ENTRY, region.name, "does not depend on its entry") if total is None else total


def maps(region: Region) -> Mapping[str, Affine | Refusal]:
    """The map of every value of the region over its entry; what reads a refused one is refused by the same.

    A value whose axes lie otherwise than the entry's has an `Aside` in place of its map. Leftovers are zero.
    """
    with np.errstate(all="ignore"):  # what overflows float64 is not finite, and refused as a conv
        return _maps(region)


def _maps(region: Region) -> Mapping[str, Affine | Refusal]:
    for node in region.nodes:
        if node.problem is not None:
            return _all(region, Refusal(Reason.VALUE, name_of(node), node.problem))
    dtype = dtype_of(region)
    if isinstance(dtype, Refusal):
        return _all(region, dtype)
    space = space_of(region)
    if isinstance(space, Refusal):
        return _all(region, space)
    entry = Affine.identity(space.channels, len(space.size))
    terms: dict[str, Found] = {value.name: Term(None, space.layout, open=True) for _, value in region.rest}
    terms[region.entry.name] = Term(entry, space.layout)
    for node in region.nodes:
        for output, term in zip(node.outputs, _apply(node, terms, space), strict=False):
            terms[output.name] = term
    return {name: found for name, term in terms.items() if (found := _shown(name, term, space)) is not None}


def _shown(name: str, term: Found, space: Space) -> Affine | Refusal | None:
    if isinstance(term, Refusal):
        return term
    if isinstance(term, Parts):
        first = term.terms[0].map
        return None if first is None else aside(name, first, None)
    settled = term.settled(space)
    if isinstance(settled, Refusal):
        assert term.map is not None
        return Aside(settled.code, settled.node, settled.detail, term.map, None)
    if settled.map is None or settled.layout == space.layout:
        return settled.map
    return aside(name, settled.map, None if settled.open else settled.views)


def _all(region: Region, refusal: Refusal) -> Mapping[str, Affine | Refusal]:
    return {output.name: refusal for node in region.nodes for output in node.outputs}


CHOOSING = frozenset({"indices", "condition"})
"""Constants that say which elements, and are none."""


def dtype_of(region: Region) -> str | Refusal:
    """The one floating-point type of every constant and value of the region."""
    values = [region.entry, *(value for _, value in region.rest), *(node.output for node in region.nodes)]
    found = {value.dtype: value.name for value in values if value.dtype is not None}
    for node in region.nodes:
        for role, constant in node.consts.items():
            if role not in CHOOSING:
                found.setdefault(constant.dtype, constant.name)
        for value in node.data:
            if value.constant is not None:
                found.setdefault(value.constant.dtype, value.name)
    if not found:
        return Refusal(Reason.TYPE, region.name, "its element type is not known")
    if len(found) > 1:
        listed = ", ".join(f"{dtype} ({name})" for dtype, name in sorted(found.items()))
        return Refusal(Reason.TYPE, region.name, f"mixes element types: {listed}")
    (dtype,) = found
    return dtype if dtype in FLOATS else Refusal(Reason.TYPE, region.name, f"{dtype} does not fold")


# --- the entry -------------------------------------------------------------------------------------------------------

LIKE = frozenset({"scale", "shift", "add", "sub", "sum", "neg", "identity", "dropout", "cast", "leaky_relu", "bn"})
LIKE_IMAGES = LIKE | {"pad", "avg_pool"}
"""Operators whose result has the channels that they read."""


def space_of(region: Region) -> Space | Refusal:
    """The entry's axes: those of an image where a window slides over it, else as the first product or norm reads them.

    Where none does, channels are taken to be on axis 1.
    """
    if any(map(operators.slides, region.nodes)):
        return _images(region)
    found = _features(region)
    products = any(node.op == "linear" for node in region.nodes)
    return _images(region) if isinstance(found, Refusal) and not products else found


def _images(region: Region) -> Space | Refusal:
    """Channels and rank from the first conv or norm that reads the entry and from its shape.

    What the others say is checked where they are applied.
    """
    shape = region.entry.shape
    channels = rank = None
    for node in _readers(region, LIKE_IMAGES):
        if node.op == "conv" and "weight" in node.consts and len(node.consts["weight"].shape) > 1:
            weight = node.consts["weight"].shape
            channels, rank = weight[1] * int(node.attrs["groups"]), len(weight) - 2
            break
        if node.op == "conv_transpose" and "weight" in node.consts and len(node.consts["weight"].shape) > 1:
            weight = node.consts["weight"].shape
            channels, rank = weight[0], len(weight) - 2
            break
        if node.op == "bn" and "scale" in node.consts:
            channels = channels or node.consts["scale"].size
    if shape is not None:
        rank = len(shape) - 2 if rank is None else rank
        known = shape[1] if len(shape) > 1 and isinstance(shape[1], int) else channels
        channels = known if channels is None else channels
        if len(shape) != rank + 2 or known != channels:
            found = f"shape {list(shape)} where {channels} channels and {rank} spatial axes are read"
            return Refusal(Reason.SHAPE, region.name, f"{region.entry.name} has {found}")
    if not channels or rank is None or rank < 0:
        return Refusal(Reason.DYNAMIC, region.name, f"the rank or channels of {region.entry.name} are not known")
    return Space(channels, 1, (None,) * (rank + 2) if shape is None else shape, windows=True)


def _features(region: Region) -> Space | Refusal:
    """The channels are on the axis that the first product or norm takes for them.

    Where that is axis 1 and there are others behind it, these are the axes of an image, over which no window slides.
    """
    shape = region.entry.shape or _of_two_axes(region)
    if shape is None:
        return Refusal(Reason.DYNAMIC, region.name, f"the axes of {region.entry.name} are not known")
    places: dict[str, layout.Layout] = {region.entry.name: tuple([(axis,) for axis in range(len(shape))])}
    for node in region.nodes:
        axes = places.get(node.data[0].name) if node.data else None
        if axes is None:
            continue
        if node.op in ("linear", "bn", "conv"):
            found = _channel_axis(node, axes)
            if found is None:
                break
            axis, channels = found
            if not channels or shape[axis] not in (channels, None):
                return Refusal(Reason.SHAPE, name_of(node), f"reads {channels} channels of {shape[axis]}")
            return Space(channels, axis, shape, windows=axis == 1 and len(shape) > 2)
        if node.op in LIKE:
            places[node.output.name] = axes
        elif node.op in operators.VIEWS:
            moved = operators.VIEWS[node.op](node.attrs, axes, lambda axis: shape[axis])
            if moved is not None:
                places[node.output.name] = moved
    return Refusal(Reason.DYNAMIC, region.name, f"it is not clear which axis of {region.entry.name} holds the channels")


def _of_two_axes(region: Region) -> tuple[Dim, ...] | None:
    """A Gemm reads a matrix, and what is per channel on the way to it keeps the axes."""
    read = any(node.op == "linear" and node.attrs.get("rank") == 2 for node in _readers(region, LIKE))
    return (None, None) if read else None


def _channel_axis(node: Node, axes: layout.Layout) -> tuple[int, int] | None:
    """The entry's axis that a product or norm reads as channels, and how many."""
    at = -1 if node.op == "linear" else 1
    held = node.consts.get("scale" if node.op == "bn" else "weight")
    if held is None or not held.shape or len(axes) < 2 or len(axes[at]) != 1:
        return None
    if node.op == "conv":
        return (axes[at][0], held.shape[1] * int(node.attrs["groups"])) if len(held.shape) == len(axes) else None
    return axes[at][0], held.shape[-1]


def _readers(region: Region, like: frozenset[str]) -> Iterator[Node]:
    """The nodes that read the entry, or what operators `like` it made of it."""
    names = {region.entry.name}
    for node in region.nodes:
        if any(value.name in names for value in node.data):
            yield node
            if node.op in like:
                names.add(node.output.name)


# --- one node --------------------------------------------------------------------------------------------------------


def _apply(node: Node, terms: Mapping[str, Found], space: Space) -> Sequence[Found]:
    """What a node makes of the terms that it reads, by output."""
    found = _read(node, terms, space)
    if isinstance(found, Refusal):
        return [found] * len(node.outputs)
    if node.op in SPLITS and len(found) == 1 and found[0].map is not None and not found[0].open:
        cut = operators.parts(node, found[0], found[0].map)
        if isinstance(cut, Refusal):
            return [cut] * len(node.outputs)
        return cut if node.op == "split" else [Parts(tuple(cut))]
    made = _made(node, found, space)
    return [made, *[Refusal(Reason.OP, name_of(node), f"{node.op} has several results")] * (len(node.outputs) - 1)]


def _read(node: Node, terms: Mapping[str, Found], space: Space) -> list[Term] | Refusal:
    read: list[Term] = []
    written = node.op in placement.WRITES and any(value.constant is not None for value in node.data)
    for value in node.data:
        if written and value.constant is not None:
            continue
        term = terms.get(value.name)
        if term is None:
            detail = f"reads {value.name}, which is neither inside nor the entry"
            return Refusal(Reason.ENTRY, name_of(node), detail)
        if isinstance(term, Parts):
            term = _one_of(node, term)
        if isinstance(term, Term) and node.op not in placement.KEEPS and not written:
            term = term.settled(space)
        if isinstance(term, Refusal):
            return term
        read.append(term)
    return read


def _one_of(node: Node, parts: Parts) -> Term | Refusal:
    """What a node that picks one value of a sequence reads."""
    index: int | None = node.attrs.get("index") if node.op == "sequenceat" else None
    if index is None or not -len(parts.terms) <= index < len(parts.terms):
        return Refusal(Reason.OP, name_of(node), f"{node.op} reads a sequence")
    return parts.terms[index]


def _made(node: Node, read: list[Term], space: Space) -> Found:
    name = name_of(node)
    if node.op in SUMS:
        return _sum(name, SUMS[node.op](len(read)), read, space)
    if node.op == "concat" and len(read) == len(node.data):
        return operators.join(node, read, space)
    if len(read) == 1 and node.op in TRANSPARENT and TRANSPARENT[node.op](node):
        return read[0]
    rule = operators.RULES.get(node.op)
    if rule is None or len(read) != 1:
        reason = Reason.TYPE if node.op == "cast" else Reason.OP
        return Refusal(reason, name, f"{node.op} is not an affine map that folds")
    (term,) = read
    if term.open and not _keeps_leftovers(node, term):
        return Refusal(Reason.OP, name, "a leftover of the sum goes through it")
    if term.map is None:
        return term
    if term.cut is not None:
        return places.apply(node, term, term.map, term.cut, space)
    return rule(node, term, term.map, space)


def _keeps_leftovers(node: Node, term: Term) -> bool:
    """Whether it hands a leftover on with sign + or -, as flattened sums do; which sign, the proof checks."""
    if node.op == "shift":
        return term.map is not None
    if node.op != "scale":
        return False
    factor = tensor(node, "factor")
    return not isinstance(factor, Refusal) and bool((factor == 1).all() or (factor == -1).all())


def _sum(name: str, signs: tuple[int, ...], read: list[Term], space: Space) -> Found:
    total: Affine | None = None
    if any((term.layout, term.cut) != (read[0].layout, read[0].cut) for term in read):
        return Refusal(Reason.SHAPE, name, "adds values whose axes lie differently")
    for sign, term in zip(signs, read, strict=True):
        if term.map is None:
            continue
        part = term.map if sign > 0 else term.map.negated()
        summed = part if total is None else total.plus(part, at=name, size=space.size)
        if isinstance(summed, Refusal):
            return summed
        total = summed
    views = read[0].views if all(term.views == read[0].views for term in read) else None
    if read[0].cut is not None:  # the reshape that cuts the channels of one of them cuts those of the sum
        views = next((term.views for term in read if term.views is not None), None)
    return Term(total, read[0].layout, open=any(term.open for term in read), views=views, cut=read[0].cut)


SPLITS = frozenset({"split", "splittosequence"})

SUMS: Mapping[str, Callable[[int], tuple[int, ...]]] = {
    "add": lambda n: (1,) * n,
    "sum": lambda n: (1,) * n,
    "sub": lambda n: (1, *(-1,) * (n - 1)),
    "neg": lambda n: (-1,) * n,
}
"""The sign of each operand."""

TRANSPARENT: Mapping[str, Callable[[Node], bool]] = {
    "identity": lambda node: True,
    "dropout": lambda node: True,
    "sequenceat": lambda node: True,
    "cast": lambda node: node.attrs["to"] is not None and node.attrs["to"] == node.attrs["from"],
    "pad": lambda node: node.attrs.get("amount") == 0,
    "leaky_relu": lambda node: node.attrs.get("slope") == 1,
}
"""When an op hands its operand on as it is."""
