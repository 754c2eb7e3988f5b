"""Channels that are the places of small maps: a reshape cuts them into [sets, height, width], another joins them again.

The one idea: on a map whose sizes are fixed, a convolution is a matrix over all of its places, so what is done to maps
that channels were cut into is done to the channels (RepMLPNet, arXiv:2112.11081: a convolution becomes a
part of the layer over all places). Invariant: such a value holds the channels in their own order, one map behind the
other, and has no other axis than rows before them; whatever is not understood here is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np

from rewriter.algebra.affine import Affine
from rewriter.algebra.constants import name_of, normalisation, per_channel, tensor, vector
from rewriter.algebra.layout import CHANNELS
from rewriter.algebra.rows import Array
from rewriter.algebra.terms import Cut, Space, Term
from rewriter.errors import Reason, Refusal
from rewriter.graph.view import Node

MOST_ELEMENTS = 1 << 22
"""Of the matrix that a convolution becomes."""


def cut(node: Node, term: Term, inner: Affine, space: Space) -> Term | None:
    """Rows of channels as rows of maps, by a reshape to [*rows, *extents]; None where it is anything else."""
    found = _split(node, inner.outputs)
    if found is None or len(found[1]) < 2 or term.channels != 1:
        return None
    if any(space.size_of(inner, name) != 1 for axis in term.layout[2:] for name in axis):
        return None
    return _as_maps(node, term, Cut(*found, term.layout))


def apply(node: Node, term: Term, inner: Affine, at: Cut, space: Space) -> Term | Refusal:
    """What an operator makes of maps that channels were cut into."""
    if node.op in ("conv", "bn") and at.rows[1:] == (1,):  # one map a row, whose axis of sets stands with the rows
        at = replace(at, rows=at.rows[:1], extents=(1, *at.extents))
    match node.op:
        case "reshape":
            return _reshape(node, term, inner, at)
        case "conv" if len(at.rows) == 1:
            return _conv(node, term, inner, at, space)
        case "bn" if len(at.rows) == 1:
            norm = normalisation(node, at.extents[0])
            if isinstance(norm, Refusal):
                return norm
            factor, shift = (np.repeat(each, at.places) for each in norm)
            return term.of(inner.scaled(factor).shifted(shift))
        case "scale":
            factor = per_channel(node, "factor", at.extents[0], len(at.rows), len(term.layout))
            return factor if isinstance(factor, Refusal) else term.of(inner.scaled(np.repeat(factor, at.places)))
        case "shift":
            shift = per_channel(node, "term", at.extents[0], len(at.rows), len(term.layout))
            if isinstance(shift, Refusal):
                return shift
            signed = inner.negated() if node.attrs["sign"] < 0 else inner
            return term.of(signed.shifted(np.repeat(shift, at.places)))
        case _:
            return Refusal(Reason.SHAPE, name_of(node), f"{node.op} reads maps that channels were cut into")


def _target(node: Node) -> tuple[int, ...]:
    return tuple(node.attrs.get("shape") or ())


def _split(node: Node, channels: int) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The axes that a reshape makes, in two: the last ones, which hold the channels of one row, and those before.

    The first extent follows from the others, so it is -1 where it can be: equal axes are named alike.
    """
    shape = _target(node)
    for at in range(len(shape) - 1, 0, -1):
        if min(shape[at:]) < 1 or prod(shape[at:]) > channels:
            return None
        if prod(shape[at:]) == channels:
            first, *others = shape[:at]
            rows = (-1, *others) if min(others, default=1) > 0 else (first, *others)
            return (rows, tuple(shape[at:])) if all(n > 0 or n == -1 for n in (first, *others)) else None
    return None


def _as_maps(node: Node, term: Term, at: Cut) -> Term:
    names = tuple([(CHANNELS - 1 - i,) for i in range(len(at.rows) + len(at.extents))])
    return replace(term, layout=names, cut=at, views=None if term.views is None else (*term.views, node))


