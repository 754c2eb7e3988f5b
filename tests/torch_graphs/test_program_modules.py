"""Modules that exported programs give: traced ones, whose nodes are ATen operators and whose values are leaves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import rewriter
from rewriter.checking.record import Verdict
from rewriter.errors import UsageError
from tests.torch_graphs.nets import Net, RepVGG, Two, exported, image, same, settled

X = image(2, 8, 12, 10)
pytestmark = pytest.mark.filterwarnings("ignore")  # of torch about itself


def module_of(net: nn.Module, *inputs: Any, **options: Any) -> Any:
    return exported(net, *inputs, **options).module()


def calls(module: fx.GraphModule) -> list[str]:
    """What a graph calls, but for the check of the inputs."""
    names: list[str] = []
    for node in module.graph.nodes:
        if node.op == "call_module" and node.users:
            names.append(type(module.get_submodule(str(node.target))).__name__)
        elif node.op == "call_function":
            names.append(str(node.target))
    return names


def test_its_blocks_become_layers_and_it_computes_the_same() -> None:
    net = settled(Net()).double()
    given = module_of(net, X.double())
    result = rewriter.apply(given, ["deploy"], example_inputs=X.double())
    assert result.report.verification.verdict is Verdict.OK, result.report.verification
    assert calls(result.model) == ["Conv2d", "aten.relu_.default", "Conv2d", "aten.relu_.default", "aten.add.Tensor"]
    x = image(2, 8, 12, 10, seed=3).double()
    assert same([result.model(x)], [net(x)], 1e-13)
    assert not any("folded" in name for name in given.state_dict())


def test_sizes_that_the_program_refuses_are_refused_still() -> None:
    result = rewriter.apply(module_of(settled(Net()), X), ["deploy"], example_inputs=X)
    for size in (2, 8, 12, 11), (3, 8, 12, 10):
        with pytest.raises(AssertionError):
            result.model(image(*size))


def test_open_sizes_stay_open() -> None:
    net, batch = settled(Net()), torch.export.Dim("batch", min=2, max=8)
    given = module_of(net, X, dynamic_shapes=({0: batch},))
    after = rewriter.apply(given, ["deploy"], example_inputs=X).model
    x = image(5, 8, 12, 10)
    assert same([after(x)], [net(x)], 1e-5)


def test_an_output_that_goes_leaves_the_structure() -> None:
    net, x = settled(Two()), image(2, 3, 8, 8)
    result = rewriter.apply(module_of(net, x), ["aux-prune"], keep=["conv2d_1"], example_inputs=x)
    found = result.model(x)
    assert list(found) == ["main"] and same([found["main"]], [net(x)["main"]], 1e-6)
    assert result.report.verification.verdict is Verdict.OK


class Nested(nn.Module):
    """A dict with a list as its argument, and one by name."""

    def __init__(self) -> None:
        super().__init__()
        self.block = RepVGG()

    def forward(self, given: dict[str, Any], *, factor: Tensor) -> list[Tensor]:
        return [self.block(given["image"]) * factor, given["more"][0] + 1]


def test_nested_inputs_are_given_as_the_program_takes_them() -> None:
    net, given, factor = settled(Nested()), {"image": X, "more": [X + 1]}, torch.tensor(2.0)
    program = torch.export.export(net, (given,), {"factor": factor})
    result = rewriter.apply(program.module(), ["all"], example_inputs={"given": given, "factor": factor})
    assert result.report.verification.verdict is Verdict.OK, result.report.verification
    assert calls(result.model).count("Conv2d") == 1
    assert same(result.model(given, factor=factor), net(given, factor=factor), 1e-5)
    with pytest.raises(UsageError, match="3 values, and 1 are given"):
        rewriter.apply(program.module(), ["deploy"], example_inputs=X)
