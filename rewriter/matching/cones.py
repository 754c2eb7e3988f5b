"""What the outputs of a graph are computed from: cones, depths, the PAN test and exclusive parts, in two sweeps.

Invariant: a sweep visits each node once, in the order of the view, and keeps one bit per output; nothing recurses. What
a body captures is read like any other value. Shape and Size hand on no elements: what is read only for its size is
*needed* by an output, and is no part of what flows into it; depth, PAN and membership speak of the flow alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from rewriter.graph import measure
from rewriter.graph.view import Graph, Node, Value

DEEPENING = frozenset({"conv", "conv_transpose", "linear", "matmul", "gemm"})
"""A path is as long as it has of these."""

SIZE_ONLY = frozenset({"shape", "size"})
POOLS = frozenset({"avg_pool", "max_pool", "lppool"})

# What hands every element on unchanged but for its type: converters to half precision put casts around a Resize.
ELEMENTS_KEPT = frozenset({"identity", "dropout", "cast"})

UNSTACKING = frozenset({"gather", "squeeze"})
"""What takes a part of a stack and drops its axis, the second behind a Split or a Slice."""

REARRANGING = ELEMENTS_KEPT | {"transpose", "reshape", "flatten", "squeeze", "unsqueeze"}
"""What gives every element of its first operand, perhaps elsewhere."""


@dataclass(frozen=True)
class Cones:
    """Per node of `graph`, as bits over `outputs` (each value once).

    `needed` says which outputs cannot do without the node, `flows` which its elements reach. `depth` is the longest
    path in convs or linears up to and with the node; `pan` whether a bottom-up path after a top-down one leads to it;
    `alive` whether elements of a graph input reach it.
    """

    graph: Graph
    outputs: tuple[Value, ...]
    needed: Sequence[int]
    flows: Sequence[int]
    depth: Sequence[int]
    pan: Sequence[bool]
    alive: Sequence[bool]

    @classmethod
    def of(cls, graph: Graph) -> Cones:
        outputs = tuple({value.name: value for value in graph.outputs}.values())
        needed, flows = _backward(graph, outputs)
        depth, pan, alive = _forward(graph)
        return cls(graph, outputs, needed, flows, depth, pan, alive)

    def bit(self, value: Value) -> int:
        return self._bits[value.name]

    def mask(self, values: Iterable[Value]) -> int:
        found = 0
        for value in values:
            found |= self.bit(value)
        return found

    def values(self, mask: int) -> tuple[Value, ...]:
        """The outputs of a mask, in the order of the model."""
        return tuple(value for i, value in enumerate(self.outputs) if mask >> i & 1)

    def computed(self, value: Value) -> bool:
        """False for an output that is an input or a constant: no node works for it."""
        return value.producer is not None and value.constant is None

    def flows_into(self, value: Value) -> int:
        """The other outputs that are computed from the elements of `value`."""
        found = 0
        for reader in value.readers:
            if self.graph.nodes[reader].op not in SIZE_ONLY:
                found |= self.flows[reader]
        return found

    def inside(self, output: Value) -> int:
        """The other outputs that are computed from its elements, be it from before they were put in another order."""
        origin = self._origins[output.name]
        return self.flows_into(output) | (self.flows_into(self.graph.values[origin]) & ~self._alike[origin])

    def apart(self, one: int, other: int) -> bool:
        """Whether something that tells results apart works for outputs of exactly one of two masks.

        That is a layer, a stored parameter, or what takes one part of a stack: its parts were made by layers.
        """
        return any(bool(mask & one) is not bool(mask & other) for mask in self._telling)

    @cached_property
    def _telling(self) -> frozenset[int]:
        telling = (n for n in self.graph.nodes if n.layered or n.op in DEEPENING or n.op in UNSTACKING)
        return frozenset({self.flows[n.index] for n in telling} | {readers for _, readers in self._parameters.values()})

    @cached_property
    def _origins(self) -> Mapping[str, str]:
        """Output -> the value whose elements it only puts in another order; itself where there is none."""
        found: dict[str, str] = {}
        for output in self.outputs:
            value, node = output, self.graph.producer(output)
            while node is not None and node.op in REARRANGING and node.data:
                value = node.data[0]
                node = self.graph.producer(value)
            found[output.name] = value.name
        return found

    @cached_property
    def _alike(self) -> Mapping[str, int]:
        """Origin -> the outputs that have it."""
        found: dict[str, int] = {}
        for output in self.outputs:
            origin = self._origins[output.name]
            found[origin] = found.get(origin, 0) | self.bit(output)
        return found

    def depth_of(self, value: Value) -> int:
        return 0 if value.producer is None else self.depth[value.producer]

    def pan_of(self, value: Value) -> bool:
        return value.producer is not None and self.pan[value.producer]

    def signatures(self, mask: int) -> set[int]:
        """Which outputs of `mask` share nodes that carry the input's elements: a mask per way of sharing."""
        return {flow & mask for flow, alive in zip(self.flows, self.alive, strict=True) if alive and flow & mask}

    @cached_property
    def layered(self) -> list[Node]:
        """The nodes in which layers hide that no depth counts."""
        return [node for node in self.graph.nodes if node.layered]

    def hidden(self, one: int, other: int) -> list[Node]:
        """Those of them that work for outputs of exactly one of two masks."""
        return [n for n in self.layered if bool(self.flows[n.index] & one) is not bool(self.flows[n.index] & other)]

    def exclusive(self, mask: int) -> list[Node]:
        """The nodes that outputs of `mask` need and no other output does."""
        return [n for n, m in zip(self.graph.nodes, self.needed, strict=True) if m and not m & ~mask]

    def parameters(self, mask: int) -> int:
        """Float elements of the stored tensors that only those nodes read as parameters, each tensor once."""
        return sum(size for size, readers in self._parameters.values() if not readers & ~mask)

    def parameters_of(self, wanted: int, among: int) -> int:
        """Float elements of the parameters that, of the outputs `among`, exactly those `wanted` need."""
        return sum(size for size, readers in self._parameters.values() if readers & among == wanted)

    def bytes_of(self, wanted: int, among: int) -> int:
        """Bytes of the stored tensors that, of the outputs `among`, exactly those `wanted` need."""
        return sum(size for size, readers in self._stored.values() if readers & among == wanted)

    def tensors(self, mask: int) -> list[str]:
        """The names of the tensors that `parameters` counts."""
        return [name for name, (_, readers) in self._parameters.items() if not readers & ~mask]

    @cached_property
    def _bits(self) -> Mapping[str, int]:
        return {value.name: 1 << i for i, value in enumerate(self.outputs)}

    @cached_property
    def _stored(self) -> Mapping[str, tuple[int, int]]:
        """Stored tensor -> its bytes, and the outputs that need a reader of it."""
        found: dict[str, tuple[int, int]] = {}
        for node, mask in zip(self.graph.nodes, self.needed, strict=True):
            for name, size in measure.stored_by(self.graph, node).items():
                _, readers = found.get(name, (size, 0))
                found[name] = size, readers | mask
        return found

    @cached_property
    def _parameters(self) -> Mapping[str, tuple[int, int]]:
        """Stored parameter -> its size, and the outputs that need a reader of it; one bit more stands for nobody."""
        nobody = 1 << len(self.outputs)
        found: dict[str, tuple[int, int]] = {}
        for node, read in measure.parameters_by_node(self.graph, self.graph.nodes):
            for name, size in read.items():
                _, readers = found.get(name, (size, 0))
                found[name] = size, readers | (self.needed[node.index] or nobody)
        return found


