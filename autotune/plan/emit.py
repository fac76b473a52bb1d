"""A plan in another codebase's own words: MaxText flags, Levanter YAML, EasyLM flags, AXLearn and Flax code.

What a codebase has no word for is said in a comment when the run is right without it, and refused when it is not.
Device order is theirs: each of them lays its mesh out itself. MaxText and EasyLM are told what makes that order best on
the torus of a TPU, and the comment says what is lost beside the plan's (`autotune.plan.their_mesh`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from autotune.meshes.compiler_options import as_variable
from autotune.meshes.fields import did_you_mean, one_line, short
from autotune.meshes.layout import REMAT, Layout
from autotune.meshes.lora import Lora
from autotune.meshes.remat_sets import MAXTEXT_PLACES, MAXTEXT_POLICIES, REMAT_ARRAYS, places_of
from autotune.meshes.training import Training, training_of
from autotune.meshes.transformer import DROPLESS
from autotune.model_files.read_model import CAPACITY
from autotune.models.presets import PRESETS
from autotune.partition import LOGICAL_AXIS_RULES
from autotune.plan.plan import Plan
from autotune.plan.their_mesh import best_of, easylm_meshes, maxtext_meshes

THEIR_PLACES = {ours: theirs for theirs, ours in MAXTEXT_PLACES.items()}
THEIR_POLICIES = {ours: theirs for theirs, ours in reversed(MAXTEXT_POLICIES.items())}
"""Our words -> MaxText's."""


def _maxtext_experts(plan: Plan) -> dict[str, object]:
    """MaxText's words for the room of an expert: sorted tokens without dropping, or slots.

    Of a preset, whose room is known here, and where `--set capacity_factor` said it; a model file of MaxText says it
    itself. Nothing for models without experts.
    """
    settings = [line.partition("=") for line in str(plan.recipe.get("set", "")).splitlines()]
    told = [value for key, _, value in settings if key.strip() == CAPACITY]
    preset = PRESETS.get(str(plan.recipe.get("model")))
    if told:
        room: str | float | None = told[-1].strip()
    elif preset is not None and preset.experts:
        room = preset.capacity_factor
    else:
        return {}
    if room not in (None, DROPLESS):
        return {"sparse_matmul": False, "megablox": False, "capacity_factor": float(room)}
    ring = {"use_ring_of_experts": True} if plan.layout.expert > 1 else {}
    return {"sparse_matmul": True, "megablox": True, "capacity_factor": -1.0, **ring}


def _maxtext_remat(remat: str) -> dict[str, object]:
    """MaxText's words for a set: the name of a policy, or `custom` and a key for each array that is saved or offloaded.

    Arrays without a key are recomputed there, as they are here. `mlpwi` is what the only first matmul of an MLP
    without a gate is called; MaxText reads it beside `mlpwi_1`. `qkv_proj` is query, key and value from one matmul
    (`fused_qkv`), so it is said where all three are at one place.
    """
    if remat in THEIR_POLICIES:
        return {"remat_policy": THEIR_POLICIES[remat]}
    flags: dict[str, object] = {"remat_policy": "custom"}
    for name, place in places_of(remat).items():
        key = REMAT_ARRAYS[name].maxtext
        default = "device" if name == "layer_input" else "recompute"
        if key is not None and place != default:
            flags[key] = THEIR_PLACES[place]
            if name == "mlp_up":
                flags["mlpwi"] = THEIR_PLACES[place]
    projections = {flags.get(key) for key in ("query_proj", "key_proj", "value_proj")}
    if len(projections) == 1 and None not in projections:
        flags["qkv_proj"] = projections.pop()
    return flags


def emit(plan: Plan, codebase: str) -> str:
    """The plan as text for that codebase; ValueError when it is unknown or cannot run such a layout."""
    if codebase not in CODEBASES:
        close = did_you_mean(codebase, CODEBASES)
        raise ValueError(f"emit: {short(codebase)} is not known; known: {', '.join(CODEBASES)}{close}")
    return CODEBASES[codebase](plan)


