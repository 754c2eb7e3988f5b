"""The nodes of a net: one ONNX node per operator, shapes followed along, weights made up.

Invariant: the same net and generator give the same nodes. No weight is near 0 or shared, and norms have statistics of
their own, so a fold that mixes anything up is seen. Budgets hold before anything is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from rewriter.errors import PatternError
from rewriter.language.signatures import SIGNATURES
from rewriter.language.syntax import Net, NetChain, NetOp, NetSum

if TYPE_CHECKING:
    import onnx

MAX_ELEMENTS = 1 << 24
"""Elements of all weights of one net, and of any value."""

Shape: TypeAlias = "tuple[int | str | None, ...]"
_PLAIN = {
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "hardswish": "HardSwish",
    "neg": "Neg",
    "identity": "Identity",
    "dropout": "Dropout",
}


@dataclass(frozen=True, slots=True)
class Value:
    name: str
    shape: Shape

    @property
    def rank(self) -> int:
        return len(self.shape)


@dataclass
class Builder:
    """The state of one building pass."""

    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list["onnx.NodeProto"])
    tensors: list[onnx.TensorProto] = field(default_factory=list["onnx.TensorProto"])
    inputs: dict[str, Value] = field(default_factory=dict[str, Value])
    values: dict[str, Value] = field(default_factory=dict[str, Value])
    read: set[str] = field(default_factory=set[str])
    elements: int = 0

    def statement(self, name: str, chain: NetChain) -> None:
        before = len(self.nodes)
        value = self.chain(chain, None)
        if len(self.nodes) == before:
            value = self.node("Identity", [value], value.shape)
        # The last node of the chain made the value; it carries the name of the statement.
        made = self.nodes[-1]
        made.output[0] = name
        self.values[name] = Value(name, value.shape)

    def chain(self, chain: NetChain, running: Value | None) -> Value:
        value = running
        for item in chain.items:
            value = self.junction(item, value) if isinstance(item, NetSum) else self.item(item, value)
        assert value is not None  # the parser lets no chain begin with an operator that has nothing to work on
        return value

    def item(self, op: NetOp, running: Value | None) -> Value:
        if op.shape is not None:
            self.inputs[op.name] = self.values[op.name] = Value(op.name, op.shape)
            self.check_size(op, op.shape)
            return self.values[op.name]
        if op.name in SIGNATURES and running is not None:
            return OpBuilder(self, op, running).build()
        return self.values[op.name]

    def junction(self, item: NetSum, running: Value | None) -> Value:
        operands = [(sign, self.chain(chain, running)) for sign, chain in item.operands]
        if item.kind == "concat":
            values = [value for _, value in operands]
            extents = [_channels(item, value) for value in values]
            shape = (values[0].shape[0], sum(extents), *values[0].shape[2:])
            return self.node("Concat", values, shape, axis=1)
        sign, total = operands[0]
        if sign:
            total = self.node("Neg", [total], total.shape)
        for sign, value in operands[1:]:
            total = self.node("Sub" if sign else "Add", [total, value], _broadcast(item, total.shape, value.shape))
        return total

    def node(self, kind: str, inputs: Sequence[Value | str], shape: Shape, **attributes: Any) -> Value:
        from onnx import helper

        names = [value if isinstance(value, str) else value.name for value in inputs]
        self.read.update(names)
        label = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, names, [f"{label}_output"], name=label, **attributes))
        return Value(f"{label}_output", shape)

    def tensor(self, op: NetOp, values: npt.NDArray[Any]) -> str:
        from onnx import numpy_helper

        name = f"{op.name}_{len(self.nodes)}_{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(values, name))
        return name

    def weight(self, op: NetOp, shape: tuple[int, ...], *, around: float = 0.0, spread: float = 1.0) -> str:
        """Random float32 elements: `around` plus or minus something of the size of `spread`, never near `around`."""
        self.elements += math.prod(shape)
        if self.elements > MAX_ELEMENTS:
            raise error(op, f"the weights of a net have at most {MAX_ELEMENTS} elements")
        values = self.rng.uniform(0.2, 1.0, shape) * self.rng.choice((-1.0, 1.0), shape)
        return self.tensor(op, (around + spread * values).astype(np.float32))

    def check_size(self, op: NetOp | NetSum, shape: Shape) -> None:
        if math.prod(extent for extent in shape if isinstance(extent, int)) > MAX_ELEMENTS:
            raise error(op, f"a value of a net has at most {MAX_ELEMENTS} elements")


@dataclass(frozen=True, slots=True)
class OpBuilder:
    """One operator over its running value."""

    builder: Builder
    op: NetOp
    value: Value

    def build(self) -> Value:
        if self.op.name in _PLAIN:
            made = self.node(_PLAIN[self.op.name], [], self.value.shape)
        else:
            made = getattr(self, f"_{self.op.name}")()
        self.builder.check_size(self.op, made.shape)
        return made

    # --- arguments -------------------------------------------------------------------------------------------------

    def given(self, name: str) -> Any:
        """An argument as written, else its default."""
        signature = SIGNATURES[self.op.name]
        for place, argument in enumerate(self.op.arguments):
            if (argument.name or signature.arguments[place].name) == name:
                return argument.value
        wanted = signature.argument(name)
        return None if wanted is None else wanted.default

    def numbers(self, name: str) -> list[int]:
        """The numbers of a list; a number by itself is a list of one."""
        value = self.given(name)
        return [int(number) for number in cast("tuple[int, ...]", value)] if isinstance(value, tuple) else [int(value)]

    def per_axis(self, name: str) -> list[int]:
        found, spatial = self.numbers(name), self.value.rank - 2
        if not isinstance(self.given(name), tuple):
            return found * spatial
        if len(found) != spatial:
            raise error(self.op, f"'{name}' has {len(found)} numbers, the value has {spatial} spatial axes")
        return found

    def pads(self, name: str = "pad") -> list[int]:
        """All begins, then all ends."""
        found = self.numbers(name)
        return found if len(found) == 2 * (self.value.rank - 2) else self.per_axis(name) * 2

    def node(self, kind: str, more: Sequence[str], shape: Shape, **attributes: Any) -> Value:
        return self.builder.node(kind, [self.value, *more], shape, **attributes)

    def spatial(self) -> None:
        if self.value.rank < 3:
            raise error(
                self.op, f"'{self.op.name}' needs a value with spatial axes, this one has {self.value.rank} axes"
            )

    def window_shape(self, channels: int | str | None, *, transposed: bool = False) -> Shape:
        kernel, stride, pads = self.per_axis("k"), self.per_axis("stride"), self.pads()
        dilation = self.per_axis("dilation") if self.given("dilation") is not None else [1] * len(kernel)
        extents: list[int | None] = []
        for axis, extent in enumerate(self.value.shape[2:]):
            reach, pad = dilation[axis] * (kernel[axis] - 1) + 1, pads[axis] + pads[axis + len(kernel)]
            if not isinstance(extent, int):
                extents.append(None)
                continue
            size = (
                (extent - 1) * stride[axis] + reach - pad if transposed else (extent + pad - reach) // stride[axis] + 1
            )
            if size < 1:
                raise error(self.op, f"'{self.op.name}' leaves nothing of axis {axis + 2}, which has {extent} elements")
            extents.append(size)
        return (self.value.shape[0], channels, *extents)

    # --- operators -------------------------------------------------------------------------------------------------

    def _conv(self, *, transposed: bool = False) -> Value:
        self.spatial()
        channels, out, groups = _channels(self.op, self.value), int(self.given("out")), int(self.given("groups"))
        if channels % groups or out % groups:
            raise error(self.op, f"{groups} groups do not divide {channels} channels in and {out} out")
        kernel = self.per_axis("k")
        outer = (channels, out // groups) if transposed else (out, channels // groups)
        spread = 1.5 / math.sqrt(channels // groups * math.prod(kernel))
        more = [self.builder.weight(self.op, (*outer, *kernel), spread=spread)]
        if self.given("computed") == "yes":
            factor = self.builder.weight(self.op, (out, *[1] * (1 + len(kernel))), around=1.0, spread=0.3)
            more = [self.builder.node("Mul", [*more, factor], (out, channels // groups, *kernel)).name]
        if self.given("bias") == "yes":
            more.append(self.builder.weight(self.op, (out,)))
        shape = self.window_shape(out, transposed=transposed)
        geometry = {"strides": self.per_axis("stride"), "pads": self.pads(), "dilations": self.per_axis("dilation")}
        kind = "ConvTranspose" if transposed else "Conv"
        return self.node(kind, more, shape, kernel_shape=kernel, group=groups, **geometry)

    def _conv_transpose(self) -> Value:
        return self._conv(transposed=True)

    def _linear(self) -> Value:
        features, out = self.value.shape[-1], int(self.given("out"))
        if not isinstance(features, int):
            raise error(self.op, "'linear' needs a known number of features in the last axis")
        spread, shape = 1.5 / math.sqrt(features), (*self.value.shape[:-1], out)
        if self.value.rank == 2:
            more = [self.builder.weight(self.op, (out, features), spread=spread)]
            more += [self.builder.weight(self.op, (out,))] if self.given("bias") == "yes" else []
            return self.node("Gemm", more, shape, transB=1)
        made = self.node("MatMul", [self.builder.weight(self.op, (features, out), spread=spread)], shape)
        if self.given("bias") == "yes":
            return self.builder.node("Add", [made, self.builder.weight(self.op, (out,))], shape)
        return made

    def _bn(self) -> Value:
        channels, builder = (_channels(self.op, self.value),), self.builder
        more = [
            builder.weight(self.op, channels, around=1.1, spread=0.5),
            builder.weight(self.op, channels, spread=0.7),
            builder.weight(self.op, channels, spread=0.7),
            builder.weight(self.op, channels, around=1.2, spread=0.6),
        ]
        return self.node("BatchNormalization", more, self.value.shape, epsilon=float(self.given("eps")))

    def _scale(self) -> Value:
        return self._per_channel("Mul")

    def _shift(self) -> Value:
        return self._per_channel("Add")

    def _per_channel(self, kind: str) -> Value:
        value = self.given("value")
        if value is not None:
            return self.node(kind, [self.builder.tensor(self.op, np.array(value, np.float32))], self.value.shape)
        shape = (_channels(self.op, self.value), *(1,) * (self.value.rank - 2))
        return self.node(kind, [self.builder.weight(self.op, shape)], self.value.shape)

    def _cast(self) -> Value:
        from onnx import TensorProto

        numbers = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}
        kind = str(self.given("to"))
        number = numbers.get(kind) or TensorProto.DataType.Value(kind.upper())
        return self.node("Cast", [], self.value.shape, to=number)

    def _pad(self) -> Value:
        self.spatial()
        amounts = self.pads("amount")
        half = len(amounts) // 2
        pads = np.array([0, 0, *amounts[:half], 0, 0, *amounts[half:]], np.int64)
        extents = [
            extent + amounts[i] + amounts[i + half] if isinstance(extent, int) else None
            for i, extent in enumerate(self.value.shape[2:])
        ]
        value = np.array(self.given("value"), np.float32)
        more = [self.builder.tensor(self.op, pads), self.builder.tensor(self.op, value)]
        return self.node("Pad", more, (*self.value.shape[:2], *extents))

    def _leaky_relu(self) -> Value:
        return self.node("LeakyRelu", [], self.value.shape, alpha=float(self.given("slope")))

    def _silu(self) -> Value:
        gate = self.node("Sigmoid", [], self.value.shape)
        return self.node("Mul", [gate.name], self.value.shape)

    def _softmax(self) -> Value:
        return self.node("Softmax", [], self.value.shape, axis=self.axis())

    def _avg_pool(self) -> Value:
        counts = int(self.given("counts_pad") == "yes")
        return self._pool("AveragePool", count_include_pad=counts)

    def _max_pool(self) -> Value:
        return self._pool("MaxPool")

    def _pool(self, kind: str, **attributes: int) -> Value:
        self.spatial()
        shape = self.window_shape(self.value.shape[1])
        geometry = {"kernel_shape": self.per_axis("k"), "strides": self.per_axis("stride"), "pads": self.pads()}
        return self.node(kind, [], shape, **geometry, **attributes)

    def _slice(self) -> Value:
        axis, start, end = self.axis(), int(self.given("start")), int(self.given("end"))
        extent = self.value.shape[axis]
        if not isinstance(extent, int) or not 0 <= start < end <= extent:
            raise error(self.op, f"there is no slice from {start} to {end} of an axis of {extent} elements")
        more = [self.builder.tensor(self.op, np.array([number], np.int64)) for number in (start, end, axis)]
        return self.node("Slice", more, (*self.value.shape[:axis], end - start, *self.value.shape[axis + 1 :]))

    def _transpose(self) -> Value:
        perm = self.numbers("perm")
        if sorted(perm) != list(range(self.value.rank)):
            raise error(self.op, f"{perm} is no order of {self.value.rank} axes")
        return self.node("Transpose", [], tuple(self.value.shape[axis] for axis in perm), perm=perm)

    def _reshape(self) -> Value:
        wanted = self.numbers("shape")
        known = [extent for extent in self.value.shape if isinstance(extent, int)]
        fixed = math.prod(extent for extent in wanted if extent != -1)
        total = math.prod(known)
        if len(known) != self.value.rank or wanted.count(-1) > 1 or min(wanted) < -1 or fixed < 1 or total % fixed:
            raise error(self.op, f"{list(self.value.shape)} does not reshape to {wanted}")
        if -1 not in wanted and fixed != total:
            raise error(self.op, f"{list(self.value.shape)} does not reshape to {wanted}")
        shape = tuple(total // fixed if extent == -1 else extent for extent in wanted)
        return self.node("Reshape", [self.builder.tensor(self.op, np.array(wanted, np.int64))], shape)

    def axis(self) -> int:
        axis, rank = int(self.given("axis")), self.value.rank
        if not -rank <= axis < rank:
            raise error(self.op, f"there is no axis {axis} among {rank}")
        return axis % rank


def _channels(op: NetOp | NetSum, value: Value) -> int:
    channels = value.shape[1] if value.rank > 1 else None
    if not isinstance(channels, int):
        raise error(op, "this needs a value with a known number of channels in axis 1")
    return channels


def _broadcast(op: NetSum, left: Shape, right: Shape) -> Shape:
    if len(left) != len(right):
        raise error(op, f"shapes {list(left)} and {list(right)} do not add")
    result: list[int | str | None] = []
    for a, b in zip(left, right, strict=True):
        if isinstance(a, int) and isinstance(b, int) and a != b and 1 not in (a, b):
            raise error(op, f"shapes {list(left)} and {list(right)} do not add")
        result.append(b if a == 1 else a)
    return tuple(result)


def error(op: NetOp | NetSum | Net, message: str) -> PatternError:
    return PatternError(f"line {op.pos.line}, column {op.pos.column}: {message}")
