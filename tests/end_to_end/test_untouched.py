"""What no rewrite touches stays byte for byte, whatever a file may hold beside the block that folds."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.message import Message
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from fixtures.judge import op_histogram
from rewriter import api
from tests.end_to_end.judging import digest, noise, relative, run

PATTERNS = ["repconv", "conv-bn", "bypass"]
CHANNELS = 4
SHAPE = (1, CHANNELS, 6, 5)
BLOCK = ("three", "three/norm", "one", "one/norm", "meet")
GONE_TENSORS = {"w3", "w1"} | {f"{norm}.{part}" for norm in ("n3", "n1") for part in ("scale", "shift", "mean", "var")}
INTERIOR = {"c3", "b3", "c1", "b1"}
EXIT = "met"


def noted(message: Any, text: str) -> Any:
    """The message with a doc string and metadata that name it."""
    message.doc_string = f"{text}: a note\nof two lines, ünïcode"
    for key in ("b", "a"):
        entry = message.metadata_props.add()
        entry.key, entry.value = f"{key}.{text}", text * 2
    return message


def tensor(name: str, *shape: int, low: float | None = None) -> TensorProto:
    random = np.random.default_rng(sum(name.encode()))
    values = random.normal(size=shape) if low is None else random.uniform(low, 1.5, shape)
    return noted(numpy_helper.from_array(values.astype(np.float32), name), name)


def node(
    kind: str, inputs: Sequence[str], outputs: Sequence[str], name: str, domain: str = "", **attrs: Any
) -> NodeProto:
    return noted(helper.make_node(kind, inputs, outputs, name, domain=domain, **attrs), name)


def value(name: str, shape: Sequence[int | str] = SHAPE, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return noted(helper.make_tensor_value_info(name, kind, shape), name)


def block_nodes() -> list[NodeProto]:
    def norm(at: str) -> list[str]:
        return [f"n{at}.{part}" for part in ("scale", "shift", "mean", "var")]

    return [
        node("Conv", ["r", "w3"], ["c3"], "three", pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c3", *norm("3")], ["b3"], "three/norm"),
        node("Conv", ["r", "w1"], ["c1"], "one"),
        node("BatchNormalization", ["c1", *norm("1")], ["b1"], "one/norm"),
        node("Add", ["b3", "b1"], [EXIT], "meet"),
    ]


def block_tensors() -> list[TensorProto]:
    norms = [
        tensor(f"{norm}.{part}", CHANNELS, low=0.5 if part in ("scale", "var") else None)
        for norm in ("n3", "n1")
        for part in ("scale", "shift", "mean", "var")
    ]
    return [tensor("w3", CHANNELS, CHANNELS, 3, 3), tensor("w1", CHANNELS, CHANNELS, 1, 1), *norms]


def rich_model() -> ModelProto:
    """One block among everything else that a file may hold."""
    three, three_norm, one, one_norm, meet = block_nodes()
    then = helper.make_graph(
        [node("Mul", [EXIT, "gain"], ["scaled"], "then/mul")],
        "then",
        [],
        [helper.make_empty_tensor_value_info("scaled")],
    )
    other = helper.make_graph(
        [node("Neg", ["r"], ["minus"], "else/neg")], "else", [], [helper.make_empty_tensor_value_info("minus")]
    )
    nodes = [
        node("Relu", ["x"], ["r"], "first"),
        three,
        node("Exp", ["r"], ["unread"], "dead/exp"),
        node("Widget", ["r", "", "thin"], ["w", "w.2"], "custom", "vendor.ops", mode=b"\x00\xff", level=3),
        three_norm,
        one,
        node("Sqrt", ["unread"], ["unread.2"], "dead/sqrt"),
        one_norm,
        meet,
        node("Twice", [EXIT], ["t"], "local", "own.functions"),
        node("If", ["flag"], ["chosen"], "branch", then_branch=then, else_branch=other),
        node("Conv", ["t", "kept.weight"], ["k"], "kept/conv", kernel_shape=[1, 1]),
        node("Constant", [], ["five"], "constant", value=tensor("five", 1)),
        node("Max", ["k", "five"], ["y"], "last"),
    ]
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.array([1.5, -2.0], np.float32), "thin"),
        numpy_helper.from_array(np.array([1, 6], np.int64), "thin.indices"),
        [2, 4],
    )
    stored = [tensor("kept.weight", CHANNELS, CHANNELS, 1, 1), *block_tensors(), tensor("gain", 1), tensor("unused", 3)]
    stored.insert(3, noted(helper.make_tensor("numbers", TensorProto.FLOAT, [2], [1.0, 2.0]), "numbers"))
    graph = helper.make_graph(
        nodes,
        "rich",
        [value("x"), value("flag", (), TensorProto.BOOL), value("unused.input", ("batch", 7))],
        [value("y"), value("chosen"), value("w"), value(EXIT)],
        stored,
        value_info=[value(name) for name in ("t", "c3", "w.2", "b1", "r")],
        sparse_initializer=[sparse],
    )
    noted(graph, "rich")
    for name in ("r", "t"):
        note = graph.quantization_annotation.add()
        note.tensor_name = name
        note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="gain")
    twice = helper.make_function(
        "own.functions", "Twice", ["a"], ["b"], [node("Add", ["a", "a"], ["b"], "twice")], [helper.make_opsetid("", 17)]
    )
    imports = [
        helper.make_opsetid("", 17),
        helper.make_opsetid("own.functions", 1),
        helper.make_opsetid("vendor.ops", 3),
    ]
    model = helper.make_model(graph, opset_imports=imports, functions=[twice], ir_version=9)
    model.producer_name, model.producer_version, model.domain, model.model_version = "maker", "7.1", "a.b", 12
    noted(model, "model")
    training = model.training_info.add()
    training.algorithm.name = "step"
    training.algorithm.node.append(node("Identity", ["gain"], ["gain.next"], "step/identity"))
    training.update_binding.add(key="gain", value="gain.next")
    return model


def same_fields(before: Message, after: Message, but: set[str]) -> None:
    """Every field that the message type has, but those named, serialises to the same bytes."""
    for field in before.DESCRIPTOR.fields:
        if field.name not in but:
            old, new = type(before)(), type(after)()
            for source, target in ((before, old), (after, new)):
                for known, content in source.ListFields():
                    if known.name == field.name:
                        if known.is_repeated:
                            getattr(target, known.name).extend(content)
                        elif known.message_type is not None:
                            getattr(target, known.name).CopyFrom(content)
                        else:
                            setattr(target, known.name, content)
            assert old.SerializeToString() == new.SerializeToString(), field.name


def as_bytes(messages: Any) -> list[bytes]:
    return [message.SerializeToString() for message in messages]


def split(graph: GraphProto) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """Nodes, tensors and value types outside the block, in their order."""
    return (
        as_bytes(n for n in graph.node if n.name not in BLOCK),
        as_bytes(t for t in graph.initializer if t.name not in GONE_TENSORS),
        as_bytes(v for v in graph.value_info if v.name not in INTERIOR),
    )


@pytest.fixture(scope="module")
def rich() -> tuple[ModelProto, ModelProto, api.Report]:
    before = rich_model()
    result = api.apply(before, PATTERNS, verify=False)
    assert before.SerializeToString() == rich_model().SerializeToString()
    return before, result.model, result.report


def test_everything_beside_the_graph_stays(rich: tuple[ModelProto, ModelProto, api.Report]) -> None:
    before, after, _ = rich
    same_fields(before, after, {"graph"})
    assert before.ir_version == after.ir_version == 9 and len(after.functions) == len(after.training_info) == 1
    same_fields(before.graph, after.graph, {"node", "initializer", "value_info"})
    assert len(after.graph.quantization_annotation) == 2 and len(after.graph.sparse_initializer) == 1


def test_only_the_block_changed(rich: tuple[ModelProto, ModelProto, api.Report]) -> None:
    before, after, report = rich
    nodes, tensors, types = split(before.graph)
    made = [n for n in after.graph.node if n.SerializeToString() not in nodes]
    assert [n.op_type for n in made] == ["Conv"] and list(made[0].output) == [EXIT]
    assert as_bytes(n for n in after.graph.node if n.name != made[0].name) == nodes
    came = [t for t in after.graph.initializer if t.SerializeToString() not in tensors]
    assert {t.name for t in came} == set(made[0].input[1:])
    assert [t for t in as_bytes(after.graph.initializer) if t in tensors] == tensors
    assert as_bytes(after.graph.value_info) == types
    assert [record.exit for record in report.matches] == [EXIT] and report.matches[0].made == (made[0].name,)
    assert set(report.matches[0].nodes) == set(BLOCK)


def test_the_new_node_stands_in_a_valid_place(rich: tuple[ModelProto, ModelProto, api.Report]) -> None:
    known = {v.name for v in rich[1].graph.input} | {t.name for t in rich[1].graph.initializer} | {"thin", ""}
    for n in rich[1].graph.node:
        assert set(n.input) <= known, n.name
        known |= set(n.output)


def test_new_names_are_new(rich: tuple[ModelProto, ModelProto, api.Report]) -> None:
    before, after, _ = rich
    (made,) = [n for n in after.graph.node if list(n.output) == [EXIT]]
    old = {t.name for t in before.graph.initializer} | {name for n in before.graph.node for name in n.output}
    assert not old & set(made.input[1:]) and made.name
    names = [n.name for n in after.graph.node]
    assert len(set(names)) == len(names)


def test_dead_nodes_stay_and_are_reported(rich: tuple[ModelProto, ModelProto, api.Report]) -> None:
    _, after, report = rich
    assert set(report.dead_before) == {"dead/exp", "dead/sqrt"}
    assert {"dead/exp", "dead/sqrt"} <= {n.name for n in after.graph.node}


def test_unknown_fields_and_the_file_survive(tmp_path: Path) -> None:
    """A field that this version of ONNX does not know is the user's, and stays."""
    unknown = b"\xfa\xff\x0f\x05later"  # field 32767, length-delimited
    model = rich_model()
    first = model.graph.node[0]
    first.ParseFromString(first.SerializeToString() + unknown)
    data = model.SerializeToString() + unknown
    source = tmp_path / "rich.onnx"
    source.write_bytes(data)
    saved = api.apply(source, PATTERNS, verify=False).save(tmp_path / "o.onnx")
    assert source.read_bytes() == data
    assert saved.read_bytes().count(unknown) == 2
    after = onnx.load(saved)
    nodes, tensors, types = split(ModelProto.FromString(data).graph)
    assert [n for n in as_bytes(after.graph.node) if n in nodes] == nodes
    assert [t for t in as_bytes(after.graph.initializer) if t in tensors] == tensors
    assert as_bytes(after.graph.value_info) == types
    same_fields(ModelProto.FromString(data), after, {"graph"})


