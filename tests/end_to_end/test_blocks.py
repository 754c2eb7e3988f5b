"""Every generated block becomes what its fixture says, computes the same, and is then left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import ModelProto

from fixtures.blocks import BLOCKS, Net
from fixtures.disguise import disguised
from fixtures.judge import op_histogram
from rewriter import api
from rewriter.checking.record import Verdict
from tests.end_to_end.judging import doubled, noise, relative, run, run_double

PATTERNS = ["repconv", "conv-bn", "bypass"]
SINGLE, DOUBLE = 2e-6, 1e-13  # of the largest value: rounding on these small nets; a wrong border gives 1e-2


def image(model: ModelProto, dtype: type = np.float32) -> dict[str, np.ndarray]:
    (value,) = model.graph.input
    return {value.name: noise(*(d.dim_value for d in value.type.tensor_type.shape.dim), seed=1, dtype=dtype)}


def assert_same(before: ModelProto, after: ModelProto) -> None:
    wanted, found = run(before, image(before)), run(after, image(before))
    assert list(found) == list(wanted)
    assert all(relative(found[name], wanted[name]) <= SINGLE for name in wanted)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_becomes_what_is_expected(name: str, tmp_path: Path) -> None:
    block = BLOCKS[name]
    source = tmp_path / "before.onnx"
    before = block.build(0, 8)
    onnx.save(before, source)
    result = api.apply(source, PATTERNS, verify=False)
    assert op_histogram(result.model) == dict(block.expected)
    assert_same(before, result.model)
    assert not {t.name for t in result.model.graph.initializer} - {n for x in result.model.graph.node for n in x.input}
    saved = result.save(tmp_path / "after.onnx")
    onnx.checker.check_model(str(saved), full_check=True)
    again = api.apply(saved, PATTERNS)
    assert not again.report.changed and again.report.verification.verdict is Verdict.OK
    assert again.save(tmp_path / "again.onnx").read_bytes() == saved.read_bytes()


@pytest.mark.parametrize("channels", [4, 8, 12])
@pytest.mark.parametrize("name", BLOCKS)
def test_in_float64_nothing_but_rounding_changes(name: str, channels: int) -> None:
    before = doubled(BLOCKS[name].build(channels, channels))
    after = api.apply(before, PATTERNS, verify=False).model
    assert op_histogram(after) == dict(BLOCKS[name].expected)
    feeds = image(before, np.float64)
    wanted, found = run_double(before, feeds), run_double(after, feeds)
    assert all(relative(found[key], wanted[key]) <= DOUBLE for key in wanted)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_disguised_block_becomes_the_same(name: str) -> None:
    before = BLOCKS[name].build(2, 8)
    for seed in range(3):
        hidden = disguised(before, seed, shuffle_outputs=True).model
        after = api.apply(hidden, PATTERNS, verify=False).model
        assert op_histogram(after) == dict(BLOCKS[name].expected)
        assert_same(hidden, after)


BETTER = {"difference": {"Conv": 1, "Relu": 1}}  # where no shipped pattern fits, and collapse folds all the same


@pytest.mark.parametrize("patterns", [["collapse", "bypass"], ["all"]], ids=["collapse", "all"])
@pytest.mark.parametrize("name", BLOCKS)
def test_collapse_finds_every_block_by_itself(name: str, patterns: list[str]) -> None:
    before = BLOCKS[name].build(0, 8)
    result = api.apply(before, patterns, verify=False)
    assert op_histogram(result.model) == BETTER.get(name, dict(BLOCKS[name].expected))
    assert_same(before, result.model)


@pytest.mark.parametrize("name", ["repvgg-identity", "post-norm", "beside-residual", "norm-conv"])
def test_the_whole_comparison_agrees(name: str) -> None:
    """A child process each, so a few: the block is judged right by the product's own verification too."""
    report = api.apply(BLOCKS[name].build(0, 8), PATTERNS).report
    assert report.verification.verdict is Verdict.OK, report.verification
    assert report.changed == (name != "norm-conv")


