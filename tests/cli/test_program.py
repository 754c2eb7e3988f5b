"""`apply` from .pt2 to .pt2, and from a checkpoint to one."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.conftest import Run
from tests.torch_graphs.nets import RepVGG, exported, image, operators, settled

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch about itself


@pytest.fixture
def archive(folder: Path) -> Path:
    torch.export.save(exported(settled(RepVGG()), image(2, 8, 12, 10)), folder / "net.pt2")
    return folder / "net.pt2"


def test_a_program_becomes_a_program(archive: Path, run: Run) -> None:
    done = run("apply", archive, "-o", archive.parent / "ship.pt2")
    assert done.code == 0, done.err
    shipped = torch.export.load(archive.parent / "ship.pt2")
    assert operators(shipped) == {"conv2d": 1, "relu_": 1}
    assert "verified" in done.err


def test_a_program_becomes_weights_in_its_own_names(archive: Path, run: Run) -> None:
    done = run("apply", archive, "-o", archive.parent / "ship.safetensors")
    assert done.code == 0, done.err
    state = torch.export.load(archive).state_dict
    document = json.loads((archive.parent / "ship.json").read_text())
    assert [node["op"] for node in document["nodes"]] == ["aten.conv2d.default", "aten.relu_.default"]
    assert all(set(sources) <= state.keys() for sources in document["folds"].values())
    assert document["folds"].keys() == load_file(archive.parent / "ship.safetensors").keys()


def test_a_program_that_counts_its_calls_is_not_called(folder: Path, run: Run) -> None:
    class Counting(RepVGG):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return super().forward(x)

    torch.export.save(exported(settled(Counting()), image(2, 8, 12, 10)), folder / "net.pt2")
    assert run("apply", folder / "net.pt2", "-o", folder / "ship.pt2").code == 0
    assert torch.export.load(folder / "ship.pt2").state_dict["calls"] == 0


def test_an_archive_that_may_run_code_needs_trust(archive: Path, run: Run) -> None:
    with zipfile.ZipFile(archive, "a") as file:
        root = file.namelist()[0].partition("/")[0]
        file.writestr(f"{root}/data/sample_inputs/other.pkl", b"cos\nsystem\n.")
    done = run("apply", archive, "-o", archive.parent / "ship.pt2")
    assert done.code == 3 and "--trust" in done.err and not (archive.parent / "ship.pt2").exists()


def test_a_checkpoint_becomes_a_program(folder: Path, run: Run) -> None:
    torch.save(settled(RepVGG()).state_dict(), folder / "last.pt")
    words = ("--model", "tests.torch_graphs.nets:RepVGG", "--input", "x=2x8x12x10", "-o", folder / "ship.pt2")
    done = run("apply", folder / "last.pt", *words)
    assert done.code == 0, done.err
    assert operators(torch.export.load(folder / "ship.pt2")) == {"conv2d": 1, "relu_": 1}


def test_an_onnx_model_cannot_become_one(folder: Path, run: Run) -> None:
    (folder / "net.onnx").write_bytes(b"no model")
    done = run("apply", folder / "net.onnx", "-o", folder / "ship.pt2")
    assert done.code == 2 and "ONNX" in done.err
