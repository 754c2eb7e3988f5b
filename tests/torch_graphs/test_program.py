"""Exported programs in, exported programs out: folded, whole, and still everything that a program can do."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import rewriter
from fixtures.judge import op_histogram
from rewriter.checking.record import Verdict
from rewriter.checkpoints import bytesource, program
from rewriter.errors import UsageError
from tests.torch_graphs.nets import Net, RepVGG, Tied, Two, exported, image, in_double, operators, same, settled

EXACT = ["repconv", "conv-bn", "bypass"]
pytestmark = pytest.mark.filterwarnings("ignore")  # of torch about itself: its exporters use what it deprecates


def test_a_block_becomes_one_convolution() -> None:
    before = exported(settled(RepVGG()), image(2, 8, 12, 10))
    result = rewriter.apply(before, EXACT)
    assert operators(result.model) == {"conv2d": 1, "relu_": 1}
    assert list(result.model.state_dict) == ["dense.0_folded.weight", "dense.0_folded.bias"]
    assert result.report.verification.verdict is Verdict.OK, result.report.verification
    x = image(2, 8, 12, 10, seed=5)
    assert same([result.model.module()(x)], [before.module()(x)], 2e-6)


def test_in_float64_only_rounding_is_left() -> None:
    net = settled(Net()).double()
    before = exported(net, image(1, 8, 12, 10).double())
    after = rewriter.apply(before, EXACT).model
    assert operators(after) == {"conv2d": 2, "relu_": 2, "add": 1}
    x = image(1, 8, 12, 10, seed=3).double()
    assert same(in_double(after, x), in_double(before, x), 1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_argument_is_never_changed(dtype: torch.dtype) -> None:
    x = image(2, 8, 12, 10).to(dtype)
    before = exported(settled(Net()).to(dtype), x)
    code, state = before.graph_module.code, copy.deepcopy(before.state_dict)
    rewriter.apply(before, ["all"])
    assert before.graph_module.code == code and list(before.state_dict) == list(state)
    assert all(torch.equal(before.state_dict[name], tensor) for name, tensor in state.items())
    assert str(before.graph_signature) == str(exported(settled(Net()).to(dtype), x).graph_signature)


def test_what_stands_before_a_new_node_keeps_its_origin() -> None:
    """The placeholders of a new layer are no nodes in front of it: those belong to somebody else."""
    net = nn.Sequential(nn.Sigmoid(), nn.Tanh(), nn.Conv2d(8, 8, 3, padding=(1, 2), bias=False), nn.BatchNorm2d(8))
    before = exported(settled(net), image(1, 8, 6, 6))
    after = rewriter.apply(before, EXACT).model
    origins = {node.name: node.meta["nn_module_stack"] for node in before.graph.nodes if node.op == "call_function"}
    found = {node.name: node.meta["nn_module_stack"] for node in after.graph.nodes if node.op == "call_function"}
    assert len(found) == 3 and all(found[name] == origins[name] for name in ("sigmoid", "tanh"))
    (conv,) = found.keys() - {"sigmoid", "tanh"}
    assert [path for path, _ in found[conv].values()][-1] == "2"


def test_nothing_to_do_gives_the_program_itself() -> None:
    before = exported(settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())), image(1, 3, 8, 8))
    result = rewriter.apply(before, EXACT)
    assert result.model is before and not result.report.changed


def test_it_saves_loads_and_runs_again(tmp_path: Path) -> None:
    before = exported(settled(Net()), image(2, 8, 12, 10))
    result = rewriter.apply(before, EXACT)
    saved = result.save(tmp_path / "shipped.pt2")
    loaded = program.load(bytesource.read(saved))  # without trust: the file is data in every part
    x = image(2, 8, 12, 10, seed=7)
    assert torch.equal(loaded.module()(x), result.model.module()(x))
    again = rewriter.apply(loaded, EXACT)
    assert not again.report.changed and again.model is loaded


def test_a_loaded_program_is_rewritten_as_a_fresh_one() -> None:
    whole = io.BytesIO()
    torch.export.save(exported(settled(Net()), image(2, 8, 12, 10)), whole)
    whole.seek(0)
    result = rewriter.apply(torch.export.load(whole), EXACT)
    assert operators(result.model) == {"conv2d": 2, "relu_": 2, "add": 1}
    assert result.report.verification.verdict is Verdict.OK


def open_sizes() -> torch.export.ExportedProgram:
    batch, high = torch.export.Dim("batch", min=2, max=16), torch.export.Dim("high", min=4)
    shapes = ({0: batch, 2: 2 * high},)
    return exported(settled(Net()), image(2, 8, 12, 10), dynamic_shapes=shapes)


@pytest.mark.parametrize("loaded", [False, True], ids=["fresh", "loaded"])
def test_open_sizes_stay_open_and_their_limits_stay(loaded: bool) -> None:
    before = open_sizes()
    if loaded:
        whole = io.BytesIO()
        torch.export.save(before, whole)
        whole.seek(0)
        before = torch.export.load(whole)
    result = rewriter.apply(before, EXACT)
    assert len(result.report.verification.inputs) == 8  # four kinds at two sizes
    assert result.model.range_constraints == before.range_constraints
    for size in (2, 12, 10), (5, 16, 10):
        x = image(size[0], 8, *size[1:], seed=2)
        assert same([result.model.module()(x)], [before.module()(x)], 2e-6)
    for module in (before.module(), result.model.module()):
        with pytest.raises(AssertionError, match="16"):
            module(image(17, 8, 12, 10))


def test_onnx_made_of_it_has_the_convolutions_of_the_onnx_path(tmp_path: Path) -> None:
    before = exported(settled(Net()), image(2, 8, 12, 10))
    after = rewriter.apply(before, EXACT).model
    for made, path in ((before, tmp_path / "before.onnx"), (after, tmp_path / "after.onnx")):
        torch.onnx.export(made, (), str(path), dynamo=True, opset_version=18, external_data=False, verbose=False)
    there = op_histogram(rewriter.apply(tmp_path / "before.onnx", EXACT, verify=False).model)
    assert op_histogram(onnx.load(tmp_path / "after.onnx")) == there


def test_collapse_finds_the_block_by_itself() -> None:
    before = exported(settled(RepVGG()), image(2, 8, 12, 10))
    assert operators(rewriter.apply(before, ["collapse"]).model) == {"conv2d": 1, "relu_": 1}


def test_the_fold_map_names_tensors_of_the_state_dict() -> None:
    before = exported(settled(RepVGG()), image(2, 8, 12, 10))
    result = rewriter.apply(before, EXACT)
    weight = next(f for f in result.report.folds if f.tensor == "dense.0_folded.weight")
    assert {"dense.0.weight", "dense.1.weight", "small.0.weight", "skip.running_var"} <= set(weight.sources)
    assert set(weight.sources) <= before.state_dict.keys()


def test_a_tied_kernel_stays_for_the_other_layer() -> None:
    before = exported(settled(Tied()), image(1, 4, 8, 8))
    result = rewriter.apply(before, ["conv-bn"], set_=["cost=off"])
    assert operators(result.model)["conv2d"] == 2 and "batch_norm" not in operators(result.model)
    x = image(1, 4, 8, 8, seed=4)
    assert same([result.model.module()(x)], [before.module()(x)], 2e-6)


class Twice(nn.Module):
    """One block under two names, each of whose tensors torch.export lists twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one = self.two = RepVGG()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(x) + self.two(x * 2)


