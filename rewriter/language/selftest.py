"""The tests that pattern files carry, run against whatever applies patterns.

Invariant: a test passes only when the result is exactly what `gives` lists, the fold was proved and the outputs are the
same; a refusal only when nothing changed and the reason was reported. What fails says why; nothing is skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rewriter.errors import FxRewriteError
from rewriter.language.library import LoadedPattern
from rewriter.language.lint import histogram
from rewriter.language.nets import build_net
from rewriter.language.syntax import RefuseTest, Test

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True, slots=True)
class Outcome:
    """What applying one pattern to a net gave.

    `histogram` counts canonical operators (no constants, no `identity`), `refusal_codes` are the reasons reported,
    `proved` says that every fold was, `max_output_difference_ok` that the outputs which stay are the same.
    """

    model: ModelProto
    histogram: Mapping[str, int]
    refusal_codes: frozenset[str] | set[str]
    proved: bool
    max_output_difference_ok: bool


@dataclass(frozen=True, slots=True)
class TestResult:
    """`why` is empty for a test that passed."""

    __test__ = False  # not a test class of pytest

    pattern: str
    test: str
    why: str = ""

    @property
    def passed(self) -> bool:
        return not self.why


def run_tests(loaded: LoadedPattern, apply: Callable[[ModelProto, LoadedPattern], Outcome]) -> list[TestResult]:
    """Every test and refusal of a pattern, in the order of the file."""
    tests = sorted((*loaded.pattern.tests, *loaded.pattern.refuses), key=lambda t: (t.pos.line, t.pos.column))
    return [TestResult(loaded.name, test.name, _run(loaded, test, apply)) for test in tests]


def _run(loaded: LoadedPattern, test: Test | RefuseTest, apply: Callable[[ModelProto, LoadedPattern], Outcome]) -> str:
    """Why a test failed; empty where it passed."""
    place = f"{loaded.source_path}:{test.pos.line}"
    try:
        model = build_net(test.net, folder=loaded.file.parent)
        outcome = apply(model, loaded)
    except FxRewriteError as problem:
        return f"{place}: {problem}"
    why = _judge_test(test, outcome) if isinstance(test, Test) else _judge_refusal(test, outcome)
    return f"{place}: {why}" if why else ""


def _judge_test(test: Test, outcome: Outcome) -> str:
    wanted, found = dict(test.gives), {op: count for op, count in outcome.histogram.items() if count}
    if found != wanted:
        refused = f"; refused: {', '.join(sorted(outcome.refusal_codes))}" if outcome.refusal_codes else ""
        return f"expected {_shown(wanted)}, the result has {_shown(found)}{refused}"
    if not outcome.proved:
        return "the result was not proved"
    return "" if outcome.max_output_difference_ok else "the outputs differ from those of the original"


def _judge_refusal(test: RefuseTest, outcome: Outcome) -> str:
    wanted = str(test.because)
    if wanted not in outcome.refusal_codes:
        found = ", ".join(sorted(outcome.refusal_codes)) or "no reason at all"
        return f"expected a refusal because {wanted}, found {found}"
    if test.net.file is None:
        found = {op: count for op, count in outcome.histogram.items() if count}
        if found != histogram(test.net):
            return f"it was refused, yet {_shown(histogram(test.net))} became {_shown(found)}"
    return (
        "" if outcome.max_output_difference_ok else "it was refused, yet the outputs differ from those of the original"
    )


def _shown(histogram: Mapping[str, int]) -> str:
    return ", ".join(f"{op}={count}" for op, count in sorted(histogram.items())) or "no operator"
