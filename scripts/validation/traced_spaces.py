"""Spaces of users' steps compiled whole, and the probes that the tuner would make of them: saved figures of both.

Beside the models of `traced_models`, our own decoder handed over as a step that nothing is known of, against what
`spaces` keeps of it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from validation import spaces
from validation.spaces import figures, legal_jobs

from autotune.analysis.analyse import analyse
from autotune.compile.compilation import Candidate, Compilation
from autotune.compile.compile import compile_all
from autotune.meshes.layout import parse_layout
from autotune.meshes.target import Target, parse_target
from autotune.price.blocks import priced_again
from autotune.price.priced_space import PricedSpace, price_space
from autotune.price.traced.laws import Probed
from autotune.probes.choose import every_probe
from autotune.probes.fit import Moved, Probe, probe_of, probed_of
from autotune.space import enumerate_layouts, parse_fix
from autotune.store import Store
from autotune.system.whole_file import write_whole
from autotune.table import LayoutTable
from autotune.workload.workload import Workload

SAVED = spaces.SAVED.with_name("traced_spaces.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedCase:
    """One model on one target, with the tuner's options that bound its space; `decoder`: the space of `spaces` that it
    is, None for a model of `traced_models`."""

    model: str
    target: str
    axes: str
    fix: str
    decoder: str | None

    @property
    def name(self) -> str:
        return self.decoder or f"{self.model} {self.target} {self.axes} {self.fix}".strip()

    @property
    def placed(self) -> Target:
        return spaces.at_saved_rates(parse_target(self.target))

    @property
    def workload(self) -> Workload:
        return _workload(self.model, self.decoder)

    def space(self) -> PricedSpace:
        """Every layout with its verdict and its price from the trace alone."""
        fixed = {**parse_fix(tuple(self.fix.split())), **self.workload.fixed}
        axes = tuple(self.axes.split(","))
        table = enumerate_layouts(self.placed, axes, self.workload.sequences, None, fixed)
        return price_space(self.workload, self.placed, table)


@functools.cache
def _workload(model: str, decoder: str | None) -> Workload:
    if decoder is None:
        from validation.traced_models import MODELS

        return MODELS[model]()
    import jax

    jax.config.update("jax_platforms", "cpu")  # traced here, compiled for elsewhere by the workers
    case = spaces.case_of(decoder)

    def builder(layout, mesh):
        from autotune.models.train_step import build_step

        return build_step(case.transformer, case.batch, case.seq, layout, mesh, dtype="bfloat16")

    return Workload.from_builder(builder, axes=tuple(case.axes.split(",")), name=case.model)


def _own(model: str, target: str, fix: str = "") -> TracedCase:
    return TracedCase(model=model, target=target, axes="data,fsdp,tensor", fix=fix, decoder=None)


def _decoder(index: int) -> TracedCase:
    case = spaces.CASES[index]
    return TracedCase(model=case.model, target=case.target, axes=case.axes, fix=case.fix, decoder=case.name)


CASES = (
    *(_decoder(index) for index in (0, 1, 5, 8, 9, 12, 18)),
    _own("transformer", "h100:1x8"),
    _own("linen", "h100:1x8"),
    _own("state-space", "h100:1x8", "zero=0"),
)


def compile_case(case: TracedCase, store: Store, workers: int) -> dict[str, list[dict[str, Any]]]:
    """The figures of the probes and, of a model that is not our decoder, of every legal layout."""
    space = case.space()
    jobs = every_probe(space).jobs
    compiled = compile_all(jobs, workers=workers, timeout_seconds=900, store=store)
    done = {job.layout: outcome for job, outcome in compiled}
    found = {"probes": [_probe_json(job, done[job.layout], store) for job in jobs], "layouts": []}
    if case.decoder is None:
        for job, outcome in compile_all(legal_jobs(space), workers=workers, timeout_seconds=900, store=store):
            found["layouts"].append(figures(outcome, job.layout, case.placed))
    return found


def _probe_json(job: Candidate, outcome: Any, store: Store) -> dict[str, Any]:
    where = {"layout": str(job.layout), "part": job.target.name}
    if not isinstance(outcome, Compilation):
        return where | {"failure": outcome.kind, "reason": outcome.reason}
    probe = probe_of(job.layout, analyse(outcome, job.layout, job.target, store))
    values = dataclasses.asdict(probe)
    sent = [["+".join(axes), kind, *dataclasses.astuple(moved)] for (axes, kind), moved in probe.sent.items()]
    return where | {name: values[name] for name in ("flops", "core_seconds", "held_bytes")} | {"sent": sent}


def probed_in(rows: Sequence[dict[str, Any]], target: Target) -> Probed | None:
    """The laws of saved probes."""
    probes = [
        Probe(
            layout=parse_layout(row["layout"]),
            flops=row["flops"],
            core_seconds=row["core_seconds"],
            held_bytes=row["held_bytes"],
            sent={(tuple(axes.split("+")), kind): Moved(count=count, array_bytes=size, exposed=exposed)
                  for axes, kind, count, size, exposed in row["sent"]},
        )
        for row in rows
        if "failure" not in row
    ]  # fmt: skip
    return probed_of(probes, target.hardware.name)


def before_and_after(case: TracedCase, saved: dict[str, Any]) -> tuple[PricedSpace, PricedSpace, list[dict[str, Any]]]:
    """The layouts that were compiled, priced from the trace alone and with the probes; and their figures.

    What the tuner refuses to a user's step is left out, as ZeRO-2, which our decoder can be told.
    """
    rows = saved["layouts"] if case.decoder is None else spaces.saved()[case.decoder]
    layouts = [parse_layout(row["layout"]) for row in rows]
    before = price_space(case.workload, case.placed, LayoutTable.from_layouts(layouts), layouts)
    legal = [row for row, kept in zip(rows, before.legal, strict=True) if kept]
    layouts = [parse_layout(row["layout"]) for row in legal]
    before = price_space(case.workload, case.placed, LayoutTable.from_layouts(layouts), layouts)
    probed = probed_in(saved["probes"], case.placed)
    return before, priced_again(before, probed), legal


def save(cases: dict[str, dict[str, Any]], path: Path = SAVED) -> None:
    """Write the figures of all cases, one compile a line."""
    parts = []
    for name, found in cases.items():
        lists = [f"{json.dumps(kind)}: [\n" + ",\n".join(map(json.dumps, rows)) + "\n]" for kind, rows in found.items()]
        parts.append(f"{json.dumps(name)}: {{{', '.join(lists)}}}")
    write_whole(path, "{\n" + ",\n".join(parts) + "\n}\n")


def load() -> dict[str, dict[str, Any]]:
    """The saved figures of every case by its name."""
    return json.loads(SAVED.read_text())
