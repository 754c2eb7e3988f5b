"""Looking without touching: what patterns would do, and what each output needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto

from rewriter.graph import shapes
from rewriter.graph.onnx import view
from rewriter.graph.view import Graph
from rewriter.language.library import resolve, shipped
from rewriter.reporting.record import MatchRecord, RefusalRecord, Share
from rewriter.rewriting import outlook
from tests.rewriting.small_models import SmallNet, copied, rewritten


def mixed() -> ModelProto:
    """Two blocks, a conv whose result is read twice, a weight behind an Identity, and something dead."""
    net = SmallNet()
    first = net.add("Relu", [net.block("x")])
    second = net.add("Relu", [net.block(first)])
    net.norm(net.conv(second, "seen"), "y")
    net.add("Tanh", ["seen"], "z")
    net.add("Identity", [net.tensor(np.ones((4, 4, 1, 1)))], "alias")
    net.conv("x", "w", k=1, weight="alias")
    net.norm(net.conv("x"), "dead")
    return net.model("y", "z", "w")


def picture(model: ModelProto) -> Graph:
    return view(model)


@pytest.mark.parametrize("name", ["repconv", "conv-bn", "bypass"])
def test_on_paper_is_what_the_first_round_does(name: str) -> None:
    model = mixed()
    before = copied(model)
    records = outlook.on_paper(picture(model), shipped()[name])
    assert model == before
    _, outcome = rewritten(model, [name], max_rounds=1)
    matches = [r for r in records if isinstance(r, MatchRecord)]
    assert [(m.exit, m.nodes, m.before, m.after, m.proof) for m in matches] == [
        (m.exit, m.nodes, m.before, m.after, m.proof) for m in outcome.matches
    ]
    assert [r for r in records if isinstance(r, RefusalRecord)] == list(outcome.refusals)
    assert {"repconv": 2, "conv-bn": 4, "bypass": 1}[name] == len(matches)


def test_an_outlook_adds_up_what_its_matches_save() -> None:
    found = outlook.outlook(picture(mixed()), shipped()["repconv"])
    assert (found.pattern, found.matches, found.note) == ("repconv", 2, "")
    assert found.saved_parameters == 2 * ((144 + 16 + 24) - (144 + 4))


def test_an_outputs_pattern_that_would_do_nothing_says_why(tmp_path: Path) -> None:
    (tmp_path / "own.fxp").write_text(
        'fxrewrite 1\npattern own { doc "d" match outputs { main: index(7) aux: rest } do remove-output aux }'
    )
    found = outlook.outlook(picture(mixed()), resolve(["own.fxp"], tmp_path)[0])
    assert (found.matches, found.saved_parameters) == (0, 0) and found.note
    alone = SmallNet()
    alone.conv("x", "y")
    only = outlook.outlook(picture(alone.model("y")), shipped()["aux-prune"])
    assert only.matches == 0 and only.note


def test_needs_split_the_model_among_its_outputs() -> None:
    model = mixed()
    graph = picture(model)
    outputs, shared, dead = outlook.needs(graph, shapes.infer(model, list(model.graph.node)))
    by_name = {o.name: o for o in outputs}
    assert list(by_name) == ["y", "z", "w"]
    assert shared == Share(0, 0, 0, 0)
    assert (by_name["w"].needed.nodes, by_name["w"].exclusive) == (2, by_name["w"].needed)
    assert by_name["w"].needed.parameters == 16 and by_name["w"].needed.multiply_adds == 16 * 30
    assert (by_name["y"].exclusive.nodes, by_name["y"].exclusive.parameters) == (1, 8)
    assert by_name["y"].needed.nodes == by_name["z"].needed.nodes == len(graph.nodes) - 2 - 2 - 1
    assert dead == tuple(node.name for node in list(model.graph.node)[-2:])


def test_a_tensor_that_two_heads_read_is_counted_once_and_as_shared() -> None:
    net = SmallNet()
    weight = net.tensor(np.ones((4, 4, 1, 1)), "w")
    net.conv("x", "y", k=1, weight=weight)
    net.conv(net.add("Relu", ["x"]), "z", k=1, weight=weight)
    graph = picture(net.model("y", "z"))
    outputs, shared, _ = outlook.needs(graph, {})
    assert [o.exclusive.parameters for o in outputs] == [0, 0] and shared.parameters == 16
    assert [o.needed.parameters for o in outputs] == [16, 16]


def test_a_size_that_could_be_read_elsewhere_is_no_need() -> None:
    """The main output reads the batch size from the auxiliary branch: it needs none of it (yolov9.md, dynamic axes)."""
    net = SmallNet()
    trunk = net.add("Relu", [net.conv("x")])
    aux = net.add("Relu", [net.conv(trunk, "aux")])
    shape = net.add("Shape", [aux])
    net.add("Reshape", [net.conv(trunk), shape], "y")
    model = net.model("y", "aux")
    outputs, shared, dead = outlook.needs(picture(model), shapes.infer(model, list(model.graph.node)))
    by_name = {o.name: o for o in outputs}
    assert by_name["aux"].exclusive.nodes == 1 and by_name["aux"].exclusive.parameters > 0
    assert shared.parameters == by_name["y"].needed.parameters - by_name["y"].exclusive.parameters
    assert not dead


def test_bytes_are_those_of_every_stored_tensor() -> None:
    net = SmallNet()
    weight = net.tensor(np.ones((4, 4, 1, 1)), "w")
    net.conv("x", "y", k=1, weight=weight)
    net.add("Mul", [net.conv(net.add("Relu", ["x"]), k=1, weight=weight), net.tensor(np.array(3.0))], "z")
    outputs, shared, _ = outlook.needs(picture(net.model("y", "z")), {})
    item = 4
    assert (shared.bytes, [o.exclusive.bytes for o in outputs]) == (16 * item, [0, item])
