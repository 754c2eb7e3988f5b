"""Which outputs of a graph stay and which go, by an outputs pattern: what the user named, or what the votes agree on.

Invariant: an answer rests on names the user gave or on votes that agree; anything less is a `ChoiceError` with the
candidates, the evidence and the words to type. What is named stays with the raw maps inside its cone, and nothing else
does: `--keep` says what is wanted, of any kind. Without it only groups that have a like are in question at all.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import combinations, product
from typing import Any

from rewriter.dims.declared import at_sample_sizes
from rewriter.dims.engine import measured
from rewriter.errors import ChoiceError, Reason, Refusal, UsageError
from rewriter.graph.view import Graph, Value
from rewriter.language.source import nearest
from rewriter.language.syntax import OutputsMatch, Pattern, RemoveOutput, Role
from rewriter.matching.averages import averaged, averaged_stacks
from rewriter.matching.cones import Cones
from rewriter.matching.groups import Group, components, group_of, groups_of, siblings
from rewriter.matching.predicates import attribute
from rewriter.matching.stacks import stacks
from rewriter.matching.tails import named_parts
from rewriter.matching.unstacked import unstacked
from rewriter.matching.votes import Facts, Pair, Table, Verdict, cast, verdict
from rewriter.matching.where import Bindings, holds
from rewriter.reporting.escape import plain
from rewriter.reporting.figures import shape
from rewriter.reporting.record import VoteRecord

BY_VOTES, BY_KEEP, BY_KEEP_ALL, BY_PATTERN = "by votes", "by --keep", "by --keep all", "by the pattern"
NOTHING = "nothing auxiliary"
EVERYTHING = "all"
"""As the name of an output to keep: every one."""

SHOWN = 12
"""Candidates, offers, nodes and pairs of groups with their votes that a message lists."""

SAID: Mapping[Verdict, str] = {
    Verdict.SPLIT: "the votes contradict each other",
    Verdict.ALONE: "only one vote speaks, and one alone is not enough",
    Verdict.SILENT: "no vote on structure tells them apart",
}


@dataclass(frozen=True, slots=True)
class Decision:
    """What stays and what goes, both in the model's order; `table` holds the votes by pairs, `votes` all of them."""

    kept: tuple[Value, ...]
    removed: tuple[Value, ...]
    how: str
    votes: tuple[VoteRecord, ...] = ()
    table: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()


def decide(graph: Graph, pattern: Pattern, params: Mapping[str, Any], *, keep_all: bool = False) -> Decision | Refusal:
    """Which outputs `pattern` keeps and removes.

    `params` hold the values of its parameters (declared ones where absent); `keep_all` says that every output is
    wanted. Raises ChoiceError where the user has to say, UsageError for a name that is no output; a Refusal where the
    pattern asks for what is not there.
    """
    if not isinstance(pattern.match, OutputsMatch) or not isinstance(pattern.action, RemoveOutput):
        raise ValueError(f"{pattern.name} is no pattern of outputs")
    values = {p.name: p.value for p in pattern.params} | dict(params)
    sizes = measured(graph)
    seen = unstacked(at_sample_sizes(graph), stacks(graph, sizes))
    cones = Cones.of(seen)
    decider = _Decider(cones, graph, pattern, pattern.match, pattern.action.role, values)
    decision = decider.decide(keep_all)
    if isinstance(decision, Refusal):
        return decision
    levels = decider.groups() if decision.how == NOTHING else ()
    kept = decision.kept
    notes = (
        *_constants(kept),
        *_means(cones, kept, averaged_stacks(graph, sizes)),
        *_on_the_way(cones, kept),
        *_levels(levels),
    )
    return replace(decision, notes=notes)


def _constants(kept: Sequence[Value]) -> list[str]:
    """What exporters store of values that a module keeps from one call to the next."""
    return [f"{value.name} is a constant: nothing computes it" for value in kept if value.constant is not None]


def _means(cones: Cones, kept: Sequence[Value], stacked: Mapping[str, int]) -> list[str]:
    means = [(value.name, averaged(cones, value) or stacked.get(value.name, 0)) for value in kept]
    return [f"{name} is the mean of {heads} heads: none of them is auxiliary" for name, heads in means if heads]


def _on_the_way(cones: Cones, kept: Sequence[Value]) -> list[str]:
    """What others are made from costs nothing: it stays with them, even where `--keep` does not name it."""
    found = [value.name for value in kept if cones.computed(value) and cones.inside(value) & cones.mask(kept)]
    return [f"on the way to other outputs, and kept with them: {', '.join(found)}"] if found else []


