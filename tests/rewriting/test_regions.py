"""Patterns that look for linear regions under conditions, alone and beside collapse."""

from __future__ import annotations

from pathlib import Path

from onnx import ModelProto

from rewriter.errors import Reason
from rewriter.language.library import LoadedPattern, resolve
from tests.rewriting.small_models import SmallNet, ops, rewritten


def two_norms(folder: Path) -> LoadedPattern:
    text = 'pattern own { doc "d" match y = x -> linear-region where count(bn) >= 2 do fold to conv }'
    (folder / "own.fxp").write_text(f"fxrewrite 1\n{text}\n")
    return resolve(["own.fxp"], folder)[0]


def one_and_two() -> ModelProto:
    """A conv with one norm, and behind an activation one with two."""
    net = SmallNet()
    first = net.add("Relu", [net.norm(net.conv("x"), "one")])
    net.norm(net.norm(net.conv(first)), "two")
    return net.model("two")


def test_only_regions_that_meet_the_conditions_fold(tmp_path: Path) -> None:
    result, outcome = rewritten(one_and_two(), [two_norms(tmp_path)])
    assert ops(result) == {"Conv": 2, "BatchNormalization": 1, "Relu": 1}
    assert [match.exit for match in outcome.matches] == ["two"]
    (refusal,) = outcome.refusals
    assert (refusal.code, refusal.node) == (Reason.WHERE, "n_one")
    assert refusal.detail.endswith("count(bn) >= 2 is false")


def test_beside_collapse_it_takes_its_own_and_says_nothing_of_the_others(tmp_path: Path) -> None:
    result, outcome = rewritten(one_and_two(), ["collapse", two_norms(tmp_path)])
    assert ops(result) == {"Conv": 2, "Relu": 1}
    assert {match.exit: match.pattern for match in outcome.matches} == {"one": "collapse", "two": "own"}
    assert not outcome.refusals


def test_beside_collapse_one_pattern_says_what_is_read_elsewhere_and_none_what_is_not_linear() -> None:
    net = SmallNet()
    inner = net.conv(net.add("Relu", ["x"]), "inner")
    net.norm(inner, "y")
    net.add("Add", [net.add("Sigmoid", [inner]), net.norm(net.conv("x"))], "z")
    _, alone = rewritten(net.model("y", "z"), ["repconv", "conv-bn", "conv-transpose-bn"])
    assert {Reason.ESCAPE, Reason.OP} <= {refusal.code for refusal in alone.refusals}
    _, every = rewritten(net.model("y", "z"), ["repconv", "conv-bn", "conv-transpose-bn", "collapse"])
    escapes = [refusal.node for refusal in every.refusals if refusal.code == Reason.ESCAPE]
    assert escapes == ["n_inner"] and not any(refusal.code == Reason.OP for refusal in every.refusals)