# --- lookalikes ------------------------------------------------------------------------------------------------------


def basic_block() -> ModelProto:
    """ResNet's, its norms folded by the exporter: relu(x + conv(relu(conv(x))))."""
    net = Net(0, 8)
    inner = net.relu(net.conv(net.input, 8, 8, 3, bias=True))
    return net.finish(net.relu(net.add(net.conv(inner, 8, 8, 3, bias=True), net.input)))


def downsampling_block() -> ModelProto:
    """ResNet's with a 1x1 of stride 2 beside two 3x3: two convolutions in a sum, of different entries."""
    net = Net(1, 8)
    inner = net.relu(net.conv(net.input, 8, 16, 3, stride=2, bias=True))
    beside = net.conv(net.input, 8, 16, 1, stride=2, bias=True)
    return net.finish(net.relu(net.add(net.conv(inner, 16, 16, 3, bias=True), beside)))


def bottle_rep() -> ModelProto:
    """YOLOv6's BottleRep after its blocks were folded: conv-relu-conv-relu + alpha * x."""
    net = Net(2, 8)
    inner = net.relu(net.conv(net.relu(net.conv(net.input, 8, 8, 3, bias=True)), 8, 8, 3, bias=True))
    return net.finish(net.add(inner, net.op("Mul", net.scalar(), net.input)))


def bottleneck() -> ModelProto:
    """x + silu(conv(silu(conv(x)))), as in a RepNBottleneck that was folded."""
    net = Net(3, 8)
    inner = net.silu(net.conv(net.input, 8, 8, 3, bias=True))
    return net.finish(net.add(net.input, net.silu(net.conv(inner, 8, 8, 3, bias=True))))


def squeeze() -> ModelProto:
    """A gate that depends on the data is no scale."""
    net = Net(4, 8)
    wide = net.conv(net.input, 8, 8, 3, bias=True)
    return net.finish(net.op("Mul", wide, net.op("Sigmoid", net.op("GlobalAveragePool", wide))))


def nested_residual() -> ModelProto:
    """x + relu(x + relu(conv(x))): two sums of the same entry, both behind activations."""
    net = Net(5, 8)
    inner = net.relu(net.add(net.input, net.relu(net.conv(net.input, 8, 8, 3, bias=True))))
    return net.finish(net.add(net.input, inner))


LOOKALIKES = [basic_block, downsampling_block, bottle_rep, bottleneck, squeeze, nested_residual]


@pytest.mark.parametrize("build", LOOKALIKES, ids=[build.__name__ for build in LOOKALIKES])
@pytest.mark.parametrize("patterns", [["repconv"], PATTERNS, ["all"], ["deploy"]], ids=",".join)
def test_a_lookalike_stays_byte_for_byte(build: object, patterns: list[str], tmp_path: Path) -> None:
    assert callable(build)
    source = tmp_path / "before.onnx"
    onnx.save(build(), source)
    result = api.apply(source, patterns)
    assert not result.report.changed and not result.report.matches
    assert result.save(tmp_path / "after.onnx").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("name", ["resnet-basic", "norm-conv", "two-entries", "difference", "conv-norm"])
def test_repconv_alone_leaves_what_is_none_byte_for_byte(name: str, tmp_path: Path) -> None:
    source = tmp_path / "before.onnx"
    onnx.save(BLOCKS[name].build(0, 8), source)
    result = api.apply(source, ["repconv"])
    assert not result.report.changed
    assert result.save(tmp_path / "after.onnx").read_bytes() == source.read_bytes()


def test_a_graphsurgeon_graph_comes_back_as_one() -> None:
    graph = gs.import_onnx(BLOCKS["repvgg-identity"].build(0, 8))
    nodes = len(graph.nodes)
    result = api.apply(graph, PATTERNS, verify=False)
    assert isinstance(result.model, gs.Graph) and len(graph.nodes) == nodes
    assert sorted(node.op for node in result.model.nodes) == ["Conv", "Relu"]
