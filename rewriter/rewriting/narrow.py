"""Heads that run on a stack of several values and of which one value's result is taken: they run on that value alone.

Invariant: every operator between the Concat and the Gathers computes each slice from the same slice alone
(`matching.stacks`), and every way from the Concat leads to a Gather or Slice that takes slices of one operand. So the
operand takes the stack's place, with fewer slices on the same axis, and the Gathers count from where it began; a Slice
has to take the same as it stands. Ranks stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rewriter.dims import sizes
from rewriter.graph.view import Graph, Node
from rewriter.matching.stacks import Stack, gathered, stacks
from rewriter.rewriting.actions import Fresh
from rewriter.rewriting.edits import AddConstant, Edit, Reread, Undeclare


@dataclass(frozen=True, slots=True)
class Narrowed:
    """A stack that went: the value that took its place, its number among the operands, and what takes slices."""

    stack: str
    operand: str
    place: int
    operands: int
    taken: tuple[str, ...]


def narrow(graph: Graph, fresh: Fresh) -> tuple[list[Edit], list[Narrowed]]:
    """The edits that take stacks away, one slice of which is wanted, and what they do."""
    graph = graph.as_stored
    edits: list[Edit] = []
    done: list[Narrowed] = []
    touched: set[int] = set()
    if not any(node.op in ("gather", "slice") for node in graph.nodes):
        return edits, done
    for stack in stacks(graph, sizes(graph).dims):
        operand = _wanted(stack)
        nodes = {taken.node.index for taken in stack.taken} | set(stack.concat.output.readers)
        if operand is None or nodes & touched:
            continue
        touched |= nodes
        edits += _edits(graph, stack, operand, fresh)
        names = tuple(dict.fromkeys(_name(taken.node) for taken in stack.taken))
        done.append(
            Narrowed(stack.concat.output.name, stack.concat.data[operand].name, operand, len(stack.concat.data), names)
        )
    return edits, done


def _wanted(stack: Stack) -> int | None:
    """The operand of which alone something is taken; None where the ways to it cannot stay as they are.

    Behind a Slice everything is as before, if the Slice takes the same of the operand as of the stack. Before that a
    Gather alone may take something.
    """
    operands = {stack.operand(taken) for taken in stack.taken}
    operand = operands.pop() if len(operands) == 1 else None
    if operand is None or not all(_stays(stack, node, operand) for node in stack.nodes):
        return None
    return operand if all(_is_gather(stack, t.node) or _behind_slice(stack, t.node) for t in stack.taken) else None


def _behind_slice(stack: Stack, node: Node) -> bool:
    """Whether what it takes has gone through a Slice: before it, or in it where it makes an output of the model."""
    made = stack.places.get(node.outputs[0].name) if node.outputs else None
    return _narrow(stack, node) or (made is not None and made.count < sum(stack.counts))


def _stays(stack: Stack, node: Node, operand: int) -> bool:
    """Whether the node gives of the operand what it gave of the stack, or as many slices as it reads."""
    read, made = stack.places[node.data[0].name], stack.places[node.output.name]
    if (read.first, read.count) == (made.first, made.count) or _narrow(stack, node):
        return True
    if node.op != "slice":
        return False
    part = range(stack.counts[operand])
    for start, end, axis in zip(node.attrs["starts"], node.attrs["ends"], node.attrs["axes"], strict=True):
        if axis % read.rank == read.axis:
            part = part[start:end]
    first = made.first - stack.start(operand)
    return part == range(first, first + made.count)


def _narrow(stack: Stack, node: Node) -> bool:
    """Whether everything that the node reads of the stack has gone through a Slice before."""
    places = [stack.places[v.name] for v in (*node.data, *node.captures) if v.name in stack.places]
    return bool(places) and all(place.count < sum(stack.counts) for place in places)


def _is_gather(stack: Stack, node: Node) -> bool:
    place = stack.places.get(node.data[0].name) if node.data else None
    return place is not None and gathered(node, place) is not None


def _edits(graph: Graph, stack: Stack, operand: int, fresh: Fresh) -> Sequence[Edit]:
    whole, source = stack.concat.output, stack.concat.data[operand]
    edits: list[Edit] = [Reread(graph.nodes[index], whole.name, source.name) for index in dict.fromkeys(whole.readers)]
    resized = [v.name for n in stack.nodes for v in n.outputs if stack.places[v.name].count == sum(stack.counts)]
    edits += [Undeclare(name) for name in resized]
    start, count = stack.start(operand), stack.counts[operand]
    for taken in stack.taken:
        if _behind_slice(stack, taken.node):
            continue
        indices = taken.node.consts["indices"]
        index = int(indices.load().reshape(-1)[0])
        if index % count == taken.first - start and -count <= index < count:
            continue
        name = fresh(f"{indices.name}_narrowed")
        edits.append(AddConstant(name, np.full(indices.shape, taken.first - start, np.int64), "int64"))
        edits.append(Reread(taken.node, indices.name, name))
    return edits


def _name(node: Node) -> str:
    return node.name or node.output.name
