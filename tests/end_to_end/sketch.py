"""Writing small models by hand, node by node, with nothing added that was not asked for.

Invariant: a sketch is a function of its seed; constants are initializers unless `constant` is asked for; every value
may have any name, every node any order, and nothing is checked, so that odd models can be written too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper, shape_inference

Array = NDArray[Any]
Dims = Sequence[int | str]
C, H, W = 4, 6, 5  # channels, height and width of `x`: all different, so that no axis passes for another


class Sketch:
    """A graph being written: every method that makes a value returns its name."""

    def __init__(self, *, dtype: int = TensorProto.FLOAT, opset: int = 17, ir: int = 10, seed: int = 0) -> None:
        self.dtype, self.opset, self.ir = dtype, opset, ir
        self.random = np.random.default_rng(seed)
        self.nodes: list[NodeProto] = []
        self.tensors: list[TensorProto] = []
        self.inputs: list[ValueInfoProto] = []
        self.outputs: list[ValueInfoProto] = []
        self.x = ""
        self._count = 0

    def fresh(self, hint: str) -> str:
        self._count += 1
        return f"{hint}_{self._count}"

    def input(self, dims: Dims = (1, C, H, W), name: str = "x", dtype: int | None = None) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype or self.dtype, dims))
        self.x = self.x or (name if dtype is None else "")
        return name

    def output(self, *names: str, dims: Dims | None = None, dtype: int | None = None) -> None:
        self.outputs += [helper.make_tensor_value_info(name, dtype or self.dtype, dims) for name in names]

    def tensor(self, values: Array | float | Sequence[Any], name: str | None = None, dtype: int | None = None) -> str:
        """An initializer of the sketch's type (float values) or of `dtype`."""
        made = self.proto(values, name or self.fresh("tensor"), dtype)
        self.tensors.append(made)
        return made.name

    def proto(self, values: Array | float | Sequence[Any], name: str, dtype: int | None = None) -> TensorProto:
        return numpy_helper.from_array(np.asarray(values).astype(numpy_type(dtype or self.dtype)), name)

    def constant(self, values: Array | float | Sequence[Any], dtype: int | None = None) -> str:
        """A Constant node."""
        return self.op("Constant", value=self.proto(values, self.fresh("value"), dtype))

    def normal(self, *shape: int) -> Array:
        fan_in = max(int(np.prod(shape[1:])), 1)
        return self.random.normal(size=shape) * fan_in**-0.5

    def uniform(self, *shape: int) -> Array:
        return self.random.uniform(0.5, 1.5, shape)

    def op(
        self, kind: str, *inputs: str, name: str | None = None, out: str | None = None, domain: str = "", **attrs: Any
    ) -> str:
        made = out or self.fresh(kind.lower())
        self.nodes.append(
            helper.make_node(kind, inputs, [made], self.fresh("node") if name is None else name, domain=domain, **attrs)
        )
        return made

    def split(self, x: str, *sizes: int) -> list[str]:
        """The channels of an image in runs."""
        made = [self.fresh("part") for _ in sizes]
        given = self.tensor(list(sizes), dtype=TensorProto.INT64)
        self.nodes.append(helper.make_node("Split", [x, given], made, self.fresh("node"), axis=1))
        return made

    def conv(
        self,
        x: str,
        width: int = C,
        kernel: int | Sequence[int] = 3,
        *,
        inputs: int = C,
        groups: int = 1,
        pads: Sequence[int] | None = None,
        bias: bool = False,
        weight: str | None = None,
        axes: int = 2,
        **attrs: Any,
    ) -> str:
        """A convolution, padded to keep its grid unless `pads` or `auto_pad` say otherwise."""
        window = [kernel] * axes if isinstance(kernel, int) else list(kernel)
        weight = weight or self.tensor(self.normal(width, inputs // groups, *window))
        operands = [x, weight, *([self.tensor(self.normal(width))] if bias else [])]
        if "auto_pad" not in attrs:
            attrs["pads"] = list(pads) if pads is not None else [k // 2 for k in window] * 2
        return self.op("Conv", *operands, group=groups, **attrs)

    def norm_parts(self, width: int = C) -> list[str]:
        scale, shift, mean, variance = self.uniform(width), self.normal(width), self.normal(width), self.uniform(width)
        return [self.tensor(values) for values in (scale, shift, mean, variance)]

    def norm(self, x: str, width: int = C, parts: Sequence[str] | None = None, **attrs: Any) -> str:
        return self.op("BatchNormalization", x, *(parts or self.norm_parts(width)), epsilon=1e-3, **attrs)

    def cbn(self, x: str, width: int = C, kernel: int | Sequence[int] = 3, **options: Any) -> str:
        return self.norm(self.conv(x, width, kernel, **options), width)

    def add(self, first: str, *rest: str) -> str:
        for other in rest:
            first = self.op("Add", first, other)
        return first

    def rep(self, x: str, width: int = C, **options: Any) -> str:
        """3x3 and 1x1, each with its norm."""
        return self.add(self.cbn(x, width, 3, **options), self.cbn(x, width, 1, **options))

    def body(self, write: Any, results: int = 1) -> GraphProto:
        """The graph of an If branch, which sees what is outside; `write` gets a sketch and returns its results."""
        inner = Sketch(dtype=self.dtype, seed=self._count)
        inner._count = 1000 * (self._count + 1)
        self._count += 1
        made = write(inner)
        values = [helper.make_empty_tensor_value_info(made)]
        return helper.make_graph(inner.nodes, self.fresh("body"), [], values, inner.tensors)

    def choose(self, flag: str, then: Any, other: Any) -> str:
        return self.op("If", flag, then_branch=self.body(then), else_branch=self.body(other))

    def finish(self, **graph: Any) -> ModelProto:
        made = helper.make_graph(self.nodes, "net", self.inputs, self.outputs, self.tensors, **graph)
        domains = sorted({node.domain for node in self.nodes} - {""})
        imports = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
        model = helper.make_model(made, ir_version=self.ir, opset_imports=imports)
        _declare_outputs(model)
        return model


def _declare_outputs(model: ModelProto) -> None:
    """Give outputs without a shape the one that follows from the graph, where onnx can tell."""
    try:
        inferred = shape_inference.infer_shapes(model).graph.output
    except Exception:  # an odd model: its outputs stay as they were written
        return
    for value, known in zip(model.graph.output, inferred, strict=True):
        value.CopyFrom(known)


def numpy_type(dtype: int) -> Any:
    return helper.tensor_dtype_to_np_dtype(dtype)
