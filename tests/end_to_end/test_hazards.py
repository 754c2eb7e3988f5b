"""What must never come out wrong: one small model per hazard of structure, each saying whether it must fold or stay.

Every case states the complete op histogram wanted (`STAYS` also means the very bytes), and where an engine runs the
model, what it computes before and after is compared here, with the engine's optimisation off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper

from fixtures.judge import op_histogram
from rewriter import api
from tests.end_to_end.judging import Array, relative, run, run_double
from tests.end_to_end.sketch import C, H, Sketch, W, numpy_type

Gives = Mapping[str, int] | Literal["stays"]
STAYS: Literal["stays"] = "stays"
Build = Callable[[Sketch], None]
Engine = Literal["ort", "double", "none"]

F16, BF16, F32, F64 = TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE
BOOL, I64, I8 = TensorProto.BOOL, TensorProto.INT64, TensorProto.INT8
LIMIT = {F16: 4e-3, F32: 3e-6, F64: 1e-13}  # of the largest value; a wrong border or sign is beyond 1e-2
ONE = {"Conv": 1}


@dataclass(frozen=True, slots=True)
class Hazard:
    """How to write a model, what must come of it, and how it is run."""

    build: Build
    gives: Gives
    engine: Engine = "ort"
    valid: bool = True  # onnx's checker accepts it
    settings: Mapping[str, int] = field(default_factory=dict[str, int])
    finish: Mapping[str, Any] = field(default_factory=dict[str, Any])
    missed: str = ""  # why it stays today although it could fold: no wrong result, a fold less


CASES: dict[str, Hazard] = {}


def hazard(name: str, gives: Gives, **options: Any) -> Callable[[Build], Build]:
    """Register a case; options that `Sketch` takes (`dtype`, `opset`, `ir`) go to it."""
    settings = {key: options.pop(key) for key in ("dtype", "opset", "ir") if key in options}

    def register(build: Build) -> Build:
        if name in CASES:
            raise ValueError(f"two cases are called {name!r}")
        CASES[name] = Hazard(build, gives, settings=settings, **options)
        return build

    return register


def sketched(case: Hazard) -> ModelProto:
    sketch = Sketch(**case.settings)
    case.build(sketch)
    return sketch.finish(**case.finish)


def feeds_of(model: ModelProto, engine: Engine) -> Iterable[dict[str, Array]]:
    """Noise, twice, and a single 1 in the corner, where pads show; a flag is tried both ways; free sizes 2, 7, 9."""
    stored = {t.name for t in model.graph.initializer}
    wanted = [value for value in model.graph.input if value.name not in stored]
    sizes = {"N": 2, "H": 7, "W": 9}
    for round_ in range(3):
        random = np.random.default_rng(round_)
        feeds: dict[str, Array] = {}
        for value in wanted:
            tensor = value.type.tensor_type
            shape = [sizes[d.dim_param] if d.dim_param else d.dim_value for d in tensor.shape.dim]
            values = random.standard_normal(shape)
            if tensor.elem_type == BOOL:
                values = np.full(shape, round_ == 1)
            elif round_ == 2 and values.size:
                values = np.zeros(shape)
                values[(0,) * len(shape)] = 1
            feeds[value.name] = values.astype(numpy_type(tensor.elem_type))
        yield feeds


def computed(model: ModelProto, engine: Engine, feeds: dict[str, Array]) -> dict[str, Array]:
    return run_double(model, feeds) if engine == "double" else run(model, feeds)


def assert_computes_the_same(before: ModelProto, after: ModelProto, engine: Engine, limit: float) -> None:
    if engine == "none":
        return
    for feeds in feeds_of(before, engine):
        wanted, found = computed(before, engine, feeds), computed(after, engine, feeds)
        assert list(found) == list(wanted)
        for name in wanted:
            assert relative(found[name], wanted[name]) <= limit, name


# --- a value of the inside that is wanted outside --------------------------------------------------------------------


@hazard("interior value is an output", STAYS)
def _(s: Sketch) -> None:
    inner = s.conv(s.input())
    s.output(s.norm(inner), inner)


@hazard("interior value has a second reader", STAYS)
def _(s: Sketch) -> None:
    inner = s.conv(s.input())
    s.output(s.norm(inner), s.op("Relu", inner))


@hazard("interior value is read by an If body", STAYS)
def _(s: Sketch) -> None:
    flag, inner = s.input((), "flag", BOOL), s.conv(s.input())
    s.output(s.norm(inner), s.choose(flag, lambda b: b.op("Relu", inner), lambda b: b.op("Neg", inner)))


@hazard("interior value is read two bodies deep", STAYS)
def _(s: Sketch) -> None:
    flag, inner = s.input((), "flag", BOOL), s.conv(s.input())

    def deep(b: Sketch) -> str:
        return b.choose(flag, lambda d: d.op("Relu", inner), lambda d: d.op("Neg", inner))

    s.output(s.norm(inner), s.choose(flag, deep, lambda b: b.op("Abs", s.x)))


@hazard("interior value is a Loop's captured value", STAYS)
def _(s: Sketch) -> None:
    inner = s.conv(s.input())
    body = helper.make_graph(
        [helper.make_node("Add", ["state", inner], ["next"]), helper.make_node("Identity", ["go"], ["again"])],
        "loop",
        [
            helper.make_tensor_value_info("i", I64, []),
            helper.make_tensor_value_info("go", BOOL, []),
            helper.make_tensor_value_info("state", F32, [1, C, H, W]),
        ],
        [helper.make_tensor_value_info("again", BOOL, []), helper.make_tensor_value_info("next", F32, [1, C, H, W])],
    )
    looped = s.op("Loop", s.tensor(3, dtype=I64), "", s.op("Relu", s.x), body=body)
    s.output(s.norm(inner), looped)


@hazard("entry and exit are read by a body", {"Conv": 1, "If": 1, "Add": 1, "Sub": 1})
def _(s: Sketch) -> None:
    flag, x = s.input((), "flag", BOOL), s.input()
    y = s.rep(x)
    s.output(y, s.choose(flag, lambda b: b.op("Add", x, y), lambda b: b.op("Sub", x, y)))


@hazard("one branch of three is read outside", {"Conv": 2, "Add": 1, "Sigmoid": 1})
def _(s: Sketch) -> None:
    x = s.input()
    seen = s.cbn(x, kernel=1)
    s.output(s.add(s.cbn(x), seen, s.cbn(x)), s.op("Sigmoid", seen))


@hazard("a partial sum is an output", {"Conv": 2, "Add": 1})
def _(s: Sketch) -> None:
    part = s.rep(s.input())
    s.output(s.add(part, s.cbn(s.x)), part)


# --- weights ---------------------------------------------------------------------------------------------------------


@hazard("weight shared with a convolution that stays", {"Conv": 2, "Relu": 1})
def _(s: Sketch) -> None:
    x, weight = s.input(), s.tensor(s.normal(C, C, 3, 3))
    s.output(s.norm(s.conv(x, weight=weight)), s.op("Relu", s.conv(x, weight=weight)))


@hazard("weight shared by two blocks", {"Conv": 2})
def _(s: Sketch) -> None:
    x, weight = s.input(), s.tensor(s.normal(C, C, 3, 3))
    s.output(s.norm(s.conv(x, weight=weight)), s.norm(s.conv(x, weight=weight)))


@hazard("norm parameters shared by two blocks", {"Conv": 2, "Relu": 1})
def _(s: Sketch) -> None:
    parts = s.norm_parts()
    s.output(s.norm(s.conv(s.op("Relu", s.norm(s.conv(s.input()), parts=parts))), parts=parts))


@hazard("one tensor for everything a norm has", ONE)
def _(s: Sketch) -> None:
    s.output(s.norm(s.conv(s.input()), parts=[s.tensor(s.uniform(C))] * 4))


@hazard("one tensor is bias and shift of the norm", ONE)
def _(s: Sketch) -> None:
    bias, parts = s.tensor(s.normal(C)), s.norm_parts()
    inner = s.op("Conv", s.input(), s.tensor(s.normal(C, C, 1, 1)), bias)
    s.output(s.norm(inner, parts=[parts[0], bias, *parts[2:]]))


@hazard("weight is read by an If body too", {"Conv": 1, "If": 1, "Add": 1, "Sub": 1})
def _(s: Sketch) -> None:
    flag, weight = s.input((), "flag", BOOL), s.tensor(s.normal(C, C, 1, 1))
    y = s.norm(s.conv(s.input(), kernel=1, weight=weight))
    s.output(y, s.choose(flag, lambda b: b.op("Add", weight, weight), lambda b: b.op("Sub", weight, weight)))


def overridable(s: Sketch, which: str) -> None:
    weight, parts = s.tensor(s.normal(C, C, 3, 3), "weight"), s.norm_parts()
    s.output(s.norm(s.conv(s.input(), weight=weight), parts=parts))
    if which == "weight":
        s.input((C, C, 3, 3), "weight")
    elif which == "scale":
        s.input((C,), parts[0])
    else:
        s.input((C, C, 3, 3), "weight")
        for part in parts:
            s.input((C,), part)


for _ir in (4, 8, 10):
    hazard(f"weight is an input that callers may set, IR {_ir}", STAYS, ir=_ir)(partial(overridable, which="weight"))
hazard("scale is an input that callers may set", STAYS)(partial(overridable, which="scale"))
hazard("all constants are inputs, as IR 3 wants", STAYS, ir=3, opset=8)(partial(overridable, which="all"))


@hazard("weight is a graph output", ONE)
def _(s: Sketch) -> None:
    weight = s.tensor(s.normal(C, C, 3, 3), "weight")
    s.output(s.norm(s.conv(s.input(), weight=weight)))
    s.output(weight, dims=(C, C, 3, 3))


@hazard("scale of the norm is a graph output", ONE)
def _(s: Sketch) -> None:
    parts = s.norm_parts()
    s.output(s.norm(s.conv(s.input()), parts=parts))
    s.output(parts[0], dims=(C,))


@hazard("weight behind an Identity", ONE)
def _(s: Sketch) -> None:
    s.output(s.norm(s.conv(s.input(), weight=s.op("Identity", s.tensor(s.normal(C, C, 3, 3))))))


@hazard("weight behind an Identity that is shared", {"Conv": 2, "Relu": 1})
def _(s: Sketch) -> None:
    stored = s.tensor(s.normal(C, C, 3, 3))
    first = s.norm(s.conv(s.input(), weight=s.op("Identity", stored)))
    s.output(first, s.op("Relu", s.conv(s.x, weight=stored)))


@hazard("weight behind a Cast from float16", ONE)
def _(s: Sketch) -> None:
    s.output(s.norm(s.conv(s.input(), weight=s.op("Cast", s.tensor(s.normal(C, C, 3, 3), dtype=F16), to=F32))))


@hazard("weight behind a Transpose", ONE)
def _(s: Sketch) -> None:
    s.output(s.norm(s.conv(s.input(), weight=s.op("Transpose", s.tensor(s.normal(3, 3, C, C)), perm=[3, 2, 1, 0]))))


@hazard("weight behind a Reshape", ONE)
def _(s: Sketch) -> None:
    shape = s.tensor([C, C, 3, -1], dtype=I64)
    s.output(s.norm(s.conv(s.input(), weight=s.op("Reshape", s.tensor(s.normal(C * C * 9)), shape))))


@hazard("weight behind a Slice", ONE)
def _(s: Sketch) -> None:
    wide = s.tensor(s.normal(2 * C, C, 3, 3))
    bounds = [s.tensor([value], dtype=I64) for value in (2, 2 + C, 0)]
    s.output(s.norm(s.conv(s.input(), weight=s.op("Slice", wide, *bounds))))


@hazard("weight in a Constant node", ONE)
def _(s: Sketch) -> None:
    s.output(s.norm(s.conv(s.input(), weight=s.constant(s.normal(C, C, 3, 3)))))


@hazard("weight is dequantized", STAYS)
def _(s: Sketch) -> None:
    stored = s.tensor(np.arange(C * C * 9).reshape(C, C, 3, 3) - 70, dtype=I8)
    weight = s.op("DequantizeLinear", stored, s.tensor(0.01), s.tensor(0, dtype=I8))
    s.output(s.norm(s.conv(s.input(), weight=weight)))


@hazard("weight depends on the input", STAYS)
def _(s: Sketch) -> None:
    mean = s.op("ReduceMean", s.input(), keepdims=0)
    s.output(s.norm(s.conv(s.x, weight=s.op("Mul", s.tensor(s.normal(C, C, 3, 3)), mean))))


@hazard("weight is drawn at run time", STAYS, engine="none")
def _(s: Sketch) -> None:
    s.output(s.norm(s.conv(s.input(), weight=s.op("RandomNormal", shape=[C, C, 3, 3]))))


@hazard("weight is chosen at run time", {"If": 1, "Conv": 1, "BatchNormalization": 1, "Identity": 2})
def _(s: Sketch) -> None:
    flag, one, two = s.input((), "flag", BOOL), s.tensor(s.normal(C, C, 3, 3)), s.tensor(s.normal(C, C, 3, 3))
    weight = s.choose(flag, lambda b: b.op("Identity", one), lambda b: b.op("Identity", two))
    s.output(s.norm(s.conv(s.input(), weight=weight)))


for _bad in (np.nan, np.inf, -np.inf):

    @hazard(f"weight holds {_bad}", STAYS)
    def _(s: Sketch, bad: float = _bad) -> None:
        values = s.normal(C, C, 3, 3)
        values[1, 2, 0, 1] = bad
        s.output(s.norm(s.conv(s.input(), weight=s.tensor(values))))


# --- norms -----------------------------------------------------------------------------------------------------------


def norm_with(s: Sketch, index: int, values: Array) -> None:
    parts = s.norm_parts()
    parts[index] = s.tensor(values)
    s.output(s.norm(s.conv(s.input()), parts=parts))


hazard("variance is negative", STAYS)(partial(norm_with, index=3, values=np.array([1, -0.5, 1, 1])))
hazard("variance is a little negative", STAYS)(partial(norm_with, index=3, values=np.array([1, -5e-4, 1, 1])))
hazard("variance cancels eps", STAYS)(partial(norm_with, index=3, values=np.array([1, -np.float32(1e-3), 1, 1])))
hazard("variance is zero", ONE)(partial(norm_with, index=3, values=np.zeros(C)))
hazard("scale is not a number", STAYS)(partial(norm_with, index=0, values=np.array([1, np.nan, 1, 1])))
hazard("shift is infinite", STAYS)(partial(norm_with, index=1, values=np.array([1, np.inf, 1, 1])))
hazard("scale is zero", ONE)(partial(norm_with, index=0, values=np.zeros(C)))
hazard("scale is negative", ONE)(partial(norm_with, index=0, values=np.array([-1.0, -2, 3, -0.5])))
hazard("parameters of the wrong length", STAYS, engine="none")(partial(norm_with, index=0, values=np.ones(C + 1)))
hazard("parameters of length 1", STAYS, engine="none")(partial(norm_with, index=0, values=np.ones(1)))


@hazard("norm in training mode", STAYS, engine="none")
def _(s: Sketch) -> None:
    s.output(s.norm(s.conv(s.input()), training_mode=1))


@hazard("norm in training mode with its statistics", STAYS)
def _(s: Sketch) -> None:
    inner, parts = s.conv(s.input()), s.norm_parts()
    outs = ["y", "mean", "var"]
    s.nodes.append(helper.make_node("BatchNormalization", [inner, *parts], outs, "norm", training_mode=1))
    s.output(*outs)


@hazard("norm of opset 9 with outputs for training", STAYS, opset=9, engine="none")
def _(s: Sketch) -> None:
    inner, parts = s.conv(s.input()), s.norm_parts()
    outs = ["y", "mean", "var", "saved.mean", "saved.var"]
    s.nodes.append(helper.make_node("BatchNormalization", [inner, *parts], outs, "norm"))
    s.output("y")


@hazard("norm of opset 7 that is not spatial", STAYS, opset=7, engine="none")
def _(s: Sketch) -> None:
    parts = [s.tensor(s.uniform(C, H, W)) for _ in range(4)]
    s.output(s.op("BatchNormalization", s.conv(s.input()), *parts, spatial=0))


@hazard("norm of opset 6 not in test mode", STAYS, opset=6, engine="none")
def _(s: Sketch) -> None:
    s.output(s.norm(s.conv(s.input()), is_test=0))


@hazard("norm whose scale is computed from the input", STAYS)
def _(s: Sketch) -> None:
    inner, parts = s.conv(s.input()), s.norm_parts()
    scale = s.op("ReduceMean", s.x, axes=[0, 2, 3], keepdims=0)
    s.output(s.norm(inner, parts=[scale, *parts[1:]]))


@hazard("norm behind a Reshape of the activation", STAYS)
def _(s: Sketch) -> None:
    shaped = s.op("Reshape", s.conv(s.input((1, C, C, W))), s.tensor([1, C * W, C, 1], dtype=I64))
    s.output(s.norm(shaped, C * W))


@hazard("norm behind a Transpose that exchanges channels and rows", STAYS)
def _(s: Sketch) -> None:
    s.output(s.norm(s.op("Transpose", s.conv(s.input((1, C, C, W))), perm=[0, 2, 1, 3])))


@hazard("norm before a padded convolution", STAYS)
def _(s: Sketch) -> None:
    s.output(s.conv(s.norm(s.input())))


@hazard("InstanceNormalization is no constant norm", STAYS)
def _(s: Sketch) -> None:
    s.output(s.op("InstanceNormalization", s.conv(s.input()), s.tensor(s.uniform(C)), s.tensor(s.normal(C))))


@hazard("norm after the sum", ONE)
def _(s: Sketch) -> None:
    s.output(s.norm(s.add(s.rep(s.input()), s.x)))


@hazard("norm after a sum with a residual of elsewhere", {"Conv": 1, "Add": 1, "BatchNormalization": 1, "Relu": 1})
def _(s: Sketch) -> None:
    s.output(s.norm(s.add(s.rep(s.op("Relu", s.input())), s.x)))


@hazard("norm with statistics of another type (opset 15)", STAYS, dtype=F16)
def _(s: Sketch) -> None:
    parts = [s.tensor(values, dtype=F32) for values in (s.uniform(C), s.normal(C), s.normal(C), s.uniform(C))]
    s.output(s.norm(s.conv(s.input()), parts=parts))


# --- constants that look like channels -------------------------------------------------------------------------------


def broadcast(s: Sketch, kind: str, shape: tuple[int, ...], dims: tuple[int | str, ...] = (1, C, H, W)) -> None:
    constant = s.tensor(s.uniform(*shape))
    s.output(s.op(kind, s.conv(s.input(dims), inputs=C), constant))


for _kind in ("Add", "Mul"):
    for _shape in ((1, C, 1, 1), (C, 1, 1), (), (1,), (1, 1, 1, 1)):
        hazard(f"{_kind} of {list(_shape)} is per channel", ONE)(partial(broadcast, kind=_kind, shape=_shape))
    for _shape in ((H, W), (1, 1, H, W), (1, C, 1, W), (1, C, H, W), (H, 1), (W,), (1, 1, C, 1, 1), (2, C, 1, 1)):
        hazard(f"{_kind} of {list(_shape)} is not", STAYS)(partial(broadcast, kind=_kind, shape=_shape))
    square = partial(broadcast, kind=_kind, dims=(1, C, C, C))
    hazard(f"{_kind} of [C] on a map that is C wide is columns", STAYS)(partial(square, shape=(C,)))
    hazard(f"{_kind} of [C, 1] on a map that is C high is rows", STAYS)(partial(square, shape=(C, 1)))
    batch = partial(broadcast, kind=_kind, dims=(C, C, H, W))
    hazard(f"{_kind} of [N, 1, 1, 1] is per image", STAYS)(partial(batch, shape=(C, 1, 1, 1)))
    free = partial(broadcast, kind=_kind, dims=("N", C, "H", "W"))
    hazard(f"{_kind} of [1, C, 1, 1] on free sizes", ONE)(partial(free, shape=(1, C, 1, 1)))


@hazard("a constant that widens one channel to many", STAYS)
def _(s: Sketch) -> None:
    s.output(s.op("Add", s.conv(s.input(), 1), s.tensor(s.normal(C, 1, 1))))


@hazard("a constant per channel on the left of Sub", ONE)
def _(s: Sketch) -> None:
    s.output(s.norm(s.op("Sub", s.tensor(s.normal(C, 1, 1)), s.conv(s.input()))))


@hazard("a constant per channel on the right of Sub", ONE)
def _(s: Sketch) -> None:
    s.output(s.norm(s.op("Sub", s.conv(s.input()), s.tensor(s.normal(C, 1, 1)))))


@hazard("a constant divided by a convolution", STAYS)
def _(s: Sketch) -> None:
    s.output(s.op("Div", s.tensor(2.0), s.conv(s.input())))


@hazard("a constant shift inside the sum", ONE)
def _(s: Sketch) -> None:
    s.output(s.add(s.rep(s.input()), s.tensor(s.normal(1, C, 1, 1))))


@hazard("a constant map inside the sum", {"Conv": 1, "Add": 1}, missed="read as a shift, not as an operand of the sum")
def _(s: Sketch) -> None:
    s.output(s.add(s.cbn(s.input()), s.tensor(s.normal(1, C, H, W)), s.cbn(s.x, kernel=1)))


# --- sums ------------------------------------------------------------------------------------------------------------


@hazard("a value added to itself", ONE)
def _(s: Sketch) -> None:
    y = s.cbn(s.input())
    s.output(s.op("Add", y, y))


@hazard("the entry twice in the sum", ONE)  # the second one with the conv that the first round left
def _(s: Sketch) -> None:
    s.output(s.add(s.rep(s.input()), s.x, s.x))


@hazard("the difference of two branches", ONE)
def _(s: Sketch) -> None:
    s.output(s.op("Sub", s.cbn(s.input()), s.cbn(s.x, kernel=1)))


@hazard("a branch less the entry", ONE)
def _(s: Sketch) -> None:
    s.output(s.op("Sub", s.rep(s.input()), s.x))


@hazard("the entry less a sum: both branches are under a minus", ONE)
def _(s: Sketch) -> None:
    s.output(s.op("Sub", s.input(), s.rep(s.x)))


@hazard("a branch less a sum", ONE)
def _(s: Sketch) -> None:
    s.output(s.op("Sub", s.cbn(s.input(), kernel=5), s.rep(s.x)))


@hazard("a branch times -1", ONE)
def _(s: Sketch) -> None:
    s.output(s.add(s.cbn(s.input()), s.op("Mul", s.conv(s.x, kernel=1), s.tensor(-1.0))))


@hazard("Sum with one operand", ONE)
def _(s: Sketch) -> None:
    s.output(s.norm(s.op("Sum", s.conv(s.input()))))


@hazard("Sum of four", {"Conv": 1, "Relu": 1})
def _(s: Sketch) -> None:
    x = s.op("Relu", s.input())
    s.output(s.op("Sum", s.cbn(x), x, s.cbn(x, kernel=1), s.conv(x, bias=True)))


@hazard("a residual shaped like an identity", {"Conv": 1, "Add": 1, "Relu": 1})
def _(s: Sketch) -> None:
    s.output(s.add(s.rep(s.op("Relu", s.input())), s.x))


@hazard("a residual after the activation", {"Conv": 1, "Add": 1, "Relu": 1})
def _(s: Sketch) -> None:
    s.output(s.add(s.op("Relu", s.rep(s.input())), s.x))


@hazard("an identity of some of the channels", ONE)
def _(s: Sketch) -> None:
    bounds = [s.tensor([value], dtype=I64) for value in (0, C, 1)]
    part = s.op("Slice", s.input((1, 2 * C, H, W)), *bounds)
    s.output(s.add(s.cbn(s.x, inputs=2 * C), s.cbn(s.x, kernel=1, inputs=2 * C), part))


@hazard("an identity of one channel that broadcasts", {"Conv": 1, "Add": 1})
def _(s: Sketch) -> None:
    x = s.input((1, 1, H, W))
    s.output(s.add(s.cbn(x, inputs=1), s.cbn(x, kernel=1, inputs=1), x))


@hazard("a branch of one channel that broadcasts", {"Conv": 2, "Add": 1})
def _(s: Sketch) -> None:
    s.output(s.op("Add", s.cbn(s.input()), s.cbn(s.x, 1, kernel=1)))


@hazard("a branch of one pixel that broadcasts", {"Conv": 2, "Add": 1})
def _(s: Sketch) -> None:
    s.output(s.op("Add", s.cbn(s.input()), s.cbn(s.x, kernel=(H, W), pads=[0] * 4)))


@hazard("two blocks back to back", {"Conv": 2})
def _(s: Sketch) -> None:
    inner = s.add(s.rep(s.input()), s.x)
    s.output(s.add(s.rep(inner), inner))


@hazard("a block from input to output", ONE)
def _(s: Sketch) -> None:
    s.output(s.add(s.rep(s.input()), s.norm(s.x)))


@hazard("an average pool in the sum stays", {"Conv": 1, "AveragePool": 1, "Add": 1})
def _(s: Sketch) -> None:
    pool = s.op("AveragePool", s.input(), kernel_shape=[3, 3], pads=[1] * 4)
    s.output(s.add(s.cbn(s.x), s.cbn(s.x, kernel=1), pool))


@hazard("a max pool with ceil_mode in the sum stays", {"Conv": 1, "MaxPool": 1, "Add": 1})
def _(s: Sketch) -> None:
    pool = s.op("MaxPool", s.input((1, C, 7, 9)), kernel_shape=[1, 1], strides=[2, 2], ceil_mode=1)
    s.output(s.add(s.cbn(s.x, strides=[2, 2]), s.cbn(s.x, kernel=1, strides=[2, 2]), pool))


# --- windows and pads ------------------------------------------------------------------------------------------------

SAME = "auto_pad with a stride is refused where the size is not known, also where it does not matter"
for _mode in ("SAME_UPPER", "SAME_LOWER", "VALID"):
    for _stride in (1, 2):
        for _dims in ((1, C, 6, 8), (1, C, 7, 9)):

            @hazard(f"{_mode} with stride {_stride} on {_dims[2]}x{_dims[3]}", ONE)
            def _(s: Sketch, mode: str = _mode, stride: int = _stride, dims: Any = _dims) -> None:
                s.output(s.norm(s.conv(s.input(dims), auto_pad=mode, strides=[stride] * 2)))


for _mode in ("SAME_UPPER", "SAME_LOWER"):
    for _dims in ((1, C, 6, 8), (1, C, 7, 9), ("N", C, 7, 8)):

        @hazard(f"3x3 beside 1x1, {_mode} with stride 2 on {_dims[2]}x{_dims[3]}", ONE)
        def _(s: Sketch, mode: str = _mode, dims: Any = _dims) -> None:
            x, options = s.input(dims), {"auto_pad": mode, "strides": [2, 2]}
            s.output(s.add(s.cbn(x, **options), s.cbn(x, kernel=1, **options)))

    @hazard(f"two of them behind each other, {_mode} with stride 2", {"Conv": 2, "Relu": 1})
    def _(s: Sketch, mode: str = _mode) -> None:
        options = {"auto_pad": mode, "strides": [2, 2]}
        x = s.op("Relu", s.add(s.cbn(s.input((1, C, 13, 10)), **options), s.cbn(s.x, kernel=1, **options)))
        s.output(s.add(s.cbn(x, kernel=5, **options), s.cbn(x, kernel=2, **options)))

    @hazard(f"3x3 beside 1x1, {_mode} with stride 2 on free sizes", {"Conv": 2, "Add": 1}, missed=SAME)
    def _(s: Sketch, mode: str = _mode) -> None:
        x, options = s.input(("N", C, "H", "W")), {"auto_pad": mode, "strides": [2, 2]}
        s.output(s.add(s.cbn(x, **options), s.cbn(x, kernel=1, **options)))

    @hazard(f"3x3 beside 1x1, {_mode} with stride 1 on free sizes", ONE)
    def _(s: Sketch, mode: str = _mode) -> None:
        x = s.input(("N", C, "H", "W"))
        s.output(s.add(s.cbn(x, auto_pad=mode), s.cbn(x, kernel=1, auto_pad=mode)))


for _pads in ([0, 0, 2, 2], [2, 2, 0, 0], [2, 0, 0, 2], [0, 1, 2, 1]):

    @hazard(f"3x3 with pads {_pads} beside 1x1", ONE)
    def _(s: Sketch, pads: Any = _pads) -> None:
        s.output(s.add(s.cbn(s.input(), pads=pads), s.cbn(s.x, kernel=1)))


@hazard("padded 1x1 beside 3x3", ONE)
def _(s: Sketch) -> None:
    s.output(s.add(s.cbn(s.input(), pads=[2] * 4), s.cbn(s.x, kernel=1, pads=[1] * 4)))


@hazard("5x5, 3x3 and 2x2 of one grid", ONE)
def _(s: Sketch) -> None:
    s.output(s.add(s.cbn(s.input(), kernel=5), s.cbn(s.x), s.cbn(s.x, kernel=2, pads=[0, 0, 1, 1])))


@hazard("1x3 beside 3x1 costs a 3x3", {"Conv": 2, "Add": 1})
def _(s: Sketch) -> None:
    s.output(s.add(s.cbn(s.input(), kernel=(1, 3)), s.cbn(s.x, kernel=(3, 1))))


@hazard("two strides that give one size by chance", {"Conv": 2, "Add": 1})
def _(s: Sketch) -> None:
    x = s.input((1, C, 5, 5))
    s.output(s.add(s.cbn(x, pads=[0] * 4), s.cbn(x, kernel=1, strides=[2, 2])))


@hazard("two dilations", {"Conv": 2, "Add": 1})
def _(s: Sketch) -> None:
    s.output(s.add(s.cbn(s.input()), s.cbn(s.x, dilations=[2, 2], pads=[2] * 4)))


@hazard("a dilated 3x3 inside a 5x5", ONE)
def _(s: Sketch) -> None:
    s.output(s.add(s.cbn(s.input(), kernel=5), s.cbn(s.x, dilations=[2, 2], pads=[2] * 4)))


@hazard("a Pad of zeros goes into the convolution", ONE)
def _(s: Sketch) -> None:
    padded = s.op("Pad", s.input(), s.tensor([0, 0, 1, 1, 0, 0, 1, 1], dtype=I64))
    s.output(s.norm(s.conv(padded, pads=[0] * 4)))


@hazard("a Pad of anything else stays", {"Conv": 1, "Pad": 1})
def _(s: Sketch) -> None:
    padded = s.op("Pad", s.input(), s.tensor([0, 0, 1, 1, 0, 0, 1, 1], dtype=I64), s.tensor(0.5))
    s.output(s.norm(s.conv(padded, pads=[0] * 4)))


@hazard("a Pad of reflections stays", {"Conv": 1, "Pad": 1})
def _(s: Sketch) -> None:
    padded = s.op("Pad", s.input(), s.tensor([0, 0, 1, 1, 0, 0, 1, 1], dtype=I64), mode="reflect")
    s.output(s.norm(s.conv(padded, pads=[0] * 4)))


@hazard("two padded convolutions in a row stay", {"Conv": 2})
def _(s: Sketch) -> None:
    s.output(s.norm(s.conv(s.norm(s.conv(s.input(), bias=False)), bias=False)))


@hazard("a pointwise convolution goes into a padded one", ONE)
def _(s: Sketch) -> None:
    s.output(s.norm(s.conv(s.conv(s.input(), kernel=1, pads=[0] * 4, bias=False))))


@hazard("a pointwise convolution with a bias stays before a padded one", {"Conv": 2})
def _(s: Sketch) -> None:
    s.output(s.norm(s.conv(s.conv(s.input(), kernel=1, pads=[0] * 4, bias=True))))


@hazard("a Pad that shifts the picture is no Pad of nothing", STAYS)
def _(s: Sketch) -> None:
    s.output(s.op("Relu", s.op("Pad", s.op("Exp", s.input()), s.tensor([0, 0, 1, 0, 0, 0, -1, 0], dtype=I64))))


@hazard("a Pad of nothing", {"Exp": 1, "Relu": 1})
def _(s: Sketch) -> None:
    s.output(s.op("Relu", s.op("Pad", s.op("Exp", s.input()), s.tensor([0] * 8, dtype=I64))))


# --- channels and features -------------------------------------------------------------------------------------------


@hazard("some channels go past a convolution beside one of all", ONE)
def _(s: Sketch) -> None:
    first, second = s.split(s.input((1, C, H, W)), 1, C - 1)
    joined = s.op("Concat", s.conv(second, C - 1, inputs=C - 1), first, axis=1)
    s.output(s.norm(s.add(joined, s.conv(s.x))))


@hazard("some channels go past a convolution that would grow", {"Split": 1, "Conv": 1, "Concat": 1})
def _(s: Sketch) -> None:
    first, second = s.split(s.input((1, C, H, W)), 1, C - 1)
    s.output(s.op("Concat", s.conv(second, C - 1, inputs=C - 1), first, axis=1))


@hazard("half of the channels are read elsewhere too", {"Split": 1, "Conv": 1, "Concat": 1, "Sigmoid": 1})
def _(s: Sketch) -> None:
    first, second = s.split(s.input((1, C, H, W)), 1, C - 1)
    s.output(s.op("Concat", s.conv(second, C - 1, inputs=C - 1), first, axis=1), s.op("Sigmoid", first))


@hazard("channels cut into a sequence", ONE)
def _(s: Sketch) -> None:
    parts = s.op("SplitToSequence", s.input(), s.tensor([1, C - 1], dtype=I64), axis=1)
    first, second = (s.op("SequenceAt", parts, s.tensor(i, dtype=I64)) for i in (0, -1))
    joined = s.op("Concat", s.conv(second, C - 1, inputs=C - 1), first, axis=1)
    s.output(s.norm(s.add(joined, s.conv(s.x))))


@hazard("channels cut into a sequence of equal parts, the last one smaller", ONE)
def _(s: Sketch) -> None:
    parts = s.op("SplitToSequence", s.input((1, C, H, W)), s.tensor(C - 1, dtype=I64), axis=1)
    first, second = (s.op("SequenceAt", parts, s.tensor(i, dtype=I64)) for i in (0, 1))
    s.output(s.norm(s.add(s.op("Concat", second, first, axis=1), s.conv(s.x))))


@hazard("a sequence whose length is read stays", {"SplitToSequence": 1, "SequenceAt": 2, "SequenceLength": 1, "Add": 1})
def _(s: Sketch) -> None:
    parts = s.op("SplitToSequence", s.input(), s.tensor([2, C - 2], dtype=I64), axis=1)
    first, second = (s.op("SequenceAt", parts, s.tensor(i, dtype=I64)) for i in (0, 1))
    s.output(s.add(first, second))
    s.output(s.op("SequenceLength", parts), dtype=I64)


@hazard("a scale behind a product of opset 9, where a Gemm needs a bias", {"MatMul": 1, "Relu": 1}, opset=9)
def _(s: Sketch) -> None:
    y = s.op("MatMul", s.input((3, C)), s.tensor(s.normal(C, 5)))
    s.output(s.op("Relu", s.op("Mul", y, s.tensor(s.uniform(5)))))


@hazard("a norm behind a product of opset 7", {"Gemm": 1}, opset=7)
def _(s: Sketch) -> None:
    s.output(s.norm(s.op("MatMul", s.input((3, C)), s.tensor(s.normal(C, 5))), 5))


@hazard("a norm behind a product of opset 6, where nothing broadcasts", STAYS, opset=6, engine="none")
def _(s: Sketch) -> None:
    s.output(s.norm(s.op("MatMul", s.input((3, C)), s.tensor(s.normal(C, 5))), 5, is_test=1))


@hazard("a norm behind a Gemm, and one before", {"Gemm": 1, "Relu": 1})
def _(s: Sketch) -> None:
    weight, bias = s.tensor(s.normal(5, C)), s.tensor(s.normal(5))
    y = s.op("Gemm", s.norm(s.op("Relu", s.input((3, C)))), weight, bias, transB=1, alpha=0.5, beta=-2.0)
    s.output(s.norm(y, 5))


@hazard("a Gemm that reads its input transposed stays", {"Gemm": 1, "BatchNormalization": 1})
def _(s: Sketch) -> None:
    s.output(s.norm(s.op("Gemm", s.input((C, 3)), s.tensor(s.normal(C, 5)), transA=1), 5))


@hazard("a weight of a product that is read elsewhere too", {"Gemm": 1, "MatMul": 1, "Sigmoid": 1})
def _(s: Sketch) -> None:
    weight = s.tensor(s.normal(C, 5))
    x = s.input((3, C))
    s.output(s.norm(s.op("MatMul", x, weight), 5), s.op("MatMul", s.op("Sigmoid", x), weight))


@hazard("a product that is an output too stays", {"MatMul": 1, "BatchNormalization": 1})
def _(s: Sketch) -> None:
    y = s.op("MatMul", s.input((3, C)), s.tensor(s.normal(C, 5)))
    s.output(s.norm(y, 5), y)


@hazard("a norm of rows is none of features", {"MatMul": 1, "BatchNormalization": 1})
def _(s: Sketch) -> None:
    s.output(s.norm(s.op("MatMul", s.input((2, 5, C)), s.tensor(s.normal(C, 5))), 5))


@hazard("low-rank products beside a product", {"MatMul": 1, "Add": 1})
def _(s: Sketch) -> None:
    x = s.input((2, 6, C))
    low = s.op("MatMul", s.op("MatMul", x, s.tensor(s.normal(C, 2))), s.tensor(s.normal(2, 5)))
    low = s.op("Mul", low, s.tensor(0.5))
    base = s.op("Add", s.op("MatMul", x, s.tensor(s.normal(C, 5))), s.tensor(s.normal(5)))
    s.output(s.op("Add", base, low))


@hazard("a product and its bias stay as they are", STAYS)
def _(s: Sketch) -> None:
    s.output(
        s.op("Relu", s.op("Add", s.op("MatMul", s.input((2, 6, C)), s.tensor(s.normal(C, 5))), s.tensor(s.normal(5))))
    )


@hazard("a product of a low rank stays where its matrix would cost more", STAYS)
def _(s: Sketch) -> None:
    low = s.op("MatMul", s.input((2, 6, C)), s.tensor(s.normal(C, 1)))
    s.output(s.op("MatMul", low, s.tensor(s.normal(1, 5))))


@hazard("rows are joined for a norm and taken apart again", {"MatMul": 1, "Add": 1, "Relu": 1})
def _(s: Sketch) -> None:
    y = s.op("MatMul", s.op("Relu", s.input((2, 6, C))), s.tensor(s.normal(C, 5)))
    y = s.norm(s.op("Reshape", y, s.tensor([12, 5], dtype=I64)), 5)
    s.output(s.op("Reshape", y, s.tensor([2, 6, 5], dtype=I64)))


@hazard("rows are joined for a norm and taken apart otherwise", {"MatMul": 1, "Add": 1, "Reshape": 2})
def _(s: Sketch) -> None:
    y = s.op("MatMul", s.input((2, 6, C)), s.tensor(s.normal(C, 5)))
    y = s.norm(s.op("Reshape", y, s.tensor([12, 5], dtype=I64)), 5)
    s.output(s.op("Reshape", y, s.tensor([6, 2, 5], dtype=I64)))


@hazard("a norm behind two views of a product", {"Conv": 1, "Reshape": 1, "Transpose": 1, "Relu": 1})
def _(s: Sketch) -> None:
    y = s.op("Reshape", s.conv(s.input(), 5), s.tensor([1, 5, H * W], dtype=I64))
    y = s.op("Mul", s.norm(y, 5), s.tensor(s.uniform(1, 5, 1)))
    y = s.op("Transpose", y, perm=[0, 2, 1])
    s.output(s.op("Relu", s.op("Add", y, s.tensor(s.normal(5)))))


@hazard("a norm behind a view that is an output too stays", {"Conv": 1, "Reshape": 1, "BatchNormalization": 1})
def _(s: Sketch) -> None:
    y = s.op("Reshape", s.conv(s.input(), 5), s.tensor([1, 5, H * W], dtype=I64))
    s.output(s.norm(y, 5), y)


@hazard("a norm behind a view that joins channels stays", {"Conv": 1, "Reshape": 1, "BatchNormalization": 1})
def _(s: Sketch) -> None:
    y = s.op("Reshape", s.conv(s.input(), 2 * C), s.tensor([2, C, H * W], dtype=I64))
    s.output(s.norm(y))


@hazard("one axis", ONE)
def _(s: Sketch) -> None:
    x = s.input((2, C, 9))
    s.output(s.add(s.cbn(x, axes=1), s.cbn(x, kernel=1, axes=1), s.norm(x)))


@hazard("three axes", ONE)
def _(s: Sketch) -> None:
    x = s.input((1, C, 4, 5, 6))
    s.output(s.add(s.cbn(x, axes=3), s.cbn(x, kernel=1, axes=3), x))


@hazard("a constant [C, 1, 1] after three axes is no channel", STAYS)
def _(s: Sketch) -> None:
    s.output(s.op("Add", s.conv(s.input((1, C, C, 5, 6)), axes=3), s.tensor(s.normal(C, 1, 1))))


@hazard("a transposed convolution and its norm", {"ConvTranspose": 1})
def _(s: Sketch) -> None:
    inner = s.op("ConvTranspose", s.input(), s.tensor(s.normal(C, C, 3, 3)), strides=[2, 2])
    s.output(s.norm(inner))


@hazard("a norm before a transposed convolution stays", STAYS)
def _(s: Sketch) -> None:
    s.output(s.op("ConvTranspose", s.norm(s.input()), s.tensor(s.normal(C, C, 3, 3)), strides=[2, 2]))


@hazard("a transposed convolution in groups with everything", {"ConvTranspose": 1})
def _(s: Sketch) -> None:
    weight, bias = s.tensor(s.normal(C, 3, 3, 3)), s.tensor(s.normal(6))
    more = {"strides": [2, 3], "pads": [1, 0, 0, 1], "output_padding": [1, 2], "dilations": [1, 2]}
    s.output(s.norm(s.op("ConvTranspose", s.input(), weight, bias, group=2, **more), 6))


@hazard("groups that differ by branch, one inside the other", ONE)
def _(s: Sketch) -> None:
    s.output(s.add(s.cbn(s.input(), groups=2), s.cbn(s.x, kernel=1, groups=4)))


@hazard("grouped branches inside a dense one", ONE)
def _(s: Sketch) -> None:
    s.output(s.add(s.cbn(s.input()), s.cbn(s.x, kernel=1, groups=4), s.cbn(s.x, groups=2)))


@hazard("groups with an identity", ONE)
def _(s: Sketch) -> None:
    x = s.input((1, 8, H, W))
    s.output(s.add(s.cbn(x, 8, inputs=8, groups=2), s.cbn(x, 8, kernel=1, inputs=8, groups=2), s.norm(x, 8)))


@hazard("depthwise with a multiplier", ONE)
def _(s: Sketch) -> None:
    x = s.input()
    s.output(s.add(s.cbn(x, 3 * C, groups=C), s.cbn(x, 3 * C, kernel=1, groups=C)))


@hazard("convolution without optional attributes", ONE)
def _(s: Sketch) -> None:
    s.output(s.norm(s.op("Conv", s.input(), s.tensor(s.normal(C, C, 3, 3)))))


@hazard("convolution with an empty name for its bias", ONE)
def _(s: Sketch) -> None:
    s.output(s.norm(s.op("Conv", s.input(), s.tensor(s.normal(C, C, 3, 3)), "")))


# --- types -----------------------------------------------------------------------------------------------------------

for _type, _engine in ((F16, "ort"), (BF16, "none"), (F64, "double")):

    @hazard(f"a whole block in {TensorProto.DataType.Name(_type).lower()}", ONE, dtype=_type, engine=_engine)
    def _(s: Sketch) -> None:
        s.output(s.add(s.rep(s.input()), s.norm(s.x)))


def scaled(s: Sketch, weight: float, scale: float) -> None:
    inner = s.conv(s.input(), weight=s.tensor(s.uniform(C, C, 3, 3) * weight))
    s.output(s.op("Mul", inner, s.tensor(scale)))


hazard("float16 that overflows when folded", STAYS, dtype=F16)(partial(scaled, weight=1000.0, scale=200.0))
hazard("float16 that vanishes when folded", STAYS, dtype=F16)(partial(scaled, weight=1e-3, scale=1e-5))
hazard("float16 just inside its range", ONE, dtype=F16)(partial(scaled, weight=10.0, scale=20.0))
hazard("float32 that overflows when folded", STAYS)(partial(scaled, weight=1e30, scale=1e30))
hazard("float32 that vanishes when folded", STAYS)(partial(scaled, weight=1e-30, scale=1e-30))
hazard("bfloat16 that overflows when folded", STAYS, dtype=BF16, engine="none")(
    partial(scaled, weight=1e30, scale=1e30)
)


@hazard("float16 bias that overflows when folded", STAYS, dtype=F16)
def _(s: Sketch) -> None:
    inner = s.op("Conv", s.input(), s.tensor(s.normal(C, C, 1, 1)), s.tensor(np.full(C, 4e4)))
    s.output(s.op("Mul", inner, s.tensor(2.0)))


@hazard("quantized between convolution and norm", STAYS)
def _(s: Sketch) -> None:
    scale, zero = s.tensor(0.02), s.tensor(3, dtype=I8)
    rounded = s.op("QuantizeLinear", s.conv(s.input()), scale, zero)
    s.output(s.norm(s.op("DequantizeLinear", rounded, scale, zero)))


@hazard("quantized in one branch", {"Conv": 2, "Add": 1, "QuantizeLinear": 1, "DequantizeLinear": 1})
def _(s: Sketch) -> None:
    scale, zero = s.tensor(0.02), s.tensor(3, dtype=I8)
    rounded = s.op("DequantizeLinear", s.op("QuantizeLinear", s.cbn(s.input()), scale, zero), scale, zero)
    s.output(s.add(rounded, s.cbn(s.x, kernel=1)))


@hazard("cast to half and back", STAYS)
def _(s: Sketch) -> None:
    s.output(s.norm(s.op("Cast", s.op("Cast", s.conv(s.input()), to=F16), to=F32)))


@hazard("cast to the type it has", {"Conv": 1})
def _(s: Sketch) -> None:
    s.output(s.norm(s.op("Cast", s.conv(s.input()), to=F32)))


# --- what does nothing, and what only looks so -----------------------------------------------------------------------


@hazard("Identity from input to output", STAYS)
def _(s: Sketch) -> None:
    s.output(s.op("Identity", s.input()))


@hazard("Identity between two outputs", STAYS)
def _(s: Sketch) -> None:
    first = s.op("Relu", s.input())
    s.output(first, s.op("Identity", first))


@hazard("Identity at the output", {"Relu": 1})
def _(s: Sketch) -> None:
    s.output(s.op("Identity", s.op("Relu", s.input())))


@hazard("two Identities of one value, both outputs", {"Relu": 1, "Identity": 1})
def _(s: Sketch) -> None:
    first = s.op("Relu", s.input())
    s.output(s.op("Identity", first), s.op("Identity", first))


@hazard("Identity of the input, read by a body", {"If": 1, "Relu": 1, "Neg": 1})
def _(s: Sketch) -> None:
    flag, same = s.input((), "flag", BOOL), s.op("Identity", s.input())
    s.output(s.choose(flag, lambda b: b.op("Relu", same), lambda b: b.op("Neg", same)))


@hazard("Identity of a value that a body renames", {"If": 1, "Relu": 1, "Neg": 1, "Exp": 1, "Abs": 1})
def _(s: Sketch) -> None:
    """The body has a value of its own with the name that would be read in its place."""
    flag, inner = s.input((), "flag", BOOL), s.op("Exp", s.input(), out="taken")
    same = s.op("Identity", inner)

    def body(b: Sketch) -> str:
        return b.op("Relu", b.op("Abs", same))

    s.output(s.choose(flag, body, lambda b: b.op("Neg", same)))


@hazard("Dropout at rest", {"Exp": 1, "Relu": 1})
def _(s: Sketch) -> None:
    s.output(s.op("Relu", s.op("Dropout", s.op("Exp", s.input()), s.tensor(0.5))))


@hazard("Dropout whose mask is read", STAYS)
def _(s: Sketch) -> None:
    inner = s.op("Exp", s.input())
    s.nodes.append(helper.make_node("Dropout", [inner], ["kept", "mask"], "dropout"))
    s.output("kept")
    s.output("mask", dtype=BOOL)


@hazard("Dropout in training", STAYS, engine="none")
def _(s: Sketch) -> None:
    inner = s.op("Exp", s.input())
    s.output(s.op("Relu", s.op("Dropout", inner, s.tensor(0.5), s.tensor(True, dtype=BOOL))))


@hazard("Dropout of opset 6 not in test mode", STAYS, opset=6, engine="none")
def _(s: Sketch) -> None:
    s.output(s.op("Relu", s.op("Dropout", s.op("Exp", s.input()), is_test=0)))


def neutral(s: Sketch, kind: str, values: Array, dims: tuple[int | str, ...] = (1, C, H, W)) -> None:
    s.output(s.op("Relu", s.op(kind, s.op("Exp", s.input(dims)), s.tensor(values))))


EXP_RELU = {"Exp": 1, "Relu": 1}
for _kind, _number in (("Mul", 1.0), ("Add", 0.0), ("Sub", 0.0), ("Div", 1.0)):
    for _shape in ((), (1,), (1, C, 1, 1), (1, C, H, 1)):
        full = np.full(_shape, _number)
        hazard(f"{_kind} of {_number} as {list(_shape)}", EXP_RELU)(partial(neutral, kind=_kind, values=full))
    for _shape in ((2, 1, 1, 1), (1, 1, 1, 1, 1)):
        full = np.full(_shape, _number)
        hazard(f"{_kind} of {_number} that broadcasts as {list(_shape)}", STAYS)(
            partial(neutral, kind=_kind, values=full)
        )
    hazard(f"{_kind} of {_number} as [3] on a column of 1", STAYS)(
        partial(neutral, kind=_kind, values=np.full(3, _number), dims=(1, C, H, 1))
    )
hazard("Mul by almost one", STAYS)(partial(neutral, kind="Mul", values=np.array([1 + 2e-7])))
hazard("Mul by one and once by two", STAYS)(
    partial(neutral, kind="Mul", values=np.array([1.0, 1, 2, 1]).reshape(1, C, 1, 1))
)


@hazard("0 minus a value", STAYS)
def _(s: Sketch) -> None:
    s.output(s.op("Relu", s.op("Sub", s.tensor(0.0), s.op("Exp", s.input()))))


@hazard("1 over a value", STAYS)
def _(s: Sketch) -> None:
    s.output(s.op("Relu", s.op("Div", s.tensor(1.0), s.op("Exp", s.input()))))


@hazard("leaky ReLU that does not leak", EXP_RELU)
def _(s: Sketch) -> None:
    s.output(s.op("Relu", s.op("LeakyRelu", s.op("Exp", s.input()), alpha=1.0)))


@hazard("leaky ReLU that leaks a little less", STAYS)
def _(s: Sketch) -> None:
    s.output(s.op("Tanh", s.op("LeakyRelu", s.op("Sin", s.input()), alpha=0.9999)))


# --- files -----------------------------------------------------------------------------------------------------------


@hazard("nodes out of order", {"Conv": 1, "Relu": 1}, valid=False)
def _(s: Sketch) -> None:
    s.output(s.op("Relu", s.rep(s.input())))
    s.nodes.reverse()


@hazard("all nodes of one name", {"Conv": 1, "Relu": 1}, engine="none")
def _(s: Sketch) -> None:
    s.output(s.op("Relu", s.rep(s.input())))
    for node in s.nodes:
        node.name = "node"


@hazard("nodes without names", {"Conv": 2, "Relu": 2})
def _(s: Sketch) -> None:
    s.output(s.op("Relu", s.rep(s.op("Relu", s.rep(s.input())))))
    for node in s.nodes:
        node.name = ""


@hazard("a body whose values have the names that a fold would choose", {"Conv": 2, "If": 1, "Neg": 2})
def _(s: Sketch) -> None:
    """Whatever name comes for the new weight, a body that reads the graph's values must not see it change."""
    flag, y = s.input((), "flag", BOOL), s.rep(s.input())

    def body(b: Sketch) -> str:
        for suffix in (".weight", ".bias", "_weight", "_bias", ".kernel"):
            b.tensor(np.ones(1), y + suffix)
        return b.op("Neg", y)

    s.output(s.choose(flag, body, lambda b: b.op("Neg", y)), s.cbn(y))


