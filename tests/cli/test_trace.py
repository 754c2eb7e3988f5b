"""`trace`, `apply CHECKPOINT` and `inspect CHECKPOINT` as a user meets them."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from safetensors.torch import load_file
from torch import nn

from rewriter.reporting.json import SCHEMAS, schema
from tests.checkpoints.zips import Mine
from tests.cli.conftest import Run, listing

CODE = '''
import torch
from torch import nn

class Block(nn.Module):
    """A RepVGG block in training form."""
    def __init__(self, width):
        super().__init__()
        conv = lambda k: nn.Sequential(nn.Conv2d(width, width, k, padding=k // 2, bias=False), nn.BatchNorm2d(width))
        self.wide, self.point, self.skip = conv(3), conv(1), nn.BatchNorm2d(width)
    def forward(self, image):
        return torch.relu(self.wide(image) + self.point(image) + self.skip(image))

def build(width=4):
    return Block(width)

def fails():
    raise RuntimeError("no such variant")
'''
LEGACY = ("--exporter", "legacy")
INPUT = ("--input", "images=1x4x8x8")


@pytest.fixture
def model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """The model of a user who stands in the folder of their own code, weights and statistics drawn."""
    (folder / "their_model.py").write_text(CODE)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "their_model", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # the folder holds what the commands write, and nothing else
    import their_model  # type: ignore[import-not-found]

    torch.manual_seed(3)
    made: nn.Module = their_model.build()
    for part in made.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2.0)
            part.weight.data.uniform_(0.5, 1.5)
    return made.eval()


@pytest.fixture
def checkpoint(folder: Path, model: nn.Module) -> Path:
    """Half precision, wrapped, with everything that training leaves in it, and code that says when it is run."""
    averaged = {f"module.{name}": value.half() for name, value in model.state_dict().items()}
    last = {name: value * 0.5 for name, value in averaged.items()}
    value = {"model": last, "ema": averaged, "optimizer": {"state": {0: torch.zeros(9)}, "param_groups": []}}
    value |= {"date": "2024-02-01", "args": argparse.Namespace(data="/home/me"), "x": Mine(folder / "ran")}
    torch.save(value, folder / "last.pt")
    return folder / "last.pt"


def agrees(path: Path, model: nn.Module) -> bool:
    image = np.random.default_rng(0).normal(size=(1, 4, 8, 8)).astype(np.float32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: image})
    with torch.no_grad():
        wanted = model.half().float()(torch.from_numpy(image)).numpy()
    return bool(np.allclose(found, wanted, rtol=1e-3, atol=1e-4))


@pytest.mark.parametrize("exporter", ["legacy", "dynamo"])
def test_a_checkpoint_becomes_onnx(exporter: str, checkpoint: Path, model: nn.Module, folder: Path, run: Run) -> None:
    words = ["--model", "their_model:build", "--arg", "width=4", "--exporter", exporter, "--output-names", "boxes"]
    ran = run("trace", checkpoint, *words, *INPUT, "-o", "net.onnx")
    assert (ran.code, ran.out) == (0, ""), ran.err
    for said in (
        "read as data",
        "averaged weights (EMA)",
        "'optimizer'",
        "'args'",
        "module.",
        "float16, cast to float32",
    ):
        assert said in ran.err
    graph = onnx.load("net.onnx").graph
    assert [i.name for i in graph.input] == ["images"] and [o.name for o in graph.output] == ["boxes"]
    assert agrees(Path("net.onnx"), model) and not (folder / "ran").exists()
    whole = Path("net.onnx").read_bytes()
    assert b"/home/me" not in whole and b"2024" not in whole


@pytest.mark.parametrize(("dtype", "exporter"), [("bfloat16", "legacy"), ("float64", "legacy"), ("float64", "dynamo")])
def test_types_that_the_engine_lacks_are_run_as_float32(
    dtype: str, exporter: str, checkpoint: Path, folder: Path, run: Run
) -> None:
    words = ["--model", "their_model:build", *INPUT, "--dtype", dtype, "--exporter", exporter, "-o", "net.onnx"]
    ran = run("trace", checkpoint, *words)
    assert ran.code == 0, ran.err
    assert "(run as float32)" in ran.err
    stored = {TensorProto.DataType.Name(tensor.data_type).lower() for tensor in onnx.load("net.onnx").graph.initializer}
    assert stored == {"double" if dtype == "float64" else dtype}


def test_apply_does_both(checkpoint: Path, model: nn.Module, folder: Path, run: Run) -> None:
    ran = run("apply", checkpoint, "--model", "their_model:build", *LEGACY, *INPUT, "--report", "r.json")
    assert ran.code == 0, ran.err
    assert "".join(ran.out.split()).startswith(f"{checkpoint}→{checkpoint}.rewritten.onnx")
    made = folder / "last.pt.rewritten.onnx"
    assert sorted(node.op_type for node in onnx.load(made).graph.node) == ["Conv", "Relu"]
    assert agrees(made, model)
    report = json.loads((folder / "r.json").read_text())
    stored = {tensor.name for tensor in onnx.load(made).graph.initializer}
    assert {fold["tensor"] for fold in report["folds"]} == stored and all(fold["sources"] for fold in report["folds"])


def test_weights_alone_with_their_structure(checkpoint: Path, folder: Path, run: Run) -> None:
    words = ["apply", checkpoint, "--model", "their_model:build", *LEGACY, *INPUT]
    assert run(*words, "-o", "ship.onnx").code == 0
    ran = run(*words, "-o", "ship.safetensors")
    assert ran.code == 0, ran.err
    found = load_file("ship.safetensors")
    wanted = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load("ship.onnx").graph.initializer}
    assert found.keys() == wanted.keys() and all(np.array_equal(found[k].numpy(), v) for k, v in wanted.items())
    document = json.loads(Path("ship.json").read_text())
    assert [node["op"] for node in document["nodes"]] == ["Conv", "Relu"]
    assert document["folds"].keys() == found.keys() and document["inputs"][0]["name"] == "images"
    before = listing(folder)
    ran = run(*words, "-o", "ship.safetensors")
    assert ran.code == 2 and "exists" in ran.err and listing(folder) == before
    os.unlink("ship.safetensors")
    assert run(*words, "-o", "ship.safetensors").code == 2  # the structure still stands there


def test_a_program_that_loads_without_trust(checkpoint: Path, model: nn.Module, folder: Path, run: Run) -> None:
    words = ["--model", "their_model:build", *INPUT, "--dynamic", "images=0:batch,2:high"]
    ran = run("trace", checkpoint, *words, "-o", "net.pt2")
    assert ran.code == 0, ran.err
    program = torch.export.load("net.pt2")
    assert program.module()(torch.zeros(3, 4, 12, 8)).shape == (3, 4, 12, 8)
    shown = run("inspect", "net.pt2")
    assert shown.code == 0 and "loads without running anything" in shown.out
    ran = run("trace", "net.pt2", "-o", "net.onnx")
    assert ran.code == 0 and "largest difference" in ran.err
    assert agrees(Path("net.onnx"), model)
    assert run("trace", "net.pt2", "--key", "x", "-o", "b.onnx").code == 2
    ran = run("apply", "net.pt2", "-o", "ship.onnx")
    assert ran.code == 0 and agrees(Path("ship.onnx"), model), ran.err


def test_a_program_without_example_inputs(model: nn.Module, folder: Path, run: Run) -> None:
    program = torch.export.export(model, (torch.zeros(1, 4, 8, 8),))
    program.example_inputs = None
    torch.export.save(program, "net.pt2")
    assert "loads without running anything" in run("inspect", "net.pt2").out
    ran = run("trace", "net.pt2", "-o", "net.onnx")
    assert ran.code == 5 and "no example inputs" in ran.err and not (folder / "net.onnx").exists()
    assert run("trace", "net.pt2", "-o", "net.onnx", "--no-verify").code == 0


def test_a_whole_module_runs_only_when_it_is_trusted(model: nn.Module, folder: Path, run: Run) -> None:
    torch.save({"ema": model.half(), "x": Mine(folder / "ran")}, "m.pt")
    before = listing(folder)
    ran = run("trace", "m.pt", *INPUT, *LEGACY, "-o", "net.onnx")
    assert (ran.code, listing(folder)) == (3, before)
    assert "their_model.Block" in ran.err and "can do anything" in ran.err and "--trust --code DIR" in ran.err
    assert run("trace", "m.pt", *INPUT, *LEGACY, "--code", folder, "-o", "net.onnx").code == 2
    assert run("trace", "m.pt", *INPUT, *LEGACY, "--model", "their_model:build", "-o", "data.onnx").code == 0
    assert agrees(Path("data.onnx"), model) and not (folder / "ran").exists()
    ran = run("trace", "m.pt", *INPUT, *LEGACY, "--trust", "--code", folder, "-o", "net.onnx")
    assert ran.code == 0 and "--trust" in ran.err and (folder / "ran").exists() and agrees(Path("net.onnx"), model)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--model", "their_model"], 2, "pkg.mod:factory"),
        (["--model", "absent_module:build"], 2, "cannot be imported"),
        (["--model", "their_model:absent"], 2, "has no absent"),
        (["--model", "their_model:fails"], 2, "no such variant"),
        (["--model", "their_model:CODE"], 2, "has no CODE"),
        (["--model", "their_model:build", "--arg", "width=8"], 3, "in the model"),
        (["--model", "their_model:build", "--key", "absent"], 2, "--key"),
        (["--model", "their_model:build", "--input", "x=1x4"], 2, "given twice"),
        (["--model", "their_model:build", "--dynamic", "other=0:n"], 2, "--dynamic"),
        ([], 3, "would run code"),
    ],
)
def test_what_a_user_can_get_wrong(
    words: list[str], code: int, said: str, checkpoint: Path, folder: Path, run: Run
) -> None:
    before = listing(folder)
    given = ["--input", "x=1x4x8x8"] if "x=1x4" in words else [*INPUT]
    ran = run("trace", checkpoint, *given, *LEGACY, *words, "-o", "net.onnx")
    assert (ran.code, ran.out) == (code, "") and said in ran.err, ran.err
    assert {k: v for k, v in listing(folder).items() if "__pycache__" not in k} == before


def test_sizes_that_the_model_cannot_take(checkpoint: Path, run: Run) -> None:
    ran = run("trace", checkpoint, "--model", "their_model:build", "--input", "1x3x8x8", *LEGACY, "-o", "net.onnx")
    assert ran.code == 3 and "--input" in ran.err
    assert run("trace", checkpoint, "--model", "their_model:build", "--input", "1x4x8", "-o", "n.txt").code == 2


def test_an_export_that_computes_something_else_is_not_written(
    checkpoint: Path, folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rewriter.checkpoints import agreement

    monkeypatch.setattr(agreement, "_run", lambda prepared, loaded: ([np.ones((1, 4, 8, 8))], ()))
    for command in ("trace", "apply"):
        ran = run(command, checkpoint, "--model", "their_model:build", *INPUT, *LEGACY, "-o", "net.onnx")
        assert ran.code == 5 and "largest difference" in ran.err and not (folder / "net.onnx").exists()


def test_inspect_lists_what_people_ship_by_mistake(checkpoint: Path, folder: Path, run: Run) -> None:
    before = listing(folder)
    ran = run("inspect", checkpoint)
    assert ran.code == 0 and listing(folder) == before
    for said in ("EMA state dict", "optimizer state", "2024-02-01", "arguments", "repeats the tensors", "float16"):
        assert said in ran.out
    found = json.loads(run("inspect", checkpoint, "--json").out)
    import jsonschema

    jsonschema.validate(found, schema(SCHEMAS["checkpoint"]))
    shipped = {entry["key"]: entry["shipped"] for entry in found["entries"]}
    assert shipped["ema"] == "taken" and shipped["model"] == "on request" and shipped["optimizer"] == "left behind"
    assert found["needs_trust"] and "argparse.Namespace" in found["code"]


def test_hostile_texts_in_a_checkpoint_are_written_out(folder: Path, run: Run) -> None:
    nasty = "x\x1b[2J[red]\r\n\u202e"
    torch.save({nasty: {nasty: torch.zeros(2)}, "date": nasty, "args": {nasty: 1}}, folder / "n.pt")
    ran = run("inspect", folder / "n.pt")
    assert ran.code == 0 and not set(ran.out) & {"\x1b", "\r", "\u202e"} and "[red]" in ran.out


def test_damaged_checkpoints_end_in_a_message(checkpoint: Path, folder: Path, run: Run) -> None:
    """Cut off and with bytes flipped: exit 0 (nothing that matters was hit), 3 or 6, and never a traceback."""
    data = checkpoint.read_bytes()
    for position in range(1, len(data), len(data) // 60):
        for bad in (data[:position], data[:position] + bytes([data[position] ^ 0x41]) + data[position + 1 :]):
            (folder / "bad.pt").write_bytes(bad)
            ran = run("inspect", folder / "bad.pt")
            assert ran.code in (0, 3, 6), ran.err
            assert ran.code == 0 or ran.err.count("fxrewrite: error: ") == 1
    (folder / "bad.pt").write_bytes(data[:-9])
    assert run("trace", "bad.pt", "--model", "their_model:build", *INPUT, "-o", "x.onnx").code == 3
    os.mkfifo(folder / "pipe.pt")
    assert run("trace", "pipe.pt", "--model", "their_model:build", *INPUT, "-o", "x.onnx").code == 3
