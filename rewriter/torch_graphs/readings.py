"""ATen operators in canonical terms: what each of them is as an operator of ONNX, whose definitions the views share.

Invariant: a reading never guesses. What a rule cannot say stays under its own name, which begins with `aten.` so that
it is never taken for a word of the vocabulary; a training norm or dropout carries a problem.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from rewriter.graph.canonical import canonical
from rewriter.graph.raw import Attrs, Canonical, Raw
from rewriter.graph.tensors import dtype_enum
from rewriter.graph.view import Value
from rewriter.torch_graphs import layouts, windows
from rewriter.torch_graphs.calls import Call, is_node, op_of, shape_of
from rewriter.torch_graphs.onnx_terms import OPSET, Reading, onnx

Rule: TypeAlias = "Callable[[Call], Reading | None]"


@dataclass(frozen=True, slots=True)
class Read:
    """The canonical reading, and the ONNX operator that it was made of, where it was one."""

    canonical: Canonical
    raw: Raw | None


def read(call: Call | None, name: str, data: tuple[Value, ...], several: bool) -> Read:
    """What a node is; `data` are all the tensors that it reads, `several` says that more than its first result is."""
    rule = RULES.get(call.op) if call is not None else None
    made = rule(call) if rule is not None and call is not None else None
    if made is None:
        return Read(Canonical(name, data), None)
    if isinstance(made, Canonical):
        return Read(made, None)
    raw = Raw(made.op, [*made.inputs], made.attrs, 1, int(several and made.op != "Split"), OPSET)
    return Read(canonical(raw), raw)


# --- norms and activations -------------------------------------------------------------------------------------------


def _batch_norm(call: Call) -> Reading | None:
    names = ("input", "weight", "bias", "running_mean", "running_var")
    x, scale, bias, mean, var = [call.value(name) for name in names]
    channels = mean.constant.size if mean is not None and mean.constant is not None else 0
    scale = scale if scale is not None else _filled(call, "weight", 1.0, channels, mean)
    bias = bias if bias is not None else _filled(call, "bias", 0.0, channels, mean)
    trains = bool(call.args.get("training", False)) or mean is None
    eps = float(call.args.get("eps", 1e-5))
    return onnx("BatchNormalization", x, scale, bias, mean, var, epsilon=eps, training_mode=int(trains))


def _filled(call: Call, role: str, number: float, count: int, like: Value | None) -> Value | None:
    """The ones or zeros of a norm without scale or bias."""
    dtype = None if like is None else like.dtype
    return call.held(role, np.full(count, number), dtype) if dtype else None


def _layer_norm(call: Call) -> Reading:
    return onnx("LayerNormalization", *[call.value(name) for name in ("input", "weight", "bias")])


def _group_norm(call: Call) -> Reading:
    return onnx("GroupNormalization", *[call.value(name) for name in ("input", "weight", "bias")])


def _plain(op: str, *names: str) -> Rule:
    """An operator of the same meaning, with these arguments as its inputs."""
    return lambda call: onnx(op, *[call.value(name) for name in names or ("self",)])


def _leaky_relu(call: Call) -> Reading:
    return onnx("LeakyRelu", call.value("self"), alpha=float(call.args.get("negative_slope", 0.01)))


def _clip(low: str, high: str) -> Rule:
    return lambda call: onnx("Clip", call.value("self"), call.value(low), call.value(high))


def _relu6(call: Call) -> Reading:
    return onnx("Clip", call.value("self"), call.held("min", np.asarray(0.0)), call.held("max", np.asarray(6.0)))


def _softmax(op: str) -> Rule:
    return lambda call: onnx(op, call.value("self"), axis=call.args["dim"])


# --- arithmetic ------------------------------------------------------------------------------------------------------


def _sum_of_two(op: str, left: str = "self", right: str = "other") -> Rule:
    """left ± alpha * right; a factor of a constant is in the constant."""

    def rule(call: Call) -> Reading | None:
        a, b, alpha = call.value(left), call.value(right), call.args.get("alpha", 1)
        if alpha == 1:
            return onnx(op, a, b)
        if b is None or b.constant is None or not isinstance(alpha, int | float):
            return None
        return onnx(op, a, _times(b, alpha))

    return rule


def _times(value: Value, alpha: float) -> Value:
    constant = value.constant
    assert constant is not None
    made = replace(constant, load=lambda: constant.floats() * alpha, made_of=constant.stored)
    return replace(value, constant=made)


def _product(op: str) -> Rule:
    def rule(call: Call) -> Reading | None:
        return None if call.args.get("rounding_mode") is not None else onnx(op, call.value("self"), call.value("other"))

    return rule


# --- products with matrices ------------------------------------------------------------------------------------------


def _linear(call: Call) -> Reading:
    """The weight as (out, in), along the last axis of whatever rank."""
    x, weight, bias = [call.value(name) for name in ("input", "weight", "bias")]
    if x is not None and weight is not None and weight.constant is not None and len(weight.constant.shape) == 2:
        consts = {"weight": weight.constant}
        if bias is None:
            return Canonical("linear", (x,), consts)
        if bias.constant is not None and bias.constant.shape == weight.constant.shape[:1]:
            return Canonical("linear", (x,), {**consts, "bias": bias.constant})
    present = tuple([value for value in (x, weight, bias) if value is not None])
    return Canonical("linear", present, {}, problem="its weight or bias is not constant")


def _addmm(call: Call) -> Reading:
    alpha, beta = float(call.args.get("alpha", 1)), float(call.args.get("beta", 1))
    operands = [call.value(name) for name in ("mat1", "mat2", "self")]
    return onnx("Gemm", *operands, transB=0, alpha=alpha, beta=beta)


def _batched(call: Call) -> Reading:
    """Matrices by matrices, which are one and the same where they are copies of it."""
    matrix: Any = call.args.get("mat2")
    while is_node(matrix) and op_of(matrix) in ("view", "reshape", "expand"):
        given = matrix.args[0]
        if not is_node(given) or shape_of(given) not in (shape_of(matrix), (shape_of(matrix) or ())[1:]):
            break
        matrix = given
    one = call.values(matrix) if is_node(matrix) else None
    found = one is not None and one.constant is not None and len(one.constant.shape) == 2
    return onnx("MatMul", call.value("self"), one if found else call.value("mat2"))


# --- what does nothing, or another type ------------------------------------------------------------------------------


def _dropout(call: Call) -> Reading:
    training = call.held("train", np.asarray(bool(call.args.get("train", True))), "bool")
    return onnx("Dropout", call.value("input"), None, training)


def _to(call: Call) -> Reading | None:
    """Another element type; another device or memory format is the same value."""
    x, to = call.value("self"), call.dtype
    if x is None or to is None:
        return None
    return onnx("Identity", x) if x.dtype == to else onnx("Cast", x, to=dtype_enum(to))


def _embedding(call: Call) -> Reading:
    return onnx("Gather", call.value("weight"), call.value("indices"), axis=0)


def _reduced(op: str) -> Rule:
    """A reduction over some axes; over all of them its own name says more."""

    def rule(call: Call) -> Reading | None:
        axes: Attrs = {"axes": tuple(call.args["dim"])} if call.args.get("dim") else {}
        return onnx(op, call.value("self"), keepdims=int(bool(call.args.get("keepdim", False))), **axes)

    return rule


def _where(call: Call) -> Reading | None:
    return onnx("Where", *[call.value(name) for name in ("condition", "self", "other")])


def _power(call: Call) -> Reading | None:
    return onnx("Pow", call.value("self"), call.value("exponent")) if is_node(call.args.get("self")) else None


RULES: Mapping[str, Rule] = {
    **windows.RULES,
    **layouts.RULES,
    "batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "layer_norm": _layer_norm,
    "native_layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "relu": _plain("Relu"),
    "sigmoid": _plain("Sigmoid"),
    "silu": _plain("Swish"),
    "tanh": _plain("Tanh"),
    "gelu": _plain("Gelu"),
    "hardswish": _plain("HardSwish"),
    "hardsigmoid": _plain("HardSigmoid"),
    "mish": _plain("Mish"),
    "softplus": _plain("Softplus"),
    "elu": _plain("Elu"),
    "selu": _plain("Selu"),
    "exp": _plain("Exp"),
    "log": _plain("Log"),
    "sqrt": _plain("Sqrt"),
    "abs": _plain("Abs"),
    "erf": _plain("Erf"),
    "neg": _plain("Neg"),
    "prelu": _plain("PRelu", "self", "weight"),
    "leaky_relu": _leaky_relu,
    "clamp": _clip("min", "max"),
    "hardtanh": _clip("min_val", "max_val"),
    "relu6": _relu6,
    "softmax": _softmax("Softmax"),
    "_softmax": _softmax("Softmax"),
    "log_softmax": _softmax("LogSoftmax"),
    "_log_softmax": _softmax("LogSoftmax"),
    "add": _sum_of_two("Add"),
    "sub": _sum_of_two("Sub"),
    "rsub": _sum_of_two("Sub", "other", "self"),
    "mul": _product("Mul"),
    "div": _product("Div"),
    "pow": _power,
    "linear": _linear,
    "addmm": _addmm,
    "mm": _plain("MatMul", "self", "mat2"),
    "bmm": _batched,
    "matmul": _plain("MatMul", "self", "other"),
    "clone": _plain("Identity"),
    "alias": _plain("Identity"),
    "detach": _plain("Identity"),
    "contiguous": _plain("Identity"),
    "lift_fresh_copy": _plain("Identity"),
    "dropout": _dropout,
    "feature_dropout": _dropout,
    "to": _to,
    "_to_copy": _to,
    "type_as": _to,
    "embedding": _embedding,
    "mean": _reduced("ReduceMean"),
    "sum": _reduced("ReduceSum"),
    "amax": _reduced("ReduceMax"),
    "where": _where,
    "topk": _plain("TopK"),
    "argmax": _plain("ArgMax"),
}
