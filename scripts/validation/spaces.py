"""Spaces of layouts small enough to compile whole: what every layout of each was compiled to, as saved figures.

Shapes have real widths; their layers are scanned, so compiling 24 costs what compiling 2 does. Each space is what the
tuner would enumerate under those `--axes` and `--fix`; no legal layout is left out, those that do not fit neither.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.analysis.analyse import predict, program_of
from autotune.compile.compilation import Candidate, Compilation, CompileFailure
from autotune.compile.compile import compile_all
from autotune.meshes.layout import Layout
from autotune.meshes.target import Target, parse_target
from autotune.meshes.transformer import TransformerShape
from autotune.model_files.read import read_model
from autotune.model_files.read_model import ReadModel
from autotune.model_files.shape import shape_of
from autotune.price.priced_space import PricedSpace, price_space
from autotune.program import Program, Start, walk
from autotune.reference_workload import transformer_workload
from autotune.space import enumerate_layouts, parse_fix
from autotune.store import Store
from autotune.system.whole_file import write_whole
from autotune.workload.workload import Workload

SAVED = Path(__file__).resolve().parents[2] / "tests" / "data" / "compiled_spaces.json"

MODELS = {
    model.name: model
    for model in (
        TransformerShape(
            name="dense-2048", layers=16, d_model=2048, heads=16, kv_heads=8, head_dim=128, d_ff=8192, vocab=32768,
        ),
        TransformerShape(
            name="dense-4096", layers=8, d_model=4096, heads=32, kv_heads=8, head_dim=128, d_ff=14336, vocab=32768,
        ),
        TransformerShape(
            name="gelu-1536", layers=24, d_model=1536, heads=16, kv_heads=16, head_dim=96, d_ff=6144, vocab=50304,
            mlp="gelu-2mat", tied_embeddings=True,
        ),
        TransformerShape(
            name="mixtral-2048", layers=8, d_model=2048, heads=16, kv_heads=8, head_dim=128, d_ff=7168, vocab=32768,
            experts=8, experts_per_token=2,
        ),
        TransformerShape(
            name="deepseek-1024", layers=8, d_model=1024, heads=8, kv_heads=8, head_dim=128, d_ff=704, vocab=32768,
            experts=64, experts_per_token=6, shared_experts=2,
        ),
        TransformerShape(
            name="gemma-2048", layers=18, d_model=2048, heads=8, kv_heads=2, head_dim=256, d_ff=16384, vocab=256000,
            tied_embeddings=True,
        ),
        TransformerShape(
            name="switch-2048", layers=12, d_model=2048, heads=16, kv_heads=4, head_dim=128, d_ff=8192, vocab=32000,
            mlp="gelu-2mat", experts=16, experts_per_token=1,
        ),
    )
}  # fmt: skip

CONFIGS = Path(__file__).resolve().parents[2] / "tests" / "data" / "models"
CUT = {
    "qwen3-4b": ("num_hidden_layers=12",),
    "qwen3-0.6b": ("num_hidden_layers=8",),
    "qwen3-30b-a3b": ("num_hidden_layers=6",),
    "gemma-3-4b": ("num_hidden_layers=12",),
    "gemma-3-1b": ("num_hidden_layers=6",),
    "gpt-oss-20b": ("num_hidden_layers=8", f"layer_types={json.dumps(['sliding_attention', 'full_attention'] * 4)}"),
    "deepseek-v2-lite": ("num_hidden_layers=6",),
    "mistral-7b-v0.1": ("num_hidden_layers=8",),
}
"""Models of published configs -> their depth here: whole repeats of the pattern of layers."""


def at_saved_rates(target: Target) -> Target:
    """The target with the rates that the saved programs were replayed at: one for all fused attention, and a clock that
    does not fall. Priced and replayed seconds are compared at equal rates."""
    hardware = dataclasses.replace(
        target.hardware, attention_shares_by_keys={}, power_watts={}, matmul_share_at_watts=(), matmul_ceiling=None
    )
    return dataclasses.replace(target, hardware=hardware)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceCase:
    """One (model, target) with the tuner's options that bound its space. `axes` and `fix` as `--axes` and `--fix`."""

    model: str
    target: str
    batch: int
    seq: int
    axes: str
    fix: str

    @property
    def name(self) -> str:
        return f"{self.model} {self.target} b{self.batch}x{self.seq} {self.axes} {self.fix}"

    @property
    def transformer(self) -> TransformerShape:
        return MODELS[self.model] if self.model in MODELS else shape_of(self._read, self.seq)

    @property
    def _read(self) -> ReadModel | None:
        """The config that the shape is of."""
        return read_model(str(CONFIGS / f"{self.model}.json"), CUT[self.model]) if self.model in CUT else None

    @property
    def placed(self) -> Target:
        return at_saved_rates(parse_target(self.target))

    @property
    def workload(self) -> Workload:
        return transformer_workload(self.transformer, batch=self.batch, seq=self.seq, dtype="bfloat16", read=self._read)

    def space(self) -> PricedSpace:
        """Every layout with its verdict and its price of today."""
        table = enumerate_layouts(
            self.placed, tuple(self.axes.split(",")), self.batch, self.transformer.layers, parse_fix(self.fix.split())
        )
        return price_space(self.workload, self.placed, table)


