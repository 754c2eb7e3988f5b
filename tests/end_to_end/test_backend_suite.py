"""Models that none of us wrote: the test suite that onnx ships inside its package, with its own data.

No model may end in anything but a clear refusal, and where one was changed it must still give the suite's reference
outputs, at least as well as the original does on the same engine.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.backend.test import loader
from onnx.reference import ReferenceEvaluator

from rewriter import api
from rewriter.errors import FxRewriteError
from tests.end_to_end.judging import run

NODE, KINDS = "node", ("node", "simple", "pytorch-converted", "pytorch-operator")
SOME = re.compile("attention_4d|batchnorm|conv|dropout|identity")
SLACK = 1.5  # times the original's own distance from the reference outputs, plus four units of rounding


@cache
def suite(kind: str) -> dict[str, Any]:
    """Cases by name; those of single nodes are made by code that warns as it makes them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {case.name: case for case in loader.load_model_tests(kind=kind)}


def names() -> Iterator[Any]:
    """A handful of models for each test: there are two thousand, and a test each would cost more than they do."""
    for kind in KINDS:
        groups: dict[str, list[str]] = {}
        for name in sorted(suite(kind)):
            groups.setdefault(name.removeprefix("test_")[:2].lower(), []).append(name)
        for start, members in sorted(groups.items()):
            yield pytest.param(kind, tuple(members), id=f"{kind}-{start}")


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


def on_reference(model: ModelProto, feeds: dict[str, Any]) -> list[Any]:
    return list(ReferenceEvaluator(model).run(None, feeds))


def on_runtime(model: ModelProto, feeds: dict[str, Any]) -> list[Any]:
    return list(run(model, feeds).values())


def first_that_runs(model: ModelProto, feeds: dict[str, Any]) -> tuple[Any, list[Any]] | None:
    """An engine that can run the original, and what it gives; None says nothing about the rewrite."""
    for engine in (on_runtime, on_reference):
        try:
            return engine, engine(model, feeds)
        except Exception:  # what an engine raises for what it does not know is of any type
            continue
    return None


def frozen(model: ModelProto, data: list[tuple[dict[str, Any], list[Any]]]) -> list[tuple[dict[str, Any], list[Any]]]:
    """Make every input but the first a stored tensor with the suite's value, and give a map a scale and a shift.

    So there is something to fold. The data that is left comes back: the first set's first input, and no reference
    outputs, for which the original's own stand in.
    """
    if not data:
        return data
    known = {tensor.name for tensor in model.graph.initializer}
    first, *others = data[0][0] or [""]
    values = {name: data[0][0][name] for name in others if name not in known}
    kept = [value for value in model.graph.input if value.name not in values.keys() | known]
    plain = all(isinstance(v, np.ndarray) and v.dtype.kind in "fiub" and v.ndim for v in values.values())
    if [value.name for value in kept] != [first] or not plain:
        return data
    model.ir_version = max(model.ir_version, 4)  # before that, whatever is stored is an input too
    copies = [type(value).FromString(value.SerializeToString()) for value in kept]
    del model.graph.input[:]
    model.graph.input.extend(copies)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    if len(model.graph.output) == 1 and isinstance(data[0][1][0], np.ndarray):
        _dress(model, data[0][1][0])
    return [({first: data[0][0][first]}, [])]


def _dress(model: ModelProto, sample: np.ndarray[Any, Any]) -> None:
    """A scale and a shift per channel behind the only output, where it is a map."""
    if sample.ndim < 3 or sample.dtype not in (np.float16, np.float32, np.float64):
        return
    for imported in model.opset_import:
        if imported.domain == "":
            imported.version = max(imported.version, 7)  # arithmetic before that does not broadcast by itself
    (output,) = model.graph.output
    shape, last = (1, sample.shape[1]) + (1,) * (sample.ndim - 2), output.name
    for kind, values in (("Mul", np.linspace(0.5, 1.5, shape[1])), ("Add", np.linspace(-1, 2, shape[1]))):
        constant = numpy_helper.from_array(values.reshape(shape).astype(sample.dtype), f"{last}.{kind}")
        model.graph.initializer.append(constant)
        model.graph.node.append(helper.make_node(kind, [last, constant.name], [f"{last}.after"]))
        last += ".after"
    output.name = last


def judge(case: Any, *, freeze: bool = False) -> str:
    """What became of a case: "unchanged", "refused", "equal" or "not run"; an assertion where it went wrong."""
    before = model_of(case)
    data = data_of(case, before)
    if freeze:
        data = frozen(before, data)
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
    for feeds, wanted in data:
        ran = first_that_runs(before, feeds)
        if ran is None:
            continue
        engine, old = ran
        new = engine(result.model, feeds)
        unit = max((float(np.finfo(x.dtype).eps) for x in old if x.dtype.kind == "f"), default=0.0)
        limit = SLACK * distance(old, wanted or old) + 4 * unit
        assert distance(new, wanted or old) <= limit, case.name
        verdict = "equal"
    return verdict


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "members"), [*names()])
@pytest.mark.parametrize("freeze", [False, True], ids=["as it is", "with constants"])
def test_no_model_of_the_suite_comes_out_wrong(kind: str, members: tuple[str, ...], freeze: bool) -> None:
    for name in members:
        judge(suite(kind)[name], freeze=freeze)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("freeze", [False, True], ids=["as it is", "with constants"])
def test_the_suite_is_there_and_some_of_it_changes(freeze: bool) -> None:
    """So that the test above cannot pass by doing nothing."""
    assert sum(len(suite(kind)) for kind in KINDS) > 1000
    found = Counter(judge(case, freeze=freeze) for name, case in suite("node").items() if SOME.search(name))
    assert found["equal"] >= 50 and not found["not run"], found


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
