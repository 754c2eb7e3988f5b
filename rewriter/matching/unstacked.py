"""The same graph with heads run once per value instead of once on their stack: for looking, never for editing.

On a stack every result seems to depend on every layer. Here what takes slices of one operand alone reads a copy of the
head that reads this operand alone, so that depths, cones and taps are those of the layer it comes from. Invariant:
nodes keep their native; a copy's values have names of their own; everything that is not copied stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from rewriter.graph.view import Graph, Node, Value
from rewriter.matching.stacks import Stack


def unstacked(graph: Graph, stacks: list[Stack]) -> Graph:
    """`graph` with the heads on every stack copied for each operand of which alone something is taken."""
    copies: dict[int, list[tuple[Node, dict[str, str]]]] = {}  # by original node: a copy and the names that it changes
    renamed: dict[int, dict[str, str]] = {}  # what a node that takes slices reads instead
    for stack in stacks:
        for operand in sorted({n for taken in stack.taken if (n := stack.operand(taken)) is not None}):
            inside = [node for node in stack.nodes if _computes(stack, node, operand)]
            made = [value.name for node in inside for value in node.outputs]
            names = {name: f"{name} of {stack.concat.data[operand].name}" for name in made}
            names[stack.concat.output.name] = stack.concat.data[operand].name
            for node in inside:
                copies.setdefault(node.index, []).append((node, names))
            for taken in stack.taken:
                if stack.operand(taken) == operand:
                    renamed.setdefault(taken.node.index, {}).update(names)
    return _rebuilt(graph, copies, renamed) if renamed or copies else graph


def _computes(stack: Stack, node: Node, operand: int) -> bool:
    """Whether a node computes slices of this operand, among others."""
    return any(operand in stack.covered(stack.places[value.name]) for value in node.outputs)


def _rebuilt(
    graph: Graph, copies: Mapping[int, list[tuple[Node, dict[str, str]]]], renamed: Mapping[int, dict[str, str]]
) -> Graph:
    written = list(_written(graph, copies, renamed))
    makers = {name: i for i, (_, _, outputs) in enumerate(written) for name in outputs}
    readers: dict[str, list[int]] = {}
    for i, (node, data, _) in enumerate(written):
        for name in (*data, *(value.name for value in node.captures)):
            readers.setdefault(name, []).append(i)
    values: dict[str, Value] = {
        name: replace(value, producer=makers.get(name), readers=tuple(readers.get(name, ())))
        for name, value in graph.values.items()
    }
    for node, _, outputs in written:
        for value, name in zip(node.outputs, outputs, strict=True):
            if name not in values:
                made = replace(value, name=name, producer=makers[name], readers=tuple(readers.get(name, ())))
                values[name] = replace(made, is_output=False, shape=None)
    nodes = tuple(
        replace(
            node,
            index=i,
            data=tuple(values[name] for name in data),
            outputs=tuple(values[name] for name in outputs),
            captures=tuple(values[value.name] for value in node.captures),
        )
        for i, (node, data, outputs) in enumerate(written)
    )
    inputs = tuple(replace(value, readers=values[value.name].readers) for value in graph.inputs)
    outputs = tuple(
        replace(value, producer=values[value.name].producer, readers=values[value.name].readers)
        for value in graph.outputs
    )
    return replace(graph, nodes=nodes, values=values, inputs=inputs, outputs=outputs)


def _written(
    graph: Graph, copies: Mapping[int, list[tuple[Node, dict[str, str]]]], renamed: Mapping[int, dict[str, str]]
) -> Iterator[tuple[Node, list[str], list[str]]]:
    """Every node with the names that it reads and makes; copies stand right behind what they are copies of."""
    for node in graph.nodes:
        names = renamed.get(node.index, {})
        yield node, [names.get(v.name, v.name) for v in node.data], [v.name for v in node.outputs]
        for _, mine in copies.get(node.index, ()):
            yield node, [mine.get(v.name, v.name) for v in node.data], [mine.get(v.name, v.name) for v in node.outputs]
