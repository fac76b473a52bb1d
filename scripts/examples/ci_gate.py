"""A CI gate: the plan in the repository still holds. `pytest scripts/examples/ci_gate.py`, after `python` of it once.

Run as a script it makes the plan that the test then guards; in your repository you commit that file. The shell's way is
`autotune check plan.json --workload ci_gate:workload`, which exits 1 and names the lines that brought new collectives.
"""

import sys
from pathlib import Path

import autotune
from autotune.testing import assert_plan_holds

sys.path.insert(0, str(Path(__file__).parent))
from plain_pytree import make, train_step  # noqa: E402  your own step

PLAN = Path("plan.json")


def workload() -> autotune.Workload:
    """Your step, as `autotune tune --workload ci_gate:workload` finds it."""
    import jax
    import jax.numpy as jnp

    return autotune.Workload(train_step, make, batch=jax.ShapeDtypeStruct((16, 65), jnp.int32))


def test_the_plan_still_holds():
    """Fails when FLOPs, bytes on a mesh axis, peak memory or collectives grew by more than 2 %."""
    assert_plan_holds(PLAN, workload())


if __name__ == "__main__":
    autotune.tune(workload(), "cpu:8", compile=1, measure=0).plan.save(PLAN)
    print(f"wrote {PLAN}")