def _reshape(node: Node, term: Term, inner: Affine, at: Cut) -> Term | Refusal:
    """Rows otherwise, or the maps as channels again: [rows, channels, 1, …]."""
    shape = _target(node)
    found = _split(node, inner.outputs)
    if found is not None and found[1] == at.extents:
        return _as_maps(node, term, replace(at, rows=found[0]))
    joined = len(shape) == len(at.whole) and (shape[0] == -1 or shape[0] > 0) and shape[1] == inner.outputs
    if not joined or any(n != 1 for n in shape[2:]):
        return Refusal(Reason.SHAPE, name_of(node), "cuts through the axes of what it reads, or they are not known")
    return replace(term, layout=at.whole, cut=None, views=None if term.views is None else (*term.views, node))


def _conv(node: Node, term: Term, inner: Affine, at: Cut, space: Space) -> Term | Refusal:
    kernel, name = tensor(node, "weight"), name_of(node)
    if isinstance(kernel, Refusal):
        return kernel
    sets, size, groups = at.extents[0], at.extents[1:], int(node.attrs["groups"])
    if kernel.ndim != len(size) + 2 or groups < 1 or len(kernel) % groups or kernel.shape[1] * groups != sets:
        return Refusal(Reason.SHAPE, name, f"its weight has shape {list(kernel.shape)} for maps {list(at.extents)}")
    steps = zip(size, kernel.shape[2:], *(node.attrs[key] for key in ("strides", "pads", "dilations")), strict=True)
    given = [(n + sum(pads) - d * (k - 1) - 1) // s + 1 for n, k, s, pads, d in steps]
    if min(given) < 1 or any(pad < 0 for ends in node.attrs["pads"] for pad in ends):
        return Refusal(Reason.SHAPE, name, "its window does not fit the map")
    found = prod(given)
    if len(kernel) * kernel.shape[1] * at.places * found > MOST_ELEMENTS:
        return Refusal(Reason.LIMIT, name, f"as a matrix over all places it has over {MOST_ELEMENTS:,} elements")
    bias = vector(node, "bias", len(kernel)) if "bias" in node.consts else None
    if isinstance(bias, Refusal):
        return bias
    ones = (1,) * inner.rank
    matrix = _matrix(node, kernel, size, given).reshape(len(kernel) * found, kernel.shape[1] * at.places, *ones)
    outer = Affine.conv(
        matrix, None if bias is None else np.repeat(bias, found),
        stride=ones, pads=((0, 0),) * inner.rank, dilation=ones, groups=groups,
    )  # fmt: skip
    made = inner.then(outer, at=name, size=space.size)
    if isinstance(made, Refusal):
        return made
    rows, extents = (at.rows, (len(kernel), *given)) if len(kernel) > 1 else ((*at.rows, 1), tuple(given))
    return replace(term, map=made, cut=replace(at, rows=rows, extents=extents), views=None)


def _matrix(node: Node, kernel: Array, size: Sequence[int], given: Sequence[int]) -> Array:
    """[out, place given, in, place read]: tap t joins place p to place stride * p + dilation * t - pad."""
    strides, pads, dilations = (node.attrs[key] for key in ("strides", "pads", "dilations"))
    at = np.indices(given).reshape(len(given), -1)
    made = np.zeros((len(kernel), at.shape[1], kernel.shape[1], prod(size)))
    for tap in np.ndindex(*kernel.shape[2:]):
        steps = zip(at, strides, pads, dilations, tap, strict=True)
        read = np.array([p * s + d * t - begin for p, s, (begin, _), d, t in steps])
        inside = np.all((read >= 0) & (read < np.array(size)[:, None]), axis=0)
        to = np.ravel_multi_index(tuple(read[:, inside]), tuple(size))
        made[:, np.flatnonzero(inside), :, to] += kernel[..., *tap]
    return made
