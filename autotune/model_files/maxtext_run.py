"""The run that a MaxText config describes: its job and its layout, in the words of our flags and layouts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from autotune.meshes.dtypes import dtype_of
from autotune.meshes.fields import did_you_mean, short
from autotune.meshes.layout import Layout
from autotune.meshes.placement import default_dcn
from autotune.meshes.remat_sets import MAXTEXT_ARRAYS, MAXTEXT_PLACES, MAXTEXT_POLICIES, REMAT_ARRAYS, text_of
from autotune.meshes.target import Target
from autotune.meshes.training import MOST_DOCUMENTS
from autotune.model_files.keys import Keys

MESH_AXES = {"data": "data", "fsdp": "fsdp", "fsdp_transpose": "fsdp", "tensor": "tensor", "tensor_sequence": "tensor",
             "context": "context", "expert": "expert", "pipeline": "stage"}  # fmt: skip
"""MaxText's `ici_*_parallelism` and `dcn_*_parallelism` -> mesh axis."""

OTHER_AXES = ("diloco", "sequence", "context_usp_ulysses", "context_autoregressive", "autoregressive")
"""Axes of MaxText's mesh that a layout here does not have."""

_QKV = ("query_proj", "key_proj", "value_proj")
_ALL = (*_QKV, "out_proj", "mlpwi_0", "mlpwi_1", "mlpwo")
SETS: dict[str, tuple[str, tuple[str, ...]]] = {
    "save_dot_except_mlpwi": ("device", (*_QKV, "out_proj", "mlpwo")),
    "save_dot_except_mlp": ("device", (*_QKV, "out_proj")),
    "save_qkv_proj": ("device", _QKV),
    "save_out_proj": ("device", ("out_proj",)),
    "qkv_proj_offloaded": ("host", _QKV),
    "minimal_offloaded": ("host", _ALL),
}
"""`remat_policy` -> where it keeps which arrays, by MaxText's keys."""

SAME_ARRAYS = {"moe_mlpwi_0": "mlpwi_0", "moe_mlpwi_1": "mlpwi_1", "moe_mlpwo": "mlpwo", "mlpwi": "mlpwi_1"}
"""Keys of the same arrays in layers with experts, and in an MLP without a gate."""

FUSED = ("qkv_proj", "kv_proj")
"""Keys of fused matmuls, which say nothing where they are not used."""

OPTIMIZERS = {"adamw": "adamw", "adam_pax": "adamw", "sgd": "sgd", "muon": "muon"}
"""`opt_type` -> optimizer of the job."""


QUANTISATIONS = {"int8": "int8", "fp8": "float8", "fp8_full": "float8", "fp8_gpu": "float8", "aqt_fp8_full": "float8"}
"""`quantization` that quantises both operands of every matmul, in both passes -> `matmul_dtype` of the job. (AQT and
Qwix may have a scale of each row, or of each shard; ours has one of each array.)"""


def run_of(keys: Keys, *, gated: bool, experts: bool) -> dict[str, Any]:
    """What the file says of the job and its layout, under the words of our flags; `ici` and `dcn` are sizes by axis.

    `gated`, `experts`: what the model's layers have. ValueError in one line names what is none of MaxText's values.
    """
    where = keys.where
    run: dict[str, Any] = {}
    for ours, theirs in (("seq", "max_target_length"), ("accumulate", "gradient_accumulation_steps")):
        if keys.values.get(theirs) is not None:
            run[ours] = keys.whole(theirs)
    rows = keys.take("per_device_batch_size", None)
    if rows is not None:
        if not isinstance(rows, int | float) or isinstance(rows, bool) or not 0 < rows < 2**31:
            raise ValueError(f"{where}: per_device_batch_size={short(rows)} must be a number above 0")
        run["per_device_batch"] = rows
    for ours, theirs in (("dtype", "dtype"), ("weights_dtype", "weight_dtype"), ("moments_dtype", "mu_dtype"),
                         ("gradients_dtype", "grad_dtype")):  # fmt: skip
        value = keys.take(theirs, None)
        if value in (None, ""):
            continue
        try:
            run[ours] = dtype_of(value) if isinstance(value, str) else dtype_of(short(value))
        except ValueError as error:
            raise ValueError(f"{where}: {theirs}: {error}") from None
    if "weights_dtype" in run:
        run.setdefault("moments_dtype", run["weights_dtype"])  # mu_dtype "inherits from weight_dtype if unset"
    optimizer = keys.take("opt_type", None)
    if optimizer is not None:
        if not isinstance(optimizer, str) or optimizer not in OPTIMIZERS:
            close = did_you_mean(str(optimizer), OPTIMIZERS)
            raise ValueError(f"{where}: opt_type={short(optimizer)} must be one of {', '.join(OPTIMIZERS)}{close}")
        run["optimizer"] = OPTIMIZERS[optimizer]
    if keys.values.get("quantization") in tuple(QUANTISATIONS):
        run["matmul_dtype"] = QUANTISATIONS[keys.take("quantization")]
    run |= _packing(keys)
    if not keys.flag("scan_layers", True):
        run["scan_layers"] = False
    if keys.take("gradient_clipping_threshold", None) == 0:
        keys.note("gradient_clipping_threshold", "0: the price reads the gradients once more, for their norm")
    run |= _mesh(keys)
    run |= _remat(keys, gated=gated, experts=experts)
    run |= _pipeline(keys)
    if keys.take("shard_optimizer_over_data", False):
        run["zero"] = 1
    if keys.take("optimizer_memory_host_offload", False):
        run["offload"] = "optimizer"
    strategy = keys.take("context_parallel_strategy", None)
    if strategy is not None:
        if strategy in ("all_gather", "ring"):
            run["context_attention"] = {"all_gather": "gather", "ring": "ring"}[strategy]
        elif _size(run, "context") != 1:
            keys.note("context_parallel_strategy", f"{short(strategy)} is priced as all_gather")
    if keys.values.get("num_vocab_tiling") is not None and (tiles := keys.whole("num_vocab_tiling")) > 1:
        run["vocab_tiles"] = tiles
        keys.note(
            "num_vocab_tiling",
            f"{tiles} pieces of the tokens are priced as vocab_tiles={tiles}, tiles of the vocabulary: the logits in "
            "memory are as many",
        )
    rate = keys.take("dropout_rate", 0) or 0
    if rate and keys.take("enable_dropout", True):
        keys.note("dropout_rate", f"{short(rate)}: random bits and a mask for each activation")
    keys.used.add("enable_dropout")
    return run