def maxtext(plan: Plan) -> str:
    """Command-line overrides of MaxText's configs/base.yml: ici_* inside a slice, dcn_* between slices.

    Its axis `tensor_sequence` cuts norms along the sequence as our sequence parallelism does, `tensor` along the width.
    """
    layout, inner, outer = plan.layout, inner_axes(plan.layout), plan.layout.dcn_axes
    if layout.stage > 1 and layout.microbatches % layout.stage:
        raise ValueError(
            f"emit: MaxText wants microbatches to be a multiple of the stages; this plan has "
            f"microbatches={layout.microbatches}, stage={layout.stage}"
        )
    tensor = "tensor_sequence" if layout.sequence_parallel else "tensor"
    names = {"data": "data", "stage": "pipeline", "fsdp": "fsdp", "context": "context", "tensor": tensor,
             "expert": "expert"}  # fmt: skip
    flags: dict[str, object] = {f"ici_{name}_parallelism": inner[axis] for axis, name in names.items()}
    lost: list[str] = []
    if plan.machine().platform == "tpu":
        # The order of base.yml, mesh_axes: data, stage, fsdp, context, tensor, expert.
        axes = ("data", "stage", "fsdp", "context", "tensor", "expert")
        mesh, lost = best_of(plan, maxtext_meshes(plan, axes, inner))
        flags |= mesh.words
    flags |= {f"dcn_{name}_parallelism": outer[axis] for axis, name in names.items()}
    flags["per_device_batch_size"] = _short(plan.sequences / (layout.devices * layout.accumulate))
    flags["max_target_length"] = plan.seq
    flags["gradient_accumulation_steps"] = layout.accumulate
    flags |= _maxtext_remat(layout.remat)
    flags |= _maxtext_experts(plan)
    if layout.zero and layout.fsdp == 1:
        flags["shard_optimizer_over_data"] = True
    if layout.offload == "optimizer":
        flags["optimizer_memory_host_offload"] = True
    notes = []
    if layout.vocab_tiles > 1:
        flags["num_vocab_tiling"] = layout.vocab_tiles
        notes.append(
            "num_vocab_tiling cuts the tokens of the loss, vocab_tiles the vocabulary: the logits in memory are as many"
        )
    if layout.context > 1:
        flags["context_parallel_strategy"] = {"gather": "all_gather", "ring": "ring"}[layout.context_attention]
        if layout.context_attention == "ring" and plan.machine().platform == "tpu":
            flags |= {"attention": "flash", "use_tokamax_splash": True}  # its only ring there
    expressed = ["dcn", "zero", "remat", "accumulate", "sequence_parallel", "context_attention", "vocab_tiles",
                 "offload"]  # fmt: skip
    if "save:" in layout.remat or "offload:" in layout.remat:
        # MaxText has no key for the tokens of experts.
        unsaid = [name for name, place in places_of(layout.remat).items()
                  if place != "recompute" and REMAT_ARRAYS[name].maxtext is None]  # fmt: skip
        notes += [f"{name} has no key in MaxText's remat_policy=custom: it is recomputed there" for name in unsaid]
    if layout.zero and layout.fsdp > 1:
        notes.append(
            f"not expressed: zero={layout.zero}: MaxText refuses it beside fsdp, so what it would shard over data "
            "stays whole there: more memory than this plan"
        )
    elif layout.zero == 2:
        notes.append("zero=2 is said as zero=1: MaxText shards the optimizer's state over data, gradients stay whole")
    if layout.stage > 1:
        flags["num_pipeline_microbatches"] = layout.microbatches
        expressed += ["microbatches", "virtual_stages"]
        expressed += ["schedule"] if layout.schedule in ("gpipe", "circular") else []
        notes.append(f"set num_layers_per_pipeline_stage to the layers / {layout.stage * layout.virtual_stages}")
    along = [axis for axis in ("context", "expert") if layout.axes[axis] > 1]
    if along:
        notes.append(f"MaxText cuts weights along {' and '.join(along)} too, where this plan keeps them whole")
    packing = _training_of(plan).packing
    if packing:
        flags |= {"packing": True, "max_segments_per_seq": packing}
        expressed.append("packing")
    if not _training_of(plan).scan_layers:
        flags["scan_layers"] = False
    expressed.append("scan_layers")
    notes = [*_about(plan), *notes, *_unsaid(plan, *expressed), *(f"another device order: {line}" for line in lost)]
    trainer = "pre_train.train"
    lora = _lora_of(plan)
    if lora is not None:
        trainer = "post_train.sft.train_sft"
        flags |= {"lora.enable_lora": True, "lora.lora_rank": lora.rank, "lora.lora_alpha": lora.rank}
        if lora.quantised:
            flags["lora.lora_weight_qtype"] = lora.base_dtype
        notes.append(
            "adapters alone are trained: MaxText does so in its SFT trainer; say the matrices "
            f"({','.join(lora.targets)}) in lora.lora_module_path; older versions write these keys without lora."
        )
    lines = [f"{name}={escaped(value, in_quotes=True)}" for name, value in flags.items()]
    head = f"python3 -m maxtext.trainers.{trainer} maxtext/configs/base.yml"
    return _comments(notes) + " \\\n  ".join([head, *lines]) + "\n"


