"""Sums of any nesting as signed operands, and which of the operands over one entry go to which branch of a pattern.

The one idea: flattening makes order, nesting and commutation vanish, and assignment is a flow between the few kinds of
operands and the branches; so the cost is linear in the number of operands, whatever their order.
Invariant: nothing here walks; what the operands can be read as is given, and no name decides anything.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

from rewriter.errors import Refusal
from rewriter.graph.view import Graph, Node, Value
from rewriter.matching.predicates import is_transparent, uniform
from rewriter.matching.program import Arm

SUM_OPS = frozenset({"add", "sub", "sum"})

SHOWN = 4
"""Operands that a refusal names."""

Labels: TypeAlias = tuple[tuple[str, Node], ...]
Counts: TypeAlias = tuple[tuple[str, int], ...]
Rest: TypeAlias = tuple[tuple[int, Value], ...]
"""Sign and value of operands that stay."""


@dataclass(frozen=True, slots=True)
class Walk:
    """One way to read a value as a body over `entry`, or a part of such a way; `nodes` exit first.

    `rest` are operands of a sum at the exit that stay, and `root` that sum where leftovers may stand in front of it.
    """

    entry: Value
    nodes: tuple[Node, ...] = ()
    labels: Labels = ()
    counts: Counts = ()
    words: str = ""  # "conv->bn", in the direction of the data; "" for the bare entry
    rest: Rest = ()
    root: Value | None = None


@dataclass(frozen=True, slots=True)
class Operand:
    sign: int
    value: Value


@dataclass(frozen=True, slots=True)
class Flat:
    """A sum without its nesting: root = sum(sign * operand) + constants; `nodes` are the tree, exit first."""

    root: Value
    operands: tuple[Operand, ...]
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """An operand read as one arm: `index` into the operands, `arm` into the arms."""

    index: int
    arm: int
    walk: Walk


@dataclass(frozen=True, slots=True)
class Reading:
    """Every reading of every operand as some arm, and what stopped the walks that got furthest, the furthest first."""

    arms: tuple[Arm, ...]
    candidates: tuple[Candidate, ...]
    stopped: tuple[Refusal, ...]


def is_sum(node: Node) -> bool:
    return node.op in SUM_OPS and node.problem is None


def is_root(graph: Graph, node: Node) -> bool:
    """A sum that is not itself an operand of a larger one."""
    return not (node.output.private and is_sum(graph.nodes[node.output.readers[0]]))


def title(graph: Graph, value: Value) -> str:
    """What a user finds in the file: the node that makes a value, or its own name where that node has none."""
    producer = graph.producer(value)
    return (producer.name if producer is not None else "") or value.name


def depths(graph: Graph) -> list[int]:
    """Of each node, the nodes on the longest path to it: the same however the file is ordered or named."""
    found: list[int] = []
    for node in graph.nodes:
        makers = [v.producer for v in (*node.data, *node.captures) if v.producer is not None]
        found.append(1 + max((found[i] for i in makers), default=0))
    return found


# --- flattening ------------------------------------------------------------------------------------------------------


def flatten(graph: Graph, root: Value) -> Flat:
    """The signed operands under `root`, through sums, constants and sign changes that only this sum reads."""
    operands: list[Operand] = []
    nodes: list[Node] = []
    stack = [(1, root)]
    while stack:
        outer, value = stack.pop()
        flips, chain, below = _inside(graph, value, value is root)
        sign = outer * flips
        nodes.extend(chain)
        if not chain or not is_sum(chain[-1]):
            operands.append(Operand(sign, below))
            continue
        total = chain[-1]
        seconds = -sign if total.op == "sub" else sign
        stack.extend((seconds if position else sign, v) for position, v in reversed(list(enumerate(total.data))))
    return Flat(root, tuple(operands), tuple(nodes))


def _inside(graph: Graph, value: Value, free: bool) -> tuple[int, list[Node], Value]:
    """The way from `value` down to a sum of the same tree: its sign, its nodes and the sum's value.

    Where no sum is below, `value` is an operand, or what is left of it without changes of sign.
    """
    sign, chain, operand = 1, list[Node](), (1, 0, value)
    bare = True  # only changes of sign so far
    while free or value.private:
        node = graph.producer(value)
        if node is None or node.problem is not None:
            break
        free = False
        if is_sum(node):
            return sign, [*chain, node], value
        flips = _sign_of(node)
        if flips is None:
            break
        sign *= flips
        chain.append(node)
        value = node.data[0]
        bare = bare and (node.op == "neg" or is_transparent(node))
        if bare and node.op == "neg":
            operand = sign, len(chain), value
    sign, length, value = operand
    return sign, chain[:length], value


def _sign_of(node: Node) -> int | None:
    """+1 or -1 where the node hands its input on up to sign and a constant, so that the sum goes on below it."""
    if len(node.data) != 1:
        return None
    if is_transparent(node):
        return 1
    if node.op == "neg":
        return -1
    if node.op == "shift":
        return int(node.attrs["sign"])
    if node.op == "scale" and node.consts["factor"].size == 1 and uniform(node.consts["factor"]) == -1:
        return -1
    return None


def behind_entry(graph: Graph, root: Value, entry: Value, rest: Rest) -> Value | None:
    """The sum under `root` that remains when every leftover that is the entry itself stays in front of it, if any does.

    An entry that broadcasts over the sum is no term of an affine map, so the region must not contain its addition.
    """
    stays = {value.name for _, value in rest}
    open_ = sum(value is entry for _, value in rest)
    value, node = root, graph.producer(root)
    while open_ and node is not None and node.op in ("add", "sub") and len(node.data) == 2:
        first, second = node.data
        if node.op == "add" and first.name in stays and second.name not in stays:
            first, second = second, first
        if second.name not in stays or not first.private:
            return None
        open_ -= second is entry
        value, node = first, graph.producer(first)
    return value if not open_ and value is not root and node is not None and is_sum(node) else None


# --- operands of one entry --------------------------------------------------------------------------------------------


def described(graph: Graph, flat: Flat, candidates: Sequence[Candidate]) -> str:
    """What the operands are, as far as they could be read: how many entries they have, and the first few of them."""
    longest: dict[int, Walk] = {}
    for c in sorted(candidates, key=lambda c: len(c.walk.nodes)):
        longest[c.index] = c.walk
    starts = [longest[i].entry if i in longest else o.value for i, o in enumerate(flat.operands)]
    words = [longest[i].words or "pass" if i in longest else "read as no branch" for i in range(len(starts))]
    shown = [f"{title(graph, start)} ({text})" for start, text in zip(starts[:SHOWN], words, strict=False)]
    if len(starts) > SHOWN:
        shown.append(f"{len(starts) - SHOWN} more")
    count = len({start.name for start in starts})
    entries = "1 entry" if count == 1 else f"{count} entries"
    return f"{len(starts)} operands from {entries}, {' and '.join((', '.join(shown[:-1]), shown[-1]))}"


def size(readings: Sequence[Candidate]) -> int:
    """How many operands a group can have: at most one of them is the bare entry."""
    others = {c.index for c in readings if c.walk.words}
    return len(others) + any(c.index not in others for c in readings)


def operand_order(flat: Flat, candidates: Sequence[Candidate]) -> list[int]:
    """Operand indices by sign, kind, larger kernel, structure: nothing that renaming or reordering could change."""
    structure: dict[int, tuple[int, int, str]] = {}
    for c in candidates:
        area = max((prod(n.consts["weight"].shape[2:]) for n in c.walk.nodes if n.op == "conv"), default=0)
        key = (-area, -len(c.walk.nodes), c.walk.words)
        structure[c.index] = min(structure.get(c.index, key), key)
    return sorted(structure, key=lambda i: (-flat.operands[i].sign, structure[i], i))


# --- widths ----------------------------------------------------------------------------------------------------------

NO_WIDTH = 0
"""Of a reading whose constants are provably not one number per channel."""


def of_one_width(readings: list[Candidate]) -> list[Candidate]:
    """The readings without those that provably have another number of channels than most: those broadcast, and stay."""
    own = next((w for c in readings if (w := _entry_width(c.walk)) is not None), None)
    widths = [_width(c.walk, own) for c in readings]
    operands: dict[int, set[int]] = defaultdict(set)
    for candidate, width in zip(readings, widths, strict=True):
        if width is not None and width != NO_WIDTH:
            operands[width].add(candidate.index)
    if len(operands) < 2 and NO_WIDTH not in widths:
        return readings
    usual = max(operands, key=lambda width: (len(operands[width]), width), default=None)
    return [c for c, width in zip(readings, widths, strict=True) if width is None or width == usual]


def _entry_width(walk: Walk) -> int | None:
    """The channels of the entry, where its shape or the first node that reads it says so."""
    shape = walk.entry.shape
    if shape is not None and len(shape) > 1 and isinstance(shape[1], int):
        return shape[1]
    for node in reversed(walk.nodes):
        if len(node.data) != 1 or node.data[0] is not walk.entry:
            continue
        if node.op == "conv":
            return node.consts["weight"].shape[1] * int(node.attrs["groups"])
        return node.consts["scale"].size if node.op == "bn" else None
    return None


def _width(walk: Walk, own: int | None) -> int | None:
    """The channels that an operand gives, from the exit backward: of its last conv or norm, else of the entry."""
    constants: list[int] = []
    found = own
    for node in walk.nodes:
        if node.op == "conv":
            found = node.consts["weight"].shape[0]
            break
        if node.op == "bn":
            found = node.consts["scale"].size
            break
        if node.op not in ("identity", "scale", "shift", *SUM_OPS) and not is_transparent(node):
            return None
        constants += (constant.size for constant in node.consts.values())
    odd = found is not None and any(size not in (1, found) for size in constants)
    return NO_WIDTH if odd else found


# --- assignment ------------------------------------------------------------------------------------------------------

Kind: TypeAlias = tuple[int, ...]
"""The arms that an operand fits, in declaration order; operands of a kind are exchanged freely."""


def assign(arms: Sequence[Arm], readings: Sequence[Candidate], order: Sequence[int]) -> list[Candidate] | str:
    """Operands to arms as a flow: every minimum first, then declaration order; at most one operand is the bare entry.

    Gives the chosen readings by operand, or in words what cannot be met.
    """
    options: dict[int, dict[int, Candidate]] = {}
    for c in readings:
        options.setdefault(c.index, {}).setdefault(c.arm, c)
    best: list[Candidate] | str = "no operand fits a branch"
    for operands in _with_one_bare(options, [i for i in order if i in options]):
        kinds = {i: tuple(sorted(options[i])) for i in operands}
        chosen = _Flow(arms, kinds).run()
        if isinstance(chosen, str):
            best = chosen if isinstance(best, str) else best
        elif isinstance(best, str) or len(chosen) > len(best):
            best = [options[i][arm] for i, arm in sorted(chosen.items())]
    if not isinstance(best, str) and len(best) < 2:
        return "only one of them fits a branch, and a sum folds from two on"
    return best


def _with_one_bare(options: Mapping[int, Mapping[int, Candidate]], order: Sequence[int]) -> Iterator[list[int]]:
    """The operands in order with at most one that is the entry itself: each kind of those gets its turn."""
    bare = [i for i in order if all(not c.walk.words for c in options[i].values())]
    if len(bare) < 2:
        yield list(order)
        return
    others = set(order).difference(bare)
    kinds: dict[Kind, int] = {}
    for index in bare:
        kinds.setdefault(tuple(sorted(options[index])), index)
    for kept in kinds.values():
        yield [i for i in order if i in others or i == kept]


class _Flow:
    """Operands on their way into arms. Steps depend on the numbers of arms and kinds, never on that of operands."""

    def __init__(self, arms: Sequence[Arm], kinds: Mapping[int, Kind]) -> None:
        self.arms = arms
        self.kinds = kinds
        self.rank = {index: rank for rank, index in enumerate(kinds)}
        self.free: dict[Kind, deque[int]] = defaultdict(deque)
        for index, kind in kinds.items():
            self.free[kind].append(index)
        self.held: list[dict[Kind, list[int]]] = [defaultdict(list) for _ in arms]
        self.count = [0] * len(arms)

    def run(self) -> dict[int, int] | str:
        """Arm by operand; or which minimum cannot be met. Branches of exactly one take their pick first."""
        for arm in sorted(range(len(self.arms)), key=lambda a: (self.arms[a].least, self.arms[a].most) != (1, 1)):
            needed = self.arms[arm].least
            while self.count[arm] < needed:
                if not self._meet(arm):
                    return f"branch '{self.arms[arm].name}' needs {needed} of them, {self.count[arm]} can be had"
        for index, kind in self.kinds.items():
            if self.free[kind] and self.free[kind][0] == index and not self._place(kind):
                self.free[kind].clear()  # room only shrinks: its like find no place either
        return {i: arm for arm, held in enumerate(self.held) for found in held.values() for i in found}

    def _meet(self, wanting: int) -> bool:
        """One more operand for an arm: a free one, else one that another arm holds and can replace."""
        came: dict[int, tuple[int, Kind]] = {}
        queue = [wanting]
        for arm in queue:
            heads = [found[0] for kind, found in self.free.items() if found and arm in kind]
            if heads:
                kind = self.kinds[min(heads, key=self.rank.__getitem__)]
                self._hold(arm, kind, self.free[kind].popleft())
                while arm != wanting:
                    receiver, kind = came[arm]
                    self._move(arm, receiver, kind)
                    arm = receiver
                return True
            for giver, held in enumerate(self.held):
                kind = next((kind for kind, found in held.items() if found and arm in kind), None)
                if kind is not None and giver != wanting and giver not in came:
                    came[giver] = arm, kind
                    queue.append(giver)
        return False

    def _place(self, kind: Kind) -> bool:
        """The next operand of a kind into the first arm with room, moving others along where that makes room."""
        came: dict[int, tuple[int, Kind]] = {}
        queue = list(kind)
        for arm in queue:
            most = self.arms[arm].most
            if most is None or self.count[arm] < most:
                while arm in came:
                    giver, moved = came[arm]
                    self._move(giver, arm, moved)
                    arm = giver
                self._hold(arm, kind, self.free[kind].popleft())
                return True
            for other, found in self.held[arm].items():
                for target in other if found else ():
                    if target not in queue:
                        came[target] = arm, other
                        queue.append(target)
        return False

    def _hold(self, arm: int, kind: Kind, index: int) -> None:
        self.held[arm][kind].append(index)
        self.count[arm] += 1

    def _move(self, giver: int, receiver: int, kind: Kind) -> None:
        """The smallest operand of a kind goes to another arm."""
        self.held[receiver][kind].append(self.held[giver][kind].pop())
        self.count[receiver] += 1
        self.count[giver] -= 1
