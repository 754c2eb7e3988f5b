"""Rings that are written in place into slices: they fold where every write comes before every read, and nowhere else.

Beside every case that folds stand those that must not; these come out as they went in but for the norm behind them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import rewriter
from rewriter.checking.record import Verdict
from tests.torch_graphs.nets import exported, image, in_double, operators, same, settled

END = (1 << 63) - 1
aten = torch.ops.aten
pytestmark = pytest.mark.filterwarnings("ignore")  # of torch about itself


class Ringed(nn.Module):
    """A 1x1, room around it that a function writes into, a 3x3, and a layer with a norm, which folds in any case."""

    def __init__(self, function: Callable[[Ringed, Tensor], Any], around: int = 1) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 2 * around + 1)
        self.third, self.norm = nn.Conv2d(5, 5, 1, groups=5), nn.BatchNorm2d(5)
        self.around, self.function = around, function

    @property
    def ring(self) -> Tensor:
        assert self.first.bias is not None
        return self.first.bias.view(1, -1, 1, 1)

    def padded(self, x: Tensor) -> Tensor:
        return functional.pad(self.first(x), (self.around,) * 4)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def rest(net: Ringed, y: Tensor) -> Tensor:
    return net.norm(net.third(torch.relu(net.second(y))))


def rows_and_columns(net: Ringed, x: Tensor) -> Tensor:
    y, n = net.padded(x), net.around
    y[:, :, :n] = net.ring
    y[:, :, -n:] = net.ring
    y[..., :n] = net.ring
    y[..., -n:] = net.ring
    return rest(net, y)


def by_select(net: Ringed, x: Tensor) -> Tensor:
    y = net.padded(x)
    for place in (0, -1):
        y[:, :, place] = net.ring[..., 0]
        y[..., place] = net.ring[..., 0]
    return rest(net, y)


def by_narrow(net: Ringed, x: Tensor) -> Tensor:
    y = net.padded(x)
    for axis in (2, 3):
        for start in (0, y.shape[axis] - 1):
            run = y.narrow(axis, start, 1)
            run.copy_(net.ring.expand_as(run))
    return rest(net, y)


def behind_whole_slices(net: Ringed, x: Tensor) -> Tensor:
    """As exporters wrote them up to torch 2.8."""
    y = net.padded(x)
    for axis, start in ((2, 0), (2, -1), (3, 0), (3, -1)):
        whole = aten.slice.Tensor(aten.slice.Tensor(y, 0, 0, END), 1, 0, END)
        run = aten.slice.Tensor(whole, axis, start, END if start else 1)
        run.copy_(net.ring.expand_as(run))
    return rest(net, y)


def one_over_another(net: Ringed, x: Tensor) -> Tensor:
    """Zeros first, which nothing is left to be seen of."""
    y = net.padded(x)
    y[:, :, :1] = 0 * net.ring
    return all_sides(net, y)


def all_sides(net: Ringed, y: Tensor) -> Tensor:
    for axis in (2, 3):
        for start in (0, -1):
            run = aten.slice.Tensor(y, axis, start, END if start else 1)
            run.copy_(net.ring.expand_as(run))
    return rest(net, y)


FOLDS = [rows_and_columns, by_select, by_narrow, behind_whole_slices, one_over_another]


@pytest.mark.parametrize("function", FOLDS, ids=lambda f: f.__name__)
@torch.no_grad()
def test_a_ring_of_what_the_layer_gives_of_nothing_folds(function: Callable[[Ringed, Tensor], Tensor]) -> None:
    net, x = settled(Ringed(function)), image(2, 3, 6, 7)
    before = exported(net, x)
    given = str(before.graph)
    result = rewriter.apply(before, ["deploy"])
    assert operators(result.model) == {"conv2d": 2, "relu": 1}
    assert result.report.verification.verdict is Verdict.OK
    assert same(in_double(result.model, x), in_double(before, x), 1e-6)  # folded in double, stored in float32
    assert str(before.graph) == given


@pytest.mark.parametrize(("function", "around"), [(rows_and_columns, 1), (rows_and_columns, 2), (by_select, 1)])
@torch.no_grad()
def test_a_wider_ring_and_core_operators_fold_too(function: Callable[[Ringed, Tensor], Tensor], around: int) -> None:
    """Core operators choose single rows by a condition that they compute of numbers alone."""
    net, x = settled(Ringed(function, around)), image(2, 3, 6, 7)
    before = exported(net, x).run_decompositions()
    assert {"slice_scatter", "where"} & operators(before).keys()
    after = rewriter.apply(before, ["deploy"]).model
    assert operators(after) == {"convolution": 2, "relu": 1}
    assert same(in_double(after, x), in_double(before, x), 1e-6)


@pytest.mark.parametrize("core", [False, True], ids=["as-exported", "core"])
@torch.no_grad()
def test_images_of_any_size_are_ringed_alike(core: bool) -> None:
    net, x = settled(Ringed(rows_and_columns)), image(2, 3, 6, 7)
    before = exported(net, x, dynamic_shapes=({axis: torch.export.Dim.AUTO for axis in (0, 2, 3)},))
    before = before.run_decompositions() if core else before
    after = rewriter.apply(before, ["deploy"]).model
    assert operators(after) == {"convolution" if core else "conv2d": 2, "relu": 1}
    for shape in ((2, 3, 6, 7), (4, 3, 3, 19), (2, 3, 1, 1)):
        assert same([after.module()(image(*shape))], [net(image(*shape))], 2e-6)


@torch.no_grad()
def test_a_module_that_a_program_gives_folds_too() -> None:
    net, x = settled(Ringed(rows_and_columns)), image(2, 3, 6, 7)
    before = exported(net, x).module()
    given = str(before.graph)
    result = rewriter.apply(before, ["deploy"], example_inputs=(x,))
    assert "copy_" not in str(result.model.graph) and "copy_" in given and str(before.graph) == given
    assert same([result.model(x)], [net(x)], 2e-6)
    assert result.report.verification.verdict is Verdict.OK


@torch.no_grad()
def test_a_row_that_lies_in_larger_images_only_does_not_fold() -> None:
    def far_in(net: Ringed, x: Tensor) -> Tensor:
        y = net.padded(x)
        y[:, :, -8:-7] = net.ring
        return all_sides(net, y)

    net, x = settled(Ringed(far_in)), image(2, 3, 12, 7)
    before = exported(net, x, dynamic_shapes=({2: torch.export.Dim("height", min=9), 3: torch.export.Dim.AUTO},))
    after = rewriter.apply(before, ["deploy"]).model
    assert operators(after)["conv2d"] == 3
    for height in (9, 12, 20):
        assert same([after.module()(image(2, 3, height, 5))], [net(image(2, 3, height, 5))], 2e-6)


# --- what must not fold ----------------------------------------------------------------------------------------------


def written_after_a_read(net: Ringed, x: Tensor) -> Tensor:
    y = net.padded(x)
    y[:, :, :1] = net.ring
    z = net.second(y)
    y[:, :, -1:] = net.ring
    return z + rest(net, y)


def one_row_too_far_in(net: Ringed, x: Tensor) -> Tensor:
    y = net.padded(x)
    y[:, :, 1:2] = net.ring
    return all_sides(net, y)


def into_the_image(net: Ringed, x: Tensor) -> Tensor:
    y = net.padded(x)
    y[:, :, 0:3] = net.ring
    return all_sides(net, y)


def a_value_a_little_off(net: Ringed, x: Tensor) -> Tensor:
    y = net.padded(x)
    off = torch.zeros(4)
    off[2] = 3e-6
    y[:, :, :1] = net.ring + off.view(1, -1, 1, 1) * net.ring.abs().max()
    y[:, :, -1:] = net.ring
    y[..., :1] = net.ring
    y[..., -1:] = net.ring
    return rest(net, y)


def three_sides(net: Ringed, x: Tensor) -> Tensor:
    y = net.padded(x)
    y[:, :, :1] = net.ring
    y[:, :, -1:] = net.ring
    y[..., :1] = net.ring
    return rest(net, y)


def an_output_too(net: Ringed, x: Tensor) -> tuple[Tensor, Tensor]:
    y = net.padded(x)
    return y, all_sides(net, y)


def read_elsewhere(net: Ringed, x: Tensor) -> Tensor:
    y = net.padded(x)
    z = all_sides(net, y)
    return z * y.amax()


def nothing_behind_the_end(net: Ringed, x: Tensor) -> Tensor:
    y = net.padded(x)
    aten.slice.Tensor(y, 2, 8, END).copy_(net.ring.expand(2, 4, 0, 9))
    return all_sides(net, y)


def of_one_image(net: Ringed, x: Tensor) -> Tensor:
    y = net.padded(x)
    y[:1] = 0 * y[:1] + net.ring
    return all_sides(net, y)


def by_another_step(net: Ringed, x: Tensor) -> Tensor:
    y = net.padded(x)
    y[:, :, ::7] = net.ring
    y[..., :1] = net.ring
    y[..., -1:] = net.ring
    return rest(net, y)


def through_a_view_of_a_view(net: Ringed, x: Tensor) -> Tensor:
    y = net.padded(x)
    y[:, :, :1, 1:-1] = 2 * net.ring
    return all_sides(net, y)


def a_view_that_is_read(net: Ringed, x: Tensor) -> Tensor:
    y = net.padded(x)
    row = y[:, :, 2:3]
    z = all_sides(net, y)
    return z + row.mean()


def of_the_value_itself(net: Ringed, x: Tensor) -> Tensor:
    y = net.padded(x)
    y[:, :, :1] = y[:, :, 1:2]
    return all_sides(net, y)


def zeros(net: Ringed, x: Tensor) -> Tensor:
    return rest(net, net.padded(x))


def into_what_is_no_pad(net: Ringed, x: Tensor) -> Tensor:
    y = net.first(x)
    y[:, :, :1] = net.ring
    return rest(net, y)


def into_an_input(net: Ringed, x: Tensor) -> Tensor:
    x[:, :, :1] = net.first.weight[:3, 0, 0, 0].view(1, -1, 1, 1)
    return rest(net, net.padded(x))


def into_an_input_that_is_not_padded(net: Ringed, x: Tensor) -> Tensor:
    y = functional.pad(x, (0, 0, 0, 0))
    y[:, :, :1] = net.first.weight[:3, 0, 0, 0].view(1, -1, 1, 1)
    return rest(net, net.padded(x) + x.mean())


def what_only_the_input_tells(net: Ringed, x: Tensor) -> Tensor:
    y = net.padded(x)
    y[:, :, :1] = x.mean()
    return rest(net, y)


STAYS = [
    written_after_a_read,
    one_row_too_far_in,
    into_the_image,
    a_value_a_little_off,
    three_sides,
    an_output_too,
    read_elsewhere,
    nothing_behind_the_end,
    of_one_image,
    by_another_step,
    through_a_view_of_a_view,
    a_view_that_is_read,
    of_the_value_itself,
    zeros,
    into_what_is_no_pad,
    into_an_input,
    into_an_input_that_is_not_padded,
    what_only_the_input_tells,
]


@pytest.mark.parametrize("core", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["as-exported", "core"])
@pytest.mark.parametrize("function", STAYS, ids=lambda f: f.__name__)
@torch.no_grad()
def test_what_is_no_such_ring_stays_as_it_was_written(function: Callable[[Ringed, Tensor], Any], core: bool) -> None:
    net, x = settled(Ringed(function)), image(2, 3, 6, 7)
    before = exported(net, x)
    before = before.run_decompositions() if core else before
    result = rewriter.apply(before, ["deploy"])
    left, given = operators(result.model), operators(before)
    assert left[conv := "convolution" if core else "conv2d"] == given[conv]
    assert not {"batch_norm", "_native_batch_norm_legit_no_training"} & left.keys()
    assert _written(result.model) == _written(before)
    assert same(in_double(result.model, x.clone()), in_double(before, x.clone()), 1e-6)
    assert result.report.verification.verdict is Verdict.OK


@torch.no_grad()
def test_a_ring_that_becomes_an_output_gives_its_name_to_it() -> None:
    def copied(net: Ringed, x: Tensor) -> tuple[Tensor, Tensor]:
        y = net.padded(x)
        z = all_sides(net, y)
        return y * 1.0, z

    net, x = settled(Ringed(copied)), image(2, 3, 6, 7)
    before = exported(net, x)
    result = rewriter.apply(before, ["deploy"])
    assert "mul" not in operators(result.model) and operators(result.model)["copy_"] == 3
    names = [spec.arg.name for spec in result.model.graph_signature.output_specs]
    assert names == [spec.arg.name for spec in before.graph_signature.output_specs]
    assert same(in_double(result.model, x), in_double(before, x), 1e-6)
    assert result.report.verification.verdict is Verdict.OK


@torch.no_grad()
def test_a_ring_that_is_an_output_keeps_its_name() -> None:
    net, x = settled(Ringed(an_output_too)), image(2, 3, 6, 7)
    open_ = exported(net, x, dynamic_shapes=({axis: torch.export.Dim.AUTO for axis in (0, 2, 3)},))
    result = rewriter.apply(before := open_.run_decompositions(), ["deploy"])
    assert [s.arg.name for s in result.model.graph_signature.output_specs] == [
        s.arg.name for s in before.graph_signature.output_specs
    ]
    assert result.report.verification.verdict is Verdict.OK


@torch.no_grad()
def test_what_a_module_writes_elsewhere_stays_in_place() -> None:
    net, x = settled(Ringed(three_sides)), image(2, 3, 6, 7)
    before = exported(net, x).module()
    result = rewriter.apply(before, ["deploy"], example_inputs=(x,))
    assert "aten.batch_norm" not in str(result.model.graph)
    assert _written(result.model) == _written(before)
    assert same([result.model(x)], [net(x)], 2e-6)


def _written(program: Any) -> list[str]:
    """What writes, and into what, in order."""
    writes = [n for n in program.graph.nodes if str(n.target).endswith("_.default")]
    scatters = [f"{n.name} = {n.target}{n.args[2:]}" for n in program.graph.nodes if "scatter" in str(n.target)]
    return [f"{n.name} = {n.target}({n.args[0]}: {n.args[0].target}{n.args[0].args[1:]})" for n in writes] + scatters
