"""Linear regions: what one value needs of affine nodes and nobody else does, and the values all of it goes through.

The one idea: seen from an exit backward, a node belongs to it when everything that reads the node does. Of such a
*field*, only values that every path goes through (dominators of the exit) can be where a fold starts or ends, so they
cut the field into slots, and a run of slots is a region with one entry and one exit.
Invariant: nothing here computes; a field holds at most `MOST_NODES` nodes, so growing one costs the same in any graph.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from rewriter.graph.view import Graph, Node, Value

MOST_NODES = 4096
"""Of one field; what lies behind is a field of its own, and longer regions fold over several rounds."""

AFFINE = frozenset(
    {"conv", "conv_transpose", "linear", "avg_pool", "bn", "scale", "shift", "add", "sub", "sum", "neg"}
    | {"identity", "dropout", "cast", "leaky_relu", "pad", "slice", "split", "concat", "gather", "scatter_nd", "assign"}
    | {"where", "splittosequence", "sequenceat", "reshape", "flatten", "transpose", "squeeze", "unsqueeze", "expand"}
)
"""Operators that are affine maps under the right attributes; the algebra decides whether they are."""


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """All that only `exit` needs: `nodes` in topological order (the last makes `exit`), and the values they read."""

    exit: Value
    nodes: tuple[Node, ...]
    leaves: tuple[Value, ...]

    @property
    def indices(self) -> frozenset[int]:
        return frozenset(node.index for node in self.nodes)


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """A field cut at the dominators of its exit: `slots[i]` are the nodes between `values[i]` and `values[i + 1]`.

    `values[0]` is None where the field has several entries: then no region starts there.
    """

    values: tuple[Value | None, ...]
    slots: tuple[tuple[Node, ...], ...]


def is_affine(node: Node) -> bool:
    """Whether the node may be part of a linear region; a leaky ReLU only where it does not leak."""
    if node.problem is not None or node.op not in AFFINE or not node.outputs or not node.data or node.captures:
        return False
    return node.op != "leaky_relu" or node.attrs.get("slope") == 1


def grow(graph: Graph, exit_: Value, settled: Container[int] = ()) -> Field:
    """The field of a value that an affine node makes, without the nodes that are `settled`."""
    assert exit_.producer is not None
    inside = {exit_.producer: graph.nodes[exit_.producer]}
    reads: dict[str, int] = defaultdict(int)  # of each value, by nodes inside
    read: dict[str, Value] = {}
    queue = deque(inside.values())
    while queue:
        for value in queue.popleft().data:
            read[value.name] = value
            reads[value.name] += 1
            maker = None if value.constant is not None else graph.producer(value)
            if maker is None or maker.index in inside or maker.index in settled or len(inside) >= MOST_NODES:
                continue
            if is_affine(maker) and all(_hidden(output, reads) for output in maker.outputs):
                inside[maker.index] = maker
                queue.append(maker)
    leaves = [v for v in read.values() if v.constant is None and v.producer not in inside]
    return Field(exit_, tuple(inside[i] for i in sorted(inside)), tuple(leaves))


def _hidden(value: Value, reads: dict[str, int]) -> bool:
    """True where nothing but nodes inside reads the value."""
    return not value.is_output and not value.captured and reads.get(value.name, 0) == len(value.readers)


def dominators(field: Field) -> dict[str, str | None]:
    """Of each value of a field, the nearest one that every path to it goes through; None where there is none.

    A field that reads only constants has no path.
    """
    if not field.leaves:
        return {}
    if len(field.leaves) == 1 and all(len(n.data) == 1 and len(n.outputs) == 1 for n in field.nodes):
        return {field.leaves[0].name: None} | {node.output.name: node.data[0].name for node in field.nodes}
    nodes = ((value, output) for node in field.nodes for value in node.data for output in node.outputs)
    paths = [(value.name, output.name) for value, output in nodes if value.constant is None]
    paths += [(ROOT, value.name) for value in field.leaves]
    return {value: (above or None) for value, above in _immediate_dominators(paths).items() if value != ROOT}


ROOT = ""
"""Where every leaf is read from; no value has an empty name."""


def _immediate_dominators(paths: Iterable[tuple[str, str]]) -> Mapping[str, str | None]:
    """networkx is loaded here: it takes a third of a second, and most models have no field with a junction."""
    networkx: Any = import_module("networkx")
    return networkx.immediate_dominators(networkx.DiGraph(paths), ROOT)


def path_above(nearest: dict[str, str | None], name: str) -> list[str]:
    """A value and its dominators, nearest first."""
    found = [name]
    while (above := nearest.get(found[-1])) is not None:
        found.append(above)
    return found


def chain_of(field: Field) -> Chain:
    """A field cut at every value that each of its paths goes through."""
    made = {output.name: output for node in field.nodes for output in node.outputs}
    named = made | {value.name: value for value in field.leaves}
    names = path_above(dominators(field), field.exit.name)[::-1]
    values: list[Value | None] = [named[name] for name in names]
    if names[0] in made:
        values.insert(0, None)
    place = {value.name: i for i, value in enumerate(values) if value is not None}
    slots: list[list[Node]] = [[] for _ in values[1:]]
    for node in field.nodes:
        slot = max((place.get(value.name, 0) for value in node.data), default=0)
        slots[slot].append(node)
        for output in node.outputs:
            place.setdefault(output.name, slot)
    return Chain(tuple(values), tuple(map(tuple, slots)))


def between(field: Field, entry: Value, exits: Sequence[Value]) -> dict[int, Node]:
    """The nodes of a field on the way from `entry` to any of `exits`, by index."""
    makers = {output.name: node for node in field.nodes for output in node.outputs}
    found: dict[int, Node] = {}
    stack = [value.name for value in exits]
    while stack:
        name = stack.pop()
        node = makers.get(name)
        if name == entry.name or node is None or node.index in found:
            continue
        found[node.index] = node
        stack.extend(value.name for value in node.data)
    return found
