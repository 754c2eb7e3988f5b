"""Walks: what may be consumed, chains, what is stepped over, sums inside chains, limits and steps."""

from __future__ import annotations

import pytest
from onnx import TensorProto, helper

from rewriter.errors import Reason
from rewriter.matching import walk
from rewriter.matching.walk import Search
from tests.matching.sketches import CONV_BN, REPCONV, Sketch, matches, names, only, query, refusals, refused, rest

# --- interior --------------------------------------------------------------------------------------------------------


def test_the_longest_chain() -> None:
    s = Sketch()
    y = s.scale(s.shift(s.bn(s.conv("x"))))
    match = only(s.graph(y), query(CONV_BN))
    assert match.words == "conv->bn->shift->scale"
    assert match.region.entry.name == "x" and match.region.exit.name == y
    assert [node.op for node in match.region.nodes] == ["conv", "bn", "shift", "scale"]


def test_the_exit_may_have_any_readers_and_be_an_output() -> None:
    s = Sketch()
    y = s.bn(s.conv("x"))
    assert only(s.graph(s.relu(y), s.add(y, y), y), query(CONV_BN)).region.exit.name == y


def test_a_chain_ends_at_a_value_read_twice() -> None:
    s = Sketch()
    middle = s.bn(s.conv("x"))
    graph = s.graph(s.bn(middle), s.relu(middle))
    (match,) = matches(graph, query(CONV_BN))
    assert match.region.exit.name == middle
    (refusal,) = refusals(graph, query(CONV_BN))
    assert (refusal.code, refusal.node) == (Reason.ESCAPE, "batchnormalization_1")


@pytest.mark.parametrize("reader", ["Shape", "Size", "Relu"])
def test_another_reader_is_an_escape(reader: str) -> None:
    s = Sketch()
    c = s.conv("x")
    refusal = refused(s.graph(s.bn(c), s.op(reader, c)), query(CONV_BN))
    assert (refusal.code, refusal.node) == (Reason.ESCAPE, "conv_0")
    assert f"batchnormalization_1, {reader.lower()}_2" in refusal.detail


def test_an_output_inside_is_an_escape() -> None:
    s = Sketch()
    c = s.conv("x")
    refusal = refused(s.graph(s.bn(c), c), query(CONV_BN))
    assert refusal.code is Reason.ESCAPE and "output of the model" in refusal.detail


def test_a_value_that_a_body_reads_is_an_escape() -> None:
    s = Sketch()
    c = s.conv("x")
    y = s.bn(c)
    inner = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    body = helper.make_graph([helper.make_node("Relu", [c], ["inner"])], "body", [], [inner])
    other = helper.make_graph([helper.make_node("Relu", ["x"], ["inner"])], "other", [], [inner])
    condition = s.op("Greater", s.op("ReduceMax", "x", keepdims=0), s.const(value=0.0))
    z = s.op("If", condition, then_branch=body, else_branch=other)
    refusal = refused(s.graph(y, z), query(CONV_BN))
    assert refusal.code is Reason.ESCAPE and "2 readers" not in refusal.detail
    assert "body of an If, Loop or Scan" in refusal.detail


def test_weights_may_be_shared() -> None:
    s = Sketch()
    first = s.conv("x")
    weight = s.nodes[-1].input[1]
    y = s.bn(first)
    z = s.op("Conv", s.relu(y), weight)
    assert names(only(s.graph(z), query(CONV_BN))) == {"conv_0", "batchnormalization_1"}


def test_a_node_that_is_not_its_clean_form_is_quoted() -> None:
    s = Sketch(inputs=("x", "w"))
    y = s.bn(s.op("Conv", "x", "w", kernel_shape=[3, 3]))
    refusal = refused(s.graph(y), query(CONV_BN))
    assert (refusal.code, refusal.node) == (Reason.VALUE, "conv_0")
    assert "weight is also an input" in refusal.detail


def test_a_node_with_two_results_is_not_stepped_over() -> None:
    s = Sketch()
    first = s.op("Split", s.conv("x"), outputs=2, axis=1, num_outputs=2)
    assert refused(s.graph(s.bn(first, 2)), query(CONV_BN)).code is Reason.OP


