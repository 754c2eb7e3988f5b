"""Operators that run bodies: what stands around them folds, what regions without gradients or autocast hold folds too,
what others hold is left and said, and numbers stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx.inliner
import pytest
import torch
from torch import Tensor, nn

import rewriter
from rewriter.checking.record import Verdict
from rewriter.reporting.json import from_json, to_json
from rewriter.reporting.markdown import to_markdown
from rewriter.rewriting.edits import RemoveNode, Rewire
from rewriter.torch_graphs.body_draft import body_drafts
from rewriter.torch_graphs.program_draft import ProgramDraft
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


def with_gradients(net: nn.Module) -> torch.export.ExportedProgram:
    """Exported as users do who do not think of it: torch then keeps regions without gradients as bodies."""
    return torch.export.export(net, (X,))


def convolutions(program: torch.export.ExportedProgram) -> int:
    """Of the program and of all its bodies."""
    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    return sum("conv2d" in str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_function")


@pytest.mark.parametrize(("runs", "limit"), [(in_half_precision, 2e-2), (branches, 2e-6)], ids=["half", "branches"])
def test_blocks_around_a_body_fold_and_the_body_is_named(runs: Runs, limit: float) -> None:
    """What a fold moves by its rounding may round to another bfloat16 in the body."""
    torch.manual_seed(0)
    before = with_gradients(settled(Around(runs)))
    result = rewriter.apply(before, EXACT)
    report = result.report
    assert report.verification.verdict is Verdict.OK and len(report.matches) == 2
    assert operators(result.model)["conv2d"] == 2
    with torch.no_grad():
        assert same([result.model.module()(X)], [before.module()(X)], limit)
    (note,) = report.notes
    assert note.startswith("not looked into") and "convolution" in note
    assert note in to_markdown(report).replace("\\", "") and from_json(to_json(report)) == report


@pytest.mark.parametrize("runs", [without_gradients, in_full_precision], ids=lambda runs: runs.__name__)
def test_a_region_folds_as_the_program_around_it_does(runs: Runs, tmp_path: Path) -> None:
    net = settled(Around(runs))
    net.one.requires_grad_(False)
    before = with_gradients(net)
    state, graphs = set(before.state_dict), {n: str(m.graph) for n, m in before.graph_module.named_children()}
    result = rewriter.apply(before, EXACT)
    report, after = result.report, result.model
    assert report.verification.verdict is Verdict.OK and len(report.matches) == 3 and not report.notes
    assert convolutions(after) == 3 and convolutions(before) == 6
    names = {f"{block}.dense.0_folded.{t}" for block in ("one", "inner", "two") for t in ("weight", "bias")}
    assert names == set(after.state_dict) == {fold.tensor for fold in report.folds}
    assert all(set(fold.sources) <= state for fold in report.folds) and report.after.parameters == 3 * (8 * 8 * 9 + 8)
    trained = {name: p.requires_grad for name, p in after.named_parameters()}
    assert trained == {name: not name.startswith("one") for name in names}
    assert state == set(before.state_dict)
    assert graphs == {n: str(m.graph) for n, m in before.graph_module.named_children()}
    x = image(2, 8, 12, 10, seed=4)
    wanted = after.module()(x)
    assert same([wanted], [net(x)], 2e-6) and wanted.requires_grad
    again = rewriter.apply(result.save(tmp_path / "ship.pt2"), EXACT)  # an archive of such regions needs no trust
    assert torch.equal(again.model.module()(x), wanted) and not again.report.changed
    made = onnx.load(result.save(tmp_path / "ship.onnx"))
    inlined = onnx.inliner.inline_local_functions(made)
    assert sum(node.op_type == "Conv" for node in inlined.graph.node) == 3


def shared(net: Around, y: Tensor) -> Tensor:
    with torch.no_grad():
        z = net.one(y)
    with torch.no_grad():
        return net.inner(z) + net.one(z)


def copied(net: Around, y: Tensor) -> Tensor:
    """What the region gives is changed afterwards, and is no part of what it was given."""
    with torch.autocast("cpu", enabled=False):
        z = y.clone()
    z.add_(1)
    return z * y


def sized(net: Around, y: Tensor) -> Tensor:
    with torch.no_grad():
        z = net.inner(y).view(y.shape[0], 8, -1)
    return z.view(y.shape)


@pytest.mark.parametrize("runs", [shared, copied, sized], ids=lambda runs: runs.__name__)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels-last"])
def test_regions_that_share_with_the_program_give_the_same(runs: Runs, layout: torch.memory_format) -> None:
    net = settled(Around(runs))
    given = X.to(memory_format=layout) if runs is not sized else X
    before = torch.export.export(net, (given,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    result = rewriter.apply(before, "all")
    assert result.report.verification.verdict is Verdict.OK and not result.report.notes
    x = image(5, 8, 12, 10, seed=9).to(memory_format=layout if runs is not sized else torch.contiguous_format)
    assert same([result.model.module()(x)], [net(x)], 4e-6)


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


def test_a_body_that_would_give_what_it_was_given_does_not_stand() -> None:
    """The program adds to what the region gives, and reads what it was given after that."""
    draft = ProgramDraft(with_gradients(settled(Around(copied))))
    (body,) = body_drafts(draft)
    (node,) = body.view().nodes
    assert not body.stands()
    body.apply([Rewire(node.outputs[0].name, node.data[0].name), RemoveNode(node)])
    assert body.edited and not body.stands()
