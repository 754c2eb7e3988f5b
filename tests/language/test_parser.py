"""What the parser reads: positions, the prelude, limits."""

from __future__ import annotations

import pytest

from rewriter.errors import PatternError
from rewriter.language.parser import parse, parse_bytes, prelude
from rewriter.language.source import MAX_BYTES
from rewriter.language.syntax import (
    Binary,
    BodyMatch,
    Branch,
    Call,
    Item,
    Junction,
    Number,
    OpAtom,
    Pass,
    Pos,
    Predicate,
    Repeat,
)


def pattern(clauses: str) -> str:
    return f'fxrewrite 1\npattern p {{ doc "d" {clauses} }}\n'


def items(body: str) -> tuple[Item, ...]:
    match = parse(pattern(f"match y = x -> {body} do fold to conv"), "p.fxp").patterns[0].match
    assert isinstance(match, BodyMatch)
    return match.body.alternatives[0].items


def refuses(text: str, message: str) -> None:
    with pytest.raises(PatternError, match=message):
        parse(text, "p.fxp")


def test_a_body() -> None:
    assert items("conv[k>=7, depthwise] as big -> norm*") == (
        Item(OpAtom("conv", (Predicate("k", ">=", 7), Predicate("depthwise")), "big")),
        Item(Call("norm"), Repeat.ANY),
    )


def test_branches_with_and_without_separators() -> None:
    (item,) = items("sum { dense{1..}: conv  - skip{0..1}: pass; ± other{2}: relu }")
    assert isinstance(item.atom, Junction)
    counts = [(branch.name, branch.sign, branch.least, branch.most) for branch in item.atom.branches]
    assert counts == [("dense", "", 1, None), ("skip", "-", 0, 1), ("other", "±", 2, 2)]
    passing = item.atom.branches[1]
    assert isinstance(passing, Branch)
    assert passing.body.alternatives[0].items == (Item(Pass()),)


def test_positions_count_from_one_and_survive_comments_tabs_and_carriage_returns() -> None:
    text = 'fxrewrite 1\r\n# é ü\r\npattern p {\r\n\tdoc "dé"  match y = x -> conv  do bypass }'
    found = parse(text, "p.fxp").patterns[0]
    assert found.pos == Pos(3, 9, 1)
    assert found.action.pos == Pos(4, 36, 6)


def test_a_name_may_hold_a_minus_and_a_minus_sign_needs_spaces() -> None:
    where = parse(pattern("match y = x -> conv as a-1 where a-1.k - 1 >= 2 do bypass"), "p.fxp").patterns[0].where[0]
    assert isinstance(where, Binary) and isinstance(where.left, Binary)
    assert where.left.right == Number(1)


def test_the_prelude_is_visible_everywhere() -> None:
    assert list(prelude()) == ["norm", "cbn"]
    assert items("cbn") == (Item(Call("cbn")),)


def test_a_byte_order_mark_is_no_text() -> None:
    assert parse_bytes(b"\xef\xbb\xbffxrewrite 1\n", "p.fxp").patterns == ()


def test_size_limit() -> None:
    head = b"fxrewrite 1\n"
    assert parse_bytes(head + b"#" * (MAX_BYTES - len(head)), "p.fxp").patterns == ()
    with pytest.raises(PatternError, match="larger than 1 MiB"):
        parse_bytes(head + b"#" * (MAX_BYTES - len(head) + 1), "p.fxp")


@pytest.mark.parametrize("depth", [65, 1000, 40_000])
def test_depth_limit_of_bodies_expressions_and_nets(depth: int) -> None:
    refuses(pattern(f"match y = x -> {'(' * depth}conv{')' * depth} do bypass"), "nested more than 64 deep")
    refuses(pattern(f"match y = x -> conv do bypass where {'(' * depth}1{')' * depth} = 1"), "nested more than 64 deep")
    refuses(pattern(f"match y = x -> conv do bypass where {'not ' * depth}has(bn)"), "nested more than 64 deep")
    refuses(pattern(f"match y = x -> conv do bypass where {'- ' * depth}count(bn) = 1"), "nested more than 64 deep")
    net = f"net y = x[1,1,1,1] -> {'sum { ' * depth}relu; relu{' }' * depth}"
    refuses(pattern(f'match y = x -> conv do bypass test "t" {{ {net} gives relu=1 }}'), "nested more than 64 deep")
    sums = f"match y = x -> {'sum { a: ' * depth}conv{'; b: conv }' * depth} do bypass"
    refuses(pattern(sums), "nested more than 64 deep")


def test_depth_limit_through_chains() -> None:
    chains = ["chain c0 = conv", *(f"chain c{i} = (c{i - 1})" for i in range(1, 60))]
    refuses("fxrewrite 1\n" + "\n".join(chains), "nested more than 64 deep")


def test_long_expressions_are_refused_before_they_are_deep() -> None:
    refuses(pattern(f"match y = x -> conv do bypass where 1 = {' + '.join(['1'] * 100_000)}"), "at most 200 parts")


def test_wide_files_are_read() -> None:
    paths = " | ".join(["conv"] * 999)
    assert len(parse(pattern(f"match y = x -> {paths} do bypass"), "p.fxp").patterns) == 1


def test_a_newer_version_is_refused_before_anything_in_it_is_read() -> None:
    refuses('fxrewrite 2 § "never closed', "version 2 of the pattern language")
