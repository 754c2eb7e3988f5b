"""Where patterns come from: names, presets and paths to patterns that can be applied.

Invariant: what was resolved carries everything that is needed to apply it (chains, parameters, a checksum of its file);
nothing is read again. Reading patterns imports neither numpy nor onnx, so listing them is quick.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import cast

from rewriter.errors import PatternError, UsageError
from rewriter.language.parser import parse_bytes, prelude
from rewriter.language.source import MAX_BYTES, clean, nearest, quote
from rewriter.language.syntax import BodyMatch, Chain, Literal, Pattern

SUFFIX = ".fxp"
ENTRY_POINTS = "fxrewrite.patterns"
PRESETS = MappingProxyType(
    {
        "all": "every shipped exact pattern that leaves the interface alone",
        "deploy": "all, and aux-prune",
    }
)


@dataclass(frozen=True, slots=True)
class LoadedPattern:
    """A pattern ready to be applied: `chains` are those it can name, `settings` the values that replace defaults.

    `source_path` is what messages and reports call its file, `file` is where that lies. `gated` says whether the cost
    gate is on; `--set cost=off` turns it off.
    """

    pattern: Pattern
    chains: Mapping[str, Chain]
    source_path: str
    file: Path
    sha256: str
    settings: Mapping[str, Literal | tuple[Literal, ...]] = field(
        default_factory=dict[str, "Literal | tuple[Literal, ...]"]
    )
    gated: bool = True

    @property
    def name(self) -> str:
        return self.pattern.name

    def value(self, param: str) -> Literal | tuple[Literal, ...]:
        """The value of a parameter: as set, else as declared."""
        if param in self.settings:
            return self.settings[param]
        return next(p.value for p in self.pattern.params if p.name == param)


def find_pattern_files() -> list[Path]:
    """The pattern files that the package ships, by name."""
    return sorted(Path(str(files("rewriter") / "patterns")).glob(f"*{SUFFIX}"))


def resolve(names: Sequence[str], cwd: Path | str = ".") -> list[LoadedPattern]:
    """The patterns behind `names` (of patterns, presets or files), each once, in the order they were first named."""
    found: dict[str, LoadedPattern] = {}
    for name in names:
        for loaded in _resolve_one(name, Path(cwd)):
            other = found.setdefault(loaded.name, loaded)
            if other.file != loaded.file:
                places = f"{clean(str(other.file))} and {clean(str(loaded.file))}"
                raise UsageError(f"pattern {quote(loaded.name)} is in two files: {places}; rename one of them")
    return list(found.values())


def load_file(path: Path, shown: str) -> list[LoadedPattern]:
    """Every pattern of a file; `shown` is the path that messages and reports use."""
    try:
        if not path.is_file():
            what = "it is not a file" if path.exists() else "there is no such file"
            raise UsageError(f"cannot read the pattern file {clean(shown)}: {what}")
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        file = path.resolve()
    except (OSError, ValueError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) and problem.strerror else "the path is not valid"
        raise UsageError(f"cannot read the pattern file {clean(shown)}: {reason.lower()}") from None
    return _load(data, shown, file)


def shipped() -> dict[str, LoadedPattern]:
    """The patterns of the package, by name."""
    return dict(_shipped())


def installed() -> dict[str, LoadedPattern]:
    """Patterns of other packages, by name: each entry point is a function that gives paths of pattern files."""
    found: dict[str, LoadedPattern] = {}
    for point in entry_points(group=ENTRY_POINTS):
        try:
            paths = list(cast(Callable[[], Iterable[Path]], point.load())())
        except Exception as problem:
            shown = f"{type(problem).__name__}: {clean(str(problem))}"
            raise UsageError(f"the entry point {quote(point.name)} of {ENTRY_POINTS} failed: {shown}") from problem
        for path in paths:
            found.update((loaded.name, loaded) for loaded in load_file(Path(path), str(path)))
    return found


def _resolve_one(name: str, cwd: Path) -> list[LoadedPattern]:
    if name.endswith(SUFFIX) or "/" in name or "\\" in name:
        loaded = load_file(cwd / name, name)
        if not loaded:
            raise PatternError(f"{clean(name)}: the file holds no pattern")
        return loaded
    known = _shipped()
    if name in PRESETS:
        return [p for p in known.values() if isinstance(p.pattern.match, BodyMatch) or name == "deploy"]
    if name in known:
        return [known[name]]
    extra = installed()
    if name in extra:
        return [extra[name]]
    hint = nearest(name, [*PRESETS, *known, *extra])
    raise UsageError(f"unknown pattern {quote(name)}{f'; {hint}' if hint else ''} (fxrewrite patterns list shows them)")


@cache
def _shipped() -> Mapping[str, LoadedPattern]:
    loaded = [item for path in find_pattern_files() for item in load_file(path, path.name)]
    return MappingProxyType({item.name: item for item in loaded})


def _load(data: bytes, shown: str, file: Path) -> list[LoadedPattern]:
    tree = parse_bytes(data, shown)
    chains = MappingProxyType({**prelude(), **{chain.name: chain for chain in tree.chains}})
    checksum = hashlib.sha256(data).hexdigest()
    return [LoadedPattern(pattern, chains, shown, file, checksum) for pattern in tree.patterns]
