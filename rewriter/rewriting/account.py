"""The report on a run of the engine, put together from what it decided and what the model was and is.

Invariant: everything in it is plain data, found without loading any engine.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from rewriter.checking.record import Verification
from rewriter.language.library import LoadedPattern
from rewriter.reporting.record import PatternSource, Report, Totals
from rewriter.rewriting.engine import Outcome
from rewriter.version import __version__


def report(
    label: str,
    patterns: Sequence[LoadedPattern],
    totals: tuple[Totals, Totals],
    outcome: Outcome,
    verification: Verification,
) -> Report:
    return Report(
        model=label,
        output=None,
        before=totals[0],
        after=totals[1],
        patterns=tuple(PatternSource(p.name, p.source_path, p.sha256) for p in patterns),
        parameters=tuple(_settings(patterns)),
        decisions=outcome.decisions,
        matches=outcome.matches,
        refusals=outcome.refusals,
        shadowed=outcome.shadowed,
        covered=outcome.covered,
        renamed=(),
        dead_before=(),
        rounds=outcome.rounds,
        end=outcome.end,
        verification=verification,
        versions=versions(),
        seconds=0.0,
        sizes=outcome.sizes,
    )


def _settings(patterns: Sequence[LoadedPattern]) -> list[tuple[str, str]]:
    """Every parameter that was set, as `pattern.param` and its value."""
    found: list[tuple[str, str]] = []
    for loaded in patterns:
        for name, value in loaded.settings.items():
            shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            found.append((f"{loaded.name}.{name}", shown))
        if not loaded.gated:
            found.append((f"{loaded.name}.cost", "off"))
    return found


def versions(*engines: str) -> tuple[tuple[str, str], ...]:
    """Of fxrewrite, Python and the libraries that made or checked the result, found without loading any."""
    found = [("fxrewrite", __version__), ("python", platform.python_version())]
    for package in ("onnx", "numpy", *(engines or ("onnxruntime",))):
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            continue
    return tuple(found)
