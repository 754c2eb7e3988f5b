"""Writes docs/schema/*.schema.json from the records; `--check` says whether the files there are up to date."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rewriter.reporting.json import SCHEMAS, schema

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "schema"


def main() -> int:
    stale = 0
    for name, record in SCHEMAS.items():
        text = json.dumps(schema(record), indent=2) + "\n"
        path = FOLDER / f"{name}.schema.json"
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        if "--check" in sys.argv[1:]:
            print(f"{path} is not what the records say: run `make schema`", file=sys.stderr)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(path)
    return 1 if stale and "--check" in sys.argv[1:] else 0


if __name__ == "__main__":
    sys.exit(main())
