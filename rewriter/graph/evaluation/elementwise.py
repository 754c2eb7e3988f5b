"""Operators that work element by element, their operands broadcast as numpy's.

Invariant: floats are computed in float64 and rounded once. Whole numbers keep their type throughout, wrap as it does,
and divide towards zero. What jumps is evaluated on exact operands only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np

from rewriter.graph.constants import FLOATS, INTEGERS
from rewriter.graph.evaluation.calls import NUMBERS, Binary, Call, Compute, Made, Unary, Unknown, alike, looked_at, wide
from rewriter.graph.evaluation.steps import is_exact
from rewriter.graph.tensors import numpy_dtype
from rewriter.graph.view import Array, Constant

TRUTH = frozenset({"bool"})


def _wide(function: Compute) -> Callable[..., Array]:
    any_number: Callable[..., Array] = function

    def widened(*arrays: Array) -> Array:
        return any_number(*[wide(array) for array in arrays])

    return widened


def _broadcast(call: Call, arity: int | None) -> list[Constant]:
    """The operands of opset 7 and later (8 for those of any number), which broadcast as numpy's do."""
    constants = call.only(arity or len(call.inputs))
    if "axis" in call.attrs or "broadcast" in call.attrs or call.opset < (7 if arity else 8) or not constants:
        raise ValueError("its operands do not broadcast as numpy's do")
    return constants


def _made(constants: Sequence[Constant], dtype: str, function: Compute, *, exact: bool = True) -> Made:
    shape = np.broadcast_shapes(*(c.shape for c in constants))
    return Made(shape, dtype, constants, _wide(function), exact=exact)


def _arithmetic(function: Binary) -> Callable[[Call], Made]:
    def rule(call: Call) -> Made:
        constants = _broadcast(call, 2)
        return _made(constants, alike(constants, NUMBERS), function)

    return rule


def _several(function: Binary) -> Callable[[Call], Made]:
    """One operand after the other; the same type all along."""

    def joined(*arrays: Array) -> Array:
        return reduce(function, arrays)

    def rule(call: Call) -> Made:
        constants = _broadcast(call, None)
        dtype = alike(constants, NUMBERS)
        return _made(constants, dtype, joined, exact=len(constants) < 3 or function is not np.add)

    return rule


def _div(call: Call) -> Made:
    constants = _broadcast(call, 2)
    if alike(constants, NUMBERS) in FLOATS:
        return _made(constants, constants[0].dtype, np.divide)
    if not looked_at(constants[1]).all():
        raise ValueError("a whole number is divided by zero")
    return _made(constants, constants[0].dtype, _towards_zero)


def _towards_zero(a: Array, b: Array) -> Array:
    floor = a // b
    return floor + ((a % b != 0) & ((a < 0) != (b < 0)))


def _mod(call: Call) -> Made:
    """The remainder with the sign of the divisor, or with `fmod` of the dividend; whole numbers only."""
    constants = _broadcast(call, 2)
    if alike(constants, NUMBERS - FLOATS) and not looked_at(constants[1]).all():
        raise ValueError("a whole number is divided by zero")
    return _made(constants, constants[0].dtype, np.fmod if call.int("fmod", 0) else np.mod)


def _pow(call: Call) -> Made:
    """The type is that of the base; a runtime's last digits differ unless the exponents are small whole numbers."""
    base, exponent = _broadcast(call, 2)
    if base.dtype not in FLOATS or exponent.dtype not in NUMBERS:
        raise TypeError("its base is no float")
    exact = exponent.size == 1 and float(looked_at(exponent).reshape(())) in (1.0, 2.0)
    return _made([base, exponent], base.dtype, _power, exact=exact)


def _power(x: Array, y: Array) -> Array:
    return np.power(x, y.astype(np.float64))


def _function(function: Unary, *, exact: bool = False, jumps: bool = False) -> Callable[[Call], Made]:
    """A function of one float."""

    def rule(call: Call) -> Made:
        (source,) = call.only(1)
        dtype = alike([source])
        if jumps and not is_exact(source):
            raise Unknown("it jumps, on numbers that differ between runtimes in the last digits")
        return _made([source], dtype, function, exact=exact)

    return rule


def _with_alpha(function: Callable[[Array, Mapping[str, float]], Array], **defaults: float) -> Callable[[Call], Made]:
    """A function of one float with settings."""

    def rule(call: Call) -> Made:
        (source,) = call.only(1)
        settings = {name: call.number(name, default) for name, default in defaults.items()}
        dtype = alike([source])

        def compute(x: Array) -> Array:
            return function(x, settings)

        return _made([source], dtype, compute, exact=False)

    return rule


def _signed(function: Unary) -> Callable[[Call], Made]:
    """A function of one number that no type rounds."""

    def rule(call: Call) -> Made:
        (source,) = call.only(1)
        return _made([source], alike([source], NUMBERS), function)

    return rule


