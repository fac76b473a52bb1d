"""Write docs/reference_json.md, the page of the JSON documents, from their schemas in docs/schemas.

python scripts/json_reference.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SCHEMAS = ROOT / "docs" / "schemas"
PAGE = ROOT / "docs" / "reference_json.md"

HEAD = """# JSON documents

Every document has a number `schema`. New keys may be added under the same number; a key that changes its meaning
or goes away raises the number. A value that is not known is null, never 0. The schemas are JSON Schema (draft 2020-12):
[report](schemas/report.schema.json), [plan](schemas/plan.schema.json). This page is made from them by
`python scripts/json_reference.py`.
"""


def kind(value: dict[str, Any]) -> str:
    """The type of a value in words."""
    if "$ref" in value:
        return value["$ref"].rsplit("/", 1)[1]
    if "const" in value:
        return f"always {json.dumps(value['const'])}"
    if "enum" in value:
        return ", ".join("null" if one is None else str(one) for one in value["enum"])
    if "anyOf" in value:
        return " or ".join(kind(one) for one in value["anyOf"])
    kinds = value["type"] if isinstance(value["type"], list) else [value["type"]]
    if "array" in kinds and "$ref" in value.get("items", {}):
        kinds = ["array of " + kind(value["items"]) if one == "array" else one for one in kinds]
    return " or ".join(kinds)


def rows(properties: dict[str, Any], before: str = "") -> Iterator[str]:
    """A table line for each key, those of inner objects behind their own."""
    for name, value in properties.items():
        yield f"| `{before}{name}` | {kind(value)} | {value.get('description', '')} |"
        inner = value.get("items", value)
        inner = inner if "properties" in inner else value.get("additionalProperties") or {}
        if isinstance(inner, dict) and "properties" in inner:
            mark = "[]." if "items" in value else "." if inner is value else ".*."
            yield from rows(inner["properties"], f"{before}{name}{mark}")


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    seen: set[str] = set()
    for path in sorted(SCHEMAS.glob("*.schema.json"), reverse=True):
        schema = json.loads(path.read_text(encoding="utf-8"))
        tables = [(schema["title"], schema)] + [(name.capitalize(), one) for name, one in schema["$defs"].items()]
        for title, one in tables:
            if title in seen:
                continue
            seen.add(title)
            table = "\n".join(["| key | type | meaning |", "|---|---|---|", *rows(one["properties"])])
            parts.append(f"## {title}\n\n{one['description']}\n\n{table}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
