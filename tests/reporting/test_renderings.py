"""What the renderings of a report say, to the character: report.txt, report.md and inspection.txt hold the words.

After a wanted change: `python -m tests.reporting.test_renderings` writes the files anew, for a person to read the diff.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from rewriter.checking.record import OutputCheck, Verdict, Verification
from rewriter.reporting.inspection_text import InspectionText, VerificationText
from rewriter.reporting.markdown import to_markdown
from rewriter.reporting.record import SizeRecord
from rewriter.reporting.text import ReportText
from tests.reporting.sample import AFTER, INSPECTION, OK, REPORT

HERE = Path(__file__).parent


def page(content: RenderableType, width: int = 100) -> str:
    made = io.StringIO()
    Console(file=made, width=width, markup=False, highlight=False, emoji=False).print(content)
    return "\n".join(line.rstrip() for line in made.getvalue().split("\n"))


EXPECTED: Mapping[str, Callable[[], str]] = {
    "report.txt": lambda: page(ReportText(REPORT)),
    "report.md": lambda: to_markdown(REPORT),
    "inspection.txt": lambda: page(InspectionText(INSPECTION)),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_every_character(name: str) -> None:
    assert EXPECTED[name]() == (HERE / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("render", [lambda r: page(ReportText(r)), to_markdown], ids=["text", "markdown"])
def test_a_report_stays_short_however_much_was_left(render: Callable[..., str]) -> None:
    fewer = replace(REPORT, refusals=REPORT.refusals[-3:])
    assert len(render(REPORT).splitlines()) == len(render(fewer).splitlines())


@pytest.mark.parametrize("render", [lambda r: page(ReportText(r)), to_markdown], ids=["text", "markdown"])
def test_nothing_changed(render: Callable[..., str]) -> None:
    unchanged = Verification(Verdict.OK, "nothing was changed")
    text = render(replace(REPORT, before=AFTER, matches=(), renamed=(), decisions=(), verification=unchanged))
    assert "nothing to rewrite: 25.3M parameters, 701 nodes, 51.0G multiply-adds" in text
    assert "verified: nothing was changed" in text and "0 outputs" not in text and "→ 25.3M" not in text


@pytest.mark.parametrize("render", [lambda r: page(ReportText(r)), to_markdown], ids=["text", "markdown"])
@pytest.mark.parametrize(
    ("verification", "words"),
    [
        (Verification(Verdict.NOT_VERIFIED, "a custom op"), "NOT VERIFIED: a custom op"),
        (Verification(Verdict.INCONCLUSIVE, "noise"), "INCONCLUSIVE: noise"),
        (Verification(Verdict.FAILED, "boxes differ"), "VERIFICATION FAILED: boxes differ"),
        (Verification(Verdict.INCONCLUSIVE), "INCONCLUSIVE: the original is too inexact in itself to compare with"),
    ],
)
def test_what_is_not_verified_says_so_at_the_top(
    render: Callable[..., str], verification: Verification, words: str
) -> None:
    text = render(replace(REPORT, verification=verification))
    assert any(words in line for line in text.splitlines()[:9])
    assert "verified: 1" not in text


@pytest.mark.parametrize("render", [lambda r: page(ReportText(r)), to_markdown], ids=["text", "markdown"])
def test_a_limit_is_loud(render: Callable[..., str]) -> None:
    assert "LIMIT reached" in render(replace(REPORT, end="limit"))


def test_unknown_sizes_are_not_invented() -> None:
    text = page(ReportText(replace(REPORT, before=replace(REPORT.before, multiply_adds=None))))
    assert "multiply-adds" not in text.splitlines()[1]
    assert [line.split() for line in text.splitlines() if line.split()[:1] == ["multiply-adds"]] == [
        ["multiply-adds", "unknown", "51.0G"]
    ]


def test_of_many_outputs_the_failed_ones_are_shown() -> None:
    many = [OutputCheck(f"o{i}", f"o{i}", 0.0, 0.0, 1.0, 1e-6, Verdict.OK, "ones") for i in range(40)]
    many[33] = replace(many[33], verdict=Verdict.FAILED, error=float("nan"))
    text = page(VerificationText(replace(OK, verdict=Verdict.FAILED, reason="o33 differs", outputs=tuple(many))))
    rows = [line for line in text.splitlines() if line.startswith("  o")]
    assert rows[1].split() == ["o33", "nan", "0", "1.0e-06", "1.0e+00", "failed"]
    assert "… and 28 more outputs, which --json lists" in text


def test_short_figures_that_look_alike_are_shown_whole() -> None:
    after = replace(REPORT.before, parameters=REPORT.before.parameters - 856)
    text = page(ReportText(replace(REPORT, after=after)))
    assert "51,182,080 → 51,181,224 parameters, 1,274 nodes as before" in text.splitlines()[1]


NASTY = "x\x1b[2J[red]|`a``b`\r\n\u202e<b>*[l](u)\u2028"


SIZES = (SizeRecord(NASTY, NASTY, NASTY, NASTY, (NASTY,)), SizeRecord(NASTY, NASTY, None, NASTY))


def _hostile() -> str:
    """The sample with every name hostile."""
    checks = tuple(replace(check, name=NASTY, renamed=NASTY + "2", note=NASTY) for check in OK.outputs)
    return to_markdown(
        replace(
            REPORT,
            model=NASTY,
            output=NASTY,
            matches=tuple(replace(m, exit=NASTY, summary=NASTY, leftovers=(NASTY,)) for m in REPORT.matches),
            refusals=tuple(replace(r, node=NASTY, detail=NASTY) for r in REPORT.refusals[:3]),
            decisions=tuple(replace(d, removed=(NASTY,), kept=(NASTY,), sizes=SIZES) for d in REPORT.decisions),
            renamed=((NASTY, NASTY),),
            dead_before=(NASTY,),
            parameters=((NASTY, NASTY),),
            verification=replace(OK, outputs=checks, engine=NASTY, notes=(NASTY,), reason=NASTY),
        )
    )


def test_hostile_names_leave_the_structure_of_markdown_alone() -> None:
    text = _hostile()
    assert not set(text) & set("\x1b\r\u202e\u2028")
    starts = ("# ", "**", "Written ", "verified", "## ", "- ", "  - ", "| ", "1 other", "")
    assert all(line == "" or line.startswith(starts[:-1]) for line in text.split("\n"))
    assert len([line for line in text.split("\n") if line.startswith("#")]) == 8
    assert {_cells(line) for line in text.split("\n") if line.startswith("|")} == {4, 7}
    prose = CODE_SPAN.sub("", text)
    assert "<b>" not in prose and not re.search(r"(?<!\\)[\[`]", prose)


CODE_SPAN = re.compile(r"(?<![\\`])(`+)(?!`)[^\n]*?(?<!`)\1(?!`)")


def _cells(row: str) -> int:
    return sum(char == "|" and row[place - 1] != "\\" for place, char in enumerate(row)) - 1


if __name__ == "__main__":
    for name, make in EXPECTED.items():
        (HERE / name).write_text(make(), encoding="utf-8")
