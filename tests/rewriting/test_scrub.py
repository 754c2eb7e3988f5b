"""What goes on request, what stays, and that nothing is computed differently."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from fixtures.heads.exports import exported
from rewriter import api
from rewriter.checking.record import Verdict
from rewriter.rewriting.scrub import names_a_local_file
from tests.end_to_end.judging import noise, run
from tests.rewriting.small_models import SmallNet


def noted(message: object, **entries: str) -> None:
    for key, value in entries.items():
        message.metadata_props.add(key=key.replace("__", "."), value=value)  # type: ignore[attr-defined]


def littered() -> ModelProto:
    net = SmallNet()
    net.add("Relu", [net.conv("x")], "y")
    net.add("Tanh", [net.conv("x")], "dead")
    net.tensor(np.ones(3), "unread")
    model = net.model("y")
    noted(model, date="2026-01-01", names="{0: 'cat'}", stride="32", source="/home/me/runs/best.pt", Epoch="300")
    node = model.graph.node[0]
    noted(node, pkg__torch__onnx__stack_trace='File "/home/me/net.py", line 3, in forward', namespace=": Net/a: Conv")
    noted(node, quantised="yes")
    node.doc_string = "/Users/me/net.py(3): forward"
    model.graph.node[1].doc_string = "a rectifier; see https://example.org/home/net.py"
    noted(model.graph.initializer[0], pkg__torch__onnx__original_node_name="p_w")
    model.graph.value_info.append(helper.make_tensor_value_info("gone", TensorProto.FLOAT, [1]))
    return model


def test_what_goes_is_counted_by_kind_and_what_computes_stays() -> None:
    model = littered()
    result = api.apply(model, ["bypass"], scrub=True)
    assert result.report.verification.verdict is Verdict.OK and result.report.changed
    found = {record.kind: (record.count, record.example) for record in result.report.scrubbed}
    assert found["stack traces"] == (1, "pkg.torch.onnx.stack_trace")
    assert found["exporter notes"] == (2, "pkg.torch.onnx.original_node_name")
    assert found["local paths"] == (2, "source")
    assert found["training metadata"] == (2, "date")
    assert found["dead nodes"][0] == 2 and found["notes on values that are gone"] == (1, "gone")
    assert "unread" in {t.name for t in model.graph.initializer} - {t.name for t in result.model.graph.initializer}
    assert [(e.key, e.value) for e in result.model.metadata_props] == [("names", "{0: 'cat'}"), ("stride", "32")]
    assert [e.key for e in result.model.graph.node[0].metadata_props] == ["quantised"]
    assert result.model.graph.node[1].doc_string == model.graph.node[1].doc_string
    assert [n.op_type for n in result.model.graph.node] == ["Conv", "Relu"]
    assert all(record.bytes > 0 for record in result.report.scrubbed)


def test_nothing_goes_unless_asked(tmp_path: Path) -> None:
    onnx.save(littered(), tmp_path / "net.onnx")
    result = api.apply(tmp_path / "net.onnx", ["bypass"])
    assert not result.report.changed and not result.report.scrubbed
    assert result.save(tmp_path / "out.onnx").read_bytes() == (tmp_path / "net.onnx").read_bytes()


def test_a_clean_model_is_left_alone() -> None:
    net = SmallNet()
    net.conv("x", "y")
    result = api.apply(net.model("y"), ["bypass"], scrub=True, verify=False)
    assert not result.report.changed and result.report.scrubbed == ()


def test_bodies_and_functions_are_scrubbed_too() -> None:
    net = SmallNet()
    inner = helper.make_node("Neg", ["x"], ["n"], doc_string='File "a.py", line 1, in f')
    body = helper.make_graph([inner], "b", [], [helper.make_tensor_value_info("n", TensorProto.FLOAT, None)])
    net.add("If", ["flag"], "y", then_branch=body, else_branch=body)
    net.add("F", ["y"], "z", domain="own")
    model = net.model("z")
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "flag"))
    function = helper.make_function("own", "F", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])], [])
    noted(function.node[0], namespace="Net")
    model.functions.append(function)
    result = api.apply(model, ["bypass"], scrub=True, verify=False)
    assert {r.kind: r.count for r in result.report.scrubbed} == {"stack traces": 2, "exporter notes": 1}
    assert "a.py" not in str(result.model)


@pytest.mark.slow
def test_functions_that_nothing_calls_go() -> None:
    """One that a body calls stays, with what it calls itself."""
    model = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["": 17, "ours": 1]>
        g (float[2] x, bool flag) => (float[2] y) {
            y = If(flag) <then_branch = t () => (float[2] a) { a = ours.Outer(x) },
                          else_branch = e () => (float[2] b) { b = Identity(x) }>
        }
        <domain: "ours", opset_import: ["": 17, "ours": 1]> Outer (x) => (y) { y = ours.Inner(x) }
        <domain: "ours", opset_import: ["": 17, "ours": 1]> Inner (x) => (y) { y = Neg(x) }
        <domain: "ours", opset_import: ["": 17, "ours": 1]> Idle (x) => (y) { y = ours.Inner(x) }
    """)
    result = api.apply(model, scrub=True, verify=False)
    assert [function.name for function in result.model.functions] == ["Outer", "Inner"]
    assert [(s.kind, s.count, s.example) for s in result.report.scrubbed] == [("uncalled functions", 1, "Idle")]


def test_nothing_of_the_machine_is_left_in_what_dynamo_writes() -> None:
    model = exported("deeplabv3", "dynamo")
    here = str(Path(__file__).resolve().parents[2])
    assert here in str(model)
    result = api.apply(model, ["aux-prune"], scrub=True)
    assert result.report.verification.verdict is Verdict.OK
    text = str(result.model)
    assert here not in text and "stack_trace" not in text and "pkg.torch" not in text
    assert {record.kind for record in result.report.scrubbed} >= {"stack traces", "exporter notes"}
    feeds = {"image": noise(2, 3, 64, 96)}
    np.testing.assert_array_equal(run(result.model, feeds)["out"], run(model, feeds)["out"])


@pytest.mark.parametrize(
    ("text", "local"),
    [
        ("/home/me/x", True),
        ("trained from '/data/coco/coco.yaml'", True),
        ("C:\\runs\\best.pt", True),
        ("weights=~/best.pt", True),
        ("file:///etc/nets/net.py", True),
        ("/data/coco", True),
        ("at /private/var/folders/ab/net", True),
        ("/model.22/cv2/Conv", False),
        ("/database/Conv", False),
        ("https://example.org/home/net.py", False),
        ("s3://bucket/best.pt", False),
        ("net.py", False),
        ("ratio 1:/2", False),
        ("", False),
    ],
)
def test_paths_of_a_machine(text: str, local: bool) -> None:
    assert names_a_local_file(text) is local
