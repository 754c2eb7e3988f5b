"""GraphModules in, GraphModules out, and what comes out is as good a module as any."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations

import rewriter
from rewriter.checking.record import Verdict
from tests.torch_graphs.nets import Net, RepVGG, Tied, Two, exported, image, operators, same, settled

EXACT = ["repconv", "conv-bn", "bypass"]
X = image(2, 8, 12, 10)
pytestmark = pytest.mark.filterwarnings("ignore")  # of torch about itself


def kinds(module: nn.Module) -> list[str]:
    return sorted(type(part).__name__ for part in module.modules() if not list(part.children()))


def rewritten(net: nn.Module, *inputs: Tensor, patterns: list[str] | None = None, **options: Any) -> fx.GraphModule:
    result = rewriter.apply(fx.symbolic_trace(net), patterns or EXACT, example_inputs=inputs or (X,), **options)
    assert result.report.verification.verdict is Verdict.OK, result.report.verification
    assert isinstance(result.model, fx.GraphModule)
    return result.model


def shipped() -> fx.GraphModule:
    return rewritten(settled(Net()))


def test_a_net_becomes_convolutions_and_computes_the_same() -> None:
    net = settled(Net()).double()
    after = rewritten(net, X.double())
    assert kinds(after) == ["Conv2d", "Conv2d", "ReLU", "ReLU"]
    assert list(after.state_dict()) == [
        f"{block}.dense.0_folded.{role}" for block in ("one", "two") for role in ("weight", "bias")
    ]
    for size in (2, 8, 12, 10), (5, 8, 7, 9):
        x = image(*size, seed=3).double()
        assert same([after(x)], [net(x)], 1e-13)


def test_the_argument_is_never_changed() -> None:
    before = fx.symbolic_trace(settled(Net()))
    code, modules, state = before.code, dict(before.named_modules()), copy.deepcopy(before.state_dict())
    rewriter.apply(before, ["all"], example_inputs=X)
    assert before.code == code and dict(before.named_modules()) == modules
    assert all("val" not in node.meta for node in before.graph.nodes)
    assert all(torch.equal(before.state_dict()[name], tensor) for name, tensor in state.items())


def test_nothing_to_do_gives_the_module_itself() -> None:
    before = fx.symbolic_trace(settled(nn.Sequential(nn.Conv2d(8, 4, 3), nn.ReLU())))
    assert rewriter.apply(before, EXACT, example_inputs=X).model is before


def test_its_state_saves_and_loads(tmp_path: Path) -> None:
    one, other = shipped(), shipped()
    for parameter in other.parameters():
        parameter.data.zero_()
    torch.save(one.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(one(X), other(X))


def test_it_copies_and_changes_type() -> None:
    net = shipped()
    twin = copy.deepcopy(net)
    assert torch.equal(twin(X), net(X))
    twin.half()
    assert {p.dtype for p in twin.parameters()} == {torch.float16} and next(net.parameters()).dtype == torch.float32
    assert twin(X.half()).dtype == torch.float16


def test_it_is_trained_on_saved_loaded_and_compiled() -> None:
    net = shipped()
    assert all(p.requires_grad for p in net.parameters()) and not net.training
    net.train()
    assert all(part.training for part in net.modules())
    before = [p.detach().clone() for p in net.parameters()]
    optimiser = torch.optim.SGD(net.parameters(), lr=1e-3)
    losses: list[float] = []
    for _ in range(10):
        optimiser.zero_grad()
        loss = net(X).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0] and all(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    net.eval()
    loaded = shipped()
    loaded.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(loaded(X), net(X))
        assert same([torch.compile(net, backend="aot_eager")(X)], [net(X)], 1e-6)


@pytest.mark.slow
def test_compiled_to_machine_code_it_gives_the_same() -> None:
    net = shipped()
    with torch.no_grad():
        assert same([torch.compile(net)(X)], [net(X)], 1e-5)


def test_it_exports() -> None:
    program = exported(shipped(), X)
    assert operators(program) == {"conv2d": 2, "relu_": 2, "add": 1}
    assert not rewriter.apply(program, EXACT).report.changed


def test_training_mode_stays_and_keeps_norms() -> None:
    net = settled(Net()).train()
    result = rewriter.apply(fx.symbolic_trace(net), EXACT, example_inputs=X, verify=False)
    assert not result.report.changed and result.model.training


def test_frozen_parameters_give_frozen_ones() -> None:
    net = settled(Net()).requires_grad_(False)
    assert not any(p.requires_grad for p in rewritten(net).parameters())


def test_a_module_with_a_hook_stays_and_the_hook_runs() -> None:
    net = settled(RepVGG())
    seen: list[Tensor] = []
    net.dense[0].register_forward_hook(lambda module, args, output: seen.append(output))
    after = rewritten(net, patterns=["conv-bn", "repconv"])
    assert isinstance(after.get_submodule("dense.0"), nn.Conv2d) and isinstance(
        after.get_submodule("dense.1"), nn.BatchNorm2d
    )
    seen.clear()
    after(X)
    assert len(seen) == 1


class Twice(nn.Module):
    """One layer called twice, of which one call is followed by a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + torch.sigmoid(self.conv(torch.relu(x)))


