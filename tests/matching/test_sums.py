"""Sums: flattening, signs, groups over one entry, assignment to branches, what stays."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewriter.errors import Reason
from rewriter.graph.view import Value
from rewriter.matching.program import Arm
from rewriter.matching.sums import Candidate, Walk, assign, flatten
from tests.matching.sketches import REPCONV, Sketch, matches, names, only, query, refused, rest

DIFFERENCE = "match y = x -> sum { plus{1..}: cbn - minus{0..}: cbn } do fold to conv"
EITHER = "match y = x -> sum { a{2..}: cbn ± b{0..}: norm* } do fold to conv"


def signed(sketch: Sketch, root: str, *others: str) -> list[tuple[int, str]]:
    graph = sketch.graph(root, *others)
    return [(o.sign, o.value.name) for o in flatten(graph, graph.values[root]).operands]


def test_signs_through_nested_differences() -> None:
    s = Sketch(inputs=("a", "b", "c", "d"))
    y = s.sub("a", s.sub("b", s.sub("c", s.op("Neg", "d"))))
    assert signed(s, y) == [(1, "a"), (-1, "b"), (1, "c"), (1, "d")]


def test_signs_through_constants_and_factors() -> None:
    s = Sketch(inputs=("a", "b", "c"))
    inner = s.op("Sub", s.const(value=2.0), s.add("a", "b"))  # 2 - (a + b)
    outer = s.add(s.scale(s.op("Identity", inner), -1.0), s.op("Neg", s.sub("c", s.shift("a"))))
    assert signed(s, outer) == [(1, "a"), (1, "b"), (-1, "c"), (1, s.nodes[-4].output[0])]


def test_factors_other_than_minus_one_end_the_sum() -> None:
    s = Sketch(inputs=("a", "b", "c"))
    half = s.scale(s.add("a", "b"), -0.5)
    many = s.scale(s.add("a", "b"), -1.0, 1, 4, 1, 1)
    assert signed(s, s.total(half, many, "c")) == [(1, half), (1, many), (1, "c")]


def test_a_sum_read_twice_is_an_operand() -> None:
    s = Sketch(inputs=("a", "b"))
    inner = s.add("a", "b")
    assert signed(s, s.add(inner, inner)) == [(1, inner), (1, inner)]
    s = Sketch(inputs=("a", "b"))
    inner = s.add("a", "b")
    assert signed(s, s.add(inner, "a"), inner) == [(1, inner), (1, "a")]


def test_sum_of_many_and_of_one() -> None:
    s = Sketch(inputs=("a", "b", "c"))
    one = s.op("Sum", s.op("Sum", "a"))
    assert signed(s, s.op("Sum", one, "b", s.sub("a", "c"))) == [(1, one), (1, "b"), (1, "a"), (-1, "c")]


def test_deep_nesting_does_not_recurse() -> None:
    s = Sketch(inputs=("a", "b"))
    y = "a"
    for _ in range(5000):
        y = s.sub("b", y)
    operands = signed(s, y)
    assert len(operands) == 5001
    assert sum(sign for sign, name in operands if name == "b") == 0
    assert operands[-1] == (1, "a")


# --- one entry -------------------------------------------------------------------------------------------------------


def test_two_groups_the_larger_first() -> None:
    s = Sketch(inputs=("x", "z"))
    small = [s.cbn("z"), s.cbn("z", 1)]
    large = [s.cbn("x"), s.cbn("x", 1), s.cbn("x", 5)]
    y = s.total(small[0], large[0], small[1], large[1], large[2])
    match = only(s.graph(y), query(REPCONV))
    assert match.region.entry.name == "x"
    assert rest(match) == [(1, small[0]), (1, small[1])]
    assert match.words == "sum of 3 dense (conv->bn)"


@pytest.mark.parametrize("late_first", [True, False])
def test_equal_groups_the_nearer_entry_first(late_first: bool) -> None:
    s = Sketch()
    late = s.relu(s.relu("x"))
    operands = [s.cbn("x"), s.cbn("x", 1), s.cbn(late), s.cbn(late, 1)]
    y = s.total(*(reversed(operands) if late_first else operands))
    assert only(s.graph(y), query(REPCONV)).region.entry.name == late


def test_the_entry_twice_is_one_skip_and_a_leftover() -> None:
    s = Sketch()
    y = s.add(s.add("x", "x"), s.conv("x"))
    match = only(s.graph(y), query(REPCONV))
    assert match.words == "sum of dense (conv), skip (bare)"
    assert rest(match) == [(1, "x")]


def test_the_entry_minus_itself() -> None:
    s = Sketch()
    y = s.add(s.sub("x", "x"), s.conv("x"))
    match = only(s.graph(y), query(REPCONV))
    assert rest(match) == [(-1, "x")]


def test_a_value_plus_itself_is_no_group() -> None:
    s = Sketch()
    c = s.conv("x")
    refusal = refused(s.graph(s.add(c, c)), query(REPCONV))
    assert refusal.code is Reason.ESCAPE  # the conv is read twice, so it is no branch
    s = Sketch()
    assert refused(s.graph(s.add("x", "x")), query(REPCONV)).code is Reason.OP


def test_leftovers_keep_their_sign() -> None:
    s = Sketch(inputs=("x", "r", "q"))
    y = s.sub(s.sub("r", s.sub("q", s.cbn("x"))), s.op("Neg", s.cbn("x", 1)))
    match = only(s.graph(y), query(REPCONV))
    assert rest(match) == [(1, "r"), (-1, "q")]
    assert match.words == "sum of 2 dense (conv->bn)"


def test_branches_with_a_minus() -> None:
    s = Sketch()
    y = s.sub(s.cbn("x"), s.cbn("x", 1))
    assert refused(s.graph(y), query(REPCONV)).code is Reason.ENTRY
    match = only(s.graph(y), query(DIFFERENCE))
    assert match.words == "sum of plus (conv->bn), -minus (conv->bn)"
    assert dict(match.counts)["minus"] == 1


def test_either_sign() -> None:
    s = Sketch()
    y = s.sub(s.add(s.cbn("x"), s.cbn("x", 1)), s.bn("x"))
    assert only(s.graph(y), query(EITHER)).words == "sum of 2 a (conv->bn), -b (bn)"
    s = Sketch()
    y = s.add(s.add(s.cbn("x"), s.cbn("x", 1)), s.bn("x"))
    assert only(s.graph(y), query(EITHER)).words == "sum of 2 a (conv->bn), b (bn)"


def test_neg_before_an_operand_is_its_sign() -> None:
    s = Sketch()
    y = s.add(s.cbn("x"), s.op("Neg", s.cbn("x", 1)))
    assert only(s.graph(y), query(DIFFERENCE)).words == "sum of plus (conv->bn), -minus (conv->bn)"


def test_a_constant_operand_of_a_sum_of_many_stays() -> None:
    s = Sketch()
    constant = s.const(1, CH, 1, 1)
    y = s.op("Sum", s.cbn("x"), constant, s.cbn("x", 1))
    assert rest(only(s.graph(y), query(REPCONV))) == [(1, constant)]
    s = Sketch()
    y = s.bn(s.op("Sum", s.cbn("x"), s.const(1, CH, 1, 1), s.cbn("x", 1)))
    (match,) = matches(s.graph(y), query(REPCONV))
    assert match.region.exit.name != y  # leftovers end the match at the sum


CH = 4


def test_norms_straight_from_the_entry() -> None:
    """Of a bare and a normed identity the longer is the skip; the other stays."""
    s = Sketch()
    y = s.total(s.cbn("x"), "x", s.bn("x"))
    match = only(s.graph(y), query(REPCONV))
    assert match.words == "sum of dense (conv->bn), skip (bn)"
    assert rest(match) == [(1, "x")]


def test_a_constant_entry_is_an_entry() -> None:
    s = Sketch()
    c = s.const(1, CH, 8, 8)
    inner = s.add(s.cbn(c), s.cbn(c, 1))
    match = only(s.graph(s.add(inner, "x")), query(REPCONV))
    assert (match.region.entry.name, match.region.exit.name) == (c, inner)
    assert rest(match) == []  # what is computed from constants is one, so the sum with x is a shift


# --- what broadcasts -------------------------------------------------------------------------------------------------


def test_an_identity_of_one_channel_stays_outside() -> None:
    s = Sketch()
    s.inputs["x"] = 1
    wide, point = s.cbn("x", wide=1), s.cbn("x", 1, wide=1)
    inner = s.add(wide, point)
    match = only(s.graph(s.add(inner, "x")), query(REPCONV))
    assert match.region.exit.name == inner  # no region holds the sum with a broadcast entry
    assert rest(match) == []


def test_a_normed_identity_of_one_channel_is_a_leftover() -> None:
    s = Sketch()
    s.inputs["x"] = 1
    normed = s.bn("x", 1)
    y = s.total(s.cbn("x", wide=1), normed, s.cbn("x", 1, wide=1))
    match = only(s.graph(y), query(REPCONV))
    assert rest(match) == [(1, normed)]


def test_a_branch_of_one_channel_is_a_leftover() -> None:
    s = Sketch()
    gate = s.cbn("x", 1, out=1)
    y = s.total(gate, s.cbn("x"), s.cbn("x", 1))
    assert rest(only(s.graph(y), query(REPCONV))) == [(1, gate)]


def test_a_constant_map_is_no_norm_of_a_branch() -> None:
    s = Sketch()
    mapped = s.scale(s.conv("x"), 0.5, 1, CH, 8, 8)
    y = s.total(mapped, s.cbn("x"), s.cbn("x", 1))
    assert rest(only(s.graph(y), query(REPCONV))) == [(1, mapped)]


def test_width_is_not_guessed() -> None:
    """The relu hides the channels of the entry; nothing is known against the identity."""
    s = Sketch()
    r = s.relu("x")
    match = only(s.graph(s.add(s.scale(r), s.conv(r))), query(REPCONV))
    assert match.words == "sum of dense (conv), skip (scale)"


# --- what the refusals say -------------------------------------------------------------------------------------------


def test_refusal_of_two_entries() -> None:
    s = Sketch()
    r = s.relu("x")
    y = s.add(s.cbn(r), "x")
    refusal = refused(s.graph(y), query(REPCONV, "repconv"))
    expected = "2 operands from 2 entries, relu_0 (conv->bn) and x (pass); repconv needs 2 operands from one entry"
    assert str(refusal) == f"add_3: {expected} [entry]"


def test_refusal_names_a_value_where_a_node_has_no_name() -> None:
    s = Sketch()
    y = s.op("Add", s.cbn(s.op("Relu", "x", label="")), "x", label="")
    refusal = refused(s.graph(y), query(REPCONV, "repconv"))
    assert refusal.node == y
    assert "0:0 (conv->bn) and x (pass)" in refusal.detail


def test_refusal_of_many() -> None:
    s = Sketch(inputs=tuple("abcdef"))
    refusal = refused(s.graph(s.total(*(s.conv(name) for name in "abcdef"))), query(REPCONV, "repconv"))
    assert "6 operands from 6 entries, a (conv), b (conv), c (conv), d (conv) and 2 more" in refusal.detail


def test_refusal_of_a_branch_read_elsewhere_names_the_node() -> None:
    s = Sketch()
    c = s.conv("x")
    y = s.add(s.bn(c), s.cbn("x", 1))
    refusal = refused(s.graph(y, s.relu(c)), query(REPCONV))
    assert (refusal.code, refusal.node) == (Reason.ESCAPE, "conv_0")
    assert "2 readers (batchnormalization_1, relu_5)" in refusal.detail


def test_refusal_of_a_minimum() -> None:
    s = Sketch()
    refusal = refused(s.graph(s.add(s.bn("x"), "x")), query(REPCONV, "repconv"))
    assert refusal.code is Reason.COUNT
    assert "branch 'dense' needs 1 of them, 0 can be had" in refusal.detail


def test_refusal_behind_the_sum() -> None:
    """Nothing may be left over where a norm follows; the sum itself then matches and the refusal is none."""
    s = Sketch(inputs=("x", "r"))
    inner = s.total(s.cbn("x"), "r", s.cbn("x", 1))
    match = only(s.graph(s.bn(inner)), query(REPCONV))
    assert match.region.exit.name == inner
    behind = query("match y = x -> sum { a{1..}: cbn } -> bn do fold to conv", "behind")
    refusal = refused(s.graph(s.nodes[-1].output[0]), behind)
    assert refusal.code is Reason.ENTRY
    assert "behind needs all 3 operands from one entry" in refusal.detail


# --- assignment ------------------------------------------------------------------------------------------------------

ENTRY = Value("e", None, ())


def arm(least: int, most: int | None) -> Arm:
    return Arm(f"arm{least}", 1, least, most, PROGRAM)


PROGRAM = query("match y = x -> relu do bypass").program


def candidates(options: list[tuple[int, ...]]) -> list[Candidate]:
    return [Candidate(i, a, Walk(ENTRY, words="w")) for i, arms in enumerate(options) for a in arms]


def most_taken(arms: list[Arm], options: list[tuple[int, ...]]) -> int | None:
    """Brute force: the most operands that fit at once with every minimum met; None where no way meets them."""
    best: int | None = None

    def place(i: int, counts: list[int]) -> None:
        nonlocal best
        if i == len(options):
            if all(a.least <= n for a, n in zip(arms, counts, strict=True)):
                best = max(best or 0, sum(counts))
            return
        place(i + 1, counts)
        for a in options[i]:
            if arms[a].most is None or counts[a] < (arms[a].most or 0):
                place(i + 1, [n + (j == a) for j, n in enumerate(counts)])

    place(0, [0] * len(arms))
    return best


bounds = st.tuples(st.integers(0, 2), st.one_of(st.none(), st.integers(0, 2))).map(
    lambda b: (b[0], None if b[1] is None else max(1, b[0] + b[1]))
)


@given(st.data())
def test_assignment_takes_as_many_as_fit(data: st.DataObject) -> None:
    arms = [arm(*b) for b in data.draw(st.lists(bounds, min_size=1, max_size=3))]
    subsets = st.sets(st.integers(0, len(arms) - 1)).map(lambda found: tuple(sorted(found)))
    options = data.draw(st.lists(subsets, min_size=0, max_size=6))
    order = data.draw(st.permutations(range(len(options))))
    found = assign(arms, candidates(options), order)
    best = most_taken(arms, options)
    if isinstance(found, str):
        assert best is None or best < 2
        return
    assert len(found) == best
    assert len({c.index for c in found}) == len(found)
    for position, a in enumerate(arms):
        count = sum(1 for c in found if c.arm == position)
        assert a.least <= count
        assert a.most is None or count <= a.most


def test_branches_of_one_take_the_first_and_others_follow_declaration() -> None:
    arms = [arm(1, None), arm(1, 1)]
    found = assign(arms, candidates([(0, 1)] * 4), [2, 0, 3, 1])
    assert not isinstance(found, str)
    assert [(c.index, c.arm) for c in found] == [(0, 0), (1, 0), (2, 1), (3, 0)]


def test_at_most_one_operand_is_bare() -> None:
    arms = [arm(0, None), arm(1, None)]
    bare = [Candidate(i, 0, Walk(ENTRY)) for i in range(3)]
    found = assign(arms, [*bare, Candidate(3, 1, Walk(ENTRY, words="conv"))], range(4))
    assert not isinstance(found, str)
    assert [(c.index, c.arm) for c in found] == [(0, 0), (3, 1)]


def test_the_bare_operand_that_a_minimum_needs() -> None:
    """Two identities of which only the second fits the branch that must be there."""
    arms = [arm(0, None), arm(1, 1), arm(1, 1)]
    bare = [Candidate(0, 0, Walk(ENTRY)), Candidate(1, 1, Walk(ENTRY))]
    found = assign(arms, [*bare, Candidate(2, 2, Walk(ENTRY, words="conv"))], range(3))
    assert not isinstance(found, str)
    assert [(c.index, c.arm) for c in found] == [(1, 1), (2, 2)]


@given(st.integers(0, 10**6))
def test_groups_do_not_depend_on_order_and_nesting(seed: int) -> None:
    """Eight branches over two entries, summed in any order and any tree, are grouped alike."""
    chance = random.Random(seed)
    s = Sketch(inputs=("x", "z"))
    operands = [s.cbn("x"), s.cbn("x", 1), s.bn("x"), "x", s.cbn("z"), s.cbn("z", 1), s.relu("x"), s.conv("x", 5)]
    chance.shuffle(operands)
    while len(operands) > 1:
        i = chance.randrange(len(operands) - 1)
        operands[i : i + 2] = [s.add(operands[i], operands[i + 1])]
    match = only(s.graph(operands[0]), query(REPCONV))
    assert match.words == "sum of dense (conv), 2 dense (conv->bn), skip (bn)"
    consumed = {name for name in names(match) if not name.startswith("add")}
    assert consumed == {
        "conv_0",
        "batchnormalization_1",
        "conv_2",
        "batchnormalization_3",
        "batchnormalization_4",
        "conv_10",
    }
    assert {name for _, name in rest(match)} <= {"batchnormalization_6:0", "batchnormalization_8:0", "relu_9:0", "x"}
