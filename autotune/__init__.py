"""Which mesh and layout for a JAX train step, and what stops it from being faster.

    workload = autotune.Workload(step, state, batch)
    report = autotune.tune(workload, target="v5e:4x4")
    plan = report.plan

Names are imported when they are first used: `import autotune` alone loads neither JAX nor NumPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autotune.meshes.layout import Layout, parse_layout
    from autotune.meshes.target import Target, parse_target
    from autotune.plan.plan import Plan
    from autotune.plan.read import load_plan
    from autotune.report.comparison import Comparison
    from autotune.report.report import NoPlanFits, Report
    from autotune.search import compare, explain, tune
    from autotune.store import Store
    from autotune.sweep.ask import sweep
    from autotune.workload.from_name import load_workload
    from autotune.workload.workload import Workload

__all__ = [
    "Comparison",
    "Layout",
    "NoPlanFits",
    "Plan",
    "Report",
    "Store",
    "Target",
    "Workload",
    "compare",
    "explain",
    "load_plan",
    "load_workload",
    "parse_layout",
    "parse_target",
    "sweep",
    "tune",
]

_HOMES = {
    "Comparison": "autotune.report.comparison",
    "Layout": "autotune.meshes.layout",
    "NoPlanFits": "autotune.report.report",
    "Plan": "autotune.plan.plan",
    "Report": "autotune.report.report",
    "Store": "autotune.store",
    "Target": "autotune.meshes.target",
    "Workload": "autotune.workload.workload",
    "compare": "autotune.search",
    "explain": "autotune.search",
    "load_plan": "autotune.plan.read",
    "load_workload": "autotune.workload.from_name",
    "parse_layout": "autotune.meshes.layout",
    "parse_target": "autotune.meshes.target",
    "tune": "autotune.search",
}


def __getattr__(name: str) -> Any:
    if name == "sweep":
        return importlib.import_module("autotune.sweep")  # a package that can be called; see there
    if name not in _HOMES:
        raise AttributeError(f"module 'autotune' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
