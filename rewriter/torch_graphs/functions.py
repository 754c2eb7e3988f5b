"""Functions and methods of torch as calls of ATen operators, their arguments by the names that ATen has for them.

Invariant: a function counts as torch's only if it is the very object that torch has under that name; a function of the
user's is never taken for one that is called alike.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from rewriter.torch_graphs.calls import FxNode, items

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_CONV_DEFAULTS = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_NORM = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps")
_NORM_OF_F = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_AVERAGE = ("self", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
_MAXIMUM = ("self", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")

NAMES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _CONV),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _TRANSPOSED),
    "batch_norm": _NORM,
    "linear": ("input", "weight", "bias"),
    **dict.fromkeys(("matmul", "bmm", "mm"), ("self", "other")),
    "addmm": ("self", "mat1", "mat2"),
    **dict.fromkeys(("add", "sub", "rsub", "mul", "div"), ("self", "other")),
    **dict.fromkeys(("neg", "sigmoid", "tanh", "exp", "log", "sqrt", "abs", "erf", "clone", "contiguous"), ("self",)),
    "detach": ("self",),
    **dict.fromkeys(("relu", "silu", "mish", "hardswish", "hardsigmoid", "relu6"), ("self", "inplace")),
    "gelu": ("self", "approximate"),
    "leaky_relu": ("self", "negative_slope", "inplace"),
    "hardtanh": ("self", "min_val", "max_val", "inplace"),
    "clamp": ("self", "min", "max"),
    **dict.fromkeys(("dropout",), ("input", "p", "train", "inplace")),
    "softmax": ("self", "dim"),
    **dict.fromkeys(("cat", "concat"), ("tensors", "dim")),
    "chunk": ("self", "chunks", "dim"),
    "split": ("self", "split_size", "dim"),
    "flatten": ("self", "start_dim", "end_dim"),
    "unsqueeze": ("self", "dim"),
    "squeeze": ("self", "dim"),
    "transpose": ("self", "dim0", "dim1"),
    "t": ("self",),
    "narrow": ("self", "dim", "start", "length"),
    "select": ("self", "dim", "index"),
    "index_select": ("self", "dim", "index"),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _AVERAGE),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d"), _MAXIMUM),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d"), ("self", "output_size")),
    "mean": ("self", "dim", "keepdim"),
    "sum": ("self", "dim", "keepdim"),
    "pad": ("self", "pad", "mode", "value"),
    "interpolate": ("self",),
    "reshape": ("self", "shape"),
    "view": ("self", "size"),
    "permute": ("self", "dims"),
    "expand": ("self", "size"),
    "to": ("self",),
    "where": ("condition", "self", "other"),
    "getitem": ("self", "index"),
}
"""Operators that are read in functions and methods, with their arguments by position."""

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    **{f"conv{n}d": _CONV_DEFAULTS for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": {**_CONV_DEFAULTS, "output_padding": 0} for n in (1, 2, 3)},
    "batch_norm": {"training": False, "eps": 1e-5, "weight": None, "bias": None},
    "dropout": {"train": True},
    **{f"avg_pool{n}d": {"stride": None, "padding": 0} for n in (1, 2, 3)},
    **{f"max_pool{n}d": {"stride": None, "padding": 0, "dilation": 1} for n in (1, 2, 3)},
}

ALSO: Mapping[str, str] = {
    "truediv": "div", "divide": "div", "true_divide": "div", "multiply": "mul", "subtract": "sub", "concatenate": "cat",
    "iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div", "negative": "neg", "clip": "clamp",
    "swapaxes": "transpose", "matmul": "matmul", "float": "to", "half": "to", "double": "to", "bfloat16": "to",
    "interpolate": "upsample_nearest2d",
}  # fmt: skip
LISTS = {"reshape": "shape", "view": "size", "permute": "dims", "expand": "size"}
"""Methods that take a list, or its items one by one."""

RENAMED = {"input": "self", "axis": "dim", "training": "train"}


def call_of_function(node: FxNode) -> tuple[str, dict[str, Any]] | None:
    """The operator of a function or method of torch that takes tensors, with its arguments."""
    name = method_or_function(node)
    if name is None:
        return None
    op = ALSO.get(name, name)
    names: Sequence[str] | None = NAMES.get(name) or NAMES.get(op)
    if names is None:
        return None
    args: dict[str, Any] = dict(DEFAULTS.get(op, {}))
    given = list(node.args)
    if name == "batch_norm" and _is_of_f(node):
        names = _NORM_OF_F
    if op in LISTS and given:
        rest = items(given[1]) if len(given) == 2 else given[1:]
        given = [given[0], rest] if rest else given[:1]
    if len(given) > len(names):
        return None
    args.update(zip(names, given, strict=False))
    for key, value in node.kwargs.items():
        args[key if key in names else RENAMED.get(f"{key}", f"{key}")] = value
    if set(args) - {*names, *DEFAULTS.get(op, {}), "alpha", "rounding_mode", "dtype", "out"} - MEANINGLESS:
        return None
    return None if args.get("out") is not None or args.get("return_indices") else (op, args)


MEANINGLESS = frozenset(
    {"non_blocking", "copy", "memory_format", "device", "momentum", "_stacklevel"}
    | {"size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias"}  # of interpolate
)
"""Arguments that say nothing of values, or of values that no reading tells."""


def method_or_function(node: FxNode) -> str | None:
    """The name under which torch itself has what a node calls, without the underscore of an in-place method."""
    if node.op == "call_method":
        return str(node.target).rstrip("_")
    if node.op != "call_function":
        return None
    import torch
    import torch.nn.functional as functional

    name = getattr(node.target, "__name__", "")
    known = any(getattr(space, name, None) is node.target for space in (functional, torch, operator))
    return name.rstrip("_") if known else None


def _is_of_f(node: FxNode) -> bool:
    import torch.nn.functional as functional

    return node.target is functional.batch_norm
