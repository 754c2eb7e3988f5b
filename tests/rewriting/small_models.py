"""Models of a few nodes, node by node, and the reference evaluator that says what they compute.

Invariant: every number comes from the seed of the net, nodes stand in the order in which they are added, and nothing
here knows what a rewrite does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, checker, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from rewriter.language.library import LoadedPattern, resolve
from rewriter.rewriting.engine import Outcome, rewrite
from rewriter.rewriting.onnx_draft import OnnxDraft

CHANNELS = 4
SIZE = (6, 5)
ALL = ("repconv", "conv-bn", "bypass")


class SmallNet:
    """A graph under construction; every method adds one node and gives the name of its value."""

    def __init__(self, seed: int = 0, dtype: type[np.floating[Any]] = np.float32) -> None:
        self.random = np.random.default_rng(seed)
        self.dtype = dtype
        self.nodes: list[NodeProto] = []
        self.tensors: list[TensorProto] = []
        self.infos: list[ValueInfoProto] = []

    def add(self, op: str, inputs: Sequence[str], output: str = "", *, name: str | None = None, **attrs: Any) -> str:
        made = output or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [made], name=f"n_{made}" if name is None else name, **attrs))
        return made

    def tensor(self, array: Any, name: str = "") -> str:
        made = name or f"t{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.asarray(array).astype(self.dtype), made))
        return made

    def conv(self, x: str, output: str = "", *, k: int = 3, weight: str = "", bias: bool = False, **attrs: Any) -> str:
        w = weight or self.tensor(self.random.normal(size=(CHANNELS, CHANNELS, k, k)))
        inputs = [x, w, self.tensor(self.random.normal(size=CHANNELS))] if bias else [x, w]
        return self.add("Conv", inputs, output, pads=[k // 2] * 4, **attrs)

    def norm(self, x: str, output: str = "") -> str:
        positive, free = (lambda: self.random.uniform(0.5, 1.5, CHANNELS)), (lambda: self.random.normal(size=CHANNELS))
        values = [self.tensor(v) for v in (positive(), free(), free(), positive())]
        return self.add("BatchNormalization", [x, *values], output)

    def block(self, x: str, output: str = "") -> str:
        """3x3 beside 1x1 beside the value itself, each with its norm."""
        wide, point, same = self.norm(self.conv(x)), self.norm(self.conv(x, k=1)), self.norm(x)
        return self.add("Add", [self.add("Add", [wide, point]), same], output)

    def value(self, name: str) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype)), self.shape)

    @property
    def shape(self) -> list[int]:
        return [1, CHANNELS, *SIZE]

    def model(self, *outputs: str, inputs: Sequence[str] = ("x",), ir_version: int = 9, opset: int = 17) -> ModelProto:
        values = [self.value(name) for name in inputs], [self.value(name) for name in outputs]
        if any("flag" in node.input for node in self.nodes):
            values[0].append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
        graph = helper.make_graph(self.nodes, "net", *values, self.tensors, value_info=self.infos)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
        return made


def scalar_if(output: str, then: GraphProto, other: GraphProto) -> NodeProto:
    """An If on the input `flag`."""
    return helper.make_node("If", ["flag"], [output], name=f"n_{output}", then_branch=then, else_branch=other)


def rewritten(
    model: ModelProto, patterns: Sequence[str | LoadedPattern] = ALL, **options: Any
) -> tuple[ModelProto, Outcome]:
    """What the patterns make of a copy, which has to be a valid model that computes the same."""
    draft = OnnxDraft(copied(model))
    loaded = [p if isinstance(p, LoadedPattern) else resolve([p])[0] for p in patterns]
    outcome = rewrite(draft, loaded, **options)
    result = draft.finish()
    same(model, result)
    return result, outcome


def copied(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def same(before: ModelProto, after: ModelProto, names: Mapping[str, str] | None = None) -> None:
    """Assert that `after` is as valid as `before` and gives for its outputs what `before` gives, on both flags."""
    if valid(before):
        checker.check_model(after)
    for chosen in (True, False):
        feeds = feeds_of(before, chosen)
        expected = run(before, [o.name for o in before.graph.output], feeds)
        renamed = {(names or {}).get(name, name): value for name, value in feeds.items()}
        found = run(after, [o.name for o in after.graph.output], renamed)
        for name, wanted in expected.items():
            got = found.get((names or {}).get(name, name))
            if got is not None:
                scale = float(np.abs(wanted.astype(np.float64)).max())
                limit = (1e-2 if wanted.dtype.itemsize == 2 else 1e-5) * scale
                assert got.dtype == wanted.dtype and got.shape == wanted.shape
                assert np.abs(got.astype(np.float64) - wanted.astype(np.float64)).max() <= limit, name


def valid(model: ModelProto) -> bool:
    """Whether onnx's own checker takes it: it refuses bodies that use a name of the graph, which runtimes run."""
    try:
        checker.check_model(model)
    except checker.ValidationError:
        return False
    return True


def feeds_of(model: ModelProto, chosen: bool = True) -> dict[str, Any]:
    random = np.random.default_rng(7)
    feeds: dict[str, Any] = {}
    stored = {t.name for t in model.graph.initializer}
    for info in model.graph.input:
        kind = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        shape = [d.dim_value for d in info.type.tensor_type.shape.dim]
        if info.name not in stored:
            feeds[info.name] = np.array(chosen) if kind.kind == "b" else random.normal(size=shape).astype(kind)
    return feeds


def run(model: ModelProto, outputs: list[str], feeds: Mapping[str, Any]) -> dict[str, Any]:
    given: Any = ReferenceEvaluator(model).run(outputs, dict(feeds))
    return dict(zip(outputs, given, strict=True))


def ops(model: ModelProto) -> dict[str, int]:
    return dict(Counter(node.op_type for node in model.graph.node))


def node_making(model: ModelProto, value: str) -> NodeProto:
    (found,) = [node for node in model.graph.node if value in node.output]
    return found


def tensor_of(model: ModelProto, name: str) -> Any:
    (found,) = [t for t in model.graph.initializer if t.name == name]
    return numpy_helper.to_array(found)


def untouched(before: ModelProto, after: ModelProto) -> None:
    """Assert that every node and tensor of `after` that has a namesake in `before` is that one, byte for byte."""
    for field in ("node", "initializer", "input", "output", "value_info", "sparse_initializer"):
        old = {e.SerializeToString() for e in getattr(before.graph, field)}
        assert {e.SerializeToString() for e in getattr(after.graph, field)} <= old, field
