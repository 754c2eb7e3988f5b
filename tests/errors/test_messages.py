"""Every bad pattern file here has beside it the exact message that it gives: NAME.fxp and NAME.txt.

`python tests/errors/test_messages.py` writes the messages anew; read the difference before keeping it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from rewriter.errors import PatternError
from rewriter.language.parser import parse_bytes

FOLDER = Path(__file__).parent
BAD = sorted(FOLDER.glob("*.fxp"))


def message(path: Path) -> str:
    with pytest.raises(PatternError) as caught:
        parse_bytes(path.read_bytes(), path.name)
    return f"{caught.value}\n"


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_message(path: Path) -> None:
    assert message(path) == path.with_suffix(".txt").read_text(encoding="utf-8")


def test_every_message_has_its_file() -> None:
    assert {path.stem for path in FOLDER.glob("*.txt")} == {path.stem for path in BAD}


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_messages_are_fit_to_print(path: Path) -> None:
    shown = message(path)
    assert all(char.isprintable() or char == "\n" for char in shown)
    assert max(map(len, shown.splitlines())) <= 160


if __name__ == "__main__":
    for bad in BAD:
        bad.with_suffix(".txt").write_text(message(bad), encoding="utf-8")
