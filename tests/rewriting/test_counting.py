"""Figures at sizes that somebody says, against those of a model that declares them."""

from __future__ import annotations

import pytest
from onnx import ModelProto

import rewriter
from rewriter.errors import UsageError
from rewriter.reporting import markdown
from tests.rewriting.small_models import CHANNELS, SIZE, SmallNet

HIGH, WIDE = SIZE
AT = {"x": (1, CHANNELS, HIGH, WIDE)}
KERNELS = CHANNELS * CHANNELS * (9 + 1) * HIGH * WIDE


def block(*, open_sizes: bool) -> ModelProto:
    net = SmallNet()
    net.block("x", "y")
    model = net.model("y")
    if open_sizes:
        for info in (*model.graph.input, *model.graph.output):
            for axis, named in ((0, "batch"), (2, "high"), (3, "wide")):
                info.type.tensor_type.shape.dim[axis].dim_param = named
    return model


def test_inspect_counts_for_the_sizes_that_are_said() -> None:
    open_, closed = block(open_sizes=True), rewriter.inspect(block(open_sizes=False))
    assert rewriter.inspect(open_).totals.multiply_adds is None
    found = rewriter.inspect(open_, shapes=AT)
    assert found.totals.multiply_adds == closed.totals.multiply_adds == KERNELS
    assert found.totals.at == (("x", AT["x"]),) and closed.totals.at == ()
    assert found.outputs == closed.outputs
    twice = {"x": (2, CHANNELS, HIGH, 2 * WIDE)}
    assert rewriter.inspect(open_, shapes=twice).totals.multiply_adds == 4 * KERNELS


def test_apply_counts_for_the_sizes_that_are_said_whatever_inputs_are_called() -> None:
    report = rewriter.apply(block(open_sizes=True), ["repconv"], shapes=AT, rename={"x": "image"}).report
    assert (report.before.at, report.after.at) == ((("x", AT["x"]),), (("image", AT["x"]),))
    assert report.before.multiply_adds == KERNELS
    assert report.after.multiply_adds == KERNELS * 9 // 10
    assert "| multiply-adds at x 1x4x6x5 |" in markdown.to_markdown(report)


@pytest.mark.parametrize(
    ("shape", "said"),
    [({"y": (1, 4, 6, 5)}, "no input 'y'"), ({"x": (1, 3, 6, 5)}, "not 1x3x6x5"), ({"x": (1, 4, 6)}, "not 1x4x6")],
)
def test_sizes_that_do_not_fit_are_refused_before_anything_is_done(
    shape: dict[str, tuple[int, ...]], said: str
) -> None:
    for call in (rewriter.inspect, lambda model, shapes: rewriter.apply(model, shapes=shapes, verify=False)):
        with pytest.raises(UsageError, match=said):
            call(block(open_sizes=True), shapes=shape)
