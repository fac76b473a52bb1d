"""Published MaxText runs, compiled: their own step at their shape, layout, remat policy, batch and compiler flags.

    python scripts/compiled_cases.py                  the saved programs replayed: ours, published, error
    python scripts/compiled_cases.py --recompile      compile them anew (about 90 s each) and save them

What was published is TFLOP/s per device; it stands for seconds by MaxText's own count of FLOPs (`model_flops`). The
shape is that of MaxText's defaults when the runs were made (`THEN`), not those of today.

A program is saved for one and for two slices. A run on more slices has the program of two, with the transfers between
slices made as wide as the run: what one slice does is the same, and XLA writes these transfers as one operation
whatever the number of slices.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import lzma
import re
import statistics
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from validation import maxtext_step

from autotune.analysis.analyse import predict, program_of
from autotune.compile.compilation import Candidate, Compilation, compilation_from_json, to_json
from autotune.compile.compile import compile_all
from autotune.meshes.layout import Layout
from autotune.meshes.target import Target, parse_target
from autotune.meshes.transformer import TransformerShape
from autotune.program import Instruction, Loop, Program, Start
from autotune.replay.replay import Prediction
from autotune.store import Store
from autotune.workload.workload import Workload

ROOT = Path(__file__).resolve().parent.parent
CASES = ROOT / "tests" / "data" / "published" / "maxtext_tpu.json"
PROGRAMS = ROOT / "tests" / "published" / "programs"

THEN = TransformerShape(
    name="MaxText-2023-x1",
    layers=16,
    d_model=2560,
    heads=8,
    kv_heads=8,
    head_dim=256,
    d_ff=8192,
    vocab=32768,
    mlp="gelu-2mat",  # relu, without a gate
    tied_embeddings=True,  # logits_via_embedding
)
"""MaxText/configs/base.yml of autumn 2023, which the runs' scripts scale (global_parameter_scale) and do not override.

The v5e figures stand in v5e_high_performance.md beside the scripts of MaxText/configs/largest_job (pull request 252,
2023-11-08), those of v5p came with pull request 289 (2023-12-13). base.yml with the options that these scripts set
(enable_flash_attention, int8_training, gcs_metrics, use_iota_embed): abhinavgoel95/maxtext at 5d559c19460b; still so on
2023-12-11 (review of pull request 285) and when decoder_block was new (suexu1025/maxtext at 0b3ae8d4c6fb). The models'
names agree: scaled by 16, 32, 64 and 128 it has 16.3, 32.6, 64.8 and 129 billion parameters.
Not known: how many sequences a v5p device had then. The rows give the later scripts' 6 and 3 (32B and 64B), which
leave a quarter of the memory free; others of the time say 7 or 8, and 4 (v5p/32b.sh at 0d9779a57e84, experimental/).
"""

NOW = TransformerShape(
    name="MaxText default x1", layers=16, d_model=2048, heads=16, kv_heads=16, head_dim=128, d_ff=7168, vocab=32000
)
"""base.yml since spring 2024, which the rows of `CASES` tell (their seconds are inferred from the TFLOP/s by it)."""

FLAGS = {
    "v5e": (
        "xla_tpu_enable_data_parallel_all_reduce_opt",
        "xla_tpu_data_parallel_opt_different_sized_ops",
        "xla_tpu_enable_async_collective_fusion",
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather",
        "xla_tpu_enable_async_collective_fusion_multiple_steps",
        "xla_tpu_overlap_compute_collective_tc",
        "xla_enable_async_all_gather",
    ),
    "v5p": (
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather",
        "xla_enable_async_collective_permute",
        "xla_tpu_enable_ag_backward_pipelining",
        "xla_tpu_enable_data_parallel_all_reduce_opt",
        "xla_tpu_data_parallel_opt_different_sized_ops",
        "xla_tpu_enable_async_collective_fusion",
        "xla_tpu_enable_async_collective_fusion_multiple_steps",
        "xla_tpu_overlap_compute_collective_tc",
        "xla_enable_async_all_gather",
    ),
}
"""LIBTPU_INIT_ARGS that the runs' scripts turn on: AI-Hypercomputer/maxtext, MaxText/configs/{v5e/16b,v5p/32b}.sh."""

FLAGS_OFF = {"v5e": (), "v5p": ("xla_tpu_megacore_fusion_allow_ags",)}

