"""Families pruned whole: what is left is what the exporter writes of a model that gives only what is shipped."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from fixtures.heads import FAMILIES
from fixtures.heads.exports import BATCH, HIGH, WIDE, Form, exported
from fixtures.judge import count_params, op_histogram
from rewriter import api
from rewriter.checking.record import Verdict
from tests.end_to_end.judging import noise, run

PRUNED = [name for name, family in FAMILIES.items() if family.removed and family.shown]
CASES = [
    pytest.param(name, form, dynamic, id=f"{name}-{form}{'-dynamic' if dynamic else ''}", marks=marks)
    for name in PRUNED
    for form, marks in (("legacy", ()), ("dynamo", pytest.mark.slow))
    for dynamic in (False, True)
    if not (FAMILIES[name].sized and dynamic and form == "legacy")
]


@pytest.mark.parametrize(("name", "form", "dynamic"), CASES)
def test_pruned_is_what_the_exporter_writes_of_the_shipped_model(name: str, form: Form, dynamic: bool) -> None:
    model = exported(name, form, dynamic=dynamic)
    result = api.apply(model, ["aux-prune"])
    assert result.report.verification.verdict is Verdict.OK
    onnx.checker.check_model(result.model, full_check=True)
    wanted = exported(name, form, dynamic=dynamic, shipped=True)
    assert [o.name for o in result.model.graph.output] == [o.name for o in wanted.graph.output]
    assert count_params(result.model) == count_params(wanted)
    assert op_histogram(result.model) == op_histogram(wanted)
    feeds = {"image": noise(BATCH, 3, HIGH, WIDE, seed=5)}
    before, after, fresh = run(model, feeds), run(result.model, feeds), run(wanted, feeds)
    for output in after:
        np.testing.assert_array_equal(after[output], before[output])
        np.testing.assert_allclose(after[output], fresh[output], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["different-tasks", "fpn-levels", "deit-averaged", "detr"])
def test_a_model_with_nothing_auxiliary_is_left_alone_and_says_so(name: str) -> None:
    model = exported(name)
    result = api.apply(model, ["aux-prune"], verify=False)
    assert result.model.SerializeToString() == model.SerializeToString()
    assert [decision.how for decision in result.report.decisions] == ["nothing auxiliary"]