@pytest.mark.parametrize("build", [Twice, Tied], ids=lambda c: c.__name__)
def test_what_two_layers_share_stays_for_the_other(build: Callable[[], nn.Module]) -> None:
    net = settled(build())
    x = X if build is Twice else X[:, :4]
    after = rewritten(net, x, set_=["cost=off"])
    assert kinds(after) == ["Conv2d", "Conv2d"]
    assert same([after(x)], [net(x)], 2e-6)


class Levels(nn.Module):
    """One head on three levels; the norm of a matrix product is its own bias in a module of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.line, self.scale = nn.Linear(10, 10), nn.Parameter(torch.linspace(1, 2, 10))

    def forward(self, x: Tensor) -> Tensor:
        levels = [torch.relu(self.norm(self.conv(level))) for level in (x, x.tanh(), x.sigmoid())]
        fine, middle, coarse = (torch.relu(self.line(level) * self.scale) for level in levels)
        return fine + middle + coarse


def test_a_head_on_three_levels_stays_one_head() -> None:
    net = settled(Levels())
    after = rewritten(net, X, patterns=["all"])
    assert kinds(after) == ["Conv2d", "Linear"] and str(after.graph).count("call_module") == 6
    parameters = sum(p.numel() for p in after.parameters())
    assert parameters == sum(p.numel() for p in net.parameters()) - 8 - 10
    assert same([after(X)], [net(X)], 2e-6)
    program = rewriter.apply(exported(net, X), ["all"]).model
    assert sum(p.numel() for p in program.parameters()) == parameters
    assert same([program.module()(X)], [net(X)], 2e-6)


class Unread(nn.Module):
    """A layer that is called twice, the second time for nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        torch.sigmoid(self.conv(x + 1))
        return self.norm(self.conv(x))


def test_what_nobody_reads_stays_with_what_it_reads() -> None:
    net, x = settled(Unread()), image(1, 3, 7, 6)
    before = exported(net, x).module()
    after = rewriter.apply(before, ["conv-bn"], example_inputs=(x,)).model
    assert str(before.graph).count("conv2d.default") == 2 and str(after.graph).count("conv2d.default") == 1
    assert "batch_norm.default" not in str(after.graph)
    assert same([after(x)], [net(x)], 2e-6)


