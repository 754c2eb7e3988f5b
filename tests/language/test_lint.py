"""What lint finds, and that shipped patterns have none of it."""

from __future__ import annotations

import pytest

from rewriter.language.library import find_pattern_files
from rewriter.language.lint import histogram, lint
from rewriter.language.parser import parse, parse_bytes

TESTS = """
  test "folds" { net y = x[1,2,3,3] -> conv(2) -> bn gives conv=1 }
  refuse "relu" { net y = x[1,2,3,3] -> conv(2) -> relu -> bn because op }
"""


def found(clauses: str, head: str = "", tests: str = TESTS) -> list[str]:
    text = f'fxrewrite 1\n{head}\npattern p {{ doc "d" {clauses} {tests} }}'
    return [finding.code for finding in lint(parse(text, "p.fxp"))]


@pytest.mark.parametrize("path", find_pattern_files(), ids=lambda path: path.stem)
def test_shipped_patterns_are_clean(path: object) -> None:
    assert [str(f) for f in lint(parse_bytes(path.read_bytes(), path.name))] == []  # type: ignore[attr-defined]


def test_findings() -> None:
    match = "match y = x -> conv -> norm+ do fold to conv"
    assert found(match) == []
    assert found(match, tests="") == ["no-test", "no-refuse"]
    assert found(match.replace("conv ->", "conv as c ->")) == ["unused-label"]
    assert found(match.replace("conv ->", "conv as c ->") + " where c.k = 3") == []
    assert found(f"param n: int = 3 {match}") == ["unused-param"]
    assert found(f"param n: int = 3 {match} where count(bn) < n") == []
    assert found(match, "chain spare = relu") == ["unused-chain"]
    assert found(match, "chain used = relu chain spare = used") == ["unused-chain"]


def test_a_test_that_passes_before_anything_is_done() -> None:
    vacuous = 'test "t" { net y = x[1,2,3,3] -> conv(2) -> relu gives relu=1, conv=1 }'
    assert found("match y = x -> conv do bypass", tests=TESTS + vacuous) == ["vacuous-test"]


def test_an_operator_that_is_never_counted() -> None:
    test = 'test "t" { net y = x[1,2,3,3] -> conv(2) -> relu gives conv=1, identity=1 }'
    assert found("match y = x -> conv do bypass", tests=TESTS + test) == ["uncounted"]


def test_unused_roles() -> None:
    roles = "match outputs { main: deepest; aux: twin of main; other: rest } do remove-output aux"
    assert found(roles) == ["unused-role"]


def test_findings_say_where() -> None:
    (first, _) = lint(parse('fxrewrite 1\n\npattern p { doc "d" match y = x -> conv do bypass }', "p.fxp"))
    assert str(first) == "p.fxp:3:9: pattern 'p' has no test [no-test]"


def test_histogram_counts_what_a_view_would() -> None:
    net = "net a = x[1,2,3,3] -> identity -> silu; y = a -> sum { - conv(2); bn; - x } -> concat { relu; a }"
    text = f'fxrewrite 1 pattern p {{ doc "d" match y = x -> conv do bypass test "t" {{ {net} gives conv=1 }} }}'
    assert histogram(parse(text, "p.fxp").patterns[0].tests[0].net) == {
        "sigmoid": 1,
        "mul": 1,
        "neg": 1,
        "conv": 1,
        "add": 1,
        "bn": 1,
        "sub": 1,
        "concat": 1,
        "relu": 1,
    }
