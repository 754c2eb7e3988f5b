"""What is generated from the tables is up to date."""

from __future__ import annotations

from tools import gen_reference, gen_schemas


def test_the_reference_page() -> None:
    assert gen_reference.main(["--check"]) == 0


def test_the_schemas() -> None:
    assert gen_schemas.main(["--check"]) == 0
