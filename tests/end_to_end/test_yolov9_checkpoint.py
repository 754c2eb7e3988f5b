"""A checkpoint as a YOLO-type trainer leaves it, to the form to ship, in one command and without trust.

The file pickles whole modules in half precision beside an optimizer's state. What is wanted comes from the published
table and from torch's own main output of the averaged weights.
"""

from __future__ import annotations

import copy
from pathlib import Path

import onnx
import pytest
import torch

from fixtures.judge import conv_count, count_params
from fixtures.yolov9 import DualModel, build
from rewriter import cli
from tests.end_to_end.judging import noise, relative, run
from tests.end_to_end.test_yolov9 import CLOSE, TABLE, one_torch_thread

__all__ = ["one_torch_thread"]

SIZE = 64
CASES = [
    pytest.param(name, exporter, id=f"{name}-{exporter}", marks=() if name == "n" else pytest.mark.slow)
    for name in TABLE
    for exporter in ("dynamo", "legacy")
]


def _checkpoint(name: str, path: Path) -> DualModel:
    """Write the checkpoint; the averaged model comes back in the float32 that a trace gives it."""
    averaged = build(name).half()
    last = copy.deepcopy(averaged)
    with torch.no_grad():
        for weight in last.parameters():
            weight.mul_(0.5)
    states = {place: {"momentum_buffer": weight.detach().clone()} for place, weight in enumerate(last.parameters())}
    optimizer = {"state": states, "param_groups": [{"lr": 0.01, "params": [*states]}]}
    torch.save({"epoch": 499, "model": last, "ema": averaged, "optimizer": optimizer, "date": "2024-02-01"}, path)
    return averaged.float()


@pytest.mark.parametrize(("name", "exporter"), CASES)
def test_one_command_from_the_checkpoint(
    name: str, exporter: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = _checkpoint(name, tmp_path / "last.pt")
    words = ["--model", "fixtures.yolov9:build", "--arg", name, "--arg", "calibrate=False", "--exporter", exporter]
    words += ["--input", f"images=1x3x{SIZE}x{SIZE}", "--patterns", "deploy", "-o", str(tmp_path / "ship.onnx")]
    assert cli.run(["apply", str(tmp_path / "last.pt"), *words]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "averaged weights (EMA)" in said and "read as data" in said and "'optimizer'" in said

    shipped = onnx.load(tmp_path / "ship.onnx")
    wanted = TABLE[name]
    assert (count_params(shipped), conv_count(shipped)) == (wanted.parameters, wanted.convs)
    image = noise(1, 3, SIZE, SIZE, seed=7)
    with torch.no_grad():
        main = model(torch.from_numpy(image))[1].numpy()
    (found,) = run(tmp_path / "ship.onnx", {"images": image}).values()
    assert relative(found, main) <= CLOSE


def test_without_a_factory_the_file_is_refused_and_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _checkpoint("n", tmp_path / "last.pt")
    code = cli.run(["apply", str(tmp_path / "last.pt"), "--input", f"1x3x{SIZE}x{SIZE}"])
    said = capsys.readouterr().err
    assert code == 3 and "--trust --code DIR" in said and "fixtures.yolov9.model.DualModel" in said
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]
