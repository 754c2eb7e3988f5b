"""The comparison of two programs: right folds pass where the net makes much of rounding, wrong ones do not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import rewriter
from rewriter.checking.record import Verdict
from rewriter.torch_graphs.running import Program
from rewriter.torch_graphs.verification import verify
from tests.torch_graphs.nets import Net, RepVGG, exported, image, settled

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch about itself


@pytest.mark.parametrize("block", [RepVGG(), RepVGG().dense], ids=["block", "layer"])
def test_norms_of_the_image_make_much_of_rounding_on_constant_images(block: nn.Module) -> None:
    net = settled(nn.Sequential(block, nn.InstanceNorm2d(8)))
    result = rewriter.apply(net, ["repconv", "conv-bn"], example_inputs=image(2, 8, 12, 10))
    assert len(result.report.matches) == 1 and result.report.verification.verdict is Verdict.OK


@pytest.mark.parametrize("norm", [nn.Identity(), nn.InstanceNorm2d(8)], ids=["plain", "normed"])
def test_one_wrong_weight_is_seen(norm: nn.Module) -> None:
    before = exported(settled(nn.Sequential(Net(), norm)), image(2, 8, 12, 10))
    after = copy.deepcopy(before)
    with torch.no_grad():
        after.state_dict["0.one.dense.0.weight"][0, 0, 1, 1] *= 1.01
    assert verify(Program(before), Program(before), lambda text: None).verdict is Verdict.OK
    assert verify(Program(before), Program(after), lambda text: None).verdict is Verdict.FAILED
