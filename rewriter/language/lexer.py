"""Words of a pattern file, one at a time, and the cursor that the parsers read them with.

Invariant: text is read lazily and never backwards, so a file of a newer version is recognised before anything in it
could be misread; nesting is counted before it is entered, so no file can exhaust the stack.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rewriter.errors import PatternError
from rewriter.language.source import Source, clean, quote
from rewriter.language.syntax import Pos

MAX_DEPTH = 64
"""Brackets and braces may be nested this deep."""

MAX_INTEGER = 2**53 - 1
"""Numbers stay within what a JSON reader keeps exactly."""

RESERVED = frozenset({"and", "or", "not", "as", "pass", "linear-region", "sum", "concat", "after", "before"})
"""Words that nothing may be named."""

_TOKEN = re.compile(
    r"""(?P<space>(?:[ \t\r\n]+|\#[^\n]*)+)
      | (?P<number>[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*(?:-[A-Za-z0-9_]+)*)
      | (?P<string>"(?:[^"\\\n]|\\[^\n])*")
      | (?P<punct>->|\.\.|!=|<=|>=|[{}()\[\],;:=<>|?*+/.~±-])""",
    re.VERBOSE,
)
_ESCAPES = {'"': '"', "\\": "\\", "n": "\n", "t": "\t"}


@dataclass(frozen=True, slots=True)
class Token:
    kind: str  # name | number | string | punct | end
    text: str
    pos: Pos

    def __str__(self) -> str:
        if self.kind == "end":
            return "the end of the file"
        return "a string" if self.kind == "string" else quote(self.text)


def tokens(source: Source) -> Iterator[Token]:
    """The words of a file; the last one is of kind "end" and stands after the last character."""
    text, at = source.text, 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise _unreadable(source, at)
        kind, word = found.lastgroup or "", found.group()
        if kind == "number" and re.match("[A-Za-z0-9_]", text[found.end() : found.end() + 1]):
            raise source.error(source.place(found.end(), found.end() + 1), "a number runs into letters")
        if kind != "space":
            yield Token(kind, word, source.place(at, found.end()))
        at = found.end()
    yield Token("end", "", source.place(at, at))


def _unreadable(source: Source, at: int) -> PatternError:
    char, pos = source.text[at], source.place(at, at + 1)
    if char == '"':
        return source.error(pos, "this string does not end on its line", 'close it with "')
    if char == "!":
        return source.error(pos, "unexpected '!'", "write 'not', or '!=' without a space")
    shown = quote(char) if char.isprintable() else f"character U+{ord(char):04X}"
    return source.error(pos, f"unexpected {shown}", "names are letters, digits, '_' and inner '-'")


class Cursor:
    """A place in a pattern file, moving forward."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._tokens = tokens(source)
        self._ahead: deque[Token] = deque()
        self._depth = 0

    def peek(self, ahead: int = 0) -> Token:
        while len(self._ahead) <= ahead:
            if self._ahead and self._ahead[-1].kind == "end":
                return self._ahead[-1]
            self._ahead.append(next(self._tokens))
        return self._ahead[ahead]

    def next(self) -> Token:
        token = self.peek()
        if token.kind != "end":
            self._ahead.popleft()
        return token

    def at(self, *texts: str) -> bool:
        return self.peek().text in texts

    def accept(self, *texts: str) -> Token | None:
        return self.next() if self.at(*texts) else None

    def expect(self, text: str, hint: str = "") -> Token:
        if not self.at(text):
            raise self.unexpected(f"'{text}'", hint)
        return self.next()

    def name(self, what: str, *, fresh: bool = False) -> Token:
        """The next word, which has to be a name; `fresh` where it introduces one."""
        token = self.peek()
        if token.kind != "name":
            raise self.unexpected(what)
        if fresh and token.text in RESERVED:
            raise self.error(token.pos, f"{token} is a word of the language and cannot be {what}")
        return self.next()

    def string(self, what: str) -> tuple[str, Pos]:
        token = self.peek()
        if token.kind != "string":
            raise self.unexpected(what)
        return self._unescape(self.next()), token.pos

    def _unescape(self, token: Token) -> str:
        parts: list[str] = []
        characters = iter(enumerate(token.text[1:-1], start=1))
        for offset, char in characters:
            here = Pos(token.pos.line, token.pos.column + offset, 1)
            if char == "\\":
                _, char = next(characters)
                if char not in _ESCAPES:
                    raise self.error(here, f"unknown escape '\\{clean(char)}'", 'there are \\" \\\\ \\n \\t')
                parts.append(_ESCAPES[char])
            elif char.isprintable():
                parts.append(char)
            else:
                raise self.error(here, f"character U+{ord(char):04X} may not stand in a string", "write \\t for a tab")
        return "".join(parts)

    def integer(self, what: str) -> int:
        pos = self.peek().pos
        value = self.number(what)
        if not isinstance(value, int):
            raise self.error(pos, f"expected {what}, found the fraction {value}")
        return value

    def number(self, what: str) -> int | float:
        """INT or NUMBER, perhaps with a sign."""
        minus = self.accept("-")
        token = self.peek()
        if token.kind != "number":
            raise self.unexpected(what)
        self.next()
        value = float(token.text)
        if abs(value) > MAX_INTEGER and (token.text.isdigit() or value == float("inf")):
            raise self.error(token.pos, "this number is too large")
        if token.text.isdigit():
            value = int(token.text)
        return -value if minus else value

    @contextmanager
    def nested(self) -> Generator[None]:
        """One level deeper; an error beyond `MAX_DEPTH`."""
        if self._depth >= MAX_DEPTH:
            raise self.error(self.peek().pos, f"nested more than {MAX_DEPTH} deep")
        self._depth += 1
        yield
        self._depth -= 1

    def error(self, pos: Pos, message: str, hint: str = "", *, first: Pos | None = None) -> PatternError:
        return self.source.error(pos, message, hint, first=first)

    def unexpected(self, wanted: str, hint: str = "") -> PatternError:
        return self.error(self.peek().pos, f"expected {wanted}, found {self.peek()}", hint)
