"""Ours beside published measurements of JAX runs:

    python scripts/validate.py --cases FILE... [--compile] [--only ID]... [--store DIR] [--json]

Prints every row, worst first, with the score of each published set. Exit 1 when a set is over its thresholds; a row
that cannot be predicted is listed with what is missing. Without --cases: the sets that have thresholds or programs.
With --compile each row's step is compiled for its own chips; the store keeps every program as it comes, so that a run
that was cut goes on where it stopped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import click
from validation.cases import Case, Skipped, read_cases
from validation.predict import Compiled, compile_cases, compiled_prediction
from validation.score import Row, Score, row_of, score

from autotune.store import Store

DATA = Path(__file__).parents[1] / "tests" / "data" / "published"
SETS = ("alpa_osdi22_2_4_gpu", "maxtext_tpu")

THRESHOLDS: dict[str, dict[str, float]] = {"alpa": {"order_wrong": 0, "oom_right": 1.0}}
"""Group -> what its score must reach: at least for those in `AT_LEAST`, at most for the others."""

AT_LEAST = ("oom_right",)


def misses(found: Score) -> list[str]:
    """The thresholds that a score does not meet, each in words."""
    told = []
    for name, limit in THRESHOLDS.get(found.group, {}).items():
        value = getattr(found, name)
        if value is not None and (value < limit if name in AT_LEAST else value > limit):
            told.append(f"{found.group}: {name} {value:.3g}, {'at least' if name in AT_LEAST else 'at most'} {limit:g}")
    return told


def lines(rows: list[Row], scores: list[Score]) -> list[str]:
    """The report: rows worst first, then one line a set."""
    told = [f"{'case':44}{'measured s':>11}{'ours s':>11}{'error':>8}  {'memory':12}{'ours GiB':>9}"]
    ranked = sorted(rows, key=lambda row: (row.skipped is not None, row.error is None, -abs(row.error or 0.0), row.id))
    for row in ranked:
        if row.skipped is not None:
            told.append(f"{row.id:44}skipped: {row.skipped}")
            continue
        measured = f"{row.measured:11.4g}" if row.measured is not None else f"{'-':>11}"
        error = f"{100 * row.error:+7.1f}%" if row.error is not None else f"{'-':>8}"
        verdict = "-"
        if row.oom_measured is not None:
            verdict = (
                "agrees"
                if row.oom_measured == row.oom_predicted
                else "ours: too large"
                if row.oom_predicted
                else "ours: fits"
            )  # noqa: E501
        peak = (row.peak_bytes_predicted or 0.0) / 2**30
        ours = f"{row.predicted:11.4g}" if row.predicted is not None else f"{'-':>11}"
        rate = "  seconds worked out from TFLOP/s" if row.measured_from == "tflops_per_device" else ""
        told.append(f"{row.id:44}{measured}{ours}{error}  {verdict:12}{peak:9.1f}{rate}")
    told.append("")
    told.append(f"{'set':14}{'rows':>5}{'|error|':>9}{'bias':>8}{'rank':>7}{'regret':>8}{'memory':>8}{'order':>7}")
    for found in scores:
        figures = [
            _percent(found.mean_error, 9), _percent(found.bias, 8, sign=True),
            f"{found.spearman:7.2f}" if found.spearman is not None else f"{'-':>7}", _percent(found.regret, 8),
            _percent(found.oom_right, 8),
            f"{found.order_wrong:7d}" if found.order_wrong is not None else f"{'-':>7}",
        ]  # fmt: skip
        told.append(f"{found.group:14}{found.rows:5}{''.join(figures)}")
    return told


def _percent(value: float | None, width: int, *, sign: bool = False) -> str:
    if value is None:
        return f"{'-':>{width}}"
    return f"{100 * value:{'+' if sign else ''}{width - 1}.1f}%"


def compiled_now(cases: Sequence[Case | Skipped], folder: Path | None) -> dict[str, Compiled]:
    """What the compiled step of each case says, by its id.

    Left out: runs of Alpa, which is another compiler, and of programs that this repository keeps.
    """
    store = Store(folder)
    wanted = [
        case
        for case in cases
        if isinstance(case, Case) and case.stack.name != "alpa" and compiled_prediction(case) is None
    ]
    found: dict[str, Compiled] = {}
    for case, answer in compile_cases(wanted, store):
        if isinstance(answer, str):
            click.echo(f"{case.id}: not compiled, priced instead: {answer}", err=True)
        else:
            click.echo(f"{case.id}: compiled{''.join(f'; {word}' for word in case.differs)}", err=True)
            found[case.id] = answer
    return found


@click.command()
@click.option("--cases", "files", type=click.Path(path_type=Path), multiple=True, help="Files of published rows.")
@click.option("--compile", "compiles", is_flag=True, help="Compile each row's step for its chips; else it is priced.")
@click.option("--only", multiple=True, metavar="ID", help="Only the rows of these ids.")
@click.option("--store", "folder", type=click.Path(path_type=Path), help="Where compiled programs are kept.")
@click.option("--json", "as_json", is_flag=True, help="One JSON list of rows.")
@click.argument("more", nargs=-1, type=click.Path(path_type=Path))
def main(
    files: tuple[Path, ...],
    compiles: bool,
    only: tuple[str, ...],
    folder: Path | None,
    as_json: bool,
    more: tuple[Path, ...],
) -> None:
    """Predict published measurements and compare."""
    chosen = [*files, *more] or [DATA / f"{name}.json" for name in SETS]
    try:
        cases = [case for path in chosen for case in read_cases(path)]
        unknown = set(only) - {case.id for case in cases}
        if unknown:
            raise ValueError(f"--only {sorted(unknown)[0]}: no row of these files has that id")
        cases = [case for case in cases if not only or case.id in only]
        compiled = compiled_now(cases, folder) if compiles else {}
        rows = [row_of(case, compiled.get(case.id)) for case in cases]
    except ValueError as error:
        click.echo(str(error), err=True)
        sys.exit(2)
    groups = dict.fromkeys(row.group for row in rows)
    scores = [score(group, [row for row in rows if row.group == group]) for group in groups]
    missed = [miss for found in scores for miss in misses(found)]
    if as_json:
        click.echo(json.dumps([row.to_json() for row in rows], indent=1))
    else:
        click.echo("\n".join(lines(rows, scores)))
    for miss in missed:
        click.echo(f"over its threshold: {miss}", err=True)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
