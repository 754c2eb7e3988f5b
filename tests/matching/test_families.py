"""Families of models with outputs that only training needs: the votes find them, or the user is asked."""

from __future__ import annotations

import re

import pytest

from fixtures.disguise import disguised
from fixtures.heads import FAMILIES
from fixtures.heads.exports import Form, exported
from rewriter.errors import ChoiceError
from rewriter.graph.onnx import view
from rewriter.language.library import shipped
from rewriter.matching.outputs import Decision, decide

AUX_PRUNE = shipped()["aux-prune"].pattern
CASES = [
    pytest.param(name, form, dynamic, id=f"{name}-{form}{'-dynamic' if dynamic else ''}", marks=marks)
    for name, family in FAMILIES.items()
    for form, marks in (("legacy", ()), ("dynamo", pytest.mark.slow))
    for dynamic in (False, True)
    if not (family.sized and dynamic)
]


@pytest.mark.parametrize(("name", "form", "dynamic"), CASES)
def test_what_is_shipped_stays_whatever_names_and_order_say(name: str, form: Form, dynamic: bool) -> None:
    family = FAMILIES[name]
    model = exported(name, form, dynamic=dynamic)
    hidden = disguised(model, 3, shuffle_outputs=True)
    places = {new: old for old, new in hidden.names.items()}
    for candidate, known in ((hidden.model, places), (model, {name: name for name in family.outputs})):
        if not family.shown:
            with pytest.raises(ChoiceError) as caught:
                decide(view(candidate), AUX_PRUNE, {})
            assert caught.value.exit_code == 4
            assert set(known) >= set(_offered(str(caught.value)))
            continue
        decision = decide(view(candidate), AUX_PRUNE, {})
        assert isinstance(decision, Decision)
        assert {known[value.name] for value in decision.removed} == set(family.removed)
        assert [v.name for v in decision.kept] == [
            o.name for o in candidate.graph.output if known[o.name] in family.kept
        ]
        assert decision.how == ("by votes" if family.removed else "nothing auxiliary")


def _offered(message: str) -> list[str]:
    lines = re.findall(r"^  --keep (.*)$", message, re.MULTILINE)
    assert len(lines) >= 3 and lines[-1] == "all"
    return [name for line in lines[:-1] for name in line.split(",")]


def test_maps_that_structure_leaves_open_are_offered_by_module() -> None:
    """The names of modules decide nothing, but they say which maps people would name together."""
    with pytest.raises(ChoiceError) as caught:
        decide(view(exported("yolov10-raw")), AUX_PRUNE, {})
    lines = re.findall(r"^  --keep (.*)$", str(caught.value), re.MULTILINE)
    assert lines == ["many_p3,many_p4,many_p5", "one_p3,one_p4,one_p5", "all"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("deeplabv3", "tapped(aux) yes (at /layer3/layer3.1/Relu_output_0: 2 layers to aux, 8 to main)"),
        ("unet++", "1 layers to aux, 3 to main"),
    ],
)
def test_a_tap_is_shown_with_its_figures(name: str, words: str) -> None:
    decision = decide(view(exported(name)), AUX_PRUNE, {})
    assert isinstance(decision, Decision)
    assert any(vote.name == "tap" and vote.value == "true" and words in vote.detail for vote in decision.votes)
