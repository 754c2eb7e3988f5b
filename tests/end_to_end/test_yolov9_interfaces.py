"""The main job on exports that leave sizes open or give raw maps: the whole auxiliary branch goes in all of them.

Main reads batch, heights and widths with Shape from maps of the auxiliary head (shapes-and-rings.md), so that a
branch that is not re-rooted stays whole: parameters are counted exactly, and outputs compared at sizes that the export
did not see.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from fixtures.cache import cached_export
from fixtures.export import Form, export
from fixtures.judge import cone, conv_count, count_params, op_histogram
from fixtures.yolov9 import DualModel, build
from rewriter import api
from tests.end_to_end.judging import noise, relative, run
from tests.end_to_end.test_yolov9 import CLOSE, PATTERNS, TABLE, one_torch_thread

__all__ = ["one_torch_thread"]

SIZE = 64
OPEN_SIZES = ((2, 64, 96), (1, 96, 64), (3, 128, 64))
KINDS = ("batch", "open", "raw", "open-raw")
FORMS: tuple[Form, ...] = ("legacy", "dynamo")
FAST = {("n", "legacy", kind) for kind in KINDS} | {("n", "dynamo", "open"), ("n", "dynamo", "raw")}
CASES = [
    pytest.param(name, form, kind, id=f"{name}-{form}-{kind}", marks=() if case in FAST else pytest.mark.slow)
    for name in TABLE
    for form in FORMS
    for kind in KINDS
    for case in ((name, form, kind),)
]


@lru_cache(maxsize=1)
def torch_model(name: str) -> DualModel:
    return build(name)


@pytest.fixture
def exported(name: str, form: Form, kind: str, tmp_path: Path) -> Iterator[tuple[Path, DualModel]]:
    """The file, which goes after the test (the largest has 280 MB), and the model behind it."""
    model = torch_model(name)
    model.head.dynamic, model.head.raw_outputs = "open" in kind, "raw" in kind
    model.head.known = None
    if name == "n" and kind != "batch":  # other tests read the same files
        size = 128 if kind == "open" else SIZE
        yield cached_export(name, form, size, dynamic=model.head.dynamic, raw_outputs=model.head.raw_outputs), model
        return
    path = export(model, form, SIZE, tmp_path / "training.onnx", any_batch=kind == "batch")
    yield path, model
    path.unlink()


@pytest.mark.parametrize(("name", "form", "kind"), CASES)
def test_the_auxiliary_branch_goes_whole(name: str, form: Form, kind: str, exported: tuple[Path, DualModel]) -> None:
    source, model = exported
    declared = [output.name for output in onnx.load(source).graph.output]
    auxiliary, main = (declared[0], *declared[2:5]), (declared[1], *declared[5:])
    result = api.apply(source, PATTERNS, verify=False)
    (decision,) = result.report.decisions
    assert decision.how == "by votes"
    assert (decision.removed, decision.kept) == (auxiliary, main)
    assert all(size.new is not None for size in decision.sizes)

    wanted = TABLE[name]
    assert count_params(result.model) == wanted.parameters == result.report.after.parameters
    assert conv_count(result.model) == wanted.convs
    assert not {"BatchNormalization", "Identity"} & op_histogram(result.model).keys()
    graph = result.model.graph
    assert sorted(cone(graph, list(main))) == [*range(len(graph.node))]
    onnx.checker.check_model(result.model, full_check=True)
    for size in _sizes(kind):
        image = noise(size[0], 3, *size[1:], seed=7)
        with torch.no_grad():
            outputs = [value.numpy() for value in model(torch.from_numpy(image))]
        found = run(result.model, {"images": image})
        for name_, expected in zip(main, (outputs[1], *outputs[5:]), strict=True):
            assert relative(found[name_], expected) <= CLOSE
        assert found[main[0]].shape[2] == outputs[0].shape[2] and np.ptp(found[main[0]]) > 0


def _sizes(kind: str) -> tuple[tuple[int, int, int], ...]:
    if "open" in kind:
        return OPEN_SIZES
    return ((1, SIZE, SIZE), (3, SIZE, SIZE)) if kind == "batch" else ((1, SIZE, SIZE),)
