"""The layout shows the architecture: rooms import in one direction only, and light modules stay light."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "rewriter"

# From what is read to what is shown; a room may import from those before it. Records are plain data that all hand on.
ORDER = ["errors", "version", "checking", "graph", "dims", "language", "reporting"]
ORDER += ["matching", "algebra", "rewriting", "checkpoints", "torch_graphs", "api"]
SHELL = ["commandline", "cli", "__main__", "__init__"]
# Rooms that may import torch, inside functions only, so that nobody else waits for it.
TORCH = ["checkpoints", "torch_graphs"]
APART = {"algebra": "onnx", "matching": "onnx"}  # rooms that know nothing of a file format


def test_rooms_import_only_from_rooms_before_them() -> None:
    rank = {room: i for i, room in enumerate([*ORDER, *SHELL])}
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {target}"
        for path, target in _imports()
        if target.startswith("rewriter.") and rank.get(_room_of(target), 0) > rank.get(_room(path), len(rank))
    ]
    assert not wrong


def test_algebra_and_matching_know_nothing_of_onnx() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {target}"
        for path, target in _imports()
        if target.split(".")[0] == APART.get(_room(path)) or (_room(path) in APART and target == "rewriter.graph.onnx")
    ]
    assert not wrong


def test_nothing_on_the_onnx_path_imports_torch() -> None:
    assert not [path for path, target in _imports() if _is_torch(target) and _room(path) not in TORCH]


def test_rooms_that_may_import_torch_do_so_when_it_is_needed() -> None:
    assert not [path for path, target in _imports(whole=False) if _is_torch(target)]


def _is_torch(target: str) -> bool:
    return target.split(".")[0] in ("torch", "torchvision", "safetensors", "onnxscript")


def _imports(*, whole: bool = True) -> Iterator[tuple[Path, str]]:
    """Every import of the package, or only those that importing its modules carries out."""
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(module) if whole else module.body:
            if isinstance(node, ast.Import):
                yield from ((path, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield path, node.module


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _room_of(module: str) -> str:
    return module.split(".")[1]
