"""Published measurements as things we can predict: model, target, layout, stack. Knows the format of the data files."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from validation import stacks
from validation.recipes import is_recipe, read_recipe

from autotune.meshes.hardware import load_hardware
from autotune.meshes.layout import Layout
from autotune.meshes.placement import default_dcn
from autotune.meshes.target import Target
from autotune.meshes.training import Training
from autotune.meshes.transformer import TransformerShape
from autotune.price.transformer.training_stack import TrainingStack, stack_of

CHIPS = {
    "a100-40gb": "a100-40", "a100-80gb": "a100-80", "a100": "a100-80", "h100": "h100", "h200": "h200",
    "gb200": "gb200", "b200": "b200", "v100-16gb": "v100-16", "v100-32gb": "v100-32", "v100": "v100-16",
    "tpu v4": "v4", "tpu v5e": "v5e", "tpu v5p": "v5p", "tpu v6e": "v6e", "tpu7x": "tpu7x",
}  # fmt: skip

DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "mixed fp16/bf16": "float16"}

UNKNOWN_VOCAB = 32000
"""Vocabulary of a row that gives none. Assumed: the usual size of SentencePiece."""

GPUS_PER_NODE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One published run of a JAX framework."""

    id: str
    """Its name in the file."""
    rank_set: str | None
    """Rows of one rank set differ in their layout only, so that their order can be compared."""
    measured_seconds: float | None
    """Seconds of a step; None where the row says nothing of it."""
    oom: bool | None
    """Whether it ran out of memory; None where the row says nothing of it."""
    transformer: TransformerShape
    batch: int
    """Sequences of a step, whole mesh."""
    seq: int
    """Tokens of a sequence."""
    dtype: str
    """Of the matmuls."""
    layout: Layout
    target: Target
    stack: TrainingStack
    """What compiled it."""
    told: Mapping[str, Any]
    """The row as it stands in the file."""
    measured_from: str | None = "step_time_s"
    """The field of the row that `measured_seconds` is, or is worked out from."""
    training: Training = Training()
    """The optimizer, and the dtypes of what it keeps."""
    differs: tuple[str, ...] = ()
    """Where the step that is predicted is not quite the one that ran."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A row that cannot be predicted, and why."""

    id: str
    rank_set: str | None
    reason: str


def read_cases(path: Path) -> list[Case | Skipped]:
    """Every entry of one file, in its order; ValueError names the file when it is not a list."""
    try:
        rows = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"cases {path}: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"cases {path}: not JSON: {error}") from None
    if not isinstance(rows, list):
        raise ValueError(f"cases {path}: must hold a JSON list of objects")
    return [_read(row, f"row-{number}") for number, row in enumerate(rows, start=1)]


def _read(row: Any, unnamed: str) -> Case | Skipped:
    if not isinstance(row, dict):
        return Skipped(id=unnamed, rank_set=None, reason="it is no object")
    row = {"id": unnamed, **row}
    try:
        return _recipe_case(row) if is_recipe(row) else _case(row)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        return Skipped(id=str(row["id"]), rank_set=_rank_set(row), reason=reason)


def _rank_set(row: dict) -> str | None:
    return None if row.get("rank_set") is None else str(row["rank_set"])


def _sections(row: dict) -> None:
    """ValueError where a part of a row is no object; those that may be left out are filled in, empty."""
    for name in ("layout", "model", "hardware", "batch"):
        if not isinstance(row[name], dict):
            raise ValueError(f"{name} is no object")
    for name in ("measured", "derived", "source"):
        row[name] = {} if row.get(name) is None else row[name]
        if not isinstance(row[name], dict):
            raise ValueError(f"{name} is no object")


def _case(row: dict) -> Case:
    _sections(row)
    told, model = row["layout"], row["model"]
    alpa = _is_alpa(row)
    seq = int(model["seq"])
    transformer = _transformer(model)
    sequences, tokens = row["batch"].get("sequences"), row["batch"].get("tokens")
    batch = round(tokens / seq) if sequences is None and tokens else _count(sequences)
    devices = _count(row["devices"])
    layout = _layout(told, batch, devices)
    if layout.devices != devices:
        raise ValueError(f"its axes multiply to {layout.devices}, it ran on {devices} devices: layout not fully given")
    target = _target(row, layout, devices)
    layout = default_dcn(layout, target)
    hardware = target.hardware
    precision = str(row.get("precision") or "fp16")
    dtype = next((DTYPES[name] for name in DTYPES if name in precision), None)
    if dtype is None:
        raise ValueError(f"precision {precision!r} is not one of {', '.join(DTYPES)}")
    seconds, seconds_from = _seconds(row, transformer, batch, seq, devices, hardware.peak(dtype))
    if seconds is not None and not 0 < seconds < math.inf:
        raise ValueError(f"measured {seconds} s")
    if row.get("scope") == "single layer":
        raise ValueError("it measures a single layer, not a step")
    return Case(
        id=str(row["id"]),
        rank_set=_rank_set(row),
        measured_seconds=seconds,
        oom=_out_of_memory(row["measured"]),
        transformer=transformer,
        batch=batch,
        seq=seq,
        dtype=dtype,
        layout=layout,
        target=target,
        stack=stacks.ALPA if alpa else stack_of(hardware, dtype),
        told=row,
        measured_from=seconds_from,
    )