class Functional(nn.Module):
    """The same block in functions and methods, its tensors parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        block = settled(RepVGG())
        self.kernel, self.small = nn.Parameter(block.dense[0].weight), nn.Parameter(block.small[0].weight)
        self.norm, self.scale = block.dense[1], nn.Parameter(image(8, 1, 1, seed=2))

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        y = F.batch_norm(
            torch.conv2d(x, self.kernel, padding=1), norm.running_mean, norm.running_var, norm.weight, bias=norm.bias
        )
        y = torch.add(y, F.conv2d(x, self.small), alpha=1).add_(x * self.scale)
        return F.relu(y, inplace=True)


def test_functions_and_methods_fold_too() -> None:
    net = settled(Functional())
    after = rewritten(net, patterns=[*EXACT, "collapse"])
    assert [type(part).__name__ for part in after.modules() if isinstance(part, nn.Conv2d)] == ["Conv2d"]
    assert same([after(X)], [net(X)], 2e-6)


def test_parametrized_layers_fold_as_they_are_read() -> None:
    net = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(8, 8, 3)), nn.BatchNorm2d(8))
    after = rewritten(settled(net))
    assert kinds(after) == ["Conv2d"] and list(after.state_dict()) == ["0_folded.weight", "0_folded.bias"]


class Cropped(nn.Module):
    """A wider conv, cropped to the size of the one beside it; its kernel is made of two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.small = nn.Conv2d(8, 8, 3, padding=2), nn.Conv2d(8, 8, 1)
        self.gate = nn.Parameter(image(8, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(x)[..., 1:-1, 1:-1] + F.conv2d(x, self.small.weight * self.gate.sigmoid())


def test_cuts_and_computed_kernels_fold_too() -> None:
    net = settled(Cropped()).double()
    after = rewritten(net, X.double(), patterns=["collapse"])
    assert kinds(after) == ["Conv2d"] and same([after(X.double())], [net(X.double())], 1e-13)


class Blended(nn.Module):
    """Operators whose sizes torch finds in Python alone, and which only run on the batch that they were traced with."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.rows = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Parameter(image(2, 8, 10, 8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return torch.addcmul(torch.lerp(y, y * 2, 0.3), y, self.rows)


def test_what_it_cannot_read_it_can_still_follow(capsys: pytest.CaptureFixture[str]) -> None:
    net = settled(Blended())
    after = rewritten(net)
    assert kinds(after) == ["Conv2d"] and same([after(X)], [net(X)], 2e-6)
    assert not capsys.readouterr().err


class Odd(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class Leaf(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Odd) or super().is_leaf_module(m, module_qualified_name)


def test_a_layer_of_another_forward_is_no_layer_of_torch() -> None:
    net = settled(nn.Sequential(Odd(8, 8, 3), nn.BatchNorm2d(8)))
    traced = fx.GraphModule(net, Leaf().trace(net))
    result = rewriter.apply(traced, EXACT, example_inputs=X)
    assert not result.report.changed


class Copied(nn.Module):
    """What works in place on a copy must not reach the original when the copy goes."""

    def __init__(self) -> None:
        super().__init__()
        self.copy, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2 + x.roll(1, -1)
        return self.act(y.clone()) + y


def test_a_copy_goes_only_with_what_works_in_place_on_it() -> None:
    net = Copied().eval()
    after = rewritten(net, patterns=["bypass"])
    assert same([after(X)], [net(X)], 0.0) and "clone" not in after.code


def test_an_output_that_goes_leaves_its_place_in_the_structure() -> None:
    net = settled(Two())
    traced = fx.symbolic_trace(net)
    main = traced.graph.output_node().args[0]["main"].name
    after = rewriter.apply(traced, ["aux-prune"], keep=[main], example_inputs=image(1, 3, 8, 8)).model
    assert list(after.state_dict()) == ["trunk.weight", "trunk.bias", "main.weight", "main.bias"]
    x = image(1, 3, 8, 8, seed=4)
    assert after(x).keys() == {"main"} and torch.equal(after(x)["main"], net(x)["main"])


class Unexportable(nn.Module):
    """torch.export refuses it, symbolic tracing does not."""

    def __init__(self) -> None:
        super().__init__()
        self.block = RepVGG()

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            raise RuntimeError("not in an export")
        return self.block(x)


def test_what_cannot_be_exported_is_traced_and_that_is_said(tmp_path: Path) -> None:
    result = rewriter.apply(settled(Unexportable()), EXACT, example_inputs=X)
    assert isinstance(result.model, fx.GraphModule) and result.report.matches
    assert "not in an export" in result.report.notes[0]
    result.save(tmp_path / "net.pt2")  # what torch.export refused is no longer in it


@pytest.mark.parametrize("form", [fx.symbolic_trace, lambda net: net], ids=["traced", "exported"])
def test_what_is_frozen_in_part_is_trained_in_part(form: Callable[[nn.Module], nn.Module]) -> None:
    net = settled(Net())
    net.one.requires_grad_(False)
    net.two.skip.bias.requires_grad_(False)
    made = rewriter.apply(form(net), EXACT, example_inputs=X).model
    trained = {name: p.requires_grad for name, p in made.named_parameters()}
    assert trained == {f"{one}.dense.0_folded.{t}": one == "two" for one in ("one", "two") for t in ("weight", "bias")}


def test_what_a_user_put_on_a_module_stays() -> None:
    traced, calls = fx.symbolic_trace(settled(Net())), list[str]()
    traced.names = ["cat", "dog"]
    traced.register_forward_pre_hook(lambda module, given: calls.append("before"))
    traced.register_forward_hook(lambda module, given, found: found * 2)
    wanted = traced(X)
    result = rewriter.apply(traced, EXACT, example_inputs=X)
    assert result.report.matches and result.report.verification.verdict is Verdict.OK
    calls.clear()
    assert same([result.model(X)], [wanted], 2e-6) and calls == ["before"] and result.model.names == ["cat", "dog"]
