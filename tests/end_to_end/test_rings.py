"""A layer's bias around its map, in every way of writing it that torch's own exporters hand on.

The judge is torch: what is left of the model is held against the module itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import pytest
import torch
from onnx import ModelProto, load_from_string
from torch import Tensor, nn
from torch.nn import functional

from fixtures.families.exports import dynamo, legacy
from fixtures.judge import op_histogram
from fixtures.quiet import quiet
from rewriter import api
from rewriter.checking.record import Verdict
from tests.end_to_end.judging import relative, run

SHAPE = (2, 3, 9, 11)
LIMIT = 2e-6  # of the largest value


def sliced(y: Tensor, ring: Tensor, mask: Tensor) -> Tensor:
    y = functional.pad(y, (1, 1, 1, 1))
    y[..., 0], y[..., -1] = ring[..., 0], ring[..., 0]
    y[:, :, 0], y[:, :, -1] = ring[..., 0], ring[..., 0]
    return y


def joined(y: Tensor, ring: Tensor, mask: Tensor) -> Tensor:
    row = ring.expand(len(y), -1, 1, y.shape[3])
    y = torch.cat([row, y, row], 2)
    column = ring.expand(len(y), -1, y.shape[2], 1)
    return torch.cat([column, y, column], 3)


def masked(y: Tensor, ring: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, functional.pad(y, (1, 1, 1, 1)), ring)


def moved(y: Tensor, ring: Tensor, mask: Tensor) -> Tensor:
    return functional.pad(y - ring, (1, 1, 1, 1)) + ring


WRITINGS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    f.__name__: f for f in (sliced, joined, masked, moved)
}
CASES = [
    pytest.param(name, form, id=f"{name}-{form}", marks=[pytest.mark.slow] if form == "dynamo" else [])
    for name in WRITINGS
    for form in ("legacy", "dynamo")
]


class Ringed(nn.Module):
    """Two layers with a ring between them, beside a third."""

    def __init__(self, writing: str, off: float = 0.0):
        super().__init__()
        self.write, self.off = WRITINGS[writing], off
        self.first, self.second, self.beside = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3), nn.Conv2d(3, 4, 3, padding=1)
        inside = torch.ones(1, 1, *SHAPE[2:], dtype=torch.bool)
        self.register_buffer("mask", functional.pad(inside, (1, 1, 1, 1)))

    def forward(self, x: Tensor) -> Tensor:
        assert self.first.bias is not None and isinstance(self.mask, Tensor)
        ring = self.write(self.first(x), self.first.bias.view(1, -1, 1, 1) + self.off, self.mask)
        return functional.relu(self.second(ring) + self.beside(x))


def exported(writing: str, form: str, off: float = 0.0, axes: Collection[int] = ()) -> tuple[nn.Module, ModelProto]:
    with torch.random.fork_rng(devices=[]), torch.no_grad(), quiet():
        torch.manual_seed(0)
        model, x = Ringed(writing, off).eval(), torch.randn(SHAPE)
        written = (
            legacy(model, x, keep_norms=False)
            if form == "legacy"
            else dynamo(model, x, optimise=form == "dynamo", axes=axes)
        )
    return model, load_from_string(written)


@pytest.mark.parametrize(("writing", "form"), CASES)
def test_the_block_becomes_one_convolution(writing: str, form: str) -> None:
    module, before = exported(writing, form)
    result = api.apply(before, ["collapse"])
    assert op_histogram(result.model) == {"Conv": 1, "Relu": 1}
    assert result.report.verification.verdict is Verdict.OK
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert relative(run(result.model, {"x": x.numpy()})["y"], module(x).numpy()) <= LIMIT


@pytest.mark.parametrize("writing", ["sliced", "joined", "masked"])
def test_a_ring_that_is_off_by_little_stays(writing: str) -> None:
    _, before = exported(writing, "legacy", off=3e-6)
    result = api.apply(before, ["collapse"], verify=False)
    assert op_histogram(result.model)["Conv"] == 3
    assert any("around the image" in refusal.detail for refusal in result.report.refusals)


@pytest.mark.parametrize("form", ["dynamo", pytest.param("dynamo-plain", marks=pytest.mark.slow)])
def test_what_is_written_by_single_indices_around_an_image_of_any_size(form: str) -> None:
    module, before = exported("sliced", form, axes=(0, 2, 3))
    result = api.apply(before, ["collapse"])
    assert op_histogram(result.model) == {"Conv": 1, "Relu": 1}
    assert result.report.verification.verdict is Verdict.OK
    for shape in (SHAPE, (1, 3, 1, 1), (3, 3, 20, 2)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            assert relative(run(result.model, {"x": x.numpy()})["y"], module(x).numpy()) <= LIMIT
