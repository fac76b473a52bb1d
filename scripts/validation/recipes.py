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
from autotune.meshes.remat_sets import REMAT_ARRAYS, text_of
from autotune.meshes.target import Target, parse_target, with_memory_fraction
from autotune.meshes.transformer import TransformerShape
from autotune.meshes.xla_options import NAME

AXES = {
    "data": "data", "fsdp": "fsdp", "tensor": "tensor", "pipeline": "stage", "expert": "expert", "context": "context",
}  # fmt: skip
"""MaxText's axis -> ours."""

DECODERS = ("llama2", "mistral", "mixtral", None)
"""`decoder_block` of the models that our reference decoder is; None where a row names none."""

MLPS = {("silu", "linear"): "swiglu-3mat", ("nn.silu", "linear"): "swiglu-3mat", ("gelu",): "gelu-2mat"}

POLICIES = {
    "full": "full",
    "none": "none",
    "minimal": "minimal",
    "minimal_flash": "dots",
    "minimal_with_context": "dots",
    "save_dot_with_context_except_mlp": "attention",
}
"""MaxText's remat policy -> ours (`autotune/models/remat.py`)."""

ARRAYS = {array.maxtext: name for name, array in REMAT_ARRAYS.items() if array.maxtext}
"""MaxText's key -> our array."""

PLACES = {"device": "device", "offload": "host", "remat": "recompute"}

CHIP_CONFIG = "2a886c8_chip_config_name"
"""The option that names libtpu's description of the chip: a field of the topology, and no compiler option."""

PROFILE = "xla_gpu_pgle_profile_file_or_directory_path"
"""The option that names a profile of an earlier run, which nobody published."""

SAME_ARRAY = ("qkv_proj", "mlpwi")
"""Other names of arrays that are listed by themselves too."""


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


def is_recipe(row: Mapping[str, Any]) -> bool:
    """Whether a row has this format."""
    return "chip" in row and "mesh" in row


def read_recipe(row: Mapping[str, Any]) -> Recipe:
    """The run that a row describes. ValueError lists what cannot be expressed; KeyError names a missing field."""
    missing: list[str] = []
    target = _target(row)
    transformer = _transformer(row["model"], missing)
    layout = _layout(row, missing)
    dtype = str(row["dtype"]).split(" ")[0]
    if dtype not in target.hardware.flops_per_second:
        missing.append(f"dtype {dtype} on {target.hardware.name}")
    if not str(row["weight_dtype"]).startswith("float32"):
        missing.append(f"weights in {row['weight_dtype']}")
    if row.get("quantization"):
        missing.append(f"quantization {str(row['quantization']).split(' ')[0]}")
    _optimizer(row["optimizer"], missing)
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
        differs=_differs(row),
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
    found = ["its layers are not scanned, ours are"] if row.get("scan_layers") is False else []
    if PROFILE in _options(row):
        found.append("its schedule was guided by a profile of an earlier run, ours is not")
    return tuple(found)


def _transformer(model: Mapping[str, Any], missing: list[str]) -> TransformerShape | None:
    block = model.get("decoder_block")
    mlp = MLPS.get(tuple(model["mlp"]))
    problems = []
    if block not in DECODERS:
        problems.append(f"the model's decoder_block {block}")
    if mlp is None:
        problems.append(f"the model's mlp {'+'.join(model['mlp'])}")
    problems += [f"the model's {name}" for name in ("use_qk_norm", "sliding_window_size") if model.get(name)]
    if model.get("experts") and float(model.get("capacity_factor", -1)) <= 0:
        problems.append("experts that drop no token")
    missing += problems
    if problems:
        return None
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
    return Layout(
        **sizes,
        dcn=tuple(dcn.items()),
        remat=remat,
        accumulate=int(row["optimizer"].get("gradient_accumulation_steps") or 1),
        compiler_options=tuple(sorted(options.items())),
    )


def _remat(told: Mapping[str, Any], problems: list[str]) -> str | None:
    """Our text for a row's policy, or for the arrays that it keeps or offloads one by one."""
    policy = str(told["policy"])
    if policy in POLICIES:
        return POLICIES[policy]
    arrays = told.get("tensors")
    if arrays is None and isinstance(told.get("expands_to"), Mapping):  # a scan keeps what its body takes
        arrays = {"decoder_layer_input": "device", **told["expands_to"]}
    if arrays is None:
        problems.append(f"the remat policy {policy}")
        return None
    places = {name: place for name, place in arrays.items() if place != "remat" and name not in SAME_ARRAY}
    strange = [f"{name} {place}" for name, place in places.items() if name not in ARRAYS or place not in PLACES]
    if strange:
        problems.append(f"remat array by array ({', '.join(strange)})")
        return None
    return text_of({ARRAYS[name]: PLACES[place] for name, place in places.items()})


def _optimizer(told: Mapping[str, Any], missing: list[str]) -> None:
    kind = str(told["type"]).split(" ")[0]
    if not kind.startswith("adamw"):
        missing.append(f"the optimizer {kind}")
    for moment in ("mu_dtype", "nu_dtype", "grad_dtype"):
        value = str(told.get(moment, "unset"))
        if not value.startswith(("unset", "float32")):
            missing.append(f"the optimizer's {moment} {value}")
    missing += [f"the optimizer's {name}" for name in ("optimizer_memory_host_offload",) if told.get(name)]


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
