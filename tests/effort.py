"""How much work a test asks for: of XLA's compilers, and of the person who waits for it."""

from __future__ import annotations

from collections.abc import Iterable

import jax
import pytest

NUMBERS_ONLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""What XLA's CPU compiler is told where the numbers of a program are compared, and no more is asked of it.

The cut of the step and every collective are the same. XLA's partitioner runs before any of these options is read. They
only say how each device's share becomes machine code."""

QUICK = ",xla.exec_time_optimization_effort=-1.0" if jax.__version_info__ < (0, 11) else ""
"""Little effort of a TPU's or a GPU's compiler, as a word of a layout. Not for models with experts on TPUs: with it
libtpu 0.0.42 aborts on DeepSeek's layout, in a check of its reduce-scatter. jax 0.11 has no such option."""

if jax.__version_info__ < (0, 11):  # since then the older loop emitters, a quarter of the compile time, are gone
    NUMBERS_ONLY["xla_cpu_use_fusion_emitters"] = False


def slow(rows: Iterable[tuple]) -> list:
    """These rows of a parametrised test, each with the mark `slow`."""
    return [pytest.param(*row, marks=pytest.mark.slow) for row in rows]
