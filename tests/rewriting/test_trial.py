"""The tests in pattern files are run for real: a wrong fold, a missing proof or a wrong sign cannot pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from rewriter.language.library import LoadedPattern, resolve, shipped
from rewriter.rewriting import engine, trial
from rewriter.rewriting.actions import Done, Fresh, act
from rewriter.rewriting.onnx_draft import OnnxDraft
from tests.rewriting.small_models import SmallNet, copied

HONEST = OnnxDraft.finish


def folding() -> ModelProto:
    net = SmallNet()
    net.add("Relu", [net.norm(net.conv("x"))], "y")
    return net.model("y")


def one(folder: Path, tests: str) -> LoadedPattern:
    (folder / "own.fxp").write_text(
        f'fxrewrite 1\npattern own {{ doc "d" match y = x -> conv -> bn do fold to conv {tests} }}\n'
    )
    return resolve(["own.fxp"], folder)[0]


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_pattern_passes_its_own_tests(name: str) -> None:
    results = trial.run(shipped()[name])
    assert results and all(result.passed for result in results), [r.why for r in results if r.why]


def test_an_outcome_tells_what_was_done_and_leaves_the_net_alone() -> None:
    model = folding()
    before = copied(model)
    found = trial.outcome(model, shipped()["conv-bn"])
    assert model == before
    assert (found.histogram, found.proved, found.max_output_difference_ok) == ({"conv": 1, "relu": 1}, True, True)
    assert not found.refusal_codes


@pytest.mark.parametrize(("change", "fine"), [(1e-7, True), (1e-2, False), (np.nan, False), (np.inf, False)])
def test_a_weight_that_goes_wrong_shows(monkeypatch: pytest.MonkeyPatch, change: float, fine: bool) -> None:
    def finish(self: OnnxDraft) -> ModelProto:
        model = HONEST(self)
        tensor = next(t for t in model.graph.initializer if t.name.endswith(".folded"))
        array = numpy_helper.to_array(tensor).copy()
        array[0, 0, 0, 0] += np.float32(change)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        return model

    monkeypatch.setattr(OnnxDraft, "finish", finish)
    assert trial.outcome(folding(), shipped()["conv-bn"]).max_output_difference_ok is fine


def test_a_fold_without_proof_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    def unproved(graph: engine.Graph, match: engine.Match, fresh: Fresh, *sizes: object) -> object:
        done = act(graph, match, fresh)
        return replace(done, proof=None) if isinstance(done, Done) else done

    monkeypatch.setattr(engine, "act", unproved)
    found = trial.outcome(folding(), shipped()["conv-bn"])
    assert found.max_output_difference_ok and not found.proved


def test_a_choice_is_a_reason() -> None:
    net = SmallNet()
    for name in ("left", "right"):
        net.conv("x", name)
    found = trial.outcome(net.model("left", "right"), shipped()["aux-prune"])
    assert found.refusal_codes == {"choice"} and found.histogram == {"conv": 2}


@pytest.mark.parametrize(
    ("tests", "why"),
    [
        ('test "t" { net y = x[1,2,5,5] -> conv(3) -> bn -> relu gives conv=1, relu=1 }', ""),
        ('test "t" { net y = x[1,2,5,5] -> conv(3) -> bn -> relu gives conv=2, relu=1 }', "the result has conv=1"),
        ('refuse "t" { net y = x[1,2,5,5] -> conv(3) -> bn because escape }', "expected a refusal because escape"),
        ('refuse "t" { net c = x[1,2,5,5] -> conv(3); y = c -> bn; z = c -> relu because escape }', ""),
        ('refuse "t" { net c = x[1,2,5,5] -> conv(3); y = c -> bn; z = c -> relu because cost }', "found escape"),
    ],
)
def test_what_the_runner_says(tmp_path: Path, tests: str, why: str) -> None:
    (result,) = trial.run(one(tmp_path, tests))
    assert why in result.why and result.passed == (not why)