def test_a_refusal_says_what_stands_there_instead() -> None:
    s = Sketch()
    refusal = refused(s.graph(s.bn(s.relu("x"))), query(CONV_BN))
    assert str(refusal) == "relu_0: made by relu, the pattern wants bn or scale or shift or conv here [op]"
    s = Sketch()
    refusal = refused(s.graph(s.bn("x")), query(CONV_BN))
    assert refusal.node == "x" and "it is an input" in refusal.detail


def test_what_stops_a_sum_within_is_said_in_its_own_words() -> None:
    s = Sketch()
    graph = s.graph(s.conv(s.add(s.relu("x"), s.relu("x"))))
    within = query("match y = x -> sum { a: conv  b: conv } -> conv do fold to conv")
    assert "made by relu, the pattern wants conv here" in refused(graph, within).detail


# --- what is stepped over --------------------------------------------------------------------------------------------


def test_what_does_nothing_goes_with_the_match() -> None:
    s = Sketch()
    y = s.bn(s.op("Dropout", s.op("Identity", s.conv(s.op("Identity", "x")))))
    match = only(s.graph(y), query(CONV_BN))
    assert match.words == "conv->bn"
    assert {node.op for node in match.region.nodes} == {"conv", "identity", "dropout", "bn"}
    assert match.region.entry.name == "x"


def test_what_does_nothing_behind_the_exit_stays() -> None:
    s = Sketch()
    y = s.bn(s.conv("x"))
    assert only(s.graph(s.op("Identity", y)), query(CONV_BN)).region.exit.name == y


def test_an_identity_branch_behind_an_identity() -> None:
    s = Sketch()
    y = s.add(s.conv("x"), s.op("Identity", "x"))
    match = only(s.graph(y), query(REPCONV))
    assert match.words == "sum of dense (conv), skip (bare)"
    assert "identity_1" in names(match)


# --- sums inside -----------------------------------------------------------------------------------------------------


def test_a_chain_goes_on_through_the_entry_of_a_sum() -> None:
    """The conv before the sum is read by both branches and by nobody else."""
    chain = query("match y = x -> conv as first -> sum { a{2..}: cbn } -> norm* do fold to conv")
    s = Sketch()
    c = s.conv("x", 1)
    inner = s.add(s.cbn(c), s.cbn(c, 1))
    match = only(s.graph(s.bn(inner)), chain)
    assert match.region.entry.name == "x" and len(match.region.nodes) == 7
    s = Sketch()
    c = s.conv("x", 1)
    graph = s.graph(s.add(s.cbn(c), s.cbn(c, 1)), s.relu(c))
    assert refused(graph, chain).code is Reason.ESCAPE


def test_a_leftover_that_is_the_entry_keeps_it() -> None:
    chain = query("match y = x -> conv -> sum { a{2..}: cbn } do fold to conv")
    s = Sketch()
    c = s.conv("x", 1)
    graph = s.graph(s.add(s.add(s.cbn(c), c), s.cbn(c, 1)))
    assert refused(graph, chain).code is Reason.ESCAPE


def test_leftovers_beside_a_chain() -> None:
    chain = query("match y = x -> conv -> sum { a{2..}: cbn } do fold to conv")
    s = Sketch(inputs=("x", "r"))
    c = s.conv("x", 1)
    match = only(s.graph(s.total("r", s.cbn(c), s.cbn(c, 1))), chain)
    assert match.region.entry.name == "x" and rest(match) == [(1, "r")]


def test_an_inner_sum_takes_all_its_operands() -> None:
    nested = query("match y = x -> sum { p: pass m: sum { a{2..}: cbn } -> scale } do fold to conv")
    s = Sketch(inputs=("x", "r"))
    whole = s.scale(s.add(s.cbn("x"), s.cbn("x", 1)))
    match = only(s.graph(s.add("x", whole)), nested)
    assert match.words == "sum of p (bare), m (sum of 2 a (conv->bn)->scale)"
    s = Sketch(inputs=("x", "r"))
    part = s.scale(s.total(s.cbn("x"), s.cbn("x", 1), "r"))
    refusal, _ = refusals(s.graph(s.add("x", part)), nested)  # of the outer sum, and of the inner one by itself
    assert "p needs all 3 operands" in refusal.detail


