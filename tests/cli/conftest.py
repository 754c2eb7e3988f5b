"""The command in this process, small models to give it, and what a folder holds before and after."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest

from fixtures import blocks
from rewriter import cli
from tests.matching.heads import dual


@dataclass(frozen=True, slots=True)
class Ran:
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


def listing(folder: Path) -> dict[str, str]:
    """Every path below `folder`, hidden ones too, with what it holds."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder"
    return found


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("apply", path)`; whatever the outcome, no traceback may be seen."""

    monkeypatch.setenv("COLUMNS", "100")

    def call(*words: object) -> Ran:
        capsys.readouterr()
        code = cli.run([str(word) for word in words])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.out + shown.err
        return Ran(code, shown.out, shown.err)

    return call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of its own, so that what lies elsewhere in tmp_path is not counted."""
    made = tmp_path / "work"
    made.mkdir()
    return made


@pytest.fixture
def net(folder: Path) -> Path:
    """A RepVGG block: three branches that fold into one conv."""
    path = folder / "net.onnx"
    onnx.save(blocks.repvgg_identity(), path)
    return path


@pytest.fixture
def heads(folder: Path) -> Path:
    """A detector whose auxiliary head is deeper than the main one: the votes contradict each other."""
    path = folder / "heads.onnx"
    onnx.save(dual(aux_convs=9), path)
    return path