def test_a_block_of_two_names_leaves_no_tensor_behind() -> None:
    before = exported(settled(Twice()), image(2, 8, 12, 10))
    after = rewriter.apply(before, EXACT).model
    assert all("_folded" in name for name in after.state_dict) and len(after.state_dict) == 2  # it was one block
    x = image(2, 8, 12, 10, seed=5)
    assert same([after.module()(x)], [before.module()(x)], 2e-6)


def test_a_removed_output_leaves_the_structure_that_users_get() -> None:
    before = exported(settled(Two()), image(1, 3, 8, 8))
    main = before.graph_signature.user_outputs[0]
    after = rewriter.apply(before, ["aux-prune"], keep=[str(main)]).model
    assert list(after.state_dict) == ["trunk.weight", "trunk.bias", "main.weight", "main.bias"]
    x = image(1, 3, 8, 8)
    assert after.module()(x).keys() == {"main"}
    assert torch.equal(after.module()(x)["main"], before.module()(x)["main"])


def test_an_input_may_be_called_as_a_builtin_is() -> None:
    before = exported(settled(nn.Sequential(RepVGG())), image(2, 8, 12, 10))
    assert before.graph_signature.user_inputs == ("input",)
    after = rewriter.apply(before, EXACT).model
    assert after.graph_signature.user_inputs == ("input",) and operators(after) == {"conv2d": 1, "relu_": 1}


