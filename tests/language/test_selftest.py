"""The runner of the tests in pattern files, with engines that do one thing wrong each."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from onnx import ModelProto

from rewriter.errors import VerificationError
from rewriter.graph.vocabulary import canonical_name
from rewriter.language.library import LoadedPattern, resolve
from rewriter.language.selftest import Outcome, run_tests

TEXT = """fxrewrite 1
pattern p {
  doc "d"
  match y = x -> relu
  do bypass
  refuse "first" { net y = x[1,2,3,3] -> tanh because op }
  test "second" { net y = x[1,2,3,3] -> relu -> tanh gives tanh=1 }
}
"""


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedPattern:
    (tmp_path / "p.fxp").write_text(TEXT)
    return resolve(["p.fxp"], tmp_path)[0]


def right(model: ModelProto, pattern: LoadedPattern) -> Outcome:
    """Removes every Relu, as the pattern of this test says."""
    counts = Counter(canonical_name(node.op_type) for node in model.graph.node)
    done = counts.pop("relu", 0)
    return Outcome(model, counts, set() if done else {"op"}, proved=True, max_output_difference_ok=True)


def reasons(loaded: LoadedPattern, **wrong: object) -> list[str]:
    results = run_tests(loaded, lambda model, pattern: replace(right(model, pattern), **wrong))  # type: ignore[arg-type]
    assert [result.test for result in results] == ["first", "second"]
    assert all(result.passed is (result.why == "") for result in results)
    return [result.why for result in results]


def test_a_right_engine_passes(loaded: LoadedPattern) -> None:
    assert reasons(loaded) == ["", ""]


def test_failures_say_why_and_where(loaded: LoadedPattern) -> None:
    assert reasons(loaded, histogram={"tanh": 1, "relu": 1}) == [
        "p.fxp:6: it was refused, yet tanh=1 became relu=1, tanh=1",
        "p.fxp:7: expected tanh=1, the result has relu=1, tanh=1",
    ]
    assert reasons(loaded, refusal_codes=set()) == [
        "p.fxp:6: expected a refusal because op, found no reason at all",
        "",
    ]
    assert reasons(loaded, proved=False) == ["", "p.fxp:7: the result was not proved"]
    assert all("the outputs differ" in why for why in reasons(loaded, max_output_difference_ok=False))


def test_an_engine_that_gives_up_fails_the_test(loaded: LoadedPattern) -> None:
    def broken(model: ModelProto, pattern: LoadedPattern) -> Outcome:
        raise VerificationError("the proof failed")

    assert [result.why for result in run_tests(loaded, broken)] == [
        "p.fxp:6: the proof failed",
        "p.fxp:7: the proof failed",
    ]
