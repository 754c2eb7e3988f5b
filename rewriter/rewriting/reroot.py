"""Shapes read from a branch that nothing else needs are read from a value of equal size that stays.

The one idea: cut every Shape and Size from what it reads; what outputs still need then *stays*, and a node that reads a
size from anywhere else is an *anchor*, which gets another source. Invariant: a source stays and depends on no anchor,
so no cycle can come; the extents that are really read are proved equal for every input. What an assumption of a node
that goes was needed for is refused unless asked for, because inputs that used to fail would pass. Neither names nor
the order of nodes decide.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from onnx import NodeProto

from rewriter.dims import Assertion, Sizes, sizes
from rewriter.dims.polynomials import Poly, shown
from rewriter.dims.sizes import Size, total, united
from rewriter.dims.tensors import part
from rewriter.graph.view import Graph, Node, Value
from rewriter.matching.measuring import places_read
from rewriter.rewriting.edits import AddConstant, Edit, RemoveNode, Reread

SIZE_ONLY = frozenset({"shape", "size"})

Key = tuple[str, object, object, tuple[int, ...], int]
"""What an anchor reads: operator, start, end, the places of its list that are read, and how long the list is."""


class Status(StrEnum):
    IMPLIED = "implied"  # a node that stays fails on the same inputs
    LOST = "lost"  # only nodes that go fail on inputs for which it does not hold


@dataclass(frozen=True, slots=True)
class Assumed:
    """An equation that a proof rests on, the nodes that assert it, and whether one that stays is among them."""

    equation: str
    asserted_by: tuple[str, ...]
    status: Status


@dataclass(frozen=True, slots=True)
class Moved:
    """An anchor that reads another value now: `old` and `new` are names of values, `because` the common extents."""

    node: str
    old: str
    new: str
    because: str
    assumptions: tuple[Assumed, ...] = ()

    @property
    def lost(self) -> tuple[Assumed, ...]:
        return tuple(a for a in self.assumptions if a.status is Status.LOST)


@dataclass(frozen=True, slots=True)
class Stayed:
    """An anchor that still reads `old`, and why; `assumptions` where one that is lost is the reason."""

    node: str
    old: str
    why: str
    assumptions: tuple[Assumed, ...] = ()


@dataclass(frozen=True, slots=True)
class Rerooting:
    """The edits, one per anchor that moved, in the order of `moved`; and the anchors that could not."""

    edits: tuple[Reread, ...] = ()
    moved: tuple[Moved, ...] = ()
    stayed: tuple[Stayed, ...] = ()


def reroot(graph: Graph, wanted: Collection[str] | None = None, *, allow_lost: bool = False) -> Rerooting:
    """Other sources for the sizes that outputs named in `wanted` (all, where None) read from what else would die."""
    graph = graph.as_stored
    roots = [value for value in graph.outputs if wanted is None or value.name in wanted]
    failed: dict[int, Stayed] = {}
    kept = [value for value in roots]
    known: Sizes | None = None
    while True:
        stays = _needed(graph, kept)
        anchors = _anchors(graph, stays)
        if not anchors:
            return Rerooting(stayed=tuple(failed.values()))
        known = known or sizes(graph)
        search = _Search.of(graph, known, stays, anchors, allow_lost)
        found = [search.source(anchor) for anchor in anchors]
        stuck = [(anchor, why) for anchor, why in zip(anchors, found, strict=True) if isinstance(why, Stayed)]
        if not stuck:
            moved = [m for m in found if isinstance(m, Moved)]
            edits = [Reread(anchor, m.old, m.new) for anchor, m in zip(anchors, moved, strict=True)]
            return Rerooting(tuple(edits), tuple(moved), tuple(failed.values()))
        failed.update((anchor.index, why) for anchor, why in stuck)
        kept += [anchor.data[0] for anchor, _ in stuck]


def told(graph: Graph, *, allow_lost: bool = False) -> tuple[list[Edit], Rerooting]:
    """Numbers in place of nodes that read a size that is known of what else would die.

    A node whose settings follow from such a size reads nothing but its data in the view, so `reroot` does not see that
    the model needs the size: this looks at what nodes read in the model.
    """
    graph = graph.as_stored
    whole, parts = _needed_in_file(graph, cut=False), _needed_in_file(graph, cut=True)
    found = [
        (node, value)
        for node, value in _size_readers(graph)
        if whole[node.index] and node.output.constant is not None and not parts[value.producer or 0]
    ]
    if not found:
        return [], Rerooting()
    known, behind = sizes(graph), _behind(graph, [node for node, _ in found])
    search = _Search.of(graph, known, parts, [node for node, _ in found], allow_lost)
    search.granted = granted(known.assertions, [bool(p) and not b for p, b in zip(parts, behind, strict=True)])
    edits, moved, stayed = list[Edit](), list[Moved](), list[Stayed]()
    for node, value in found:
        held, constant = known.elements.get(node.output.name), node.output.constant
        if held is None or constant is None or any(size.expr.constant is None for size in held.items):
            continue
        assumed = search.assumed(united(held.items))
        numbers = ", ".join(str(size.expr.constant) for size in held.items)
        if not allow_lost and any(a.status is Status.LOST for a in assumed):
            stayed.append(
                Stayed(_name(node), value.name, _lost(f"{value.name} has the size {numbers}", assumed), assumed)
            )
            continue
        edits += [AddConstant(node.output.name, constant.load(), constant.dtype), RemoveNode(node)]
        moved.append(Moved(_name(node), value.name, node.output.name, f"it is {numbers}, whatever the input", assumed))
    return edits, Rerooting((), tuple(moved), tuple(stayed))


def _needed_in_file(graph: Graph, *, cut: bool) -> bytearray:
    """The nodes that outputs need by what nodes read in the model; with `cut` what only hands on sizes is left out."""
    needed = bytearray(len(graph.nodes))
    waiting = [value for value in graph.outputs]
    while waiting:
        producer = waiting.pop().producer
        if producer is None or needed[producer]:
            continue
        needed[producer] = 1
        node = graph.nodes[producer]
        native = node.native
        names = native.input if isinstance(native, NodeProto) else [value.name for value in node.data]
        if not (cut and node.op in SIZE_ONLY):
            waiting += [graph.values[name] for name in names if name in graph.values]
        waiting += node.captures
    return needed


def unhook(graph: Graph, names: Collection[str]) -> Rerooting:
    """Other sources for the sizes that are read of the values `names`, which one node alone reads otherwise.

    Such a value could be folded away but for its size. The sources are inputs of the model and values that several
    nodes read, which no fold takes. Everything stays, so every assumption is implied; what has no source is left out.
    """
    graph = graph.as_stored
    stays = bytearray(b"\x01") * len(graph.nodes)
    several = _read_by_several(graph, stays)
    hooked = set(names) - several
    anchors = [node for node, value in _size_readers(graph) if value.name in hooked]
    if not anchors:
        return Rerooting()
    search = _Search.of(graph, sizes(graph), stays, anchors, False)
    search.candidates = [value for value in search.candidates if value.is_input or value.name in several]
    found = [(anchor, search.source(anchor)) for anchor in anchors]
    moved = [(anchor, source) for anchor, source in found if isinstance(source, Moved)]
    edits = [Reread(anchor, source.old, source.new) for anchor, source in moved]
    return Rerooting(tuple(edits), tuple(source for _, source in moved))


def _size_readers(graph: Graph) -> Iterator[tuple[Node, Value]]:
    """What reads the size of a value that a node makes, with the value."""
    for node in graph.nodes:
        if node.op in SIZE_ONLY and len(node.data) == 1:
            value = node.data[0]
            if value.producer is not None and value.constant is None:
                yield node, value


def _needed(graph: Graph, roots: Iterable[Value]) -> bytearray:
    """The nodes that elements of `roots` are computed by, with what only hands on sizes cut off."""
    needed = bytearray(len(graph.nodes))
    for value in roots:
        if value.producer is not None:
            needed[value.producer] = 1
    for node in reversed(graph.nodes):
        if needed[node.index]:
            read = (*node.captures, *(() if node.op in SIZE_ONLY else node.data))
            for value in read:
                if value.producer is not None:
                    needed[value.producer] = 1
    return needed


def _anchors(graph: Graph, stays: bytearray) -> list[Node]:
    readers = [(node, value) for node, value in _size_readers(graph) if stays[node.index]]
    return [node for node, value in readers if value.producer is not None and not stays[value.producer]]


@dataclass(slots=True)
class _Search:
    """One round: the candidates in order of preference, and which assumptions nodes that stay assert."""

    graph: Graph
    sizes: Sizes
    candidates: Sequence[Value]
    granted: frozenset[int]
    asserted_by: Mapping[int, tuple[str, ...]]
    allow_lost: bool
    tables: dict[Key, dict[tuple[Poly, ...], list[tuple[Value, Sequence[Size]]]]] = field(
        default_factory=dict[Key, "dict[tuple[Poly, ...], list[tuple[Value, Sequence[Size]]]]"]
    )

    @classmethod
    def of(cls, graph: Graph, known: Sizes, stays: bytearray, anchors: Sequence[Node], allow_lost: bool) -> _Search:
        tainted = _behind(graph, anchors)
        sound = [bool(stays[node.index]) and not tainted[node.index] for node in graph.nodes]
        by: dict[int, list[str]] = {}
        for assertion in known.assertions:
            by.setdefault(assertion.assumption, []).append(_name(graph.nodes[assertion.node]))
        names = {number: tuple(dict.fromkeys(nodes)) for number, nodes in by.items()}
        read = _read_by_several(graph, stays)
        return cls(
            graph, known, _ranked(graph, sound, known, read), granted(known.assertions, sound), names, allow_lost
        )

    def source(self, anchor: Node) -> Moved | Stayed:
        old, name = anchor.data[0], _name(anchor)
        read = self._read(anchor, old)
        if read is None:
            return Stayed(name, old.name, "nothing is known of the size that it reads")
        key, expected = read
        blocked: Stayed | None = None
        for value, given in self._table(key).get(tuple(size.expr for size in expected), ()):
            assumed = self.assumed(united([*expected, *given]))
            if self.allow_lost or all(a.status is Status.IMPLIED for a in assumed):
                return Moved(name, old.name, value.name, _words(key, expected), assumed)
            blocked = blocked or Stayed(name, old.name, _lost(f"{value.name} has the same size", assumed), assumed)
        extents = _words(key, expected)
        return blocked or Stayed(name, old.name, f"no value that stays is proved to have the same size ({extents})")

    def _read(self, anchor: Node, value: Value) -> tuple[Key, Sequence[Size]] | None:
        dims = self.sizes.dims.get(value.name)
        if dims is None:
            return None
        start, end = anchor.attrs.get("start"), anchor.attrs.get("end")
        count = len(part(len(dims), start, end)) if anchor.op == "shape" else 1
        places = places_read(self.graph, anchor, count) if anchor.op == "shape" else (0,)
        key: Key = (anchor.op, start, end, places, count)
        given = _given(key, dims)
        return None if given is None else (key, given)

    def _table(self, key: Key) -> Mapping[tuple[Poly, ...], list[tuple[Value, Sequence[Size]]]]:
        if key not in self.tables:
            table: dict[tuple[Poly, ...], list[tuple[Value, Sequence[Size]]]] = {}
            for value in self.candidates:
                given = _given(key, self.sizes.dims[value.name])
                if given is not None:
                    table.setdefault(tuple([size.expr for size in given]), []).append((value, given))
            self.tables[key] = table
        return self.tables[key]

    def assumed(self, uses: Iterable[int]) -> tuple[Assumed, ...]:
        return tuple(
            Assumed(
                str(self.sizes.assumptions[number]),
                self.asserted_by[number],
                Status.IMPLIED if number in self.granted else Status.LOST,
            )
            for number in sorted(uses)
        )


def _given(key: Key, dims: Sequence[Size]) -> Sequence[Size] | None:
    """What an anchor would read of a value with these extents; None where it would give a list of another length."""
    op, start, end, places, count = key
    if op == "size":
        return (total(dims),)
    read = part(len(dims), start, end)
    return [dims[read[place]] for place in places] if len(read) == count else None


def _behind(graph: Graph, anchors: Sequence[Node]) -> bytearray:
    """The nodes that depend on an anchor, themselves among them."""
    behind = bytearray(len(graph.nodes))
    for anchor in anchors:
        behind[anchor.index] = 1
    for node in graph.nodes:
        if behind[node.index]:
            for value in node.outputs:
                for reader in value.readers:
                    behind[reader] = 1
    return behind


def granted(assertions: Iterable[Assertion], sound: Sequence[bool]) -> frozenset[int]:
    """The assumptions that sound nodes assert (which stay, and do not depend on an anchor), on granted grounds."""
    found: set[int] = set()
    waiting = [assertion for assertion in assertions if sound[assertion.node]]
    grown = True
    while grown:
        more = {assertion.assumption for assertion in waiting if assertion.uses <= found} - found
        found |= more
        grown = bool(more)
    return frozenset(found)


def _read_by_several(graph: Graph, stays: bytearray) -> set[str]:
    """Values that no fold could remove: outputs, and what two nodes read that stay."""
    found: set[str] = set()
    for node in graph.nodes:
        for value in node.outputs:
            readers = [r for r in value.readers if stays[r] and graph.nodes[r].op not in SIZE_ONLY]
            if len(readers) > 1 or value.is_output or value.captured:
                found.add(value.name)
    return found


def _ranked(graph: Graph, sound: Sequence[bool], known: Sizes, several: Collection[str]) -> list[Value]:
    """Inputs of the model, in its order, then what sound nodes make, nearest to the inputs first.

    A value that only one node reads comes after all others: it may lie inside of what can be folded, and one more
    reader would keep it. Ties go by structure, so that neither names nor the order of nodes decide.
    """
    depth = {value.name: 0 for value in graph.inputs}
    marks = {value.name: f"input {i}" for i, value in enumerate(graph.inputs)}
    made: list[tuple[bool, int, str, int, Value]] = []
    for node in graph.nodes:
        if not sound[node.index]:
            continue
        reached = [depth[value.name] for value in node.data if value.name in depth]
        mark = _mark(node, marks)
        for place, value in enumerate(node.outputs):
            marks[value.name] = f"{mark}{place}"
            if reached and value.name in known.dims and value.constant is None:
                depth[value.name] = 1 + min(reached)
                made.append((value.name not in several, depth[value.name], marks[value.name], node.index, value))
    made.sort(key=lambda each: each[:4])
    return [*(value for value in graph.inputs if value.name in known.dims), *(value for *_, value in made)]


def _mark(node: Node, marks: Mapping[str, str]) -> str:
    """What the node computes, in a few letters: its operator and settings, and the marks of what it reads."""
    read = [marks.get(value.name, "") for value in node.data]
    stored = sorted((role, constant.shape) for role, constant in node.consts.items())
    settings = sorted((key, str(value)) for key, value in node.attrs.items())
    words = f"{node.op} {read} {stored} {settings}"
    return hashlib.blake2b(words.encode(errors="replace"), digest_size=12).hexdigest()


def _name(node: Node) -> str:
    return node.name or node.output.name


def _words(key: Key, extents: Sequence[Size]) -> str:
    op, _, _, places, _ = key
    if op == "size":
        return f"both have {shown(extents[0].expr)} elements"
    listed = ", ".join(f"[{place}] = {shown(size.expr)}" for place, size in zip(places, extents, strict=True))
    return f"both have {listed}" if listed else "no extent is read"


def _lost(claim: str, assumed: Sequence[Assumed]) -> str:
    lost = "; ".join(a.equation for a in assumed if a.status is Status.LOST)
    why = f"{claim} only where {lost}, which no node that stays would enforce"
    return f"{why} (lost=true allows it)"
