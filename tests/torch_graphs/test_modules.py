"""Modules in, modules out: traced for the user, in evaluation form, and told where that failed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rewriter
from rewriter.checking.record import Verdict
from rewriter.errors import InputError, UsageError
from tests.torch_graphs.nets import Net, RepVGG, image, operators, same, settled

EXACT = ["repconv", "conv-bn", "bypass"]
pytestmark = pytest.mark.filterwarnings("ignore")  # of torch about itself


def test_a_module_in_training_mode_is_traced_as_what_is_shipped_and_stays_in_it() -> None:
    net = settled(Net()).train()
    net.one.eval()
    result = rewriter.apply(net, EXACT, example_inputs=image(2, 8, 12, 10))
    assert isinstance(result.model, nn.Module) and result.report.verification.verdict is Verdict.OK
    assert net.training and not net.one.training and net.two.training
    x = image(2, 8, 12, 10, seed=3)
    assert same([result.model(x)], [net.eval()(x)], 2e-6)
    assert sum(p.numel() for p in result.model.parameters()) == result.report.after.parameters == 2 * (8 * 8 * 9 + 8)


def test_it_is_saved_as_a_program(tmp_path: Path) -> None:
    batch = torch.export.Dim("batch", min=2)
    given = {"example_inputs": (image(2, 8, 12, 10),), "dynamic_shapes": ({0: batch},)}
    result = rewriter.apply(settled(RepVGG()), EXACT, **given)
    again = rewriter.apply(result.save(tmp_path / "net.pt2"), EXACT)
    assert operators(again.model) == {"conv2d": 1, "relu_": 1} and not again.report.changed
    x = image(5, 8, 12, 10)
    assert torch.equal(again.model.module()(x), result.model(x))


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, image: Tensor, scale: Tensor) -> Tensor:
        return self.norm(self.conv(image)) * scale


def test_inputs_may_be_named() -> None:
    given = {"scale": torch.tensor(2.0), "image": image(1, 4, 8, 8)}
    result = rewriter.apply(settled(Named()), EXACT, example_inputs=given)
    assert result.report.verification.verdict is Verdict.OK and result.report.matches


class Deciding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        if y.sum() > 0:  # the line that is told
            return y
        return x


def test_what_cannot_be_traced_is_told_with_its_line() -> None:
    with pytest.raises(InputError, match=r"Deciding at test_modules\.py:\d+: `if y\.sum\(\) > 0:"):
        rewriter.apply(Deciding(), EXACT, example_inputs=image(2, 3))


def test_what_is_wrong_with_a_model_or_its_inputs_is_said_with_its_line() -> None:
    """Symbolic tracing, which is tried next, knows neither sizes nor lines."""
    said = r"(?s)Named at .*:\d+: `return .*channels.*\nDoes the model run on these inputs by itself"
    with pytest.raises(InputError, match=said):
        rewriter.apply(settled(Named()), EXACT, example_inputs=(image(1, 3, 8, 8), torch.ones(1)))
    with pytest.raises(InputError, match="give the module that it was made from"):
        rewriter.apply(torch.jit.script(Deciding()), EXACT, example_inputs=image(2, 3))


def test_torch_prints_nothing_beside_our_message(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError):
        rewriter.apply(Deciding(), EXACT, example_inputs=image(2, 3))
    assert capfd.readouterr() == ("", "")


def test_the_result_is_in_evaluation_form_and_may_be_told_so() -> None:
    result = rewriter.apply(settled(Net()), EXACT, example_inputs=image(2, 8, 12, 10))
    assert result.model.eval() is result.model
    with pytest.raises(NotImplementedError):
        result.model.train()


class Dropping(nn.Module):
    """The second dropout is on whatever the mode is, as it is written by mistake; the second norm has no statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.batch = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.dropout(self.norm(self.conv(x)), 0.2, self.training)
        return self.batch(nn.functional.dropout(y, 0.2))


def test_layers_that_were_traced_in_training_mode_are_told() -> None:
    x, net = image(2, 4, 8, 8), Dropping()
    said = "in training mode, as traced: 1 norm and 2 dropouts, which"
    for given in (torch.export.export(net, (x,)), torch.fx.symbolic_trace(net)):
        inputs = {"example_inputs": x} if isinstance(given, nn.Module) else {}
        (note,) = rewriter.apply(given, EXACT, verify=False, **inputs).report.notes
        assert note.startswith(said)
    (note,) = rewriter.apply(net, EXACT, verify=False, example_inputs=x).report.notes  # traced in evaluation form
    assert note.startswith("in training mode, as traced: 1 dropout, which")
    assert not rewriter.apply(settled(Net()), EXACT, example_inputs=image(2, 8, 12, 10)).report.notes


def test_a_module_without_inputs_is_asked_for_them() -> None:
    with pytest.raises(UsageError, match="example_inputs"):
        rewriter.apply(settled(RepVGG()), EXACT)
