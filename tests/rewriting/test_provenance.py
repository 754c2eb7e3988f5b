"""The fold map: which tensors of the original a new one was made of."""

from __future__ import annotations

from rewriter import api
from rewriter.reporting.record import FoldRecord
from tests.rewriting.small_models import SmallNet, rewritten


def test_a_kernel_is_made_of_what_multiplies_and_a_bias_of_everything() -> None:
    net = SmallNet()
    net.norm(net.conv("x", bias=True), "y")
    weight, bias, scale, shift, mean, var = (tensor.name for tensor in net.tensors)
    result, outcome = rewritten(net.model("y"))
    kernel, offset = (tensor.name for tensor in result.graph.initializer)
    assert outcome.matches[0].tensors == (
        FoldRecord(kernel, (weight, scale, var)),
        FoldRecord(offset, (weight, bias, scale, shift, mean, var)),
    )


def test_a_block_names_the_tensors_of_every_branch() -> None:
    net = SmallNet()
    net.block("x", "y")
    (kernel, offset) = api.apply(net.model("y"), verify=False).report.folds
    names = {tensor.name for tensor in net.tensors}
    assert set(offset.sources) == names and set(kernel.sources) < names
    assert len(kernel.sources) == 2 + 3 * 2  # two kernels, and scale and variance of three norms


def test_over_rounds_only_the_original_is_named() -> None:
    """A block whose sum is normed again in a later round: the tensor in between is in no map."""
    net = SmallNet()
    net.norm(net.block("x"), "y")
    result = api.apply(net.model("y"), verify=False)
    names = {tensor.name for tensor in net.tensors}
    assert {fold.tensor for fold in result.report.folds} == {tensor.name for tensor in result.model.graph.initializer}
    assert all(set(fold.sources) <= names for fold in result.report.folds)


def test_nothing_folded_is_an_empty_map() -> None:
    net = SmallNet()
    net.add("Relu", [net.conv("x")], "y")
    assert api.apply(net.model("y"), verify=False).report.folds == ()


def test_a_tensor_that_stays_is_in_no_map() -> None:
    net = SmallNet()
    shared = net.tensor(net.random.normal(size=(4, 4, 3, 3)), "shared")
    net.norm(net.conv("x", weight=shared), "y")
    net.add("Relu", [net.conv("y", weight=shared)], "z")
    result = api.apply(net.model("y", "z"), verify=False)
    stored = {tensor.name for tensor in result.model.graph.initializer}
    assert "shared" in stored and {fold.tensor for fold in result.report.folds} == stored - {"shared"}
