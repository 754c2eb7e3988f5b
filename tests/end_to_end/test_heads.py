"""Families pruned whole: what is left is what the exporter writes of a model that gives only what is shipped."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from fixtures.heads import FAMILIES, transformers
from fixtures.heads.exports import BATCH, HIGH, WIDE, Form, exported
from fixtures.judge import count_params, op_histogram
from rewriter import api
from rewriter.checking.record import Verdict
from tests.end_to_end.judging import noise, run


def slow(*values: object) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


PRUNED = [name for name, family in FAMILIES.items() if family.removed and family.shown]
CASES = [
    pytest.param(name, form, dynamic, id=f"{name}-{form}{'-dynamic' if dynamic else ''}", marks=marks)
    for name in PRUNED
    for form, marks in (("legacy", ()), ("dynamo", pytest.mark.slow))
    for dynamic in (False, True)
    if not (FAMILIES[name].sized and dynamic)
]


@pytest.mark.parametrize(("name", "form", "dynamic"), CASES)
def test_pruned_is_what_the_exporter_writes_of_the_shipped_model(name: str, form: Form, dynamic: bool) -> None:
    model = exported(name, form, dynamic=dynamic)
    result = api.apply(model, ["aux-prune"])
    assert result.report.verification.verdict is Verdict.OK
    onnx.checker.check_model(result.model, full_check=True)
    wanted = exported(name, form, dynamic=dynamic, shipped=True)
    if name == "detr-auxiliary":  # the exporter leaves the stack of layers whole
        wanted = api.apply(wanted, ["aux-prune"], verify=False).model
    assert [o.name for o in result.model.graph.output] == [o.name for o in wanted.graph.output]
    assert count_params(result.model) == count_params(wanted)
    assert op_histogram(result.model) == op_histogram(wanted)
    feeds = {"image": noise(BATCH, 3, HIGH, WIDE, seed=5)}
    before, after, fresh = run(model, feeds), run(result.model, feeds), run(wanted, feeds)
    for output in after:
        np.testing.assert_array_equal(after[output], before[output])
        np.testing.assert_allclose(after[output], fresh[output], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["different-tasks", "fpn-levels", "deit-averaged"])
def test_a_model_with_nothing_auxiliary_is_left_alone_and_says_so(name: str) -> None:
    model = exported(name)
    result = api.apply(model, ["aux-prune"], verify=False)
    assert result.model.SerializeToString() == model.SerializeToString()
    assert [decision.how for decision in result.report.decisions] == ["nothing auxiliary"]


@pytest.mark.parametrize(("form", "dynamic"), [("legacy", False), ("legacy", True), slow("dynamo", False)])
def test_heads_on_a_stack_run_on_the_layer_that_is_kept(form: Form, dynamic: bool) -> None:
    """The outputs of DETR's other decoder layers are normed, stacked and sent through both heads, for nothing."""
    model = exported("detr", form, dynamic=dynamic)
    result = api.apply(model, ["aux-prune"])
    assert result.report.verification.verdict is Verdict.OK
    onnx.checker.check_model(result.model, full_check=True)
    before, after = op_histogram(model), op_histogram(result.model)
    layers = transformers.LAYERS
    assert before["Unsqueeze"] - after["Unsqueeze"] == layers - 1
    assert before["LayerNormalization"] - after["LayerNormalization"] == layers - 1
    assert before["Concat"] - after.get("Concat", 0) == 1
    assert (after["MatMul"], count_params(result.model)) == (before["MatMul"], count_params(model))
    (decision,) = result.report.decisions
    assert [(s.places, s.operands) for s in decision.stacks] == [((layers - 1,), layers)]
    for high, wide in (HIGH, WIDE), (WIDE, HIGH):
        if dynamic or high == HIGH:
            feeds = {"image": noise(BATCH, 3, high, wide, seed=6)}
            wanted, found = run(model, feeds), run(result.model, feeds)
            for output in wanted:
                np.testing.assert_allclose(found[output], wanted[output], rtol=1e-5, atol=1e-6)
    again = api.apply(result.model, ["aux-prune"], verify=False)
    assert not again.report.changed
