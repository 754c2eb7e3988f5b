"""The same patterns on the same nets, as exported programs, these in core operators, and as traced modules: as much is
left as on ONNX.

What is wanted comes from the families' definitions, to which the ONNX forms are held by tests of their own; the judge
of the numbers is the module itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import fx

import rewriter
from fixtures.families import FAMILIES
from fixtures.families.exports import sample
from rewriter.checking.record import Verdict
from tests.torch_graphs.nets import exported

LIMIT = 2e-6
pytestmark = pytest.mark.filterwarnings("ignore")  # of torch about itself

FALLS_SHORT = {
    ("core", "repbn"): "what torch makes of it in core operators does not run",
    ("fx", "acnet-cropped"): "it cuts by sizes that are read at run time",
    ("fx", "spectral-norm"): "the layer has a hook",
    ("fx", "levit"): "it reads a value for its size",
}
UNTRACEABLE = {"dbb", "ecb", "edbb", "plainusr"}  # they write into slices, or ask for sizes: symbols cannot

NAMES = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), "Conv"),
    **dict.fromkeys(("conv_transpose2d", "convtranspose2d"), "ConvTranspose"),
    **dict.fromkeys(("batch_norm", "batchnorm1d", "batchnorm2d"), "BatchNormalization"),
    "_native_batch_norm_legit_no_training": "BatchNormalization",
    **dict.fromkeys(("max_pool2d", "maxpool2d", "max_pool2d_with_indices"), "MaxPool"),
    **{"relu": "Relu", "add": "Add", "mul": "Mul", "cat": "Concat", "matmul": "MatMul", "linear": "Gemm"},
}
UNCOUNTED = frozenset({"view", "reshape", "flatten", "permute", "transpose", "unsqueeze", "getitem", "identity"})
FAST = frozenset(
    {"repvgg", "qarepvgg", "mobileone", "repvit", "repcpe", "sesr", "rmnet", "lora", "norm-before-padding"}
)


def _case(form: str, name: str) -> Any:
    marks = [] if form == "export" or name in FAST else [pytest.mark.slow]
    if (form, name) in FALLS_SHORT:
        marks.append(pytest.mark.xfail(reason=FALLS_SHORT[form, name], strict=True))
    return pytest.param(form, name, id=f"{name}-{form}", marks=marks)


CASES = [
    _case(form, name)
    for form in ("export", "core", "fx")
    for name in FAMILIES
    if form != "fx" or name not in UNTRACEABLE
]


def counted(ops: tuple[tuple[str, int], ...]) -> dict[str, int]:
    """By the names of ONNX."""
    return {NAMES.get(op, op): count for op, count in ops if op not in UNCOUNTED}


def one_layer(expected: dict[str, int]) -> dict[str, int]:
    """A product with its bias is one layer of torch.nn."""
    if "MatMul" not in expected:
        return expected
    rest = {**expected, "Gemm": expected["MatMul"], "Add": expected.get("Add", 0) - expected["MatMul"]}
    return {op: count for op, count in rest.items() if op != "MatMul" and count}


def in_core(expected: Mapping[str, int]) -> dict[str, int]:
    """Core operators have one word for both kinds of convolution."""
    both = expected.get("Conv", 0) + expected.get("ConvTranspose", 0)
    rest = {op: count for op, count in expected.items() if op not in ("Conv", "ConvTranspose")}
    return {**rest, "Conv": both} if both else rest


@pytest.mark.parametrize(("form", "name"), CASES)
def test_what_is_left_is_what_the_definition_says(form: str, name: str) -> None:
    family, net = FAMILIES[name], FAMILIES[name].build()
    given = fx.symbolic_trace(net) if form == "fx" else net
    if form == "core":
        result = rewriter.apply(exported(net, sample(name)).run_decompositions(), ["deploy"])
    else:
        result = rewriter.apply(given, ["deploy"], example_inputs=sample(name))
    expected = in_core(family.expected) if form == "core" else dict(family.expected)
    assert counted(result.report.after.ops) in (expected, one_layer(expected))
    assert not family.stays or family.stays in {refusal.code for refusal in result.report.refusals}
    assert result.report.verification.verdict is Verdict.OK, result.report.verification
    x = sample(name, seed=2)
    with torch.no_grad():
        found, wanted = (result.model.module() if form == "core" else result.model)(x), net(x)
    assert (found - wanted).abs().max() <= LIMIT * wanted.abs().max()
