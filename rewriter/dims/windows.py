"""Extents behind windows and resampling: conv, pools, transposed conv, Resize.

Invariant: the formulas are those of the operators' definitions for windows that fit their input. What runtimes round
differently (ceil_mode, auto_pad with strides on sizes that are open, fractional scales) is an opaque term of all
settings and the argument.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

from rewriter.dims.polynomials import floored, number, opaque
from rewriter.dims.sizes import Dims, Size, fixed
from rewriter.graph.view import Node

if TYPE_CHECKING:
    from rewriter.dims.engine import Pass

ONE = fixed(1)
EXACT = 1 << 16
"""Integer scales up to which float32 gives extents exactly, for images of up to 2^8 times that."""


def conv(of: Pass, node: Node) -> Sequence[Dims | None]:
    shape = of.dims_of(node.data[0])
    if shape is None:
        return ()
    channels, window = _kernel(of, node, len(shape) - 2)
    weight = node.consts.get("weight")
    made = channels if weight is None else fixed(weight.shape[0])
    return ((shape[0], made, *_spatial(of, node, shape[2:], window)),)


def pool(of: Pass, node: Node) -> Sequence[Dims | None]:
    shape = of.dims_of(node.data[0])
    if shape is None:
        return ()
    made: Dims = (*shape[:2], *_spatial(of, node, shape[2:], node.attrs.get("window")))
    return [made for _ in node.outputs]


def global_pool(of: Pass, node: Node) -> Sequence[Dims | None]:
    shape = of.dims_of(node.data[0])
    return () if shape is None else ((*shape[:2], *[ONE] * (len(shape) - 2)),)


def _kernel(of: Pass, node: Node, rank: int) -> tuple[Size, Sequence[int] | None]:
    """Output channels and window of a conv whose weight is computed: only what is fixed counts."""
    weight = node.consts.get("weight")
    if weight is not None:
        return fixed(weight.shape[0]), weight.shape[2:]
    operands = of.operands(node)
    shape = of.dims_of(operands[1]) if len(operands) > 1 else None
    if shape is None or len(shape) != rank + 2:
        return of.unknown(), None
    window = [size.expr.constant for size in shape[2:]]
    return shape[0], None if None in window else [n for n in window if n is not None]


def _spatial(of: Pass, node: Node, spatial: Dims, window: Sequence[int] | None) -> list[Size]:
    strides, dilations = node.attrs.get("strides"), node.attrs.get("dilations")
    rank = len(spatial)
    if window is None or strides is None or dilations is None or not len(window) == len(strides) == rank:
        return [of.unknown() for _ in spatial]
    pads, auto = node.attrs.get("pads"), of.attribute(node, "auto_pad")
    if pads is not None and not node.attrs.get("ceil"):
        return [_window(*each) for each in zip(spatial, window, strides, dilations, pads, strict=True)]
    if pads is None and auto not in ("SAME_UPPER", "SAME_LOWER"):
        return [of.unknown() for _ in spatial]
    known = [size.expr.constant for size in spatial]
    if pads is None and None not in known and max(dilations) == 1 and not node.attrs.get("ceil"):
        ends = [number(-(-n // stride)) for n, stride in zip(known, strides, strict=True) if n is not None]
        return [Size(end, size.uses) for end, size in zip(ends, spatial, strict=True)]
    settings = (node.op, "ceil" if node.attrs.get("ceil") else "floor", auto)
    return [
        _opaque((*settings, window[i], strides[i], dilations[i], None if pads is None else pads[i]), size)
        for i, size in enumerate(spatial)
    ]


def _window(size: Size, window: int, stride: int, dilation: int, pads: tuple[int, int]) -> Size:
    reach = dilation * (window - 1) + 1
    return Size(floored(size.expr + (sum(pads) - reach), stride) + 1, size.uses)


def _opaque(settings: tuple[Hashable, ...], size: Size) -> Size:
    return Size(opaque(settings, size.expr), size.uses)


def conv_transpose(of: Pass, node: Node) -> Sequence[Dims | None]:
    shape = of.dims_of(node.data[0])
    if shape is None:
        return ()
    weight, pads = node.consts.get("weight"), node.attrs.get("pads")
    channels = of.unknown() if weight is None else fixed(weight.shape[1] * node.attrs["groups"])
    spatial = shape[2:]
    if weight is None or pads is None or of.attribute(node, "output_shape") is not None:
        return ((shape[0], channels, *[of.unknown() for _ in spatial]),)
    settings = [node.attrs[key] for key in ("strides", "dilations", "output_padding")]
    each = zip(spatial, weight.shape[2:], *settings, pads, strict=True)
    return ((shape[0], channels, *[_transposed(*one) for one in each]),)


def _transposed(size: Size, window: int, stride: int, dilation: int, beyond: int, pads: tuple[int, int]) -> Size:
    reach = dilation * (window - 1) + 1
    return Size((size.expr - 1) * stride + (beyond + reach - sum(pads)), size.uses)


def resize(of: Pass, node: Node) -> Sequence[Dims | None]:
    operands = of.operands(node)
    shape = of.dims_of(operands[0])
    if shape is None:
        return ()
    unknown = tuple([of.unknown() for _ in shape])
    mode, policy = node.attrs.get("coordinate_transformation_mode"), node.attrs.get("keep_aspect_ratio_policy")
    if mode == "tf_crop_and_resize" or policy not in (None, "stretch"):
        return (unknown,)
    named: Sequence[int] = node.attrs.get("axes", range(len(shape)))
    axes = [axis % len(shape) for axis in named]
    found = list(shape)
    if len(operands) > 3 and operands[3] is not None:
        held = of.elements_of(operands[3])
        targets = None if held is None else held.items
        if targets is None or len(targets) != len(axes):
            return (unknown,)
        for axis, size in zip(axes, targets, strict=True):
            found[axis] = size
        return (tuple(found),)
    scales = _scales(of, node)
    if scales is None or len(scales) != len(axes):
        return (unknown,)
    for axis, scale in zip(axes, scales, strict=True):
        found[axis] = _scaled(shape[axis], scale)
    return (tuple(found),)


def _scales(of: Pass, node: Node) -> list[float] | None:
    """Scales: the third input from opset 11, the second before, an attribute before opset 9."""
    if "scales" in node.attrs:
        return list(node.attrs["scales"])
    operands = of.operands(node)
    value: Any = operands[-1] if len(operands) == 2 else operands[2] if len(operands) > 2 else None
    if value is None:
        return None
    if value.constant is not None:
        return [float(number) for number in value.constant.floats().reshape(-1)] if value.constant.size <= 16 else None
    held = of.ints_of(value)
    return None if held is None else [float(number) for number in held]


def _scaled(size: Size, scale: float) -> Size:
    if scale.is_integer() and 1 <= scale <= EXACT:
        return Size(size.expr * int(scale), size.uses)
    return _opaque(("resize", scale.hex()), size)
