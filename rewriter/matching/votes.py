"""Votes of an outputs pattern on one pair of output groups: true, false or silent, with the figures behind them.

Invariant: a vote is an expression about two roles, and it is asked twice, the second time with the roles exchanged. The
same answer both times tells the groups apart in no way: the vote is silent. So votes never depend on the order of
outputs, and a vote for (main, aux) is one against (aux, main).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from rewriter.graph.view import Node, Value
from rewriter.language.syntax import Apply, Binary, Expr, Name, Not, Number, Vote
from rewriter.matching.cones import DEEPENING, ELEMENTS_KEPT, Cones
from rewriter.matching.predicates import Reading
from rewriter.matching.tails import in_step
from rewriter.matching.taps import Tap, Ways, tap, ways, working_for
from rewriter.matching.where import holds
from rewriter.reporting.record import VoteRecord

TRUE, FALSE, SILENT = "true", "false", "silent"

TOGETHER = 2
"""Counting votes that have to speak for a decision, where the pattern declares as many (see `verdict`)."""

COUNTING = ("depth", "pan", "tapped")
"""Functions that count layers, and know nothing where some are hidden."""

SHOWN = 3
"""Names that a vote on names quotes."""


@dataclass(frozen=True)
class Facts:
    """What votes may ask about a group of outputs. `members` are all of it, in the order of the model."""

    cones: Cones
    members: tuple[Value, ...]

    @cached_property
    def depth(self) -> int:
        return max((self.cones.depth_of(value) for value in self.members), default=0)

    @cached_property
    def pan(self) -> bool:
        """Of the deepest member; of any of them where several are."""
        return any(self.cones.pan_of(v) for v in self.members if self.cones.depth_of(v) == self.depth)

    @cached_property
    def mask(self) -> int:
        return self.cones.mask(self.members)

    @cached_property
    def params(self) -> int:
        return self.cones.parameters(self.mask)

    @cached_property
    def macs(self) -> int:
        """Per output pixel: the weight elements that the nodes of this group alone multiply with."""
        nodes = [n for n in self.cones.exclusive(self.mask) if n.op in DEEPENING]
        weights = (node.consts.get("weight") for node in nodes)
        return sum(weight.size for weight in weights if weight is not None)

    @cached_property
    def place(self) -> int:
        """Of its first output among those of the model."""
        return (self.mask & -self.mask).bit_length() - 1

    @cached_property
    def deepest(self) -> Value:
        return max(self.members, key=lambda value: (self.cones.depth_of(value), -self.cones.bit(value)))

    def stem(self, other: int) -> bool:
        """Whether a layer that outputs of `other` do without reads an image by itself."""
        return any(not flow & other for flow in self._stems)

    @cached_property
    def _stems(self) -> frozenset[int]:
        """What the layers work for that read an image by themselves."""
        nodes = (self.cones.graph.nodes[i] for i in self._nodes)
        return frozenset(self.cones.flows[n.index] for n in nodes if n.op in DEEPENING and _reads_image(self.cones, n))

    @cached_property
    def _nodes(self) -> list[int]:
        return working_for(self.cones, self.mask)

    @cached_property
    def _ways(self) -> Ways:
        return ways(self.cones, self._nodes)

    @cached_property
    def _taps(self) -> dict[int, Tap | None]:
        return {}

    def tap(self, other: Facts) -> Tap | None:
        """Where the group leaves the way to another; found once, since several votes and words ask."""
        if other.mask not in self._taps:
            self._taps[other.mask] = tap(self.cones, self.mask, other.mask, other._ways)
        return self._taps[other.mask]

    @cached_property
    def segments(self) -> frozenset[str]:
        """The parts of module paths and tensor names, of what this group alone needs."""
        names = set(self.cones.tensors(self.mask))
        for node in self.cones.exclusive(self.mask):
            names.add(node.scope)
            names.update(value.name for value in node.outputs)
        return frozenset(segment for name in names for segment in re.split(r"[/.:]", name) if segment)

    def fitting(self, globs: Sequence[str]) -> list[str]:
        return sorted(s for s in self.segments if any(fnmatchcase(s, glob) for glob in globs))


@dataclass(frozen=True, slots=True)
class Pair:
    """The scope of a vote: which group plays which role, and the parameters of the pattern."""

    roles: Mapping[str, Facts]
    params: Mapping[str, Any]

    def sizes(self, owner: str) -> int | None:
        del owner
        return None

    def attribute(self, owner: str, index: int, name: str) -> Reading:
        del owner, index, name
        return None

    def apply(self, function: str, argument: str) -> Reading:
        facts = self.roles.get(argument)
        if facts is None:
            return None
        if function in COUNTING and self.hidden:
            return None
        match function:
            case "depth":
                return facts.depth
            case "pan":
                return facts.pan
            case "params":
                return facts.params
            case "macs":
                return facts.macs
            case "tapped":
                found = self.tap(argument)
                return found is not None and found.early
            case "place":
                return facts.place
            case _:
                return self._of_both(function, facts, argument)

    def _of_both(self, function: str, own: Facts, role: str) -> Reading:
        """What is asked of a role but depends on the other one too."""
        other = next((facts for name, facts in self.roles.items() if name != role), None)
        if other is None:
            return None
        if function == "alike":
            return in_step(own.cones, own.deepest, other.deepest)
        return own.stem(other.mask) if function == "stem" else None

    @property
    def hidden(self) -> list[Node]:
        """Nodes of one of the roles alone in which layers hide that nothing here counts."""
        masks = [facts.mask for facts in self.roles.values()]
        first = next(iter(self.roles.values()), None)
        return first.cones.hidden(*masks) if first is not None and len(masks) == 2 else []

    def tap(self, role: str) -> Tap | None:
        """Where a role's group leaves the way to the other's."""
        other = next((facts for name, facts in self.roles.items() if name != role), None)
        own = self.roles.get(role)
        return None if own is None or other is None else own.tap(other)

    def name(self, name: str) -> Reading:
        found = self.params.get(name)
        return found if isinstance(found, int | float | str | bool) else None

    def answer(self, expr: Expr) -> bool:
        return holds(self._settled(expr), self)

    def names_say(self, expr: Expr) -> bool:
        """Whether a vote is about names and they fit, whatever the other role is called."""
        return isinstance(expr, Binary) and expr.op == "~" and bool(self.fitting(expr))

    def fitting(self, expr: Binary) -> list[str]:
        """The names on the left of a `~` that fit a glob on its right."""
        globs = self._names(expr.right)
        if isinstance(expr.left, Apply):
            facts = self.roles.get(expr.left.argument)
            return facts.fitting(globs) if facts is not None and expr.left.function == "scope" else []
        return [name for name in self._names(expr.left) if any(fnmatchcase(name, glob) for glob in globs)]

    def _names(self, expr: Expr) -> tuple[str, ...]:
        found = self.params.get(expr.name) if isinstance(expr, Name) else None
        return (found,) if isinstance(found, str) else tuple(found or ())

    def _settled(self, expr: Expr) -> Expr:
        """`expr` with every `~` replaced by its answer: the evaluator of `where` knows no lists of names."""
        match expr:
            case Binary("~"):
                return Binary("=", Number(1), Number(int(bool(self.fitting(expr)))))
            case Binary(op, left, right):
                return Binary(op, self._settled(left), self._settled(right))
            case Not(operand):
                return Not(self._settled(operand))
            case _:
                return expr


@dataclass(frozen=True, slots=True)
class Table:
    """The votes on (main, aux): `main` and `aux` name the groups as people know them."""

    main: str
    aux: str
    votes: tuple[VoteRecord, ...]


class Verdict(StrEnum):
    MAIN = "main"  # the votes agree that the first group is the one that stays
    AUX = "aux"  # the votes agree on the contrary
    SPLIT = "split"  # votes that count contradict each other
    ALONE = "alone"  # one vote speaks where two have to
    SILENT = "silent"  # no structural vote speaks


def cast(votes: Sequence[Vote], pair: Pair, exchanged: Pair) -> tuple[VoteRecord, ...]:
    """Every vote on `pair`; `exchanged` is the same pair with the roles the other way round."""
    return tuple(_cast(vote, pair, exchanged) for vote in votes)


def _cast(vote: Vote, pair: Pair, exchanged: Pair) -> VoteRecord:
    here, there = pair.answer(vote.expr), exchanged.answer(vote.expr)
    value = SILENT if here == there else TRUE if here else FALSE
    return VoteRecord(vote.name, value, not vote.report_only, _figures(vote.expr, pair, exchanged))


def _reads_image(cones: Cones, node: Node) -> bool:
    """Whether a layer reads an input of rank 3 or more, through nothing but what hands elements on."""
    for value in node.data:
        maker = cones.graph.producer(value)
        while maker is not None and maker.op in (*ELEMENTS_KEPT, "scale", "shift", "pad") and maker.data:
            value = maker.data[0]
            maker = cones.graph.producer(value)
        if value.is_input and len(value.shape or ()) > 2:
            return True
    return False


def verdict(votes: Sequence[Vote], records: Sequence[VoteRecord]) -> Verdict:
    """What the votes on a pair say together.

    Two texts set the rule. The language: decide when a structural vote speaks and none that speaks disagrees. The
    measurements: depth and the PAN test are heuristics that decide only together. Depth alone would follow whoever
    makes the auxiliary head the deeper one; so two votes that count must speak, one of them structural (about the graph
    and not about names), and all that speak must agree. A deeper auxiliary head then contradicts another vote or leaves
    depth alone, and in both cases the user is asked. A pattern that declares a single counting vote has said that
    this one decides.
    """
    structural = {vote.name for vote in votes if not _reads_names(vote.expr)}
    counting = [record for record in records if record.counts]
    spoken = [record for record in counting if record.value != SILENT]
    if len({record.value for record in spoken}) > 1:
        return Verdict.SPLIT
    if not any(record.name in structural for record in spoken):
        return Verdict.SILENT
    if len(spoken) < min(TOGETHER, len(counting)):
        return Verdict.ALONE
    return Verdict.MAIN if spoken[0].value == TRUE else Verdict.AUX


def _reads_names(expr: Expr) -> bool:
    return any(part.op == "~" for part in _parts(expr) if isinstance(part, Binary))


def _parts(expr: Expr) -> Iterator[Expr]:
    yield expr
    match expr:
        case Binary(_, left, right):
            yield from _parts(left)
            yield from _parts(right)
        case Not(operand):
            yield from _parts(operand)
        case _:
            return


def _figures(expr: Expr, pair: Pair, exchanged: Pair) -> str:
    """The figures of a vote: "115 < 157", "pan(main) yes, pan(aux) no", "scope(aux): aux; scope(main): nothing"."""
    match expr:
        case Binary("<" | "<=" | ">" | ">=" | "=" | "!=" as op, Apply() as left, Apply() as right):
            values = [pair.apply(side.function, side.argument) for side in (left, right)]
            if left.function == right.function == "alike":
                return f"last operators that are alike, in step: {_shown(values[0])}"
            return f"{_shown(values[0])} {op} {_shown(values[1])}"
        case Binary("~", Apply("scope", role)):
            other = next((name for name in pair.roles if name != role), role)
            return f"scope({role}): {_some(pair.fitting(expr))}; scope({other}): {_some(exchanged.fitting(expr))}"
        case _:
            leaves = dict.fromkeys(
                part for part in _parts(expr) if isinstance(part, Apply) and part.function != "scope"
            )
            facts = [_fact(pair, part) for part in leaves]
            globs = [part for part in _parts(expr) if isinstance(part, Binary) and part.op == "~"]
            return ", ".join([*facts, *(_figures(part, pair, exchanged) for part in globs if part is not expr)])


def _fact(pair: Pair, part: Apply) -> str:
    """ "pan(aux) no", "tapped(aux) yes (at /layer3/Relu: 2 layers to aux, 13 to main)"."""
    fact = f"{part.function}({part.argument}) {_shown(pair.apply(part.function, part.argument))}"
    found = pair.tap(part.argument) if part.function == "tapped" else None
    other = next((name for name in pair.roles if name != part.argument), "")
    if found is None:
        return fact
    return f"{fact} (at {found.value}: {found.own} layers to {part.argument}, {found.other} to {other})"


def _shown(value: Reading) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "unknown" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _some(names: Sequence[str]) -> str:
    if not names:
        return "nothing"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
