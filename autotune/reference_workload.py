"""A reference model as a Workload: the one place where the tuner meets `autotune.models`.

Only the command line and scripts import this; the library never does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import partial

from autotune.meshes.layout import AXES
from autotune.meshes.transformer import TransformerShape
from autotune.model_files.read import read_model
from autotune.model_files.shape import shape_of
from autotune.system.source_digest import source_digest
from autotune.workload.workload import Workload


def reference_workload(model: str, *, batch: int, seq: int, dtype: str) -> Workload:
    """The workload of whatever `--model` takes; ValueError in one line when it is no model that can be priced."""
    workload = transformer_workload(transformer_of(model, seq), batch=batch, seq=seq, dtype=dtype)
    return workload.with_recipe({"model": model, "batch": batch, "seq": seq, "dtype": dtype})


def transformer_of(model: str, seq: int | None = None) -> TransformerShape:
    """The shape that `--model` names: a preset, or a model file of ours or of another codebase.

    `seq`: tokens of a sequence, which decide whether a window of its attention is narrower than a sequence.
    """
    return shape_of(read_model(model), seq)


def transformer_workload(transformer: TransformerShape, *, batch: int, seq: int, dtype: str) -> Workload:
    """The workload of a shape: our reference train step."""
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
