"""Every family of re-parameterizable blocks becomes what its definition says, from the graph alone.

The judge is torch: what the exported and rewritten model gives is held against the module itself.
"""

from __future__ import annotations

from typing import Any

import onnx
import pytest
import torch
from onnx import ModelProto

from fixtures.disguise import disguised
from fixtures.families import FAMILIES, Form, counted
from fixtures.families.exports import exported, exported_open, legacy, sample
from fixtures.judge import op_histogram
from fixtures.quiet import quiet
from rewriter import api
from rewriter.checking.record import Verdict
from tests.end_to_end.judging import relative, run

LIMIT = 2e-6  # of the largest value: rounding on these small nets; a branch or a border that is wrong gives 1e-2
WHOLE = ("legacy-bn", "dynamo-plain")  # the others may have evaluated what is constant, and norms with it


def _case(name: str, form: Form) -> Any:
    quick = "legacy-bn" if "legacy-bn" in FAMILIES[name].forms else "dynamo-plain"
    return pytest.param(name, form, id=f"{name}-{form}", marks=[] if form == quick else [pytest.mark.slow])


CASES = [_case(name, form) for name, family in FAMILIES.items() for form in family.forms]


def operators(model: ModelProto) -> dict[str, int]:
    """What is counted, without the Concats of numbers to the target of a Reshape, which exporters may leave."""
    targets = {node.input[1] for node in model.graph.node if node.op_type == "Reshape"}
    joined = sum(node.op_type == "Concat" and node.output[0] in targets for node in model.graph.node)
    found = counted(op_histogram(model))
    return {op: left for op, count in found.items() if (left := count - joined * (op == "Concat"))}


def assert_computes(name: str, model: ModelProto) -> None:
    x = sample(name, seed=2)
    with torch.no_grad():
        wanted = FAMILIES[name].build()(x).numpy()
    assert relative(run(model, {"x": x.numpy()})["y"], wanted) <= LIMIT


@pytest.mark.parametrize(("name", "form"), CASES)
def test_collapse_alone_reaches_what_the_definition_says(name: str, form: Form) -> None:
    before = exported(name, form)
    family = FAMILIES[name]
    if form in WHOLE and not family.stays:
        assert operators(before) != family.expected
    result = api.apply(before, ["collapse"])
    assert operators(result.model) == family.expected
    assert not family.stays or family.stays in {refusal.code for refusal in result.report.refusals}
    assert result.report.verification.verdict is Verdict.OK
    assert_computes(name, result.model)


@pytest.mark.parametrize(("name", "form"), CASES)
def test_its_own_patterns_do_the_same_and_the_presets_no_less(name: str, form: Form) -> None:
    family, before = FAMILIES[name], exported(name, form)
    wanted, settings = (family.at_any_cost, "cost=off") if family.at_any_cost else (family.expected, ())
    own = api.apply(before, family.patterns, set_=settings, verify=False)
    assert operators(own.model) == wanted
    every = api.apply(before, ["deploy"], verify=False)
    assert operators(every.model) == family.expected
    for result in (own, every):
        assert_computes(name, result.model)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.at_any_cost])
def test_what_cost_decides_is_reported_and_can_be_asked_for(name: str) -> None:
    before = exported(name, "legacy-bn")
    gated = api.apply(before, ["collapse"], verify=False)
    dear = [refusal for refusal in gated.report.refusals if refusal.code == "cost"]
    assert any(r.before and r.after and r.after.multiply_adds > r.before.multiply_adds for r in dear)
    free = api.apply(before, ["collapse"], set_="cost=off", verify=False)
    assert operators(free.model) == FAMILIES[name].at_any_cost
    assert_computes(name, free.model)


RINGS = ("dbb", "ecb", "edbb", "plainusr")
OPEN_FALLS_SHORT = {
    **dict.fromkeys(RINGS, "what the legacy exporter writes around an image has the size of the example"),
}
LEGACY = [name for name, family in FAMILIES.items() if "legacy-bn" in family.forms]


@pytest.mark.slow
@pytest.mark.parametrize("name", LEGACY)
def test_with_open_sizes_as_much_folds_but_for_what_is_known_to_fall_short(name: str) -> None:
    result = api.apply(exported_open(name), ["deploy"], verify=False)
    assert_computes(name, result.model)
    reached = operators(result.model) == FAMILIES[name].expected
    assert reached == (name not in OPEN_FALLS_SHORT), OPEN_FALLS_SHORT.get(name)


QUICK = ("plainusr", "dynamo-plain")
OPEN_RINGS = [
    pytest.param(name, form, id=f"{name}-{form}", marks=[] if (name, form) == QUICK else [pytest.mark.slow])
    for name in RINGS
    for form in ("dynamo", "dynamo-plain")
]


@pytest.mark.parametrize(("name", "form"), OPEN_RINGS)
def test_a_ring_around_an_image_of_any_size_folds(name: str, form: Form) -> None:
    result = api.apply(exported_open(name, form), ["deploy"])
    assert operators(result.model) == FAMILIES[name].expected
    assert result.report.verification.verdict is Verdict.OK
    module, random = FAMILIES[name].build(), torch.Generator().manual_seed(4)
    channels = FAMILIES[name].shape[1]
    for shape in ((2, channels, 9, 5), (1, channels, 1, 1), (3, channels, 16, 31)):
        x = torch.randn(shape, generator=random)
        with torch.no_grad():
            assert relative(run(result.model, {"x": x.numpy()})["y"], module(x).numpy()) <= LIMIT


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "plainusr" else [pytest.mark.slow]) for n in RINGS])
def test_a_ring_for_any_number_of_images_folds(name: str) -> None:
    module, x = FAMILIES[name].build(), sample(name)
    with torch.no_grad(), quiet():
        before = onnx.load_from_string(legacy(module, x[:1], keep_norms=True, axes={0: "batch"}))
    result = api.apply(before, ["deploy"])
    assert operators(result.model) == FAMILIES[name].expected
    assert result.report.verification.verdict is Verdict.OK
    assert_computes(name, result.model)


@pytest.mark.slow
@pytest.mark.parametrize("name", LEGACY)
def test_disguised_as_much_folds(name: str) -> None:
    hidden = disguised(exported(name, "legacy-bn"), 1).model
    result = api.apply(hidden, ["deploy"], verify=False)
    assert operators(result.model) == FAMILIES[name].expected
    (value,) = hidden.graph.input
    feeds = {value.name: sample(name, seed=3).numpy()}
    wanted, found = run(hidden, feeds), run(result.model, feeds)
    assert all(relative(found[key], wanted[key]) <= LIMIT for key in wanted)