def levanter(plan: Plan) -> str:
    """The `trainer` and `model` sections of a Levanter config: MeshConfig's axes, dcn_axes and mappings.

    Tensor axes stand in both mappings: versions differ in whether parameters take over `shared_mapping`.
    """
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

    both = {name: physical("tensor") for name in ("mlp", "heads", "kv_head", "vocab")}
    if layout.expert > 1:
        both["experts"] = physical("expert")
    compute = {"batch": physical("data", "fsdp", "expert")} | both
    if layout.context > 1:
        compute |= {"position": physical("context"), "key_position": physical("context")}
    mesh: dict[str, dict[str, Any]] = {
        "axes": axes,
        "dcn_axes": between,
        "shared_mapping": {},
        "compute_mapping": compute,
        "param_mapping": {"embed": physical("fsdp")} | both,
    }
    checkpointing = {"none": "false", "offload": '"offload"'}.get(layout.remat, "true")
    lines = ["trainer:", f"  train_batch_size: {plan.sequences}"]
    # Examples one data shard takes at a time; what is left of the batch is accumulated.
    shards = layout.batch_shards
    lines.append(f"  per_device_parallelism: {_short(plan.sequences / (shards * layout.accumulate))}")
    lines.append("  mesh:")
    for key, value in mesh.items():
        lines.append(f"    {key}:" if value else f"    {key}: {{}}")
        lines += [f"      {name}: {json.dumps(part)}" for name, part in value.items()]
    lines += ["model:", f"  gradient_checkpointing: {checkpointing}"]
    notes = _unsaid(plan, "dcn", "remat", "accumulate")
    if layout.remat not in ("none", "full", "offload"):
        notes.append(f"remat={layout.remat} has no word here; whole layers are recomputed: less memory, more time")
    lora = _lora_of(plan)
    if lora is not None:
        notes.append(
            f"adapters alone are trained: of levanter.main.lora_lm, with lora.r: {lora.rank}, lora.alpha: {lora.rank} "
            f"and lora.target_modules for {','.join(lora.targets)}; its base has the dtype of the trainer's parameters"
        )
    return _comments([*_about(plan), *notes]) + "\n".join(lines) + "\n"


