"""`apply` from .pt2 to .pt2, and from a checkpoint to one."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

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
