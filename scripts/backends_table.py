"""One step as three compilers make it: FLOPs, bytes and collectives, side by side.

    python scripts/backends_table.py [--model NAME] [--batch N] [--seq N] [--layouts "data=8;fsdp=8"] [--json]

Compiled without a device for eight of each: cpu:8, h100:1x8, v5p:2x2x2. Sums are of one step over all devices.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from typing import Any

from autotune.compile.compilation import Candidate, Compilation
from autotune.compile.compile import compile_all
from autotune.hlo.memory_by_category import read_memory
from autotune.hlo.read import read_program
from autotune.meshes.layout import Layout, parse_layout
from autotune.meshes.target import parse_target
from autotune.program import Program, by_collective, by_kernel
from autotune.reference_workload import reference_workload, transformer_of

TARGETS = {"cpu": "cpu:8", "gpu": "h100:1x8", "tpu": "v5p:2x2x2"}

WHY = {
    "matmul FLOPs": "agree; CPU's include attention, which is plain matmuls there",
    "attention FLOPs": "cuDNN counted as half under the causal mask, 9 matmuls; splash whole blocks, 11 matmuls",
    "HBM bytes": "differ: TPU keeps values in vector memory, CPU widens bfloat16 and fuses less",
    "all_reduce bytes along tensor": "CPU reduces 8 arrays a layer, in float32: each product for query, key, value, "
    "gate and up alone; GPU 5, adding those first, by reduce-scatter; TPU 4 by all-reduce and slice, the fifth by "
    "permutes",
    "reduce_scatter bytes along tensor": "GPU's 5 reductions a layer; CPU has no reduce-scatter, TPU all-reduces and "
    "slices, or permutes",
    "permute bytes along tensor": "TPU's fifth reduction of a layer, as a loop of permutes, each under a part of its "
    "matmul",
    "all_reduce": "CPU moves float32, and reduce-scatters by an all-reduce and a slice (TPU too, for small shards)",
    "reduce_scatter": "CPU has none; TPU below 64 devices does some by a loop of permutes",
    "all_to_all": "CPU moves float32 where the others move bfloat16",
    "all_gather": "CPU moves float32 where the others move bfloat16",
    "permute": "TPU below 64 devices gathers by a loop of permutes, each under a matmul",
    "peak bytes": "differ with what each compiler keeps, fuses and recomputes",
}
"""Where and why the backends do not agree."""


def rows_of(layout: Layout, programs: dict[str, Program | None]) -> list[dict[str, Any]]:
    """One row for each quantity: its value per backend (None where that one did not compile)."""
    devices = math.prod(layout.mesh_shape.values())
    columns = {name: _quantities(program, devices) if program else {} for name, program in programs.items()}
    names = list(dict.fromkeys(quantity for column in columns.values() for quantity in column))
    return [
        {
            "layout": str(layout),
            "quantity": quantity,
            **{name: columns[name].get(quantity, 0.0) if programs[name] is not None else None for name in programs},
            "why": next((reason for start, reason in WHY.items() if quantity.startswith(start)), None),
        }
        for quantity in names
    ]


def _quantities(program: Program, devices: int) -> dict[str, float]:
    work = by_kernel(program)
    attention = work["attention"].flops if "attention" in work else 0.0
    found = {
        "matmul FLOPs": (program.flops() - attention) * devices,
        "attention FLOPs": attention * devices,
        "HBM bytes": program.hbm_bytes() * devices,
        "peak bytes of a device": float(program.memory.peak_bytes),
    }
    for (kind, axes), total in by_collective(program).items():
        if total.bytes * devices > 1e6:
            found[f"{kind} bytes along {'+'.join(axes) or 'no axes'}"] = total.bytes * devices
    return found


def lines_of(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as a Markdown table."""
    lines = ["| layout | quantity | cpu | gpu | tpu | where they differ |", "|---|---|---|---|---|---|"]
    for row in rows:
        values = " | ".join("not compiled" if row[name] is None else f"{row[name]:.4g}" for name in TARGETS)
        same = all(row[name] is not None and math.isclose(row[name], row["cpu"], rel_tol=0.01) for name in TARGETS)
        lines.append(f"| {row['layout']} | {row['quantity']} | {values} | {'' if same else row['why'] or ''} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama3-1b")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seq", type=int, default=2048)
    parser.add_argument("--layouts", default="data=8,remat=full;fsdp=8,remat=full;tensor=8,remat=full")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    transformer_of(given.model)
    workload = reference_workload(given.model, batch=given.batch, seq=given.seq, dtype="bfloat16")
    layouts = [parse_layout(text) for text in given.layouts.split(";")]
    jobs = [
        Candidate(workload=workload, layout=layout, target=parse_target(target))
        for layout in layouts
        for target in TARGETS.values()
    ]
    programs: dict[tuple[str, str], Program | None] = {}
    for job, outcome in compile_all(jobs, workers=given.workers):
        key = (str(job.layout), job.target.name)
        programs[key] = None
        if isinstance(outcome, Compilation):
            programs[key] = read_program(
                outcome.text,
                platform=outcome.platform,
                mesh_shape=job.layout.mesh_shape,
                devices_per_group=job.target.devices_per_group,
                dcn=job.layout.dcn_axes,
                memory=read_memory(outcome),
            )
        else:
            print(f"{key[1]} {key[0]}: {outcome.kind}: {outcome.reason}", file=sys.stderr)
    rows = []
    for layout in layouts:
        rows += rows_of(layout, {name: programs[(str(layout), target)] for name, target in TARGETS.items()})
    print(json.dumps(rows, indent=1) if given.json else "\n".join(lines_of(rows)))
    return 1 if None in programs.values() else 0


if __name__ == "__main__":
    sys.exit(main())
