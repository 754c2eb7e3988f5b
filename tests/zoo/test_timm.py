"""timm's re-parameterizable models, from the ONNX alone, against timm's own conversion: a judge none of us wrote.

Norms get random statistics, scales and shifts, so that a fold that drops one cannot pass. timm's own module count of
convolutions and norms is the bound; the outputs are held against the original's on a runtime with optimisation off.
"""

from __future__ import annotations

import io
from typing import Any

import onnx
import pytest
import torch
from onnx import ModelProto
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fixtures.judge import op_histogram
from rewriter import api
from tests.end_to_end.judging import relative, run

timm = pytest.importorskip("timm", reason="needs the zoo extra")

LIMIT = 1e-5  # of the largest value, float32 through the whole net; folds dropped or doubled are off by 1e-2 and more
QUICK = ("repvgg_a0", "mobileone_s0")


def randomised(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
    return model


def exported(model: nn.Module, image: torch.Tensor, *, keep_norms: bool) -> ModelProto:
    buffer = io.BytesIO()
    mode = torch.onnx.TrainingMode
    options: dict[str, Any] = {"training": mode.PRESERVE if keep_norms else mode.EVAL}
    torch.onnx.export(
        model, (image,), buffer, dynamo=False, opset_version=17, do_constant_folding=not keep_norms, **options
    )
    return onnx.load_from_string(buffer.getvalue())


@pytest.mark.parametrize("form", ["legacy", "legacy-bn"])
@pytest.mark.parametrize("name", QUICK)
def test_no_more_convolutions_and_norms_than_timm_leaves(name: str, form: str) -> None:
    from timm.utils.model import reparameterize_model

    model, image = randomised(name), torch.randn(1, 3, 64, 64)
    theirs = list(reparameterize_model(model).modules())
    before = exported(model, image, keep_norms=form == "legacy-bn")
    after = api.apply(before, ["deploy"], verify=False).model
    counts = op_histogram(after)
    assert counts.get("Conv", 0) <= sum(isinstance(module, nn.Conv2d) for module in theirs)
    assert counts.get("BatchNormalization", 0) <= sum(isinstance(module, _BatchNorm) for module in theirs)
    feeds = {before.graph.input[0].name: image.numpy()}
    wanted = run(before, feeds)
    assert all(relative(value, wanted[key]) <= LIMIT for key, value in run(after, feeds).items())
