"""What XLA's CPU compiler is told where the numbers of a program are compared, and no more is asked of it."""

NUMBERS_ONLY = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}
"""A quarter of the compile time. How the step is cut, and so every collective, is the same: XLA's partitioner comes
before any of these, which only say how each device's share becomes machine code."""
