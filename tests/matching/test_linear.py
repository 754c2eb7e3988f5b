"""Linear regions: fields, where they are cut, and dominators against brute force."""

from __future__ import annotations

import random

import pytest

from rewriter.graph.view import Graph
from rewriter.matching import linear
from rewriter.matching.linear import Field, chain_of, dominators, grow
from tests.matching.sketches import Sketch


def field_of(graph: Graph, name: str) -> Field:
    return grow(graph, graph.values[name])


def test_a_field_is_all_that_only_its_exit_needs() -> None:
    s = Sketch()
    r = s.relu("x")
    y = s.add(s.cbn(r), s.cbn(r, 1))
    found = field_of(s.graph(y), y)
    assert [n.op for n in found.nodes] == ["conv", "bn", "conv", "bn", "add"]
    assert [v.name for v in found.leaves] == [r]


def test_a_value_read_elsewhere_is_a_leaf() -> None:
    s = Sketch()
    c = s.conv("x")
    y = s.bn(c)
    graph = s.graph(y, s.relu(c))
    assert [v.name for v in field_of(graph, y).leaves] == [c]


def test_an_output_inside_is_a_leaf() -> None:
    s = Sketch()
    c = s.conv("x")
    y = s.bn(c)
    assert [v.name for v in field_of(s.graph(y, c), y).leaves] == [c]


def test_a_split_belongs_to_it_when_all_its_parts_do() -> None:
    s = Sketch()
    left, right = s.op("Split", "x", outputs=2, axis=1), "split_0:1"
    y = s.op("Concat", s.conv(left, wide=2), right, axis=1)
    assert [n.op for n in field_of(s.graph(y), y).nodes] == ["split", "conv", "concat"]
    assert {v.name for v in field_of(s.graph(y, s.relu(right)), y).leaves} == {left, right}


def test_a_field_ends_somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "MOST_NODES", 5)
    s = Sketch()
    y = "x"
    for _ in range(9):
        y = s.conv(y)
    assert len(field_of(s.graph(y), y).nodes) == 5


def test_a_chain_is_cut_where_every_path_passes() -> None:
    s = Sketch()
    a = s.bn("x")
    b = s.add(s.conv(a), s.conv(a, 1))
    y = s.bn(b)
    chain = chain_of(field_of(s.graph(y), y))
    assert [v.name if v else None for v in chain.values] == ["x", a, b, y]
    assert [[n.op for n in slot] for slot in chain.slots] == [["bn"], ["conv", "conv", "add"], ["bn"]]


def test_several_entries_leave_the_first_cut_open() -> None:
    s = Sketch(inputs=("x", "z"))
    b = s.add(s.conv("x"), s.conv("z"))
    y = s.bn(b)
    chain = chain_of(field_of(s.graph(y), y))
    assert [v.name if v else None for v in chain.values] == [None, b, y]


@pytest.mark.parametrize("seed", range(40))
def test_dominators_as_by_brute_force(seed: int) -> None:
    rng = random.Random(seed)
    s = Sketch(inputs=("x", "z"))
    values = ["x", "z"][: rng.choice([1, 2])]
    for _ in range(12):
        values.append(s.add(*rng.choices(values[-4:], k=2)) if rng.random() < 0.5 else s.bn(rng.choice(values[-3:])))
    y = values[-1]
    found = field_of(s.graph(y), y)
    nearest = dominators(found)
    for value in nearest:
        above = set(linear.path_above(nearest, value)[1:])
        assert above == {other for other in nearest if other != value and _cuts(found, other, value)}


def _cuts(found: Field, other: str, value: str) -> bool:
    """Whether no path reaches `value` from any leaf once `other` is taken out."""
    makers = {output.name: node for node in found.nodes for output in node.outputs}
    stack, seen = [value], set[str]()
    while stack:
        name = stack.pop()
        if name == other or name in seen:
            continue
        seen.add(name)
        if name not in makers:
            return False
        stack.extend(read.name for read in makers[name].data)
    return True