def _cases(*rows: tuple[str, str, int, int, str, str]) -> tuple[SpaceCase, ...]:
    return tuple(
        SpaceCase(model=model, target=target, batch=batch, seq=seq, axes=axes, fix=fix)
        for model, target, batch, seq, axes, fix in rows
    )


CASES = _cases(
    ("dense-2048", "h100:2x8", 64, 2048, "data,fsdp,tensor", "remat=full zero=0 accumulate=1"),
    ("dense-2048", "h100:2x8", 128, 2048, "fsdp,tensor", "accumulate=1 dcn.tensor=1"),
    ("dense-4096", "h100:4x8", 64, 4096, "fsdp,tensor,stage", "remat=dots schedule=gpipe dcn.tensor=1 dcn.fsdp=1"),
    ("dense-4096", "h100:2x8", 64, 4096, "fsdp,stage", "remat=full schedule=circular virtual_stages=2"),
    ("dense-2048", "h100:2x8", 64, 2048, "data,fsdp", "remat=full accumulate=1 dcn.fsdp=1"),
    ("dense-2048", "a100-80:2x8", 64, 2048, "data,tensor", "remat=full accumulate=1"),
    ("dense-2048", "a100-80:2x8", 128, 2048, "fsdp", "dcn.fsdp=2"),
    ("dense-4096", "h100:4x8", 64, 4096, "data,fsdp,tensor", "remat=full zero=0 accumulate=1 dcn.tensor=1 dcn.data=1"),
    ("dense-4096", "h100:4x8", 128, 4096, "fsdp,tensor", "remat=minimal dcn.tensor=1"),
    ("dense-4096", "h100:2x8", 16, 8192, "fsdp,tensor,context", "remat=full accumulate=1 context_attention=gather dcn.tensor=1"),  # noqa: E501
    ("dense-2048", "h100:4x8", 32, 8192, "fsdp,context", "remat=full accumulate=1 dcn.context=1"),
    ("gelu-1536", "a100-80:2x8", 128, 1024, "data,fsdp,tensor", "remat=none zero=0 accumulate=1 dcn.tensor=1"),
    ("gelu-1536", "h100:2x8", 256, 1024, "fsdp,tensor", "remat=dots accumulate=1"),
    ("mixtral-2048", "h100:2x8", 64, 2048, "data,fsdp,expert", "remat=full zero=0 accumulate=1 dcn.expert=1"),
    ("mixtral-2048", "h100:4x8", 64, 2048, "fsdp,expert,tensor", "remat=dots accumulate=1 dcn.tensor=1 dcn.expert=1"),
    ("mixtral-2048", "a100-80:2x8", 64, 2048, "fsdp,expert", "remat=full dcn.expert=1"),
    ("deepseek-1024", "h100:2x8", 64, 2048, "fsdp,expert,tensor", "remat=full accumulate=1 dcn.tensor=1 dcn.expert=1"),
    ("deepseek-1024", "a100-80:2x8", 64, 2048, "data,fsdp,expert", "remat=dots zero=1 accumulate=1 dcn.expert=1"),
    ("dense-2048", "v5e:4x4", 64, 2048, "data,fsdp,tensor", "remat=full zero=0 accumulate=1"),
    ("dense-4096", "v5p:4x4x4", 64, 4096, "fsdp,tensor", "remat=full accumulate=1"),
    ("dense-2048", "v5e:4x4*2", 64, 2048, "data,fsdp", "remat=full zero=0 accumulate=1 dcn.data=2"),
    ("dense-2048", "v5e:4x4", 64, 2048, "fsdp,stage", "remat=full schedule=gpipe accumulate=1"),
    ("dense-4096", "v6e:4x4", 32, 4096, "fsdp,context", "remat=full accumulate=1 context_attention=gather"),
    ("mixtral-2048", "v5p:2x2x4", 64, 2048, "fsdp,expert", "remat=full accumulate=1"),
    ("gemma-2048", "h100:2x8", 64, 4096, "data,fsdp,tensor", "zero=1 remat=minimal accumulate=1 dcn.tensor=1 dcn.fsdp=1"),  # noqa: E501
    ("dense-2048", "h100:2x8", 128, 2048, "data,fsdp,tensor", "remat=full zero=0 accumulate=4 dcn.tensor=1"),
    ("dense-2048", "a100-80:2x8", 128, 2048, "data,fsdp", "remat=dots accumulate=8 dcn.data=2"),
    ("mixtral-2048", "h100:2x8", 128, 2048, "data,fsdp,expert", "remat=full zero=0 accumulate=2 dcn.expert=1"),
    ("gelu-1536", "h100:2x8", 256, 1024, "data,fsdp", "remat=none accumulate=4 dcn.fsdp=1"),
    ("switch-2048", "h100:4x8", 64, 2048, "fsdp,expert,context,tensor", "remat=minimal accumulate=1 context_attention=gather tensor=2 dcn.context=4"),  # noqa: E501
)  # fmt: skip

