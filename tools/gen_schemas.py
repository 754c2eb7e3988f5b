"""Write the JSON Schemas under docs/schema/; `--check` only says whether they are up to date."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rewriter.language import jsonform

FOLDER = Path(__file__).parent.parent / "docs" / "schema"
SCHEMAS = {"pattern.schema.json": jsonform.schema}


def main(arguments: list[str]) -> int:
    stale = 0
    for name, make in SCHEMAS.items():
        text = json.dumps(make(), indent=2, ensure_ascii=False) + "\n"
        path = FOLDER / name
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        if "--check" in arguments:
            print(f"{path.name} is not up to date; run: python tools/gen_schemas.py", file=sys.stderr)
        else:
            path.write_text(text, encoding="utf-8")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