def _packing(keys: Keys) -> dict[str, Any]:
    """The documents of a sequence, where a file says their number and its data is real.

    Without `max_segments_per_seq` (base.yml: -1) `packing` (base.yml: true) is of the data alone: the kernel for TPUs
    is given segment ids either way, and that for GPUs (cudnn_flash_te) refuses to run. Synthetic data is never packed
    (layers/attention_op.py, configs/types.py of August 2026).
    """
    said = {name: value for name, value in keys.values.items() if value is not None}
    packed, most = said.get("packing", True), said.get("max_segments_per_seq", -1)
    if not isinstance(packed, bool):
        raise ValueError(f"{keys.where}: packing={short(packed)} must be true or false")
    if not isinstance(most, int) or isinstance(most, bool) or not -1 <= most <= MOST_DOCUMENTS:
        raise ValueError(f"{keys.where}: max_segments_per_seq={short(most)} must be a whole number, or -1")
    if not packed or most < 2 or keys.values.get("dataset_type") == "synthetic":
        return {}
    keys.used |= {"packing", "max_segments_per_seq"}
    for key, value in (("context_parallel_strategy", "ring"), ("attention_type", "chunk"), ("decoder_block", "llama4")):
        if keys.values.get(key) == value:
            keys.note("packing", f"documents in sequences with {key}={value} are priced as whole sequences")
            return {}
    keys.note(
        "max_segments_per_seq",
        f"{most}: a kernel for packed documents on GPUs computes each document alone, the price has all scores",
    )
    return {"packing": most}


def _size(run: Mapping[str, Any], axis: str) -> int:
    return math.prod(run.get(tier, {}).get(axis, 1) for tier in ("ici", "dcn"))


def _mesh(keys: Keys) -> dict[str, Any]:
    """Sizes of the mesh axes inside a slice and between slices; -1: what is left."""
    found: dict[str, Any] = {}
    for tier in ("ici", "dcn"):
        for theirs, axis in MESH_AXES.items():
            name = f"{tier}_{theirs}_parallelism"
            value = keys.take(name, None)
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value == 0 or not -1 <= value < 2**31:
                raise ValueError(f"{keys.where}: {name}={short(value)} must be a whole number above 0, or -1")
            sizes = found.setdefault(tier, {})
            before = sizes.get(axis, 1)
            sizes[axis] = -1 if -1 in (value, before) else value * before
            if theirs == "tensor_sequence" and value != 1:
                found["sequence_parallel"] = True
            if theirs == "fsdp_transpose" and value != 1:
                keys.note(
                    name,
                    f"{short(value)} is read as fsdp: cut along a second dimension of the weights, compiled steps took "
                    "1 to 13 % longer",
                )
            if theirs in ("context", "expert") and value != 1:
                keys.note(name, f"MaxText cuts weights along {theirs} too, where a layout here keeps them whole")
        for theirs in OTHER_AXES:
            value = keys.take(f"{tier}_{theirs}_parallelism", 1)
            if value != 1:
                keys.note(f"{tier}_{theirs}_parallelism", f"{short(value)}: a mesh axis that no layout here has")
    return found


