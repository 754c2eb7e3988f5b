"""Sums of any nesting as signed operands, and the operands grouped into the branches of a pattern over one entry.

The one idea: flattening makes order, nesting and commutation vanish; walking each operand back gives its possible
entries; the entry that most operands share makes the group. The cost is linear in the number of operands.
Invariant: an operand that is the entry itself is an identity branch; one with another entry is a residual and stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rewriter.errors import Reason, Refusal
from rewriter.graph.view import Graph, Node, Value
from rewriter.matching import walk as walking
from rewriter.matching.predicates import attribute, is_transparent, uniform
from rewriter.matching.program import Arm, SumStep

SUM_OPS = frozenset({"add", "sub", "sum"})


@dataclass(frozen=True, slots=True)
class Operand:
    sign: int
    value: Value


@dataclass(frozen=True, slots=True)
class Flat:
    """A sum without its nesting: exit = sum(sign * operand) + constants; `nodes` are the tree, exit first."""

    operands: tuple[Operand, ...]
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """An operand read as one arm: `index` into the operands, `arm` into the arms."""

    index: int
    arm: int
    walk: walking.Walk


@dataclass(frozen=True, slots=True)
class Grouped:
    """Operands that start from one entry, assigned to arms; `rest` are those that stay."""

    entry: Value
    nodes: tuple[Node, ...]  # the tree and every operand's way, in no particular order
    labels: tuple[tuple[str, Node], ...]
    counts: tuple[tuple[str, int], ...]
    words: str
    rest: tuple[tuple[int, Value], ...]


def is_sum(node: Node) -> bool:
    return node.op in SUM_OPS and node.problem is None


def is_root(graph: Graph, node: Node) -> bool:
    """A sum that is not itself an operand of a larger one."""
    readers = graph.readers(node.output)
    return not (node.output.private and is_sum(readers[0]))


def flatten(graph: Graph, root: Value) -> Flat:
    """The signed operands under `root`, through sums, constants and sign changes that only this sum reads."""
    operands: list[Operand] = []
    nodes: list[Node] = []
    stack = [(1, root)]
    while stack:
        sign, value = stack.pop()
        inner = _inside(graph, value, value is root)
        if inner is None:
            operands.append(Operand(sign, value))
            continue
        signs, chain = inner
        nodes.extend(chain)
        last = chain[-1]
        sign *= signs
        seconds = -sign if last.op == "sub" else sign
        stack.extend((seconds if position else sign, v) for position, v in reversed(list(enumerate(last.data))))
    return Flat(tuple(operands), tuple(nodes))


def _inside(graph: Graph, value: Value, free: bool) -> tuple[int, list[Node]] | None:
    """The way from `value` down to a sum that belongs to the same tree, with its sign; None where it is an operand."""
    sign = 1
    chain: list[Node] = []
    while True:
        node = graph.producer(value)
        if node is None or node.problem is not None or not (free or value.private):
            return None
        free = False
        chain.append(node)
        if is_sum(node):
            return sign, chain
        step = _sign_of(node)
        if step is None:
            return None
        sign *= step
        value = node.data[0]


def _sign_of(node: Node) -> int | None:
    """+1 or -1 where the node hands its input on up to sign and a constant, so that the sum goes on below it."""
    if is_transparent(node):
        return 1
    if node.op == "neg":
        return -1
    if node.op == "shift":
        return int(node.attrs["sign"])
    if node.op == "scale" and node.consts["factor"].size == 1 and uniform(node.consts["factor"]) == -1:
        return -1
    return None


def group(graph: Graph, step: SumStep, root: Value, *, leftovers: bool) -> Grouped | Refusal:
    """The largest group of operands under one entry that fits the arms, by the reading that takes most operands.

    `leftovers` allows operands that are in no arm: they stay, as `rest`.
    """
    flat = flatten(graph, root)
    best: Grouped | None = None
    refusal: Refusal | None = None
    for arms in step.readings:
        found = _group(graph, flat, arms, root, leftovers)
        if isinstance(found, Refusal):
            refusal = refusal or found
        elif best is None or len(found.rest) < len(best.rest):
            best = found
    return best or refusal or Refusal(Reason.COUNT, root.name, "the sum has no branches")


def _group(graph: Graph, flat: Flat, arms: Sequence[Arm], root: Value, leftovers: bool) -> Grouped | Refusal:
    read = _read_operands(graph, flat, arms)
    by_entry: dict[str, tuple[Value, list[Candidate]]] = {}
    for candidate in read.candidates:
        entry = candidate.walk.entry
        by_entry.setdefault(entry.name, (entry, []))[1].append(candidate)
    order = _operand_order(flat, read.candidates)
    refusal: Refusal | None = None
    for entry, readings in sorted(by_entry.values(), key=lambda found: _entry_rank(*found)):
        if -_entry_rank(entry, readings)[0] < 2:
            break  # no entry has two operands from here on
        assigned = assign(arms, readings, order)
        if isinstance(assigned, str):
            refusal = refusal or Refusal(Reason.COUNT, root.name, f"from {entry.name}: {assigned}")
            continue
        taken = {c.index for c in assigned}
        if len(taken) < len(flat.operands) and not leftovers:
            stays = next(o for i, o in enumerate(flat.operands) if i not in taken)
            detail = f"operand {stays.value.name} does not start from {entry.name}"
            refusal = refusal or Refusal(Reason.ENTRY, root.name, detail)
            continue
        return _grouped(flat, arms, assigned, entry)
    return refusal or _no_entry(flat, read, root)


@dataclass(frozen=True, slots=True)
class _Read:
    """Every reading of every operand as some arm, and by operand what stopped the walk that got furthest."""

    candidates: list[Candidate]
    near_misses: list[tuple[int, Refusal]]  # (nodes that the walk had consumed, why it stopped)


def _read_operands(graph: Graph, flat: Flat, arms: Sequence[Arm]) -> _Read:
    read = _Read([], [])
    for index, operand in enumerate(flat.operands):
        stopped: tuple[int, Refusal] | None = None
        for position, arm in enumerate(arms):
            if arm.sign not in (0, operand.sign):
                continue
            walked = walking.walk(graph, arm.program, operand.value)
            read.candidates.extend(Candidate(index, position, w) for w in walked.walks)
            if walked.near_miss is not None and (stopped is None or walked.depth > stopped[0]):
                stopped = (walked.depth, walked.near_miss)
        if stopped is not None:
            read.near_misses.append(stopped)
    return read


def _entry_rank(entry: Value, readings: Sequence[Candidate]) -> tuple[int, int]:
    """Most operands first (at most one of them bare), then nearest to the exit."""
    bare = {c.index for c in readings if not c.walk.words}
    others = {c.index for c in readings if c.walk.words}
    count = len(others) + (1 if bare - others else 0)
    return -count, -(entry.producer if entry.producer is not None else -1)


def _operand_order(flat: Flat, candidates: Sequence[Candidate]) -> list[int]:
    """Operand indices by sign, kind, larger kernel, structure: nothing that renaming or reordering could change."""
    structure: dict[int, tuple[int, str]] = {}
    for c in candidates:
        kernels = [k for n in c.walk.nodes if n.op == "conv" and isinstance(k := attribute(n, "k"), tuple)]
        area = max((_product(k) for k in kernels), default=0)
        key = (-area, c.walk.words)
        structure[c.index] = min(structure.get(c.index, key), key)
    none = (0, "")
    return sorted(
        range(len(flat.operands)), key=lambda i: (-flat.operands[i].sign, structure.get(i, none), i)
    )


def _product(extents: tuple[int, ...]) -> int:
    total = 1
    for extent in extents:
        total *= extent
    return total


def assign(arms: Sequence[Arm], readings: Sequence[Candidate], order: Sequence[int]) -> list[Candidate] | str:
    """Operands to arms as a flow: every minimum first, then declaration order (augmenting paths).

    Gives the chosen readings, or in words which minimum cannot be met.
    """
    options: dict[int, dict[int, Candidate]] = {}
    for c in readings:
        options.setdefault(c.index, {}).setdefault(c.arm, c)
    operands = _one_bare(options, order)
    chosen: dict[int, int] = {}
    for arm_index, arm in enumerate(arms):
        for _ in range(arm.least):
            if not _fill(arm_index, arms, options, operands, chosen):
                have = sum(1 for a in chosen.values() if a == arm_index)
                return f"branch '{arm.name}' needs {arm.least}, only {have} of {len(operands)} operands fit"
    for index in operands:
        if index not in chosen:
            _place(index, arms, options, chosen, set())
    if len(chosen) < 2:
        return "a sum folds when at least two operands start from one value"
    return [options[index][arm] for index, arm in sorted(chosen.items())]


def _one_bare(options: dict[int, dict[int, Candidate]], order: Sequence[int]) -> list[int]:
    """The operands in order, with at most one that is the entry itself."""
    kept: list[int] = []
    bare_seen = False
    for index in order:
        if index not in options:
            continue
        bare = all(not c.walk.words for c in options[index].values())
        if not (bare and bare_seen):
            kept.append(index)
        bare_seen |= bare
    return kept


def _fill(
    arm: int,
    arms: Sequence[Arm],
    options: dict[int, dict[int, Candidate]],
    operands: Sequence[int],
    chosen: dict[int, int],
) -> bool:
    """Give one more operand to `arm`: a free one, else one whose place another can take."""
    for index in operands:
        if index not in chosen and arm in options[index]:
            chosen[index] = arm
            return True
    for index in operands:
        held = chosen.get(index)
        if held is not None and held != arm and arm in options[index]:
            spare = next((i for i in operands if i not in chosen and held in options[i]), None)
            above_least = sum(1 for a in chosen.values() if a == held) > arms[held].least
            if spare is not None or above_least:
                chosen[index] = arm
                if spare is not None:
                    chosen[spare] = held
                return True
    return False


def _place(
    index: int, arms: Sequence[Arm], options: dict[int, dict[int, Candidate]], chosen: dict[int, int], tried: set[int]
) -> bool:
    """Put an operand into the first arm with room, moving others along where that makes room."""
    for arm in sorted(options[index]):
        if arm in tried:
            continue
        tried.add(arm)
        holders = [i for i, a in chosen.items() if a == arm]
        most = arms[arm].most
        if most is None or len(holders) < most:
            chosen[index] = arm
            return True
        if most == 0:
            continue
        for holder in holders:
            del chosen[holder]
            if _place(holder, arms, options, chosen, tried):
                chosen[index] = arm
                return True
            chosen[holder] = arm
    return False


def _grouped(flat: Flat, arms: Sequence[Arm], assigned: Sequence[Candidate], entry: Value) -> Grouped:
    taken = {c.index for c in assigned}
    nodes = list(flat.nodes)
    labels: list[tuple[str, Node]] = []
    counts: list[tuple[str, int]] = []
    parts: list[str] = []
    for c in sorted(assigned, key=lambda c: (c.arm, c.walk.words)):
        nodes += c.walk.nodes
        labels += c.walk.labels
        counts += [*c.walk.counts, (arms[c.arm].name, 1)]
        sign = "-" if flat.operands[c.index].sign < 0 else ""
        parts.append(f"{sign}{arms[c.arm].name} ({c.walk.words or 'bare'})")
    rest = tuple((o.sign, o.value) for i, o in enumerate(flat.operands) if i not in taken)
    return Grouped(entry, tuple(nodes), tuple(labels), tuple(counts), f"sum of {', '.join(parts)}", rest)


def _no_entry(flat: Flat, read: _Read, root: Value) -> Refusal:
    """Why there is no group: an operand that is read elsewhere or made by something else, or entries that differ."""
    escape = next((r for _, r in read.near_misses if r.code is Reason.ESCAPE), None)
    if escape is not None:
        return escape
    if not any(c.walk.words for c in read.candidates) and read.near_misses:
        return max(read.near_misses, key=lambda miss: miss[0])[1]
    words: dict[int, str] = {}
    for c in sorted(read.candidates, key=lambda c: len(c.walk.nodes)):
        words[c.index] = f"{c.walk.entry.name} ({c.walk.words or 'pass'})"
    shown = " and ".join(words.get(i, o.value.name) for i, o in enumerate(flat.operands[:4]))
    entries = len({c.walk.entry.name for c in read.candidates})
    return Refusal(Reason.ENTRY, root.name, f"{len(flat.operands)} operands from {entries} entries: {shown}")