COMPILED_SLICES = 2
"""The most slices that are compiled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledCase:
    """What a published run is to us. `slices` of `target` and `layout` are the run's own.

    `flops_per_second`: published, of one device. `told_flops`: a device's FLOPs a step at the shape that the row tells.
    """

    id: str
    transformer: TransformerShape
    sequences: int
    seq: int
    layout: Layout
    target: Target
    flops_per_second: float
    told_flops: float
    mfu: float

    @property
    def flops(self) -> float:
        """What MaxText counts for one step of one device."""
        return model_flops(self.transformer, self.sequences, self.seq) / self.layout.devices

    @property
    def step_seconds(self) -> float:
        """The published rate as seconds a step."""
        return self.flops / self.flops_per_second

    @property
    def slices(self) -> int:
        return self.target.groups

    @property
    def saved(self) -> Path:
        """Where the program of the run is kept."""
        name = self.at(min(self.slices, COMPILED_SLICES)).target.name
        shape = f"{self.transformer.name}-{name}-{self.layout.remat}-b{self.sequences // self.layout.batch_shards}"
        return PROGRAMS / f"{shape.replace(':', '-').replace('*', 'x')}.json.xz"

    def at(self, slices: int) -> CompiledCase:
        """The same run on another number of slices, its batch growing with them."""
        return dataclasses.replace(
            self,
            sequences=self.sequences // self.slices * slices,
            layout=_on_slices(self.layout, slices),
            target=parse_target(self.target.name.partition("*")[0] + (f"*{slices}" if slices > 1 else "")),
        )


def scaled(base: TransformerShape, scale: int) -> TransformerShape:
    """The shape of a `global_parameter_scale`: MaxText/pyconfig.py, get_individual_scales.

    >>> scaled(THEN, 32).d_model, scaled(THEN, 32).heads, scaled(THEN, 32).layers
    (10240, 32, 32)
    """
    layers, rest = divmod(scale.bit_length() - 1, 3)
    heads, width = 2 ** (layers + (rest > 0)), 2 ** (layers + (rest > 1))
    return dataclasses.replace(
        base,
        name=base.name.removesuffix("1") + str(scale),
        layers=base.layers * 2**layers,
        d_model=base.d_model * width,
        heads=base.heads * heads,
        kv_heads=base.kv_heads * heads,
        d_ff=base.d_ff * heads,
    )


def model_flops(shape: TransformerShape, sequences: int, seq: int) -> float:
    """MaxText/train.py, calculate_training_tflops: 6 x parameters x tokens, and attention in full."""
    tables = shape.vocab * shape.d_model * (1 if shape.tied_embeddings else 2)
    parameters = shape.layers * (shape.attention_parameters + shape.mlp_parameters + shape.d_model) + tables
    return sequences * (6.0 * parameters * seq + 12.0 * shape.heads * shape.layers * shape.head_dim * seq**2)


def read_case(told: Mapping[str, Any]) -> CompiledCase:
    """A row of tests/data/published/maxtext_tpu.json; ValueError where it is no run of a scaled default."""
    model, layout = told["model"], told["layout"]
    name = re.fullmatch(r"MaxText default x(\d+)", model["name"])
    if name is None or any(model[key] != value for key, value in _sizes(scaled(NOW, int(name[1]))).items()):
        raise ValueError(f"{model['name']}: not MaxText's default at one of its scales")
    chip = told["hardware"]["name"].removeprefix("TPU ")
    shape = told["hardware"].get("topology", "16x16").split()[0]
    flags = [(name, "true") for name in FLAGS[chip]] + [(name, "false") for name in FLAGS_OFF[chip]]
    one = Layout(
        fsdp=layout["fsdp"], tensor=layout["tp"], remat=layout["recompute"], compiler_options=tuple(sorted(flags))
    )
    slices = layout["dp"]
    return CompiledCase(
        id=told["id"],
        transformer=scaled(THEN, int(name[1])),
        sequences=told["batch"]["sequences"],
        seq=model["seq"],
        layout=_on_slices(one, slices),
        target=parse_target(f"{chip}:{shape}" + (f"*{slices}" if slices > 1 else "")),
        flops_per_second=told["measured"]["tflops_per_device"] * 1e12,
        told_flops=told["measured"]["tflops_per_device"] * 1e12 * told["derived"]["step_time_s"],
        mfu=told["measured"]["mfu"],
    )


def _sizes(shape: TransformerShape) -> dict[str, int]:
    """What a row tells of a shape."""
    keys = ("layers", "d_model", "heads", "kv_heads", "head_dim", "d_ff", "vocab")
    return {key: getattr(shape, key) for key in keys}


def read_cases(path: Path = CASES) -> list[CompiledCase]:
    """All rows of a file."""
    return [read_case(told) for told in json.loads(path.read_text())]


def _on_slices(layout: Layout, slices: int) -> Layout:
    return dataclasses.replace(layout, data=slices, dcn=(("data", slices),) if slices > 1 else ())


def load(case: CompiledCase) -> Compilation | None:
    """The saved compilation of a case; None where none is kept."""
    if not case.saved.exists():
        return None
    return compilation_from_json(json.loads(lzma.decompress(case.saved.read_bytes())))


def program_of_case(case: CompiledCase) -> Program | None:
    """The program of a case, its transfers between slices as wide as the run; None where none is kept."""
    compilation = load(case)
    if compilation is None:
        return None
    compiled = case.at(min(case.slices, COMPILED_SLICES))
    program = program_of(compilation, compiled.layout, compiled.target)
    if case.slices == compiled.slices:
        return program
    instructions = tuple(_wider(one, case.slices) for one in program.instructions)
    return dataclasses.replace(program, instructions=instructions, mesh_shape=case.layout.mesh_shape)


def _wider(instruction: Instruction, slices: int) -> Instruction:
    if isinstance(instruction, Loop):
        return dataclasses.replace(instruction, body=tuple(_wider(one, slices) for one in instruction.body))
    if isinstance(instruction, Start) and instruction.collective.crosses_groups > 1:
        collective = instruction.collective
        inside = collective.group_size // collective.crosses_groups
        wider = dataclasses.replace(collective, group_size=inside * slices, crosses_groups=slices)
        return dataclasses.replace(instruction, collective=wider)
    return instruction


def predict_case(case: CompiledCase) -> Prediction | None:
    """The saved program replayed; None where none is kept."""
    program = program_of_case(case)
    return None if program is None else predict(program, case.layout, case.target, case.target.hardware)


def workload_of(case: CompiledCase) -> Workload:
    """MaxText's step at the shape and batch of a case."""
    told = f"{case.transformer} {case.sequences} {case.seq}"
    source = Path(maxtext_step.__file__).read_bytes()
    return Workload.of(
        name=f"{case.transformer.name}, batch {case.sequences} x {case.seq} tokens",
        build=partial(maxtext_step.build_maxtext_step, case.transformer, case.sequences, case.seq),
        sequences=case.sequences,
        seq=case.seq,
        dtype="bfloat16",
        transformer=case.transformer,
        fingerprint=hashlib.sha256(told.encode() + source).hexdigest()[:32],
    )


