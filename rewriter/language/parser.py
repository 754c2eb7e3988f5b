"""Text of a pattern file to its syntax tree: the entry of this room.

Invariant: whatever the input, the answer is a tree in which every name is resolved, or a `PatternError` that shows
the place; nothing else is raised.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType

from rewriter.language.grammar import VERSION, parse_source
from rewriter.language.source import Source, decode
from rewriter.language.syntax import Chain, PatternFile

__all__ = ["VERSION", "parse", "parse_bytes", "prelude"]


def parse(text: str, path: str) -> PatternFile:
    """The tree of a pattern file; `path` is what messages call it."""
    return parse_bytes(text.encode("utf-8", errors="replace"), path)


def parse_bytes(data: bytes, path: str) -> PatternFile:
    """The tree of a pattern file as it lies on disk."""
    return parse_source(decode(data, path), prelude())


@cache
def prelude() -> Mapping[str, Chain]:
    """The chains that every pattern file may use."""
    path = files("rewriter.language") / "prelude.fxp"
    source = Source(path.read_text(encoding="utf-8"), "prelude.fxp")
    return MappingProxyType({chain.name: chain for chain in parse_source(source, {}).chains})
