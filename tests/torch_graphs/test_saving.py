"""Results as files: read back by readers that share no code with us, they give the same numbers."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import rewriter
from fixtures import blocks
from rewriter.checkpoints import agreement, bytesource, program
from rewriter.errors import InputError, OutputError, UsageError, VerificationError
from tests.cli.conftest import listing
from tests.torch_graphs.nets import Net, RepVGG, Tied, Two, exported, image, same, settled

EXACT = ["repconv", "conv-bn", "bypass"]
pytestmark = pytest.mark.filterwarnings("ignore")  # of torch about itself


class Reader:
    """The two files as a function, by what described.py says of them."""

    def __init__(self, path: Path) -> None:
        self.document: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
        self.tensors = load_file(path)

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        document = self.document
        values: dict[str, Any] = dict(self.tensors)
        values |= {given["name"]: value.clone() for given, value in zip(document["inputs"], inputs, strict=True)}
        with torch.no_grad():
            for node in document["nodes"]:
                values[node["outputs"][0]] = self.call(node, values)
        return [values[name] for name in self.outputs(document["outputs"])]

    def outputs(self, found: Any) -> list[str]:
        if isinstance(found, dict):
            named = found.get("value", found.get("name"))
            return [named] if isinstance(named, str) else [n for item in found.values() for n in self.outputs(item)]
        return [n for item in found for n in self.outputs(item)]

    def call(self, node: dict[str, Any], values: dict[str, Any]) -> Any:
        waiting = iter(node["inputs"])
        given = {name: plain(value, values) for name, value in node["attributes"].items()}

        def take() -> Any:
            found = next(waiting)
            return [values.get(n) for n in found] if isinstance(found, list) else values[found]

        space, _, rest = node["op"].partition(".")
        if space == "aten":
            packet, overload = rest.split(".")
            called = getattr(getattr(torch.ops.aten, packet), overload)
            found = {a.name: given[a.name] if a.name in given else take() for a in called._schema.arguments}
            return called(**found)
        count = len(node["inputs"]) + sum(name.isdigit() for name in given)
        args = [given[str(place)] if str(place) in given else take() for place in range(count)]
        words = {name: value for name, value in given.items() if not name.isdigit()}
        if node["op"] == "module":
            return self.layer(node["module"])(*args, **words)
        if space == "Tensor":
            return getattr(args[0], rest)(*args[1:], **words)
        return getattr(operator if space == "_operator" else torch, rest.rpartition(".")[2])(*args, **words)

    def layer(self, path: str) -> nn.Module:
        found = self.document["modules"][path]
        state = {n.removeprefix(f"{path}."): t for n, t in self.tensors.items() if n.startswith(f"{path}.")}
        for name, other in self.document["tied"].items():
            if name.startswith(f"{path}."):
                state[name.removeprefix(f"{path}.")] = self.tensors[other]
        made = getattr(nn, found["class"].rpartition(".")[2])
        wanted = {name: value for name, value in found["settings"].items() if name not in ("output_padding",)}
        layer = made(**wanted, **({"bias": "bias" in state} if "in_channels" in wanted else {}))
        layer.load_state_dict(state)
        return layer.train(self.document["training"])


def plain(value: Any, values: dict[str, Any]) -> Any:
    if isinstance(value, dict) and value.keys() == {"value"}:
        return values[value["value"]]
    if isinstance(value, list):
        return [plain(item, values) for item in value]
    return getattr(torch, value[6:]) if isinstance(value, str) and value.startswith("torch.") else value


class Odd(nn.Module):
    """A name that an input has too, a table that no checkpoint holds, joins, sizes, and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.x = nn.Parameter(torch.tensor([0.5, 1.0, 2.0]).reshape(3, 1, 1))
        self.register_buffer("table", torch.arange(3.0).reshape(3, 1, 1), persistent=False)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        a, b = self.norm(self.conv(x)).chunk(2, dim=1)
        y = torch.cat((a * self.x, b + self.table), 1)
        return y.flatten(2).to(torch.float64), y[:, None, :, 1:]


