"""Kernels that the graph computes: by torch's own exporters in every form, and what must never pass for a constant.

The families of `fixtures.families.computed` are judged in test_families; here are the other ways to compute a kernel,
and the traps.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from fixtures.judge import op_histogram
from fixtures.quiet import quiet
from rewriter import api
from rewriter.checking.record import Verdict
from tests.end_to_end.judging import noise, relative, run

FORMS = ("legacy", "legacy-bn", "dynamo", "dynamo-plain")
INPUTS, OUTPUTS = 4, 6


class Standardised(nn.Conv2d):
    """As timm writes it: the kernel is the batch of a norm in training mode."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        kernel = functional.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6)
        return functional.conv2d(x, kernel.reshape_as(self.weight), self.bias)


class ScaledStandardised(nn.Conv2d):
    """NFNet's (2101.08692): a gain per channel, and a factor."""

    def __init__(self, *sizes: int):
        super().__init__(*sizes)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        flat, gain = self.weight.reshape(1, self.out_channels, -1), (self.gain * 0.3).view(-1)
        kernel = functional.batch_norm(flat, None, None, weight=gain, training=True, momentum=0.0, eps=1e-6)
        return functional.conv2d(x, kernel.reshape_as(self.weight), self.bias)


class StoredInHalf(nn.Conv2d):
    """A float16 kernel that is cast where it is used."""

    def __init__(self, *sizes: int):
        super().__init__(*sizes)
        self.register_buffer("small", self.weight.detach().half())
        del self.weight

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.small.float(), self.bias)


class Blended(nn.Conv2d):
    """A softmax over parameters weighs four kernels: constant, where CondConv's weights depend on the data."""

    def __init__(self, *sizes: int):
        super().__init__(*sizes)
        self.bank = nn.Parameter(torch.randn(4, *self.weight.shape))
        self.logits = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        kernel = torch.einsum("n,noihw->oihw", torch.softmax(self.logits, 0), self.bank)
        return functional.conv2d(x, torch.tril(torch.ones(3, 3)) * kernel, self.bias)


class Shrunk(nn.Conv2d):
    """Magnitudes below a stored threshold are cut to zero."""

    def forward(self, x: Tensor) -> Tensor:
        kernel = torch.where(self.weight.abs() > 0.05, self.weight, torch.zeros(()))
        return functional.conv2d(x, kernel.clamp(-0.15, 0.15), self.bias)


def weight_norm(*sizes: int) -> nn.Module:
    return parametrizations.weight_norm(nn.Conv2d(*sizes))


def spectral_norm(*sizes: int) -> nn.Module:
    return parametrizations.spectral_norm(nn.Conv2d(*sizes))


LAYERS: tuple[Callable[..., nn.Module], ...] = (
    Standardised, ScaledStandardised, StoredInHalf, Blended, Shrunk, weight_norm, spectral_norm,
)  # fmt: skip
UNWRITTEN = {("spectral_norm", "legacy"), ("spectral_norm", "legacy-bn")}  # torch has no symbol for vdot there


def written(layer: Callable[..., nn.Module], form: str) -> tuple[ModelProto, nn.Module]:
    torch.manual_seed(0)
    model = nn.Sequential(layer(INPUTS, OUTPUTS, 3), nn.BatchNorm2d(OUTPUTS), nn.ReLU()).eval()
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 1.5)
    x, file = torch.zeros(1, INPUTS, 7, 6), io.BytesIO()
    options: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"]}
    with torch.no_grad(), quiet():
        if form.startswith("dynamo"):
            program = torch.onnx.export(
                model, (x,), dynamo=True, opset_version=18, optimize=form == "dynamo", verbose=False, **options
            )
            assert program is not None
            return program.model_proto, model
        mode = torch.onnx.TrainingMode
        keep = form == "legacy-bn"
        options |= {"training": mode.PRESERVE if keep else mode.EVAL, "do_constant_folding": not keep}
        torch.onnx.export(model, (x,), file, dynamo=False, opset_version=17, **options)
    return onnx.load_from_string(file.getvalue()), model


CASES = [
    pytest.param(layer, form, id=f"{layer.__name__}-{form}", marks=[] if "-" in form else [pytest.mark.slow])
    for layer in LAYERS
    for form in FORMS
    if (layer.__name__, form) not in UNWRITTEN
]


@pytest.mark.parametrize(("layer", "form"), CASES)
def test_a_norm_behind_a_computed_kernel_folds_into_one_stored_kernel(
    layer: Callable[..., nn.Module], form: str
) -> None:
    before, module = written(layer, form)
    result = api.apply(before, ["conv-bn"], verify=form == "legacy-bn")
    assert op_histogram(result.model) == {"Conv": 1, "Relu": 1} or form == "dynamo"  # which may have done it itself
    stored = sum(prod(tensor.dims) for tensor in result.model.graph.initializer)
    assert stored == OUTPUTS * (INPUTS * 9 + 1)
    if form == "legacy-bn":
        assert result.report.verification.verdict is Verdict.OK
    x = noise(1, INPUTS, 7, 6, seed=3)
    with torch.no_grad():
        wanted = module(torch.from_numpy(x)).numpy()
    assert relative(run(result.model, {"x": x})["y"], wanted) <= 2e-6


