"""Operators that move elements and compute none: pads, slices, joins, and views of the same elements.

Invariant: what decides where elements go is an attribute (`starts`, `axes`, `perm`, …) or a constant by role, and only
what carries activations is left in `data`. Where it is known at run time only, it stays an input and its attribute is
absent; the node then has a problem, but for Reshape and Expand, whose target sizes may still tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rewriter.graph.constants import FLOATS, integers
from rewriter.graph.raw import (
    Canonical,
    Ints,
    Raw,
    first,
    number,
    parameters,
    plain,
    present,
    whole_number,
    whole_numbers,
)
from rewriter.graph.view import Array, Constant, Value
from rewriter.graph.vocabulary import canonical_name

MODES = ("constant", "reflect", "edge", "wrap")


def pad(raw: Raw) -> Canonical:
    """`pads` are (begin, end) for every axis of the tensor, negative ones cut; `amount` is the largest of them all.

    An amount of 0 does nothing whatever the mode.
    """
    data = first(raw)
    flat = whole_numbers(raw, "pads" if raw.opset > 1 else "paddings") if raw.opset < 11 else integers(raw.const(1))
    if flat is None:
        stored = raw.opset < 11 or raw.const(1) is not None
        return plain(raw, "pad", "it has no list of pads" if stored else "its pads are known only at run time")
    mode = raw.attrs.get("mode", "constant")
    attrs: dict[str, Any] = {"amount": max((abs(a) for a in flat), default=0), "mode": mode}
    if attrs["amount"] == 0:
        return Canonical("pad", data, attrs=attrs)
    pads, problem = _pads(raw, flat)
    value = _fill(raw)
    problem = problem or ("its mode is not defined" if mode not in MODES else None)
    if pads is not None:
        attrs["pads"] = pads
    if value is not None:
        attrs["value"] = value
    elif mode == "constant":
        problem = problem or "what it pads with is not a constant number"
    return Canonical("pad", present(raw) if problem else data, {}, attrs, problem)


def _pads(raw: Raw, flat: Ints) -> tuple[tuple[tuple[int, int], ...] | None, str | None]:
    """The pads of every axis: those of the axes it names where it names some (opset 18), which takes the rank."""
    half = len(flat) // 2
    pairs = tuple(zip(flat[:half], flat[half:], strict=False))
    if len(flat) % 2:
        return None, "its list of pads is odd"
    if raw.opset < 18 or raw.value(3) is None:
        return pairs, None
    shape, axes = first(raw)[0].shape, integers(raw.const(3))
    if axes is None or len(axes) != half:
        return None, "the axes that it pads are not known"
    if shape is None:
        return None, "the rank of what it pads is not known"
    placed = _placed(axes, len(shape))
    if placed is None:
        return None, "the axes that it pads are out of range or repeated"
    named = dict(zip(placed, pairs, strict=True))
    return tuple([named.get(axis, (0, 0)) for axis in range(len(shape))]), None


def _fill(raw: Raw) -> float | None:
    """What is padded with; None where that is no constant number."""
    if raw.opset < 11:
        return number(raw, "value", 0.0)
    if raw.value(2) is None:
        return 0.0
    constant = raw.const(2)
    if constant is None or constant.size != 1 or constant.dtype not in FLOATS:
        return None
    return float(constant.floats().reshape(()))


OPEN = (1 << 31) - 1
"""An end of a slice from here on is that of whatever it cuts: no axis is longer."""


def slice_(raw: Raw) -> Canonical:
    """`starts`, `ends`, `axes` and `steps`, as Python has them; one of everything is the value itself."""
    if raw.opset < 10:
        starts, ends, axes = (whole_numbers(raw, name) for name in ("starts", "ends", "axes"))
        steps = None
    else:
        lists = [integers(raw.const(place)) for place in (1, 2, 3, 4)]
        if any(found is None and raw.value(place) is not None for place, found in enumerate(lists, 1)):
            return plain(raw, problem="where it cuts is known only at run time")
        starts, ends, axes, steps = lists
    if starts is None or ends is None or len(starts) != len(ends):
        return plain(raw, problem="its starts and ends do not fit together")
    axes = tuple(range(len(starts))) if axes is None else axes
    steps = (1,) * len(starts) if steps is None else steps
    if not len(axes) == len(steps) == len(starts) or 0 in steps:
        return plain(raw, problem="its starts, axes and steps do not fit together")
    if any(
        step < 0 and not _starts_inside(raw, start, axis) for start, axis, step in zip(starts, axes, steps, strict=True)
    ):
        return plain(raw, problem="it may go backwards from before the first element")
    if all(cut == (0, 1) for cut in zip(starts, steps, strict=True)) and all(end >= OPEN for end in ends):
        return Canonical("identity", first(raw))
    return Canonical("slice", first(raw), {}, {"starts": starts, "ends": ends, "axes": axes, "steps": steps})


def _starts_inside(raw: Raw, start: int, axis: int) -> bool:
    """Whether a start is no further in front than the first element: ONNX takes that one then, Python takes none."""
    extent = raw.size[axis] if -len(raw.size) <= axis < len(raw.size) else None
    return start >= (-1 if extent is None else -max(extent, 1))


def split(raw: Raw) -> Canonical:
    """`axis`, and the extents of the parts as `sizes`; equal parts have none until the whole is known."""
    data, attrs = first(raw), {"axis": whole_number(raw, "axis", 0)}
    sizes = whole_numbers(raw, "split") if raw.opset < 13 else integers(raw.const(1))
    if sizes is None and len(raw.inputs) > 1 and raw.value(1) is not None:
        return plain(raw, problem="the extents of its parts are known only at run time")
    known: dict[str, Any] = attrs if sizes is None else attrs | {"sizes": sizes}
    return Canonical("split", data, {}, known)


def split_to_sequence(raw: Raw) -> Canonical:
    """A split, its parts in one sequence: `sizes`, or `each` for parts of one extent, the last of what is left."""
    data, attrs = first(raw), {"axis": whole_number(raw, "axis", 0)}
    given = raw.const(1)
    sizes = integers(given) or _whole(given)
    if sizes is None or given is None:
        stored = raw.value(1) is None
        return plain(
            raw, problem="it drops an axis" if stored else "the extents of its parts are known only at run time"
        )
    return Canonical(
        canonical_name(raw.op), data, {}, attrs | ({"sizes": sizes} if given.shape else {"each": sizes[0]})
    )


def sequence_at(raw: Raw) -> Canonical:
    """One value of a sequence, by a constant `index`."""
    data, index = first(raw), _whole(raw.const(1))
    if index is None:
        return plain(raw, problem="its index is known only at run time")
    return Canonical(canonical_name(raw.op), data, {}, {"index": index[0]})


def _whole(constant: Constant | None) -> Ints | None:
    """A constant that is one whole number, without axes."""
    if constant is None or constant.shape or constant.dtype not in ("int32", "int64"):
        return None
    return (int(constant.load()),)


def concat(raw: Raw) -> Canonical:
    """`axis` had a default before opset 4."""
    axis = whole_number(raw, "axis", 1) if raw.opset < 4 or "axis" in raw.attrs else None
    if axis is None:
        return plain(raw, problem="it has no axis")
    return Canonical("concat", present(raw), attrs={"axis": axis})


def reshape(raw: Raw) -> Canonical:
    """`shape` where it is constant: -1 is what is left, and 0 (but with `allowzero`) what was there."""
    data = first(raw)
    shape = whole_numbers(raw, "shape") if raw.opset < 5 else integers(raw.const(1))
    keep = {"allowzero": bool(whole_number(raw, "allowzero", 0))}
    if shape is None:
        return Canonical("reshape", present(raw), {}, keep)
    return Canonical("reshape", data, {}, {"shape": shape, **keep})


def expand(raw: Raw) -> Canonical:
    data, shape = first(raw), integers(raw.const(1))
    return Canonical("expand", present(raw)) if shape is None else Canonical("expand", data, {}, {"shape": shape})


def transpose(raw: Raw) -> Canonical:
    """`perm`; without one the axes are reversed, and how many there are may not be known."""
    data, perm = first(raw), whole_numbers(raw, "perm")
    rank = None if data[0].shape is None else len(data[0].shape)
    if perm is None and rank is not None:
        perm = tuple(range(rank))[::-1]
    if perm is None:
        return Canonical("transpose", data)
    if sorted(perm) != list(range(len(perm))):
        return plain(raw, problem="its perm is no order of axes")
    return Canonical("transpose", data, {}, {"perm": perm})


def axes(raw: Raw) -> Canonical:
    """Squeeze and Unsqueeze: `axes` where they are named."""
    data, op = first(raw), canonical_name(raw.op)
    if raw.opset < 13:
        named = whole_numbers(raw, "axes")
    elif raw.value(1) is None:
        named = None
    else:
        named = integers(raw.const(1))
        if named is None:
            return plain(raw, problem="its axes are known only at run time")
    return Canonical(op, data, {}, {} if named is None else {"axes": named})


def gather(raw: Raw) -> Canonical:
    """`axis`, and the places as the constant `indices`."""
    axis = whole_number(raw, "axis", 0)
    return _chosen(raw, {"indices": 1}, axis=axis)


def scatter_nd(raw: Raw) -> Canonical:
    """`indices` say where and `updates` what, where they are constant; "none" is plain writing."""
    reduction = raw.attrs.get("reduction", "none")
    return _chosen(raw, {"indices": 1, "updates": 2}, reduction=reduction)


def scatter_elements(raw: Raw) -> Canonical:
    """A ScatterND of which every index is a whole place: that of the update, but on one axis."""
    data, axis = first(raw), whole_number(raw, "axis", 0)
    indices, updates = raw.const(1), raw.const(2)
    rank = 0 if indices is None else len(indices.shape)
    if indices is None or updates is None or indices.shape != updates.shape or not -rank <= axis < rank:
        return plain(raw)

    def places() -> Array:
        found = np.indices(indices.shape)
        found[axis % rank] = indices.load()
        return np.moveaxis(found, 0, -1)

    index = replace(indices, shape=(*indices.shape, rank), dtype="int64", load=places)
    attrs = {"reduction": raw.attrs.get("reduction", "none")}
    return Canonical("scatter_nd", data, {"indices": index, "updates": updates}, attrs)


def _chosen(raw: Raw, roles: Mapping[str, int], **attrs: Any) -> Canonical:
    """A value by position and constants by role; an input that is no constant stays among the data."""
    first(raw)
    consts, _ = parameters(raw, roles, needed=0)
    return Canonical(canonical_name(raw.op), _without(raw, roles, consts), consts, attrs)


def where(raw: Raw) -> Canonical:
    """The constant `condition` chooses between two values, either of which may be a constant."""
    roles = {"condition": 0}
    consts, _ = parameters(raw, roles, needed=0)
    return Canonical("where", _without(raw, roles, consts), consts)


def _without(raw: Raw, roles: Mapping[str, int], consts: Mapping[str, Constant]) -> tuple[Value, ...]:
    read = {roles[role] for role in consts}
    return tuple([value for place, value in enumerate(raw.inputs) if value is not None and place not in read])


def _placed(named: Sequence[int], rank: int) -> list[int] | None:
    """Axes counted from the front; None where one is out of range or named twice."""
    found = [axis % rank for axis in named if -rank <= axis < rank]
    return found if len(set(found)) == len(named) else None
