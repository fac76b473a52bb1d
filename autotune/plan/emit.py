"""A plan in another codebase's own words: MaxText flags, Levanter YAML, EasyLM flags, AXLearn and Flax code.

What a codebase has no word for is said in a comment when the run is right without it, and refused when it is not.
Device order is theirs: each of them lays its mesh out itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from autotune.meshes.layout import Layout
from autotune.partition import RULES
from autotune.plan.plan import Plan


def emit(plan: Plan, codebase: str) -> str:
    """The plan as text for that codebase; ValueError when it is unknown or cannot run such a layout."""
    if codebase not in CODEBASES:
        raise ValueError(f"emit: {codebase!r} is not known; known: {', '.join(CODEBASES)}")
    return CODEBASES[codebase](plan)


def maxtext(plan: Plan) -> str:
    """Command-line overrides of MaxText's configs/base.yml: ici_* inside a slice, dcn_* between slices."""
    layout, inner, outer = plan.layout, inner_axes(plan.layout), plan.layout.dcn_axes
    names = {"data": "data", "stage": "pipeline", "fsdp": "fsdp", "context": "context", "tensor": "tensor",
             "expert": "expert"}  # fmt: skip
    flags: dict[str, object] = {f"ici_{name}_parallelism": inner[axis] for axis, name in names.items()}
    flags |= {f"dcn_{name}_parallelism": outer[axis] for axis, name in names.items()}
    flags["per_device_batch_size"] = _short(plan.sequences / (layout.devices * layout.accumulate))
    flags["max_target_length"] = plan.seq
    flags["gradient_accumulation_steps"] = layout.accumulate
    policies = {"minimal": "minimal", "attention": "save_dot_with_context_except_mlp", "none": "none", "full": "full"}
    flags["remat_policy"] = policies.get(layout.remat, "custom")
    if layout.remat == "offload":
        flags["decoder_layer_input"] = "offload"
    if layout.remat == "dots":
        saved = ("context", "query_proj", "key_proj", "value_proj", "out_proj", "mlpwi", "mlpwi_0", "mlpwi_1", "mlpwo")
        flags |= {name: "device" for name in saved}
    if layout.offload == "optimizer":
        flags["optimizer_memory_host_offload"] = True
    if layout.stage > 1:
        flags["num_pipeline_microbatches"] = layout.microbatches
    notes = [*_about(plan), *_unsaid(layout, "zero", "sequence_parallel", "schedule")]
    if layout.stage > 1:
        notes.append(f"set num_layers_per_pipeline_stage to the layers / {layout.stage * layout.virtual_stages}")
    lines = [f"{name}={value}" for name, value in flags.items()]
    return _comments(notes) + " \\\n  ".join(["python3 -m MaxText.train MaxText/configs/base.yml", *lines]) + "\n"


def levanter(plan: Plan) -> str:
    """The `trainer` section of a Levanter config: MeshConfig's axes, dcn_axes and mappings."""
    layout, inner, outer = plan.layout, inner_axes(plan.layout), plan.layout.dcn_axes
    _refuse(layout, "Levanter", "stage")
    names = {"data": "replica", "fsdp": "data", "tensor": "model", "context": "context", "expert": "expert"}
    axes = {
        name: inner[axis] for axis, name in names.items() if inner[axis] > 1 or name in ("replica", "data", "model")
    }
    between = {"replica_dcn": outer["data"]}
    between |= {
        f"{names[axis]}_dcn": outer[axis] for axis in ("fsdp", "tensor", "context", "expert") if outer[axis] > 1
    }

    def physical(*ours: str) -> list[str]:
        own = [names[axis] for axis in ours]
        return [f"{name}_dcn" for name in own if f"{name}_dcn" in between] + [name for name in own if name in axes]

    mesh: dict[str, dict[str, Any]] = {
        "axes": axes,
        "dcn_axes": between,
        "compute_mapping": {"batch": physical("data", "fsdp", "expert")},
        "param_mapping": {"embed": physical("fsdp")},
        "shared_mapping": {name: physical("tensor") for name in ("mlp", "heads", "kv_head", "vocab")},
    }
    if layout.context > 1:
        mesh["compute_mapping"]["position"] = physical("context")
    if layout.expert > 1:
        mesh["shared_mapping"]["experts"] = physical("expert")
    checkpointing = {"none": "false", "full": "true", "offload": '"offload"'}.get(layout.remat, "true")
    lines = ["trainer:", f"  train_batch_size: {plan.sequences}"]
    # Examples one data shard takes at a time; what is left of the batch is accumulated.
    shards = layout.batch_shards
    lines.append(f"  per_device_parallelism: {_short(plan.sequences / (shards * layout.accumulate))}")
    lines.append("  mesh:")
    for key, value in mesh.items():
        lines.append(f"    {key}:")
        lines += [f"      {name}: {json.dumps(part)}" for name, part in value.items()]
    lines += ["model:", f"  gradient_checkpointing: {checkpointing}"]
    notes = [*_about(plan), *_unsaid(layout, "zero", "sequence_parallel", "offload")]
    if layout.remat not in ("none", "full", "offload"):
        notes.append(f"remat={layout.remat} has no word here; whole layers are recomputed")
    return _comments(notes) + "\n".join(lines) + "\n"


