"""Heads that run on a stack of several values and of which one value's result is taken: they run on that value alone.

Invariant: every operator between the Concat and the Gathers computes each slice from the same slice alone
(`matching.stacks`), and every way from the Concat ends in a Gather of slices of one operand. So the operand takes the
stack's place, with fewer slices on the same axis, and the Gathers count from where it began. Ranks stay as they are.
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
    edits: list[Edit] = []
    done: list[Narrowed] = []
    touched: set[int] = set()
    if not any(node.op == "gather" for node in graph.nodes):
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
    """The operand of which alone something is taken, everywhere by Gathers that read the whole of it."""
    operands = {stack.operand(taken) for taken in stack.taken}
    whole = sum(stack.counts)
    if len(operands) != 1 or any(place.count != whole for place in stack.places.values()):
        return None
    if not all(_is_gather(stack, taken.node) for taken in stack.taken):
        return None
    return operands.pop()


def _is_gather(stack: Stack, node: Node) -> bool:
    place = stack.places.get(node.data[0].name) if node.data else None
    return place is not None and gathered(node, place) is not None


def _edits(graph: Graph, stack: Stack, operand: int, fresh: Fresh) -> Sequence[Edit]:
    whole, source = stack.concat.output, stack.concat.data[operand]
    edits: list[Edit] = [Reread(graph.nodes[index], whole.name, source.name) for index in dict.fromkeys(whole.readers)]
    edits += [Undeclare(value.name) for node in stack.nodes for value in node.outputs]
    start, count = stack.start(operand), stack.counts[operand]
    for taken in stack.taken:
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
