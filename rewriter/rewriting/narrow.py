"""Heads that run on a stack of several values of which some are wanted: they run on those alone.

Invariant: every operator between the Concat and what takes of it computes each slice from the same slice alone
(`matching.stacks`), and of the operands that go nothing is taken. So a shorter Concat, or the one operand that is left,
takes the stack's place, and what cuts along its axis cuts where the same slices lie now. Ranks stay as they are. What
an operator that dies made sure of, and no other does, keeps the stack, unless the caller lets it go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import NodeProto

from rewriter.dims.cuts import FAR
from rewriter.dims.engine import Pass, measured
from rewriter.dims.tensors import slice_lists
from rewriter.graph.view import Graph, Node, Value
from rewriter.matching.slicewise import Place, indices_of
from rewriter.matching.stacks import Stack, Taken, stacks
from rewriter.rewriting.actions import Fresh
from rewriter.rewriting.edits import AddConstant, AddNode, Edit, RemoveNode, Reread, Rewire, Undeclare
from rewriter.rewriting.reroot import granted


@dataclass(frozen=True, slots=True)
class Narrowed:
    """A stack that went: what stays of its operands, and their numbers; what takes slices; what is checked no more."""

    stack: str
    operands: tuple[str, ...]
    places: tuple[int, ...]
    among: int
    taken: tuple[str, ...]
    lost: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Narrowing:
    """One turn: the edits and what they do; and which stacks stay because of what only nodes that go make sure of."""

    edits: tuple[Edit, ...] = ()
    done: tuple[Narrowed, ...] = ()
    stayed: tuple[str, ...] = ()


def narrow(graph: Graph, fresh: Fresh, *, allow_lost: bool = False) -> Narrowing:
    """The edits that take operands out of stacks, of which nothing is wanted, and what they do.

    Stacks that share nodes take turns, and so do those that take assumptions with them: there may be more to do after.
    """
    graph = graph.as_stored
    edits: list[Edit] = []
    done: list[Narrowed] = []
    stayed: list[str] = []
    touched: set[int] = set()
    if not any(node.op == "concat" for node in graph.nodes):
        return Narrowing()
    sizes = measured(graph)
    for stack in stacks(graph, sizes):
        wanted = tuple(sorted(stack.wanted()))
        nodes = {taken.node.index for taken in stack.taken} | {node.index for node in (stack.concat, *stack.nodes)}
        if not wanted or len(wanted) == len(stack.counts) or nodes & touched:
            continue
        checks = _Checks.of(graph, sizes, stack, wanted)
        if checks.die and done:
            continue
        if checks.lost and not allow_lost:
            stayed.append(_stays_for(stack, checks.lost))
            continue
        made = _Shorter(graph, stack, wanted, fresh).edits()
        if made is None:
            continue
        touched |= nodes
        edits += made
        names = tuple(dict.fromkeys(_name(taken.node) for taken in stack.taken))
        kept = tuple([stack.concat.data[place].name for place in wanted])
        done.append(Narrowed(stack.concat.output.name, kept, wanted, len(stack.counts), names, checks.lost))
        if checks.die:
            break
    return Narrowing(tuple(edits), tuple(done), tuple(stayed))


def _stays_for(stack: Stack, lost: Sequence[str]) -> str:
    equations = "; ".join(lost)
    return (
        f"{stack.concat.output.name}: heads run on all of this stack, though not all of it is wanted: only nodes that "
        f"would go make sure that {equations} (lost=true lets them go)"
    )


@dataclass(frozen=True, slots=True)
class _Checks:
    """Whether nodes that would die assert anything about sizes, and what of it no node that stays does."""

    die: bool
    lost: tuple[str, ...]

    @classmethod
    def of(cls, graph: Graph, sizes: Pass, stack: Stack, wanted: Sequence[int]) -> _Checks:
        before = _needed(graph, lambda node: node.data)
        after = _needed(graph, lambda node: [node.data[p] for p in wanted] if node is stack.concat else node.data)
        after[stack.concat.index] = 0
        dying = [a for a in sizes.log.assertions if before[a.node] and not after[a.node]]
        if not dying:
            return cls(False, ())
        known = granted(sizes.log.assertions, [bool(each) for each in after])
        lost = sorted({a.assumption for a in dying} - known)
        return cls(True, tuple([str(sizes.log.assumptions[number]) for number in lost]))


def _needed(graph: Graph, read: Callable[[Node], Sequence[Value]]) -> bytearray:
    """The nodes that outputs need, where `read` says what a node reads."""
    needed = bytearray(len(graph.nodes))
    for value in graph.outputs:
        if value.producer is not None:
            needed[value.producer] = 1
    for node in reversed(graph.nodes):
        if needed[node.index]:
            for value in (*read(node), *node.captures):
                if value.producer is not None:
                    needed[value.producer] = 1
    return needed


@dataclass(frozen=True, slots=True)
class _Shorter:
    """One stack under narrowing: which operands stay."""

    graph: Graph
    stack: Stack
    wanted: tuple[int, ...]
    fresh: Fresh

    def edits(self) -> list[Edit] | None:
        """None where a cut cannot be written for what is left."""
        concat, made = self.stack.concat, list[Edit]()
        if len(self.wanted) > 1 and not isinstance(concat.native, NodeProto):
            return None
        left = [concat.data[place].name for place in self.wanted]
        if all(concat.data[place].constant is not None for place in self.wanted):
            return None  # heads on constants are for folding
        source = left[0]
        if len(left) > 1:
            source = self.fresh(f"{concat.output.name}_narrowed")
            name = self.fresh(f"{_name(concat)}_narrowed")
            made.append(AddNode("concat", name, tuple(left), source, concat, dict(concat.attrs)))
        whole = concat.output.name
        readers = [node for node in self.graph.nodes if any(value.name == whole for value in node.data)]
        made += [Reread(node, whole, source) for node in readers]
        for node in self.stack.nodes:
            edits = self._of_node(node, source)
            if edits is None:
                return None
            made += edits
        for taken in self.stack.taken:
            edits = self._of_gather(taken)
            if edits is None:
                return None
            made += edits
        return None if self._counted(made) else made

    def _counted(self, made: Sequence[Edit]) -> bool:
        """Whether an output still follows from how many slices there are, once the edits are made.

        What a node is told by its settings counts too, so this looks at what the model itself reads.
        """
        if not self.stack.counting:
            return False
        cut = {edit.node.index for edit in made if isinstance(edit, RemoveNode)}
        told = {(edit.node.index, edit.old) for edit in made if isinstance(edit, Reread)}
        names = {value.name for node in self.stack.counting for value in node.outputs}
        for node in self.graph.nodes:
            if not isinstance(node.native, NodeProto):
                return True
            read = list(node.native.input[:1] if node.index in cut else node.native.input)
            read = [name for name in read if (node.index, name) not in told]
            if not names.isdisjoint((*read, *(value.name for value in node.captures))):
                names.update(node.native.output)
        return any(value.name in names for value in self.graph.outputs)

    def _left(self, place: Place) -> Place | None:
        """Where the slices of a place lie among those that stay."""
        gone = set(range(len(self.stack.counts))) - set(self.wanted)
        first, end = (self.stack.without(gone, at) for at in (place.first, place.end))
        return None if first is None or end is None else replace(place, first=first, count=end - first)

    def _of_node(self, node: Node, source: str) -> list[Edit] | None:
        places = self.stack.places
        read = places[next(value.name for value in node.data if value.name in places)]
        left = self._left(read)
        if left is None:
            return None
        if left.count == read.count:
            return []
        made = [(value, self._left(places[value.name])) for value in node.outputs]
        changed: list[Edit] = [Undeclare(value.name) for value in node.outputs]
        if node.op == "reshape":
            target = self._target(node, left)
            return None if target is None else [*changed, *target]
        if not _cuts_along(node, read, places[node.outputs[0].name]):
            return changed
        cuts = self._cuts(node, source, left, made)
        return None if cuts is None else [*changed, *cuts]

    def _target(self, node: Node, left: Place) -> list[Edit] | None:
        """The target of a Reshape, where it names the extent that changes."""
        target: Sequence[int] = node.attrs["shape"]
        if target[left.axis] <= 0:
            return []
        count = left.count.constant
        if count is None or not isinstance(node.native, NodeProto) or len(node.native.input) < 2:
            return None
        name = self.fresh(f"{node.native.input[1]}_narrowed")
        numbers = [count if axis == left.axis else n for axis, n in enumerate(target)]
        constant = AddConstant(name, np.array(numbers, np.int64), "int64")
        return [constant, Reread(node, node.native.input[1], name)]

    def _cuts(
        self, node: Node, source: str, left: Place, made: Sequence[tuple[Value, Place | None]]
    ) -> list[Edit] | None:
        """What a Slice or Split along the axis takes, taken of what is left."""
        kept = [(value, place) for value, place in made if value.readers or value.is_output or value.captured]
        name = node.data[0].name if node.data[0] is not self.stack.concat.output else source
        edits: list[Edit] = [RemoveNode(node)]
        for value, place in kept:
            if place is None or place.count.constant == 0:
                return None
            if _stays(node, left, place) and self._is_told(node):
                return []
            cut = self._cut(node, value, name, left, place)
            if cut is None:
                return None
            edits += cut
        return edits

    def _cut(self, node: Node, value: Value, name: str, left: Place, place: Place) -> list[Edit] | None:
        others = _other_cuts(node, left, self.stack.sizes)
        if others is None or not isinstance(node.native, NodeProto):
            return None
        if place.count == left.count and not others and not value.is_output:
            return [Rewire(value.name, name)]
        bounds = (0, FAR) if place.count == left.count else _bounds(left, place)
        if bounds is None or self.graph.opset < COMPUTED_CUTS:
            return None
        rows = [(*bounds, left.axis, 1), *others]
        names = [self.fresh(f"{value.name}_{role}") for role in ("starts", "ends", "axes", "steps")]
        columns = [np.array(column, np.int64) for column in zip(*rows, strict=True)]
        edits: list[Edit] = [AddConstant(*each, "int64") for each in zip(names, columns, strict=True)]
        fresh = self.fresh(_name(node))
        return [*edits, AddNode("slice", fresh, (name, *names), value.name, node, like=node)]

    def _is_told(self, node: Node) -> bool:
        """Whether the model holds the settings of the node, and computes none."""
        native = node.native
        given = [self.graph.values.get(name) for name in native.input[1:]] if isinstance(native, NodeProto) else []
        makers = [self.graph.producer(value) for value in given if value is not None]
        return all(maker is None or maker.op == "constant" for maker in makers)

    def _of_gather(self, taken: Taken) -> list[Edit] | None:
        """Indices count from where what is left begins."""
        left = self._left(taken.place)
        if taken.picked is None or left is None or left.count == taken.place.count:
            return []
        gone = set(range(len(self.stack.counts))) - set(self.wanted)
        found = [self.stack.without(gone, index) for index in taken.picked]
        numbers = [None if place is None else (place - left.first).constant for place in found]
        if None in numbers:
            return None
        indices = indices_of(taken.node)
        if indices is None:
            return None
        given = indices.load().reshape(-1).tolist()
        count = left.count.constant
        if count is not None and all(-count <= n < count for n in given) and [n % count for n in given] == numbers:
            return []
        if len(numbers) > 1 and not isinstance(taken.node.native, NodeProto):
            return None
        name = self.fresh(f"{indices.name}_narrowed")
        array = np.array(numbers, np.int64).reshape(indices.shape)
        return [AddConstant(name, array, "int64"), Reread(taken.node, indices.name, name)]


COMPUTED_CUTS = 10
"""The opset since which Slice reads where it cuts."""


def _cuts_along(node: Node, read: Place, made: Place) -> bool:
    """Whether it cuts the axis of the slices; a Split says how many there are even where all are in one part."""
    if node.op == "split":
        return int(node.attrs.get("axis", 0)) % read.rank == read.axis
    return node.op == "slice" and made.count != read.count


def _stays(node: Node, left: Place, place: Place) -> bool:
    """Whether a Slice takes of what is left what it has to, as it stands."""
    count = left.count.constant
    if node.op != "slice" or count is None or "starts" not in node.attrs:
        return False
    part = range(count)
    for start, end, axis in zip(node.attrs["starts"], node.attrs["ends"], node.attrs["axes"], strict=True):
        if axis % left.rank == left.axis:
            part = part[start:end]
    start, length = (place.first - left.first).constant, place.count.constant
    return start is not None and length is not None and part == range(start, start + length)


def _bounds(left: Place, place: Place) -> tuple[int, int] | None:
    """Start and end as numbers, counted from either end; None where an open extent lies on both sides."""
    start, end = (place.first - left.first).constant, (place.end - left.first).constant
    back = (place.first - left.end).constant, (place.end - left.end).constant
    if start is not None and end is not None:
        return start, end
    if start is not None and back[1] is not None:
        return start, back[1] or FAR
    return (back[0], back[1] or FAR) if back[0] is not None and back[1] is not None else None


def _other_cuts(node: Node, left: Place, sizes: Pass) -> list[tuple[int, int, int, int]] | None:
    """What a Slice cuts along other axes; None where that is not known in numbers."""
    if node.op == "split":
        return []
    lists = slice_lists(sizes, node)
    rows: list[tuple[int, int, int, int]] = []
    for cut in zip(*(each or () for each in lists), strict=True):
        start, end, axis, step = (number.expr.constant for number in cut)
        if axis is None or axis % left.rank == left.axis:
            continue
        if start is None or end is None or step is None:
            return None
        rows.append((start, end, axis, step))
    return rows


def _name(node: Node) -> str:
    return node.name or node.output.name
