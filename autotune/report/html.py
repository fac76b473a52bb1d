"""What a search found as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jinja2
import markupsafe

from autotune.analysis.limits import ARC
from autotune.plan.fields import PACKAGES
from autotune.report import charts
from autotune.report.findings import Findings, near_capacity
from autotune.report.text import (
    answer_lines,
    buffers_text,
    counts_text,
    heading_text,
    mfu_text,
    option_set_cells,
    option_sets_title,
    render,
    roomier_text,
    too_large,
)
from autotune.system.versions import installed_versions
from autotune.tables import lines
from autotune.units import bytes_text, percent, seconds_text

OF = {"compiled": "analysis", "measured": "measurement"}
"""Columns of the table that are left out where no row has them -> the field of a row that they show."""

_UNIT = re.compile(r"(?<=\d) (?=(?:%|s|ms|us|B|KiB|MiB|GiB|TiB|turns?|points?)(?![\w/]))")


def _together(text: str) -> str:
    """A text whose numbers are not parted from their units by a line break."""
    return _UNIT.sub("\N{NO-BREAK SPACE}", text)


def _breakable(text: object) -> markupsafe.Markup:
    """A layout, or prose that names one, with the places where a browser may break it: after commas, and inside a long
    word after +, / and >."""
    return markupsafe.Markup("<wbr>").join(re.split(r"(?<=[,+/>])", str(text)))


def render_html(report: Findings, *, command: str | None = None, plan_path: Path | None = None) -> str:
    """The whole page; numbers as in the terminal, with every row.

    `command`: the command line that made the report; None when it was made from Python. `plan_path`: where the plan is
    saved. Every name that comes from outside is escaped. The page forbids itself every request (its
    Content-Security-Policy).
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "seconds": seconds_text, "bytes": bytes_text, "percent": percent, "buffers": buffers_text, "mfu": mfu_text,
        "together": _together, "breakable": _breakable,
    }  # fmt: skip
    known = dict(report.compiled.versions) if report.compiled is not None else installed_versions(PACKAGES)
    versions = {**installed_versions(("autotune-jax",)), **known}
    runs = bool(report.ranked) and not report.compilers_word
    return environment.get_template("report.html").render(
        report=report,
        arc=ARC,
        capacity=report.target.hardware.capacity_bytes,
        too_large=too_large(report),
        near_capacity=near_capacity,
        roomier=roomier_text(report),
        heading=heading_text(report).splitlines(),
        counts=counts_text(report),
        answer=[(name, words.removeprefix(": ").strip()) for name, words in answer_lines(report)] if runs else [],
        timeline=charts.timeline(report) if runs else None,
        limits=charts.limits(report) if runs else None,
        helps=charts.helps(report) if runs else None,
        collectives=charts.collectives(report) if runs else None,
        memories=charts.memories(report) if runs else None,
        plane=charts.plane(report),
        option_sets=option_set_cells(report) if report.option_sets else [],
        option_sets_title=option_sets_title(report) if report.option_sets else "",
        statuses=sorted({str(row.status) for row in report.rows}),
        empty=[name for name, field in OF.items() if not any(getattr(row, field) for row in report.rows)],
        command=command,
        plan_path=plan_path,
        plan_path_text=json.dumps(str(plan_path or "plan.json")),
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
        text="\n".join(lines(render(report), 120)),
    )
