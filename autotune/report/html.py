"""A Report as one HTML page that needs nothing else."""

from __future__ import annotations

from pathlib import Path

import jinja2

from autotune.analysis.limits import ARC
from autotune.report.report import Report, near_capacity
from autotune.report.text import buffers_text, mfu_text, roomier_text, too_large
from autotune.units import bytes_text, percent, seconds_text


def render_html(report: Report) -> str:
    """The whole page; numbers as in the terminal, with every row."""
    source = (Path(__file__).parent / "report.html").read_text()
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        "seconds": seconds_text, "bytes": bytes_text, "percent": percent, "buffers": buffers_text, "mfu": mfu_text,
    }  # fmt: skip
    return environment.from_string(source).render(
        report=report,
        arc=ARC,
        capacity=report.target.hardware.capacity_bytes,
        too_large=too_large(report),
        near_capacity=near_capacity,
        roomier=roomier_text(report),
    )
