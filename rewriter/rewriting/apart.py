"""Taking a sum apart: the operands that fold into one operator together, beside those that stay.

The one idea: operands that come from one value are maps of it, and maps whose kernels go together without growing cost
no more in one than apart. Invariant: like every plan, what is chosen here is folded, gated and proved like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace

from rewriter.algebra.affine import Affine
from rewriter.algebra.conv import ConvForm
from rewriter.algebra.cost import Work
from rewriter.algebra.interpret import dtype_of, maps, space_of
from rewriter.algebra.linear import Form, LinearForm, form_of
from rewriter.algebra.terms import Space
from rewriter.errors import Reason, Refusal
from rewriter.graph.view import Graph, Value
from rewriter.matching import linear
from rewriter.matching.linear import Field
from rewriter.matching.region import Region
from rewriter.matching.sums import Flat, behind_entry, flatten
from rewriter.rewriting.sized import Sized

FURTHEST = 24
"""Slots that one fold may span in one round; longer regions fold over several."""

ENTRIES = 3
"""Entries under which the operands of a sum are tried, those that most operands share first."""


@dataclass(frozen=True, slots=True)
class Apart:
    """The region of the operands that fold, if some do; the nodes of the sum; why operands are no maps."""

    region: Region | None
    looked_at: Set[int]
    refused: tuple[Refusal, ...]


def apart(graph: Graph, root: Value, work: Work, sized: Sized, settled: Set[int], *, gated: bool) -> Apart:
    """The operands of the sum that gives `root` which go together; `settled` are nodes that other folds have."""
    flat, behind = flatten(graph, root), linear.grow(graph, root, settled)
    group = _Group(graph, flat, behind, work, sized, settled, gated, [])
    nodes = {node.index for node in flat.nodes}
    region = group.region() if nodes <= behind.indices else None
    return Apart(region, nodes, tuple(group.refused))


def written(affine: Affine, region: Region) -> Form | Refusal:
    """What a map of the region's entry is written as."""
    dtype, space = dtype_of(region), space_of(region)
    if isinstance(dtype, Refusal):
        return dtype
    return space if isinstance(space, Refusal) else form_of(affine, dtype, space, at=region.name)


@dataclass(frozen=True, slots=True)
class _Part:
    """An operand as a map of the entry; `apart` is what it would cost by itself, at best."""

    index: int
    affine: Affine
    form: Form
    apart: int
    space: Space


