"""Plan before booking a slice: which of these would run your step best, and what would hold it back?

`python scripts/examples/before_booking.py v5e:4x4 v5p:2x2x2 h100:1x8` compiles for machines that are not there.
"""

import sys

import autotune
from autotune.reference_workload import reference_workload


def main(targets: list[str], model: str = "llama3-1b", batch: int = 64, seq: int = 4096) -> list[str]:
    """One line a target: the best layout, its step time, tokens per second, and the limit that binds."""
    lines = []
    for target in targets:
        dtype = "float32" if target.startswith("cpu") else "bfloat16"
        workload = reference_workload(model, batch=batch, seq=seq, dtype=dtype)
        try:
            plan = autotune.tune(workload, target, compile=1, measure=0).plan
        except autotune.NoPlanFits as error:
            lines.append(f"{target}: {error}")
            continue
        figures = plan.figures
        lines.append(
            f"{target}: {plan.layout}  {figures.step_seconds:.3g} s a step, "
            f"{plan.devices * figures.tokens_per_second_per_device:,.0f} tokens/s, bound by {plan.binding['resource']}"
        )
        print(lines[-1])
    return lines


if __name__ == "__main__":
    main(sys.argv[1:] or ["v5e:4x4", "v5p:2x2x2"])
