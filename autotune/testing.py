"""For a user's own test suite: the plan in the repository still holds."""

from __future__ import annotations

from pathlib import Path

from autotune.plan.check import TOLERANCE, CheckFailed, check_plan
from autotune.plan.plan import Plan
from autotune.plan.read import load_plan
from autotune.store import Store
from autotune.workload.from_name import load_workload
from autotune.workload.workload import Workload


def assert_plan_holds(
    plan: Plan | Path | str,
    workload: Workload | None = None,
    *,
    tolerance: float = TOLERANCE,
    store: Store | None = None,
) -> None:
    """Recompile the plan's layout; AssertionError names every figure that grew, and the lines that brought it.

    `workload`: where the plan was made from Python; else the function that the plan names is imported again.
    """
    read = plan if isinstance(plan, Plan) else load_plan(plan)
    if workload is None:
        recipe = read.recipe.get("workload")
        if not isinstance(recipe, str):
            raise ValueError("assert_plan_holds: the plan does not name its workload's function; pass the workload")
        workload = load_workload(recipe)
    try:
        grown = check_plan(read, workload, tolerance=tolerance, store=store)
    except CheckFailed as error:
        raise AssertionError(str(error)) from None
    if grown:
        raise AssertionError("the plan no longer holds:\n" + "\n".join(f"  {growth}" for growth in grown))
