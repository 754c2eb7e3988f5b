"""torchvision's models with auxiliary classifiers, in disguise: what is removed is what its own eval mode leaves out.

The judge is torchvision: parameters of its auxiliary modules, and the outputs of its main ones.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto
from torch import nn

from fixtures.disguise import disguised
from fixtures.judge import count_params
from rewriter import api
from tests.end_to_end.judging import run

torchvision = pytest.importorskip("torchvision", reason="needs the zoo extra")

CASES = {  # name: how it is made, image size, names of its auxiliary modules
    "fcn_resnet50": ("segmentation", 64, ("aux_classifier",)),
    "deeplabv3_resnet50": ("segmentation", 64, ("aux_classifier",)),
    "deeplabv3_mobilenet_v3_large": ("segmentation", 64, ("aux_classifier",)),
    "googlenet": ("classification", 256, ("aux1", "aux2")),
    "inception_v3": ("classification", 299, ("AuxLogits",)),
}
SHUFFLED = (1, 2)


def built(name: str) -> nn.Module:
    """Eval mode for every module, training mode for the outputs."""
    torch.manual_seed(0)
    if CASES[name][0] == "segmentation":
        make: Callable[..., nn.Module] = getattr(torchvision.models.segmentation, name)
        return randomised(make(weights=None, weights_backbone=None, aux_loss=True))
    model = randomised(getattr(torchvision.models, name)(weights=None, aux_logits=True, init_weights=False))
    model.training = True
    return model


@torch.no_grad()
def randomised(model: nn.Module) -> nn.Module:
    """Norms that differ: exporters store equal tensors once, and then the heads share them."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.1)
    return model.eval()


def exported(model: nn.Module, image: torch.Tensor) -> ModelProto:
    buffer = io.BytesIO()
    options: dict[str, Any] = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
    torch.onnx.export(model, (image,), buffer, dynamo=False, opset_version=17, **options)
    return onnx.load_from_string(buffer.getvalue())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_auxiliary_classifiers_go(name: str) -> None:
    model = built(name)
    _, size, auxiliary = CASES[name]
    image = torch.randn(1, 3, size, size)
    before = exported(model, image)
    gone = sum(p.numel() for module in auxiliary for p in model.get_submodule(module).parameters())
    main = before.graph.output[0].name
    for seed in SHUFFLED:
        hidden = disguised(before, seed, shuffle_outputs=True)
        result = api.apply(hidden.model, ["aux-prune"], verify=False)
        assert [o.name for o in result.model.graph.output] == [hidden.names[main]]
        assert count_params(before) - count_params(result.model) == gone
        feeds = {result.model.graph.input[0].name: image.numpy()}
        (found,) = run(result.model, feeds).values()
        wanted = run(hidden.model, feeds)[hidden.names[main]]
        np.testing.assert_array_equal(found, wanted)
