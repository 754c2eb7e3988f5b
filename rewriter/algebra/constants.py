"""Reading the constants of a node: as finite float64 arrays, and as one number per channel.

Invariant: a constant is per channel only if, aligned from the right at the rank of the value it meets, every axis but
the channel axis is 1 and the channel axis is 1 or C; it then never changes the shape of that value. So beside an image
[C] is the last spatial axis and [C, 1] is height by width, whatever C is (ONNX and numpy broadcasting rules).
"""

from __future__ import annotations

import numpy as np

from rewriter.algebra.affine import Array
from rewriter.errors import Reason, Refusal
from rewriter.graph.view import Node

FLOATS = ("float16", "bfloat16", "float32", "float64")
"""The element types that fold."""


def name_of(node: Node) -> str:
    """What a user finds in the file."""
    return node.name or node.output.name


def tensor(node: Node, role: str) -> Array | Refusal:
    """The constant in a role, in float64; it must be there and finite."""
    constant = node.consts.get(role)
    if constant is None:
        return Refusal(Reason.VALUE, name_of(node), f"its {role} is not a constant")
    values = constant.floats()
    if not np.isfinite(values).all():
        return Refusal(Reason.VALUE, name_of(node), f"its {role} ({constant.name}) holds values that are not finite")
    return values


def vector(node: Node, role: str, channels: int) -> Array | Refusal:
    """A constant that must hold exactly one number per channel."""
    values = tensor(node, role)
    if isinstance(values, np.ndarray) and values.shape != (channels,):
        found = list(values.shape)
        return Refusal(Reason.SHAPE, name_of(node), f"its {role} has shape {found} where [{channels}] is needed")
    return values


def per_channel(node: Node, role: str, channels: int, axis: int | None, rank: int) -> Array | Refusal:
    """A broadcast operand as one number per channel of a value with `rank` axes, the channels on `axis`.

    One number for all fits whatever the axes are.
    """
    values = tensor(node, role)
    if isinstance(values, Refusal):
        return values
    aligned = (1,) * (rank - values.ndim) + values.shape
    others = [n for i, n in enumerate(aligned) if i != axis]
    if len(aligned) == rank and all(n == 1 for n in others) and values.size in (1, channels):
        return np.broadcast_to(values.reshape(-1), (channels,))
    found = list(values.shape)
    return Refusal(Reason.SHAPE, name_of(node), f"its {role} has shape {found}, not one number per {channels} channels")


def normalisation(node: Node, channels: int) -> tuple[Array, Array] | Refusal:
    """A batch norm in inference form as y = factor * x + term (Ioffe and Szegedy, arXiv:1502.03167, section 3.1)."""
    read: list[Array] = []
    for role in ("scale", "bias", "mean", "var"):
        values = vector(node, role, channels)
        if isinstance(values, Refusal):
            return values
        read.append(values)
    scale, bias, mean, var = read
    eps = float(node.attrs["eps"])
    if (var < 0).any():
        return Refusal(Reason.VALUE, name_of(node), f"its variance is negative ({var.min():g})")
    if not np.isfinite(eps) or (var + eps <= 0).any():
        return Refusal(Reason.VALUE, name_of(node), f"variance + eps is not positive (eps = {eps:g})")
    factor = scale / np.sqrt(var + eps)
    return factor, bias - mean * factor
