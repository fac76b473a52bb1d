"""Makes the compiled programs under tests/data/hlo anew: one small decoder, cut in many ways, for every backend.

    python scripts/make_fixtures.py [NAME...]

Each file is a compilation (text, memory analysis, arguments, versions) with the model it is of, as xz-packed JSON. The
TPU and GPU compilers run without a device; about six minutes for all on two cores. Run it after a change of jax or
libtpu: what the reader then no longer understands, the tests show. Programs of jax 0.10 have plain names, of a later
one its version behind.
"""

from __future__ import annotations

import dataclasses
import json
import lzma
import sys
from importlib import metadata
from pathlib import Path

from autotune.compile.compilation import Candidate, CompileFailure, to_json
from autotune.compile.compile import compile_all
from autotune.meshes.layout import parse_layout
from autotune.meshes.target import parse_target
from autotune.meshes.transformer import TransformerShape
from autotune.reference_workload import transformer_workload

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests" / "data" / "hlo"

MODEL = TransformerShape(
    name="fixture", layers=4, d_model=1024, heads=8, kv_heads=8, head_dim=128, d_ff=4096, vocab=8192
)
BATCH, SEQ = 32, 1024

PLAIN = ",".join(f"xla.xla_tpu_enable_windowed_einsum_for_{kind}=false" for kind in ("all_gather", "reduce_scatter"))
"""Below 64 TPU devices XLA turns gathers into loops of permutes; without that the collectives are those of a pod."""

FIXTURES = {
    "cpu-data": ("cpu:8", "data=8,remat=full", "bfloat16"),
    "cpu-fsdp": ("cpu:8", "fsdp=8,remat=full", "bfloat16"),
    "cpu-tensor": ("cpu:8", "tensor=8,remat=full", "bfloat16"),
    "cpu-accumulate": ("cpu:8", "data=2,fsdp=2,tensor=2,accumulate=2,remat=none", "bfloat16"),
    "h100-data": ("h100:2x8", "data=16,dcn.data=2,remat=full", "bfloat16"),
    "h100-fsdp": ("h100:2x8", "fsdp=16,dcn.fsdp=2,remat=full", "bfloat16"),
    "h100-tensor": ("h100:1x8", "tensor=8,remat=full", "bfloat16"),
    "h100-mixed": ("h100:2x8", "data=2,fsdp=4,tensor=2,dcn.data=2,remat=dots", "bfloat16"),
    "v100-fsdp": ("v100-16:1x8", "fsdp=8,remat=full", "float16"),
    "v5e-data": ("v5e:4x4", "data=16,remat=full", "bfloat16"),
    "v5e-fsdp": ("v5e:4x4", f"fsdp=16,remat=full,{PLAIN}", "bfloat16"),
    "v5e-windowed": ("v5e:4x4", "fsdp=16,remat=full", "bfloat16"),
    "v5e-tensor": ("v5e:2x4", "tensor=8,remat=full", "bfloat16"),
    "v5e-mixed": ("v5e:4x4", "data=2,fsdp=4,tensor=2,remat=none", "bfloat16"),
    "v5e-slices": ("v5e:4x4*2", "data=2,dcn.data=2,fsdp=16,remat=full", "bfloat16"),
    "v5e-slices-fsdp": ("v5e:4x4*2", "fsdp=32,dcn.fsdp=2,remat=full", "bfloat16"),
    "v5e-slices-both": ("v5e:2x4*4", "data=4,dcn.data=2,fsdp=8,dcn.fsdp=2,remat=full", "bfloat16"),
    "tpu7x-offload": ("tpu7x:2x2x1", "fsdp=8,remat=offload", "bfloat16"),
    "v5p-slices-tensor": ("v5p:2x2x2*2", "fsdp=4,dcn.fsdp=2,tensor=4,remat=full", "bfloat16"),
}
"""Name -> (target, layout in words, dtype)."""


def main(names: list[str]) -> int:
    """Compile the named fixtures, or all; the number that failed."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    version = ".".join(metadata.version("jax").split(".")[:2])
    suffix = "" if version == "0.10" else f"-jax{version}"
    jobs = {}
    for name in names or list(FIXTURES):
        target, layout, dtype = FIXTURES[name]
        workload = transformer_workload(MODEL, batch=BATCH, seq=SEQ, dtype=dtype)
        jobs[name] = Candidate(workload=workload, layout=parse_layout(layout), target=parse_target(target))
    failed = 0
    for job, outcome in compile_all(jobs.values(), workers=1):
        name = next(name for name in jobs if jobs[name] is job)
        if isinstance(outcome, CompileFailure):
            failed += 1
            print(f"{name}: {outcome.kind}: {outcome.reason}", file=sys.stderr)
            continue
        # Source files are named as an installed package has them, wherever the checkout was.
        text = outcome.text
        for folder in ("models", "meshes"):
            text = text.replace(f"{ROOT}/{folder}/", f"autotune/{folder}/")
        compilation = dataclasses.replace(outcome, text=text.replace(f"{ROOT}/", ""), log_path="")
        value = {
            "model": dataclasses.asdict(MODEL),
            "batch": BATCH,
            "seq": SEQ,
            "dtype": FIXTURES[name][2],
            "layout": FIXTURES[name][1],
            "compilation": to_json(compilation),
        }
        packed = lzma.compress(json.dumps(value).encode(), preset=9)
        (FOLDER / f"{name}{suffix}.json.xz").write_bytes(packed)
        print(f"{name}: {outcome.compile_seconds:.0f} s, {len(packed)} bytes")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
