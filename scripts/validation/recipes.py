"""Published runs with their whole recipe (`jax_recipes.json`): mesh, remat, optimizer, options, as a Case.

What our reference step cannot express is collected, so that a skipped row says everything that is missing.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from autotune.meshes.layout import Layout
from autotune.meshes.placement import default_dcn
from autotune.meshes.remat_sets import MAXTEXT_ARRAYS, MAXTEXT_PLACES, MAXTEXT_POLICIES, text_of
from autotune.meshes.target import Target, parse_target, with_memory_fraction
from autotune.meshes.training import Training, matmul_dtype_problem, training_of
from autotune.meshes.transformer import TransformerShape
from autotune.meshes.xla_options import NAME
from autotune.model_files.maxtext import read_maxtext
from autotune.model_files.maxtext_run import QUANTISATIONS
from autotune.model_files.shape import shape_of

AXES = {
    "data": "data", "fsdp": "fsdp", "tensor": "tensor", "pipeline": "stage", "expert": "expert", "context": "context",
}  # fmt: skip
"""MaxText's axis -> ours."""

DECODERS = ("llama2", "mistral", "mixtral", None)
"""`decoder_block` of the models that our reference decoder is; None where a row names none."""

MLPS = {("silu", "linear"): "swiglu-3mat", ("nn.silu", "linear"): "swiglu-3mat", ("gelu",): "gelu-2mat"}

CHIP_CONFIG = "2a886c8_chip_config_name"
"""The option that names libtpu's description of the chip: a field of the topology, and no compiler option."""

PROFILE = "xla_gpu_pgle_profile_file_or_directory_path"
"""The option that names a profile of an earlier run, which nobody published."""

YML_KEYS = {
    "layers": "base_num_decoder_layers", "d_model": "base_emb_dim", "heads": "base_num_query_heads",
    "kv_heads": "base_num_kv_heads", "head_dim": "head_dim", "d_ff": "base_mlp_dim", "vocab": "vocab_size",
    "moe_d_ff": "base_moe_mlp_dim", "experts": "num_experts", "experts_per_token": "num_experts_per_tok",
    "decoder_block": "decoder_block", "use_qk_norm": "use_qk_norm", "sliding_window_size": "sliding_window_size",
    "capacity_factor": "capacity_factor", "tied_embeddings": "logits_via_embedding",
}  # fmt: skip
"""Key of a row's model -> MaxText's key, of models that are read by their yml."""

OPTIMIZERS = {"adamw": "adamw", "adam_pax": "adamw"}
"""How the type of a row's optimizer begins -> ours."""

SAME_ARRAY = ("qkv_proj", "mlpwi")
"""Other names of arrays that are listed by themselves too."""

READ = frozenset({
    "env", "shard_mode", "num_vocab_tiling", "micro_batches_per_step", "gradient_accumulation_steps", "two_pass_pgle",
    "micro_batch_sequences", "use_iota_embed",
})  # fmt: skip
"""Fields of a row's `other` that become words of its layout or machine; `two_pass_pgle` is among its options too, and
`micro_batch_sequences` follows from the batch. `use_iota_embed` makes the embedding a matmul of one-hot tokens with the
table, which is said."""

NO_COST: Mapping[str, tuple[object, ...]] = {
    "enable_dropout": (False,),
    "use_multimodal": (False,),
    "logits_dot_in_fp32": (False,),
    "shard_exp_on_fsdp": (False,),
    "allow_split_physical_axes": (True,),
    "capacity_factor": (1.25,),
    "trainer": ("MaxText training engine",),
    "logical_axis_rules": ("set by model yml (see model.yml)",),
    "stack": ("RepeatedTransformerLayer (scan)",),
}
"""Field of `other` -> the values with which it is as in our step. `capacity_factor` stands in the row's model as
well."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a row says, in our words.

    `seconds_from`: the field that `seconds` is, or is worked out from. `differs`: where our step is not quite theirs.
    """

    transformer: TransformerShape
    batch: int
    seq: int
    dtype: str
    layout: Layout
    target: Target
    seconds: float | None
    seconds_from: str | None
    differs: tuple[str, ...]
    training: Training


def is_recipe(row: Mapping[str, Any]) -> bool:
    """Whether a row has this format."""
    return "chip" in row and "mesh" in row


