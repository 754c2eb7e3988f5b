"""timm's re-parameterizable models, from the ONNX alone, against timm's own conversion: a judge none of us wrote.

timm's count of convolutions and norms is the bound, in every form that torch's exporters write. The outputs are held
against the model in float64 by torch: the RMS error of an image is at most twice the original's own. Through a deep net
both are single draws of the same noise, and the image where a gate stands on its edge decides a mean; so it is the
median of the images that is bounded.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from fixtures.judge import op_histogram
from rewriter import api
from tests.end_to_end.judging import run

pytest.importorskip("timm", reason="needs the zoo extra")

from fixtures.zoo import FORMS, Form, exported, facts

RMS, LARGEST = 2.0, 4.0  # times the error that the original has itself in float32

QUICK: tuple[tuple[str, Form], ...] = (
    ("repvgg_a0", "legacy-bn"),
    ("repvgg_a0", "dynamo"),
    ("mobileone_s0", "legacy"),
    ("repghostnet_050", "legacy-bn"),
    ("repvit_m0_9", "legacy-bn"),
    ("fastvit_t8", "legacy"),
    ("lcnetv2_small", "legacy-bn"),
    ("shvit_s1", "dynamo-raw"),
)
MODELS = (
    "repvgg_a0",
    "repvgg_b1g4",
    "repvgg_d2se",
    "mobileone_s0",
    "mobileone_s4",
    "repvit_m0_9",
    "repvit_m1",
    "fastvit_t8",
    "fastvit_sa12",
    "fastvit_mci0",
    "repghostnet_050",
    "ghostnetv3_050",
    "lcnetv2_small",
    "levit_128s",
    "levit_conv_128s",
    "tiny_vit_5m_224",
    "shvit_s1",
    "efficientvit_m0",
    "efficientvim_m1",
    "iformer_t",
    "nextvit_small",
)


def cases() -> list[object]:
    """Every model in every form, all but the quick ones marked slow."""
    slow = pytest.mark.slow
    return [
        pytest.param(name, form, marks=[] if (name, form) in QUICK else [slow], id=f"{name}-{form}")
        for name in MODELS
        for form in FORMS
    ]


@pytest.mark.parametrize(("name", "form"), cases())
def test_no_more_convolutions_and_norms_than_timm_leaves(name: str, form: Form) -> None:
    known, before = facts(name), onnx.load(str(exported(name, form)))
    after = api.apply(before, ["deploy"], verify=False).model
    found, own = (error(outputs(model, known.images), known.exact) for model in (after, before))
    assert np.median(rms(found) / rms(own)) <= RMS
    assert found.max() <= LARGEST * own.max()
    counts = op_histogram(after)
    assert counts.get("Conv", 0) <= known.convolutions
    assert counts.get("BatchNormalization", 0) <= known.norms


def outputs(model: ModelProto, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the model gives for each image by itself."""
    entry = model.graph.input[0].name
    return np.concatenate([next(iter(run(model, {entry: image[None]}).values())) for image in images])


def error(found: NDArray[np.float32], exact: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.abs(found.astype(np.float64) - exact)


def rms(errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each image."""
    return np.sqrt((errors**2).reshape(len(errors), -1).mean(1))
