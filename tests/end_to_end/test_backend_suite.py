"""Models that none of us wrote: the test suite that onnx ships inside its package, with its own data.

No model may end in anything but a clear refusal, and where one was changed it must still give the suite's reference
outputs, at least as well as the original does on the same engine.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.backend.test import loader

from rewriter import api
from rewriter.errors import FxRewriteError
from tests.end_to_end.judging import run

NODE, KINDS = "node", ("node", "simple", "pytorch-converted", "pytorch-operator")
FAST = re.compile(r"conv|batch_?norm|add|sum|identity|dropout|pad|cast|leaky_?relu|average_?pool", re.IGNORECASE)
SLACK = 1.5  # times the original's own distance from the reference outputs, plus one unit of float32


@cache
def suite(kind: str) -> dict[str, Any]:
    """Cases by name; those of single nodes are made by code that warns as it makes them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {case.name: case for case in loader.load_model_tests(kind=kind)}


def names() -> Iterator[Any]:
    """One test for a handful of cases each: there are two thousand, and a test each would cost more than they do."""
    for kind in KINDS:
        groups: dict[tuple[bool, str], list[str]] = {}
        for name in sorted(suite(kind)):
            groups.setdefault((bool(FAST.search(name)), name.removeprefix("test_")[:2].lower()), []).append(name)
        for (fast, start), members in sorted(groups.items()):
            marks = () if fast else pytest.mark.slow
            yield pytest.param(kind, tuple(members), id=f"{kind}-{start}-{'fast' if fast else 'rest'}", marks=marks)


def model_of(case: Any) -> ModelProto:
    if case.model is not None:
        return ModelProto.FromString(case.model.SerializeToString())
    return onnx.load(Path(case.model_dir) / "model.onnx")


def data_of(case: Any, model: ModelProto) -> list[tuple[dict[str, Any], list[Any]]]:
    """Inputs by name and reference outputs in order, of every data set."""
    if case.data_sets is not None:
        sets = case.data_sets
    else:
        folders = sorted(Path(case.model_dir).glob("test_data_set_*"))
        sets = [(_arrays(folder, "input"), _arrays(folder, "output")) for folder in folders]
    wanted = [value.name for value in model.graph.input]
    return [(dict(zip(wanted, inputs, strict=False)), list(outputs)) for inputs, outputs in sets]


def _arrays(folder: Path, what: str) -> list[Any]:
    found = sorted(folder.glob(f"{what}_*.pb"), key=lambda path: int(path.stem.rsplit("_", 1)[1]))
    return [numpy_helper.to_array(TensorProto.FromString(path.read_bytes())) for path in found]


def distance(found: list[Any], wanted: list[Any]) -> float:
    """Largest difference, relative to the largest wanted value; infinite where they cannot be compared."""
    worst = 0.0
    for one, other in zip(found, wanted, strict=True):
        one, other = np.asarray(one), np.asarray(other)
        if one.shape != other.shape:
            return float("inf")
        if other.dtype.kind not in "fiu" or one.dtype.kind not in "fiu":
            worst = max(worst, 0.0 if one.tobytes() == other.tobytes() or bool(np.all(one == other)) else float("inf"))
            continue
        left, right = one.astype(np.float64), other.astype(np.float64)
        same = (left == right) | (np.isnan(left) & np.isnan(right))
        if same.all():
            continue
        scale = np.abs(right[np.isfinite(right)]).max(initial=0.0) or 1.0
        with np.errstate(invalid="ignore"):
            off = float(np.where(same, 0.0, np.abs(left - right)).max())
        worst = max(worst, off / scale if np.isfinite(off) else float("inf"))
    return worst


def runs(model: ModelProto, feeds: dict[str, Any]) -> list[Any] | None:
    try:
        return list(run(model, feeds).values())
    except Exception:  # what the engine cannot run says nothing about the rewrite
        return None


def judge(case: Any) -> str:
    """What became of a case: "unchanged", "refused", "equal" or "not run"; an assertion where it went wrong."""
    before = model_of(case)
    bytes_before = before.SerializeToString(deterministic=True)
    try:
        result = api.apply(before, ["all"], verify=False)
    except FxRewriteError as error:
        assert len(str(error)) > 20 and "Traceback" not in str(error), case.name
        return "refused"
    assert before.SerializeToString(deterministic=True) == bytes_before, f"{case.name}: the argument was changed"
    if not result.report.changed:
        assert result.model.SerializeToString(deterministic=True) == bytes_before, case.name
        return "unchanged"
    again = api.apply(result.model, ["all"], verify=False)
    assert not again.report.changed, case.name
    verdict = "not run"
    for feeds, wanted in data_of(case, before):
        old = runs(before, feeds)
        if old is None:
            continue
        new = runs(result.model, feeds)
        assert new is not None, f"{case.name}: the rewritten model does not run, the original does"
        limit = SLACK * distance(old, wanted) + 2**-23
        assert distance(new, wanted) <= limit or distance(new, old) <= 2**-22, case.name
        verdict = "equal"
    return verdict


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "members"), [*names()])
def test_no_model_of_the_suite_comes_out_wrong(kind: str, members: tuple[str, ...]) -> None:
    for name in members:
        judge(suite(kind)[name])


@pytest.mark.filterwarnings("ignore")
def test_the_suite_is_there_and_some_of_it_changes() -> None:
    """Counted on the part that `make test` runs, so that the test above cannot pass by doing nothing."""
    found: dict[str, int] = {}
    for kind in KINDS:
        for name, case in suite(kind).items():
            if FAST.search(name) and not name.startswith("test_cast"):
                verdict = judge(case)
                found[verdict] = found.get(verdict, 0) + 1
    assert sum(found.values()) > 250
    assert found["equal"] >= 5, found


def test_a_wrong_output_is_told() -> None:
    """The comparison sees a wrong value, a wrong place of NaN and a wrong shape."""
    one = np.array([1.0, np.nan, -3.0], np.float32)
    assert distance([one], [one]) == 0
    assert distance([one * np.float32(1.001)], [one]) > 1e-4
    assert distance([np.nan_to_num(one)], [one]) == float("inf")
    assert distance([one[:2]], [one]) == float("inf")
    assert distance([np.array(["a"])], [np.array(["b"])]) == float("inf")


def test_a_changed_model_that_is_wrong_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """`judge` itself, on a rewrite that spoils the model."""

    class Case:
        name, model_dir = "spoilt", None
        model = helper.make_model(
            helper.make_graph(
                [helper.make_node("Identity", ["x"], ["a"]), helper.make_node("Relu", ["a"], ["y"])],
                "g",
                [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
                [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
            ),
            ir_version=8,
            opset_imports=[helper.make_opsetid("", 17)],
        )
        data_sets = (([np.array([1.0, -2.0], np.float32)], [np.array([1.0, 0.0], np.float32)]),)

    assert judge(Case) == "equal"
    right = api.apply

    def wrong(model: ModelProto, patterns: list[str], *, verify: bool) -> api.Result:
        result = right(model, patterns, verify=verify)
        result.model.graph.node[-1].op_type = "Abs"
        return result

    monkeypatch.setattr(api, "apply", wrong)
    with pytest.raises(AssertionError, match="spoilt"):
        judge(Case)
