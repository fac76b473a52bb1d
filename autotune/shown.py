"""How a result shows itself: as one line in Python, as text, as an HTML page, and as a notebook cell."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDTH = 100
"""Columns of a text, unless told otherwise."""


class Shown:
    """The base of results that can be looked at. A class says `headline` and `screen`; the rest follows."""

    __slots__ = ()

    def headline(self) -> str:
        """The result in one line."""
        raise NotImplementedError

    def screen(self) -> RenderableType:
        """The whole result as rich shows it."""
        raise NotImplementedError

    def text(self, width: int = WIDTH) -> str:
        """The whole result as plain text of at most `width` columns."""
        from autotune.tables import lines

        return "\n".join(lines(self.screen(), width))

    def to_html(self) -> str:
        """The result as one HTML page that needs nothing else."""
        name, text = html.escape(type(self).__name__), html.escape(self.text())
        return f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{name}</title><pre>{text}</pre></html>\n'

    def show(self) -> None:
        """Print the result: with colours on a terminal and in a notebook, as plain text elsewhere."""
        from rich.console import Console

        console = Console(highlight=False)
        if console.is_terminal or console.is_jupyter:
            console.print(self.screen(), crop=False)
        else:
            print(self.text())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.headline()}>"

    def _repr_html_(self) -> str:
        """A cell of a notebook: the headline and the text."""
        return (
            f"<p><b>{html.escape(self.headline())}</b></p>"
            f'<pre style="line-height: 1.2; overflow-x: auto; white-space: pre">{html.escape(self.text())}</pre>'
        )
