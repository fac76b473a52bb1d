"""A reference model as a Workload: the one place where the tuner meets `autotune.models`.

Only the command line and scripts import this; the library never does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from functools import partial
from typing import Any

from autotune.meshes.layout import AXES
from autotune.meshes.matrices import check_lora
from autotune.meshes.training import Training, training_of
from autotune.meshes.transformer import TransformerShape, check_packing, check_step
from autotune.model_files.read import read_model
from autotune.model_files.read_model import ReadModel
from autotune.model_files.shape import shape_of
from autotune.system.source_digest import source_digest
from autotune.workload.workload import Workload


def reference_workload(
    model: str, *, batch: int, seq: int, dtype: str, settings: Sequence[str] = (), training: Training | None = None
) -> Workload:
    """The workload of whatever `--model` takes; ValueError in one line when it is no model that can be priced.

    `settings`: KEY=VALUE in place of what a model file says. `training`: the optimizer and the dtypes of the state;
    None: AdamW with float32 weights and moments.
    """
    found = read_model(model, settings)
    workload = transformer_workload(
        shape_of(found, seq), batch=batch, seq=seq, dtype=dtype, training=training, read=found
    )
    words = {"model": model, "batch": batch, "seq": seq, "dtype": dtype, **workload.training.recipe()}
    return workload.with_recipe(words | ({"set": "\n".join(settings)} if settings else {}))


def workload_of_plan(plan: Any) -> Workload:
    """The workload that a plan of a reference model was made for, from the words it keeps."""
    words = plan.recipe
    return reference_workload(
        str(words["model"]),
        batch=plan.sequences,
        seq=plan.seq,
        dtype=str(words["dtype"]),
        settings=str(words["set"]).splitlines() if "set" in words else (),
        training=training_of(words),
    )


def transformer_of(model: str, seq: int | None = None, settings: Sequence[str] = ()) -> TransformerShape:
    """The shape that `--model` names: a preset, or a model file of ours or of another codebase.

    `seq`: tokens of a sequence, which decide whether a window of its attention is narrower than a sequence.
    """
    return shape_of(read_model(model, settings), seq)


def transformer_workload(
    transformer: TransformerShape, *, batch: int, seq: int, dtype: str, training: Training | None = None,
    read: ReadModel | None = None,
) -> Workload:  # fmt: skip
    """The workload of a shape: our reference train step; ValueError where it has more tokens than we count.

    `read`: the file that the shape is of.
    """
    check_step(batch, seq)
    training = training or Training()
    if training.lora is not None:
        check_lora(training.lora, transformer.described)
    check_packing(training, transformer, seq)
    experts = "dropless experts" if transformer.dropless else ""
    told = ", ".join(filter(None, (dtype, training.words(), experts)))
    return Workload.of(
        name=f"{transformer.name}, batch {batch} x {seq} tokens, {told}",
        build=partial(_build, transformer, batch, seq, dtype, training),
        sequences=batch,
        seq=seq,
        dtype=dtype,
        transformer=transformer,
        axes=tuple(axis for axis in AXES if axis != "expert" or transformer.experts),
        fingerprint=_fingerprint(transformer, batch, seq, dtype, training),
        training=training,
        ignored=read.ignored if read else (),
        not_modelled=read.not_modelled if read else (),
    )


def _build(transformer, batch, seq, dtype, training, layout, mesh):
    from autotune.models.train_step import build_step

    return build_step(transformer, batch, seq, layout, mesh, dtype=dtype, training=training)


def _fingerprint(transformer: TransformerShape, batch: int, seq: int, dtype: str, training: Training) -> str:
    """Of the shape and of the source that builds the step: an edited model is another workload."""
    values = [
        dataclasses.asdict(transformer),
        batch,
        seq,
        dtype,
        training.recipe(),
        source_digest("autotune.models.train_step"),
    ]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]
