"""What compiling one layout told us: its replayed time, its memory, and its time on better hardware."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autotune.analysis.overheads import Overhead
from autotune.program import Buffer, Memory
from autotune.replay.replay import CollectiveTotal, Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """All numbers are per device and step.

    `flops`: compiled, loops counted. `recompute_flops`: of these, what rematerialisation runs a second time.
    `improved_seconds`: the replayed time with one resource `limits.ARC` times as good.
    `losses`: what is spent for nothing, by name and line; repeated work only where the step's own FLOPs were `traced`.
    `warnings`: the reader's and the compiler's doubts. `not_understood`: `Program.not_understood`.
    """

    prediction: Prediction
    memory: Memory
    flops: float
    recompute_flops: float
    hbm_bytes: float
    improved_seconds: Mapping[str, float]
    lower_seconds: float
    compile_seconds: float
    losses: tuple[Overhead, ...]
    traced: bool
    warnings: tuple[str, ...]
    log: str | None
    not_understood: Mapping[str, int] = field(default_factory=dict)


def analysis_to_json(analysis: Analysis) -> dict[str, Any]:
    """Plain JSON values; the inverse of `analysis_from_json`."""
    values = {spec.name: getattr(analysis, spec.name) for spec in dataclasses.fields(analysis)}
    prediction = dataclasses.asdict(analysis.prediction)
    prediction["critical"] = [[*term, seconds] for term, seconds in analysis.prediction.critical.items()]
    values["prediction"] = prediction
    values["memory"] = dataclasses.asdict(analysis.memory)
    values["improved_seconds"] = dict(analysis.improved_seconds)
    values["not_understood"] = dict(analysis.not_understood)
    values["losses"] = [dataclasses.asdict(loss) for loss in analysis.losses]
    return values


def analysis_from_json(values: Mapping[str, Any]) -> Analysis:
    """Read back what `analysis_to_json` wrote; KeyError or TypeError when it is not that."""
    prediction = dict(values["prediction"])
    prediction["critical"] = {(resource, detail): seconds for resource, detail, seconds in prediction["critical"]}
    prediction["ledger"] = tuple(CollectiveTotal(**row) for row in prediction["ledger"])
    memory = dict(values["memory"])
    memory["largest"] = tuple(Buffer(**buffer) for buffer in memory["largest"])
    plain = {**values, "prediction": Prediction(**prediction), "memory": Memory(**memory)}
    plain["warnings"] = tuple(values["warnings"])
    plain["losses"] = tuple(Overhead(**loss) for loss in values["losses"])
    return Analysis(**plain)
