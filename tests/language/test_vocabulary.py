"""The operator table: one meaning per name, and nothing in it that the language could not say."""

from __future__ import annotations

from collections import Counter

import onnx
import pytest

from rewriter.graph.vocabulary import FOLD_KINDS, OPERATORS, canonical_name
from rewriter.language.lexer import RESERVED
from rewriter.language.signatures import SIGNATURES


@pytest.mark.parametrize("form", ["onnx", "modules"])
def test_native_names_belong_to_one_operator(form: str) -> None:
    counts = Counter(name for operator in OPERATORS.values() for name in getattr(operator, form))
    assert [name for name, number in counts.items() if number > 1] == []


def test_onnx_names_exist() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    assert {name for operator in OPERATORS.values() for name in operator.onnx} - known <= {"Upsample", "Swish"}


def test_canonical_names() -> None:
    assert canonical_name("Conv") == "conv"
    assert canonical_name("BatchNormalization") == "bn"
    assert canonical_name("GridSample") == "gridsample"


def test_words_do_not_collide() -> None:
    assert set(OPERATORS) & RESERVED == {"sum", "concat"}
    assert set(FOLD_KINDS) <= set(OPERATORS) >= set(SIGNATURES)


def test_attributes_are_named_once_per_operator_and_mean_one_kind() -> None:
    kinds: dict[str, set[str]] = {}
    for operator in OPERATORS.values():
        names = [attribute.name for attribute in operator.attributes]
        assert len(names) == len(set(names))
        for attribute in operator.attributes:
            kinds.setdefault(attribute.name, set()).add(attribute.kind)
    assert all(len(found) == 1 for found in kinds.values())
