"""A reference model as a Workload: the one place where the tuner meets `autotune.models`.

Only the command line and scripts import this; the library never does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import partial
from pathlib import Path

from autotune.meshes.layout import AXES
from autotune.meshes.transformer import TransformerShape, check_step, read_transformer
from autotune.models.presets import PRESETS
from autotune.system.source_digest import source_digest
from autotune.workload.workload import Workload


def reference_workload(model: str, *, batch: int, seq: int, dtype: str) -> Workload:
    """The workload of a preset name or of a JSON file with a shape; ValueError when it is neither."""
    workload = transformer_workload(transformer_of(model), batch=batch, seq=seq, dtype=dtype)
    return workload.with_recipe({"model": model, "batch": batch, "seq": seq, "dtype": dtype})


def transformer_of(model: str) -> TransformerShape:
    """The shape that `--model` names."""
    if model in PRESETS:
        return PRESETS[model]
    if model.endswith(".json"):
        return read_transformer(Path(model))
    raise ValueError(f"model: {model!r} is no preset ({', '.join(PRESETS)}) and no .json file")


def transformer_workload(transformer: TransformerShape, *, batch: int, seq: int, dtype: str) -> Workload:
    """The workload of a shape: our reference train step; ValueError where it has more tokens than we count."""
    check_step(batch, seq)
    return Workload.of(
        name=f"{transformer.name}, batch {batch} x {seq} tokens, {dtype}",
        build=partial(_build, transformer, batch, seq, dtype),
        sequences=batch,
        seq=seq,
        dtype=dtype,
        transformer=transformer,
        axes=tuple(axis for axis in AXES if axis != "expert" or transformer.experts),
        fingerprint=_fingerprint(transformer, batch, seq, dtype),
    )


def _build(transformer, batch, seq, dtype, layout, mesh):
    from autotune.models.train_step import build_step

    return build_step(transformer, batch, seq, layout, mesh, dtype=dtype)


def _fingerprint(transformer: TransformerShape, batch: int, seq: int, dtype: str) -> str:
    """Of the shape and of the source that builds the step: an edited model is another workload."""
    values = [dataclasses.asdict(transformer), batch, seq, dtype, source_digest("autotune.models.train_step")]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]
