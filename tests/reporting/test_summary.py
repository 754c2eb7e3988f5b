"""The figures and groups that every rendering shares."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rewriter.reporting import escape, figures, summary
from tests.reporting.sample import MATCHES, REPORT


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "unknown"), (0, "0"), (999, "999"), (1000, "1.0k"), (999_499, "999.5k"), (999_500, "1.0M"),
     (51_182_080, "51.2M"), (118e9, "118.0G"), (2.5e12, "2.5T"), (-1500, "-1.5k")],
)  # fmt: skip
def test_short(value: float | None, text: str) -> None:
    assert figures.short(value) == text


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [(4, 3, "−25.0 %"), (4, 5, "+25.0 %"), (4, 4, ""), (0, 4, ""), (None, 4, ""), (4, None, ""), (4, 0, "−100.0 %")],
)
def test_change(before: int | None, after: int | None, text: str) -> None:
    assert figures.change(before, after) == text


def test_other_figures() -> None:
    assert [figures.size(n) for n in (0, 999, 1000, 205_131_776)] == ["0 B", "999 B", "1.0 kB", "205.1 MB"]
    assert [figures.plural(n, "node") for n in (0, 1, 1274)] == ["0 nodes", "1 node", "1,274 nodes"]
    assert [figures.error(x) for x in (0.0, 3.14e-16, float("nan"))] == ["0", "3.1e-16", "nan"]
    assert [figures.shape(x) for x in (None, (), (1, "N", None))] == ["[…]", "[]", "[1, N, ?]"]
    assert [figures.signed(n) for n in (-1200, 0, 3)] == ["−1,200", "+0", "+3"]


def test_operators_that_changed() -> None:
    rows, same = summary.changed_ops(REPORT.before, REPORT.after)
    assert [(row.op, row.before, row.after) for row in rows] == [("Conv", 255, 145), ("Relu", 0, 3), ("Add", 1, 0)]
    assert same == 1


def test_refusals_are_grouped_the_most_frequent_first() -> None:
    groups = summary.refusal_groups(REPORT)
    assert [(g.pattern, g.code, g.count, g.node) for g in groups] == [
        ("bypass", "value", 1200, "mul0"),
        ("repconv", "cost", 1, "sum8"),
        ("repconv", "escape", 1, "sum9"),
    ]


def test_matches_are_grouped_with_what_they_save_together() -> None:
    (group,) = summary.match_groups(REPORT)
    assert (group.count, group.nodes, group.made, group.saved_parameters) == (2, 6, 2, 200)
    assert summary.saved_words(group) == "200 parameters saved"


def test_what_is_stored_more_is_said_with_the_reason() -> None:
    dearer = replace(REPORT, matches=(replace(MATCHES[0], saved_parameters=-9),))
    (group,) = summary.match_groups(dearer)
    assert summary.saved_words(group) == "9 parameters more, since layers shared a weight and fold differently"
    assert summary.saved_words(replace(group, saved_parameters=0)) == ""


def test_the_worst_proof_is_told_and_nan_is_worst() -> None:
    assert summary.proof_summary(REPORT).worst_exit == "sum1"
    assert MATCHES[0].proof is not None
    spoiled = replace(MATCHES[0], proof=replace(MATCHES[0].proof, error=float("nan")))
    for matches in ((spoiled, MATCHES[1]), (MATCHES[1], spoiled)):
        assert summary.proof_summary(replace(REPORT, matches=matches)).worst_exit == "sum0"
    unproved = tuple(replace(match, proof=None) for match in MATCHES)
    assert summary.proof_line(replace(REPORT, matches=unproved)) == ""


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a.b/c", "a.b/c"), ("", '""'), ("é×", "é×"), ("a\x1bb", "a\\x1bb"), ("a\u202eb", "a\\u202eb"),
     ("a\nb", "a\\x0ab"), ("\udc80", "\\udc80"), ("\U000e0001", "\\U000e0001")],
)  # fmt: skip
def test_names_are_made_safe(text: str, shown: str) -> None:
    assert escape.name(text) == shown


def test_long_names_are_cut_in_the_middle() -> None:
    cut = escape.name("a" * 500 + "end", 60)
    assert len(cut) == 60 and cut.startswith("aaa") and "…" in cut and cut.endswith("end")


@pytest.mark.parametrize(("text", "span"), [("a", "`a`"), ("a`b", "``a`b``"), ("`a", "`` `a ``"), ("a|b", "`a\\|b`")])
def test_code_spans(text: str, span: str) -> None:
    assert escape.code(text) == span


def test_what_was_left_for_its_cost_shows_its_figures() -> None:
    (dear,) = summary.too_dear(REPORT)
    line = summary.cost_line(dear.before, dear.after)
    assert line == "5,200,000 → 14,400,000 multiply-adds, 52 → 144 parameters, 208 B → 576 B"
    assert summary.cost_line(None, dear.after) == ""
