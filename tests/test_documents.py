"""The examples of the README and the guide are run, not believed."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from rewriter import api

ROOT = Path(__file__).resolve().parent.parent


def test_the_pattern_in_the_readme_passes_its_own_tests(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^    fxrewrite 1\n.*?^    }\n", readme, re.MULTILINE | re.DOTALL)
    assert block is not None
    (tmp_path / "my-block.fxp").write_text(textwrap.dedent(block.group()), encoding="utf-8")
    results = api.test_patterns([str(tmp_path / "my-block.fxp")])
    assert [result.test for result in results] == ["three branches", "an activation in between"]
    assert all(result.passed for result in results), results


def test_every_file_that_the_documents_name_exists() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} names {target}"
    guide = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    for module in re.findall(r"`([a-z_]+/[a-z_]+\.py)`", guide):
        assert (ROOT / "rewriter" / module).exists(), f"the guide names {module}"