def read_recipe(row: Mapping[str, Any]) -> Recipe:
    """The run that a row describes. ValueError lists what cannot be expressed; KeyError names a missing field."""
    missing: list[str] = []
    target = _target(row)
    notes: list[str] = []
    transformer = _transformer(row["model"], int(row["seq"]), missing, notes)
    layout = _layout(row, missing)
    dtype = str(row["dtype"]).split(" ")[0]
    if dtype not in target.hardware.flops_per_second:
        missing.append(f"dtype {dtype} on {target.hardware.name}")
    training = _training(row, missing)
    if problem := matmul_dtype_problem(training, target.hardware):
        missing.append(f"quantization {_quantisation(row)}: {problem}")
    if missing:
        raise ValueError("it cannot be expressed: " + "; ".join(missing))
    assert transformer is not None and layout is not None
    if target.devices != layout.devices:
        raise ValueError(f"its mesh has {layout.devices} devices, its chips {target.devices}: not fully given")
    batch, seq = int(row["batch_sequences"]), int(row["seq"])
    seconds, source = _seconds(row["measured"], transformer, batch, seq, target)
    return Recipe(
        transformer=transformer,
        batch=batch,
        seq=seq,
        dtype=dtype,
        layout=default_dcn(layout, target),
        target=target,
        seconds=seconds,
        seconds_from=source,
        differs=(*_differs(row), *notes),
        training=training,
    )


def _target(row: Mapping[str, Any]) -> Target:
    """The chips of a row, told only the options that its run was told, with the memory that it gave JAX."""
    slices = int(row.get("slices") or 1)
    name = str(row["chip"])
    target = parse_target(name if slices == 1 or "h100" in name else f"{name}*{slices}")
    fields = dict(target.hardware.compile_fields)
    if config := _options(row).get(CHIP_CONFIG):
        fields["chip_config_name"] = config
    hardware = dataclasses.replace(target.hardware, compiler_options={}, compile_fields=fields)
    share = ((row.get("other") or {}).get("env") or {}).get("XLA_PYTHON_CLIENT_MEM_FRACTION")
    return with_memory_fraction(dataclasses.replace(target, hardware=hardware), None if share is None else float(share))


def _options(row: Mapping[str, Any]) -> dict[str, str]:
    """XLA option -> value of a row's run; a text where they are only described gives none."""
    options = row.get("xla_flags") or {}
    return {} if isinstance(options, str) else {name: str(value) for name, value in options.items()}


