"""What a search says while it runs: one event after another, each with its line of text.

`search` hands every event to the `on_event` callback and writes its text to the logger "autotune" at level INFO.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from autotune.compile.compile import CompileEvent
from autotune.units import bytes_text, duration_text, percent_change, seconds_text

LOGGER = logging.getLogger("autotune")


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyAnswer:
    """The best layout by its price, before anything is compiled. Seconds and bytes are per device and step."""

    kind: Literal["early answer"] = field(default="early answer", init=False)
    layout: str
    step_seconds: float
    peak_bytes: float
    capacity_bytes: float
    binds: str
    """The resource with the largest share of the step, with that share: "matmul 78 %"."""
    priced: int
    """Layouts priced."""
    to_compile: int
    """Layouts that the search compiles next; 0 when it compiles none."""
    left_seconds: float | None
    """Expected wall time of those compiles, from earlier compiles in the store; None without any."""

    def __str__(self) -> str:
        answer = (
            f"early answer, priced and not compiled yet: {self.layout}  {seconds_text(self.step_seconds)} a step, "
            f"{bytes_text(self.peak_bytes)} of {bytes_text(self.capacity_bytes)} a device, {self.binds}"
        )
        if not self.to_compile:
            return answer
        layouts = "1 layout" if self.to_compile == 1 else f"{self.to_compile} layouts"
        left = "" if self.left_seconds is None else f", about {duration_text(self.left_seconds)}"
        return f"{answer}\ncompiling {layouts} to confirm{left}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutCompiled:
    """One layout has its compiled figures, or the reason why it has none."""

    kind: Literal["layout compiled"] = field(default="layout compiled", init=False)
    layout: str
    step_seconds: float | None
    """Compiled and replayed; None where the compile failed or the program does not fit."""
    priced_seconds: float
    peak_bytes: float | None
    problem: str | None
    """Why the layout cannot run."""
    took_seconds: float | None
    """Of the compile; None where the store had the answer."""
    done: int
    """Layouts that compiled and fit."""
    wanted: int
    best: str | None
    """The fastest compiled layout that fits so far."""
    best_seconds: float | None
    left_seconds: float | None
    """Expected wall time of the compiles that are left; None where it is not known."""

    def __str__(self) -> str:
        took = "from the store" if self.took_seconds is None else f"took {duration_text(self.took_seconds)}"
        if self.step_seconds is None:
            found = f"{self.layout}  {self.problem} ({took})"
        else:
            change = percent_change(self.step_seconds, self.priced_seconds)
            found = (
                f"{self.layout}  {seconds_text(self.step_seconds)} a step (priced {seconds_text(self.priced_seconds)}, "
                f"{change}), {bytes_text(self.peak_bytes)} a device ({took})"
            )
        line = f"compiled {self.done} of {self.wanted}: {found}"
        if self.best is not None and self.best != self.layout:
            line += f"; best so far: {self.best}  {seconds_text(self.best_seconds)}"
        if self.left_seconds:
            line += f"; about {duration_text(self.left_seconds)} left"
        return line


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutMeasured:
    """One layout was run, or could not be."""

    kind: Literal["layout measured"] = field(default="layout measured", init=False)
    layout: str
    median_seconds: float | None
    spread_seconds: float | None
    problem: str | None
    compiled_seconds: float

    def __str__(self) -> str:
        if self.median_seconds is None:
            return f"measured: {self.layout}  {self.problem}"
        change = percent_change(self.median_seconds, self.compiled_seconds)
        return (
            f"measured: {self.layout}  {seconds_text(self.median_seconds)} +- {seconds_text(self.spread_seconds)} "
            f"a step (compiled {seconds_text(self.compiled_seconds)}, {change})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pricing:
    """What the pricing of a large space is doing."""

    kind: Literal["pricing"] = field(default="pricing", init=False)
    text: str

    def __str__(self) -> str:
        return self.text


SearchEvent = Pricing | EarlyAnswer | LayoutCompiled | LayoutMeasured | CompileEvent
"""A `CompileEvent` says when one compile starts, ends, or is answered from the store."""

Listener = Callable[[SearchEvent], None]


def announce(event: SearchEvent, listener: Listener | None) -> None:
    """Write the event's text to the logger and hand the event to the listener."""
    if not isinstance(event, CompileEvent):
        for line in str(event).splitlines():
            LOGGER.info("%s", line)
    if listener is not None:
        listener(event)
