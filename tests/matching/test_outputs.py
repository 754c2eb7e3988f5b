"""Which outputs stay: by votes, by name, by role; and when the user is asked instead."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from fixtures.disguise import disguised
from rewriter.errors import ChoiceError, Reason, Refusal, UsageError
from rewriter.graph.onnx import view
from rewriter.graph.view import Value
from rewriter.language.library import shipped
from rewriter.language.parser import parse
from rewriter.language.syntax import Pattern
from rewriter.matching.groups import same_size, twins
from rewriter.matching.outputs import Decision, decide
from tests.matching.heads import COARSE, FINE, POINTS, SIZE, WIDTH, Detector, Net, dual, raw_maps, removal

AUX_PRUNE = shipped()["aux-prune"].pattern
FINE_MASK, CLASSES = (1, 4, SIZE // 2, SIZE // 2), (1, 6, 1, 1)
IMAGE, ORDERS = (1, WIDTH, SIZE, SIZE), {"rows": [0, 1, 2, 3], "columns": [0, 1, 3, 2]}
LEVELS = "are taken for the levels of one head; if some are auxiliary, --keep says what stays"


def pattern(roles: str, votes: str = "", action: str = "aux") -> Pattern:
    text = 'fxrewrite 1\npattern p { doc "d" param keep: names = [] param scope: globs = ["aux*"]\n'
    text += f"match outputs {{ {roles} {votes} }} do remove-output {action} }}"
    return parse(text, "p.fxp").patterns[0]


def choose(model: ModelProto, *keep: str, by: Pattern = AUX_PRUNE) -> Decision:
    decision = decide(view(model), by, {"keep": keep} if keep else {})
    assert isinstance(decision, Decision)
    return decision


def names(values: tuple[Value, ...]) -> list[str]:
    return [value.name for value in values]


def votes(decision: Decision) -> dict[str, tuple[str, str]]:
    return {vote.name: (vote.value, vote.detail) for vote in decision.votes}


# --- by votes --------------------------------------------------------------------------------------------------------


def test_depth_and_pan_agree_on_the_main_output() -> None:
    decision = choose(dual())
    assert names(decision.kept) == ["second"] and names(decision.removed) == ["first"]
    assert decision.how == "by votes"
    # Convs up to the finest auxiliary map: stem, second level, top, merge, head; two more on the way down.
    assert votes(decision)["depth"] == ("true", "5 < 7")
    assert votes(decision)["pan"] == ("true", "pan(main) yes, pan(aux) no")
    assert votes(decision)["scope"] == ("silent", "scope(aux): nothing; scope(main): nothing")
    assert not next(vote for vote in decision.votes if vote.name == "params").counts


@pytest.mark.parametrize("seed", range(4))
def test_names_and_order_change_nothing(seed: int) -> None:
    hidden = disguised(dual(raw=True), seed, shuffle_outputs=True)
    plain = choose(dual(raw=True))
    decision = choose(hidden.model)
    assert set(names(decision.removed)) == {hidden.names[name] for name in names(plain.removed)}
    assert names(decision.kept) == [o.name for o in hidden.model.graph.output if o.name in names(decision.kept)]
    assert removal(view(hidden.model), decision) == removal(view(dual(raw=True)), plain)


@pytest.mark.parametrize(("deeper", "why"), [(2, "only one vote speaks"), (3, "contradict"), (9, "contradict")])
def test_a_deeper_auxiliary_head_is_never_taken_for_the_main_one(deeper: int, why: str) -> None:
    assert names(choose(dual(aux_convs=1)).removed) == ["first"]
    with pytest.raises(ChoiceError, match=why) as caught:
        choose(dual(aux_convs=deeper))
    assert caught.value.exit_code == 4


def test_depth_alone_decides_nothing() -> None:
    with pytest.raises(ChoiceError, match="only one vote speaks"):
        choose(dual(main_convs=3, pan=False))


def test_equal_structure_is_a_choice_with_everything_to_type() -> None:
    with pytest.raises(ChoiceError) as caught:
        choose(dual(pan=False))
    message = str(caught.value)
    assert "first [1, 8, 320]" in message and "second [1, 8, 320]" in message
    assert re.search(r"depth +silent +5 < 5\n", message) and re.search(r"params .*\(does not count\)", message)
    typed = re.findall(r"^  --keep (.*)$", message, re.MULTILINE)
    assert typed == ["first", "second", "all"]
    assert names(choose(dual(pan=False), typed[0]).removed) == ["second"]


def test_of_many_candidates_a_message_lists_a_few() -> None:
    net = Net()
    x = net.conv(net.image, 3)
    with pytest.raises(ChoiceError) as caught:
        choose(net.model([(net.conv(x, name=f"state{i}"), IMAGE) for i in range(20)]))
    message = str(caught.value)
    assert (
        message.count("  --keep state") == message.count(" as main, ") == message.count("parameters of its own") == 12
    )
    assert message.count("… and 8 more\n") == 2 and "… and 178 more pairs" in message and message.endswith("--keep all")


def test_names_to_type_are_quoted_for_a_shell_and_hold_what_is_not_in_question() -> None:
    net = Net()
    x = net.conv(net.image, 3)
    outputs = [(net.conv(x, name=name), FINE) for name in ("it's; a", "b $c")]
    outputs.append((net.conv(x, out=5, name="task"), (1, 5, 16, 16)))
    model = net.model(outputs)
    with pytest.raises(ChoiceError) as caught:
        choose(model)
    typed = [shlex.split(line)[1] for line in re.findall(r"^  (--keep .*)$", str(caught.value), re.MULTILINE)]
    assert typed == ["it's; a,task", "b $c,task", "all"]
    assert names(choose(model, *typed[1].split(",")).removed) == ["it's; a"]


@pytest.mark.parametrize("name", ["a,b", " a", "all", "line\nbreak", "\x1b[31mred"])
def test_a_name_that_cannot_be_typed_is_named_by_its_position(name: str) -> None:
    net = Net()
    x = net.conv(net.image, 3)
    model = net.model([(net.conv(x, name=each), FINE) for each in (name, "0")])
    with pytest.raises(ChoiceError) as caught:
        choose(model)
    typed = re.findall(r"^  --keep (.*)$", str(caught.value), re.MULTILINE)
    assert typed == ["-2", "0", "all"]  # 0 is a name
    assert names(choose(model, typed[0]).kept) == [name]


def test_positions_count_an_output_that_is_listed_twice() -> None:
    model = dual()
    model.graph.output.append(model.graph.output[0])
    assert names(choose(model, "-1").kept) == ["first"] == names(choose(model, "2").kept)


def test_what_is_offered_beside_an_open_question_leaves_out_what_the_votes_remove() -> None:
    net = Detector()
    outputs = [(net.decoded(net.aux, "first"), POINTS), (net.decoded(net.main, "second"), POINTS)]
    x = net.conv(net.image, 3)
    outputs += [(net.conv(x, out=5, name=name), (1, 5, SIZE, SIZE)) for name in ("one", "other")]
    with pytest.raises(ChoiceError) as caught:
        choose(net.model(outputs))
    typed = re.findall(r"^  --keep (.*)$", str(caught.value), re.MULTILINE)
    assert typed == ["second,one", "second,other", "all"]


def test_a_map_that_both_results_are_made_from_is_a_rival_of_neither() -> None:
    """Masks and classes of an early layer beside those of the last, which attends where the early masks are."""
    net = Net()
    early = net.conv(net.image, 3, stride=2)
    mask = net.conv(early, out=4, name="early mask")
    attended = net.concat(net.convs(net.up(net.conv(net.conv(early, stride=2), stride=2)), 2))
    gated = net.convs(net.add("Mul", [net.up(attended), net.conv(mask, 4)]), 2)
    outputs = [
        (net.conv(gated, out=4, name="mask"), FINE_MASK),
        (net.add("GlobalAveragePool", [net.conv(gated, out=6)], "classes"), CLASSES),
    ]
    outputs += [(mask, FINE_MASK), (net.add("GlobalAveragePool", [net.conv(early, out=6)], "early classes"), CLASSES)]
    decision = choose(net.model(outputs))
    assert names(decision.kept) == ["mask", "classes", "early mask"] and names(decision.removed) == ["early classes"]


def test_results_that_part_behind_the_last_layer_are_left_alone() -> None:
    """A mean and a variance cut from one map; the same two with a layer of its own before either are a question."""
    for wide, own in ((2 * WIDTH, False), (WIDTH, True)):
        net = Net()
        last = net.conv(net.conv(net.image, 3), out=wide)
        halves = ["mean", "log"] if not own else ["t mean", "t log"]
        net.nodes.append(helper.make_node("Split", [last], halves, axis=1))
        mean, log = (net.conv(half, wide // 2) for half in halves) if own else halves
        outputs = [(mean, IMAGE), (net.add("Exp", [log], "variance"), IMAGE)]
        if own:
            with pytest.raises(ChoiceError, match="no vote on structure"):
                choose(net.model(outputs))
        else:
            assert choose(net.model(outputs)).how == "nothing auxiliary"


@pytest.mark.parametrize("normed", [True, False])
def test_features_of_inner_blocks_are_on_the_way_even_in_another_order(normed: bool) -> None:
    """What the next block reads, flattened as an output, costs nothing; behind a norm of its own it is asked for."""
    net = Net()
    tokens, kept = net.conv(net.image, 3), list[str]()
    for name in ("first", "second", "third"):
        tokens = net.add("Add", [tokens, net.convs(tokens, 2)])
        value = tokens
        if normed:
            factors = (net.weight(np.full(WIDTH, 2.0, np.float32)), net.weight(np.ones(WIDTH, np.float32)))
            value = net.add("InstanceNormalization", [tokens, *factors])
        kept.append(net.add("Transpose", [value], name, perm=[0, 2, 3, 1]))
    model = net.model([(name, (1, SIZE, SIZE, WIDTH)) for name in kept])
    if normed:
        with pytest.raises(ChoiceError, match="only one vote speaks"):
            choose(model)
        return
    decision = choose(model)
    assert decision.how == "nothing auxiliary"
    assert decision.notes == ("on the way to other outputs, and kept with them: first, second",)


@pytest.mark.parametrize("squeezed", [True, False])
def test_parts_of_a_stack_are_a_question(squeezed: bool) -> None:
    """What made them is hidden behind the stack where heads cannot be moved before it."""
    net = Net()
    first = net.conv(net.image, 3)
    axis = net.weight(np.array([0], np.int64))
    parts = [net.add("Unsqueeze", [value, axis]) for value in (first, net.convs(first, 2))]
    stack = net.add("CumSum", [net.add("Concat", parts, axis=0), net.weight(np.array(0, np.int64))])
    names_of = ["one", "other"]
    if squeezed:
        net.nodes.append(helper.make_node("Split", [stack], ["half", "rest"], axis=0))
        taken = [net.add("Squeeze", [half, axis], name) for half, name in zip(("half", "rest"), names_of, strict=True)]
    else:
        places = [net.weight(np.array(place, np.int64)) for place in (0, 1)]
        taken = [net.add("Gather", [stack, p], name, axis=0) for p, name in zip(places, names_of, strict=True)]
    with pytest.raises(ChoiceError, match="no vote on structure"):
        choose(net.model([(name, IMAGE) for name in taken]))


def test_two_orders_of_one_value_are_inside_neither() -> None:
    net = Net()
    last = net.conv(net.image, 3)
    outputs = [(net.add("Transpose", [last], name, perm=perm), IMAGE) for name, perm in ORDERS.items()]
    decision = choose(net.model(outputs))
    assert (names(decision.kept), decision.notes) == (list(ORDERS), ())


@pytest.mark.parametrize("pan", [True, False])
def test_a_telling_scope_adds_a_vote(pan: bool) -> None:
    model = dual(main_convs=0 if pan else 2, pan=pan)
    flat = next(n for n in model.graph.node if n.output[0] == "first")
    flat.name = "/model/aux_head/Concat"
    decision = choose(model)
    assert names(decision.removed) == ["first"]
    assert votes(decision)["scope"] == ("true", "scope(aux): aux_head; scope(main): nothing")


def test_a_scope_that_contradicts_or_stands_alone_is_a_choice() -> None:
    model = dual()
    next(n for n in model.graph.node if n.output[0] == "second").name = "/aux_head/Concat"
    with pytest.raises(ChoiceError, match="contradict"):
        choose(model)
    model = dual(pan=False)
    next(n for n in model.graph.node if n.output[0] == "first").name = "/aux_head/Concat"
    with pytest.raises(ChoiceError, match="no vote on structure"):
        choose(model)


def three_heads(deepest_last: bool = True) -> ModelProto:
    net = Detector()
    inner = net.decoded([net.conv(x) for x in (net.conv(net.image, 3, stride=2),)], "inner")
    outputs = [(net.decoded(net.aux, "middle"), POINTS), (inner, POINTS), (net.decoded(net.main, "outer"), POINTS)]
    return net.model(outputs if deepest_last else outputs[::-1])


@pytest.mark.parametrize("deepest_last", [True, False])
def test_of_three_heads_one_wins_against_both_others(deepest_last: bool) -> None:
    decision = choose(three_heads(deepest_last))
    assert names(decision.kept) == ["outer"] and sorted(names(decision.removed)) == ["inner", "middle"]
    assert {(table.main, table.aux) for table in decision.table} == {("outer", "inner"), ("outer", "middle")}
    assert all(re.match("outer and (inner|middle): ", vote.detail) for vote in decision.votes)


# --- groups ----------------------------------------------------------------------------------------------------------


def test_raw_maps_go_with_the_output_that_decodes_them() -> None:
    model = dual(raw=True)
    decision = choose(model)
    declared = [output.name for output in model.graph.output]
    assert names(decision.removed) == ["first", *declared[2:4]]
    assert names(decision.kept) == ["second", *declared[4:]]
    only_aux = removal(view(model), decision)
    # top, merge and two heads; with the Resize, two Concats and two Reshapes. 8 to 8, 16 to 8, 8 to 8, 8 to 8 channels.
    assert only_aux == (9, 9 * (64 + 128 + 64 + 64))


def test_raw_maps_alone_are_grouped_by_what_only_they_share() -> None:
    model, aux, main = raw_maps()
    for seed in range(3):
        hidden = disguised(model, seed, shuffle_outputs=True)
        decision = choose(hidden.model)
        assert set(names(decision.removed)) == {hidden.names[name] for name in aux}
        assert set(names(decision.kept)) == {hidden.names[name] for name in main}


@pytest.mark.parametrize("main", [True, False])
def test_the_levels_of_one_head_are_left_alone(main: bool) -> None:
    model, *_ = raw_maps(aux=not main, main=main)
    decision = choose(model)
    assert decision.removed == () and decision.how == "nothing auxiliary" and decision.votes == ()
    maps = ", ".join(names(decision.kept))
    assert decision.notes == (f"{maps} {LEVELS}",)


def finer_and_coarser(called: str) -> ModelProto:
    """A map of the finest level and one that a head gives of the level before, whose last layer is `called`."""
    net = Detector()
    fine = net.conv(net.image, 3, stride=2)
    top = net.conv(net.conv(fine, stride=2))
    merged = net.conv(net.concat(net.up(top), fine), 2 * WIDTH)
    model = net.model([(net.conv(merged, name="fine"), FINE), (net.conv(top, name="coarse"), COARSE)])
    next(n for n in model.graph.node if n.output[0] == "coarse").name = called
    return model


def test_maps_of_two_sizes_are_levels_of_one_head_and_that_is_said() -> None:
    decision = choose(finer_and_coarser("/head/Conv"))
    assert decision.removed == () and decision.notes == (f"fine, coarse {LEVELS}",)


def test_a_map_that_is_called_auxiliary_is_no_level_of_the_others() -> None:
    """Names make it a question; what answers it are the votes, structural ones among them."""
    decision = choose(finer_and_coarser("/aux_head/Conv"))
    assert names(decision.removed) == ["coarse"] and decision.notes == ()
    assert {name: value for name, (value, _) in votes(decision).items() if value != "silent"}.keys() >= {
        "depth",
        "scope",
    }
    model, _, main = raw_maps(aux=False)
    next(n for n in model.graph.node if n.output[0] == main[0]).name = "/aux_head/Conv"  # the finer, and the shallower
    next(n for n in model.graph.node if n.output[0] == main[1]).name = "/head/Conv"
    assert names(choose(model).removed) == [main[0]]
    next(n for n in model.graph.node if n.output[0] == main[1]).name = "/aux_head/Conv_1"
    assert choose(model).removed == ()  # all of one head, whatever it is called


def test_maps_that_cannot_be_grouped_are_a_choice() -> None:
    net = Detector()
    model = net.model([(net.main[0], FINE), (net.main[1], COARSE), (net.aux[1], COARSE)])
    with pytest.raises(ChoiceError, match="does not say which belong together"):
        choose(model)
    assert names(choose(model, net.main[0], net.main[1]).removed) == [net.aux[1]]


def test_maps_of_unknown_size_may_be_levels_and_are_a_choice() -> None:
    net = Detector()
    maps = [net.add("Stranger", [value], domain="of.others") for value in net.main]
    model = net.model([(maps[0], (1, WIDTH, "h", "w")), (maps[1], (1, WIDTH, "h2", "w2"))])
    with pytest.raises(ChoiceError, match="does not say which belong together"):
        choose(model)


@pytest.mark.parametrize("dynamic", [True, False])
def test_maps_whose_sizes_are_proved_to_differ_are_levels_of_one_head(dynamic: bool) -> None:
    net = Detector()
    model = net.model([(net.main[0], (1, WIDTH, "h", "w")), (net.main[1], (1, WIDTH, "h2", "w2"))])
    if dynamic:
        for axis, dim in zip(("height", "width"), model.graph.input[0].type.tensor_type.shape.dim[2:], strict=True):
            dim.dim_param = axis
    assert choose(model).how == "nothing auxiliary"


def test_outputs_that_declare_no_numbers_are_compared_by_what_their_operators_prove() -> None:
    net = Detector()
    named = [net.decoded(net.aux, "first"), net.decoded(net.main, "second")]
    model = net.model([(name, (f"{name} batch", f"{name} rows", f"{name} columns")) for name in named])
    decision = choose(model)
    assert names(decision.kept) == ["second"] and names(decision.removed) == ["first"]


def test_an_output_that_feeds_another_belongs_to_it() -> None:
    net = Net()
    stage = net.convs(net.conv(net.image, 3), 2)
    model = net.model([(stage, FINE), (net.convs(stage, 3), FINE)])
    assert choose(model).how == "nothing auxiliary"


def test_a_map_that_both_heads_decode_stays_with_the_one_that_stays() -> None:
    net = Detector()
    shared = net.conv(net.image, 3, stride=2)
    outputs = [(net.decoded([*net.aux, shared], "first"), POINTS), (net.decoded([*net.main, shared], "second"), POINTS)]
    decision = choose(net.model([*outputs, (shared, FINE)]))
    assert names(decision.kept) == ["second", shared] and names(decision.removed) == ["first"]


def test_a_map_that_is_only_measured_is_not_inside_the_cone() -> None:
    net = Detector()
    first = net.decoded(net.aux, "first")
    size = net.add("Cast", [net.add("Size", [net.aux[1]])], to=TensorProto.FLOAT)
    second = net.add("Mul", [net.decoded(net.main, ""), size], "second")
    model = net.model([(first, POINTS), (second, POINTS), (net.aux[1], COARSE)])
    decision = choose(model)
    assert names(decision.removed) == ["first", net.aux[1]]
    # The main output still needs what it measures: of the branch only the finest merge and head die with its output.
    assert removal(view(model), decision)[1] == 9 * (128 + 64)


# --- nothing to do ---------------------------------------------------------------------------------------------------


def test_one_output_and_honest_tasks_are_left_alone() -> None:
    net = Detector()
    boxes, scores = net.conv(net.main[1], out=4, name="boxes"), net.conv(net.main[0], out=80, name="scores")
    for outputs in ([(boxes, (1, 4, 8, 8))], [(boxes, (1, 4, 8, 8)), (scores, (1, 80, 16, 16))]):
        decision = choose(net.model(outputs))
        assert (decision.removed, decision.how) == ((), "nothing auxiliary")
        assert removal(view(net.model(outputs)), decision) == (0, 0)


def test_inputs_constants_and_repeated_outputs() -> None:
    net = Detector()
    outputs = [(net.decoded(net.aux, "first"), POINTS), (net.decoded(net.main, "second"), POINTS)]
    anchors = net.add("Constant", [], "anchors", value=helper.make_tensor("v", TensorProto.FLOAT, [1, 8, 1], [0.0] * 8))
    extra = [("image", (1, 3, 32, 32)), (anchors, (1, 8, 1)), ("second", POINTS)]
    decision = choose(net.model([*outputs, *extra]))
    assert names(decision.kept) == ["second", "image", "anchors"] and names(decision.removed) == ["first"]
    assert decision.notes == ("anchors is a constant: nothing computes it",)
    lone = Net()
    decision = choose(lone.model([("image", (1, 3, 32, 32)), (lone.conv("image", 3, 3), (1, 3, 32, 32))]))
    assert decision.how == "nothing auxiliary"


def test_a_body_that_captures_a_map_needs_it() -> None:
    net = Detector()
    first = net.decoded(net.aux, "first")
    inner = [helper.make_node("Add", [net.aux[1], net.main[1]], ["sum"])]
    info = helper.make_tensor_value_info("sum", TensorProto.FLOAT, list(COARSE))
    flag = net.add("Constant", [], value=helper.make_tensor("v", TensorProto.BOOL, [], [True]))
    branch = helper.make_graph(inner, "branch", [], [info])
    second = net.add("If", [flag], "second", then_branch=branch, else_branch=branch)
    graph = view(net.model([(first, POINTS), (second, COARSE), (net.aux[1], COARSE), (net.aux[0], FINE)]))
    decision = decide(graph, AUX_PRUNE, {"keep": ["second"]})
    assert isinstance(decision, Decision)
    assert names(decision.kept) == ["second", net.aux[1]]
    assert removal(graph, decision)[1] == 9 * (128 + 64)  # merge and finest head; the rest is captured


# --- by name ---------------------------------------------------------------------------------------------------------


def test_keep_takes_precedence_over_votes_and_still_shows_them() -> None:
    decision = choose(dual(raw=True), "first")
    assert names(decision.kept)[0] == "first" and len(decision.kept) == 3
    assert decision.how == "by --keep"
    assert votes(decision)["depth"] == ("false", "7 < 5")


def test_keep_means_what_it_names_and_the_raw_maps_inside() -> None:
    net = Detector()
    task = net.conv(net.main[1], out=4, name="task")
    model = net.model([(net.decoded(net.main, "second"), POINTS), (net.main[0], FINE), (task, (1, 4, 8, 8))])
    decision = choose(model, "second")
    assert names(decision.kept) == ["second", net.main[0]]
    assert decision.notes == (f"on the way to other outputs, and kept with them: {net.main[0]}",)
    assert names(choose(model, net.main[0]).kept) == [net.main[0]]
    assert choose(model, "second", "task").removed == ()


def test_keep_all_removes_nothing() -> None:
    decision = decide(view(dual(pan=False)), AUX_PRUNE, {}, keep_all=True)
    assert isinstance(decision, Decision)
    assert (decision.removed, decision.how) == ((), "by --keep all")


def test_an_unknown_name_is_answered_with_those_that_exist() -> None:
    with pytest.raises(UsageError, match=r"no such output; did you mean 'second'\? \(its outputs are first, second\)"):
        choose(dual(), "secnd")


# --- by role ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("roles", "removed"),
    [
        ("main: index(1) aux: twin of main", ["first"]),
        ("main: index(-1) aux: rest", ["first"]),
        ("main: deepest aux: twin of main", ["first"]),
        ("main: deepest aux: rest", ["first"]),
        ("aux: index(0)", ["first"]),
        ("aux: named keep", []),
    ],
)
def test_roles_that_find_their_group(roles: str, removed: list[str]) -> None:
    decision = choose(dual(), by=pattern(roles))
    assert names(decision.removed) == removed
    assert decision.how == ("by the pattern" if removed else "nothing auxiliary")


def test_votes_still_have_to_agree_with_a_role() -> None:
    by = pattern("main: index(0) aux: twin of main", "vote depth = depth(aux) < depth(main)")
    with pytest.raises(ChoiceError):
        choose(dual(), by=by)


def test_roles_that_find_nothing_are_refusals() -> None:
    graph = view(dual())
    for roles, reason in (("aux: index(5)", Reason.COUNT), ("main: rest aux: twin of main", Reason.CHOICE)):
        refusal = decide(graph, pattern(roles), {})
        assert isinstance(refusal, Refusal) and refusal.code is reason
    with pytest.raises(ChoiceError):
        choose(dual(pan=False), by=pattern("main: deepest aux: rest"))


def test_a_role_that_would_take_every_output_is_refused() -> None:
    net = Net()
    model = net.model([(net.conv(net.image, 3), FINE)])
    refusal = decide(view(model), pattern("aux: index(0)"), {})
    assert isinstance(refusal, Refusal) and refusal.code is Reason.COUNT


# --- types -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((1, 84, 2100), (1, 84, 2100), True),
        ((1, 84, 8400), (1, 84, 2100), True),  # one ratio
        ((1, 2100, 84), (1, 8400, 84), True),  # channels last
        ((1, 84, 2100), (1, 80, 2100), False),
        ((1, 84, 2100), (1, 42, 2100), False),  # a ratio of channels is none of sizes
        ((1, 300, 4), (1, 300, 80), False),  # boxes and scores
        ((1, 21, 64, 64), (1, 21, 32, 32), True),
        ((1, 21, 64, 64), (1, 21, 32, 16), False),  # two ratios
        ((1, 21, 64, 64), (1, 21, 48, 48), False),
        ((1, 21, 65, 97), (1, 21, 9, 13), True),  # strides round up
        ((1, 21, 17, 25), (1, 21, 71, 101), True),  # and down, where pads are missing
        ((1, 21, 65, 97), (1, 21, 9, 25), False),
        ((1, 21, 65, 97), (1, 21, 10, 13), False),
        ((1, 64, 64, 21), (1, 32, 32, 21), True),
        ((1, 3, 80, 80, 85), (1, 3, 40, 40, 85), True),
        (("b", 84, "n"), ("b", 84, "m"), True),
        (("b", None, "n"), ("b", None, "m"), False),  # nothing is known to agree
        ((1, 1000), (1, 1000), True),
        ((1, 1000), (1, 100), False),
        ((1,), (1,), False),
        ((1, 84, 2100), (1, 84, 2100, 1), False),
        (None, (1, 84, 2100), False),
    ],
)
def test_twins(one: tuple[int | str | None, ...] | None, other: tuple[int | str | None, ...], expected: bool) -> None:
    a, b = (Value("x", 0, (), shape=shape, dtype="float32") for shape in (one, other))
    assert twins(a, b) is expected and twins(b, a) is expected
    assert not twins(a, Value("y", 0, (), shape=other, dtype="int64"))


def test_sizes_that_only_symbols_tell_apart_stay_open() -> None:
    def of(*dims: int | str | None) -> Value:
        return Value("x", 0, (), shape=dims, dtype="float32")

    assert same_size(of("b", 84, "n"), of("b", 84, "m")) is True
    assert same_size(of("b", 84, "h", "w"), of("b", 84, "h", "w")) is True
    assert same_size(of("b", 84, "h", "w"), of("b", 84, "h2", "w2")) is None
    assert same_size(of("b", 84, "h", 8), of("b", 84, "h2", 4)) is False


# --- exported models -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def export() -> Callable[[str], ModelProto]:
    """A raw legacy export of a variant at a quarter of its width; torch comes with it."""
    pytest.importorskip("torch")
    cached = import_module("fixtures.cache").cached_export
    load = import_module("onnx").load

    def read(variant: str) -> ModelProto:
        path: Path = cached(variant, "legacy", 64, width=0.25, calibrate=False, raw_outputs=True)
        return load(path)

    return read


@pytest.mark.parametrize(("variant", "depths"), [("t", "115 < 157"), ("c", "96 < 109"), ("e", "107 < 210")])
def test_yolov9_in_disguise(export: Callable[[str], ModelProto], variant: str, depths: str) -> None:
    model = export(variant)
    hidden = disguised(model, 7, shuffle_outputs=True)
    decision = choose(hidden.model)
    declared = [output.name for output in model.graph.output]
    aux, main = [declared[0], *declared[2:5]], [declared[1], *declared[5:8]]
    assert set(names(decision.removed)) == {hidden.names[name] for name in aux}
    assert set(names(decision.kept)) == {hidden.names[name] for name in main}
    assert votes(decision)["depth"] == ("true", depths)
    assert votes(decision)["pan"] == ("true", "pan(main) yes, pan(aux) no")
    assert votes(decision)["scope"][0] == "silent"
    del model.graph.output[:2]
    decision = choose(model)  # raw maps alone
    assert names(decision.removed) == declared[2:5]
    del model.graph.output[:3]
    assert choose(model).how == "nothing auxiliary"


# --- what is shown and does not count --------------------------------------------------------------------------------


def test_every_kind_of_evidence_is_shown_with_its_value() -> None:
    decision = choose(dual())
    shown = votes(decision)
    assert list(shown) == ["depth", "pan", "tap", "scope", "deployed", "alike", "params", "macs", "stem", "place"]
    assert [v.name for v in decision.votes if v.counts] == ["depth", "pan", "tap", "scope"]
    assert shown["alike"] == ("silent", "last operators that are alike, in step: 1")  # both join their levels last
    assert shown["place"] == ("true", "0 < 1")
    assert shown["stem"] == ("silent", "stem(aux) no, stem(main) no")


def test_a_second_stem_is_seen_and_does_not_count() -> None:
    net = Net()
    trunk = net.convs(net.conv(net.image, 3), 2)
    second = net.convs(net.conv(net.add("Identity", [net.image]), 3), 1)
    outputs = [(net.conv(net.concat(second, trunk), 16), FINE), (net.convs(trunk, 4), FINE)]
    with pytest.raises(ChoiceError, match=r"stem +true +stem\(aux\) yes, stem\(main\) no \(does not count\)"):
        choose(net.model(outputs[::-1]), by=AUX_PRUNE)


# --- positions, globs, and what cannot be looked into ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (("1",), ["second"]),
        (("-2",), ["first"]),
        (("sec*",), ["second"]),
        (("*",), ["first", "second"]),
        (("[fs]*", "0"), ["first", "second"]),
    ],
)
def test_outputs_by_position_and_by_glob(given: tuple[str, ...], kept: list[str]) -> None:
    assert names(choose(dual(), *given).kept) == kept


def test_a_name_comes_before_a_position_and_a_glob() -> None:
    net = Detector()
    outputs = [(net.decoded(net.aux, "1"), POINTS), (net.decoded(net.main, "[1]"), POINTS)]
    model = net.model(outputs)
    assert names(choose(model, "1").kept) == ["1"] and names(choose(model, "[1]").kept) == ["[1]"]
    assert names(choose(model, "[0-9]").kept) == ["1"]


@pytest.mark.parametrize("given", ["2", "-3", "main*"])
def test_a_position_or_glob_without_outputs_is_refused(given: str) -> None:
    with pytest.raises(UsageError, match="no such output"):
        choose(dual(), given)


def hiding(kind: str, *, layers: bool = True) -> ModelProto:
    """Two heads of which the second ends in a body or in a function of the model."""
    net = Detector()
    first, inner = net.decoded(net.aux, "first"), net.decoded(net.main, "")
    if kind == "function":
        net.nodes.append(helper.make_node("Head", [inner], ["second"], "head", domain="of.ours"))
    else:
        flag = net.add("Constant", [], value=helper.make_tensor("v", TensorProto.BOOL, [], [True]))
        info = helper.make_tensor_value_info("done", TensorProto.FLOAT, list(POINTS))
        op, reads = ("MatMul", [inner, net.weight(WEIGHT)]) if layers else ("Neg", [inner])
        body = helper.make_graph([helper.make_node(op, reads, ["done"])], "branch", [], [info])
        net.add("If", [flag], "second", then_branch=body, else_branch=body)
    return net.model([(first, POINTS), ("second", POINTS)])


WEIGHT = np.eye(POINTS[-1], dtype=np.float32)


@pytest.mark.parametrize("kind", ["function", "body"])
def test_layers_that_nobody_counts_leave_the_choice_to_the_user(kind: str) -> None:
    model = hiding(kind)
    with pytest.raises(ChoiceError, match=r"not looked into: .*layers may hide there") as caught:
        choose(model)
    assert "unknown < unknown" in str(caught.value)
    assert names(choose(model, "second").removed) == ["first"]


def test_a_body_without_layers_hides_nothing() -> None:
    assert names(choose(hiding("body", layers=False)).removed) == ["first"]


@pytest.mark.parametrize("heads", [2, 3])
def test_boxes_and_scores_of_equal_heads_are_one_question(heads: int) -> None:
    """What is typed names one output of each kind, of one head by the order of the model."""
    net = Net()
    trunk = net.conv(net.image, 3)
    outputs = [(f"{kind}{head}", (1, wide, SIZE, SIZE)) for head in range(heads) for kind, wide in KINDS.items()]
    for name, (_, wide, *_) in outputs:
        net.conv(trunk, out=wide, name=name)
    with pytest.raises(ChoiceError) as caught:
        choose(net.model(outputs))
    offered = re.findall(r"^  --keep (.*)$", str(caught.value), re.MULTILINE)
    assert offered == [*(f"boxes{head},scores{head}" for head in range(heads)), "all"]
    kept = choose(net.model(outputs), *offered[1].split(",")).kept
    assert names(kept) == ["boxes1", "scores1"]


KINDS = {"boxes": 4, "scores": 7}
