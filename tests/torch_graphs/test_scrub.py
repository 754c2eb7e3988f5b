"""What nobody reads and what tells of the machine that traced a model goes on request, and only then."""

from __future__ import annotations

import io

import torch
from torch import Tensor, fx, nn

import rewriter
from rewriter.checking.record import Verdict
from rewriter.reporting.record import Report
from tests.torch_graphs.nets import exported, image, same, settled

X = image(2, 3, 9, 8)
DEAD = 8 * 4 + 4  # the parameters of the head that nobody reads


class Net(nn.Module):
    """A layer with its norm, a head whose result is dropped, a layer and a buffer that nobody uses, and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.dropped, self.never = nn.Conv2d(8, 4, 1), nn.Linear(3, 3)
        self.register_buffer("mask", torch.zeros(5))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = torch.relu(self.norm(self.conv(x)))
        self.dropped(y).sum()
        return y


def counts(report: Report) -> dict[str, int]:
    return {record.kind: record.count for record in report.scrubbed}


def test_a_program_loses_what_no_output_needs() -> None:
    net = settled(Net())
    before = exported(net, X)
    result = rewriter.apply(before, ["conv-bn"], scrub=True)
    assert result.report.verification.verdict is Verdict.OK and result.report.dead_before == ()
    assert set(result.model.state_dict) == {"conv_folded.weight", "conv_folded.bias", "calls"}
    assert counts(result.report)["dead nodes"] == 2
    (tensors,) = [r for r in result.report.scrubbed if r.kind == "unread tensors"]
    # weight and bias of both layers, the mask, and the counter of the norm; what the fold replaced is not among them
    assert (tensors.count, tensors.bytes) == (6, 4 * (DEAD + 12 + 5) + 8)
    assert same([result.model.module()(X)], [net(X)], 2e-6)
    assert len(before.state_dict) == 12 and any("stack_trace" in n.meta for n in before.graph.nodes)


def test_nothing_of_the_machine_stays_in_the_archive() -> None:
    archives: dict[bool, bytes] = {}
    for scrub in (False, True):
        file = io.BytesIO()
        torch.export.save(rewriter.apply(exported(settled(Net()), X), ["conv-bn"], scrub=scrub).model, file)
        archives[scrub] = file.getvalue()
    assert __file__.encode() in archives[False] and __file__.encode() not in archives[True]


def test_what_is_not_asked_for_stays() -> None:
    result = rewriter.apply(exported(settled(Net()), X), ["conv-bn"])
    assert result.report.scrubbed == () and "never.weight" in result.model.state_dict
    assert len(result.report.dead_before) == 2


def test_scrubbing_alone_is_a_change_and_nothing_more_the_second_time() -> None:
    net = settled(Net())
    once = rewriter.apply(exported(net, X), ["repconv"], scrub=True)
    assert once.report.matches == () and "dropped.weight" not in once.model.state_dict
    assert same([once.model.module()(X)], [net(X)], 1e-6)
    again = rewriter.apply(once.model, ["repconv"], scrub=True)
    assert again.report.scrubbed == () and again.model is once.model


def test_a_traced_module_loses_its_dead_layers() -> None:
    net = settled(Net())
    result = rewriter.apply(fx.symbolic_trace(net), ["conv-bn"], example_inputs=X, scrub=True)
    assert counts(result.report) == {"dead nodes": 2}
    assert not any("dropped" in name for name, _ in result.model.named_modules())
    assert same([result.model(X)], [net(X)], 2e-6)