def recompile(cases: list[CompiledCase]) -> int:
    """Compile and save the program of every case; the number that failed."""
    PROGRAMS.mkdir(parents=True, exist_ok=True)
    wanted = {case.saved: case.at(min(case.slices, COMPILED_SLICES)) for case in cases}
    failed = 0
    store = Store(Path(tempfile.gettempdir()) / "autotune-compiled-cases")
    for path, case in wanted.items():
        job = Candidate(workload=workload_of(case), layout=case.layout, target=case.target)
        [(_, outcome)] = compile_all([job], workers=1, timeout_seconds=1800, store=store)
        if not isinstance(outcome, Compilation):
            print(f"{path.name}: {outcome.reason}", file=sys.stderr)
            failed += 1
            continue
        path.write_bytes(lzma.compress(json.dumps(to_json(dataclasses.replace(outcome, log_path=""))).encode()))
        print(f"{path.name}: {outcome.compile_seconds:.0f} s", file=sys.stderr)
    return failed


def main(words: list[str]) -> int:
    """Print the table; 1 when a program is missing or did not compile."""
    cases = read_cases()
    named = [word for word in words if not word.startswith("--")]
    chosen = [case for case in cases if not named or case.id in named]
    if "--recompile" in words and recompile(chosen):
        return 1
    print(f"{'case':28}{'published s':>12}{'ours s':>9}{'low':>8}{'high':>8}{'error':>8}")
    errors = []
    for case in chosen:
        found = predict_case(case)
        if found is None:
            print(f"{case.id:28}{case.step_seconds:12.3f}  no saved program")
            continue
        errors.append(found.step_seconds / case.step_seconds - 1)
        print(
            f"{case.id:28}{case.step_seconds:12.3f}{found.step_seconds:9.3f}{found.low_seconds:8.3f}"
            f"{found.high_seconds:8.3f}{100 * errors[-1]:+7.1f}%"
        )
    sizes = [abs(error) for error in errors]
    if sizes:
        print(f"absolute error: median {100 * statistics.median(sizes):.1f} %, worst {100 * max(sizes):.1f} %")
    return 0 if len(errors) == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
