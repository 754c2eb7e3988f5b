"""Bodies compiled: what a program accepts, its labels, and the readings of sums inside sums."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewriter.errors import UsageError
from rewriter.language.parser import prelude
from rewriter.language.syntax import Body, Group, Item, OpAtom, Repeat, Seq
from rewriter.matching.program import Program, SumStep, compile_body
from tests.matching.sketches import query


def accepted(program: Program, word: str) -> bool:
    """Whether a word of operators r, s, t, in the direction of the data, is one of the program's."""
    states = {program.start}
    for letter in (*reversed(word), None):
        stack = list(states)
        while stack:
            fresh = {e.target for e in program.edges[stack.pop()] if e.step is None} - states
            states |= fresh
            stack += fresh
        if letter is None:
            break
        edges = [e for state in states for e in program.edges[state]]
        states = {e.target for e in edges if isinstance(e.step, OpAtom) and e.step.op == letter}
    return program.accept in states


atoms = st.sampled_from("rst").map(OpAtom)


def bodies(inner: st.SearchStrategy[OpAtom | Group]) -> st.SearchStrategy[Body]:
    items = st.builds(Item, inner, st.sampled_from([Repeat.ONCE, Repeat.OPTIONAL]))
    repeated = st.builds(Item, atoms, st.sampled_from(list(Repeat)))
    seqs = st.lists(items | repeated, min_size=1, max_size=3).map(lambda found: Seq(tuple(found)))
    return st.lists(seqs, min_size=1, max_size=2).map(lambda found: Body(tuple(found)))


nested = bodies(bodies(atoms).map(Group) | atoms)


def expression(body: Body) -> str:
    """The body as a regular expression, which Python's own engine judges."""
    return "|".join("".join(map(_item, seq.items)) for seq in body.alternatives)


def _item(item: Item) -> str:
    inner = item.atom.op if isinstance(item.atom, OpAtom) else expression(item.atom.body)  # type: ignore[union-attr]
    return f"(?:{inner}){item.repeat}"


WORDS = ["".join(letters) for n in range(5) for letters in itertools.product("rst", repeat=n)]


@given(nested)
def test_a_program_accepts_what_its_body_describes(body: Body) -> None:
    program = compile_body(body, {})
    wanted = re.compile(expression(body))
    assert [word for word in WORDS if accepted(program, word)] == [w for w in WORDS if wanted.fullmatch(w)]


def test_firsts_are_what_can_stand_at_the_exit() -> None:
    assert query("match y = x -> conv -> norm+ do fold to conv").program.firsts == {"bn", "scale", "shift"}
    repconv = query("match y = x -> sum { a{2..}: cbn } -> norm* do fold to conv").program
    assert repconv.firsts == {"bn", "scale", "shift", "sum"}
    assert repconv.sums
    assert not query("match y = x -> conv -> norm+ do fold to conv").program.sums


@pytest.mark.parametrize("body", ["concat { a: conv b: conv }", "conv -> concat { a: bn b: bn }"])
def test_what_cannot_be_matched_yet_says_so(body: str) -> None:
    with pytest.raises(UsageError, match=r"cannot match .* yet"):
        query(f"match y = x -> {body} do fold to conv")


# --- sums inside sums ------------------------------------------------------------------------------------------------


def readings(body: str) -> list[list[str]]:
    """The arms of the outermost sum, by reading: sign and name, with the branches that were opened."""
    program = query(f"match y = x -> {body} do fold to conv").program
    (step,) = [edge.step for edges in program.edges for edge in edges if isinstance(edge.step, SumStep)]
    signs = {1: "+", -1: "-", 0: "±"}
    return [["/".join((signs[arm.sign] + arm.name, *arm.within)) for arm in arms] for arms in step.readings]


def test_an_inner_sum_that_ends_bare_is_opened() -> None:
    assert readings("sum { p: pass m: sum { a: cbn b: norm* } }") == [["+p", "+a/m", "+b/m"]]


def test_an_inner_sum_that_may_end_bare_means_both() -> None:
    body = "sum { p: pass m: sum { a: cbn ; - b: norm* } -> scale? }"
    assert readings(body) == [["+p", "+m"], ["+p", "+a/m", "-b/m"]]


def test_an_inner_sum_with_something_behind_is_closed() -> None:
    assert readings("sum { p: pass m: sum { a: cbn b: cbn } -> scale }") == [["+p", "+m"]]


def test_signs_multiply() -> None:
    body = "sum { p{2..}: cbn ; - m: sum { a: cbn ; - b: cbn ; ± c: norm* } }"
    assert readings(body) == [["+p", "-a/m", "+b/m", "±c/m"]]


def test_opened_at_every_depth() -> None:
    body = "sum { p: pass m: sum { a: cbn n: sum { b: cbn c: bn } } }"
    assert readings(body) == [["+p", "+a/m", "+b/m/n", "+c/m/n"]]


def test_opened_through_parentheses() -> None:
    assert readings("sum { p: pass m: (sum { a: cbn b: cbn }) }") == [["+p", "+a/m", "+b/m"]]
    assert readings("sum { p: pass m: (sum { a: cbn b: cbn } -> norm*) }") == [["+p", "+m"], ["+p", "+a/m", "+b/m"]]


def test_an_optional_inner_sum_may_be_missing() -> None:
    assert readings("sum { p{2..}: cbn m{0..1}: sum { a: cbn b: cbn } }") == [["+p", "+a/m", "+b/m"], ["+p"]]


def test_a_repeated_inner_sum_stays_closed() -> None:
    assert readings("sum { p: pass m{2}: sum { a: cbn b: cbn } }") == [["+p", "+m"]]


def test_readings_are_bounded() -> None:
    branches = " ".join(f"m{i}: sum {{ a{i}: cbn b{i}: norm* }} -> scale?" for i in range(40))
    with pytest.raises(UsageError, match="more than 64 readings"):
        query(f"match y = x -> sum {{ {branches} }} do fold to conv")


def test_labels_of_chains_cover_their_nodes() -> None:
    program = query("match y = x -> cbn as body -> relu as end do fold to conv").program
    steps = [edge for edges in program.edges for edge in edges if isinstance(edge.step, OpAtom)]
    assert {e.step.op: e.labels for e in steps if isinstance(e.step, OpAtom)} == {
        "conv": ("body",), "bn": ("body",), "scale": ("body",), "shift": ("body",), "relu": ("end",),
    }  # fmt: skip
    assert [edge.mark for edges in program.edges for edge in edges if edge.mark] == ["body", "end"]
    assert set(prelude()) == {"norm", "cbn"}