# --- limits ----------------------------------------------------------------------------------------------------------


class Counting(Search):
    """A search whose steps can be read afterwards."""

    made: list[Search]

    def __init__(self, *given: object) -> None:
        super().__init__(*given)  # type: ignore[arg-type]
        self.made.append(self)


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[Search]:
    made: list[Search] = []
    monkeypatch.setattr(Counting, "made", made, raising=False)
    monkeypatch.setattr("rewriter.matching.find.Search", Counting)
    return made


def steps(searches: list[Search]) -> int:
    (search,) = searches
    searches.clear()
    return search.steps


def test_a_chain_that_leads_nowhere_is_walked_once(searches: list[Search]) -> None:
    counted: list[int] = []
    for length in (500, 1000, 2000):
        s = Sketch()
        y = s.relu("x")
        for _ in range(length):
            y = s.scale(y)
        found = refusals(s.graph(y), query(CONV_BN))
        assert {r.code for r in found} == {Reason.LIMIT, Reason.OP}  # the far part, and the end of it
        assert len(found) <= length // (walk.MAX_PATH // 2)
        counted.append(steps(searches))
    assert counted[2] - counted[1] <= 2.1 * (counted[1] - counted[0])


def test_a_chain_longer_than_a_walk_folds_from_its_conv() -> None:
    s = Sketch()
    y = s.conv("x")
    for _ in range(3 * walk.MAX_PATH + 7):
        y = s.scale(y)
    (match,) = matches(s.graph(y), query(CONV_BN))
    assert match.region.entry.name == "x"
    assert walk.MAX_PATH // 2 < len(match.region.nodes) <= walk.MAX_PATH
    (other, *_) = refusals(s.graph(y), query(CONV_BN))
    assert other.code is Reason.LIMIT


def test_every_length_of_chain_matches() -> None:
    """Wherever the anchors fall, some walk reaches the conv."""
    for length in (254, 255, 256, 257, 383, 384, 385, 511, 512, 513):
        s = Sketch()
        y = s.conv("x")
        for _ in range(length):
            y = s.scale(y)
        (match,) = matches(s.graph(y), query(CONV_BN))
        assert match.region.entry.name == "x"


def test_a_large_sum_is_one_step_of_a_chain() -> None:
    chain = query("match y = x -> conv -> sum { a{2..}: cbn } -> bn do fold to conv")
    s = Sketch()
    c = s.conv("x", 1)
    y = s.bn(s.total(*(s.cbn(c) for _ in range(walk.MAX_PATH))))
    assert only(s.graph(y), chain).region.entry.name == "x"


def test_steps_grow_as_the_branches_do(searches: list[Search]) -> None:
    counted: list[int] = []
    for width in (250, 500, 1000):
        s = Sketch()
        y = s.bn(s.bn(s.total(*(s.cbn("x") for _ in range(width)))))
        assert dict(only(s.graph(y), query(REPCONV)).counts)["dense"] == width
        counted.append(steps(searches))
    assert counted[2] - counted[1] == 2 * (counted[1] - counted[0])


def test_steps_grow_as_the_graph_does(searches: list[Search]) -> None:
    counted: list[int] = []
    for blocks in (50, 100, 200):
        s = Sketch()
        y = "x"
        for _ in range(blocks):
            inner = s.add(s.add(s.cbn(y), s.cbn(y, 1)), y)
            y = s.add(s.relu(inner), s.scale(s.relu(y)))
        assert len(matches(s.graph(y), query(REPCONV))) == blocks
        counted.append(steps(searches))
    assert counted[2] - counted[1] == 2 * (counted[1] - counted[0])


def test_norms_behind_a_sum_that_is_no_group(searches: list[Search]) -> None:
    """Each of the norms is an anchor that leads to the sum; yet its operands are not read for each of them."""
    counted: list[int] = []
    for norms in (10, 100):
        s = Sketch(inputs=("x", "z"))
        y = s.total(*(s.cbn(s.relu("x")) for _ in range(100)))
        for _ in range(norms):
            y = s.scale(y)
        assert matches(s.graph(y), query(REPCONV)) == []
        counted.append(steps(searches))
    assert counted[1] - counted[0] < 90 * 20