def test_an_unchanged_model_is_the_same_file(tmp_path: Path) -> None:
    """Bytes that no serialiser would write (fields out of order) come back as they are."""
    whole = rich_model()
    del whole.graph.node[:], whole.graph.initializer[:]
    for output in list(whole.graph.output):
        whole.graph.output.remove(output)
    whole.graph.output.append(value("x"))
    rest = ModelProto()
    rest.CopyFrom(whole)
    rest.ClearField("graph")
    graph = ModelProto(graph=whole.graph)
    source = tmp_path / "odd.onnx"
    source.write_bytes(graph.SerializeToString() + rest.SerializeToString())
    assert source.read_bytes() != onnx.load(source).SerializeToString()
    result = api.apply(source, ["all"])
    assert not result.report.changed
    assert result.save(tmp_path / "same.onnx").read_bytes() == source.read_bytes()


# --- external data ---------------------------------------------------------------------------------------------------


def plain_model() -> ModelProto:
    """The block, then a convolution that stays: all that ONNX Runtime runs."""
    nodes = [
        node("Relu", ["x"], ["r"], "first"),
        *block_nodes(),
        node("Relu", [EXIT], ["s"], "between"),
        node("Conv", ["s", "kept.weight"], ["y"], "kept/conv", kernel_shape=[1, 1]),
    ]
    stored = [*block_tensors(), tensor("kept.weight", CHANNELS, CHANNELS, 1, 1)]
    graph = helper.make_graph(nodes, "plain", [value("x")], [value("y")], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


@pytest.mark.parametrize("one_file", [True, False], ids=["one data file", "a file per tensor"])
@pytest.mark.parametrize("folds", [True, False], ids=["folds", "nothing to do"])
def test_external_data_stays_external_and_works_elsewhere(tmp_path: Path, one_file: bool, folds: bool) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    model = plain_model()
    source = there / "m.onnx"
    onnx.save(
        model, source, save_as_external_data=True, all_tensors_to_one_file=one_file, location="m.data", size_threshold=0
    )
    before = {path.name: digest(path) for path in there.iterdir()}
    assert len(before) == (2 if one_file else 12)

    patterns = PATTERNS if folds else ["bypass"]
    result = api.apply(source, patterns)
    assert result.report.verification.verdict == "ok" and result.report.changed == folds
    saved = result.save(here / "m.onnx")
    assert {path.name: digest(path) for path in there.iterdir()} == before

    feeds = {"x": noise(*SHAPE)}
    wanted = run(source, feeds)["y"]
    shutil.rmtree(there)
    onnx.checker.check_model(str(saved), full_check=True)
    assert relative(run(saved, feeds)["y"], wanted) <= 2e-6
    after = onnx.load(saved, load_external_data=False)
    places = {t.name: t.data_location for t in after.graph.initializer}
    assert places["kept.weight"] == TensorProto.EXTERNAL
    if folds:
        assert op_histogram(after) == {"Conv": 2, "Relu": 2}
        names = {e.value for t in after.graph.initializer for e in t.external_data if e.key == "location"}
        assert {path.name for path in here.iterdir()} == {"m.onnx", *names}
        dead = {t.name for t in after.graph.initializer} & GONE_TENSORS
        assert not dead
    else:
        assert digest(saved) == before["m.onnx"]
    again = api.apply(saved, patterns)
    assert not again.report.changed


def test_an_output_beside_its_input_keeps_both(tmp_path: Path) -> None:
    source = tmp_path / "m.onnx"
    onnx.save(plain_model(), source, save_as_external_data=True, location="m.data", size_threshold=0)
    before = {path.name: digest(path) for path in tmp_path.iterdir()}
    saved = api.apply(source, PATTERNS, verify=False).save(tmp_path / "n.onnx")
    assert before.items() <= {path.name: digest(path) for path in tmp_path.iterdir()}.items()
    feeds = {"x": noise(*SHAPE)}
    assert relative(run(saved, feeds)["y"], run(source, feeds)["y"]) <= 2e-6
