"""Each ATen operator reads as a canonical one that computes the same: run by its definition, held against torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rewriter
from rewriter.algebra.evaluation import Run, run
from rewriter.graph.view import Graph
from rewriter.matching.region import Region
from rewriter.torch_graphs.program_draft import ProgramDraft
from tests.torch_graphs.nets import exported, image, same

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch about odd paddings


class Calling(nn.Module):
    """A function of an image and of tensors that are stored."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function
        for name, shape in SHAPES.items():
            self.register_parameter(name, nn.Parameter(image(*shape, seed=len(name)).double()))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self)


SHAPES = {
    "w": (6, 4, 3, 2), "grouped": (4, 2, 3, 3), "turned": (4, 3, 3, 2), "vector": (6,), "features": (5, 6),
    "square": (4, 4, 1, 1), "image": (4, 1, 1), "three": (3,), "five": (5,), "w1": (3, 4, 3),
}  # fmt: skip


def view_of(function: Callable[..., Tensor], x: Tensor) -> tuple[Graph, Calling]:
    net = Calling(function).double().eval()
    return ProgramDraft(exported(net, x)).view(), net


READ: dict[str, Callable[..., Tensor]] = {
    "conv": lambda x, m: F.conv2d(x, m.w, m.vector, (2, 1), (1, 0), (1, 2)),
    "conv, one number for both axes": lambda x, m: F.conv2d(x, m.w, None, 2, 1, 2),
    "conv, groups": lambda x, m: F.conv2d(x, m.grouped, None, padding=1, groups=2),
    "conv, same": lambda x, m: F.conv2d(x, m.w, padding="same", dilation=(2, 3)),
    "conv, valid": lambda x, m: F.conv2d(x, m.w, padding="valid"),
    "conv, one axis": lambda x, m: F.conv1d(x.flatten(2), m.w1, stride=2, padding=1),
    "conv, kernel computed": lambda x, m: F.conv2d(x, m.w.flip(2) * 2, m.vector.exp()),
    "transposed": lambda x, m: F.conv_transpose2d(x, m.turned, m.three, (2, 3), 1, (1, 2), dilation=1),
    "transposed, groups": lambda x, m: F.conv_transpose2d(x, m.turned, None, 2, groups=2, dilation=(1, 2)),
    "add, alpha": lambda x, m: torch.add(x, m.image, alpha=0.5),
    "sub": lambda x, m: torch.sub(x, m.image, alpha=2),
    "rsub": lambda x, m: torch.rsub(x, m.image),
    "rsub, number": lambda x, m: 3 - x,
    "mul": lambda x, m: x * 2.5 * m.image,
    "div": lambda x, m: x / 4 / m.image,
    "neg": lambda x, m: -x + x,
    "bare norm": lambda x, m: F.batch_norm(x, m.image.flatten(), m.image.flatten().exp(), eps=0.1),
    "average": lambda x, m: F.avg_pool2d(x, 3, 1, 1),
    "average, of what is there": lambda x, m: F.avg_pool2d(x, (2, 3), count_include_pad=False),
    "linear": lambda x, m: F.linear(x, m.features, m.five),
    "addmm": lambda x, m: torch.addmm(m.five, x.flatten(1)[:, :6], m.features.t(), beta=2, alpha=0.5),
    "mm": lambda x, m: torch.mm(x.flatten(1)[:, :6], m.features.t()),
    "matmul": lambda x, m: x @ m.features.t(),
    "cat of a split": lambda x, m: torch.cat(x.split([1, 3], 1)[::-1], 1),
    "cat of chunks": lambda x, m: torch.cat(x.chunk(3, -1), 2)[..., :2] if x.shape[-1] == 6 else x,
    "slice": lambda x, m: x[:, 1:-1, ::2],
    "narrow": lambda x, m: x.narrow(-1, 2, 3),
    "select": lambda x, m: x[:, -1],
    "reshape": lambda x, m: x.reshape(2, -1, 3),
    "view": lambda x, m: x.view(2, 2, 2, 7, 6).permute(0, 2, 1, -2, -1),
    "flatten": lambda x, m: x.flatten(-2).transpose(1, -1),
    "squeeze": lambda x, m: x[:, :1].squeeze(1).unsqueeze(-1).squeeze(),
    "pad": lambda x, m: F.pad(x, (1, 2, 0, -1), value=0.0),
    "copies": lambda x, m: F.dropout(x.clone().contiguous(), 0.5, False).detach(),
}