def easylm(plan: Plan) -> str:
    """Flags of EasyLM's llama_train: one flat mesh of dp, fsdp, mp."""
    layout = plan.layout
    _refuse(layout, "EasyLM", "stage", "context", "expert")
    policies = {"none": "", "dots": "checkpoint_dots_with_no_batch_dims",
                "minimal": "checkpoint_dots_with_no_batch_dims"}  # fmt: skip
    words: Mapping[str, str] = {"mesh_dim": f"dp:{layout.data},fsdp:{layout.fsdp},mp:{layout.tensor}"}
    lost: list[str] = []
    if plan.machine().platform == "tpu":
        mesh, lost = best_of(plan, easylm_meshes(plan, {"data": "dp", "fsdp": "fsdp", "tensor": "mp"}))
        words = mesh.words
    flags = {
        **words,
        # Of the block alone: a policy on its MLP and attention too would run them a third time.
        "llama.remat_block": policies.get(layout.remat, "nothing_saveable"),
        "llama.remat_mlp": "",
        "llama.remat_attention": "",
        "train_dataset.json_dataset.batch_size": plan.sequences // layout.accumulate,
        "train_dataset.json_dataset.seq_length": plan.seq,
        "optimizer.accumulate_gradient_steps": layout.accumulate,
    }
    notes = _unsaid(plan, "remat", "accumulate")
    if _lora_of(plan) is not None:
        notes.append(
            "adapters alone are trained in this plan: EasyLM has no LoRA, this command would train all weights"
        )
    if layout.dcn:
        notes.append("EasyLM has one flat mesh; its outermost axis is the one that crosses slices")
    notes += [f"another device order: {line}" for line in lost]
    if layout.accumulate > 1:
        notes.append(f"EasyLM counts every pass as a step: {layout.accumulate} of its steps are one of this plan")
    if layout.remat == "dots":
        notes.append("remat=dots is said as minimal: the attention kernel runs again")
    if layout.remat in ("attention", "offload") or layout.remat not in REMAT:
        notes.append(f"remat={layout.remat} has no word here; nothing_saveable recomputes more")
    # `words` are this tool's own, and their "!" is for EasyLM to read.
    lines = [
        f"--{name}='{value if name in words else escaped(value, in_quotes=True)}'" for name, value in flags.items()
    ]
    head = "python3 -m EasyLM.models.llama.llama_train"
    return _comments([*_about(plan), *notes]) + " \\\n  ".join([head, *lines]) + "\n"