@pytest.mark.parametrize("net", [Net, Tied, Two, Odd], ids=["net", "tied", "structured", "odd"])
def test_weights_of_a_program_and_their_structure_are_the_program(net: Callable[[], nn.Module], tmp_path: Path) -> None:
    x = image(2, {Net: 8, Two: 3}.get(net, 4), 12, 10)  # type: ignore[call-overload]
    result = rewriter.apply(exported(settled(net()), x), EXACT)
    assert result.save(tmp_path / "ship.safetensors") == tmp_path / "ship.safetensors"
    reader = Reader(tmp_path / "ship.safetensors")
    found = reader(x)
    assert same(found, torch.utils._pytree.tree_leaves(result.model.module()(x)), 0.0)
    assert {f.tensor: [*f.sources] for f in result.report.folds} == reader.document["folds"]
    assert reader.document["folds"].keys() <= reader.tensors.keys()
    state = {**reader.tensors, **{n: reader.tensors[o] for n, o in reader.document["tied"].items()}}
    assert state.keys() - result.model.state_dict.keys() == set(reader.document["constants"])


def test_open_sizes_are_words(tmp_path: Path) -> None:
    shapes = ({0: torch.export.Dim("batch", min=2)},)
    made = exported(settled(Net()), image(2, 8, 12, 10), dynamic_shapes=shapes)
    result = rewriter.apply(made, EXACT)
    result.save(tmp_path / "ship.safetensors")
    reader, x = Reader(tmp_path / "ship.safetensors"), image(5, 8, 12, 10)
    assert isinstance(reader.document["inputs"][0]["shape"][0], str)
    assert same(reader(x), [result.model.module()(x)], 0.0)


@pytest.mark.parametrize("net", [Net, Tied, Two], ids=["net", "tied", "structured"])
def test_a_traced_module_is_written_too(net: Callable[[], nn.Module], tmp_path: Path) -> None:
    x = image(2, {Net: 8, Two: 3}.get(net, 4), 12, 10)  # type: ignore[call-overload]
    result = rewriter.apply(torch.fx.symbolic_trace(settled(net())), EXACT, example_inputs=x)
    result.save(tmp_path / "ship.safetensors")
    reader = Reader(tmp_path / "ship.safetensors")
    wanted = torch.utils._pytree.tree_leaves(result.model(x))
    assert same(reader(x), wanted, 0.0)
    state = {**reader.tensors, **{n: reader.tensors[o] for n, o in reader.document["tied"].items()}}
    assert state.keys() == result.model.state_dict().keys()  # which a copy takes
    result.model.load_state_dict(state)
    again = program.load(bytesource.read(result.save(tmp_path / "ship.pt2")))
    assert same(torch.utils._pytree.tree_leaves(again.module()(x)), wanted, 0.0)


def run(path: Path, *inputs: Tensor) -> list[Tensor]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = {given.name: x.numpy() for given, x in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(np.asarray(value)) for value in session.run(None, feeds)]


@pytest.mark.parametrize("traced", [False, True], ids=["program", "module"])
def test_onnx_keeps_open_sizes_and_computes_the_same(traced: bool, tmp_path: Path) -> None:
    net, shapes = settled(Net()), ({0: torch.export.Dim("batch", min=2)},)
    given = {"example_inputs": image(2, 8, 12, 10), "dynamic_shapes": shapes}
    result = rewriter.apply(torch.fx.symbolic_trace(net) if traced else net, EXACT, **given)
    made = onnx.load(result.save(tmp_path / "ship.onnx"))
    assert [(entry.domain, entry.version) for entry in made.opset_import] == [("", 18)] and made.ir_version <= 10
    x = image(5, 8, 12, 10, seed=4)
    assert same(run(tmp_path / "ship.onnx", x), [result.model(x)], 2e-6)
    result.save(tmp_path / "ship.pt2")
    assert same([rewriter.apply(tmp_path / "ship.pt2").model.module()(x)], [result.model(x)], 0.0)


