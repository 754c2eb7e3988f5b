"""Heads that run on several values at once, of which some are taken: what torch's exporters write of each way to take.

Invariant: `used` is how many of three layers the kept part depends on; nothing else may be left, and every size that
the original runs on gives the same.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto
from torch import Tensor, nn

from fixtures.judge import op_histogram
from fixtures.quiet import quiet
from rewriter import api
from tests.end_to_end.judging import noise, run

WIDTH, TOKENS, BATCH, LAYERS = 4, 5, 2, 3
HEAD = 2
"""Products in the head."""

Take = Callable[[Tensor], Tensor]


class Decoder(nn.Module):
    """Layers whose results a head reads joined along `axis` (None: stacked), and what `take` takes of the head's."""

    def __init__(self, take: Take, axis: int | None) -> None:
        super().__init__()
        self.take, self.axis = take, axis
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))
        self.head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        found: list[Tensor] = []
        for layer in self.layers:
            x = torch.tanh(layer(x))
            found.append(x)
        joined = torch.stack(found) if self.axis is None else torch.cat(found, self.axis)
        return self.take(self.head(joined))


class Crops(nn.Module):
    """A head of convolutions on two batches at once."""

    def __init__(self, take: Take) -> None:
        super().__init__()
        self.take = take
        self.one, self.two = nn.Conv2d(3, WIDTH, 3), nn.Conv2d(3, WIDTH, 3)
        self.head = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3), nn.BatchNorm2d(WIDTH), nn.PReLU(WIDTH), nn.MaxPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.one(x), self.two(x)])
        return self.take(self.head(both).mean((2, 3)))


def export(model: nn.Module, example: Tensor, form: Literal["legacy", "dynamo"], *, open_batch: bool) -> ModelProto:
    with TemporaryDirectory() as folder, torch.no_grad(), quiet():
        path = Path(folder) / "model.onnx"
        if form == "legacy":
            file, axes = io.BytesIO(), {"x": {0: "n"}} if open_batch else None
            torch.onnx.export(model.eval(), (example,), file, dynamo=False, opset_version=17, input_names=["x"],
                              output_names=["y"], dynamic_axes=axes)  # fmt: skip
            return onnx.load_from_string(file.getvalue())
        shapes = ({0: torch.export.Dim("n", min=2, max=64)},) if open_batch else None
        torch.onnx.export(model.eval(), (example,), str(path), dynamo=True, opset_version=18, input_names=["x"],
                          output_names=["y"], external_data=False, verbose=False, dynamic_shapes=shapes)  # fmt: skip
        return onnx.load(path)


def narrowed(model: ModelProto, shape: tuple[int, ...], *, open_batch: bool) -> tuple[dict[str, int], bool]:
    """The operators of the result, which computes the same, and whether a stack went."""
    result = api.apply(model, ["aux-prune"], verify=False)
    for images in (1, 2, 3, 5) if open_batch else (BATCH,):
        feeds = {"x": noise(images, *shape[1:], seed=images)}
        np.testing.assert_allclose(run(result.model, feeds)["y"], run(model, feeds)["y"], rtol=1e-5, atol=1e-6)
    return op_histogram(result.model), bool(result.report.decisions[0].stacks)


WAYS: dict[str, tuple[Take, int | None, int]] = {
    "one": (lambda y: y[1], None, 2),
    "a slice": (lambda y: y[1:2], None, 2),
    "two": (lambda y: y[:2], None, 2),
    "a slice of a slice": (lambda y: y[:-1][-1], None, 2),
    "unbind": (lambda y: y.unbind(0)[0], None, 1),
    "split": (lambda y: y.split(1, 0)[1].squeeze(0), None, 2),
    "chunk": (lambda y: y.chunk(3, 0)[1], None, 2),
    "a list": (lambda y: y[[1, 0]], None, 2),
    "tokens": (lambda y: y[:, TOKENS : 2 * TOKENS], 1, 2),
    "chunk of tokens": (lambda y: y.chunk(3, 1)[0], 1, 1),
    "some tokens": (lambda y: y[:, 6:8], 1, 2),
    "images": (lambda y: y[: y.shape[0] // 3], 0, 1),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("open_batch", [False, True])
def test_layers_go_of_which_nothing_is_taken(way: str, open_batch: bool) -> None:
    take, axis, used = WAYS[way]
    shape = (BATCH, TOKENS, WIDTH)
    model = export(Decoder(take, axis), torch.randn(shape), "legacy", open_batch=open_batch)
    ops, went = narrowed(model, shape, open_batch=open_batch)
    assert went and ops["MatMul"] == used + HEAD and ops["Tanh"] == used


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("open_batch", [False, True])
def test_layers_go_in_the_new_exporters_words(way: str, open_batch: bool) -> None:
    take, axis, used = WAYS[way]
    shape = (BATCH, TOKENS, WIDTH)
    model = export(Decoder(take, axis), torch.randn(shape), "dynamo", open_batch=open_batch)
    ops, went = narrowed(model, shape, open_batch=open_batch)
    assert went and ops["Tanh"] == used


@pytest.mark.parametrize("way", ["a mean", "a sum of two", "the largest", "a mirror", "three", "images in turn"])
def test_what_needs_every_layer_keeps_them(way: str) -> None:
    ways: dict[str, tuple[Take, int | None]] = {
        "a mean": (lambda y: y.mean(0), None),
        "a sum of two": (lambda y: y[0] + y[2] * y[1], None),
        "the largest": (lambda y: y.amax(0), None),
        "a mirror": (lambda y: y.flip(0)[0], None),
        "three": (lambda y: y[:3], None),
        "images in turn": (lambda y: y.view(-1, LAYERS, TOKENS, WIDTH)[:, 0], 0),
    }
    take, axis = ways[way]
    shape = (BATCH, TOKENS, WIDTH)
    model = export(Decoder(take, axis), torch.randn(shape), "legacy", open_batch=False)
    ops, went = narrowed(model, shape, open_batch=False)
    assert not went and ops["Tanh"] == LAYERS


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("open_batch", [False, True])
def test_images_of_a_batch_do_not_meet(part: int, open_batch: bool) -> None:
    shape = (BATCH, 3, 12, 12)
    model = export(Crops(lambda y: y.chunk(2)[part]), torch.randn(shape), "legacy", open_batch=open_batch)
    ops, went = narrowed(model, shape, open_batch=open_batch)
    assert went and ops["Conv"] == 2 and "Concat" not in ops