def axlearn(plan: Plan) -> str:
    """Code that sets an AXLearn SpmdTrainer config's mesh, rematerialisation and gradient accumulation."""
    layout, inner, outer = plan.layout, inner_axes(plan.layout), plan.layout.dcn_axes
    names = {"pipeline": "stage", "data": "data", "expert": "expert", "fsdp": "fsdp", "seq": "context",
             "model": "tensor"}  # fmt: skip

    def call(sizes: dict[str, int]) -> str:
        words = ", ".join(f"{name}={sizes[axis]}" for name, axis in names.items() if sizes[axis] > 1)
        return f"mesh_shape_from_axes({words})"

    imports = ["from axlearn.experiments.text.gpt.common import MESH_AXIS_NAMES, mesh_shape_from_axes"]
    code = ["cfg.mesh_axis_names = MESH_AXIS_NAMES"]
    if layout.dcn:
        imports.append("from axlearn.common.utils import HybridMeshShape")
        code.append(f"cfg.mesh_shape = HybridMeshShape(ici_mesh_shape={call(inner)}, dcn_mesh_shape={call(outer)})")
    else:
        code.append(f"cfg.mesh_shape = {call(inner)}")
    code.append('cfg.batch_axis_names = ("data", "expert", "fsdp")')
    code.append("cfg.mesh_rules = None  # they would replace the shape by one for the instance type")
    notes = [f"global batch {plan.sequences} sequences of {plan.seq} tokens"]
    if layout.remat == "none":
        code.append("cfg.model.decoder.transformer.layer.remat_spec = None")
    else:
        policies = dict.fromkeys(("dots", "minimal"), "dots_with_no_batch_dims_saveable")
        policy = policies.get(layout.remat, "nothing_saveable")
        imports += ["from axlearn.common.base_layer import RematSpec", "from jax import checkpoint_policies"]
        code.append(
            "cfg.model.decoder.transformer.layer.remat_spec = RematSpec("
            f"prevent_cse=False, policy=checkpoint_policies.{policy})"
        )
        if layout.remat not in ("minimal", "full"):
            notes.append(f"remat={layout.remat} is said as {policy}, which recomputes more")
    if layout.accumulate > 1:
        imports.append("from axlearn.common.trainer_config_modifier import GradientAccumulationModifier")
        code.append(
            f"cfg = GradientAccumulationModifier.default_config().set(grad_acc_steps={layout.accumulate})"
            ".instantiate()(cfg)"
        )
    along = [name for name in ("expert", "seq") if layout.axes[names[name]] > 1]
    if along:
        notes.append(f"AXLearn's GPT configs cut weights along {' and '.join(along)} too, where this plan does not")
    if layout.stage > 1:
        notes.append(
            f"the transformer stack must be a PipelinedTransformerLayer of {layout.stage} stages with "
            f"{layout.microbatches} microbatches"
        )
    lora = _lora_of(plan)
    if lora is not None:
        notes.append(
            f"adapters alone are trained, of rank {lora.rank} on {','.join(lora.targets)}: put them there with "
            "axlearn.common.lora and freeze all other parameters (learner update_types); this code does neither"
        )
    notes = [*_about(plan), *notes, *_unsaid(plan, "dcn", "remat", "accumulate", "microbatches")]
    return _comments(notes) + "\n".join([*sorted(imports), "", *code]) + "\n"


def flax(plan: Plan) -> str:
    """Python for a Flax codebase (Linen or NNX): the mesh and the logical axis rules."""
    layout = plan.layout
    partition = plan.partition
    used = [axis for axis in layout.order if layout.axes[axis] > 1] or ["data"]
    sizes = {axis: layout.axes[axis] for axis in used}
    if partition:
        # The step may name an axis of size 1, so the mesh has that axis too.
        named = [axis for axis in partition.mesh_names if partition.mesh_names[axis] != f"{axis}_"]
        named += [*partition.extra_axes.values(), *(partition.axes() if partition.explicit else ())]
        sizes = partition.own_shape(sizes)
        sizes |= {own: 1 for axis in named for own in partition.own_axes(axis) if own not in sizes}
        sizes |= {own: 1 for own in partition.only_axes if own not in sizes}
        rules = partition.meanings(layout)
        kept = {
            name: tuple(partition.own_name(axis) for axis in axes if partition.kind(axis) in used)
            for name, axes in rules.items()
        }
    else:
        rules = dict(LOGICAL_AXIS_RULES) | dict(layout.rules)
        kept = {name: tuple(axis for axis in axes if axis in used) for name, axes in rules.items()}
    shape, names = tuple(sizes.values()), tuple(sizes)
    kind = "Explicit" if partition and partition.explicit else "Auto"
    order = list(plan.device_order)
    counted = f"list(range({plan.devices}))" if order == list(range(plan.devices)) else str(order)
    code = [
        "import jax",
        "import numpy as np",
        "from jax.sharding import AxisType, Mesh",
        "",
        f"DEVICE_ORDER = {counted}",
        f"devices = sorted(jax.devices(), key=lambda device: {POSITIONS[plan.machine().platform]})",
        "devices = np.array(devices, dtype=object)[DEVICE_ORDER]",
        f"mesh = Mesh(devices.reshape({shape!r}), {names!r}, axis_types=(AxisType.{kind},) * {len(names)})",
        "",
        "# with jax.set_mesh(mesh), flax.linen.logical_axis_rules(LOGICAL_AXIS_RULES): ...",
        "LOGICAL_AXIS_RULES = (",
        *(f"    ({name!r}, {_rule(axes)!r})," for name, axes in kept.items()),
        ")",
    ]
    notes = [*_about(plan), *_unsaid(plan, "dcn", "order", "rule")]
    lora = _lora_of(plan)
    if lora is not None:
        notes.append(
            f"adapters alone are trained, of rank {lora.rank} on {','.join(lora.targets)}: flax.nnx.LoRA or "
            "qwix.apply_lora_to_model, with gradients and optimizer of nnx.LoRAParam only"
        )
    return _comments(notes) + "\n".join(code) + "\n"


