"""Text, tree and JSON say the same: each is read back as what it was written from."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from rewriter.errors import PatternError
from rewriter.language.jsonform import from_json, schema, to_json
from rewriter.language.library import find_pattern_files
from rewriter.language.parser import parse, parse_bytes
from rewriter.language.printer import expression_text, to_text
from rewriter.language.syntax import PatternFile
from tests.language.trees import files

WORKED = Path(__file__).with_name("worked.fxp")
FILES = [*find_pattern_files(), WORKED]
# Trees are large and shrinking them takes minutes; what failed is printed as it was drawn.
DRAWN = settings(
    max_examples=80, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate]
)


def load(path: Path) -> PatternFile:
    return parse_bytes(path.read_bytes(), path.name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_survive_every_form(path: Path) -> None:
    file = load(path)
    text = to_text(file)
    document = json.loads(json.dumps(to_json(file)))
    assert parse(text, file.path) == file
    assert to_text(parse(text, file.path)) == text
    assert from_json(document, file.path) == file
    jsonschema.Draft202012Validator(schema()).validate(document)


@DRAWN
@given(files())
def test_drawn_trees_survive_their_text(file: PatternFile) -> None:
    assert parse(to_text(file), file.path) == file


@DRAWN
@given(files())
def test_drawn_trees_survive_json(file: PatternFile) -> None:
    document = json.loads(json.dumps(to_json(file)))
    jsonschema.Draft202012Validator(schema()).validate(document)
    assert from_json(document, file.path) == file


def test_shipped_patterns_are_in_canonical_layout() -> None:
    for path in find_pattern_files():
        written = path.read_text(encoding="utf-8")
        if "#" not in written:  # comments are no part of the tree
            assert to_text(load(path)) == written, path.name


def test_parentheses_only_where_they_are_needed() -> None:
    expressions = [
        "not has(bn) and count(bn) = 1 or c.k >= 3",
        "not (has(bn) and has(conv))",
        "(count(bn) + 1) * 2 - -3 = c.k - (1 - 2)",
        "(count(bn) = 1 or has(conv)) and has(bn)",
        "2 / 3 / 4 = 2 / (3 / 4)",
    ]
    head = 'fxrewrite 1 pattern p { doc "d" match y = x -> conv as c -> bn? do fold to conv '
    file = parse(head + "".join(f"where {text} " for text in expressions) + "}", "p.fxp")
    assert [expression_text(expr) for expr in file.patterns[0].where] == expressions


def test_unary_minus_reads_as_a_difference() -> None:
    head = 'fxrewrite 1 pattern p { doc "d" match y = x -> conv as c do fold to conv where '
    assert parse(f"{head} - c.k < -1 }}", "p.fxp") == parse(f"{head} 0 - c.k < -1 }}", "p.fxp")


# --- documents that are none ---------------------------------------------------------------------------------------


def document() -> dict[str, Any]:
    return copy.deepcopy(to_json(load(WORKED)))


def first_item(doc: dict[str, Any]) -> dict[str, Any]:
    return doc["patterns"][0]["match"]["body"]["alternatives"][0]["items"][0]


def broken() -> dict[str, dict[str, Any]]:
    """Documents that the schema refuses."""
    found = {name: document() for name in ("extra", "missing", "type", "operator", "tag", "version", "reason", "list")}
    found["extra"]["patterns"][0]["colour"] = "red"
    del found["missing"]["patterns"][0]["doc"]
    found["type"]["patterns"][0]["doc"] = 3
    first_item(found["operator"])["atom"]["op"] = "convv"
    first_item(found["tag"])["atom"]["is"] = "op"
    found["version"]["version"] = 2
    found["reason"]["patterns"][0]["refuses"][0]["because"] = "mood"
    found["list"]["patterns"] = {}
    return found


@pytest.mark.parametrize("name", sorted(broken()))
def test_broken_documents_are_refused_by_schema_and_reader(name: str) -> None:
    doc = broken()[name]
    assert not jsonschema.Draft202012Validator(schema()).is_valid(doc)
    with pytest.raises(PatternError, match=r"doc\.json"):
        from_json(doc, "doc.json")


def test_a_name_cannot_smuggle_text_in() -> None:
    doc = document()
    doc["patterns"][0]["action"]["kinds"] = ["conv } pattern evil { "]
    with pytest.raises(PatternError):
        from_json(doc, "doc.json")
    doc = document()
    doc["patterns"][0]["match"]["exit"] = "y = x -> relu # "
    with pytest.raises(PatternError):
        from_json(doc, "doc.json")


@pytest.mark.parametrize("value", [None, 3, "text", [], {"version": 1}])
def test_other_values_are_no_documents(value: object) -> None:
    with pytest.raises(PatternError):
        from_json(value, "doc.json")


def test_deep_documents_are_refused() -> None:
    doc: Any = {}
    for _ in range(100_000):
        doc = {"body": doc}
    with pytest.raises(PatternError, match="nested"):
        from_json(doc, "doc.json")


def test_the_deepest_file_survives_every_form() -> None:
    text = f'fxrewrite 1 pattern p {{ doc "d" match y = x -> {"(" * 63}conv{")" * 63} do fold to conv }}'
    file = parse(text, "p.fxp")
    assert parse(to_text(file), "p.fxp") == file
    assert from_json(to_json(file), "p.fxp") == file
