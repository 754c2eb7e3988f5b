"""Rounds: that they end, what they say about it, and that names, orders and hash seeds decide nothing."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper

from fixtures.blocks import BLOCKS
from fixtures.disguise import disguised
from rewriter.language.library import LoadedPattern, resolve
from rewriter.language.parameters import set_parameters
from rewriter.rewriting.engine import rewrite
from rewriter.rewriting.onnx_draft import OnnxDraft
from tests.rewriting.small_models import ALL, SmallNet, copied, ops, rewritten, tensor_of

ROOT = Path(__file__).resolve().parents[2]


def patterns(folder: Path, text: str) -> list[LoadedPattern]:
    (folder / "own.fxp").write_text(f"fxrewrite 1\n{text}")
    return resolve(["own.fxp"], folder)


def stacked(blocks: int = 3) -> ModelProto:
    net = SmallNet()
    value = "x"
    for _ in range(blocks):
        value = net.add("Identity", [net.add("Relu", [net.block(value)])])
    net.norm(net.conv(value), "y")
    return net.model("y")


def grouped_sum() -> ModelProto:
    """A sum whose fold costs too much, of two branches that fold by themselves."""
    net = SmallNet()
    wide = net.norm(net.conv("x", weight=net.tensor(net.random.normal(size=(4, 1, 3, 3))), group=4))
    net.add("Add", [wide, net.norm(net.conv("x", k=1))], "y")
    return net.model("y")


# --- matches that are refused, waiting or covered --------------------------------------------------------------------


def test_a_refused_match_releases_what_it_covered_in_the_same_round() -> None:
    result, outcome = rewritten(grouped_sum())
    assert ops(result) == {"Conv": 2, "Add": 1}
    assert {(m.pattern, m.round) for m in outcome.matches} == {("conv-bn", 1)} and len(outcome.matches) == 2
    assert [(r.pattern, r.code) for r in outcome.refusals] == [("repconv", "cost")]
    assert (outcome.covered, outcome.shadowed) == (0, ())


def test_losers_inside_a_winner_are_counted() -> None:
    net = SmallNet()
    net.block("x", "y")
    _, outcome = rewritten(net.model("y"))
    assert [m.pattern for m in outcome.matches] == ["repconv"]
    assert (outcome.covered, outcome.shadowed) == (2, ())


def test_what_was_shadowed_and_then_done_is_not_called_shadowed() -> None:
    """Of two idle nodes in a row one waits where both would rename the value between."""
    net = SmallNet()
    relu = net.add("Relu", ["x"])
    net.add("Neg", [net.add("Identity", [relu])], "z")
    net.add("Identity", [relu], "y")
    result, outcome = rewritten(net.model("y", "z"), ["bypass"])
    assert ops(result) == {"Relu": 1, "Neg": 1}
    assert (len(outcome.matches), outcome.shadowed) == (2, ())


def test_two_patterns_for_one_place_by_file_order(tmp_path: Path) -> None:
    twins = ["one", "two"]
    for order in permutations(twins):
        text = "\n".join(f'pattern {n} {{ doc "d" match y = x -> conv -> bn do fold to conv }}' for n in order)
        net = SmallNet()
        net.norm(net.conv("x"), "y")
        _, outcome = rewritten(net.model("y"), patterns(tmp_path, text))
        assert [m.pattern for m in outcome.matches] == [order[0]]
        assert outcome.covered == 1


def test_priority_beats_size(tmp_path: Path) -> None:
    text = """pattern small { doc "d" priority 1 match y = x -> conv -> norm do fold to conv }
              pattern large { doc "d" match y = x -> conv -> norm -> norm do fold to conv }"""
    net = SmallNet()
    net.norm(net.norm(net.conv("x")), "y")
    _, outcome = rewritten(net.model("y"), patterns(tmp_path, text))
    assert [(m.pattern, m.round) for m in outcome.matches] == [("small", 1), ("small", 2)]
    assert [(s.pattern, s.by) for s in outcome.shadowed] == [("large", "small")]


# --- rounds ----------------------------------------------------------------------------------------------------------


def test_the_number_of_rounds_and_the_end() -> None:
    expected = {0: ("limit", 0), 1: ("limit", 1), 2: ("fixpoint", 2), 50: ("fixpoint", 2)}
    for most, (end, rounds) in expected.items():
        result, outcome = rewritten(stacked(), max_rounds=most)
        assert (outcome.end, outcome.rounds) == (end, rounds)
        assert ("BatchNormalization" in ops(result)) == (most == 0)
        assert bool(outcome.matches) == (most > 0)


def test_nothing_to_do_is_one_round() -> None:
    net = SmallNet()
    net.add("Relu", ["x"], "y")
    _, outcome = rewritten(net.model("y"))
    assert (outcome.rounds, outcome.end, outcome.matches, outcome.refusals) == (1, "fixpoint", (), ())


def test_no_patterns_at_all() -> None:
    result, outcome = rewritten(stacked(), [])
    assert result == stacked() and (outcome.rounds, outcome.end) == (0, "fixpoint")


def test_refusals_of_the_last_round_hold_those_that_still_stand() -> None:
    net = SmallNet()
    net.norm(net.conv("x", "seen"), "y")
    net.add("Relu", ["seen"], "z")
    value = net.norm(net.conv("x"))
    net.add("Tanh", [value], "t")
    _, outcome = rewritten(net.model("y", "z", "t"))
    assert outcome.rounds == 2
    assert [(r.pattern, r.code) for r in outcome.refusals] == [("conv-bn", "escape")]


@pytest.mark.parametrize("seed", range(12))
def test_every_round_has_fewer_nodes_than_the_one_before(seed: int) -> None:
    """On nets put together by chance, with every pattern and no gate on cost."""
    chance = random.Random(seed)
    net = SmallNet(seed)
    values = ["x"]
    for _ in range(40):
        x = chance.choice(values[-4:])
        kinds = ["conv", "norm", "Identity", "Relu", "Add", "Sub", "one"]
        match kind := chance.choice(kinds):
            case "conv":
                values.append(net.conv(x, k=chance.choice((1, 3)), bias=chance.random() < 0.5))
            case "norm":
                values.append(net.norm(x))
            case "one":
                values.append(net.add("Mul", [x, net.tensor(1.0)]))
            case "Add" | "Sub":
                values.append(net.add(kind, [x, chance.choice(values)]))
            case _:
                values.append(net.add(kind, [x]))
    outputs = list(dict.fromkeys([values[-1], chance.choice(values[1:])]))
    model = net.model(*outputs)
    loaded = set_parameters(resolve(["all"]), ["cost=off"])
    counts = [len(model.graph.node)]
    for most in range(1, 40):
        draft = OnnxDraft(copied(model))
        outcome = rewrite(draft, loaded, max_rounds=most)
        counts.append(len(draft.finish().graph.node))
        if outcome.end == "fixpoint":
            break
    else:
        pytest.fail("it does not end")
    assert counts[-1] == counts[-2] and all(a > b for a, b in pairwise(counts[:-1]))
    result, _ = rewritten(model, loaded)
    again, outcome = rewritten(result, loaded)
    assert again == result and not outcome.matches


def test_progress_never_goes_back() -> None:
    told: list[tuple[str, float | None]] = []
    draft = OnnxDraft(copied(grouped_sum()))
    rewrite(draft, resolve(ALL), progress=lambda text, share: told.append((text, share)))
    assert told
    for text in dict(told):
        shares = [share for t, share in told if t == text and share is not None]
        assert shares == sorted(shares) and shares[0] >= 0 and shares[-1] < 1


# --- outputs patterns ------------------------------------------------------------------------------------------------


def two_heads() -> ModelProto:
    net = SmallNet()
    a = net.add("Relu", [net.conv("x")], "a")
    net.norm(net.conv(a), "aux")
    deep = net.add("Relu", [net.conv(a)], "deep")
    net.norm(net.conv(net.add("Relu", [net.conv(deep)])), "main")
    return net.model("aux", "main")


def test_outputs_go_first_whatever_the_order_given() -> None:
    for order in permutations(["aux-prune", "conv-bn"]):
        result, outcome = rewritten(two_heads(), order)
        assert [o.name for o in result.graph.output] == ["main"]
        assert [m.exit for m in outcome.matches] == ["main"]
        (decision,) = outcome.decisions
        assert (decision.kept, decision.removed) == (("main",), ("aux",))
        assert (decision.removed_nodes, decision.removed_parameters) == (2, 144 + 8)


def test_keep_all_removes_nothing_and_says_so() -> None:
    result, outcome = rewritten(two_heads(), ["aux-prune"], keep_all=True)
    assert result == two_heads()
    (decision,) = outcome.decisions
    assert (decision.kept, decision.removed, decision.removed_nodes) == (("aux", "main"), (), 0)


def test_two_patterns_of_outputs_one_after_the_other(tmp_path: Path) -> None:
    text = """pattern one { doc "d" match outputs { main: index(1) aux: rest } do remove-output aux }
              pattern two { doc "d" match outputs { main: index(0) aux: rest } do remove-output aux }"""
    result, outcome = rewritten(two_heads(), patterns(tmp_path, text))
    assert [o.name for o in result.graph.output] == ["main"]
    assert [(d.pattern, d.removed) for d in outcome.decisions] == [("one", ("aux",)), ("two", ())]


# --- kernels across rounds -------------------------------------------------------------------------------------------


def test_kernels_are_rounded_once_over_all_rounds(tmp_path: Path) -> None:
    """conv and norm in the first round, their sum in a later one: equal, bit for bit, to float64 rounded at the end."""
    text = """pattern pair { doc "d" priority 9 match y = x -> conv -> bn do fold to conv }
              pattern both { doc "d" match y = x -> sum { parts{2..}: conv } do fold to conv }
              pattern late { doc "d" match y = x -> conv -> scale do fold to conv }"""
    net = SmallNet()
    branches = [net.norm(net.conv("x")), net.norm(net.conv("x", k=1, bias=True))]
    net.add("Mul", [net.add("Add", branches), net.tensor(1 / 3)], "y")
    model = net.model("y")
    result, outcome = rewritten(model, patterns(tmp_path, text))
    assert [(m.pattern, m.round) for m in outcome.matches] == [("pair", 1), ("pair", 1), ("both", 2), ("late", 3)]
    kernel, bias = np.zeros((4, 4, 3, 3)), np.zeros(4)
    once = np.zeros((4, 4, 3, 3), np.float32)
    for norm in [n for n in model.graph.node if n.op_type == "BatchNormalization"]:
        conv = next(n for n in model.graph.node if n.output[0] == norm.input[0])
        scale, beta, mean, var = (tensor_of(model, name).astype(np.float64) for name in norm.input[1:])
        factor = scale / np.sqrt(var + np.float64(np.float32(1e-5)))
        weight = tensor_of(model, conv.input[1]).astype(np.float64) * factor[:, None, None, None]
        inner = tensor_of(model, conv.input[2]).astype(np.float64) if len(conv.input) > 2 else 0.0
        place = (slice(None), slice(None), slice(1, 2), slice(1, 2)) if weight.shape[2] == 1 else ...
        kernel[place] += weight
        once[place] += weight.astype(np.float32)
        bias += (inner - mean) * factor + beta
    third = np.float64(np.float32(1 / 3))
    stored, offset = (tensor_of(result, name) for name in result.graph.node[0].input[1:])
    assert np.array_equal(stored, (kernel * third).astype(np.float32))
    assert np.allclose(offset, bias * third, rtol=1e-7)
    assert not np.array_equal(stored, once * np.float32(1 / 3))


# --- determinism -----------------------------------------------------------------------------------------------------


def bytes_of(model: ModelProto, names: Sequence[str]) -> bytes:
    draft = OnnxDraft(copied(model))
    rewrite(draft, resolve(names))
    return draft.finish().SerializeToString(deterministic=True)


def test_the_order_of_patterns_changes_no_byte() -> None:
    for model in (stacked(), grouped_sum()):
        assert len({bytes_of(model, order) for order in permutations([*ALL, "repconv"])}) == 1


def test_the_hash_seed_changes_no_byte() -> None:
    code = (
        "import hashlib; from tests.rewriting.test_engine import ALL, bytes_of, grouped_sum, stacked;"
        "print([hashlib.sha256(bytes_of(m(), ALL)).hexdigest() for m in (stacked, grouped_sum)])"
    )
    said = set[str]()
    for seed in ("0", "1", "77"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", code]
        said.add(subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout)
    assert len(said) == 1 and len(said.pop()) > 128


def signature(model: ModelProto) -> list[str]:
    """What each output is computed from, down to the bits of the weights, without a name or an order of nodes."""
    makers = {name: node for node in model.graph.node for name in node.output}
    known = {t.name: hashlib.sha256(numpy_helper.to_array(t).tobytes()).hexdigest() for t in model.graph.initializer}
    known |= {value.name: f"input {number}" for number, value in enumerate(model.graph.input)}

    def term(name: str) -> str:
        if name not in known:
            node = makers[name]
            attrs = sorted((a.name, str(helper.get_attribute_value(a))) for a in node.attribute)
            operands = [term(i) if i else "" for i in node.input]
            if node.op_type in ("Add", "Mul", "Sum"):
                operands.sort()
            text = repr((node.op_type, attrs, operands, list(node.output).index(name)))
            known[name] = hashlib.sha256(text.encode()).hexdigest()
        return known[name]

    return [term(output.name) for output in model.graph.output]


@pytest.mark.parametrize("case", sorted(BLOCKS))
def test_disguises_change_names_and_nothing_else(case: str) -> None:
    """The same nodes with the same bits in their weights, whatever the names and the order were."""
    model = BLOCKS[case].build(0, 8)
    plain, _ = rewritten(model)
    for seed in range(3):
        masked, _ = rewritten(disguised(model, seed).model)
        assert signature(masked) == signature(plain)
        assert ops(masked) == ops(plain)


def test_a_signature_sees_a_bit_and_a_leftover() -> None:
    """So that the test above can fail."""
    model = stacked(1)
    changed, longer = copied(model), copied(model)
    first = changed.graph.initializer[0]
    first.raw_data = bytes([first.raw_data[0] ^ 1]) + first.raw_data[1:]
    longer.graph.node[4].input[0] = longer.graph.node[0].output[0]
    assert len({tuple(signature(m)) for m in (model, changed, longer)}) == 3
