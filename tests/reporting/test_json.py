"""Reports as JSON: valid by the published schema, and the same report when read again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from fixtures import blocks
from rewriter import api
from rewriter.errors import InputError
from rewriter.reporting.json import dumps, from_json, schema, to_json
from rewriter.reporting.record import Inspection
from tests.reporting.sample import INSPECTION, OK, REPORT

FOLDER = Path(__file__).parents[2] / "docs" / "schema"


def published(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.schema.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("record", "name"), [(REPORT, "report"), (INSPECTION, "inspection"), (OK, "verification")], ids=lambda x: str(x)[:6]
)
def test_records_are_valid_by_the_published_schemas(record: object, name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(published(name))
    jsonschema.validate(json.loads(dumps(record)), published(name))


def test_there_and_back() -> None:
    assert from_json(json.loads(dumps(REPORT))) == REPORT
    made = api.apply(blocks.repvgg_identity(), verify=False).report
    assert made.matches and from_json(json.loads(dumps(made))) == made
    jsonschema.validate(json.loads(dumps(made)), published("report"))


def test_numbers_that_json_has_no_words_for() -> None:
    checks = tuple(replace(OK.outputs[0], error=value) for value in (math.inf, -math.inf))
    report = replace(REPORT, verification=replace(OK, outputs=checks))
    text = dumps(report)
    jsonschema.validate(json.loads(text), published("report"))
    assert from_json(json.loads(text)) == report
    worst = replace(REPORT, verification=replace(OK, outputs=(replace(OK.outputs[0], error=math.nan),)))
    assert math.isnan(from_json(json.loads(dumps(worst))).verification.outputs[0].error)


def test_hostile_names_are_ascii_and_come_back() -> None:
    report = replace(REPORT, model="x\x1b[2J\u202e\udc80\r\n\0")
    text = dumps(report)
    assert text.isascii() and "\x1b" not in text and from_json(json.loads(text)) == report


def _without(data: dict[str, Any]) -> None:
    del data["covered"]


def _unknown(data: dict[str, Any]) -> None:
    data["verification"]["colour"] = "red"


def _true(data: dict[str, Any]) -> None:
    data["rounds"] = True


def _verdict(data: dict[str, Any]) -> None:
    data["verification"]["verdict"] = "fine"


def _pair(data: dict[str, Any]) -> None:
    data["renamed"][0].append("third")


def _dim(data: dict[str, Any]) -> None:
    data["before"]["outputs"][1]["shape"] = [1.5]


def _version(data: dict[str, Any]) -> None:
    data["schema"] = 2


BROKEN: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (_without, "covered"),
    (_unknown, "verification: fields missing or unknown: colour"),
    (_true, "rounds"),
    (_verdict, "'fine' is not one of"),
    (_pair, "2 values were expected, not 3"),
    (_dim, "shape"),
    (_version, "schema 1"),
]


@pytest.mark.parametrize(("spoil", "said"), BROKEN)
def test_what_is_no_report_is_said_by_name_and_by_the_schema(
    spoil: Callable[[dict[str, Any]], None], said: str
) -> None:
    data = json.loads(dumps(REPORT))
    spoil(data)
    with pytest.raises(InputError, match=said):
        from_json(data)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, published("report"))


@pytest.mark.parametrize("data", [[], "report", None, 1, {}])
def test_other_json_is_no_report(data: Any) -> None:
    with pytest.raises(InputError, match="not a report"):
        from_json(data)


def test_a_record_holds_plain_data_only() -> None:
    with pytest.raises(TypeError, match="plain data"):
        to_json({1, 2})
    assert schema(Inspection)["$id"] == "urn:fxrewrite:inspection:1"