POSITIONS = {
    "tpu": '(getattr(device, "slice_index", None) or 0, *device.coords, device.core_on_chip, device.id)',
    "cuda": '(getattr(device, "slice_index", device.process_index), device.id)',
    "cpu": "(device.process_index, device.id)",
}
"""`autotune.meshes.topology.position` in words: `jax.devices()` comes by id, plans count devices by place."""


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
    flags = as_variable(plan.layout, plan.machine().hardware)
    told = [f"set {flags}"] if flags else []
    if plan.memory_fraction is not None:
        told.append(f"set XLA_PYTHON_CLIENT_MEM_FRACTION={plan.memory_fraction:g}")
    return [f"{plan.workload} on {plan.target}: {plan.layout}{expected}", *told]


def _unsaid(plan: Plan, *expressed: str) -> list[str]:
    """What of the layout this codebase is not told: every word beyond the axes that is not among the expressed ones."""
    layout = plan.layout
    words = {word: value for word, value in layout.words().items() if word not in layout.axes}
    notes = [
        f"not expressed: {word}={value}"
        for word, value in words.items()
        if word.partition(".")[0] not in ("xla", *expressed)  # "dcn.data", "rule.mlp", "xla.<option>"
    ]
    along_sequence = plan.partition is None and layout.tensor > 1 and layout.sequence_parallel
    if along_sequence and "sequence_parallel" not in expressed:
        notes.append("not expressed: this plan cuts norms and residuals over tensor along the sequence")
    packing = _training_of(plan).packing
    if packing and "packing" not in expressed:
        notes.append(
            f"not expressed: packing={packing}: documents in a sequence are made by the input pipeline, and the "
            "attention kernel must be given their segment ids"
        )
    if not _training_of(plan).scan_layers and "scan_layers" not in expressed:
        notes.append("not expressed: scan_layers=false: each layer has a program of its own, none runs in a loop")
    return notes


def _comments(notes: list[str]) -> str:
    return "".join(f"# {escaped(note)}\n" for note in notes)


def escaped(value: object, *, in_quotes: bool = False) -> str:
    """A value of the plan as it stands in any emitted text: one line of printable characters, whatever it holds.

    `in_quotes`: as the value of a flag or inside quotes, of a shell, YAML or Python: what would end it or be run is
    escaped too.

    >>> print(escaped("name" + chr(10) + "import os"), escaped("$(rm x)'", in_quotes=True))
    name\\nimport os \\x24\\x28rm\\x20x\\x29\\x27
    """
    text = one_line(value)
    if not in_quotes:
        return text
    return "".join(sign if sign.isalnum() or sign in "_.,:+-/=@%" else f"\\x{ord(sign):02x}" for sign in text)


def _lora_of(plan: Plan) -> Lora | None:
    """The adapters that a plan of a reference model trains; None: it trains all weights."""
    return _training_of(plan).lora


def _training_of(plan: Plan) -> Training:
    """How a plan of a reference model trains; the default for a step of your own, which says it itself."""
    return training_of(plan.recipe) if "model" in plan.recipe else Training()


def _short(value: float) -> str:
    """A whole number without its point."""
    return str(int(value)) if value == int(value) else repr(value)