def easylm(plan: Plan) -> str:
    """Flags of EasyLM's llama_train: one flat mesh of dp, fsdp, mp."""
    layout = plan.layout
    _refuse(layout, "EasyLM", "stage", "context", "expert")
    policies = {"none": "everything_saveable", "dots": "checkpoint_dots", "full": "nothing_saveable",
                "minimal": "checkpoint_dots_with_no_batch_dims"}  # fmt: skip
    remat = policies.get(layout.remat, "nothing_saveable")
    flags = {
        "mesh_dim": f"dp:{layout.data},fsdp:{layout.fsdp},mp:{layout.tensor}",
        "llama.remat_block": remat,
        "llama.remat_mlp": remat,
        "llama.remat_attention": remat,
        "train_dataset.json_dataset.batch_size": plan.sequences // layout.accumulate,
        "train_dataset.json_dataset.seq_length": plan.seq,
        "optimizer.accumulate_gradient_steps": layout.accumulate,
    }
    notes = [*_about(plan), *_unsaid(layout, "zero", "offload")]
    if layout.dcn:
        notes.append("EasyLM has no axes between slices; dp is its outermost axis, so put dcn factors on data")
    if layout.remat not in policies:
        notes.append(f"remat={layout.remat} has no word here; nothing_saveable recomputes more")
    lines = [f"--{name}='{value}'" for name, value in flags.items()]
    return _comments(notes) + " \\\n  ".join(["python3 -m EasyLM.models.llama.llama_train", *lines]) + "\n"


def axlearn(plan: Plan) -> str:
    """Code that sets an AXLearn SpmdTrainer config's mesh."""
    layout, inner, outer = plan.layout, inner_axes(plan.layout), plan.layout.dcn_axes
    names = {
        "pipeline": "stage",
        "data": "data",
        "expert": "expert",
        "fsdp": "fsdp",
        "seq": "context",
        "model": "tensor",
    }

    def call(sizes: dict[str, int]) -> str:
        words = ", ".join(f"{name}={sizes[axis]}" for name, axis in names.items() if sizes[axis] > 1)
        return f"mesh_shape_from_axes({words})"

    code = ["from axlearn.common.utils import HybridMeshShape", "from axlearn.experiments.text.gpt.common import "
            "MESH_AXIS_NAMES, mesh_shape_from_axes", "", "cfg.mesh_axis_names = MESH_AXIS_NAMES"]  # fmt: skip
    if layout.dcn:
        code.append(f"cfg.mesh_shape = HybridMeshShape(ici_mesh_shape={call(inner)}, dcn_mesh_shape={call(outer)})")
    else:
        code.append(f"cfg.mesh_shape = {call(inner)}")
    code.append('cfg.batch_axis_names = ("data", "expert", "fsdp")')
    if layout.accumulate > 1:
        code += [
            "from axlearn.common.gradient_accumulation import with_minibatch_steps",
            "from axlearn.common.config import config_for_function",
            f"cfg.learner.forward_fn_transformation = config_for_function(with_minibatch_steps).set("
            f"steps={layout.accumulate}, metric_accumulator=MetricAccumulator.default_config())",
        ]
        code.insert(2, "from axlearn.common.metrics import MetricAccumulator")
    unsaid = _unsaid(layout, "zero", "remat", "schedule", "microbatches", "sequence_parallel", "offload")
    notes = [*_about(plan), f"global batch {plan.sequences} sequences of {plan.seq} tokens", *unsaid]
    return _comments(notes) + "\n".join(code) + "\n"


