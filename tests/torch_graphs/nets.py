"""Small torch nets in training form, norms with statistics of their own, and judges that share no code with us."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Interpreter


def settled(net: nn.Module, seed: int = 0) -> nn.Module:
    """In evaluation mode, every norm with statistics, scale and shift that no fold could leave out unseen."""
    chance = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage]
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.copy_(torch.randn(module.num_features, generator=chance))
            module.running_var.copy_(torch.rand(module.num_features, generator=chance) + 0.5)
            if module.affine:
                module.weight.data.copy_(torch.randn(module.num_features, generator=chance))
                module.bias.data.copy_(torch.randn(module.num_features, generator=chance))
    return net.eval()


class RepVGG(nn.Module):
    """A 3x3, a 1x1 and the identity, each with its norm."""

    def __init__(self, width: int = 8, inplace: bool = True) -> None:
        super().__init__()
        self.dense = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.small = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width))
        self.skip = nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=inplace)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.dense(x) + self.small(x) + self.skip(x))


class Net(nn.Module):
    """Two blocks, a dropout, and the sum of what they give."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.one, self.two = RepVGG(width), RepVGG(width)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        return self.two(self.drop(y)) + y


class Tied(nn.Module):
    """Two layers on one kernel, one of which has a norm that folds."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.two.weight = self.one.weight
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.one(x)) * torch.sigmoid(self.two(x))


class Two(nn.Module):
    """A trunk with a main head and an auxiliary one, in a dict with a list."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.main, self.aux = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1), nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor | list[Tensor]]:
        y = torch.relu(self.trunk(x))
        return {"main": self.main(y), "aux": [self.aux(y)]}


def image(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def exported(net: nn.Module, *inputs: Tensor, **options: Any) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return torch.export.export(net, inputs, **options)


class _Double(Interpreter):
    """Every operator in float64, also where the graph names another float type."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if "_assert_tensor_metadata" in str(target):
            return None
        wide = {k: torch.float64 if v in (torch.float32, torch.float16) else v for k, v in kwargs.items()}
        return super().call_function(target, args, wide)


def in_double(program: torch.export.ExportedProgram, *inputs: Tensor) -> list[Tensor]:
    """What a program gives of float64 copies of its tensors."""
    waiting = iter(inputs)
    args: list[Any] = []
    for spec in program.graph_signature.input_specs:
        if spec.kind.name == "USER_INPUT":
            value: Any = next(waiting)
        else:
            value = program.state_dict.get(str(spec.target), program.constants.get(str(spec.target)))
        args.append(value.detach().double() if value.is_floating_point() else value.clone())
    with torch.no_grad():
        return [*_Double(program.graph_module).run(*args)]


def same(found: Sequence[Tensor], wanted: Sequence[Tensor], limit: float = 1e-12) -> bool:
    """Whether they agree to `limit` of the largest value."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        if not (one - other).abs().max() <= limit * other.abs().max():
            return False
    return True


def operators(program: torch.export.ExportedProgram) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in program.graph.nodes:
        if node.op == "call_function":
            name = str(node.target).removeprefix("aten.").partition(".")[0]
            counts[name] = counts.get(name, 0) + 1
    return counts
