"""Write the JSON Schemas under docs/schema/; `--check` only says whether they are up to date."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from rewriter.language import jsonform
from rewriter.reporting.json import SCHEMAS, schema

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "schema"


def texts() -> Mapping[str, str]:
    """File name -> what it has to hold."""
    made: dict[str, object] = {"pattern": jsonform.schema()}
    made |= {name: schema(record) for name, record in SCHEMAS.items()}
    return {
        f"{name}.schema.json": json.dumps(value, indent=2, ensure_ascii=False) + "\n" for name, value in made.items()
    }


def main(arguments: list[str]) -> int:
    check = "--check" in arguments
    stale = 0
    for name, text in texts().items():
        path = FOLDER / name
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        if check:
            print(f"{path.name} is not up to date; run: python tools/gen_schemas.py", file=sys.stderr)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(path)
    return 1 if stale and check else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
