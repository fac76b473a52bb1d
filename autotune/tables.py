"""Tables that fit the terminal: no name and no layout is ever cut, and no column is dropped without a word.

A table that is too wide first drops its least important columns and names them below. Where even the columns that must
be shown do not fit side by side, each row becomes a record: its name or layout on a line of its own, its figures below.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

GAP = 2
"""Spaces between columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a `FittedTable`."""

    name: str
    priority: int = 1
    """1: always shown. Columns with larger numbers are dropped first where the terminal is too narrow."""
    align: str = "left"
    """"left" or "right"."""
    least: int | None = None
    """Fewest characters the column needs; its text then wraps between words. None: its cells are never wrapped."""
    heads: bool = False
    """Whether a record has this cell on a line of its own: names and layouts."""


@dataclass(frozen=True, slots=True)
class FittedTable:
    """A rich renderable. `rows`: one text for each column; `styles`: a rich style for each row, or None for plain rows.

    Columns whose cells are all empty are left out.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    title: str = ""
    styles: Sequence[str | None] | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        width = options.max_width
        if self.title:
            yield Text(self.title, style="bold")
        shown, dropped = self._fitting(width)
        if self._needed(shown) > width:
            yield from self._as_records(width)
            return
        table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold", collapse_padding=True)
        for place in shown:
            column = self.columns[place]
            wraps = column.least is not None
            table.add_column(
                column.name, justify="right" if column.align == "right" else "left", no_wrap=not wraps,
                overflow="fold", min_width=None if wraps else self._natural(place),
            )  # fmt: skip
        for number, row in enumerate(self.rows):
            table.add_row(*(Text(row[place]) for place in shown), style=self.styles[number] if self.styles else None)
        yield table
        if dropped:
            names = "; ".join(self.columns[place].name for place in dropped)  # a name may hold a comma
            yield Text(f"not shown in {width} columns: {names}", style="dim")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, options.max_width)

    def _used(self) -> list[int]:
        return [place for place in range(len(self.columns)) if any(row[place] for row in self.rows) or not self.rows]

    def _natural(self, place: int) -> int:
        cells = [self.columns[place].name, *(row[place] for row in self.rows)]
        return max(len(line) for cell in cells for line in cell.split("\n"))

    def _least(self, place: int) -> int:
        least = self.columns[place].least
        natural = self._natural(place)
        return natural if least is None else min(natural, max(least, len(self.columns[place].name)))

    def _needed(self, places: Sequence[int]) -> int:
        return sum(self._least(place) for place in places) + GAP * max(len(places) - 1, 0)

    def _fitting(self, width: int) -> tuple[list[int], list[int]]:
        """(columns to show, columns to drop): every column of priority 1, then the others while they fit."""
        used = self._used()
        shown = [place for place in used if self.columns[place].priority == 1]
        for place in sorted(used, key=lambda place: (self.columns[place].priority, place)):
            if place not in shown and self._needed([*shown, place]) <= width:
                shown.append(place)
        return sorted(shown), [place for place in used if place not in shown]

    def _as_records(self, width: int) -> Iterator[RenderableType]:
        used = self._used()
        heads = [place for place in used if self.columns[place].heads]
        for number, row in enumerate(self.rows):
            style = (self.styles[number] if self.styles else None) or ""
            for line in wrapped_after(" ".join(row[place] for place in heads if row[place]), ",", width):
                yield Text(line, style=style, no_wrap=True, overflow="ignore")
            rest = [f"{self.columns[place].name} {row[place]}" for place in used if place not in heads and row[place]]
            for line in joined_lines(rest, " | ", width - 4):
                yield Prose(f"    {line}", style=style)


@dataclass(frozen=True, slots=True)
class Prose:
    """Lines of text, wrapped between words; a word that is wider than the terminal (a layout) breaks after a comma."""

    text: str
    style: str = ""
    first_style: str | None = None
    """Style of the first line, where it differs."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        for number, line in enumerate(self.text.split("\n")):
            style = self.first_style if number == 0 and self.first_style is not None else self.style
            for part in wrapped_prose(line, options.max_width):
                yield Text(part, style=style, no_wrap=True, overflow="ignore")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, options.max_width)


def wrapped_prose(line: str, width: int) -> list[str]:
    """One line of text as lines of at most `width` characters. Lines after the first are indented by two more.

    >>> wrapped_prose("  chosen: fsdp=64,tensor=4 fast", 17)
    ['  chosen:', '    fsdp=64,', '    tensor=4 fast']
    """
    indent = line[: len(line) - len(line.lstrip(" "))]
    more = indent + "  "
    lines = [indent]
    for word in line.split():
        room = width - len(more)
        pieces = wrapped_after(word, ",", room) if len(word) > room else [word]
        for number, piece in enumerate(pieces):
            gap = " " if number == 0 and lines[-1].strip() else ""
            if lines[-1].strip() and (number or len(lines[-1]) + len(gap) + len(piece) > width):
                lines.append(more)
                gap = ""
            lines[-1] += gap + piece
    return [one for one in lines if one.strip()] or [""]


def wrapped_after(text: str, mark: str, width: int) -> list[str]:
    """The text in lines of at most `width` characters, broken only after `mark`; a longer piece has its own line.

    >>> wrapped_after("fsdp=64,tensor=4,remat=full", ",", 18)
    ['fsdp=64,tensor=4,', 'remat=full']
    """
    pieces = text.split(mark)
    pieces = [piece + mark for piece in pieces[:-1]] + pieces[-1:]
    lines = [""]
    for piece in pieces:
        if lines[-1] and len(lines[-1]) + len(piece) > width:
            lines.append("")
        lines[-1] += piece
    return lines


def joined_lines(parts: Sequence[str], between: str, width: int) -> list[str]:
    """The parts joined into lines of at most `width` characters; a longer part has its own line.

    >>> joined_lines(["a 1", "b 2", "c 3"], " | ", 9)
    ['a 1 | b 2', 'c 3']
    """
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(between) + len(part) <= width:
            lines[-1] += between + part
        else:
            lines.append(part)
    return lines


def share_bar(share: float, width: int = 10) -> str:
    """A share of one as a bar of `width` characters, in eighths of a character.

    >>> share_bar(0.5, 4), share_bar(0.0, 4), share_bar(1.2, 4)
    ('██  ', '    ', '████')
    """
    eighths = round(max(0.0, min(share, 1.0)) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")).ljust(width)


def lines(renderable: RenderableType, width: int = 140) -> Iterable[str]:
    """The screen as plain lines of at most `width` columns: what goes to a file, a pipe or a golden test.

    A piece of a layout that is wider stands whole on a line of its own (`crop=False`: rich would cut it).
    """
    text = io.StringIO()  # not `console.capture`, which flushes stdout
    # In a notebook a console shows what it prints as a cell of its own, whatever its file is.
    plain = Console(file=text, width=width, no_color=True, highlight=False, force_terminal=False, force_jupyter=False)
    plain.print(renderable, crop=False)
    return [line.rstrip() for line in text.getvalue().splitlines()]
