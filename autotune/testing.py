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
    workload: Workload | str | None = None,
    *,
    tolerance: float = TOLERANCE,
    store: Store | None = None,
) -> None:
    """Recompile the plan's layout; AssertionError names every figure that grew, and the lines that brought it.

    `workload`: the step, or `package.module:function`, which is imported. A plan is data: the function that it names is
    not imported unless you name it too. ValueError where the step is not named.
    """
    read = plan if isinstance(plan, Plan) else load_plan(plan)
    if isinstance(workload, str):
        workload = load_workload(workload)
    if workload is None:
        named = read.recipe.get("workload")
        again = f': workload="{named}" imports the function that it names' if named else ""
        raise ValueError(f"assert_plan_holds: a plan is data, pass the step that it is for{again}")
    try:
        grown = check_plan(read, workload, tolerance=tolerance, store=store)
    except CheckFailed as error:
        raise AssertionError(str(error)) from None
    if grown:
        raise AssertionError("the plan no longer holds:\n" + "\n".join(f"  {growth}" for growth in grown))