def _differs(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Where our step is not quite theirs."""
    found = []
    other = row.get("other") or {}
    if int(other.get("num_vocab_tiling") or 1) > 1:
        found.append("its loss is computed in tiles of the tokens, ours in as many tiles of the vocabulary")
    if other.get("use_iota_embed", False) is not False:
        found.append("its embedding is a matmul with one-hot tokens, ours looks its rows up")
    found += [
        f"not read: {name}={value}"
        for name, value in other.items()
        if name not in READ and value not in NO_COST.get(name, ())
    ]
    if "fixed" in str(row.get("quantization")):
        found.append("the scales of its 8-bit matmuls are fixed, ours are found in each step")
    if PROFILE in _options(row):
        found.append("its schedule was guided by a profile of an earlier run, ours is not")
    return tuple(found)


def _transformer(model: Mapping[str, Any], seq: int, missing: list[str], notes: list[str]) -> TransformerShape | None:
    """The shape of a row's model: by its own yml where our reference decoder lacks something of it, priced then."""
    block = model.get("decoder_block")
    mlp = MLPS.get(tuple(model["mlp"]))
    ours = block in DECODERS and mlp and not any(model.get(name) for name in ("use_qk_norm", "sliding_window_size"))
    dropless = bool(model.get("experts")) and float(model.get("capacity_factor", -1)) <= 0
    if not ours or dropless:
        return _of_yml(model, seq, missing, notes)
    return TransformerShape(
        name=str(model["name"]),
        layers=int(model["layers"]),
        d_model=int(model["d_model"]),
        heads=int(model["heads"]),
        kv_heads=int(model["kv_heads"]),
        head_dim=int(model["head_dim"]),
        d_ff=int(model.get("moe_d_ff") or model["d_ff"]) if model.get("experts") else int(model["d_ff"]),
        vocab=int(model["vocab"]),
        mlp=str(mlp),
        experts=int(model.get("experts") or 0),
        experts_per_token=int(model.get("experts_per_token") or 0),
        capacity_factor=float(model.get("capacity_factor") or 1.25),
        tied_embeddings=bool(model["tied_embeddings"]),
    )


def _of_yml(model: Mapping[str, Any], seq: int, missing: list[str], notes: list[str]) -> TransformerShape | None:
    """The shape that the MaxText yml of a row describes, with the row's own sizes in front; what of it no price has is
    noted."""
    keys = {theirs: model[ours] for ours, theirs in YML_KEYS.items() if model.get(ours) is not None}
    try:
        read = read_maxtext({**dict(model.get("yml") or {}), **keys}, "", str(model["name"]))
        notes += [f"not modelled: {note}" for note in read.not_modelled]
        return shape_of(read, seq)
    except ValueError as error:
        missing.append(f"the model's {str(error).lstrip(': ')}")
        return None


def _layout(row: Mapping[str, Any], missing: list[str]) -> Layout | None:
    sizes = dict.fromkeys(AXES.values(), 1)
    dcn: dict[str, int] = {}
    problems = []
    for name, value in row["mesh"].items():
        match = re.fullmatch(r"(ici|dcn)_(\w+)_parallelism", name)
        if match is None or value == 1:
            continue
        axis = AXES.get(match[2])
        if axis is None:
            problems.append(f"the mesh axis {match[2]}")
            continue
        sizes[axis] *= int(value)
        if match[1] == "dcn":
            dcn[axis] = int(value)
    remat = _remat(row["remat"], problems)
    if isinstance(row.get("xla_flags"), str):
        problems.append(f"options that are only described ({row['xla_flags'].split(',')[0]})")
    options = {name: value for name, value in _options(row).items() if name not in (CHIP_CONFIG, PROFILE)}
    problems += [
        f"the option {name}={value}"
        for name, value in options.items()
        if not NAME.fullmatch(name) or set(value) & set(", \t\n")
    ]
    missing += problems
    if problems or remat is None:
        return None
    other = row.get("other") or {}
    passes = max(
        int(told or 1)
        for told in (
            row["optimizer"].get("gradient_accumulation_steps"),
            other.get("gradient_accumulation_steps"),
            other.get("micro_batches_per_step"),
        )
    )
    return Layout(
        **sizes,
        dcn=tuple(dcn.items()),
        remat=remat,
        accumulate=passes,
        reduce="step" if passes > 1 and "deferred" in str(other.get("shard_mode")) else "pass",
        vocab_tiles=int(other.get("num_vocab_tiling") or 1),
        compiler_options=tuple(sorted(options.items())),
    )


def _remat(told: Mapping[str, Any], problems: list[str]) -> str | None:
    """Our text for a row's policy, or for the arrays that it keeps or offloads one by one."""
    policy = str(told["policy"])
    if policy in MAXTEXT_POLICIES:
        return MAXTEXT_POLICIES[policy]
    arrays = told.get("tensors")
    if arrays is None and isinstance(told.get("expands_to"), Mapping):  # a scan keeps what its body takes
        arrays = {"decoder_layer_input": "device", **told["expands_to"]}
    if arrays is None:
        problems.append(f"the remat policy {policy}")
        return None
    places = {name: place for name, place in arrays.items() if place != "remat" and name not in SAME_ARRAY}
    strange = [
        f"{name} {place}" for name, place in places.items() if name not in MAXTEXT_ARRAYS or place not in MAXTEXT_PLACES
    ]
    if strange:
        problems.append(f"remat array by array ({', '.join(strange)})")
        return None
    return text_of({MAXTEXT_ARRAYS[name]: MAXTEXT_PLACES[place] for name, place in places.items()})


def _training(row: Mapping[str, Any], missing: list[str]) -> Training:
    """The optimizer and dtypes of a row; moments have the weights' dtype where it says none."""
    told = row["optimizer"]
    kind = str(told["type"]).split(" ")[0]
    name = next((ours for theirs, ours in OPTIMIZERS.items() if kind.startswith(theirs)), kind)
    words: dict[str, Any] = {"optimizer": name, "weights_dtype": str(row["weight_dtype"]).split(" ")[0]}
    words["moments_dtype"] = words["weights_dtype"]
    for field, moment in (("moments_dtype", "mu_dtype"), ("gradients_dtype", "grad_dtype")):
        value = str(told.get(moment, "unset")).split(" ")[0]
        if value != "unset":
            words[field] = value
    if quantisation := _quantisation(row):
        if quantisation in QUANTISATIONS:
            words["matmul_dtype"] = QUANTISATIONS[quantisation]
        else:
            missing.append(f"quantization {quantisation}")
    words["scan_layers"] = row.get("scan_layers", True)
    missing += [f"the optimizer's {name}" for name in ("optimizer_memory_host_offload",) if told.get(name)]
    try:
        return training_of(words)
    except ValueError as error:
        missing.append(f"the optimizer: {error}")
        return Training()


def _quantisation(row: Mapping[str, Any]) -> str:
    """MaxText's word for how a row's matmuls are quantised; empty where they are not."""
    return str(row.get("quantization") or "").split(" ")[0]


def _seconds(
    measured: Mapping[str, Any], transformer: TransformerShape, batch: int, seq: int, target: Target
) -> tuple[float | None, str | None]:
    """Seconds of a step as measured; else from the published FLOP rate by the row's own convention.

    MaxText's count is 6 x parameters x tokens and attention, in full ("NON-causal") or its causal half; some rows give
    the rate of a chip and not of a JAX device. A rate of no stated convention gives no time.
    """
    if measured.get("step_time_s") is not None:
        return float(measured["step_time_s"]), "step_time_s"
    rate, convention = measured.get("tflops_per_device"), str(measured.get("flops_convention") or "")
    if rate is None or "MaxText" not in convention:
        return None, None
    flops = transformer.train_flops(batch, seq)
    if "causal" in convention and "non-causal" not in convention.lower():
        flops -= 6.0 * transformer.layers * transformer.heads * transformer.head_dim * seq * batch * seq
    units = target.devices / target.hardware.devices_per_chip if "per CHIP" in convention else target.devices
    return flops / (float(rate) * 1e12 * units), "tflops_per_device"
