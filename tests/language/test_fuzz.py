"""Whatever stands in a file, the answer is a tree or a PatternError whose message is fit to print, and soon."""

from __future__ import annotations

import random
import time
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewriter.errors import PatternError
from rewriter.language.lint import lint
from rewriter.language.parser import parse, parse_bytes
from rewriter.language.printer import to_text

WORKED = Path(__file__).with_name("worked.fxp").read_text(encoding="utf-8")
WORDS = sorted(set(WORKED.split())) + list("{}()[],;:=|?*+-/~.<>\"\\±#'\n") + ["1..", "->", "as", "1e999", "and not"]
FUZZ = settings(max_examples=300, deadline=2000, suppress_health_check=list(HealthCheck))


def read(text: str) -> None:
    try:
        file = parse(text, "fuzz.fxp")
    except PatternError as problem:
        message = str(problem)
        assert message.startswith("fuzz.fxp")
        assert all(char.isprintable() or char == "\n" for char in message)
        assert len(message) < 2000
    else:
        assert parse(to_text(file), "fuzz.fxp") == file
        lint(file)


@FUZZ
@given(st.text())
def test_any_text(text: str) -> None:
    read(text)
    read(f"fxrewrite 1\n{text}")


@FUZZ
@given(st.lists(st.sampled_from(WORDS), max_size=60))
def test_words_in_any_order(words: list[str]) -> None:
    read("fxrewrite 1 " + " ".join(words))
    read('fxrewrite 1 pattern p { doc "d" match y = x -> ' + " ".join(words))


@FUZZ
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    try:
        parse_bytes(b"fxrewrite 1\n" + data, "fuzz.fxp")
    except PatternError as problem:
        assert str(problem).startswith("fuzz.fxp")


@FUZZ
@given(st.randoms(use_true_random=False))
def test_worked_patterns_with_something_changed(rng: random.Random) -> None:
    text = WORKED
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(text))
        end = min(len(text), start + rng.choice((0, 1, 1, 5, 40)))
        text = text[:start] + rng.choice((*WORDS, "", "", text[end : end + 30])) + text[end:]
    read(text)


def test_the_largest_files_are_read_or_refused_soon() -> None:
    started = time.monotonic()
    for unit in (
        "chain c{} = conv -> bn\n",
        "(",
        "{}",
        '"',
        "-",
        "conv -> ",
        'pattern p{} {{ doc "d" ',
        "\n",
        "1 ",
        "a-",
    ):
        text = "fxrewrite 1\n" + "".join(unit.format(i) if "{}" in unit else unit for i in range(900_000 // len(unit)))
        read(text[: 1 << 20])
    assert time.monotonic() - started < 60