class Shuffled(nn.Module):
    """Views that need what is read to lie in order, which a copy that goes saw to."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x)).view(2, 2, 2, 7, 6).transpose(1, 2).contiguous().view(2, 4, 7, 6)
        return y.permute(0, 2, 3, 1).contiguous().view(-1, 4)


@pytest.mark.parametrize("core", [False, True])
def test_views_stand_where_a_copy_went(core: bool) -> None:
    x = image(2, 4, 7, 6)
    before = exported(settled(Shuffled()), x)
    before = before.run_decompositions() if core else before
    result = rewriter.apply(before, ["deploy"])
    assert not {"contiguous", "clone"} & operators(result.model).keys()
    assert same([result.model.module()(x)], [before.module()(x)], 2e-6)


class Strided(nn.Module):
    """It reads memory as it lies, so that nothing before it may lie otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_strided(self.norm(self.conv(x)).transpose(2, 3).contiguous(), (4, 5), (5, 1))


def test_what_is_read_as_it_lies_in_memory_stays() -> None:
    before = exported(settled(Strided()), image(2, 4, 7, 6))
    assert not rewriter.apply(before, ["deploy"]).report.changed


class Computed(nn.Module):
    """A kernel that is computed in the graph and has no name in the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.norm = nn.Parameter(image(4, 4, 3, 3)), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(nn.functional.conv2d(x, self.w / 2.5, None, 1, 1))


def test_a_computed_kernel_folds_and_gets_a_name_of_its_own() -> None:
    x = image(2, 4, 7, 6)
    before = exported(settled(Computed()), x)
    after = rewriter.apply(before, EXACT).model
    assert list(after.state_dict) == ["div_folded.weight", "div_folded.bias"]
    assert same([after.module()(x)], [before.module()(x)], 2e-6)


class Odd(nn.Module):
    """`same` padding of an even kernel beside a 1x1: more behind than before."""

    def __init__(self) -> None:
        super().__init__()
        self.even = nn.Conv2d(4, 4, 2, padding="same", bias=False)
        self.norm, self.small = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.even(x)) + self.small(x)


def test_pads_that_differ_on_two_sides_are_written_as_pads() -> None:
    before = exported(settled(Odd()).double(), image(1, 4, 7, 6).double())
    after = rewriter.apply(before, ["repconv"], set_=["cost=off"]).model
    assert operators(after) == {"conv2d": 1, "constant_pad_nd": 1}
    x = image(1, 4, 7, 6, seed=2).double()
    assert same(in_double(after, x), in_double(before, x), 1e-14)


def test_programs_in_core_aten_fold_too() -> None:
    before = exported(settled(RepVGG()), image(2, 8, 12, 10)).run_decompositions()
    result = rewriter.apply(before, EXACT)
    assert operators(result.model) == {"convolution": 1, "relu": 1}
    assert result.report.verification.verdict is Verdict.OK


def test_norms_in_training_mode_stay() -> None:
    before = exported(settled(RepVGG()).train(), image(2, 8, 12, 10))
    result = rewriter.apply(before, EXACT, verify=False)
    assert not result.report.changed
    assert any("training mode" in refusal.detail for refusal in result.report.refusals)


def test_norms_in_training_mode_keep_their_statistics_to_themselves() -> None:
    net = settled(
        nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
    )
    net[3].train()
    before = exported(net, image(2, 8, 12, 10))
    after = rewriter.apply(before, EXACT, verify=False).model
    assert operators(after)["batch_norm"] == 1
    mean = before.state_dict["3.running_mean"].clone()
    after.module()(image(2, 8, 12, 10))
    assert torch.equal(before.state_dict["3.running_mean"], mean)
    assert not torch.equal(after.state_dict["3.running_mean"], mean)


def test_what_has_no_meaning_for_programs_is_refused() -> None:
    before = exported(settled(RepVGG()), image(2, 8, 12, 10))
    with pytest.raises(UsageError, match="ONNX"):
        rewriter.apply(before, EXACT, rename={"x": "image"})