def _recipe_case(row: dict) -> Case:
    found = read_recipe(row)
    return Case(
        id=str(row["id"]),
        rank_set=_rank_set(row),
        measured_seconds=found.seconds,
        oom=_out_of_memory(row["measured"]),
        transformer=found.transformer,
        batch=found.batch,
        seq=found.seq,
        dtype=found.dtype,
        layout=found.layout,
        target=found.target,
        stack=stack_of(found.target.hardware, found.dtype, found.training),
        training=found.training,
        told=row,
        measured_from=found.seconds_from,
        differs=found.differs,
    )


def _transformer(model: dict) -> TransformerShape:
    """The model of a row; what is not said: as many key heads as heads, width of a head, GELU, `UNKNOWN_VOCAB`."""
    model = {name: value for name, value in model.items() if value is not None}
    heads = int(model["heads"])
    return TransformerShape(
        name=str(model.get("name", "published")),
        layers=int(model["layers"]),
        d_model=int(model["d_model"]),
        heads=heads,
        kv_heads=int(model.get("kv_heads") or heads),
        head_dim=int(model.get("head_dim") or model["d_model"] // max(heads, 1)),
        d_ff=int(model["d_ff"]),
        vocab=int(model.get("vocab") or UNKNOWN_VOCAB),
        mlp=str(model.get("mlp") or "gelu-2mat"),
        experts=int(model.get("experts") or 0),
        experts_per_token=int(model.get("experts_per_token") or 0),
        # GPT ties its tables; the LLaMA shapes do not
        tied_embeddings=str(model.get("mlp") or "gelu-2mat") == "gelu-2mat",
    )


def _layout(told: dict, batch: int, devices: int) -> Layout:
    """The layout of a row."""
    axes = {
        "data": _count(told.get("dp")),
        "fsdp": _count(told.get("fsdp")),
        "tensor": _count(told.get("tp")),
        "stage": _count(told.get("pp")),
        "context": _count(told.get("cp")),
        "expert": _count(told.get("ep")),
    }
    if told.get("dp") is None and devices % math.prod(axes.values()) == 0:
        axes["data"] = devices // math.prod(axes.values())
    zero = _zero(told)
    if zero == 3 and axes["fsdp"] == 1:
        axes["fsdp"], axes["data"] = axes["data"], 1
    shards = axes["data"] * axes["fsdp"] * axes["expert"]
    each = told.get("microbatch")
    each = None if each is None else float(each)
    if each is not None and not each > 0:
        raise ValueError(f"microbatch {each:g} must be above 0")
    if told.get("per_device_batch"):
        each = told["per_device_batch"] * devices / shards
    method = str(told.get("method", ""))
    if method.startswith("parax") or each is None:
        # Alpa's microbatch is the whole mesh's
        passes = max(1, round(batch / each)) if each else 1
    else:
        passes = _count(told.get("num_microbatches") or max(1, round(batch / (shards * each))))
    staged = axes["stage"] > 1
    virtual = _count(told.get("vpp") or told.get("virtual_stages") or 1) if staged else 1
    schedule = _schedule(str(told.get("schedule") or ""), virtual) if staged else None
    recompute = str(told.get("recompute") or "none").lower()
    if "selective" in recompute:
        raise ValueError(f"recompute {recompute!r} is no policy of a Layout")
    remat = next((name for name in ("minimal", "full", "none") if name in recompute), None)
    if remat is None:
        remat = "none" if recompute.startswith(("no", "false")) else "full"
    return Layout(
        **axes,
        dcn=(("data", axes["data"]),) if told.get("dp_axis") == "DCN" else (),
        zero=min(zero, 2),
        remat=remat,
        accumulate=1 if staged else passes,
        microbatches=passes if staged else 1,
        schedule=schedule,
        virtual_stages=virtual,
        sequence_parallel=bool(told.get("sequence_parallel", told.get("dp_axis") == "DCN")),
    )


def _count(value: Any) -> int:
    """A count as files write it: 8, "8", "8 (INFERRED)"; 1 where nothing is said."""
    if value is None:
        return 1
    found = re.match(r"\d+", str(value))
    if isinstance(value, bool) or found is None or (isinstance(value, float) and value % 1) or int(found[0]) < 1:
        raise ValueError(f"{value!r} is no count above 0")
    return int(found[0])


def _zero(told: dict) -> int:
    """The ZeRO stage, 0 to 3, of what a row calls `zero`."""
    text = str(told.get("zero") or 0).lower()
    if "distributed" in text:
        return 1
    found = re.search(r"[0-3]", text)
    return int(found[0]) if found else int(text == "true")


def _out_of_memory(measured: dict) -> bool | None:
    """Whether it ran out of memory: as said, else by the words of its status."""
    if measured.get("oom") is not None:
        return bool(measured["oom"])
    status = str(measured.get("status") or "").lower()
    return True if "oom" in status or "out of memory" in status else None


def _schedule(text: str, virtual: int) -> str:
    """The Layout's word for a schedule as papers write it; ValueError for one that nothing here prices."""
    name = text.lower()
    if name.startswith(("zb", "zero", "v-", "v_")):
        return "zero-bubble"
    if name == "gpipe":
        return "gpipe"
    if name and not name.startswith(("1f1b", "interleaved", "circular", "pipedream", "none")):
        raise ValueError(f"schedule {text!r} is not priced")
    return "circular" if virtual > 1 else "1f1b"


def _target(row: dict, layout: Layout, devices: int) -> Target:
    """The machine: DGX-like nodes of 8 GPUs on one NVLink switch each, or the slices that the row names."""
    told = row["hardware"]
    name = str(told["name"]).lower()
    gigabytes = re.search(r"\d+(?= ?gi?b)", name)
    family = next((key for key in ("a100", "v100") if key in name), None)
    if gigabytes and family:
        # "A100-SXM4-40GB" as well as "A100-40GB"
        name = f"{family}-{gigabytes[0]}gb"
    chip = next((CHIPS[key] for key in sorted(CHIPS, key=len, reverse=True) if key in name), None)
    if chip is None:
        raise ValueError(f"hardware {told['name']!r} has no hardware file")
    hardware = load_hardware(chip)
    if hardware.platform == "cuda":
        inner = min(devices, 72 if chip == "gb200" else GPUS_PER_NODE)
        if devices % inner:
            raise ValueError(f"{devices} GPUs are no whole number of nodes of {inner}")
        nodes = devices // inner
        return Target(name=f"{chip}:{nodes}x{inner}", hardware=hardware, shape=(inner,), groups=nodes, attached=False)
    groups = layout.dcn_axes["data"]
    chips = devices // groups // hardware.devices_per_chip
    shape = re.match(r"[\dx]+", str(told.get("topology", "")))
    sizes = tuple(int(size) for size in shape[0].split("x")) if shape else _torus(chips, hardware.torus_dimensions)
    if math.prod(sizes) != chips:
        sizes = _torus(chips, hardware.torus_dimensions)
    text = "x".join(str(size) for size in sizes)
    return Target(name=f"{chip}:{text}*{groups}", hardware=hardware, shape=sizes, groups=groups, attached=False)


def _torus(chips: int, dimensions: int) -> tuple[int, ...]:
    """The most cubic power-of-two shape of a slice, smallest first."""
    sizes = [1] * dimensions
    while math.prod(sizes) < chips:
        sizes[sizes.index(min(sizes))] *= 2
    if math.prod(sizes) != chips:
        raise ValueError(f"a slice of {chips} chips has no shape that is known")
    return tuple(sorted(sizes))


def _is_alpa(row: dict) -> bool:
    """Whether Alpa ran the row; ValueError where no JAX framework did: the price models what XLA compiles."""
    words = " ".join(str(value) for value in row["source"].values()).lower()
    method = str(row["layout"].get("method", "")).lower()
    if method.startswith("parax") or re.search(r"\balpa\b", words):
        return True
    if "tpu" in str(row["hardware"]["name"]).lower() or re.search(r"\b(maxtext|jax)\b", words):
        return False
    title = row["source"].get("title") or "its source names none"
    raise ValueError(f"not known to be a run of a JAX framework ({title}): only what XLA compiles is priced")


def _seconds(
    row: dict, transformer: TransformerShape, batch: int, seq: int, devices: int, peak: float
) -> tuple[float | None, str | None]:
    """Seconds of a step, as measured, and the field they are from; a rate of FLOPs where the row gives only that."""
    measured = row["measured"]
    if measured.get("latency_ms") is not None:
        return measured["latency_ms"] / 1e3, "latency_ms"
    for name, place in (("step_time_s", measured), ("derived step_time_s", row["derived"])):
        if place.get("step_time_s") is not None:
            return float(place["step_time_s"]), name
    if measured.get("tflops_per_device") is not None:
        rate = measured["tflops_per_device"] * 1e12
        return transformer.train_flops(batch, seq) / (rate * devices), "tflops_per_device"
    if measured.get("mfu") is not None:
        return transformer.train_flops(batch, seq) / (measured["mfu"] * peak * devices), "mfu"
    return None, None