@hazard("a domain that calls something else Conv", STAYS, engine="none")
def _(s: Sketch) -> None:
    inner = s.op("Conv", s.input(), s.tensor(s.normal(C, C, 1, 1)), domain="elsewhere")
    s.output(s.norm(inner))


@hazard("a norm of another domain", STAYS, engine="none")
def _(s: Sketch) -> None:
    s.output(s.op("BatchNormalization", s.conv(s.input()), *s.norm_parts(), domain="elsewhere"))


@hazard("a block inside an If body only", STAYS)
def _(s: Sketch) -> None:
    flag, x = s.input((), "flag", BOOL), s.input()
    s.output(s.choose(flag, lambda b: b.op("Neg", x), lambda b: b.op("Abs", x)))


@hazard("batch of 0", ONE)
def _(s: Sketch) -> None:
    s.output(s.rep(s.input((0, C, H, W))))


@hazard("free sizes", ONE)
def _(s: Sketch) -> None:
    s.output(s.add(s.rep(s.input(("N", C, "H", "W"))), s.x))


@hazard("an output that is an input, and one that is a constant", {"Conv": 1})
def _(s: Sketch) -> None:
    s.output(s.rep(s.input()))
    s.output(s.x, dims=(1, C, H, W))
    s.output(s.tensor(s.normal(3), "three"), dims=(3,))


