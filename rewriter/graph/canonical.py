"""ONNX operators in canonical terms: one short rule per operator, each the operator's definition and nothing more.

Invariant: a rule never guesses. What it cannot read as the clean form of the canonical operator keeps that operator's
name and carries a `problem` in words, so that a pattern which wants the node can say why it stays as it is. Where
runtimes read an attribute differently (auto_pad with dilations or with ceil_mode), there is a problem as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeAlias, cast

import numpy as np
from onnx import TensorProto

from rewriter.errors import InputError
from rewriter.graph.constants import FLOATS, integers
from rewriter.graph.tensors import dtype_name, shown
from rewriter.graph.view import Constant, Value
from rewriter.graph.vocabulary import canonical_name

_WEIGHTS: Mapping[str, int] = {"weight": 1, "bias": 2}
_STATISTICS: Mapping[str, int] = {"scale": 1, "bias": 2, "mean": 3, "var": 4}
_NO_AXIS = "its weight has no spatial axis"

Attrs = Mapping[str, Any]
Ints: TypeAlias = "tuple[int, ...]"
Pads: TypeAlias = "tuple[tuple[int, int], ...]"


@dataclass(slots=True)
class Raw:
    """A node as the file has it: inputs by position, None where an optional input is absent."""

    op: str
    inputs: Sequence[Value | None]
    attrs: Attrs
    outputs: int  # that have a name
    extra_outputs: int  # beyond the first, that somebody reads
    opset: int

    def value(self, position: int) -> Value | None:
        return self.inputs[position] if position < len(self.inputs) else None

    def const(self, position: int) -> Constant | None:
        value = self.value(position)
        return None if value is None else value.constant


@dataclass(slots=True)
class Canonical:
    op: str
    data: tuple[Value, ...]
    consts: Mapping[str, Constant] = field(default_factory=dict[str, Constant])
    attrs: Attrs = field(default_factory=dict[str, Any])
    problem: str | None = None


class _Malformed(Exception):
    """An attribute or input that no version of the operator has; `canonical` turns it into a problem."""


def canonical(raw: Raw) -> Canonical:
    """The canonical reading of a node of the default domain."""
    rule = RULES.get(raw.op)
    if rule is None:
        return plain(raw)
    try:
        return rule(raw)
    except _Malformed as error:
        return Canonical(canonical_name(raw.op), _present(raw), problem=str(error))


def plain(raw: Raw, op: str | None = None, problem: str | None = None) -> Canonical:
    """A node without a rule of its own: its name in the vocabulary, all inputs as data, attributes as stored."""
    return Canonical(op or canonical_name(raw.op), _present(raw), {}, raw.attrs, problem)


def _present(raw: Raw) -> tuple[Value, ...]:
    return tuple([v for v in raw.inputs if v is not None])


def _others(raw: Raw, roles: Mapping[str, int], consts: Mapping[str, Constant]) -> tuple[Value, ...]:
    """The inputs that are not in `consts`: what carries activations, and parameters that are not constant."""
    known = {position for role, position in roles.items() if role in consts}
    return tuple([v for i, v in enumerate(raw.inputs) if v is not None and i not in known])


def _first(raw: Raw) -> tuple[Value]:
    value = raw.value(0)
    if value is None:
        raise _Malformed("its input is missing")
    return (value,)


# --- attributes ----------------------------------------------------------------------------------------------------


def _ints(raw: Raw, name: str) -> Ints | None:
    found: Any = raw.attrs.get(name)
    if found is None:
        return None
    if type(found) is tuple:
        numbers = cast("tuple[Any, ...]", found)
        if not numbers or type(numbers[0]) is int:  # a list of protobuf has elements of one type
            return numbers
    raise _Malformed(f"its attribute {name} is not a list of whole numbers")


def _int(raw: Raw, name: str, default: int) -> int:
    found = raw.attrs.get(name, default)
    if isinstance(found, int):
        return found
    raise _Malformed(f"its attribute {name} is not a whole number")


def _float(raw: Raw, name: str, default: float) -> float:
    """A float attribute as runtimes have it, in float32."""
    found = raw.attrs.get(name)
    if found is None:
        return float(np.float32(default))
    if isinstance(found, float):  # protobuf gives the stored float32
        return found
    raise _Malformed(f"its attribute {name} is not a number")


# --- windows -------------------------------------------------------------------------------------------------------


def _conv(raw: Raw) -> Canonical:
    data = _first(raw)
    consts, problem = _parameters(raw, _WEIGHTS, needed=1)
    groups = _int(raw, "group", 1)
    weight, kernel = consts.get("weight"), _ints(raw, "kernel_shape")
    window = kernel if weight is None else weight.shape[2:]
    if not window or (weight is not None and len(weight.shape) < 3):
        strides = _ints(raw, "strides")
        attrs = {"groups": groups} if strides is None else {"groups": groups, "strides": strides}
        return Canonical("conv", _others(raw, _WEIGHTS, consts), consts, attrs, problem or _NO_AXIS)
    attrs, unclear = _window(raw, window)
    attrs["groups"] = groups
    if kernel is not None and kernel != window:
        problem = problem or "its kernel_shape does not agree with its weight"
    if weight is not None and (groups < 1 or weight.shape[0] % groups):
        problem = problem or "the number of groups does not divide its output channels"
    problem = problem or unclear
    return Canonical("conv", _others(raw, _WEIGHTS, consts) if problem else data, consts, attrs, problem)


def _conv_transpose(raw: Raw) -> Canonical:
    """Its weight is stored as (in, out / groups, *window). Pads that follow from a size are no fixed map."""
    data = _first(raw)
    consts, problem = _parameters(raw, _WEIGHTS, needed=1)
    weight, groups = consts.get("weight"), _int(raw, "group", 1)
    window = _ints(raw, "kernel_shape") if weight is None else weight.shape[2:]
    if not window or (weight is not None and len(weight.shape) < 3):
        rest = _others(raw, _WEIGHTS, consts)
        return Canonical("conv_transpose", rest, consts, {"groups": groups}, problem or _NO_AXIS)
    attrs, unclear = _window(raw, window)
    beyond = _ints(raw, "output_padding")
    attrs |= {"groups": groups, "output_padding": (0,) * len(window) if beyond is None else beyond}
    if raw.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or "output_shape" in raw.attrs:
        attrs.pop("pads", None)
        problem = problem or "its padding follows from the size of its output"
    if weight is not None and (groups < 1 or weight.shape[0] % groups):
        problem = problem or "the number of groups does not divide its input channels"
    problem = problem or unclear
    return Canonical("conv_transpose", _others(raw, _WEIGHTS, consts) if problem else data, consts, attrs, problem)


def _pool(raw: Raw) -> Canonical:
    data, op = _first(raw), canonical_name(raw.op)
    window = _ints(raw, "kernel_shape")
    if not window:
        raise _Malformed("it has no kernel_shape")
    attrs, problem = _window(raw, window)
    attrs |= {"window": window, "ceil": bool(_int(raw, "ceil_mode", 0))}
    if op == "avg_pool":
        attrs["include_pad"] = bool(_int(raw, "count_include_pad", 0))
    elif raw.extra_outputs:
        problem = "its indices are read"
    if attrs["ceil"] and raw.attrs.get("auto_pad", "NOTSET") != "NOTSET":
        problem = problem or "runtimes read auto_pad with ceil_mode differently"
    return Canonical(op, _present(raw) if problem else data, {}, attrs, problem)


def _window(raw: Raw, window: tuple[int, ...]) -> tuple[dict[str, Any], str | None]:
    """Strides, dilations and pads of a conv or pool, and what is unclear about them; unclear pads are left out."""
    auto = raw.attrs.get("auto_pad", "NOTSET")
    if not isinstance(auto, str):
        raise _Malformed("its attribute auto_pad is not a text")
    strides, dilations, pads, unclear = _walk(
        window, _ints(raw, "strides"), _ints(raw, "dilations"), _ints(raw, "pads"), auto
    )
    attrs: dict[str, Any] = {"strides": strides, "dilations": dilations}
    if pads is not None:
        attrs["pads"] = pads
    return attrs, unclear


@lru_cache(maxsize=1024)
def _walk(
    window: Ints, strides: Ints | None, dilations: Ints | None, flat: Ints | None, auto: str
) -> tuple[Ints, Ints, Pads | None, str | None]:
    """How a window goes over a value: strides, dilations, pads, and why one of them is not clear."""
    ones = (1,) * len(window)
    strides, dilations = ones if strides is None else strides, ones if dilations is None else dilations
    if not len(strides) == len(dilations) == len(window) or min(*strides, *dilations, *window) < 1:
        return strides, dilations, None, "its strides, dilations and window do not fit together"
    pads = _pads(window, strides, dilations, flat, auto)
    return (strides, dilations, None, pads) if isinstance(pads, str) else (strides, dilations, pads, None)


def _pads(window: Ints, strides: Ints, dilations: Ints, flat: Ints | None, auto: str) -> Pads | str:
    """Begin and end padding per axis, with auto_pad resolved where that needs no size (ONNX operator Conv)."""
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
    if max(strides) > 1:
        return f"auto_pad={auto} with a stride depends on the size of the image"
    if max(dilations) > 1:
        return f"runtimes read auto_pad={auto} with dilations differently"
    more_behind = auto == "SAME_UPPER"
    return tuple(((k - 1) // 2, k // 2) if more_behind else (k // 2, (k - 1) // 2) for k in window)


# --- norms ---------------------------------------------------------------------------------------------------------


def _batch_norm(raw: Raw) -> Canonical:
    data = _first(raw)
    consts, problem = _parameters(raw, _STATISTICS, needed=4)
    if _trains(raw):
        problem = "it is in training mode: its statistics come from the batch, so it is no fixed map"
    elif raw.extra_outputs:
        problem = "its running statistics are read"
    elif raw.opset < 9 and _int(raw, "spatial", 1) != 1:
        problem = "spatial=0 normalises each pixel by itself"
    elif problem is None and (len({c.shape for c in consts.values()}) > 1 or len(consts["scale"].shape) != 1):
        problem = "its parameters are not one number per channel each"
    attrs = {"eps": _float(raw, "epsilon", 1e-5)}
    return Canonical("bn", _others(raw, _STATISTICS, consts) if problem else data, consts, attrs, problem)


def _with_constants(**roles: int) -> Callable[[Raw], Canonical]:
    """An operator that is read as it is, but for its constants, which go by role."""

    def rule(raw: Raw) -> Canonical:
        consts, _ = _parameters(raw, roles, needed=0)
        return Canonical(canonical_name(raw.op), _others(raw, roles, consts), consts, raw.attrs)

    return rule


def _trains(raw: Raw) -> bool:
    """Training mode: asked for until opset 6 and from 14 on; between, the outputs that are listed tell, read or not."""
    if raw.opset < 7:
        return not _int(raw, "is_test", 0)
    return raw.outputs > 1 if raw.opset < 14 else bool(_int(raw, "training_mode", 0))


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
    """A Sum of one is that value, and one of a value and a constant is a shift, as the Add of the same would be."""
    data = _present(raw)
    if not data or len(data) != len(raw.inputs):
        raise _Malformed("one of its inputs is missing")
    if len(data) == 2 and raw.opset >= 8:  # before, operands did not broadcast
        return Canonical("sum", data) if _one_constant(raw) is None else _add(raw)
    return Canonical("identity" if len(data) == 1 else "sum", data)


def _one_constant(raw: Raw) -> tuple[Value, Constant, bool] | None:
    """The data operand, the constant one, and whether the constant stands first; None unless exactly one is constant.

    Only floats: on whole numbers the canonical operators would promise what the algebra does not do.
    """
    a, b = raw.value(0), raw.value(1)
    if len(raw.inputs) != 2 or a is None or b is None:
        raise _Malformed("it has not two inputs")
    first = a.constant is not None
    if first == (b.constant is not None) or raw.opset < 7:
        return None
    value, constant = (b, a.constant) if first else (a, b.constant)
    if constant is None or constant.dtype not in FLOATS:
        return None
    return value, constant, first


def _legacy_broadcast(raw: Raw) -> str | None:
    return "before opset 7 its operands broadcast by attributes" if raw.opset < 7 else None


def _mapped(constant: Constant, function: Callable[..., Any]) -> Constant:
    """The constant of an equal map, in float64 and not rounded: x / c is x * (1 / c) only so."""

    def load() -> Any:
        with np.errstate(all="ignore"):  # 1/0 becomes an infinity, which the algebra refuses by name
            return function(constant.floats())

    return Constant(constant.name, constant.shape, constant.dtype, load, constant.stored)


# --- what does nothing at inference ----------------------------------------------------------------------------------


def _dropout(raw: Raw) -> Canonical:
    data, problem = _first(raw), None
    if raw.extra_outputs:
        problem = "its mask is read"
    elif raw.opset < 7:
        problem = None if _int(raw, "is_test", 0) else "it is in training mode"
    elif raw.opset >= 12 and raw.value(2) is not None:
        training = raw.const(2)
        if training is None or training.size != 1 or bool(training.load().reshape(())):
            problem = "it may be in training mode"
    return Canonical("dropout", _present(raw) if problem else data, problem=problem)


def _cast(raw: Raw) -> Canonical:
    data, to = _first(raw), cast_type(raw.attrs)
    problem = None if to is not None else "the element type it gives is not known"
    return Canonical("cast", data, attrs={"to": to, "from": data[0].dtype}, problem=problem)


def cast_type(attrs: Attrs) -> str | None:
    """The type that a Cast gives: a number, or before opset 6 its name; None where it is none we know."""
    to = attrs.get("to")
    if isinstance(to, str):
        to = dict(TensorProto.DataType.items()).get(to)
    return element_type(to) if isinstance(to, int) else None


def element_type(number: int) -> str | None:
    """The name of an element type; None where it is none we know."""
    try:
        return dtype_name(number)
    except InputError:
        return None


def _cast_like(raw: Raw) -> Canonical:
    data, like = _first(raw), raw.value(1)
    if like is None:
        raise _Malformed("it has not two inputs")
    return Canonical("cast", data, attrs={"to": like.dtype, "from": data[0].dtype})


def _leaky_relu(raw: Raw) -> Canonical:
    return Canonical("leaky_relu", _first(raw), attrs={"slope": _float(raw, "alpha", 0.01)})


def _swish(raw: Raw) -> Canonical:
    """x * sigmoid(alpha * x), which is silu where alpha is one."""
    alpha = _float(raw, "alpha", 1.0)
    return Canonical("silu", _first(raw), problem=None if alpha == 1 else f"its alpha is {alpha:g}, not 1")


def _pad(raw: Raw) -> Canonical:
    """`amount` is the largest pad on any side of any axis in absolute value; 0 does nothing whatever the mode."""
    data = _first(raw)
    amounts = _ints(raw, "pads" if raw.opset > 1 else "paddings") if raw.opset < 11 else integers(raw.const(1))
    if amounts is None:
        stored = raw.opset < 11 or raw.const(1) is not None
        return plain(raw, "pad", "it has no list of pads" if stored else "its pads are known only at run time")
    attrs = {"amount": max((abs(a) for a in amounts), default=0), "mode": raw.attrs.get("mode", "constant")}
    return Canonical("pad", data, attrs=attrs)


def _concat(raw: Raw) -> Canonical:
    """`axis` had a default before opset 4."""
    axis = _int(raw, "axis", 1) if raw.opset < 4 or "axis" in raw.attrs else None
    if axis is None:
        return plain(raw, problem="it has no axis")
    return Canonical("concat", _present(raw), attrs={"axis": axis})


def _parameters(raw: Raw, roles: Mapping[str, int], needed: int) -> tuple[dict[str, Constant], str | None]:
    """The constants by role, and a problem where one of the first `needed` is absent or one present is no constant."""
    consts: dict[str, Constant] = {}
    problem = None
    for count, (role, position) in enumerate(roles.items()):
        value = raw.value(position)
        if value is None:
            if count < needed:
                problem = problem or f"its {role} is missing"
        elif value.constant is not None:
            consts[role] = value.constant
        else:
            why = "is also an input of the model and can be overridden" if value.is_input else "is not a constant"
            problem = problem or f"its {role} {why}"
    return consts, problem


RULES: Mapping[str, Callable[[Raw], Canonical]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "AveragePool": _pool,
    "MaxPool": _pool,
    "LpPool": _pool,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _with_constants(scale=1, bias=2),
    "InstanceNormalization": _with_constants(scale=1, bias=2),
    "GroupNormalization": _with_constants(scale=1, bias=2),
    "RMSNormalization": _with_constants(scale=1),
    "PRelu": _with_constants(slope=1),
    "DeformConv": _with_constants(weight=1, bias=3),
    "LSTM": _with_constants(weight=1, recurrence=2, bias=3, peephole=7),
    "GRU": _with_constants(weight=1, recurrence=2, bias=3),
    "RNN": _with_constants(weight=1, recurrence=2, bias=3),
    "Add": _add,
    "Sub": _sub,
    "Mul": _mul,
    "Div": _div,
    "Sum": _sum,
    "Dropout": _dropout,
    "Cast": _cast,
    "CastLike": _cast_like,
    "LeakyRelu": _leaky_relu,
    "Swish": _swish,
    "Pad": _pad,
    "Concat": _concat,
}
