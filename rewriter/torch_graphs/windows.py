"""ATen operators that slide a window: convolutions and pools, with lists as long as the window has axes.

Invariant: only batches are read. Torch takes an image without one too, whose axes no canonical operator has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rewriter.graph.raw import Attrs, Canonical
from rewriter.graph.view import Value
from rewriter.torch_graphs.calls import Call, Ints
from rewriter.torch_graphs.onnx_terms import Reading, onnx


def _conv(call: Call) -> Reading | None:
    x, weight, bias = [call.value(name) for name in ("input", "weight", "bias")]
    rank = _rank(x, weight)
    if rank is None:
        return None
    if call.args.get("transposed"):
        return _transposed(call, x, weight, bias, rank)
    strides, dilations = call.ints("stride", rank), call.ints("dilation", rank)
    window = _shape(weight)[2:]
    pads = _pads(call.args.get("padding", 0), call.ints("padding", rank), window, dilations)
    if strides is None or dilations is None or pads is None:
        return None
    return onnx("Conv", x, weight, bias, strides=strides, dilations=dilations, pads=pads, group=call.args["groups"])


def _conv_transpose(call: Call) -> Reading | None:
    x, weight, bias = [call.value(name) for name in ("input", "weight", "bias")]
    rank = _rank(x, weight)
    return None if rank is None else _transposed(call, x, weight, bias, rank)


def _transposed(call: Call, x: Value | None, weight: Value | None, bias: Value | None, rank: int) -> Reading | None:
    names = ("stride", "padding", "output_padding", "dilation")
    strides, padding, beyond, dilations = [call.ints(name, rank) for name in names]
    if strides is None or padding is None or beyond is None or dilations is None:
        return None
    return onnx(
        "ConvTranspose", x, weight, bias,
        strides=strides, dilations=dilations, pads=padding * 2, output_padding=beyond, group=call.args["groups"],
    )  # fmt: skip


def _pads(given: object, numbers: Ints | None, window: tuple[int, ...], dilations: Ints | None) -> Ints | None:
    """All begins, then all ends; `same` pads one more behind where the number is odd."""
    if not isinstance(given, str):
        return None if numbers is None else numbers * 2
    if given == "valid":
        return (0,) * 2 * len(window)
    if given != "same" or dilations is None:
        return None
    totals = [dilation * (k - 1) for k, dilation in zip(window, dilations, strict=True)]
    return (*[total // 2 for total in totals], *[total - total // 2 for total in totals])


def _pool(op: str) -> Callable[[Call], Reading | None]:
    def rule(call: Call) -> Reading | None:
        x, rank = call.value("self"), int(call.op[call.op.index("pool") + 4])
        if x is None or x.shape is None or len(x.shape) != rank + 2 or call.args.get("divisor_override") is not None:
            return None
        window = call.ints("kernel_size", rank)
        strides = call.ints("stride", rank) if call.args.get("stride") else window
        padding = call.ints("padding", rank)
        dilations = call.ints("dilation", rank) if "dilation" in call.args else (1,) * rank
        if window is None or strides is None or padding is None or dilations is None:
            return None
        attrs: Attrs = {
            "kernel_shape": window, "strides": strides, "pads": padding * 2, "dilations": dilations,
            "ceil_mode": int(bool(call.args.get("ceil_mode"))),
            "count_include_pad": int(bool(call.args.get("count_include_pad", True))),
        }  # fmt: skip
        return onnx(op, x, **attrs)

    return rule


def _adaptive(op: str) -> Callable[[Call], Reading | None]:
    def rule(call: Call) -> Reading | None:
        rank = int(call.op[call.op.index("pool") + 4])
        whole = call.ints("output_size", rank) == (1,) * rank
        return onnx(op, call.value("self")) if whole else None

    return rule


def _rank(x: Value | None, weight: Value | None) -> int | None:
    """The number of axes that the window has, where the input is a batch of images."""
    rank = len(_shape(weight)) - 2
    return rank if x is not None and x.shape is not None and len(x.shape) == rank + 2 and rank > 0 else None


def _shape(weight: Value | None) -> tuple[int, ...]:
    shape = () if weight is None or weight.shape is None else weight.shape
    return tuple([extent for extent in shape if isinstance(extent, int)])


def _resize(call: Call) -> Reading:
    names = ("self", "input")
    return Canonical("resize", tuple([value for name in names if (value := call.value(name)) is not None]))


RULES: Mapping[str, Callable[[Call], Reading | None]] = {
    **dict.fromkeys(["conv1d", "conv2d", "conv3d", "convolution"], _conv),
    **dict.fromkeys(["conv_transpose1d", "conv_transpose2d", "conv_transpose3d"], _conv_transpose),
    **dict.fromkeys(["avg_pool1d", "avg_pool2d", "avg_pool3d"], _pool("AveragePool")),
    **dict.fromkeys(["max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices"], _pool("MaxPool")),
    **dict.fromkeys(["adaptive_avg_pool1d", "adaptive_avg_pool2d"], _adaptive("GlobalAveragePool")),
    **dict.fromkeys(["upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d"], _resize),
}
