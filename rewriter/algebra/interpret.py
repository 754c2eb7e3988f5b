"""A region as one affine map of its entry: each op is read as what it does to such a map.

Invariant: the result is exact for every input extent (or, where sums align only there, for the entry's known one), or
there is a Refusal that names the node. Leftovers (`Region.rest`) read as zero: exit = map(entry) + sum(sign * rest).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from rewriter.algebra.affine import Affine, Size
from rewriter.algebra.constants import FLOATS, name_of, normalisation, per_channel, tensor
from rewriter.errors import Reason, Refusal
from rewriter.graph.view import Node
from rewriter.matching.region import Region


@dataclass(frozen=True, slots=True)
class Term:
    """A value inside: an affine map of the entry (None for zero), and whether leftovers were added to it."""

    map: Affine | None
    open: bool = False


Rule: TypeAlias = "Callable[[Node, Affine, Size], Affine | Refusal]"


def interpret(region: Region) -> Affine | Refusal:
    """The affine map that the region computes of its entry, or why there is none."""
    total = maps(region).get(region.exit.name)
    if isinstance(total, Refusal):
        return total
    for sign, value in region.rest:  # an entry that is left over as well was read as itself: take it out again
        if value.name == region.entry.name and total is not None:
            entry = Affine.identity(total.inputs, total.rank)
            size = _entry_space(region)
            assert not isinstance(size, Refusal)
            total = total.plus(entry.negated() if sign > 0 else entry, at=region.name, size=size[1])
            if isinstance(total, Refusal):
                return total
    return Refusal(Reason.ENTRY, region.name, "does not depend on its entry") if total is None else total


def maps(region: Region) -> Mapping[str, Affine | Refusal]:
    """The map of every value of the region over its entry; what reads a refused one is refused by the same."""
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows float64 is not finite, and refused as a conv
        return _maps(region)


def _maps(region: Region) -> Mapping[str, Affine | Refusal]:
    for node in region.nodes:
        if node.problem is not None:
            return _all(region, Refusal(Reason.VALUE, name_of(node), node.problem))
    dtype = dtype_of(region)
    if isinstance(dtype, Refusal):
        return _all(region, dtype)
    space = _entry_space(region)
    if isinstance(space, Refusal):
        return _all(region, space)
    channels, size = space
    entry = Affine.identity(channels, len(size))
    terms = {value.name: Term(None, open=True) for _, value in region.rest}
    terms[region.entry.name] = Term(entry)
    refused: dict[str, Affine | Refusal] = {}
    for node in region.nodes:
        behind = next((refused[v.name] for v in node.data if v.name in refused), None)
        term = _apply(node, terms, size) if behind is None else behind
        for output in node.outputs:
            if isinstance(term, Term):
                terms[output.name] = term
            else:
                refused[output.name] = term
    return refused | {name: term.map for name, term in terms.items() if term.map is not None}


def _all(region: Region, refusal: Refusal) -> Mapping[str, Affine | Refusal]:
    return {node.output.name: refusal for node in region.nodes}


def dtype_of(region: Region) -> str | Refusal:
    """The one floating-point type of every constant and value of the region."""
    values = [region.entry, *(value for _, value in region.rest), *(node.output for node in region.nodes)]
    found = {value.dtype: value.name for value in values if value.dtype is not None}
    for node in region.nodes:
        for constant in node.consts.values():
            found.setdefault(constant.dtype, constant.name)
    if not found:
        return Refusal(Reason.TYPE, region.name, "its element type is not known")
    if len(found) > 1:
        listed = ", ".join(f"{dtype} ({name})" for dtype, name in sorted(found.items()))
        return Refusal(Reason.TYPE, region.name, f"mixes element types: {listed}")
    (dtype,) = found
    return dtype if dtype in FLOATS else Refusal(Reason.TYPE, region.name, f"{dtype} does not fold")


def _entry_space(region: Region) -> tuple[int, Size] | Refusal:
    """Channels and spatial extents of the entry, from the first conv or norm that reads it and from its shape.

    What the others say is checked where they are applied.
    """
    shape = region.entry.shape
    channels = rank = None
    like_entry = {region.entry.name}
    for node in region.nodes:
        if not any(value.name in like_entry for value in node.data):
            continue
        if node.op == "conv" and "weight" in node.consts and len(node.consts["weight"].shape) > 1:
            weight = node.consts["weight"].shape
            channels, rank = weight[1] * int(node.attrs["groups"]), len(weight) - 2
            break
        if node.op == "bn" and "scale" in node.consts:
            channels = channels or node.consts["scale"].size
        like_entry.add(node.output.name)
    if shape is not None:
        rank = len(shape) - 2 if rank is None else rank
        known = shape[1] if len(shape) > 1 and isinstance(shape[1], int) else channels
        channels = known if channels is None else channels
        if len(shape) != rank + 2 or known != channels:
            found = f"shape {list(shape)} where {channels} channels and {rank} spatial axes are read"
            return Refusal(Reason.SHAPE, region.name, f"{region.entry.name} has {found}")
    if not channels or rank is None or rank < 0:
        return Refusal(Reason.DYNAMIC, region.name, f"the rank or channels of {region.entry.name} are not known")
    spatial = (None,) * rank if shape is None else shape[2:]
    return channels, tuple(n if isinstance(n, int) else None for n in spatial)


def _apply(node: Node, terms: Mapping[str, Term], size: Size) -> Term | Refusal:
    """What a node makes of the terms that it reads."""
    name = name_of(node)
    unknown = [value.name for value in node.data if value.name not in terms]
    if unknown:
        return Refusal(Reason.ENTRY, name, f"reads {unknown[0]}, which is neither inside nor the entry")
    read = [terms[value.name] for value in node.data]
    if node.op in SUMS:
        return _sum(name, SUMS[node.op](len(read)), read, size)
    if len(read) == 1 and node.op in TRANSPARENT and TRANSPARENT[node.op](node):
        return read[0]
    rule = RULES.get(node.op)
    if rule is None or len(read) != 1:
        reason = Reason.TYPE if node.op == "cast" else Reason.OP
        return Refusal(reason, name, f"{node.op} is not an affine map that folds")
    (term,) = read
    if term.open and not _keeps_leftovers(node, term):
        return Refusal(Reason.OP, name, "a leftover of the sum goes through it")
    if term.map is None:
        return term
    result = rule(node, term.map, size)
    return result if isinstance(result, Refusal) else Term(result, term.open)


def _keeps_leftovers(node: Node, term: Term) -> bool:
    """Whether it hands a leftover on with sign + or -, as flattened sums do; which sign, the proof checks."""
    if node.op == "shift":
        return term.map is not None
    if node.op != "scale":
        return False
    factor = tensor(node, "factor")
    return not isinstance(factor, Refusal) and bool((factor == 1).all() or (factor == -1).all())


def _sum(name: str, signs: tuple[int, ...], read: list[Term], size: Size) -> Term | Refusal:
    total: Affine | None = None
    for sign, term in zip(signs, read, strict=True):
        if term.map is None:
            continue
        part = term.map if sign > 0 else term.map.negated()
        summed = part if total is None else total.plus(part, at=name, size=size)
        if isinstance(summed, Refusal):
            return summed
        total = summed
    return Term(total, open=any(term.open for term in read))


def _conv(node: Node, inner: Affine, size: Size) -> Affine | Refusal:
    kernel, name = tensor(node, "weight"), name_of(node)
    if isinstance(kernel, Refusal):
        return kernel
    groups, strides, pads, dilations = (node.attrs[key] for key in ("groups", "strides", "pads", "dilations"))
    if not kernel.size or kernel.ndim < 3:
        return Refusal(Reason.SHAPE, name, f"its weight has shape {list(kernel.shape)}")
    if {len(strides), len(pads), len(dilations), kernel.ndim - 2} != {inner.rank}:
        return Refusal(Reason.SHAPE, name, f"strides, pads, dilations and weight are not all for {inner.rank} axes")
    if groups < 1 or len(kernel) % groups or min(strides) < 1 or min(dilations) < 1:
        return Refusal(Reason.VALUE, name, "groups, strides and dilations have to be positive, groups divide channels")
    if any(pad < 0 for ends in pads for pad in ends):
        return Refusal(Reason.VALUE, name, "its pads are negative")
    bias = None
    if "bias" in node.consts:
        bias = tensor(node, "bias")
        if isinstance(bias, Refusal):
            return bias
        if bias.shape != (len(kernel),):
            return Refusal(Reason.SHAPE, name, f"its bias has shape {list(bias.shape)} where [{len(kernel)}] is needed")
    outer = Affine.conv(kernel, bias, stride=tuple(strides), pads=tuple(pads), dilation=tuple(dilations), groups=groups)
    return inner.then(outer, at=name, size=size)


def _bn(node: Node, inner: Affine, size: Size) -> Affine | Refusal:
    norm = normalisation(node, inner.outputs)
    if isinstance(norm, Refusal):
        return norm
    factor, term = norm
    return inner.scaled(factor).shifted(term)


def _scale(node: Node, inner: Affine, size: Size) -> Affine | Refusal:
    factor = per_channel(node, "factor", inner.outputs, inner.rank)
    return factor if isinstance(factor, Refusal) else inner.scaled(factor)


def _shift(node: Node, inner: Affine, size: Size) -> Affine | Refusal:
    term = per_channel(node, "term", inner.outputs, inner.rank)
    if isinstance(term, Refusal):
        return term
    return (inner.negated() if node.attrs["sign"] < 0 else inner).shifted(term)


def _pad(node: Node, inner: Affine, size: Size) -> Affine | Refusal:
    pads, name = node.attrs["pads"], name_of(node)
    if node.attrs["mode"] != "constant":
        return Refusal(Reason.EXACT, name, f"what it pads with ({node.attrs['mode']}) is no part of an affine map")
    if len(pads) != inner.rank + 2:
        return Refusal(Reason.SHAPE, name, f"pads {len(pads)} axes of a value with {inner.rank + 2}")
    if any(pad for ends in pads[:2] for pad in ends):
        return Refusal(Reason.OP, name, "pads images or channels, not borders")
    return inner.padded(pads[2:], float(node.attrs["value"]), at=name, size=size)


def _avg_pool(node: Node, inner: Affine, size: Size) -> Affine | Refusal:
    """A depthwise conv with equal weights, where every window counts as many elements."""
    window, strides, pads, dilations = (node.attrs[key] for key in ("window", "strides", "pads", "dilations"))
    name = name_of(node)
    if len(window) != inner.rank:
        return Refusal(Reason.SHAPE, name, f"has a window of {len(window)} axes on {inner.rank}")
    if not node.attrs["include_pad"] and any(pad for ends in pads for pad in ends):
        return Refusal(Reason.EXACT, name, "leaves the padding out of its averages: it is another map at the border")
    kernel = np.full((inner.outputs, 1, *window), 1 / np.prod(window, dtype=np.float64))
    mean = Affine.conv(kernel, stride=strides, pads=pads, dilation=dilations, groups=inner.outputs)
    spare = zip(inner.extent(size), mean.growth, strides, strict=True)
    if node.attrs["ceil"] and any(s > 1 and (n is None or (n + g - 1) % s) for n, g, s in spare):
        return Refusal(Reason.EXACT, name, "rounds its size up: its last window may stand outside the image")
    return inner.then(mean, at=name, size=size)


RULES: Mapping[str, Rule] = {
    "conv": _conv,
    "bn": _bn,
    "scale": _scale,
    "shift": _shift,
    "pad": _pad,
    "avg_pool": _avg_pool,
}
"""How an op with one operand continues an affine map."""

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
    "cast": lambda node: node.attrs["to"] is not None and node.attrs["to"] == node.attrs["from"],
    "pad": lambda node: node.attrs.get("amount") == 0,
    "leaky_relu": lambda node: node.attrs.get("slope") == 1,
}
"""When an op hands its operand on as it is."""
