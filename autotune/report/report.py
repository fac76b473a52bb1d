"""The outcome of a search: what was found, the plan that is made of it, and the ways to look at it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autotune.plan.plan import Plan
from autotune.report.document import report_to_json
from autotune.report.findings import Findings, Row
from autotune.shown import Shown

if TYPE_CHECKING:
    from rich.console import RenderableType


class NoPlanFits(Exception):
    """Nothing in the space can run, or no compile ended; carries the Report that says why."""

    def __init__(self, report: Report) -> None:
        super().__init__(report.compilers_word or f"no layout of {report.workload} fits {report.target.name}")
        self.report = report


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Report(Findings, Shown):
    """What a search found, with the ways to look at it and to use it."""

    def best(self) -> Row:
        """The chosen row. Raises NoPlanFits carrying this report when nothing can run."""
        if not self.ranked or self.compilers_word:
            raise NoPlanFits(self)
        return self.ranked[0]

    @property
    def plan(self) -> Plan:
        """What a codebase applies. Raises NoPlanFits when nothing can run, or no compile ended."""
        if self.plan_or_none is None:
            raise NoPlanFits(self)
        return self.plan_or_none

    def headline(self) -> str:
        """The answer in one line: what was asked, the chosen layout, its time with the source, and what binds."""
        asked = f"{self.workload} on {self.target.name}"
        if self.compilers_word:
            answer = "no plan: every compile failed"
        elif not self.ranked:
            answer = "nothing fits"
        else:
            answer = self.ranked[0].headline()
        return f"{asked}: {answer}; {sum(self.counts.values()):,} layouts"

    def screen(self) -> RenderableType:
        """The whole screen of `autotune tune`."""
        from autotune.report.text import render

        return render(self)

    def to_html(self) -> str:
        """The page of `autotune tune --html`."""
        from autotune.report.html import render_html

        return render_html(self)

    def to_json(self) -> str:
        """The document of `autotune tune --json`, as text."""
        return json.dumps(report_to_json(self), indent=1)