# --- traps -----------------------------------------------------------------------------------------------------------


def net(*nodes: NodeProto, ir: int = 8, **tensors: Any) -> ModelProto:
    """`nodes` compute k, the kernel of a convolution with a norm behind it."""
    rest = {name: np.random.default_rng(0).uniform(0.5, 1.5, 2).astype(np.float32) for name in "sbmv"}
    tensors = {"w": np.random.default_rng(1).normal(size=(2, 3, 1, 1)).astype(np.float32)} | rest | tensors
    graph = helper.make_graph(
        [
            *nodes,
            helper.make_node("Conv", ["x", "k"], ["c"], name="conv"),
            helper.make_node("BatchNormalization", ["c", *"sbmv"], ["y"], name="norm"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 4, 5])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=ir)


def op(kind: str, reads: str, makes: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, reads.split(), makes.split(), name=makes, **attributes)


def endless() -> NodeProto:
    """A Loop of 2^40 trips that hands the kernel round."""
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [op("Identity", "go", "on"), op("Neg", "held", "next")],
        "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("held", TensorProto.FLOAT, None)],
        [info("on", TensorProto.BOOL, []), info("next", TensorProto.FLOAT, None)],
    )
    return helper.make_node("Loop", ["trips", "", "w"], ["k"], name="k", body=body)


def overridable() -> ModelProto:
    model = net(op("Neg", "w", "k"))
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 3, 1, 1]))
    return model


GATE = [op("ReduceMean", "x", "mean"), op("Sigmoid", "mean", "gate"), op("Mul", "w gate", "k")]
CHANCE = [op("RandomNormalLike", "w", "r"), op("Mul", "w r", "k")]
WIDE = [op("Expand", "w extents", "wide"), op("ReduceMean", "wide", "k", axes=[0], keepdims=0)]
HALF = [op("Cast", "w", "h", to=10), op("Mul", "h big", "o"), op("Mul", "o tiny", "t"), op("Cast", "t", "k", to=1)]
MASK = [
    op("ReduceMean", "w", "mean"),
    op("Greater", "w mean", "on"),
    op("Cast", "on", "f", to=1),
    op("Mul", "w f", "k"),
]
INFINITE = "its weight (k) holds values that are not finite"
TRAPS: dict[str, tuple[ModelProto, str]] = {
    "of the data": (net(*GATE), "its weight is not a constant"),
    "random": (net(*CHANCE), "its weight is computed, but it is random"),
    "overridable": (overridable(), "its weight is not a constant"),
    "endless": (net(endless(), trips=np.int64(1 << 40)), "its weight is computed, but Loop is not evaluated"),
    "too large": (
        net(*WIDE, extents=np.int64([1 << 24, 2, 3, 1, 1])),
        "its weight is computed, but it has 100,663,296 elements, more than 67,108,864",
    ),
    "infinite": (net(op("Div", "w zero", "k"), zero=np.float32(0)), INFINITE),
    "no number": (net(op("Sqrt", "w", "k")), INFINITE),
    "overflow in float16": (net(*HALF, big=np.float16(65000), tiny=np.float16(1e-4)), INFINITE),
    "jumps": (
        net(*MASK),
        "its weight is computed, but Greater jumps, on numbers that differ between runtimes in the last digits",
    ),
}


@pytest.mark.parametrize("name", TRAPS)
def test_what_is_no_constant_stays_and_says_why(name: str, tmp_path: Path) -> None:
    model, reason = TRAPS[name]
    source = tmp_path / "before.onnx"
    onnx.save(model, source)
    result = api.apply(source, ["all"], verify=False)
    assert not result.report.changed
    assert result.save(tmp_path / "after.onnx").read_bytes() == source.read_bytes()
    assert any(reason in refusal.detail for refusal in api.find(model, ["conv-bn"]) if hasattr(refusal, "detail"))


def test_the_fold_map_names_the_stored_tensors_behind_a_computed_kernel() -> None:
    before, _ = written(weight_norm, "dynamo-plain")
    report = api.apply(before, ["conv-bn"], verify=False).report
    (kernel,) = [fold for match in report.matches for fold in match.tensors if not fold.tensor.endswith(".bias")]
    stored = {tensor.name for tensor in before.graph.initializer}
    assert set(kernel.sources) <= stored
    assert sum("original" in name for name in kernel.sources) == 2  # the direction and the length
    assert report.before.parameters == OUTPUTS * (INPUTS * 9 + 1 + 1 + 2)  # these, the bias, and the norm's two
    assert report.after.parameters == OUTPUTS * (INPUTS * 9 + 1)