def _remat(keys: Keys, *, gated: bool, experts: bool) -> dict[str, str]:
    """The remat word of a layout, of a policy by name or of `custom` with a place for each array."""
    policy = keys.take("remat_policy", None)
    told = {name: keys.take(name, None) for name in (*MAXTEXT_ARRAYS, *SAME_ARRAYS, *FUSED)}
    if policy is None:
        return {}
    if not isinstance(policy, str):
        raise ValueError(f"{keys.where}: remat_policy={short(policy)} must be a text")
    if policy in MAXTEXT_POLICIES:
        return {"remat": MAXTEXT_POLICIES[policy]}
    if policy in SETS:
        place, names = SETS[policy]
        places = dict.fromkeys(names, place)
    elif policy == "custom":
        places = {}
        for name, value in told.items():
            if value is None:
                continue
            if not isinstance(value, str) or value not in MAXTEXT_PLACES:
                raise ValueError(f"{keys.where}: {name}={short(value)} must be one of {', '.join(MAXTEXT_PLACES)}")
            places[name] = MAXTEXT_PLACES[value]
        for name in ("query_wa_proj", "kv_wa_proj", "mla_q", "mla_kv", "attention_out", "indexer_cutoff_threshold"):
            if keys.values.get(name) not in (None, "remat"):
                keys.note(name, f"{short(keys.values[name])}: an array that no layout here can keep; it is recomputed")
    else:
        keys.note("remat_policy", f"{short(policy)} is no policy of a layout here; say it with --layout")
        return {}
    ours: dict[str, str] = {}
    for name, place in places.items():
        if name.startswith("moe_") and not experts or name == "mlpwi" and gated or name in FUSED:
            continue
        array = MAXTEXT_ARRAYS[SAME_ARRAYS.get(name, name)]
        if REMAT_ARRAYS[array].needs == "gate" and not gated:
            continue
        if place != "recompute":
            ours[array] = place
    return {"remat": text_of(ours)}


def _pipeline(keys: Keys) -> dict[str, int]:
    """Microbatches, and what decides the virtual stages."""
    found = {}
    for ours, theirs in (("microbatches", "num_pipeline_microbatches"), ("repeats", "num_pipeline_repeats"),
                         ("layers_per_stage", "num_layers_per_pipeline_stage")):  # fmt: skip
        if keys.values.get(theirs) is None:
            continue
        value = keys.whole(theirs, least=-1)
        if value > 0:
            found[ours] = value
    return found


def devices_batch(run: Mapping[str, Any], target: Target, where: str) -> int | None:
    """Sequences of one step over all devices; None where the file says no batch."""
    if "per_device_batch" not in run:
        return None
    exact = run["per_device_batch"] * target.devices * run.get("accumulate", 1)
    if int(exact) != exact or exact < 1:
        raise ValueError(
            f"{where}: per_device_batch_size={run['per_device_batch']} on {target.devices} devices is {exact:g} "
            "sequences a step; it must be a whole number"
        )
    return int(exact)


def layout_of_run(run: Mapping[str, Any], layers: int, target: Target, where: str) -> Layout:
    """The layout that a file's mesh, remat and pipeline keys say on a target; -1 takes the devices that are left.

    ValueError in one line where the mesh is not that of the target.
    """
    groups = target.groups
    inner = _filled(run.get("ici", {}), target.devices // groups, "ici", target, where)
    outer = _filled(run.get("dcn", {}), groups, "dcn", target, where)
    sizes: dict[str, Any] = {axis: inner.get(axis, 1) * outer.get(axis, 1) for axis in {*inner, *outer}}
    words: dict[str, Any] = {
        name: run[name]
        for name in ("remat", "accumulate", "zero", "offload", "sequence_parallel", "vocab_tiles")
        if name in run
    }
    if sizes.get("context", 1) > 1 and "context_attention" in run:
        words["context_attention"] = run["context_attention"]
    if words.get("zero") and sizes.get("fsdp", 1) > 1:
        del words["zero"]
    stages = sizes.get("stage", 1)
    if stages > 1:
        repeats = run.get("repeats") or max(layers // (stages * run.get("layers_per_stage", 1)), 1)
        words |= {"microbatches": run.get("microbatches", stages), "virtual_stages": repeats,
                  "schedule": "circular" if repeats > 1 else "gpipe"}  # fmt: skip
    dcn = tuple((axis, size) for axis, size in outer.items() if size > 1)
    return default_dcn(Layout(**sizes, dcn=dcn, **words), target)


def _filled(sizes: Mapping[str, int], devices: int, tier: str, target: Target, where: str) -> dict[str, int]:
    """Sizes with the -1 replaced by what is left of so many devices."""
    known = math.prod(size for size in sizes.values() if size > 0)
    left = [axis for axis, size in sizes.items() if size == -1]
    what = "a slice" if tier == "ici" else "between slices"
    if len(left) > 1:
        raise ValueError(f"{where}: two of its {tier}_*_parallelism are -1; one may be")
    if not left and tier == "dcn" and known == 1:
        return {}  # nothing said between slices: where an axis crosses them is the target's matter
    if devices % known or (not left and known != devices):
        raise ValueError(
            f"{where}: its {tier}_*_parallelism multiply to {known}, {target.name} has {devices} devices in {what}"
            if tier == "ici"
            else f"{where}: its dcn_*_parallelism multiply to {known}, {target.name} has {devices} slices"
        )
    return {axis: devices // known if size == -1 else size for axis, size in sizes.items()}
