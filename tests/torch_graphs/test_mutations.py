"""In-place operators: read through where nobody can tell, kept away from where somebody could."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import rewriter
from tests.torch_graphs.nets import exported, image, in_double, operators, same, settled


class Around(nn.Module):
    """A conv and a norm, with something around them."""

    def __init__(self, function: Callable[[Around, Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.other = nn.Conv2d(4, 4, 1)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def added_in_place(net: Around, x: Tensor) -> Tensor:
    y = net.norm(net.conv(x))
    y += net.other(x)
    return y


def read_after(net: Around, x: Tensor) -> Tensor:
    """The conv's result is read by the norm, then changed, then read again."""
    y = net.conv(x)
    z = net.norm(y)
    y.mul_(2)
    return z + y


def through_a_view(net: Around, x: Tensor) -> Tensor:
    y = net.conv(x)
    y[:, :2].zero_()
    return net.norm(y)


def behind_a_copy(net: Around, x: Tensor) -> Tensor:
    """The copy may go only if what reads it no longer writes into the original."""
    y = torch.relu(net.norm(net.conv(x)))
    z = y.clone()
    return z.relu_().mul_(3) + y


CASES = {added_in_place: True, read_after: False, through_a_view: False, behind_a_copy: True}


@pytest.mark.parametrize("function", CASES, ids=lambda f: f.__name__)
@torch.no_grad()
def test_the_result_is_the_same_and_folds_only_where_it_may(function: Callable[[Around, Tensor], Tensor]) -> None:
    net = settled(Around(function)).double()
    x = image(1, 4, 7, 6).double()
    before = exported(net, x)
    after = rewriter.apply(before, ["repconv", "conv-bn", "bypass", "collapse"]).model
    assert ("batch_norm" not in operators(after)) == CASES[function]
    assert same(in_double(after, x), in_double(before, x), 1e-13)
    assert same([after.module()(x)], [net(x)], 1e-13)


def a_copy_that_is_an_output_and_a_copy_of_it(net: Around, x: Tensor) -> tuple[Tensor, Tensor]:
    """The first gives its name to what it copies, and what read the second reads that."""
    y = functional.pad(net.conv(x), (0, 0, 0, 0))
    return y, torch.relu(functional.pad(y, (0, 0, 0, 0)))


@torch.no_grad()
def test_copies_of_copies_go_together() -> None:
    net, x = settled(Around(a_copy_that_is_an_output_and_a_copy_of_it)), image(1, 4, 7, 6)
    result = rewriter.apply(exported(net, x), ["bypass"])
    assert operators(result.model) == {"conv2d": 1, "relu": 1}
    assert same(result.model.module()(x), net(x), 1e-6)


class Counting(nn.Module):
    """A buffer that every call changes."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return self.norm(self.conv(x)) * self.calls


def test_a_buffer_that_changes_is_no_constant_and_goes_on_changing() -> None:
    before = exported(settled(Counting()), image(1, 4, 7, 6))
    result = rewriter.apply(before, ["all"])
    assert "batch_norm" not in operators(result.model)
    assert float(before.state_dict["calls"]) == 0  # the comparison ran copies
    module, x = result.model.module(), image(1, 4, 7, 6)
    first, second = module(x), module(x)
    assert torch.allclose(second, 2 * first)
    assert float(before.state_dict["calls"]) == 0  # each has its own
