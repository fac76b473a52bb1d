"""Keys that a YAML text gives twice: PyYAML takes the last one in silence, MaxText's own reader refuses them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autotune.meshes.fields import short

if TYPE_CHECKING:
    import yaml

MERGE = "tag:yaml.org,2002:merge"
"""The tag of `<<`. A mapping may take the keys of several others."""


def doubled_key(root: yaml.Node | None) -> str | None:
    """What to say of a key that a mapping of the composed text holds twice; None where no mapping does.

    >>> import yaml
    >>> doubled_key(yaml.compose("{a: 1, b: {c: 2, c: 3}}"))
    "'c' is given twice, in lines 1 and 1"
    """
    waiting, seen = [root] if root is not None else [], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:  # an alias; it may stand inside its own anchor
            continue
        seen.add(id(node))
        if node.id == "sequence":
            waiting += node.value
        if node.id != "mapping":
            continue
        lines: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            waiting.append(value)
            if key.id != "scalar" or key.tag == MERGE:
                continue
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in lines:
                return f"{short(key.value)} is given twice, in lines {lines[name]} and {line}"
            lines[name] = line
    return None