def _levels(groups: Sequence[Group]) -> list[str]:
    said = "are taken for the levels of one head; if some are auxiliary, --keep says what stays"
    return [f"{group.name} {said}" for group in groups if len(group.leaders) > 1]


@dataclass(frozen=True, slots=True)
class _Open:
    """Groups of which one may be wanted, and the votes, which do not say which."""

    family: Sequence[Group]
    tables: Sequence[Table]
    verdicts: Sequence[Verdict]


@dataclass(frozen=True, slots=True)
class _Decider:
    cones: Cones  # with extents as numbers, where they can be told
    declared: Graph
    pattern: Pattern
    match: OutputsMatch
    removed_role: str
    params: Mapping[str, Any]
    known: dict[tuple[str, ...], Facts] = field(default_factory=dict[tuple[str, ...], Facts])  # by members

    def decide(self, keep_all: bool) -> Decision | Refusal:
        unbound = Bindings({}, {}, self.params, attribute)
        if not all(holds(clause, unbound) for clause in self.pattern.where):
            return Refusal(Reason.WHERE, self.pattern.name, "its where clause is false")
        if keep_all:
            return Decision(self.cones.outputs, (), BY_KEEP_ALL)
        role = self._role(self.removed_role)
        if role.kind == "twin":
            main = self._role(str(role.argument))
            if main.kind == "named":
                names = self._names(main)
                return self._by_keep(names) if names else self._by_votes()
            return self._by_role([main], None)
        if role.kind == "rest":
            return self._by_role([r for r in self.match.roles if r.name != role.name], None)
        return self._by_role([], role)

    # --- what the user named -----------------------------------------------------------------------------------------

    def _by_keep(self, names: Sequence[str]) -> Decision:
        named = self._outputs(names)
        kept = self.cones.mask(named)
        for value in self.cones.outputs:
            if self.cones.flows_into(value) & self.cones.mask(named):
                kept |= self.cones.bit(value)
        return self._decision(kept, BY_KEEP, self._evidence(kept))

    def _outputs(self, names: Iterable[str]) -> list[Value]:
        found = {value.name: value for name in names for value in self._named(name)}
        return list(found.values())

    def _named(self, name: str) -> Sequence[Value]:
        """The outputs that a name, a position or a glob means; an output that is called so comes first."""
        known = {value.name: value for value in self.cones.outputs}
        if name in known:
            return [known[name]]
        listed = self.declared.outputs  # one may stand there twice
        places = {f"{place}": known[v.name] for i, v in enumerate(listed) for place in (i, i - len(listed))}
        if name in places:
            return [places[name]]
        fitting = [value for value in known.values() if set(name) & set("*?[") and fnmatchcase(value.name, name)]
        if fitting:
            return fitting
        hint = nearest(name, known)
        raise UsageError(
            f"--keep {plain(shlex.quote(name))}: the model has no such output{f'; {hint}' if hint else ''}"
            f" (its outputs are {', '.join(map(plain, known))})"
        )

    def _evidence(self, kept: int) -> list[Table]:
        """The votes on groups that stay against groups that go, for the report: the user has decided."""
        groups = self.groups()
        stay = [g for g in groups if self.cones.mask(g.leaders) & kept]
        go = [g for g in groups if not self.cones.mask(g.members) & kept]
        return [self._table(m, a) for m, a in product(stay, go) if siblings(self.cones, m, a)]

    # --- what the votes say ------------------------------------------------------------------------------------------

    def groups(self) -> tuple[Group, ...]:
        """The groups of the graph; what the names of a vote that counts tell apart is not one head."""
        return tuple(part for group in groups_of(self.cones) for part in self._apart(group))

    def _apart(self, group: Group) -> Sequence[Group]:
        told = {value.name for value in group.leaders if self._called_auxiliary(value)}
        if group.unclear or not 0 < len(told) < len(group.leaders):
            return (group,)
        parts = [[v for v in group.leaders if (v.name in told) is called] for called in (False, True)]
        return [group_of(self.cones, part) for part in parts]

    def _called_auxiliary(self, output: Value) -> bool:
        facts = Facts(self.cones, (output,))
        pair = Pair({self.removed_role: facts}, self.params)
        return any(pair.names_say(vote.expr) for vote in self.match.votes if not vote.report_only)

    def _by_votes(self) -> Decision:
        groups = self.groups()
        unclear = next((g for g in groups if g.unclear), None)
        if unclear is not None:
            raise self._unclear(unclear, groups)
        families = components(groups, lambda a, b: siblings(self.cones, a, b))
        mains, tables, left_open = list[Group](), list[Table](), list[_Open]()
        for family in families:
            found = self._main(family)
            if isinstance(found, _Open):
                left_open.append(found)
                continue
            mains.append(found[0])
            tables += found[1]
        if left_open:
            raise self._choice(left_open, mains)
        kept = self.cones.mask(value for main in mains for value in main.members)
        return self._decision(kept, BY_VOTES if tables else NOTHING, tables)

    def _main(self, family: Sequence[Group]) -> tuple[Group, list[Table]] | _Open:
        """The group that wins against every other of its family, which have to be its siblings, and the votes."""
        lost: set[int] = set()
        verdicts, tables = list[Verdict](), list[Table]()
        for a, b in combinations(family, 2):
            said = Verdict.SILENT
            if siblings(self.cones, a, b):
                tables.append(self._table(a, b))
                said = verdict(self.match.votes, tables[-1].votes)
            verdicts.append(said)
            lost |= {id(b)} if said is Verdict.MAIN else {id(a)} if said is Verdict.AUX else {id(a), id(b)}
        winners = [group for group in family if id(group) not in lost]
        if len(winners) != 1:
            return _Open(family, tables, verdicts)
        return winners[0], [self._table(winners[0], group) for group in family if group is not winners[0]]

    def _facts(self, group: Group) -> Facts:
        """What is known of a group, found once: it stands in one pair with every other."""
        return self.known.setdefault(tuple(v.name for v in group.members), Facts(self.cones, group.members))

    def _table(self, main: Group, aux: Group) -> Table:
        facts = self._facts(main), self._facts(aux)
        others = [role.name for role in self.match.roles if role.name != self.removed_role]
        pairs = [
            Pair({**dict.fromkeys(others, one), self.removed_role: other}, self.params)
            for one, other in (facts, facts[::-1])
        ]
        return Table(main.name, aux.name, cast(self.match.votes, pairs[0], pairs[1]))

    # --- what the pattern says ---------------------------------------------------------------------------------------

    def _by_role(self, mains: Sequence[Role], removed: Role | None) -> Decision | Refusal:
        """Roles that find their group by themselves; votes that count still have to agree."""
        groups = self.groups()
        picked: list[Group] = []
        for role in mains if removed is None else [removed]:
            group = self._pick(role, groups)
            if isinstance(group, Refusal):
                return group
            picked += group
        others = [g for g in groups if g not in picked]
        if self._role(self.removed_role).kind == "twin":
            others = [g for g in others if any(siblings(self.cones, g, p) for p in picked)]
        stay, go = (picked, others) if removed is None else (others, picked)
        if not go:
            return Decision(self.cones.outputs, (), NOTHING)
        if not stay:
            return Refusal(Reason.COUNT, self.pattern.name, "it would remove every output")
        tables = [self._table(m, a) for m, a in product(stay, go)] if self.match.votes else []
        verdicts = [verdict(self.match.votes, table.votes) for table in tables]
        counted = any(not vote.report_only for vote in self.match.votes)
        if counted and any(said is not Verdict.MAIN for said in verdicts):
            raise self._choice([_Open([*stay, *go], tables, verdicts)], [g for g in groups if g not in (*stay, *go)])
        kept = self.cones.mask(v for g in groups if g not in go for v in g.members)
        return self._decision(kept, BY_PATTERN, tables)

    def _pick(self, role: Role, groups: Sequence[Group]) -> list[Group] | Refusal:
        match role.kind:
            case "named":
                named = self._outputs(self._names(role))
                return [g for g in groups if any(value in g.members for value in named)]
            case "index":
                position, outputs = int(role.argument or 0), self.cones.outputs
                if not -len(outputs) <= position < len(outputs):
                    return Refusal(Reason.COUNT, self.pattern.name, f"{role.name}: there is no output {position}")
                return [g for g in groups if outputs[position] in g.members][:1]
            case "deepest":
                depths = [Facts(self.cones, group.members).depth for group in groups]
                deepest = [g for g, depth in zip(groups, depths, strict=True) if depth == max(depths)]
                if len(deepest) > 1:
                    raise self._choice([_Open(deepest, [], [])], [g for g in groups if g not in deepest])
                return deepest
            case _:
                return Refusal(
                    Reason.CHOICE, self.pattern.name, f"{role.name}: {role.kind} cannot say which outputs it means"
                )

    def _role(self, name: str) -> Role:
        return next(role for role in self.match.roles if role.name == name)

    def _names(self, role: Role) -> tuple[str, ...]:
        found = self.params.get(str(role.argument), ())
        return (found,) if isinstance(found, str) else tuple(found)

    def _decision(self, kept: int, how: str, tables: Sequence[Table]) -> Decision:
        everything = self.cones.mask(self.cones.outputs)
        votes = tuple(vote for table in tables for vote in table.votes)
        if len(tables) > 1:  # say which pair each is about
            named = [(f"{table.main} and {table.aux}", vote) for table in tables for vote in table.votes]
            votes = tuple(replace(vote, detail=f"{pair}: {vote.detail}") for pair, vote in named)
        return Decision(self.cones.values(kept), self.cones.values(everything & ~kept), how, votes, tuple(tables))

    # --- messages ----------------------------------------------------------------------------------------------------

    def _choice(self, left_open: Sequence[_Open], settled: Sequence[Group]) -> ChoiceError:
        """`settled` are the groups that stay whatever is chosen."""
        verdicts = {said for each in left_open for said in each.verdicts if said in SAID}
        first = next((said for said in SAID if said in verdicts), None)
        why = SAID[first] if first is not None else "no group wins against all others"
        return ChoiceError(self._message(why, left_open, settled))

    def _unclear(self, group: Group, groups: Sequence[Group]) -> ChoiceError:
        lone = [Group(tuple(part), tuple(part)) for part in named_parts(self.cones, group.leaders)]
        others = [g for g in groups if g is not group]
        why = "they look like the maps of several heads, and the graph does not say which belong together"
        return ChoiceError(self._message(why, [_Open(lone, [], [])], others))

    def _message(self, why: str, left_open: Sequence[_Open], settled: Sequence[Group]) -> str:
        lines = [f"{self.pattern.name}: which of these outputs are auxiliary is yours to say: {why}", "candidates:"]
        lines += _few([self._candidate(group) for each in left_open for group in each.family])
        if hidden := [node.name or node.op for node in self.cones.layered]:
            lines.append(f"not looked into: {', '.join(map(plain, hidden[:SHOWN]))}; layers may hide there")
        lines += _votes([table for each in left_open for table in each.tables])
        lines.append(
            "say what to keep, with commas between names; what is not named goes, but for raw maps inside what stays:"
        )
        lines += _few([f"  --keep {self._typed([*offer, *settled])}" for offer in _offers(left_open)])
        return "\n".join([*lines, "  --keep all"])

    def _candidate(self, group: Group) -> str:
        declared = {value.name: value.shape for value in self.declared.outputs}
        facts = self._facts(group)
        led = ", ".join(f"{plain(value.name)} {plain(shape(declared[value.name]))}" for value in group.leaders)
        inside = [plain(value.name) for value in group.members if all(value is not leader for leader in group.leaders)]
        extra = f" with {', '.join(inside)} inside" if inside else ""
        return f"  {led}{extra}: depth {facts.depth}, {facts.params:,} parameters of its own"

    def _typed(self, groups: Sequence[Group]) -> str:
        mask = self.cones.mask(value for group in groups for value in group.leaders)
        return shlex.quote(",".join(self._word(value) for value in self.cones.values(mask)))

    def _word(self, value: Value) -> str:
        """What to type for an output: its name, or its position where the name would be read otherwise."""
        name = value.name
        if name == name.strip() == plain(name) and "," not in name and name not in ("", EVERYTHING):
            return name
        names = [output.name for output in self.declared.outputs]
        place = names.index(name)
        return f"{place}" if f"{place}" not in names else f"{place - len(names)}"


