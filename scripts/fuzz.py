"""Feeds nearly right inputs to every border of the tool: `python scripts/fuzz.py --minutes 20`.

Layouts, targets, model files, hardware files, plans, texts of compiled programs and command lines, made by hypothesis
from what the tool itself saves. Each must give a checked value that can be used, or one line that says what is wrong.
Prints how many inputs each border had; exit code 1 where one broke a promise, with the smallest input that does.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from hypothesis import HealthCheck, Phase, given, seed, settings

sys.path.insert(0, str(Path(__file__).resolve().parent))

# Where a GPU's plugin is installed and no GPU is there, JAX prints why in this process, which `autotune` does not.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from fuzzing.borders import Border, borders  # noqa: E402

ONCE_SECONDS = 60
"""No input may take longer: a reader that does has no bound."""

SHRINK_SECONDS = 20
"""How long a failing input is made smaller."""

ROUND = 40
"""Inputs of one border before the next has its turn."""


class Endless(Exception):
    """An input took longer than any may."""


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Endless is raised inside after so many seconds."""

    def ring(*_: Any) -> None:
        raise Endless(f"still running after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def fuzz(names: tuple[str, ...], minutes: float, first_seed: int) -> dict[str, dict[str, Any]]:
    """Border -> {"inputs", "seconds", "failures"}; every border has its turn, over and over."""
    known = borders()
    found: dict[str, dict[str, Any]] = {name: {"inputs": 0, "seconds": 0.0, "failures": []} for name in names}
    until, number = time.monotonic() + 60 * minutes, first_seed
    while time.monotonic() < until:
        for name in names:
            if time.monotonic() >= until or len(found[name]["failures"]) >= 3:
                continue
            began = time.monotonic()
            turn = began + (until - began) / len(names)  # a slow border leaves time for the others
            problem = one_round(known[name], number, turn, found[name])
            found[name]["seconds"] += time.monotonic() - began
            if problem:
                found[name]["failures"].append(problem)
        number += 1
        if all(len(one["failures"]) >= 3 for one in found.values()):
            break
    return found


def one_round(border: Border, number: int, until: float, counted: dict[str, Any]) -> str | None:
    """`ROUND` inputs; the smallest that breaks a promise, and how, or None."""
    smallest: list[str] = []
    failing_since: list[float] = []

    @seed(number)
    @settings(max_examples=ROUND, deadline=None, database=None, report_multiple_bugs=False, print_blob=False,
              phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(border.inputs)
    def check(value: Any) -> None:
        now = time.monotonic()
        if now >= until and not smallest or smallest and now - failing_since[0] > SHRINK_SECONDS:
            return
        counted["inputs"] += 1
        try:
            with limited(ONCE_SECONDS):
                border.check(value)
        except BaseException as error:
            failing_since.append(now)
            told = " ".join(f"{type(error).__name__}: {error}".split())[:1500]
            smallest[:] = [f"seed {number}: {repr(value)[:2000]}: {told} ({where(error)})"]
            raise

    try:
        check()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # hypothesis raises what the check raised, or says that it came and went
        return smallest[0] if smallest else f"seed {number}: {type(error).__name__}: {error}"
    return smallest[0] if smallest else None


def where(error: BaseException) -> str:
    """The innermost line of our own code that an error passed."""
    place, step = "?", error.__traceback__
    while step is not None:
        name = step.tb_frame.f_code.co_filename
        if "hypothesis" not in name:
            place = f"{'/'.join(Path(name).parts[-3:])}:{step.tb_lineno}"
        step = step.tb_next
    return place


@click.command()
@click.option("--minutes", type=click.FloatRange(0.01, 10_000), default=1.0, show_default=True, help="How long.")
@click.option("--only", multiple=True, help="These borders; any other word lists them.")
@click.option("--seed", "first_seed", type=click.IntRange(0), help="Of the first round [the clock].")
@click.option("--json", "as_json", is_flag=True, help="The figures as one JSON document.")
def main(minutes: float, only: tuple[str, ...], first_seed: int | None, as_json: bool) -> None:
    """Fuzz every border for so many minutes."""
    known = tuple(borders())
    for name in only:
        if name not in known:
            raise click.UsageError(f"--only {name}: must be one of {', '.join(known)}")
    number = int(time.time()) % 2**31 if first_seed is None else first_seed
    found = fuzz(only or known, minutes, number)
    if as_json:
        click.echo(json.dumps({"seed": number, "minutes": minutes, "borders": found}, indent=1))
    else:
        for name, one in found.items():
            click.echo(
                f"{name:<9} {one['inputs']:>8,} inputs {one['seconds']:>7.0f} s  {len(one['failures'])} failures"
            )
            for failure in one["failures"]:
                click.echo(f"  {failure}")
    sys.exit(1 if any(one["failures"] for one in found.values()) else 0)


if __name__ == "__main__":
    main()
