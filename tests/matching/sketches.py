"""Graphs drawn node by node for the tests of matching, and patterns from text.

Invariant: a value is named after the node that makes it ("conv_3" makes "conv_3:0"), so that tests tell the two apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from rewriter.errors import Refusal
from rewriter.graph.onnx import view
from rewriter.graph.view import Graph
from rewriter.language.parser import parse, prelude
from rewriter.language.syntax import BodyMatch
from rewriter.matching.find import Match, Query, find, query_of

CHANNELS = 4

REPCONV = "match y = x -> sum { dense{1..}: cbn skip{0..1}: norm* } -> norm* do fold to conv"
CONV_BN = "match y = x -> conv -> norm+ do fold to conv"


class Sketch:
    """Every method adds a node and gives the name of the value it makes; weights are zeros."""

    def __init__(self, channels: int = CHANNELS, inputs: Sequence[str] = ("x",)) -> None:
        self.channels = channels
        self.inputs = {name: channels for name in inputs}
        self.nodes: list[NodeProto] = []
        self.tensors: list[TensorProto] = []

    def const(self, *shape: int, value: float = 0.5) -> str:
        name = f"const_{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.full(shape, value, np.float32), name))
        return name

    def op(self, op_type: str, *inputs: str, outputs: int = 1, label: str | None = None, **attrs: Any) -> str:
        name = f"{op_type.lower()}_{len(self.nodes)}" if label is None else label
        made = [f"{name or len(self.nodes)}:{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op_type, inputs, made, name=name, **attrs))
        return made[0]

    def conv(
        self, x: str, k: int | tuple[int, ...] = 3, *, out: int = 0, wide: int = 0, groups: int = 1, **attrs: Any
    ) -> str:
        window = (k, k) if isinstance(k, int) else k
        wide = wide or self.channels
        weight = self.const(out or self.channels, wide // groups, *window)
        dilations = attrs.setdefault("dilations", [1] * len(window))
        pads = [d * (n - 1) // 2 for d, n in zip(dilations, window, strict=True)] * 2
        return self.op("Conv", x, weight, **{"pads": pads, "group": groups, **attrs})

    def bn(self, x: str, channels: int = 0) -> str:
        return self.op("BatchNormalization", x, *(self.const(channels or self.channels) for _ in range(4)))

    def cbn(self, x: str, k: int = 3, **more: Any) -> str:
        return self.bn(self.conv(x, k, **more), more.get("out", 0))

    def scale(self, x: str, value: float = 0.5, *shape: int) -> str:
        return self.op("Mul", x, self.const(*shape, value=value))

    def shift(self, x: str, value: float = 0.5, *shape: int) -> str:
        return self.op("Add", x, self.const(*shape, value=value))

    def add(self, a: str, b: str) -> str:
        return self.op("Add", a, b)

    def sub(self, a: str, b: str) -> str:
        return self.op("Sub", a, b)

    def total(self, *operands: str) -> str:
        """Adds from the left."""
        first, *rest = operands
        for operand in rest:
            first = self.add(first, operand)
        return first

    def relu(self, x: str) -> str:
        return self.op("Relu", x)

    def model(self, *outputs: str) -> ModelProto:
        shapes = {name: [1, wide, 8, 8] for name, wide in self.inputs.items()}
        inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
        made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "sketch", inputs, made, self.tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)

    def graph(self, *outputs: str) -> Graph:
        return view(self.model(*outputs))


def query(clauses: str, name: str = "p", *, chains: str = "", **params: Any) -> Query:
    """The pattern `name` with these clauses, compiled."""
    file = parse(f'fxrewrite 1\n{chains}\npattern {name} {{ doc "d" {clauses} }}', "test.fxp")
    (pattern,) = file.patterns
    assert isinstance(pattern.match, BodyMatch)
    known = {**prelude(), **{chain.name: chain for chain in file.chains}}
    defaults = {p.name: p.value for p in pattern.params}
    return query_of(pattern, known, {**defaults, **params}, cost_gate=True)


def matches(graph: Graph, wanted: Query) -> list[Match]:
    return [found for found in find(graph, wanted) if isinstance(found, Match)]


def refusals(graph: Graph, wanted: Query) -> list[Refusal]:
    return [found for found in find(graph, wanted) if isinstance(found, Refusal)]


def only(graph: Graph, wanted: Query) -> Match:
    """The one match there is, of nothing refused."""
    (found,) = find(graph, wanted)
    assert isinstance(found, Match), str(found)
    return found


def refused(graph: Graph, wanted: Query) -> Refusal:
    """The one refusal there is, and no match."""
    (found,) = find(graph, wanted)
    assert isinstance(found, Refusal), found.words
    return found


def names(match: Match) -> set[str]:
    return {node.name for node in match.region.nodes}


def rest(match: Match) -> list[tuple[int, str]]:
    return [(sign, value.name) for sign, value in match.region.rest]
