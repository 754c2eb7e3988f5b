"""Loading: models stay byte for byte; everything else is named, with a remedy; broken structure is refused."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from rewriter.errors import InputError
from rewriter.graph.files import LoadedModel, each_tensor, load, validate

FLOAT = TensorProto.FLOAT


def info(name: str, shape: list[int | str] | None = None) -> object:
    return helper.make_tensor_value_info(name, FLOAT, shape or [1, 3, 8, 8])


def model_of(nodes: list[NodeProto], initializers: list[TensorProto] | None = None, output: str = "y") -> ModelProto:
    graph = helper.make_graph(nodes, "g", [info("x")], [info(output)], initializers or [])
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])


def relu(source: str, target: str, name: str = "") -> NodeProto:
    return helper.make_node("Relu", [source], [target], name=name)


def in_memory(proto: ModelProto) -> LoadedModel:
    return LoadedModel(proto, None, None, 0)


def dynamo_like() -> ModelProto:
    """What the newer exporter writes: metadata on nodes, doc strings, value_info, functions, several domains."""
    weight = numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "w")
    node = helper.make_node("Conv", ["x", "w"], ["c"], name="node_conv", doc_string="line 1\nline 2", group=1)
    node.metadata_props.add(key="namespace", value=": m.M/conv: torch.nn.Conv2d")
    model = model_of([node, helper.make_node("Twice", ["c"], ["y"], domain="pkg.custom")], [weight])
    model.graph.value_info.append(info("c"))  # type: ignore[arg-type]
    model.graph.quantization_annotation.add(tensor_name="c")
    model.opset_import.append(helper.make_opsetid("pkg.custom", 1))
    twice = helper.make_function(
        "pkg.custom", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    model.functions.append(twice)
    model.metadata_props.add(key="k", value="v")
    model.producer_name, model.doc_string, model.model_version = "pytorch", "doc", 3
    return model


def legacy_like() -> ModelProto:
    """What the older exporter writes: slashes in names, weights that are inputs too, a training graph."""
    weight = numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "conv.weight")
    model = model_of([helper.make_node("Conv", ["x", "conv.weight"], ["y"], name="/conv/Conv")], [weight])
    model.graph.input.append(info("conv.weight", [3, 3, 1, 1]))  # type: ignore[arg-type]
    model.ir_version = 3
    model.training_info.add().initialization.name = "t"
    return model


UNKNOWN = b"\xf2\x3f\x05later" + b"\xf8\x3f\x07"  # fields 1022 and 1023, which no version has


@pytest.mark.parametrize("make", [dynamo_like, legacy_like])
@pytest.mark.parametrize("extra", [b"", UNKNOWN])
def test_an_untouched_model_serialises_to_the_same_bytes(
    make: Callable[[], ModelProto], extra: bytes, tmp_path: Path
) -> None:
    data = make().SerializeToString() + extra
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    model = load(str(path))
    assert model.proto.SerializeToString() == data
    assert (model.path, model.folder, model.bytes) == (path, tmp_path, len(data))
    validate(model)


def test_the_external_files_of_a_model_are_listed_and_not_read(tmp_path: Path) -> None:
    model = model_of([relu("x", "y")], [TensorProto(name="w", data_type=FLOAT, dims=[2])])
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="m.data")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    loaded = load(tmp_path / "m.onnx")
    assert loaded.external == {"m.data"}
    with pytest.raises(InputError, match=r"external data 'm\.data' is missing in"):
        validate(loaded)
    (tmp_path / "m.data").write_bytes(bytes(8))
    validate(loaded)


def torch_zip(*members: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as file:
            for member in members:
                file.writestr(member, "x")

    return write


def holding(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data) and None


def large(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate((1 << 31) + 5)


NESTED = b"\x08\x0a\x3a\x0c\x0a\x0a\x2a\x08\x32\x06\x0a\x04\x2a\x02\x32\x7f"
WHOLE = model_of([relu("x", "y")], [numpy_helper.from_array(np.ones(9, np.float32), "w")]).SerializeToString()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, r"m' does not exist; check the path \(the working directory is"),
        (lambda path: path.mkdir(), "is a directory; name the .onnx file in it"),
        (lambda path: os.mkfifo(path), r"is not a regular file \(a pipe or a device\)"),
        (lambda path: path.symlink_to("/dev/zero"), r"is not a regular file \(a pipe or a device\)"),
        (holding(b""), "is empty; export or download the model again"),
        (holding(WHOLE[:-20]), r"an ONNX file that is cut off \(14 bytes are missing\); copy, download or"),
        (holding(b"\xff" * 64), "looks like no model format we know; export the model to ONNX"),
        (holding(NESTED), "damaged protobuf, or If, Loop and Scan bodies nested more than 30 deep"),
        (holding(b"\x08\x0a"), "a protobuf message without a graph"),
        (holding(WHOLE[2:]), "a model without an ir_version"),
        (holding(b"\x08\x0a\x3a\x00\x42\x02\x10\x11"), "a model with an empty graph"),
        (
            holding(b"\x08\x0a" + WHOLE[2:].replace(b"B\x04\n\x00\x10\x11", b"")),
            "a model without opset_import, cut off",
        ),
        (holding(b"ir_version: 8\ngraph {\n}\n"), "protobuf text; convert it: .*format='textproto'"),
        (holding(b'<ir_version: 8, opset_import: ["" : 17]>\ng (x) => (y) {}'), "ONNX text; convert it"),
        (holding(b'{"irVersion": 8}'), "JSON; convert it: .*format='json'"),
        (holding(b"<!DOCTYPE html><html>404"), "a web page or XML, not the download itself"),
        (
            holding(b"version https://git-lfs.github.com/spec/v1\noid"),
            "a Git LFS pointer; fetch the real file: git lfs",
        ),
        (holding(b"\x80\x04\x95\x10"), "a Python pickle, which can run code when it is opened; trace it first"),
        (holding(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."), r"a torch checkpoint \(old format\); trace it first"),
        (holding(b"\x40\0\0\0\0\0\0\0" + b'{"w":{}}'), "a safetensors file, weights without a graph; trace it first"),
        (torch_zip("m/data.pkl", "m/version"), "a torch checkpoint; trace it first: fxrewrite trace"),
        (torch_zip("m/data.pkl", "m/code/x.py", "m/constants.pkl"), "a TorchScript archive; export"),
        (torch_zip("m/archive_format", "m/models/model.json"), r"a torch\.export archive \(\.pt2\); .*--trust"),
        (torch_zip("hello.txt"), "a zip archive; unpack it"),
        (large, r"2\.1 GB, but protobuf stops at 2 GB; save it with external data"),
    ],
)
def test_what_is_no_model_is_named_with_a_remedy(write: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    path = tmp_path / "m"
    write(path)
    with pytest.raises(InputError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_name_that_no_file_can_have() -> None:
    with pytest.raises(InputError, match="is not a file name"):
        load("a\0b")


def nest(depth: int) -> bytes:
    """A model with If nodes in If nodes, written by hand: the library cannot build it."""

    def field(number: int, data: bytes) -> bytes:
        size, out = len(data), bytearray()
        while size > 127:
            out.append(size & 127 | 128)
            size >>= 7
        return bytes([number << 3 | 2]) + bytes(out) + bytes([size]) + data

    graph = b""
    for _ in range(depth):
        attribute = field(1, b"then_branch") + field(6, graph) + b"\xa0\x01\x05"
        graph = field(1, field(4, b"If") + field(5, attribute))
    return b"\x08\x0a" + field(7, graph) + field(8, b"\x10\x11")


def test_ifs_nested_nine_thousand_deep_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(nest(9000))
    with pytest.raises(InputError, match="nested more than 30 deep"):
        load(tmp_path / "m.onnx")
    (tmp_path / "m.onnx").write_bytes(nest(20))
    assert validate(load(tmp_path / "m.onnx")) is None


def body(nodes: list[NodeProto], output: str) -> GraphProto:
    return helper.make_graph(nodes, "body", [], [info(output)])


def branch(nodes: list[NodeProto], output: str, condition: str = "x", result: str = "y") -> NodeProto:
    graph = body(nodes, output)
    return helper.make_node("If", [condition], [result], name="if", then_branch=graph, else_branch=graph)


def conv(**attributes: object) -> NodeProto:
    return helper.make_node("Conv", ["x", "w"], ["y"], name="/conv", **attributes)


def weight(name: str = "w") -> TensorProto:
    return numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), name)


def ref_function(name: str, callee: str) -> object:
    node = helper.make_node(callee, ["a"], ["b"], domain="f")
    return helper.make_function("f", name, ["a"], ["b"], [node], [helper.make_opsetid("", 17)])


def with_functions(*functions: object) -> ModelProto:
    model = model_of([relu("x", "y")])
    model.functions.extend(functions)  # type: ignore[arg-type]
    return model


def invalid_name() -> ModelProto:
    model = model_of([relu("x", "qq"), relu("qq", "y")])
    return ModelProto.FromString(model.SerializeToString().replace(b"qq", b"\xff\xfe"))


BAD = TensorProto(name="w", data_type=FLOAT, dims=[4], raw_data=b"123")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (model_of([relu("x", "y", "a"), relu("x", "y", "b")]), "node 1 'Relu' 'b': 'y' is made twice; rename one"),
        (model_of([relu("x", "x"), relu("x", "y")]), "node 0 'Relu': 'x' is made twice"),
        (model_of([relu("x", "w"), relu("w", "y")], [weight()]), "node 0 'Relu': 'w' is made twice"),
        (model_of([relu("x", "y")], [weight(), weight()]), "two initializers are called 'w'"),
        (model_of([relu("z", "y", "a")]), "node 0 'Relu' 'a' reads 'z', which nothing makes"),
        (model_of([relu("x", "y")], output="z"), "output 'z' is made by nothing"),
        (model_of([relu("y", "y", "a")]), "a cycle of 1 nodes: node 0 'Relu' 'a'"),
        (model_of([relu("b", "a", "p"), relu("a", "b", "q"), relu("x", "y")]), "a cycle of 2 nodes: node"),
        (model_of([branch([relu("y", "t")], "t")]), "a cycle of 1 nodes: node 0 'If' 'if'"),
        (
            model_of([branch([relu("nil", "t", "in")], "t")]),
            "node 0 'Relu' 'in' in a body of node 0 'If' 'if' reads 'nil'",
        ),
        (model_of([branch([relu("x", "t"), relu("x", "t")], "t")]), "node 1 'Relu' in a body of .* 't' is made twice"),
        (model_of([conv(group=0)], [weight()]), "node 0 'Conv' '/conv': group is 0; it has to be at least 1"),
        (model_of([conv(strides=[1, 0])], [weight()]), "strides is 0; it has to be at least 1"),
        (model_of([relu("x", "y")], [BAD]), "tensor 'w': 3 bytes of raw_data"),
        (model_of([relu("x", "y"), helper.make_node("Constant", [], ["c"], value=BAD)]), "tensor 'w': 3 bytes"),
        (with_functions(ref_function("F", "G"), ref_function("G", "F")), "function '[FG]' calls itself, directly or"),
        (with_functions(ref_function("F", "F")), "function 'F' calls itself"),
        (invalid_name(), "a name in the graph is not UTF-8 text"),
    ],
)
def test_broken_structure_is_refused(model: ModelProto, message: str) -> None:
    with pytest.raises(InputError, match=message):
        validate(in_memory(model))


def test_unusual_but_valid_structure_passes() -> None:
    unsorted_nodes = model_of([relu("a", "y"), relu("x", "a")])
    optional = model_of(
        [helper.make_node("Clip", ["x", "", "m"], ["y"])], [numpy_helper.from_array(np.float32(1), "m")]
    )
    captured = model_of([branch([relu("later", "t")], "t"), relu("x", "later")])
    outer_output = model_of([relu("x", "t"), branch([], "t")])
    skipped = model_of([helper.make_node("LSTM", ["x", "w", "w"], ["", "y", ""])], [weight()])
    skipped.graph.node.append(helper.make_node("LSTM", ["x", "w", "w"], ["", "z", ""]))
    overridable = legacy_like()
    deep = with_functions(ref_function("F", "G"), ref_function("G", "H"))
    for model in (unsorted_nodes, optional, captured, outer_output, skipped, overridable, deep):
        validate(in_memory(model))


def test_long_chains_need_no_recursion_in_any_order() -> None:
    chain = [relu("x" if i == 0 else f"v{i}", f"v{i + 1}") for i in range(20_000)]
    validate(in_memory(model_of(chain, output="v20000")))
    validate(in_memory(model_of(chain[::-1], output="v20000")))


def test_every_stored_tensor_is_visited() -> None:
    tensor = {name: numpy_helper.from_array(np.ones(1, np.float32), name) for name in "abcdef"}
    inner = body([helper.make_node("Constant", [], ["t"], value=tensor["b"])], "t")
    node = helper.make_node("If", ["x"], ["y"], then_branch=inner)
    many = helper.make_node("Custom", [], ["q"], domain="c")
    many.attribute.append(AttributeProto(name="ts", type=AttributeProto.TENSORS, tensors=[tensor["c"], tensor["d"]]))
    model = model_of([node, many], [tensor["a"]])
    model.functions.append(
        helper.make_function(
            "f",
            "F",
            [],
            ["o"],
            [helper.make_node("Constant", [], ["o"], value=tensor["e"])],
            [helper.make_opsetid("", 17)],
        )
    )
    model.training_info.add().algorithm.initializer.append(tensor["f"])
    assert sorted(t.name for t in each_tensor(model)) == list("abcdef")