@pytest.mark.parametrize("name", READ)
@torch.no_grad()
def test_it_computes_the_same(name: str) -> None:
    x = image(2, 4, 7, 6, seed=9).double()
    graph, net = view_of(READ[name], x)
    nodes = tuple(node for node in graph.nodes if all(v.constant is None for v in node.outputs))
    assert not [node.problem for node in nodes if node.problem]
    found = run(Region(graph.inputs[0], graph.outputs[0], nodes), x.numpy(), {}, Run(absolute=False))
    wanted = net(x).numpy()
    assert found.shape == wanted.shape and np.abs(found - wanted).max() <= 1e-12 * np.abs(wanted).max()


REFUSED: dict[str, Callable[..., Tensor]] = {
    "an image without a batch": lambda x, m: F.conv2d(x[0], m.w),
    "an average by another number": lambda x, m: F.avg_pool2d(x, 2, divisor_override=3),
    "a quotient that is rounded": lambda x, m: torch.div(x, 2.0, rounding_mode="floor"),
    "a sum over axes": lambda x, m: x.sum((1, 2)),
    "dropout in training": lambda x, m: F.dropout(x, 0.5, True),
    "a norm in training": lambda x, m: F.batch_norm(x, None, None, training=True),
    "a kernel of activations": lambda x, m: F.conv2d(x, x.mean((0, 2, 3), keepdim=True).expand(2, 4, 3, 3)),
    "activations scaled by a factor and taken away": lambda x, m: torch.rsub(x, m.image, alpha=2),
    "activations scaled by a factor and added": lambda x, m: torch.add(x, x.relu(), alpha=2),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_does_not_say_exactly_no_pattern_takes(name: str) -> None:
    graph, _ = view_of(REFUSED[name], image(2, 4, 7, 6).double())
    last = graph.nodes[-1]
    taken = {"conv", "avg_pool", "scale", "sum", "dropout", "bn", "add"}
    assert last.op not in taken or last.problem is not None


def test_extents_that_are_equal_have_one_name() -> None:
    batch = torch.export.Dim("batch", min=2)
    net = Calling(lambda x, m: F.conv2d(x, m.w).flatten(1)).double()
    program = exported(net, image(3, 4, 7, 6).double(), dynamic_shapes=({0: batch},))
    graph = ProgramDraft(program).view()
    (x,), (y,) = graph.inputs, graph.outputs
    assert x.shape is not None and y.shape is not None
    assert x.shape[0] == y.shape[0] and isinstance(x.shape[0], str) and y.shape[1] == 6 * 5 * 5


def test_every_value_knows_its_readers_and_names_are_those_of_the_state_dict() -> None:
    graph, _ = view_of(lambda x, m: F.conv2d(x, m.square) + F.conv2d(x, m.square), image(1, 4, 5, 5).double())
    assert len(graph.values["square"].readers) == 2 and len(graph.inputs[0].readers) == 2
    assert [node.op for node in graph.nodes] == ["conv", "conv", "add"]
    assert all(graph.nodes[r].data[0] is graph.inputs[0] for r in graph.inputs[0].readers)


class Numbered(nn.Module):
    """A term and a factor that are numbers of the program itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x) + torch.arange(4, dtype=torch.float32).view(1, -1, 1, 1)
        return torch.relu(y * torch.full((4, 1, 1), 0.5))


@pytest.mark.parametrize("form", ["export", "core", "fx"])
def test_numbers_that_a_program_makes_are_constants(form: str) -> None:
    net, x = Numbered().eval(), image(1, 3, 6, 7)
    given: Any = torch.fx.symbolic_trace(net) if form == "fx" else exported(net, x)
    given = given.run_decompositions() if form == "core" else given
    options = {"example_inputs": (x,)} if form == "fx" else {}
    result = rewriter.apply(given, ["conv-bn"], **options)
    assert dict(result.report.after.ops) in ({"conv2d": 1, "relu": 1}, {"convolution": 1, "relu": 1})
    with torch.no_grad():
        found = result.model(x) if form == "fx" else result.model.module()(x)
        assert same([found], [net(x)], 2e-6)


class Batched(nn.Module):
    """A product of matrices, image by image, with one that is copied or with one for each."""

    def __init__(self, copied: bool) -> None:
        super().__init__()
        self.matrix = nn.Parameter(image(*(() if copied else (2,)), 6, 5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(x, self.matrix.expand(2, 6, 5))


@pytest.mark.parametrize("copied", [True, False])
def test_products_with_copies_of_one_matrix_are_products_with_it(copied: bool) -> None:
    graph = ProgramDraft(exported(Batched(copied), image(2, 4, 6))).view()
    product = graph.nodes[-1]
    found = [*product.consts.values(), *[v.constant for v in product.data if v.constant is not None]]
    assert product.op == ("linear" if copied else "matmul")
    assert [constant.shape for constant in found] == [(5, 6) if copied else (2, 6, 5)]
