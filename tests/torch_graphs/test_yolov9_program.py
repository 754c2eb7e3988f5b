"""The whole job on exported programs: the published parameter counts, the Convs of the ONNX path, the same numbers.

What is wanted comes from the table that the ONNX path is held to; the float64 runs share no code with the rewrite.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import rewriter
from fixtures.judge import conv_count, count_params
from fixtures.yolov9 import DualModel, build
from rewriter.api import Result
from rewriter.checking.record import Verdict
from tests.end_to_end.test_yolov9 import PATTERNS, TABLE
from tests.torch_graphs.nets import exported, image, in_double, operators, same

AUX, MAIN = 0, 1
SMALL = 64
pytestmark = pytest.mark.filterwarnings("ignore")  # of torch about itself


@lru_cache(maxsize=1)
def shipped(name: str) -> tuple[DualModel, torch.export.ExportedProgram, Result]:
    net = build(name).eval()
    x = image(1, 3, SMALL, SMALL)
    with torch.no_grad():
        net(x)  # anchors and strides of this size become constants
    before = exported(net, x)
    return net, before, rewriter.apply(before, PATTERNS)


NAMES = [pytest.param(name, marks=() if name == "t" else pytest.mark.slow) for name in "tcsme"]


@pytest.mark.parametrize("name", NAMES)
def test_the_training_form_becomes_the_form_to_ship(name: str) -> None:
    net, before, result = shipped(name)
    wanted, after = TABLE[name], result.model
    assert result.report.verification.verdict is Verdict.OK, result.report.verification
    assert operators(after)["conv2d"] == wanted.convs and "batch_norm" not in operators(after)
    assert sum(p.numel() for p in after.parameters()) == result.report.after.parameters == wanted.parameters
    assert result.report.decisions[0].how == "by votes"
    x = image(1, 3, SMALL, SMALL, seed=4)
    with torch.no_grad():
        found, outputs = after.module()(x)[0], net(x)
    assert same([found], [outputs[MAIN]], 1e-5) and not same([found], [outputs[AUX]], 1e-3)
    again = rewriter.apply(after, PATTERNS)
    assert not again.report.changed and again.model is after
    assert len(before.graph.nodes) > len(after.graph.nodes)  # and the program that came is as it was


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t", "c"])
def test_the_module_that_the_program_gives_ends_as_the_program_does(name: str) -> None:
    net, before, _ = shipped(name)
    x = image(1, 3, SMALL, SMALL, seed=4)
    result = rewriter.apply(before.module(), PATTERNS, example_inputs=x)
    assert result.report.verification.verdict is Verdict.OK, result.report.verification
    layers = [part for part in result.model.modules() if isinstance(part, nn.Conv2d)]
    plain = sum(str(node.target) == "aten.conv2d.default" for node in result.model.graph.nodes)
    assert len(layers) + plain == TABLE[name].convs
    assert sum(p.numel() for p in result.model.parameters()) == TABLE[name].parameters
    with torch.no_grad():
        assert same([result.model(x)[0]], [net(x)[MAIN]], 1e-5)


@pytest.mark.parametrize("name", ["t", pytest.param("c", marks=pytest.mark.slow)])
def test_in_float64_nothing_changes(name: str) -> None:
    """With float64 weights what remains is the rewrite's own error; in float32 the rounding of the kernels hides it."""
    net = build(name).eval().double()
    x = image(1, 3, SMALL, SMALL, seed=2).double()
    with torch.no_grad():
        net(x)
    before = exported(net, x)
    after = rewriter.apply(before, PATTERNS, verify=False).model
    assert operators(after)["conv2d"] == TABLE[name].convs
    assert same(in_double(after, x), in_double(before, x)[MAIN:], 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t", "c"])
def test_onnx_made_of_the_result_is_that_of_the_onnx_path(name: str, tmp_path: Path) -> None:
    path = tmp_path / "after.onnx"
    torch.onnx.export(shipped(name)[2].model, (), str(path), dynamo=True, opset_version=18, external_data=False)
    model = onnx.load(path)
    assert (conv_count(model), count_params(model)) == (TABLE[name].convs, TABLE[name].parameters)


@pytest.mark.slow
def test_open_sizes_do_not_keep_the_auxiliary_branch() -> None:
    """The exporter reads sizes of the branch that goes; they are read of a value that stays."""
    net = build("t").eval()
    dim = torch.export.Dim
    shapes = ({0: dim("batch", min=2), 2: 32 * dim("high", min=2), 3: 32 * dim("wide", min=2)},)
    x = image(2, 3, SMALL, 2 * SMALL)
    with torch.no_grad():
        net(x)
    before = exported(net, x, dynamic_shapes=shapes)
    result = rewriter.apply(before, PATTERNS)
    assert result.report.verification.verdict is Verdict.OK, result.report.verification
    assert result.report.after.parameters == TABLE["t"].parameters
    assert result.model.range_constraints == before.range_constraints
