"""Operators that run bodies: what stands around them folds, what they hold is left and said, and numbers stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rewriter
from rewriter.checking.record import Verdict
from rewriter.reporting.json import from_json, to_json
from rewriter.reporting.markdown import to_markdown
from tests.torch_graphs.nets import RepVGG, exported, image, operators, same, settled

EXACT = ["repconv", "conv-bn", "bypass"]
X = image(2, 8, 12, 10)
Runs = Callable[["Around", Tensor], Tensor]
pytestmark = pytest.mark.filterwarnings("ignore")  # of torch about itself


class Around(nn.Module):
    """A block, an operator with a body, and another block."""

    def __init__(self, runs: Runs) -> None:
        super().__init__()
        self.runs, self.one, self.inner, self.two = runs, RepVGG(), RepVGG(), RepVGG()

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.runs(self, self.one(x)))


def without_gradients(net: Around, y: Tensor) -> Tensor:
    with torch.no_grad():
        return net.inner(y)


def in_full_precision(net: Around, y: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return net.inner(y)


def in_half_precision(net: Around, y: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = net.inner.dense[0](y)
    return z.float() + y


def branches(net: Around, y: Tensor) -> Tensor:
    return torch.cond(y.sum() > 0, lambda t: net.inner(t), lambda t: t * 2, (y,))


RUNS = [without_gradients, in_full_precision, in_half_precision, branches]


def with_gradients(net: nn.Module) -> torch.export.ExportedProgram:
    """Exported as users do who do not think of it: torch then keeps regions without gradients as bodies."""
    return torch.export.export(net, (X,))


@pytest.mark.parametrize("runs", RUNS, ids=lambda runs: runs.__name__)
def test_blocks_around_a_body_fold_and_the_body_is_named(runs: Runs, tmp_path: Path) -> None:
    before = with_gradients(settled(Around(runs)))
    result = rewriter.apply(before, EXACT)
    report = result.report
    assert report.verification.verdict is Verdict.OK and len(report.matches) == 2
    assert operators(result.model)["conv2d"] == 2
    with torch.no_grad():
        assert same([result.model.module()(X)], [before.module()(X)], 2e-6)
    (note,) = report.notes
    assert note.startswith("not looked into") and "convolution" in note
    assert note in to_markdown(report).replace("\\", "") and from_json(to_json(report)) == report
    torch.export.save(result.model, tmp_path / "ship.pt2")
    again = torch.export.load(tmp_path / "ship.pt2")
    with torch.no_grad():
        assert torch.equal(again.module()(X), result.model.module()(X))


def changing(net: Around, y: Tensor) -> Tensor:
    with torch.no_grad():
        y.mul_(2)
    return y


def changing_a_part(net: Around, y: Tensor) -> Tensor:
    with torch.no_grad():
        y[:, :4].add_(1)
    return y + 1


def giving_it_back(net: Around, y: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        z = y.view(2, 8, 120)
    y.add_(1)
    return z.view(2, 8, 12, 10)


@pytest.mark.parametrize("runs", [changing, changing_a_part, giving_it_back], ids=lambda runs: runs.__name__)
def test_a_body_that_changes_what_it_reads_keeps_its_place(runs: Runs) -> None:
    net = settled(Around(runs))
    before = with_gradients(net)
    result = rewriter.apply(before, EXACT)
    assert result.report.verification.verdict is Verdict.OK
    with torch.no_grad():
        assert same([result.model.module()(X)], [net(X)], 2e-6)


def test_a_module_that_is_traced_for_the_user_has_no_region_without_gradients() -> None:
    result = rewriter.apply(settled(Around(without_gradients)), EXACT, example_inputs=X)
    assert len(result.report.matches) == 3 and not result.report.notes


def test_bodies_without_layers_are_not_worth_a_word() -> None:
    made = exported(settled(Around(lambda net, y: torch.cond(y.sum() > 0, lambda t: t + 1, lambda t: t * 2, (y,)))), X)
    result = rewriter.apply(made, EXACT)
    assert len(result.report.matches) == 2 and not result.report.notes
