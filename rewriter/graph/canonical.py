"""ONNX operators in canonical terms: one short rule per operator, each the operator's definition and nothing more.

Invariant: a rule never guesses. What it cannot read as the clean form of the canonical operator keeps that operator's
name and carries a `problem` in words, so that a pattern which wants the node can say why it stays as it is. Where
runtimes read an attribute differently (auto_pad with dilations or with ceil_mode), there is a problem as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from onnx import TensorProto

from rewriter.errors import InputError
from rewriter.graph import products, rearranging
from rewriter.graph.constants import FLOATS
from rewriter.graph.raw import (
    Attrs,
    Canonical,
    Malformed,
    Raw,
    first,
    number,
    others,
    parameters,
    plain,
    present,
    whole_number,
)
from rewriter.graph.tensors import dtype_name
from rewriter.graph.view import Constant, Value
from rewriter.graph.vocabulary import canonical_name
from rewriter.graph.windows import conv, conv_transpose, pool

_STATISTICS: Mapping[str, int] = {"scale": 1, "bias": 2, "mean": 3, "var": 4}


def canonical(raw: Raw) -> Canonical:
    """The canonical reading of a node of the default domain."""
    rule = RULES.get(raw.op)
    if rule is None:
        return plain(raw)
    try:
        return rule(raw)
    except Malformed as error:
        return Canonical(canonical_name(raw.op), present(raw), problem=str(error))


# --- norms ---------------------------------------------------------------------------------------------------------


def _batch_norm(raw: Raw) -> Canonical:
    data = first(raw)
    consts, problem = parameters(raw, _STATISTICS, needed=4)
    if _trains(raw):
        problem = "it is in training mode: its statistics come from the batch, so it is no fixed map"
    elif raw.extra_outputs:
        problem = "its running statistics are read"
    elif raw.opset < 9 and whole_number(raw, "spatial", 1) != 1:
        problem = "spatial=0 normalises each pixel by itself"
    elif problem is None and (len({c.shape for c in consts.values()}) > 1 or len(consts["scale"].shape) != 1):
        problem = "its parameters are not one number per channel each"
    attrs = {"eps": number(raw, "epsilon", 1e-5)}
    return Canonical("bn", others(raw, _STATISTICS, consts) if problem else data, consts, attrs, problem)


def _with_constants(**roles: int) -> Callable[[Raw], Canonical]:
    """An operator that is read as it is, but for its constants, which go by role."""

    def rule(raw: Raw) -> Canonical:
        consts, _ = parameters(raw, roles, needed=0)
        return Canonical(canonical_name(raw.op), others(raw, roles, consts), consts, raw.attrs)

    return rule


def _trains(raw: Raw) -> bool:
    """Training mode: asked for until opset 6 and from 14 on; between, the outputs that are listed tell, read or not."""
    if raw.opset < 7:
        return not whole_number(raw, "is_test", 0)
    return raw.outputs > 1 if raw.opset < 14 else bool(whole_number(raw, "training_mode", 0))


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
    data = present(raw)
    if not data or len(data) != len(raw.inputs):
        raise Malformed("one of its inputs is missing")
    if len(data) == 2 and raw.opset >= 8:  # before, operands did not broadcast
        return Canonical("sum", data) if _one_constant(raw) is None else _add(raw)
    return Canonical("identity" if len(data) == 1 else "sum", data)


def _one_constant(raw: Raw) -> tuple[Value, Constant, bool] | None:
    """The data operand, the constant one, and whether the constant stands first; None unless exactly one is constant.

    Only floats: on whole numbers the canonical operators would promise what the algebra does not do.
    """
    a, b = raw.value(0), raw.value(1)
    if len(raw.inputs) != 2 or a is None or b is None:
        raise Malformed("it has not two inputs")
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
    data, problem = first(raw), None
    if raw.extra_outputs:
        problem = "its mask is read"
    elif raw.opset < 7:
        problem = None if whole_number(raw, "is_test", 0) else "it is in training mode"
    elif raw.opset >= 12 and raw.value(2) is not None:
        training = raw.const(2)
        if training is None or training.size != 1 or bool(training.load().reshape(())):
            problem = "it may be in training mode"
    return Canonical("dropout", present(raw) if problem else data, problem=problem)


def _cast(raw: Raw) -> Canonical:
    data, to = first(raw), cast_type(raw.attrs)
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
    data, like = first(raw), raw.value(1)
    if like is None:
        raise Malformed("it has not two inputs")
    return Canonical("cast", data, attrs={"to": like.dtype, "from": data[0].dtype})


def _leaky_relu(raw: Raw) -> Canonical:
    return Canonical("leaky_relu", first(raw), attrs={"slope": number(raw, "alpha", 0.01)})


def _swish(raw: Raw) -> Canonical:
    """x * sigmoid(alpha * x), which is silu where alpha is one."""
    alpha = number(raw, "alpha", 1.0)
    return Canonical("silu", first(raw), problem=None if alpha == 1 else f"its alpha is {alpha:g}, not 1")


RULES: Mapping[str, Callable[[Raw], Canonical]] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "AveragePool": pool,
    "MaxPool": pool,
    "LpPool": pool,
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
    "Gemm": products.gemm,
    "MatMul": products.matmul,
    "Pad": rearranging.pad,
    "Slice": rearranging.slice_,
    "Split": rearranging.split,
    "SplitToSequence": rearranging.split_to_sequence,
    "SequenceAt": rearranging.sequence_at,
    "Concat": rearranging.concat,
    "Reshape": rearranging.reshape,
    "Expand": rearranging.expand,
    "Transpose": rearranging.transpose,
    "Squeeze": rearranging.axes,
    "Unsqueeze": rearranging.axes,
    "Gather": rearranging.gather,
    "ScatterND": rearranging.scatter_nd,
    "ScatterElements": rearranging.scatter_elements,
    "Where": rearranging.where,
}