NEW_SHAPES = _cases(
    ("qwen3-4b", "h100:1x8", 32, 4096, "data,fsdp,tensor", "remat=full zero=0 accumulate=1"),
    ("gemma-3-4b", "h100:1x8", 32, 4096, "fsdp,tensor", "remat=full"),
    ("gpt-oss-20b", "h100:2x8", 64, 4096, "fsdp,expert", "remat=full accumulate=1"),
    ("deepseek-v2-lite", "h100:1x8", 32, 4096, "fsdp,expert", "remat=full accumulate=1"),
    ("qwen3-30b-a3b", "h100:2x8", 64, 4096, "fsdp,expert", "remat=full accumulate=1"),
    ("mistral-7b-v0.1", "h100:1x8", 16, 8192, "data,fsdp,tensor", "remat=minimal zero=1 accumulate=1"),
    ("gemma-3-1b", "v5e:4x4", 32, 2048, "data,fsdp,tensor", "remat=full zero=0 accumulate=1"),
    ("qwen3-0.6b", "v5e:4x4", 64, 2048, "data,fsdp,tensor", "remat=full zero=0 accumulate=1"),
)  # fmt: skip
"""Layers that differ, windows, latent attention, sinks, many small experts. Priced before they were compiled."""


def compile_case(case: SpaceCase, store: Store, workers: int) -> Iterator[dict[str, Any]]:
    """Every legal layout of the case with what it was compiled to; quick where the store knows it."""
    for job, outcome in compile_all(
        legal_jobs(case.space()), workers=workers, timeout_seconds=1800, store=store, retry=True
    ):
        yield figures(outcome, job.layout, case.placed)


def legal_jobs(space: PricedSpace) -> list[Candidate]:
    """The compile of every legal layout of a space."""
    return [
        Candidate(workload=space.workload, layout=space.layout(row), target=space.target)
        for row in range(len(space.table))
        if space.legal[row]
    ]


def figures(outcome: Compilation | CompileFailure, layout: Layout, target: Target) -> dict[str, Any]:
    """What one layout was compiled to, as it is saved."""
    if isinstance(outcome, CompileFailure):
        return {"layout": str(layout), "failure": outcome.kind, "reason": outcome.reason, "peak": outcome.needed_bytes}
    program = program_of(outcome, layout, target)
    prediction = predict(program, layout, target, target.hardware)
    return {
        "layout": str(layout),
        "compile_seconds": round(outcome.compile_seconds, 1),
        "flops": round(program.flops()),
        "seconds": _short(prediction.step_seconds),
        "resources": {name: _short(seconds) for name, seconds in prediction.by_resource().items()},
        "peak": program.memory.peak_bytes,
        "memory": dict(program.memory.by_category),
        "sent": [[axes, kind, _short(size)] for (axes, kind), size in sent(program).items()],
    }


def sent(program: Program) -> dict[tuple[str, str], float]:
    """Bytes that one device sends a step, by (mesh axes joined by "+", kind)."""
    found: dict[tuple[str, str], float] = {}
    for op, trips in walk(program.instructions):
        if isinstance(op, Start):
            key = ("+".join(op.collective.axes), op.collective.kind)
            found[key] = found.get(key, 0.0) + trips * op.collective.wire_bytes
    return found


def _short(value: float) -> float:
    """Five digits: what the comparison needs, and the file stays small."""
    return float(f"{value:.5g}")


def save(cases: dict[str, list[dict[str, Any]]], versions: dict[str, str]) -> None:
    """Write the figures of all cases, one layout a line."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    lines = [f'{{"date": "{today}", "versions": {json.dumps(versions)}, "cases": {{']
    for index, (name, rows) in enumerate(cases.items()):
        body = ",\n".join(json.dumps(row) for row in rows)
        lines.append(f"{json.dumps(name)}: [\n{body}\n]" + ("," if index < len(cases) - 1 else ""))
    write_whole(SAVED, "\n".join([*lines, "}}"]) + "\n")


def saved() -> dict[str, list[dict[str, Any]]]:
    """The figures of every case by its name."""
    return json.loads(SAVED.read_text())["cases"]


def saved_versions() -> dict[str, str]:
    """The packages that compiled the saved figures, by name."""
    return json.loads(SAVED.read_text())["versions"]


def case_of(name: str) -> SpaceCase:
    """The case of that name."""
    return next(case for case in CASES if case.name == name)


def fields_of(case: SpaceCase) -> dict[str, Any]:
    """The case as plain values."""
    return dataclasses.asdict(case)