@hazard("an input that is not read", {"Conv": 1})
def _(s: Sketch) -> None:
    x = s.input()
    s.input(("N", 3), "unread")
    s.output(s.rep(x))


STALE = [helper.make_tensor_value_info(f"conv_{at}", F32, [9, 9, 9]) for at in range(12)]


@hazard("types of values that were never true", ONE, engine="none", finish={"value_info": STALE})
def _(s: Sketch) -> None:
    s.output(s.rep(s.input()), dims=(1, C, H, W))


@pytest.mark.parametrize("name", CASES)
def test_hazard(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    before = sketched(case)
    source = tmp_path / "before.onnx"
    source.write_bytes(before.SerializeToString())
    result = api.apply(source, ["all"], verify=False)
    after = result.model
    assert_computes_the_same(before, after, case.engine, LIMIT.get(case.settings.get("dtype", F32), 0.0))
    if case.missed:
        assert op_histogram(after) != dict(case.gives), "it folds now: take `missed` away"
        pytest.xfail(case.missed)
    if case.gives == STAYS:
        assert not result.report.changed, [(record.pattern, record.summary) for record in result.report.matches]
        assert result.save(tmp_path / "after.onnx").read_bytes() == source.read_bytes()
        return
    assert op_histogram(after) == dict(case.gives)
    assert [v.SerializeToString() for v in after.graph.input] == [v.SerializeToString() for v in before.graph.input]
    assert [v.name for v in after.graph.output] == [v.name for v in before.graph.output]
    if case.valid:
        onnx.checker.check_model(after, full_check=case.engine != "none")
    assert not api.apply(after, ["all"], verify=False).report.changed


LATEST = onnx.defs.onnx_opset_version()


@pytest.mark.parametrize("opset", range(7, LATEST + 1))
def test_every_opset(opset: int) -> None:
    sketch = Sketch(opset=opset, ir=10)
    sketch.output(sketch.op("Relu", sketch.add(sketch.rep(sketch.input()), sketch.norm(sketch.x))))
    before = sketch.finish()
    after = api.apply(before, ["all"], verify=False).model
    assert op_histogram(after) == {"Conv": 1, "Relu": 1}
    assert (after.ir_version, after.opset_import) == (before.ir_version, before.opset_import)
    onnx.checker.check_model(after, full_check=True)
    if opset <= runs_up_to():
        assert_computes_the_same(before, after, "ort", LIMIT[F32])


@pytest.mark.parametrize("ir", range(3, onnx.IR_VERSION + 1))
def test_every_ir_version(ir: int) -> None:
    """Weights in Constant nodes, which no caller can set; IR 3 wants every initializer among the inputs."""
    sketch = Sketch(opset=8 if ir == 3 else 13, ir=ir)
    x = sketch.input()

    def cbn(kernel: int) -> str:
        inner = sketch.op("Conv", x, sketch.constant(sketch.normal(C, C, kernel, kernel)), pads=[kernel // 2] * 4)
        parts = [sketch.constant(values) for values in (sketch.uniform(C), sketch.normal(C), sketch.normal(C))]
        return sketch.norm(inner, parts=[*parts, sketch.constant(sketch.uniform(C))])

    sketch.output(sketch.add(cbn(3), cbn(1)), dims=(1, C, H, W))
    before = sketch.finish()
    onnx.checker.check_model(before, full_check=True)
    after = api.apply(before, ["all"], verify=False).model
    ops = op_histogram(after)
    assert (ops["Conv"], ops.get("BatchNormalization", 0)) == (1, 0) and ops.keys() <= {"Conv", "Constant"}
    assert after.ir_version == ir
    onnx.checker.check_model(after, full_check=True)
    if ir <= 10:
        assert_computes_the_same(before, after, "ort", LIMIT[F32])


def runs_up_to() -> int:
    """The newest opset that ONNX Runtime takes."""
    for opset in range(LATEST, 6, -1):
        sketch = Sketch(opset=opset)
        sketch.output(sketch.op("Relu", sketch.input()))
        try:
            ort.InferenceSession(sketch.finish().SerializeToString(), providers=["CPUExecutionProvider"])
        except Exception:
            continue
        return opset
    raise AssertionError("ONNX Runtime takes no opset at all")


def test_there_are_enough_cases() -> None:
    stays = [name for name, case in CASES.items() if case.gives == STAYS]
    assert len(CASES) >= 60 and len(stays) >= 25 and len(CASES) - len(stays) >= 25
