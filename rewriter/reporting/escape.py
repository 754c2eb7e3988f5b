"""Names are data: how text that comes from a model is made safe for a terminal and for Markdown.

Invariant: what these functions return holds no control, format or surrogate character and no line break, so that a name
can neither move the cursor, reverse the reading direction, nor begin a new line, table cell, link or tag.
"""

from __future__ import annotations

import re
import unicodedata

# Cc and Cf hold terminal control and the bidirectional overrides, Zl and Zp break lines, Cs cannot be encoded.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# Everything CommonMark and GFM give a meaning to inside a line, and what starts a list or a quotation.
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|~>$-])")
NAME_LIMIT = 200


def plain(text: str) -> str:
    r"""`text` with unsafe characters written out as `\x1b` or `\u202e`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible(char) if unicodedata.category(char) in _UNSAFE else char for char in text)


def lines(text: str) -> str:
    """A message of ours that may hold names: line breaks stay, all else as `plain`."""
    return "\n".join(plain(line) for line in text.split("\n"))


def name(text: str, limit: int = NAME_LIMIT) -> str:
    """A name for people: safe, never empty, and cut in the middle where it is longer than `limit`."""
    if not text:
        return '""'
    cut = text
    if len(text) > limit:
        head = (limit - 1) * 2 // 3
        cut = f"{text[:head]}…{text[head + 1 - limit :]}"
    return plain(cut)


def markdown(text: str) -> str:
    """Prose for a Markdown line or table cell; nothing in `text` is markup, and nothing is HTML."""
    safe = plain(text).replace("&", "&amp;").replace("<", "&lt;")
    return _MARKDOWN.sub(r"\\\1", safe)


def code(text: str) -> str:
    """A name as a Markdown code span, with a fence longer than any run of backticks inside it; fit for table cells."""
    safe = name(text).replace("|", "\\|")
    fence = "`" * (max((len(run) for run in re.findall("`+", safe)), default=0) + 1)
    padded = f" {safe} " if safe.startswith("`") or safe.endswith("`") else safe
    return f"{fence}{padded}{fence}"


def _visible(char: str) -> str:
    point = ord(char)
    return f"\\x{point:02x}" if point < 0x100 else f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"