def _few(lines: Sequence[str]) -> list[str]:
    """The first of many lines, and how many there are beside."""
    hidden = len(lines) - SHOWN
    return [*lines[:SHOWN], f"  … and {hidden} more"] if hidden > 0 else [*lines]


def _offers(left_open: Sequence[_Open]) -> list[list[Group]]:
    """What people may want to keep: a group of every family at once, where as many heads give each (boxes, scores)."""
    families = [each.family for each in left_open]
    if len({len(family) for family in families}) == 1:
        return [list(one_of_each) for one_of_each in zip(*families, strict=True)]
    others = [[group for other in families if other is not family for group in other] for family in families]
    return [[group, *rest] for family, rest in zip(families, others, strict=True) for group in family]


def _votes(tables: Sequence[Table]) -> list[str]:
    lines = ["votes:"] if tables else []
    for table in tables[:SHOWN]:
        lines.append(f"  {plain(table.main)} as main, {plain(table.aux)} as auxiliary:")
        for vote in table.votes:
            note = "" if vote.counts else " (does not count)"
            lines.append(f"    {vote.name:<8} {vote.value:<7} {plain(vote.detail)}{note}")
    if len(tables) > SHOWN:
        lines.append(f"  … and {len(tables) - SHOWN} more pairs")
    return lines