def test_an_export_that_gives_other_numbers_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = rewriter.apply(exported(settled(Net()), image(2, 8, 12, 10)), EXACT)
    told = rewriter.apply(exported(settled(Net()), image(2, 8, 12, 10)), EXACT, verify=False)
    monkeypatch.setitem(agreement.LIMITS, "float32", -1.0)
    with pytest.raises(VerificationError, match="nothing was written"):
        result.save(tmp_path / "ship.onnx")
    assert not listing(tmp_path)
    told.save(tmp_path / "ship.onnx")


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    result = rewriter.apply(exported(settled(Net()), image(2, 8, 12, 10)), EXACT)
    with pytest.raises(UsageError, match=r"\.pt2, \.onnx, \.safetensors"):
        result.save(tmp_path / "ship.pt")
    (tmp_path / "ship.json").write_text("mine")
    for name in ("ship.safetensors", "none/ship.onnx", "none/ship.safetensors", "none/ship.pt2"):
        with pytest.raises(OutputError):
            result.save(tmp_path / name)
    assert listing(tmp_path).keys() == {"ship.json"}
    result.save(tmp_path / "ship.safetensors", force=True)
    Reader(tmp_path / "ship.safetensors")
    path = result.save(tmp_path / "in.pt2")
    with pytest.raises(OutputError, match="is an input"):
        rewriter.apply(path).save(path, force=True)


def test_a_module_that_cannot_be_exported_is_told_what_to_do(tmp_path: Path) -> None:
    shapes = ({1: torch.export.Dim("channels")},)  # which the kernels fix
    net = torch.fx.symbolic_trace(settled(RepVGG()))
    result = rewriter.apply(net, EXACT, example_inputs=image(2, 8, 12, 10), dynamic_shapes=shapes)
    with pytest.raises(InputError, match=r"\.safetensors"):
        result.save(tmp_path / "ship.pt2")
    assert not listing(tmp_path)


@dataclass
class Boxes:
    whole: Tensor
    mean: Tensor


torch.export.register_dataclass(Boxes, serialized_type_name="boxes-of-a-test")


class Boxed(Net):
    def forward(self, x: Tensor) -> Boxes:  # type: ignore[override]
        y = super().forward(x)
        return Boxes(y, y.mean())


def test_outputs_in_a_class_of_the_user_are_held_against_torch_too(tmp_path: Path) -> None:
    result = rewriter.apply(settled(Boxed()), EXACT, example_inputs=image(2, 8, 12, 10))
    x = image(2, 8, 12, 10, seed=4)
    found, wanted = run(result.save(tmp_path / "ship.onnx"), x), result.model(x)
    assert same(found, [wanted.whole, wanted.mean], 2e-6)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,))


def test_bodies_have_no_form_beside_weights(tmp_path: Path) -> None:
    result = rewriter.apply(exported(Branching(), image(2, 3)), EXACT)
    with pytest.raises(UsageError, match=r"has a body; write the model as \.pt2"):
        result.save(tmp_path / "ship.safetensors")
    assert not listing(tmp_path)


def test_half_types_and_numbers_keep_their_bits(tmp_path: Path) -> None:
    net = settled(RepVGG()).bfloat16()
    result = rewriter.apply(exported(net, image(2, 8, 12, 10).bfloat16()), EXACT)
    result.save(tmp_path / "ship.safetensors")
    found = load_file(tmp_path / "ship.safetensors")
    assert {n: t.dtype for n, t in found.items()} == {n: t.dtype for n, t in result.model.state_dict.items()}
    assert all(torch.equal(t, result.model.state_dict[n]) for n, t in found.items())


def test_an_onnx_model_is_written_as_weights_too(tmp_path: Path) -> None:
    result = rewriter.apply(blocks.repvgg_identity(), EXACT)
    result.save(tmp_path / "ship.safetensors")
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in result.model.graph.initializer}
    found = load_file(tmp_path / "ship.safetensors")
    assert found.keys() == stored.keys() and all(np.array_equal(found[n].numpy(), stored[n]) for n in found)
    with pytest.raises(UsageError, match=r"write it as \.onnx"):
        result.save(tmp_path / "ship.pt2")
