"""A MaxText user asks for a layout and gets flags: `python maxtext_user.py [TARGET]` (default v5e:4x4).

The same from the command line:
autotune tune --model llama3-1b --target v5e:4x4 --batch 64 --seq 4096 --fix zero=0 --out plan.json
autotune emit plan.json --for maxtext
"""

import sys

import autotune
from autotune.plan.emit import emit
from autotune.reference_workload import reference_workload


def main(target: str, model: str = "llama3-1b", batch: int = 64, seq: int = 4096) -> str:
    """The flags of the best layout."""
    workload = reference_workload(
        model, batch=batch, seq=seq, dtype="float32" if target.startswith("cpu") else "bfloat16"
    )
    # The plainest flags: nothing of the optimizer over data, no pipeline.
    plan = autotune.tune(workload, target, compile=1, measure=0, fix=("zero=0", "stage=1")).plan
    flags = emit(plan, "maxtext")
    print(flags)
    return flags


if __name__ == "__main__":
    main(*sys.argv[1:] or ["v5e:4x4"])
