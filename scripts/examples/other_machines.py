"""Your own step, compiled for machines that are not here: `python other_machines.py [TARGET ...]`.

The NNX model of `nnx_loop.py` on a TPU slice and on a GPU node, by their own compilers, from any Linux machine; the
plan of each is saved for the day the machine is there.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp

import autotune

sys.path.insert(0, str(Path(__file__).parent))
from nnx_loop import make, train_step  # noqa: E402  your own model and step


def main(targets: list[str]) -> list[autotune.Plan]:
    """The best layout on each machine, what it binds, and what crosses its links."""
    workload = autotune.Workload(train_step, make, batch=jax.ShapeDtypeStruct((1024, 513), jnp.int32))
    plans = []
    for target in targets:
        plan = autotune.tune(workload, target, compile=2, measure=0).plan
        seconds, sent = plan.figures.step_seconds, sum(plan.figures.axis_bytes.values())
        print(f"{target}: {plan.layout}  {1e3 * seconds:.3g} ms a step, bound by {plan.binding['resource']}, "
              f"each device sends {sent / 2**20:.3g} MiB")  # fmt: skip
        plan.save(f"{target.replace(':', '-')}.json")
        plans.append(plan)
    return plans


if __name__ == "__main__":
    main(sys.argv[1:] or ["v5e:4x4", "h100:1x8"])
