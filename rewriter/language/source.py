"""The text of a pattern file and the messages about it: place, line, caret, hint.

Invariant: whatever the text holds, a message is short, one screen wide and free of control characters, and its caret
stands under the place it speaks of.
"""

from __future__ import annotations

import difflib
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable
from functools import cached_property

from rewriter.errors import PatternError
from rewriter.language.syntax import Pos

MAX_BYTES = 1 << 20
"""A pattern file is at most this long."""

_WINDOW = 100  # columns of a long line that a message shows


class Source:
    """A pattern file as text, with the path that messages show."""

    def __init__(self, text: str, path: str) -> None:
        self.text = text
        self.path = path

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *(i + 1 for i, char in enumerate(self.text) if char == "\n")]

    def place(self, start: int, end: int) -> Pos:
        """The position of text[start:end]."""
        line = bisect_right(self._starts, start)
        return Pos(line, start - self._starts[line - 1] + 1, max(1, end - start))

    def line(self, number: int) -> str:
        start = self._starts[number - 1]
        end = self.text.find("\n", start)
        return self.text[start : len(self.text) if end < 0 else end].rstrip("\r")

    def error(self, pos: Pos, message: str, hint: str = "", *, first: Pos | None = None) -> PatternError:
        """An error at `pos`; `first` is the other place that takes part, such as an earlier definition."""
        text = f"{self._at(pos)}: {message}\n{self._picture(pos)}"
        if first is not None:
            text += f"\n{self._at(first)}: the first one is here\n{self._picture(first)}"
        return PatternError(text + (f"\n  hint: {hint}" if hint else ""))

    def _at(self, pos: Pos) -> str:
        return f"{clean(self.path)}:{pos.line}:{pos.column}"

    def _picture(self, pos: Pos) -> str:
        line = self.line(pos.line)
        begin = max(0, pos.column - 1 - _WINDOW // 2) if len(line) > _WINDOW else 0
        shown = clean(line[begin : begin + _WINDOW])
        head, tail = ("…" if begin else ""), ("…" if begin + _WINDOW < len(line) else "")
        before = shown[: pos.column - 1 - begin]
        marked = shown[pos.column - 1 - begin :][: pos.length]
        space = " " * (len(head) + _width(before))
        caret = "^" * max(1, _width(marked))
        return f"{pos.line:>4} | {(head + shown + tail).rstrip()}\n     | {space}{caret}"


def clean(text: str) -> str:
    """`text` with tabs as one space and everything that does not print as a replacement character, same length."""
    return "".join(" " if char == "\t" else char if char.isprintable() else "\ufffd" for char in text)


def quote(text: str) -> str:
    """A name from the file, fit to stand in a message."""
    return f"'{clean(text if len(text) <= 60 else text[:57] + '...')}'"


def an(noun: str) -> str:
    """A noun with its article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _width(text: str) -> int:
    """Columns that `text` takes in a terminal."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def nearest(name: str, known: Iterable[str]) -> str:
    """ "did you mean …?" for a name that is not among `known`; empty where none is near."""
    near = difflib.get_close_matches(name[:60].lower(), sorted(known), n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else ""


def decode(data: bytes, path: str) -> Source:
    """The text of a pattern file from its bytes: UTF-8, at most `MAX_BYTES`."""
    if len(data) > MAX_BYTES:
        raise PatternError(f"{clean(path)}: the file is larger than 1 MiB, which no pattern file is")
    try:
        return Source(data.decode("utf-8-sig"), path)
    except UnicodeDecodeError as problem:
        good = data[: problem.start].decode("utf-8-sig", errors="replace")
        source = Source(good + "\ufffd", path)
        raise source.error(source.place(len(good), len(good) + 1), "the file is not UTF-8 from here on") from None