@dataclass(slots=True)
class _Group:
    """The operands of one sum, and the largest set of them that is worth folding."""

    graph: Graph
    flat: Flat
    behind: Field
    work: Work
    sized: Sized
    settled: Set[int]
    gated: bool
    refused: list[Refusal]

    def region(self) -> Region | None:
        for entry, operands in self._entries():
            parts = self._parts(entry, operands)
            for chosen in self._clusters(parts):
                region = self._region_of(entry, [part.index for part in chosen])
                if region is None:
                    region = self._behind(entry, {part.index for part in chosen})
                if region is not None and 1 + len(region.rest) < len(region.nodes):
                    return region
        return None

    def _behind(self, entry: Value, chosen: Set[int]) -> Region | None:
        """The same below the addition of an entry that stays, because it broadcasts."""
        rest = tuple((o.sign, o.value) for i, o in enumerate(self.flat.operands) if i not in chosen)
        below = behind_entry(self.graph, self.flat.root, entry, rest)
        if below is None:
            return None
        behind = linear.grow(self.graph, below, self.settled)
        return replace(self, flat=flatten(self.graph, below), behind=behind).region()

    def _entries(self) -> Iterator[tuple[Value, list[int]]]:
        """Values that two operands and more come from and go through, those of most operands first."""
        named = {v.name: v for node in self.behind.nodes for v in (*node.data, *node.outputs)}
        nearest = linear.dominators(self.behind)
        under: dict[str, list[int]] = {}
        for index, operand in enumerate(self.flat.operands):
            for name in linear.path_above(nearest, operand.value.name)[:FURTHEST]:
                under.setdefault(name, []).append(index)
        shared = [name for name, operands in under.items() if len(operands) > 1 and name in named]

        def rank(name: str) -> tuple[int, int]:
            producer = named[name].producer
            return -len(under[name]), -1 if producer is None else -producer

        for name in sorted(shared, key=rank)[:ENTRIES]:
            yield named[name], under[name]

    def _parts(self, entry: Value, operands: Sequence[int]) -> list[_Part]:
        """The operands as maps of the entry; one that is none stays, and the refusal says why."""
        region = self._region_of(entry, operands)
        if region is None:
            return []
        region = self.sized.entered(region)
        found, space = maps(region), space_of(region)
        inside = {self.flat.operands[i].value.name: i for i in operands}
        parts: list[_Part] = []
        for name, index in inside.items():
            affine = found.get(name)
            form = affine if affine is None or isinstance(affine, Refusal) else written(affine, region)
            if isinstance(form, Refusal) and form.code is not Reason.OP:
                self.refused.append(form)
            if not isinstance(affine, Affine) or isinstance(form, Refusal | None) or isinstance(space, Refusal):
                continue
            own = linear.between(self.behind, entry, [self.flat.operands[index].value])
            before = int(sum(self.work.by_node.get(i, 0) for i in own) / self.work.positions.get(region.exit.name, 1))
            signed = affine if self.flat.operands[index].sign > 0 else affine.negated()
            parts.append(_Part(index, signed, form, min(form.kernel.size, before), space))
        return parts

    def _clusters(self, parts: Sequence[_Part]) -> Iterator[list[_Part]]:
        """Sets of operands that cost no more together than apart, around each kind of kernel, the largest first."""
        kinds: dict[tuple[object, ...], list[_Part]] = {}
        for part in sorted(parts, key=lambda part: -part.form.kernel.size):
            form = part.form
            kinds.setdefault(_kind(form), []).append(part)
        for base, own in kinds.items():
            if _is_bare(own[0].form):
                continue
            chosen, total = [own[0]], own[0].affine
            others = [*own[1:], *(part for kind, found in kinds.items() if kind != base for part in found)]
            for part in others:
                joined = self._joined(total, chosen[0], part)
                if joined is not None:
                    chosen.append(part)
                    total = joined
            if len(chosen) > 1:
                yield chosen

    def _joined(self, total: Affine, first: _Part, part: _Part) -> Affine | None:
        region = Region(self.behind.exit, self.flat.root, self.behind.nodes)
        joined = total.plus(part.affine, at=region.name)
        if isinstance(joined, Refusal):
            return None
        alone, form = (form_of(a, first.form.dtype, first.space) for a in (total, joined))
        if isinstance(form, Refusal) or isinstance(alone, Refusal):
            return None
        return joined if not self.gated or form.kernel.size <= alone.kernel.size + part.apart else None

    def _region_of(self, entry: Value, operands: Sequence[int]) -> Region | None:
        """The region of some operands; None where an operand that stays reads something inside, or the entry stays."""
        chosen = set(operands)
        rest = tuple((o.sign, o.value) for i, o in enumerate(self.flat.operands) if i not in chosen)
        inside = linear.between(self.behind, entry, [self.flat.operands[i].value for i in operands])
        inside |= {node.index: node for node in self.flat.nodes}
        if any(value is entry or value.producer in inside for _, value in rest):
            return None
        root = self.flat.root
        for node in inside.values():
            for value in node.outputs:
                if value is not root and not all(reader in inside for reader in value.readers):
                    return None
        return Region(entry, root, tuple(inside[i] for i in sorted(inside)), rest)


def _kind(form: Form) -> tuple[object, ...]:
    """What kernels have in common that go together without growing."""
    shape: tuple[object, ...] = form.kernel.shape
    return (shape,) if isinstance(form, LinearForm) else (shape, form.pads, form.dilations, form.groups)


def _is_bare(form: Form) -> bool:
    """One number per channel: what a norm or an identity is."""
    return isinstance(form, ConvForm) and form.kernel.size == len(form.kernel) == form.groups
