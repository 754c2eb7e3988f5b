"""`fxrewrite patterns`: what can be applied, how it is written, and whether its own tests pass.

Invariant: listing and showing load neither onnx nor numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from rewriter.commandline import console, options
from rewriter.errors import PatternError

if TYPE_CHECKING:
    from rewriter.language.selftest import TestResult

FAILED = PatternError.exit_code


EPILOG = """\b
Examples:
  fxrewrite patterns list
  fxrewrite patterns show repconv
  fxrewrite patterns test ./my.fxp"""
LIST_EPILOG = """\b
Example:
  fxrewrite patterns list"""
SHOW_EPILOG = """\b
Examples:
  fxrewrite patterns show repconv
  fxrewrite patterns show repconv > my.fxp      a start for one of your own"""
TEST_EPILOG = """\b
Examples:
  fxrewrite patterns test                       every shipped pattern
  fxrewrite patterns test repconv ./my.fxp"""


@click.group(epilog=EPILOG, no_args_is_help=True)
def patterns() -> None:
    """List, show and test patterns."""


@patterns.command("list", epilog=LIST_EPILOG)
@options.debug
def list_patterns() -> int:
    """List the patterns that can be applied by name, and the presets."""
    from rich.console import Group
    from rich.text import Text

    from rewriter.language.library import PRESETS, installed, shipped
    from rewriter.reporting.text import add, table

    rows = table("pattern", "what it does", "source")
    for loaded in {**installed(), **shipped()}.values():
        add(rows, Text(loaded.name, style="bold"), loaded.pattern.doc, ", ".join(loaded.pattern.papers))
    presets = table("preset", "stands for")
    for name, meaning in PRESETS.items():
        add(presets, Text(name, style="bold"), meaning)
    console.table(Group(rows, Text(""), presets))
    return 0


@patterns.command("show", epilog=SHOW_EPILOG)
@click.argument("name", shell_complete=options.complete_patterns)
@options.debug
def show(name: str) -> int:
    """Print the file in which the pattern NAME (or a preset, or a file) is written."""
    from rewriter.language.library import resolve

    for file in dict.fromkeys(loaded.file for loaded in resolve([name])):
        console.note(str(file))
        console.text(file.read_text(encoding="utf-8").rstrip("\n") + "\n")
    return 0


@patterns.command("test", epilog=TEST_EPILOG)
@click.argument("names", nargs=-1, shell_complete=options.complete_patterns)
@options.debug
def test(names: tuple[str, ...]) -> int:
    """Run the tests written in pattern files: NAMES, or every shipped pattern. Exit 2 if one fails."""
    from rich.text import Text

    from rewriter import api
    from rewriter.reporting import escape
    from rewriter.reporting.text import add, table

    with console.Progress() as progress:
        results: list[TestResult] = api.test_patterns(options.names(names) or ("deploy",), progress=progress)
    rows = table("pattern", "test", "")
    for result in results:
        verdict = Text("pass", style="green") if result.passed else Text(escape.lines(result.why), style="red")
        add(rows, escape.name(result.pattern), escape.name(result.test), verdict)
    console.table(rows)
    failed = sum(not result.passed for result in results)
    console.note(f"{len(results) - failed} passed, {failed} failed" if results else "no tests in these patterns")
    return FAILED if failed else 0
