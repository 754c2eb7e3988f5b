"""Operators that slide a window over a value: convolutions and pools, with strides, dilations and pads per axis.

Invariant: `pads` are ((begin, end), ...) per spatial axis and are absent where they follow from a size that is not
known, or where runtimes read the attributes differently; the node then has a problem.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeAlias

from rewriter.graph.raw import (
    Canonical,
    Extents,
    Ints,
    Malformed,
    Raw,
    first,
    others,
    parameters,
    present,
    whole_number,
    whole_numbers,
)
from rewriter.graph.tensors import shown
from rewriter.graph.vocabulary import canonical_name

Pads: TypeAlias = "tuple[tuple[int, int], ...]"

_WEIGHTS: Mapping[str, int] = {"weight": 1, "bias": 2}
_NO_AXIS = "its weight has no spatial axis"


def conv(raw: Raw) -> Canonical:
    data = first(raw)
    consts, problem = parameters(raw, _WEIGHTS, needed=1)
    groups = whole_number(raw, "group", 1)
    weight, kernel = consts.get("weight"), whole_numbers(raw, "kernel_shape")
    window = kernel if weight is None else weight.shape[2:]
    if not window or (weight is not None and len(weight.shape) < 3):
        strides = whole_numbers(raw, "strides")
        attrs = {"groups": groups} if strides is None else {"groups": groups, "strides": strides}
        return Canonical("conv", others(raw, _WEIGHTS, consts), consts, attrs, problem or _NO_AXIS)
    attrs, unclear = _window(raw, window)
    attrs["groups"] = groups
    if kernel is not None and kernel != window:
        problem = problem or "its kernel_shape does not agree with its weight"
    if weight is not None and (groups < 1 or weight.shape[0] % groups):
        problem = problem or "the number of groups does not divide its output channels"
    problem = problem or unclear
    return Canonical("conv", others(raw, _WEIGHTS, consts) if problem else data, consts, attrs, problem)


def conv_transpose(raw: Raw) -> Canonical:
    """Its weight is stored as (in, out / groups, *window). Pads that follow from a size are no fixed map."""
    data = first(raw)
    consts, problem = parameters(raw, _WEIGHTS, needed=1)
    weight, groups = consts.get("weight"), whole_number(raw, "group", 1)
    window = whole_numbers(raw, "kernel_shape") if weight is None else weight.shape[2:]
    if not window or (weight is not None and len(weight.shape) < 3):
        rest = others(raw, _WEIGHTS, consts)
        return Canonical("conv_transpose", rest, consts, {"groups": groups}, problem or _NO_AXIS)
    attrs, unclear = _window(raw, window)
    beyond = whole_numbers(raw, "output_padding")
    attrs |= {"groups": groups, "output_padding": (0,) * len(window) if beyond is None else beyond}
    if raw.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or "output_shape" in raw.attrs:
        attrs.pop("pads", None)
        problem = problem or "its padding follows from the size of its output"
    if weight is not None and (groups < 1 or weight.shape[0] % groups):
        problem = problem or "the number of groups does not divide its input channels"
    problem = problem or unclear
    return Canonical("conv_transpose", others(raw, _WEIGHTS, consts) if problem else data, consts, attrs, problem)


def pool(raw: Raw) -> Canonical:
    data, op = first(raw), canonical_name(raw.op)
    window = whole_numbers(raw, "kernel_shape")
    if not window:
        raise Malformed("it has no kernel_shape")
    attrs, problem = _window(raw, window)
    attrs |= {"window": window, "ceil": bool(whole_number(raw, "ceil_mode", 0))}
    if op == "avg_pool":
        attrs["include_pad"] = bool(whole_number(raw, "count_include_pad", 0))
    elif raw.extra_outputs:
        problem = "its indices are read"
    if attrs["ceil"] and raw.attrs.get("auto_pad", "NOTSET") != "NOTSET":
        problem = problem or "runtimes read auto_pad with ceil_mode differently"
    return Canonical(op, present(raw) if problem else data, {}, attrs, problem)


def _window(raw: Raw, window: tuple[int, ...]) -> tuple[dict[str, Any], str | None]:
    """Strides, dilations and pads of a conv or pool, and what is unclear about them; unclear pads are left out."""
    auto = raw.attrs.get("auto_pad", "NOTSET")
    if not isinstance(auto, str):
        raise Malformed("its attribute auto_pad is not a text")
    listed = [whole_numbers(raw, name) for name in ("strides", "dilations", "pads")]
    strides, dilations, pads, unclear = _walk(window, *listed, auto, raw.size[2:])
    attrs: dict[str, Any] = {"strides": strides, "dilations": dilations}
    if pads is not None:
        attrs["pads"] = pads
    return attrs, unclear


@lru_cache(maxsize=1024)
def _walk(
    window: Ints, strides: Ints | None, dilations: Ints | None, flat: Ints | None, auto: str, size: Extents
) -> tuple[Ints, Ints, Pads | None, str | None]:
    """How a window goes over a value: strides, dilations, pads, and why one of them is not clear."""
    ones = (1,) * len(window)
    strides, dilations = ones if strides is None else strides, ones if dilations is None else dilations
    if not len(strides) == len(dilations) == len(window) or min(*strides, *dilations, *window) < 1:
        return strides, dilations, None, "its strides, dilations and window do not fit together"
    pads = _pads(window, strides, dilations, flat, auto, size)
    return (strides, dilations, None, pads) if isinstance(pads, str) else (strides, dilations, pads, None)


def _pads(window: Ints, strides: Ints, dilations: Ints, flat: Ints | None, auto: str, size: Extents) -> Pads | str:
    """Begin and end padding per axis, with auto_pad resolved where that needs no size or one that is known.

    Source: ONNX, operator Conv: ceil(size / stride) windows, and an odd element behind (SAME_UPPER) or before.
    """
    rank = len(window)
    if auto == "NOTSET":
        if flat is None:
            return ((0, 0),) * rank
        if len(flat) != 2 * rank or min(flat) < 0:
            return "its pads are negative, too few or too many"
        return tuple(zip(flat[:rank], flat[rank:], strict=True))
    if flat is not None and any(flat):
        return "it has both pads and auto_pad"
    if auto == "VALID":
        return ((0, 0),) * rank
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        return f"auto_pad={shown(auto)} is not defined"
    known = [n for n in size if n is not None]
    if max(strides) > 1 and len(known) != rank:
        return f"auto_pad={auto} with a stride depends on the size of the image"
    if max(dilations) > 1:
        return f"runtimes read auto_pad={auto} with dilations differently"
    sums = [k - 1 for k in window]
    if max(strides) > 1:
        sums = [max((-(-n // s) - 1) * s + k - n, 0) for n, s, k in zip(known, strides, window, strict=True)]
    more_behind = auto == "SAME_UPPER"
    return tuple((n // 2, n - n // 2) if more_behind else (n - n // 2, n // 2) for n in sums)
