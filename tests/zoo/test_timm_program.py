"""timm's re-parameterizable models through torch.export: no more convolutions and norms than timm's own conversion."""

from __future__ import annotations

import pytest
import torch

import rewriter
from tests.torch_graphs.nets import exported, operators

pytest.importorskip("timm", reason="needs the zoo extra")

from fixtures.zoo import built, facts, images

RMS = 2.0  # times the error that the original has itself in float32
pytestmark = pytest.mark.filterwarnings("ignore")  # of torch about itself

MODELS = [
    "repghostnet_050",
    *[
        pytest.param(name, marks=pytest.mark.slow)
        for name in (
            "repvgg_a0", "mobileone_s0", "repvit_m0_9", "fastvit_t8", "lcnetv2_small", "shvit_s1", "levit_128s",
            "ghostnetv3_050", "efficientvit_m0",
        )
    ],
]  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_no_more_convolutions_and_norms_than_timm_leaves(name: str) -> None:
    known = facts(name)
    before = exported(built(name), images(name, 1))
    after = rewriter.apply(before, ["deploy"], verify=False).model
    ops = operators(after)
    assert sum(count for op, count in ops.items() if op.startswith("conv")) <= known.convolutions
    assert ops.get("batch_norm", 0) <= known.norms
    exact = torch.from_numpy(known.exact)
    with torch.no_grad():
        own, found = (
            torch.cat([model.module()(image[None]) for image in torch.from_numpy(known.images)]).double() - exact
            for model in (before, after)
        )
    assert found.square().mean().sqrt() <= RMS * own.square().mean().sqrt()
