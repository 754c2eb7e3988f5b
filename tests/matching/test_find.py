"""Matches and refusals of whole patterns: the worked ones, disguises, an independent oracle, and who wins."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import ModelProto

from fixtures.blocks import BLOCKS
from fixtures.disguise import disguised
from rewriter.errors import Reason, Refusal
from rewriter.graph.onnx import view
from rewriter.language.parser import parse, prelude
from rewriter.language.syntax import BodyMatch
from rewriter.matching.find import Match, Query, find, query_of, select
from tests.matching.sketches import CONV_BN, REPCONV, Sketch, matches, names, only, query, refusals, refused, rest

WORKED = Path(__file__).parent.parent / "language" / "worked.fxp"
REPLK = """match y = x -> sum {
    large:      conv[k>=7, depthwise] as big  -> norm*
    small{1..}: conv[depthwise]       as part -> norm* } -> norm*
    where part.reach <= big.k do fold to conv"""
LAYER_SCALE = """match y = x -> sum {
    skip:  pass
    mixed: sum { mixer{1..}: cbn ; same{0..}: norm* ; - minus: norm* } -> scale? } do fold to conv"""
IMPLICIT = """match y = x -> shift? -> conv[k=1] as c -> scale?
    where c.pad = 0 and count(shift) + count(scale) >= 1 do fold to conv"""
DBB = """match y = x -> sum {
    pool{0..}:  cbn? -> avg_pool -> norm*
    seq{0..}:   cbn -> cbn
    dense{0..}: cbn } -> norm*
    where count(pool) + count(seq) >= 1 do fold to conv"""

# --- worked patterns -------------------------------------------------------------------------------------------------


def worked(name: str) -> Query:
    file = parse(WORKED.read_text(encoding="utf-8"), "worked.fxp")
    (pattern,) = [p for p in file.patterns if p.name == name]
    assert isinstance(pattern.match, BodyMatch)
    return query_of(pattern, {**prelude(), **{c.name: c for c in file.chains}}, {}, cost_gate=True)


@pytest.mark.parametrize(("name", "text"), [("repconv", REPCONV), ("conv-bn", CONV_BN), ("layer-scale", LAYER_SCALE)])
def test_patterns_here_are_those_of_the_language(name: str, text: str) -> None:
    assert worked(name).program == query(text).program


def test_replk() -> None:
    s = Sketch()
    branches = [s.bn(s.conv("x", k, groups=4)) for k in (3, 7, 5)]
    y = s.total(*branches)
    match = only(s.graph(y), query(REPLK))
    assert [node.name for node in match.labels["big"]] == ["conv_2"]
    assert [node.name for node in match.labels["part"]] == ["conv_0", "conv_4"]
    assert match.words == "sum of large (conv->bn), 2 small (conv->bn)"


def test_replk_where_is_of_all_parts_and_all_axes() -> None:
    s = Sketch()
    y = s.add(s.conv("x", 7, groups=4), s.conv("x", 5, groups=4, dilations=[1, 2]))  # reaches 5 by 9
    refusal = refused(s.graph(y), query(REPLK))
    assert refusal.code is Reason.WHERE
    assert refusal.detail == "sum of large (conv), small (conv): part.reach <= big.k is false"
    s = Sketch()
    y = s.total(*(s.conv("x", k, groups=4) for k in (7, 5)), s.conv("x", 3, groups=2))
    assert rest(only(s.graph(y), query(REPLK))) == [(1, "conv_2:0")]  # not depthwise: it stays


def test_the_largest_kernel_is_the_large_one_wherever_it_stands() -> None:
    for kernels in itertools.permutations((7, 9, 11)):
        s = Sketch()
        y = s.total(*(s.conv("x", k, groups=4) for k in kernels))
        match = only(s.graph(y), query(REPLK))
        (big,) = match.labels["big"]
        assert big.name == f"conv_{kernels.index(11)}"


def layer_scale(scaled: bool) -> tuple[Sketch, str]:
    s = Sketch()
    mixed = s.sub(s.add(s.cbn("x"), s.cbn("x", 1)), s.bn("x"))
    return s, s.add("x", s.scale(mixed, 0.5, 1, 4, 1, 1) if scaled else mixed)


def test_layer_scale_in_both_readings() -> None:
    s, y = layer_scale(scaled=True)
    match = only(s.graph(y), query(LAYER_SCALE))
    inner = "sum of 2 mixer (conv->bn), -minus (bn)"
    assert match.words == f"sum of skip (bare), mixed ({inner}->scale)"
    s, y = layer_scale(scaled=False)
    match = only(s.graph(y), query(LAYER_SCALE))
    assert match.words == "sum of skip (bare), 2 mixer (conv->bn), -minus (bn)"
    assert match.counts["mixed"] == 1 and match.counts["mixer"] == 2
    assert len(match.labels["mixed"]) == 5


def test_implicit() -> None:
    s = Sketch()
    y = s.scale(s.conv(s.shift("x", 0.5, 1, 4, 1, 1), 1), 0.5, 1, 4, 1, 1)
    assert only(s.graph(y), query(IMPLICIT)).words == "shift->conv->scale"
    s = Sketch()
    assert only(s.graph(s.scale(s.conv("x", 1))), query(IMPLICIT)).words == "conv->scale"
    s = Sketch()
    assert refused(s.graph(s.conv("x", 1)), query(IMPLICIT)).code is Reason.WHERE
    s = Sketch()
    refusal = refused(s.graph(s.conv(s.shift("x"), 1, pads=[0, 0, 1, 0])), query(IMPLICIT))
    assert "c.pad = 0" in refusal.detail
    s = Sketch()
    assert {r.code for r in refusals(s.graph(s.scale(s.conv("x", 3))), query(IMPLICIT))} == {Reason.WHERE}


def test_dbb_without_borders() -> None:
    s = Sketch()
    pool = s.bn(s.op("AveragePool", s.cbn("x", 1), kernel_shape=[3, 3], pads=[1] * 4))
    y = s.total(s.cbn("x"), s.cbn(s.cbn("x", 1)), pool, s.cbn("x", 1))
    match = only(s.graph(y), query(DBB))
    assert match.words == ("sum of pool (conv->bn->avg_pool->bn), seq (conv->bn->conv->bn), 2 dense (conv->bn)")
    assert {name: match.counts[name] for name in ("pool", "seq", "dense")} == {"pool": 1, "seq": 1, "dense": 2}
    s = Sketch()
    assert refused(s.graph(s.add(s.cbn("x"), s.cbn("x", 1))), query(DBB)).code is Reason.WHERE


def test_branches_and_chains_answer_for_their_nodes() -> None:
    """Of `dense`, asked for k, the norms are passed over; a chain counts once and stands for all of it."""
    wide = REPCONV.replace("do fold", "where dense.k >= 3 do fold")
    s = Sketch()
    assert only(s.graph(s.add(s.cbn("x"), s.cbn("x", 5))), query(wide)).words == "sum of 2 dense (conv->bn)"
    s = Sketch()
    assert refused(s.graph(s.add(s.cbn("x"), s.cbn("x", 1))), query(wide)).code is Reason.WHERE
    s = Sketch()
    y = s.relu(s.cbn(s.relu(s.cbn("x"))))
    chain = (
        "match y = x -> cbn as body -> relu where count(body) = 1 and count(conv) = 1 and body.k = 3 do fold to conv"
    )
    assert [m.counts["body"] for m in matches(s.graph(y), query(chain))] == [1, 1]
    assert {node.op for node in matches(s.graph(y), query(chain))[0].labels["body"]} == {"conv", "bn"}


def test_where_falls_back_to_a_shorter_reading() -> None:
    short = "match y = x -> conv -> norm+ where count(bn) = 1 do fold to conv"
    s = Sketch()
    y = s.bn(s.bn(s.conv("x")))
    (match,) = matches(s.graph(y), query(short))
    assert match.region.exit.name == "batchnormalization_1:0"


# --- several matches -------------------------------------------------------------------------------------------------


def test_back_to_back() -> None:
    s = Sketch()
    first = s.add(s.cbn("x"), s.cbn("x", 1))
    second = s.add(s.add(s.cbn(first), s.bn(first)), s.cbn(first, 1))
    found = matches(s.graph(second), query(REPCONV))
    assert [(m.region.entry.name, m.region.exit.name) for m in found] == [(first, second), ("x", first)]


def test_an_operand_that_is_the_exit_of_another_match() -> None:
    s = Sketch()
    inner = s.bn(s.add(s.cbn("x"), s.cbn("x", 1)))
    outer = s.add(inner, "x")
    graph = s.graph(outer)
    (match,) = matches(graph, query(REPCONV))
    assert match.region.exit.name == inner
    (refusal,) = refusals(graph, query(REPCONV))
    assert (refusal.code, refusal.node) == (Reason.ENTRY, s.nodes[-1].name)


def test_a_nested_sum_of_the_operator_sum_is_no_anchor() -> None:
    s = Sketch(inputs=("x", "r", "q"))
    y = s.add(s.op("Sum", s.cbn("x"), s.cbn("r")), "q")
    assert refused(s.graph(y), query(REPCONV)).node == s.nodes[-1].name


def test_anchors_restrict_the_search() -> None:
    s = Sketch()
    y = s.bn(s.bn(s.conv("x")))
    graph = s.graph(y)
    (match,) = [m for m in find(graph, query(CONV_BN), [0, 1]) if isinstance(m, Match)]
    assert match.region.exit.name == "batchnormalization_1:0"
    assert find(graph, query(CONV_BN), []) == []


def found(graph_of: Sketch, y: str, *queries: Query) -> list[Match]:
    graph = graph_of.graph(y)
    return [m for wanted in queries for m in matches(graph, wanted)]


def overlapping() -> tuple[Sketch, str]:
    s = Sketch()
    return s, s.scale(s.bn(s.conv("x")))


def test_the_larger_match_wins_whatever_the_order() -> None:
    s, y = overlapping()
    small = query("match y = x -> conv -> bn do fold to conv", "small")
    large = query(CONV_BN, "large")
    for queries in ((small, large), (large, small)):
        candidates = found(s, y, *queries)
        winners, losers = select(s.graph(y), candidates, {})
        assert [m.query.name for m in winners] == ["large"]
        assert [(a.query.name, b.query.name) for a, b in losers] == [("small", "large")]


def test_priority_goes_before_size() -> None:
    s, y = overlapping()
    urgent = query("priority 5 match y = x -> conv -> bn do fold to conv", "urgent")
    candidates = found(s, y, query(CONV_BN, "large"), urgent)
    winners, _ = select(s.graph(y), candidates, {})
    assert [m.query.name for m in winners] == ["urgent"]


def test_depth_decides_between_equals_and_owners_stay() -> None:
    s = Sketch()
    y = s.scale(s.bn(s.conv("x")))
    first, last = (
        query("match y = x -> conv -> bn do fold to conv"),
        query("match y = x -> bn -> scale do fold to conv"),
    )
    graph = s.graph(y)
    upper, lower = (matches(graph, q)[0] for q in (first, last))
    assert select(graph, [upper, lower], {}) == ([lower], [(upper, lower)])
    assert select(graph, [upper], {1: lower}) == ([], [(upper, lower)])


def test_depths_are_counted_only_where_matches_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(graph: object) -> list[int]:
        raise AssertionError("not needed")

    s = Sketch()
    y = s.bn(s.conv(s.bn(s.conv("x"))))
    graph = s.graph(y)
    candidates = matches(graph, query(CONV_BN))
    monkeypatch.setattr("rewriter.matching.find.depths", never)
    winners, losers = select(graph, candidates, {})
    assert len(winners) == 2 and losers == []
    with pytest.raises(AssertionError):
        select(graph, [*candidates, *candidates], {})


# --- disguises -------------------------------------------------------------------------------------------------------


def signature(model: ModelProto, wanted: Query, names: dict[str, str] | None = None) -> Counter[object]:
    """Everything about matches and refusals that a disguise leaves, by values of the undisguised model."""
    back = {new: old for old, new in (names or {}).items()}

    def original(name: str) -> str:
        return back.get(name, name)

    listed: list[object] = []
    for one in find(view(model), wanted):
        if isinstance(one, Refusal):
            listed.append(one.code)
            continue
        region = one.region
        covered = frozenset(original(node.output.name) for node in region.nodes)
        left = tuple((sign, original(value.name)) for sign, value in region.rest)
        listed.append((original(region.entry.name), original(region.exit.name), covered, left, one.words))
    return Counter(listed)


def random_sum(seed: int) -> ModelProto:
    chance = random.Random(seed)
    s = Sketch()
    values = ["x", s.relu("x")]
    for _ in range(chance.randint(1, 3)):
        operands = [_branch(s, chance, chance.choice(values)) for _ in range(chance.randint(2, 6))]
        while len(operands) > 1:
            i = chance.randrange(len(operands) - 1)
            join = s.op("Sum", *operands[i : i + 3]) if chance.random() < 0.2 else None
            if join is not None:
                operands[i : i + 3] = [join]
            else:
                operands[i : i + 2] = [(s.sub if chance.random() < 0.3 else s.add)(operands[i], operands[i + 1])]
        total = operands[0]
        values.append(chance.choice([total, s.bn(total), s.relu(total)]))
    return s.model(*dict.fromkeys(values[-2:]))


def _branch(s: Sketch, chance: random.Random, x: str) -> str:
    kind = chance.choice(["conv", "conv", "bare", "norm", "neg", "relu"])
    if kind == "conv":
        x = s.conv(x, chance.choice([1, 3]))
    elif kind in ("neg", "relu"):
        x = s.op("Neg", x) if kind == "neg" else s.relu(x)
    for _ in range(chance.randint(kind == "norm", 2) if kind != "bare" else 0):
        x = chance.choice([s.bn, s.scale, s.shift])(x)
    return x


SIGNED = "match y = x -> sum { a{0..}: cbn ± b{0..}: norm* ; - c{0..}: cbn } -> norm* do fold to conv"


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(0, 100), st.sampled_from([REPCONV, CONV_BN, SIGNED, LAYER_SCALE]))
@example(141, 1, CONV_BN)  # two norms of one value: each is refused, whichever is asked first
def test_disguises_change_nothing(seed: int, disguise: int, text: str) -> None:
    model = random_sum(seed)
    other = disguised(model, disguise)
    assert signature(model, query(text)) == signature(other.model, query(text), other.names)


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_disguised_blocks_match_alike(name: str) -> None:
    model = BLOCKS[name].build(0, 4)
    for seed in range(3):
        other = disguised(model, seed)
        for text in (REPCONV, CONV_BN):
            assert signature(model, query(text)) == signature(other.model, query(text), other.names)


# --- an independent oracle -------------------------------------------------------------------------------------------


class Tiny:
    """A graph of at most seven nodes, as plain tuples: node i gives value i + 1, and value 0 is the input."""

    def __init__(self, nodes: list[tuple[str, tuple[int, ...]]], outputs: set[int]) -> None:
        self.nodes = nodes
        self.outputs = outputs | {i + 1 for i in range(len(nodes)) if not any(i + 1 in reads for _, reads in nodes)}

    def sketch(self) -> tuple[Sketch, list[str]]:
        s = Sketch()
        values = ["x"]
        for op, reads in self.nodes:
            given = [values[r] for r in reads]
            made = {"conv": s.conv, "bn": s.bn, "relu": s.relu}.get(op)
            values.append(s.add(*given) if made is None else made(*given))
        return s, values

    def slots(self, value: int) -> list[int]:
        return [i for i, (_, reads) in enumerate(self.nodes) for r in reads if r == value]

    def regions(self) -> list[tuple[frozenset[int], int]]:
        """Every set of nodes with one exit whose other values are read once, inside, and are no outputs."""
        found: list[tuple[frozenset[int], int]] = []
        for size in range(2, len(self.nodes) + 1):
            for chosen in itertools.combinations(range(len(self.nodes)), size):
                seen = [i for i in chosen if i + 1 in self.outputs or any(s not in chosen for s in self.slots(i + 1))]
                exits = [i for i in chosen if not any(s in chosen for s in self.slots(i + 1))]
                inner = [i for i in chosen if i not in exits]
                if len(exits) == 1 and not set(seen) & set(inner) and all(len(self.slots(i + 1)) == 1 for i in inner):
                    found.append((frozenset(chosen), exits[0]))
        return found

    def term(self, value: int, chosen: frozenset[int]) -> str:
        """The formula of a value over what is outside `chosen`."""
        if value == 0 or value - 1 not in chosen:
            return f"[{value}]"
        op, reads = self.nodes[value - 1]
        return f"{op}({','.join(self.term(r, chosen) for r in reads)})"

    def operands(self, value: int, chosen: frozenset[int]) -> list[int]:
        if value == 0 or value - 1 not in chosen or self.nodes[value - 1][0] != "add":
            return [value]
        return [v for r in self.nodes[value - 1][1] for v in self.operands(r, chosen)]

    def repconvs(self) -> list[tuple[frozenset[int], int, int, int]]:
        """Regions that are repconv blocks: nodes, the root of their sum, the entry and the operands taken."""
        found: list[tuple[frozenset[int], int, int, int]] = []
        for chosen, exit_ in self.regions():
            root, norms = exit_ + 1, 0
            while self.nodes[root - 1][0] == "bn" and self.nodes[root - 1][1][0] - 1 in chosen:
                root, norms = self.nodes[root - 1][1][0], norms + 1
            terms = [self.term(v, chosen) for v in self.operands(root, chosen)]
            for entry in range(len(self.nodes) + 1):
                dense = [t for t in terms if re.fullmatch(rf"(bn\()*conv\(\[{entry}\]\)+", t)]
                same = [t for t in terms if re.fullmatch(rf"(bn\()*\[{entry}\]\)*", t)]
                same.sort(key=lambda term: term.startswith("["))  # a normed one has to be the skip: it cannot stay
                skips = min(1, len(same))
                outside = [t for t in terms if re.fullmatch(r"\[\d+\]", t) and t not in dense]
                stay = len(terms) - len(dense) - skips
                if not dense or len(dense) + skips < 2 or (stay and norms):
                    continue
                spare = [t for t in outside if t != f"[{entry}]"] + same[1:] if skips else outside
                if stay == len(spare) and all(t.startswith("[") for t in spare):
                    found.append((chosen, root, entry, len(dense) + skips))
        return found


def tiny_graphs(max_nodes: int = 7) -> st.SearchStrategy[Tiny]:
    @st.composite
    def draw(pick: st.DrawFn) -> Tiny:
        nodes: list[tuple[str, tuple[int, ...]]] = []
        for i in range(pick(st.integers(2, max_nodes))):
            op = pick(st.sampled_from(["conv", "conv", "bn", "add", "add", "relu"]))
            near = st.integers(0, i) | st.integers(max(0, i - 2), i)
            nodes.append((op, tuple(pick(near) for _ in range(2 if op == "add" else 1))))
        return Tiny(nodes, pick(st.sets(st.integers(1, len(nodes)), max_size=1)))

    return draw()


BLOCK = Tiny([("conv", (0,)), ("conv", (0,)), ("add", (1, 2)), ("add", (3, 0)), ("bn", (4,))], set())
SURPLUS = Tiny([("conv", (0,)), ("add", (1, 0)), ("add", (2, 0))], set())
TWO_SKIPS = Tiny([("bn", (0,)), ("conv", (0,)), ("add", (0, 2)), ("add", (3, 1))], set())
ESCAPE = Tiny([("conv", (0,)), ("bn", (1,)), ("conv", (0,)), ("add", (2, 3)), ("relu", (1,))], set())


@settings(max_examples=400)
@given(tiny_graphs())
@example(BLOCK)
@example(SURPLUS)
@example(ESCAPE)
@example(TWO_SKIPS)
def test_repconv_against_all_regions(tiny: Tiny) -> None:
    """Exactly the sums that some region makes a block of match, each with the most operands and the largest region."""
    s, values = tiny.sketch()
    graph = s.graph(*(values[v] for v in sorted(tiny.outputs)))
    position = {node.name: i for i, node in enumerate(s.nodes)}
    blocks = tiny.repconvs()
    possible = {}
    for nodes, root, entry, taken in blocks:
        possible[nodes, entry] = root, taken
    covered: set[int] = set()
    for match in matches(graph, query(REPCONV)):
        nodes = frozenset(position[name] for name in names(match))
        entry = values.index(match.region.entry.name)
        assert (nodes, entry) in possible, (sorted(nodes), entry, tiny.nodes)
        root, taken = possible[nodes, entry]
        same_sum = [b for b in blocks if b[1] == root]
        assert taken == max(b[3] for b in same_sum)
        assert len(nodes) == max(len(b[0]) for b in same_sum if b[3] == taken and b[2] == entry)
        assert not nodes & covered
        covered |= nodes
    for nodes, root, _, _ in blocks:
        assert nodes & covered, (sorted(nodes), root, tiny.nodes)


@settings(max_examples=200)
@given(tiny_graphs())
def test_conv_bn_against_all_regions(tiny: Tiny) -> None:
    s, values = tiny.sketch()
    graph = s.graph(*(values[v] for v in sorted(tiny.outputs)))
    chains = [
        (nodes, exit_)
        for nodes, exit_ in tiny.regions()
        if re.fullmatch(r"(bn\()+conv\(\[\d+\]\)+", tiny.term(exit_ + 1, nodes))
    ]
    longest = {nodes for nodes, _ in chains if not any(nodes < other for other, _ in chains)}
    position = {node.name: i for i, node in enumerate(s.nodes)}
    assert {frozenset(position[n] for n in names(m)) for m in matches(graph, query(CONV_BN))} == longest