def flax(plan: Plan) -> str:
    """Python for a Flax codebase (Linen or NNX): the mesh and the logical axis rules."""
    layout = plan.layout
    partition = plan.partition
    own = dict(partition.mesh_names) if partition else {}
    used = [axis for axis in layout.order if layout.axes[axis] > 1] or ["data"]
    shape = tuple(layout.axes[axis] for axis in used)
    names = tuple(own.get(axis, axis) for axis in used)
    rules = dict(partition.rules if partition else RULES) | dict(layout.rules)
    kept = {name: tuple(own.get(axis, axis) for axis in axes if axis in used) for name, axes in rules.items()}
    kind = "Explicit" if partition and partition.explicit else "Auto"
    order = [plan.device_order[index] for index in range(plan.devices)]
    code = [
        "import jax",
        "import numpy as np",
        "from jax.sharding import AxisType, Mesh",
        "",
        f"DEVICE_ORDER = {order}"
        if order != list(range(plan.devices))
        else f"DEVICE_ORDER = list(range({plan.devices}))",
        "devices = np.array(jax.devices(), dtype=object)[DEVICE_ORDER]",
        f"mesh = Mesh(devices.reshape({shape!r}), {names!r}, axis_types=(AxisType.{kind},) * {len(names)})",
        "",
        "# with jax.set_mesh(mesh), flax.linen.logical_axis_rules(LOGICAL_AXIS_RULES): ...",
        "LOGICAL_AXIS_RULES = (",
        *(f"    ({name!r}, {_rule(axes)!r})," for name, axes in kept.items()),
        ")",
    ]
    words = ("zero", "remat", "accumulate", "microbatches", "schedule", "offload")
    return _comments([*_about(plan), *_unsaid(layout, *words)]) + "\n".join(code) + "\n"


CODEBASES: dict[str, Callable[[Plan], str]] = {
    "maxtext": maxtext,
    "levanter": levanter,
    "easylm": easylm,
    "axlearn": axlearn,
    "flax": flax,
}


def inner_axes(layout: Layout) -> dict[str, int]:
    """The factor of every mesh axis that stays inside a slice or NVLink domain."""
    return {name: size // layout.dcn_axes[name] for name, size in layout.axes.items()}


def _rule(axes: tuple[str, ...]) -> str | tuple[str, ...] | None:
    return axes[0] if len(axes) == 1 else axes or None


def _refuse(layout: Layout, codebase: str, *words: str) -> None:
    for word in words:
        if getattr(layout, word) > 1:
            raise ValueError(f"emit: {codebase} has no {word} axis; this plan has {word}={getattr(layout, word)}")


def _about(plan: Plan) -> list[str]:
    seconds = plan.figures.step_seconds
    expected = f", {seconds:.4g} s a step expected" if seconds else ""
    return [f"{plan.workload} on {plan.target}: {plan.layout}{expected}"]


def _unsaid(layout: Layout, *words: str) -> list[str]:
    """What of the layout this codebase is not told."""
    plain = Layout()
    return [
        f"not expressed: {word}={getattr(layout, word)}"
        for word in words
        if getattr(layout, word) != getattr(plain, word)
    ]


def _comments(notes: list[str]) -> str:
    return "".join(f"# {note}\n" for note in notes)


def _short(value: float) -> str:
    """A whole number without its point."""
    return str(int(value)) if value == int(value) else repr(value)
