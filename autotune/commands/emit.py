"""`autotune emit`: a plan in another codebase's own words."""

from __future__ import annotations

import json
from pathlib import Path

import click

from autotune.commands.command import Command
from autotune.commands.options import bad_input, json_option
from autotune.commands.values import PATH, OneOf

CODEBASES = ("maxtext", "levanter", "easylm", "axlearn", "flax")
"""Those of `autotune.plan.emit`, which a help text does without."""


@click.command(cls=Command)
@click.argument("plan", type=PATH)
@click.option("--for", "codebase", required=True, type=OneOf(CODEBASES), help="Whose words.")
@json_option
def emit(plan: Path, codebase: str, as_json: bool) -> None:
    """Print a plan as another codebase's flags, YAML or code."""
    from autotune.plan.emit import emit as emitted
    from autotune.plan.read import load_plan

    with bad_input():
        text = emitted(load_plan(plan), codebase)
    click.echo(json.dumps({"schema": 1, "for": codebase, "text": text}, indent=1) if as_json else text, nl=as_json)