def _backward(graph: Graph, outputs: Sequence[Value]) -> tuple[list[int], list[int]]:
    bits = {value.name: 1 << i for i, value in enumerate(outputs)}
    needed = [0] * len(graph.nodes)
    flows = [0] * len(graph.nodes)
    for node in reversed(graph.nodes):
        need = flow = 0
        for value in node.outputs:
            own = bits.get(value.name, 0)
            need, flow = need | own, flow | own
            for reader in value.readers:
                need |= needed[reader]
                if graph.nodes[reader].op not in SIZE_ONLY:
                    flow |= flows[reader]
        needed[node.index], flows[node.index] = need, flow
    return needed, flows


def _forward(graph: Graph) -> tuple[list[int], list[bool], list[bool]]:
    depth = [0] * len(graph.nodes)
    topdown = [False] * len(graph.nodes)  # behind a Concat with something enlarged
    pan = [False] * len(graph.nodes)
    alive = [False] * len(graph.nodes)
    for value in graph.inputs:
        for reader in value.readers:
            alive[reader] = graph.nodes[reader].op not in SIZE_ONLY
    for node in graph.nodes:
        i = node.index
        depth[i] += node.op in DEEPENING
        pan[i] = pan[i] or (topdown[i] and _halves(node))
        topdown[i] = topdown[i] or _joins_enlarged(graph, node)
        for reader in (r for value in node.outputs for r in value.readers):
            if graph.nodes[reader].op not in SIZE_ONLY:
                depth[reader] = max(depth[reader], depth[i])
                topdown[reader] = topdown[reader] or topdown[i]
                pan[reader] = pan[reader] or pan[i]
                alive[reader] = alive[reader] or alive[i]
    return depth, pan, alive


def _halves(node: Node) -> bool:
    """A conv or pool of stride 2 on every axis."""
    strides = node.attrs.get("strides", ())
    return (node.op == "conv" or node.op in POOLS) and len(strides) > 0 and all(stride == 2 for stride in strides)


def _joins_enlarged(graph: Graph, node: Node) -> bool:
    """A Concat on the channel axis (−3 is the one of images) with an operand that is directly a Resize.

    Through Unsqueeze, the CBFuse of YOLOv9 would count too, and turn the answer round (measured, yolov9.md).
    """
    if node.op != "concat" or node.attrs.get("axis") not in (1, -3):
        return False
    return any(_enlarged(graph, value) for value in node.data)


def _enlarged(graph: Graph, value: Value) -> bool:
    producer = graph.producer(value)
    while producer is not None and producer.op in ELEMENTS_KEPT and producer.data:
        producer = graph.producer(producer.data[0])
    return producer is not None and producer.op == "resize"