def _clip(call: Call) -> Made:
    source = call.given(0)
    dtype = alike([source], NUMBERS)
    bounds: list[Any] = [None, None]
    for place, name in enumerate(("min", "max")):
        if call.opset < 11:
            bounds[place] = call.number(name, 0.0) if name in call.attrs else None
            continue
        bound = call.get(1 + place)
        if bound is not None:
            if bound.dtype != dtype or bound.size != 1:
                raise TypeError("a bound is no number of the same type")
            bounds[place] = wide(looked_at(bound)).reshape(())
    low, high = bounds

    def clipped(x: Array) -> Array:
        x = x if low is None else np.maximum(x, low)
        return x if high is None else np.minimum(x, high)

    return _made([source], dtype, clipped)


def _comparison(function: Binary, dtypes: frozenset[str] = NUMBERS) -> Callable[[Call], Made]:
    def rule(call: Call) -> Made:
        constants = _broadcast(call, 2)
        alike(constants, dtypes)
        if not all(is_exact(c) for c in constants):
            raise Unknown(f"{call.op} jumps, on numbers that differ between runtimes in the last digits")
        return _made(constants, "bool", function)

    return rule


def _logical(function: Compute, arity: int = 2) -> Callable[[Call], Made]:
    def rule(call: Call) -> Made:
        constants = _broadcast(call, arity)
        return _made(constants, alike(constants, TRUTH), function)

    return rule


def _where(call: Call) -> Made:
    condition, yes, no = call.only(3)
    alike([condition], TRUTH)
    dtype = alike([yes, no], FLOATS | INTEGERS)
    shape = np.broadcast_shapes(condition.shape, yes.shape, no.shape)
    return Made(shape, dtype, (condition, yes, no), np.where, view=True)


def _cast(call: Call) -> Made:
    """`to` is the name of a type; whole numbers are made of floats towards zero, where the type holds them."""
    source, to = call.given(0), call.attrs["to"]
    if not {source.dtype, to} <= FLOATS | INTEGERS:
        raise TypeError("it is not between numbers")
    if source.dtype in FLOATS and to in NUMBERS - FLOATS:
        if not is_exact(source):
            raise Unknown("a cast to whole numbers jumps, on numbers that differ between runtimes in the last digits")
        bounds, values = np.iinfo(numpy_dtype(to)), wide(looked_at(source))
        if not ((values > bounds.min - 1.0) & (values < bounds.max + 1.0)).all():
            raise ValueError("a number does not fit the type it is cast to")
    return Made(source.shape, to, (source,), wide)


def _sigmoid(x: Array) -> Array:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


RULES: Mapping[str, Callable[[Call], Made]] = {
    "Add": _arithmetic(np.add),
    "Sub": _arithmetic(np.subtract),
    "Mul": _arithmetic(np.multiply),
    "Div": _div,
    "Mod": _mod,
    "Pow": _pow,
    "Sum": _several(np.add),
    "Min": _several(np.minimum),
    "Max": _several(np.maximum),
    "Neg": _signed(np.negative),
    "Abs": _signed(np.abs),
    "Relu": _signed(lambda x: np.maximum(x, 0)),
    "Sqrt": _function(np.sqrt, exact=True),
    "Reciprocal": _function(np.reciprocal, exact=True),
    "Exp": _function(np.exp),
    "Log": _function(np.log),
    "Sin": _function(np.sin),
    "Cos": _function(np.cos),
    "Tanh": _function(np.tanh),
    "Sigmoid": _function(_sigmoid),
    "Softplus": _function(lambda x: np.logaddexp(x, 0.0)),
    "Floor": _function(np.floor, exact=True, jumps=True),
    "Ceil": _function(np.ceil, exact=True, jumps=True),
    "Round": _function(np.rint, exact=True, jumps=True),
    "Sign": _function(np.sign, exact=True, jumps=True),
    "LeakyRelu": _with_alpha(lambda x, s: np.where(x < 0, s["alpha"] * x, x), alpha=0.01),
    "HardSigmoid": _with_alpha(lambda x, s: np.clip(s["alpha"] * x + s["beta"], 0, 1), alpha=0.2, beta=0.5),
    "Clip": _clip,
    "Equal": _comparison(np.equal, NUMBERS | TRUTH),
    "Greater": _comparison(np.greater),
    "GreaterOrEqual": _comparison(np.greater_equal),
    "Less": _comparison(np.less),
    "LessOrEqual": _comparison(np.less_equal),
    "And": _logical(np.logical_and),
    "Or": _logical(np.logical_or),
    "Xor": _logical(np.logical_xor),
    "Not": _logical(np.logical_not, 1),
    "Where": _where,
    "Cast": _cast,
}
