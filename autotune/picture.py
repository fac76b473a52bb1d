"""Write a picture and its numbers: what the `--plot` of several commands has in common. Needs no matplotlib itself."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autotune.system.whole_file import write_whole, writing_whole


def save_picture(figure: Any, rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A matplotlib figure as `path` (the format by its ending), and `rows` as a .csv beside it. OSError when it cannot
    be written."""
    with writing_whole(path) as file:
        figure.savefig(file, dpi=150, format=path.suffix.removeprefix("."))
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path.with_suffix(".csv"), text.getvalue())
