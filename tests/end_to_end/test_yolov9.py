"""The main job on the whole table: five variants in the three forms that exporters write, static 320 pixels.

What is wanted comes from the published table (typed in here), from torch's own main output, and from a float64 run that
shares no code with the rewrite.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from fixtures.cache import cached_export
from fixtures.export import FORMS, Form, export
from fixtures.judge import cone, conv_count, count_params, op_histogram
from fixtures.yolov9 import DualModel, build, converted, variant
from rewriter import api
from rewriter.checking.record import Verdict
from tests.end_to_end.judging import Array, digest, doubled, node_count, noise, relative, run, run_double

PATTERNS = ["repconv", "conv-bn", "bypass", "aux-prune"]
SIZE = 320
AUX, MAIN = 0, 1  # order of the outputs in torch and in the exported files
CLOSE = 1e-5  # of the largest value, in float32: the fixtures' own float32 error is below 1e-4 by construction
DOUBLE_LIMIT = 3e-11  # absolute, on decoded boxes (yolov9.md, "Equality")
SMALL = 64


@dataclass(frozen=True, slots=True)
class Wanted:
    """The form to ship: Conv count, parameters, and nodes of the `legacy` form."""

    convs: int
    parameters: int
    nodes: int


# yolov9.md, "converted, fused"; `n` is ours, so its row is what the fixture's definition counts.
TABLE = {
    "t": Wanted(186, 2_407_632, 770),
    "s": Wanted(186, 7_105_888, 770),
    "m": Wanted(140, 19_978_672, 608),
    "c": Wanted(145, 25_288_768, 701),
    "e": Wanted(262, 57_345_920, 1374),
    "n": Wanted(145, converted(variant("n")).fused, 701),
}
FAST: tuple[tuple[str, Form], ...] = (("n", "legacy"), ("n", "legacy-bn"), ("n", "dynamo"), ("t", "legacy"))
CASES = [
    pytest.param(name, form, id=f"{name}-{form}", marks=() if (name, form) in FAST else pytest.mark.slow)
    for name in TABLE
    for form in FORMS
]


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@lru_cache(maxsize=1)
def torch_model(name: str) -> DualModel:
    return build(name)


@torch.no_grad()
def torch_outputs(name: str, image: Array) -> list[Array]:
    return [value.numpy() for value in torch_model(name)(torch.from_numpy(image))]


@pytest.mark.parametrize(("name", "form"), CASES)
def test_the_training_form_becomes_the_form_to_ship(name: str, form: Form, tmp_path: Path) -> None:
    source = cached_export(name, form, SIZE)
    untouched = digest(source)
    result = api.apply(source, PATTERNS)
    wanted, report = TABLE[name], result.report

    verification = report.verification
    assert verification.verdict is Verdict.OK, verification
    assert [check.name for check in verification.outputs] == [value.name for value in result.model.graph.output]
    assert all(check.error <= check.tolerance for check in verification.outputs)
    assert report.end == "fixpoint"

    saved = result.save(tmp_path / "shipped.onnx")
    assert digest(source) == untouched
    onnx.checker.check_model(str(saved), full_check=True)
    model = onnx.load(saved)
    assert conv_count(model) == wanted.convs
    assert count_params(model) == wanted.parameters
    ops = op_histogram(model)
    assert not {"BatchNormalization", "Identity"} & ops.keys()
    if form == "legacy":
        assert node_count(model) == wanted.nodes
    assert sorted(cone(model.graph, [value.name for value in model.graph.output])) == [*range(len(model.graph.node))]
    after = report.after
    assert (after.nodes, after.parameters, dict(after.ops)) == (node_count(model), wanted.parameters, ops)

    image = noise(1, 3, SIZE, SIZE, seed=7)
    (found,) = run(saved, {"images": image}, threads=2).values()
    auxiliary, main = torch_outputs(name, image)
    assert relative(found, main) <= CLOSE
    assert relative(found, auxiliary) > 100 * CLOSE  # else the comparison could not tell the two apart
    assert len(report.decisions) == 1 and report.decisions[0].how == "by votes"

    again = api.apply(saved, PATTERNS)
    assert not again.report.changed and not again.report.matches
    assert again.save(tmp_path / "again.onnx").read_bytes() == saved.read_bytes()


DOUBLE_CASES = [
    pytest.param(name, form, id=f"{name}-{form}", marks=() if name == "n" else pytest.mark.slow)
    for name in ("n", "t")
    for form in FORMS
]


@pytest.mark.parametrize(("name", "form"), DOUBLE_CASES)
def test_in_float64_nothing_changes(name: str, form: Form) -> None:
    """The file's numbers as float64, rewritten with float64 weights: what remains is the rewrite's own error.

    In float32 the rounding of the folded weights (6e-8 of each) hides it.
    """
    before = doubled(onnx.load(cached_export(name, form, SMALL)))
    result = api.apply(before, PATTERNS, verify=False)
    after = result.model
    assert (conv_count(after), count_params(after)) == (TABLE[name].convs, TABLE[name].parameters)
    assert not single_precision(after)

    feeds = {"images": noise(1, 3, SMALL, SMALL, seed=3, dtype=np.float64)}
    (found,) = run_double(after, feeds).values()
    wanted = run_double(before, feeds)[before.graph.output[MAIN].name]
    assert found.dtype == wanted.dtype == np.float64
    assert boxes_differ(found, wanted) <= DOUBLE_LIMIT


@pytest.mark.parametrize("name", ["n", pytest.param("t", marks=pytest.mark.slow)])
def test_in_float64_torch_agrees(name: str, tmp_path: Path) -> None:
    """Converted and fused against the training form's main output in torch, where the exporter folded nothing itself.

    The model is built and exported here: statistics measured by another number of threads differ in their last bits.
    """
    model = build(name)
    before = doubled(onnx.load(export(model, "legacy-bn", SMALL, tmp_path / "kept-norms.onnx")))
    after = api.apply(before, PATTERNS, verify=False).model
    assert conv_count(after) == TABLE[name].convs and "BatchNormalization" not in op_histogram(after)
    image = noise(1, 3, SMALL, SMALL, seed=4, dtype=np.float64)
    (found,) = run_double(after, {"images": image}).values()
    auxiliary, main = torch_double(model, image)
    assert boxes_differ(found, main) <= DOUBLE_LIMIT
    assert boxes_differ(found, auxiliary) > 1e-3


def single_precision(model: onnx.ModelProto) -> set[str]:
    """Stored float32 tensors, but those that Resize reads, which wants its scales so."""
    stored = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    return stored - {name for node in model.graph.node if node.op_type == "Resize" for name in node.input}


def boxes_differ(found: Array, wanted: Array) -> float:
    """Largest difference in pixels; the boxes are not all alike, or the figure would say nothing."""
    assert found.shape == wanted.shape and wanted[:, :4].std() > 1
    return float(np.abs(found[:, :4] - wanted[:, :4]).max())


@torch.no_grad()
def torch_double(model: DualModel, image: Array) -> list[Array]:
    """torch's outputs in float64; an ONNX file stores a norm's eps as float32."""
    model = model.double()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = float(np.float32(module.eps))
    return [value.numpy() for value in model(torch.from_numpy(image))]
