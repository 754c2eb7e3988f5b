"""Modules of torch.nn as calls of ATen operators, their tensors as arguments.

Invariant: only what torch.nn itself defines is read: a subclass with a forward of its own, a module with hooks, or one
called with more than its input is something else. A tensor is read through parametrizations, as the module reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Args: TypeAlias = "dict[str, Any]"
Maker: TypeAlias = "Callable[[Any], Args]"


def call_of_module(module: Any) -> tuple[str, Args] | None:
    """The operator that a module calls with its input under the name that comes first, and all its other arguments."""
    from torch import nn

    kinds: list[Any] = [*type(module).__mro__]
    for kind in kinds:
        found = MODULES.get(kind.__name__)
        if found is None or getattr(nn, kind.__name__, None) is not kind:
            continue
        mine = kinds[0]
        same = all(getattr(mine, name, None) is getattr(kind, name, None) for name in ("forward", "_conv_forward"))
        op, maker = found
        args = maker(module) if same else None
        return None if args is None or NOTHING in args else (op, args)
    return None


def hooked(module: Any) -> bool:
    """Whether something else runs when the module is called."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(bool(getattr(module, name, None)) for name in names)


NOTHING = "?"
"""Among arguments: the module is set in a way that no operator has."""


def _conv(module: Any) -> Args:
    args: Args = {name: getattr(module, name) for name in ("weight", "bias", "stride", "padding", "dilation", "groups")}
    return args if module.padding_mode == "zeros" else {**args, NOTHING: None}


def _conv_transpose(module: Any) -> Args:
    return {**_conv(module), "output_padding": module.output_padding}


def _batch_norm(module: Any) -> Args:
    names = ("weight", "bias", "running_mean", "running_var", "eps")
    trains = module.training or module.running_mean is None or module.running_var is None
    return {**{name: getattr(module, name) for name in names}, "training": trains}


def _taken(*names: str, **fixed: Any) -> Maker:
    """Attributes that are arguments of the same name."""
    return lambda module: {**{name: getattr(module, name) for name in names}, **fixed}


def _dropout(module: Any) -> Args:
    return {"p": module.p, "train": module.training}


def _max_pool(module: Any) -> Args:
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    args: Args = {name: getattr(module, name) for name in names}
    return {**args, NOTHING: None} if module.return_indices else args


def _flatten(module: Any) -> Args:
    return {"start_dim": module.start_dim, "end_dim": module.end_dim}


def _padding(module: Any) -> Args:
    return {"pad": list(module.padding), "value": getattr(module, "value", 0.0)}


_AVERAGE = _taken("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
_AVERAGE_2D = _taken("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")

MODULES: Mapping[str, tuple[str, Maker]] = {
    **{f"Conv{n}d": (f"conv{n}d", _conv) for n in (1, 2, 3)},
    **{f"ConvTranspose{n}d": (f"conv_transpose{n}d", _conv_transpose) for n in (1, 2, 3)},
    **{f"BatchNorm{n}d": ("batch_norm", _batch_norm) for n in (1, 2, 3)},
    "SyncBatchNorm": ("batch_norm", _batch_norm),
    "Linear": ("linear", _taken("weight", "bias")),
    "Identity": ("clone", _taken()),
    **{name: ("dropout", _dropout) for name in ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d")},
    "ReLU": ("relu", _taken()),
    "ReLU6": ("relu6", _taken()),
    "SiLU": ("silu", _taken()),
    "Sigmoid": ("sigmoid", _taken()),
    "Tanh": ("tanh", _taken()),
    "GELU": ("gelu", _taken("approximate")),
    "Mish": ("mish", _taken()),
    "Hardswish": ("hardswish", _taken()),
    "Hardsigmoid": ("hardsigmoid", _taken()),
    "Hardtanh": ("hardtanh", _taken("min_val", "max_val")),
    "LeakyReLU": ("leaky_relu", _taken("negative_slope")),
    "Softmax": ("softmax", _taken("dim")),
    "LayerNorm": ("layer_norm", _taken("weight", "bias", "eps")),
    "GroupNorm": ("group_norm", _taken("weight", "bias", "eps")),
    "AvgPool1d": ("avg_pool1d", _AVERAGE),
    "AvgPool2d": ("avg_pool2d", _AVERAGE_2D),
    "AvgPool3d": ("avg_pool3d", _AVERAGE_2D),
    **{f"MaxPool{n}d": (f"max_pool{n}d", _max_pool) for n in (1, 2, 3)},
    "AdaptiveAvgPool1d": ("adaptive_avg_pool1d", _taken("output_size")),
    "AdaptiveAvgPool2d": ("adaptive_avg_pool2d", _taken("output_size")),
    "Flatten": ("flatten", _flatten),
    **{f"ZeroPad{n}d": ("constant_pad_nd", _padding) for n in (1, 2, 3)},
    **{f"ConstantPad{n}d": ("constant_pad_nd", _padding) for n in (1, 2, 3)},
    "Upsample": ("upsample_nearest2d", _taken()),
}
"""By the name of the class: the operator, and its arguments but for the input."""
