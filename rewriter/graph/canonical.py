"""ONNX operators in canonical terms: one short rule per operator, each the operator's definition and nothing more.

Invariant: a rule never guesses. What it cannot read as the clean form of the canonical operator keeps that operator's
name and carries a `problem` in words, so that a pattern which wants the node can say why it stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rewriter.graph.constants import FLOATS
from rewriter.graph.vocabulary import canonical_name
from rewriter.graph.view import Constant, Value

Attrs = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Raw:
    """A node as the file has it: inputs by position, None where an optional input is absent."""

    op: str
    inputs: Sequence[Value | None]
    attrs: Attrs
    extra_outputs: int  # outputs beyond the first that somebody reads
    opset: int

    def const(self, position: int) -> Constant | None:
        value = self.inputs[position] if position < len(self.inputs) else None
        return None if value is None else value.constant

    def has(self, position: int) -> bool:
        return position < len(self.inputs) and self.inputs[position] is not None


@dataclass(frozen=True, slots=True)
class Canonical:
    op: str
    data: tuple[Value, ...]
    consts: Mapping[str, Constant] = field(default_factory=dict[str, Constant])
    attrs: Attrs = field(default_factory=dict[str, Any])
    problem: str | None = None


def canonical(raw: Raw) -> Canonical:
    """The canonical reading of a node of the default domain."""
    rule = RULES.get(raw.op)
    if rule is not None:
        return rule(raw)
    return plain(raw)


def plain(raw: Raw, op: str | None = None, problem: str | None = None) -> Canonical:
    """A node without a rule of its own: its name in the vocabulary, all its inputs as data, its attributes as stored."""
    return Canonical(op or canonical_name(raw.op), tuple(v for v in raw.inputs if v is not None), {}, raw.attrs, problem)


# --- convolution ---------------------------------------------------------------------------------------------------


def _conv(raw: Raw) -> Canonical:
    consts, problem = _parameters(raw, {"weight": 1, "bias": 2})
    weight = consts.get("weight")
    if weight is None or len(weight.shape) < 3:
        return Canonical("conv", _data(raw, problem, 1), consts, raw.attrs, problem or "its weight has no spatial axis")
    window, rank = weight.shape[2:], len(weight.shape) - 2
    strides = tuple(raw.attrs.get("strides", (1,) * rank))
    dilations = tuple(raw.attrs.get("dilations", (1,) * rank))
    groups = int(raw.attrs.get("group", 1))
    pads, padding = _pads(raw, window, strides, dilations)
    attrs = {"strides": strides, "pads": pads, "dilations": dilations, "groups": groups}
    if tuple(raw.attrs.get("kernel_shape", window)) != window:
        problem = problem or "kernel_shape does not agree with the weight"
    if groups < 1 or weight.shape[0] % groups:
        problem = problem or "the number of groups does not divide its output channels"
    if len(strides) != rank or len(dilations) != rank or min(*strides, *dilations, *window) < 1:
        problem = problem or "strides, dilations or kernel do not fit its weight"
    return Canonical("conv", _data(raw, problem, 1), consts, attrs, problem or padding)


def _pads(
    raw: Raw, window: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[tuple[tuple[int, int], ...], str | None]:
    """Begin and end padding per axis, with auto_pad resolved where that needs no size (ONNX operator Conv)."""
    rank = len(window)
    auto = raw.attrs.get("auto_pad", "NOTSET")
    flat = tuple(raw.attrs.get("pads", ())) or (0,) * 2 * rank
    if auto == "NOTSET":
        pads = tuple(zip(flat[:rank], flat[rank:], strict=False))
        return pads, None if len(flat) == 2 * rank and min(flat) >= 0 else "its pads are negative or too few"
    if "pads" in raw.attrs and any(flat):
        return ((0, 0),) * rank, "it has both pads and auto_pad"
    if auto == "VALID":
        return ((0, 0),) * rank, None
    if auto not in ("SAME_UPPER", "SAME_LOWER") or any(stride != 1 for stride in strides):
        return ((0, 0),) * rank, f"auto_pad={auto} with a stride depends on the size of the image"
    totals = [dilation * (k - 1) for k, dilation in zip(window, dilations, strict=True)]
    halves = [(total // 2, total - total // 2) for total in totals]
    return tuple(half if auto == "SAME_UPPER" else half[::-1] for half in halves), None


# --- norms ---------------------------------------------------------------------------------------------------------


def _batch_norm(raw: Raw) -> Canonical:
    consts, problem = _parameters(raw, {"scale": 1, "bias": 2, "mean": 3, "var": 4})
    eps = float(np.float32(raw.attrs.get("epsilon", 1e-5)))
    if raw.attrs.get("training_mode", 0) or (raw.opset < 7 and not raw.attrs.get("is_test", 0)):
        problem = "it is in training mode: its statistics come from the batch, so it is no fixed map"
    elif raw.extra_outputs:
        problem = "its running statistics are read"
    elif raw.attrs.get("spatial", 1) != 1:
        problem = "spatial=0 normalises each pixel by itself"
    return Canonical("bn", _data(raw, problem, 1), consts, {"eps": eps}, problem)


# --- arithmetic ----------------------------------------------------------------------------------------------------


def _add(raw: Raw) -> Canonical:
    found = _one_constant(raw)
    if found is None:
        return plain(raw, "add", _legacy_broadcast(raw))
    value, constant, _ = found
    return Canonical("shift", (value,), {"term": constant}, {"sign": 1})


def _sub(raw: Raw) -> Canonical:
    found = _one_constant(raw)
    if found is None:
        return plain(raw, "sub", _legacy_broadcast(raw))
    value, constant, constant_first = found
    if constant_first:
        return Canonical("shift", (value,), {"term": constant}, {"sign": -1})
    return Canonical("shift", (value,), {"term": _mapped(constant, np.negative)}, {"sign": 1})


def _mul(raw: Raw) -> Canonical:
    found = _one_constant(raw)
    if found is None:
        return plain(raw, "mul", _legacy_broadcast(raw))
    return Canonical("scale", (found[0],), {"factor": found[1]})


def _div(raw: Raw) -> Canonical:
    found = _one_constant(raw)
    if found is None or found[2]:  # constant / x is not affine
        return plain(raw, "div", _legacy_broadcast(raw))
    return Canonical("scale", (found[0],), {"factor": _mapped(found[1], np.reciprocal)})


def _sum(raw: Raw) -> Canonical:
    data = tuple(v for v in raw.inputs if v is not None)
    return Canonical("identity" if len(data) == 1 else "sum", data)


def _one_constant(raw: Raw) -> tuple[Value, Constant, bool] | None:
    """The data operand, the constant one, and whether the constant stands first; None unless exactly one is constant."""
    if len(raw.inputs) != 2 or _legacy_broadcast(raw) is not None:
        return None
    a, b = raw.inputs
    if a is None or b is None or (a.constant is None) == (b.constant is None):
        return None
    value, constant, first = (b, a.constant, True) if a.constant is not None else (a, b.constant, False)
    if constant is None or constant.dtype not in FLOATS:
        return None
    return value, constant, first


def _legacy_broadcast(raw: Raw) -> str | None:
    return "before opset 7 its operands broadcast by attributes" if raw.opset < 7 else None


def _mapped(constant: Constant, function: Callable[..., Any]) -> Constant:
    def load() -> Any:
        with np.errstate(all="ignore"):  # 1/0 becomes an infinity, which the algebra refuses by name
            return function(constant.floats())

    return Constant(constant.name, constant.shape, constant.dtype, load, constant.stored)


# --- what does nothing at inference ----------------------------------------------------------------------------------


def _dropout(raw: Raw) -> Canonical:
    problem = None
    if raw.has(2):
        training = raw.const(2)
        if training is None or bool(np.any(training.load())):
            problem = "it may be in training mode"
    elif raw.opset < 7 and not raw.attrs.get("is_test", 0):
        problem = "it is in training mode"
    if raw.extra_outputs:
        problem = "its mask is read"
    return Canonical("dropout", _data(raw, problem, 1), problem=problem)


def _cast(raw: Raw) -> Canonical:
    source = raw.inputs[0]
    attrs = {"to": raw.attrs.get("to"), "from": None if source is None else source.dtype}
    return Canonical("cast", _data(raw, None, 1), attrs=attrs)


def _leaky_relu(raw: Raw) -> Canonical:
    return Canonical("leaky_relu", _data(raw, None, 1), attrs={"slope": float(np.float32(raw.attrs.get("alpha", 0.01)))})


def _pad(raw: Raw) -> Canonical:
    """`amount` is the largest pad on any side of any axis in absolute value; 0 does nothing whatever the mode."""
    amounts = raw.attrs.get("pads", raw.attrs.get("paddings"))
    if raw.has(1):
        constant = raw.const(1)
        if constant is None:
            return plain(raw, "pad", "its pads are known only at run time")
        amounts = constant.load().tolist()
    if amounts is None:
        return plain(raw, "pad", "it has no pads")
    attrs = {"amount": max((abs(int(a)) for a in amounts), default=0), "mode": raw.attrs.get("mode", "constant")}
    return Canonical("pad", _data(raw, None, 1), attrs=attrs)


def _data(raw: Raw, problem: str | None, carried: int) -> tuple[Value, ...]:
    """The inputs that carry activations: the first ones, or all of them where the node is not in its clean form."""
    inputs = raw.inputs if problem else raw.inputs[:carried]
    return tuple(v for v in inputs if v is not None)


def _parameters(raw: Raw, roles: Mapping[str, int]) -> tuple[dict[str, Constant], str | None]:
    """The constants by role, and a problem where an input that is present is not a constant."""
    consts: dict[str, Constant] = {}
    for role, position in roles.items():
        if not raw.has(position):
            continue
        constant = raw.const(position)
        if constant is None:
            value = raw.inputs[position]
            overridable = value is not None and value.is_input
            why = "is also an input of the model and can be overridden" if overridable else "is not a constant"
            return consts, f"its {role} {why}"
        consts[role] = constant
    return consts, None


RULES: Mapping[str, Callable[[Raw], Canonical]] = {
    "Conv": _conv,
    "BatchNormalization": _batch_norm,
    "Add": _add,
    "Sub": _sub,
    "Mul": _mul,
    "Div": _div,
    "Sum": _sum,
    "Dropout": _dropout,
    "Cast": _cast,
    "LeakyRelu": _leaky_relu,
    "Pad": _pad,
}
