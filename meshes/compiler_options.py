"""What XLA is told beside its defaults when a layout is compiled for a chip. JAX-free."""

from __future__ import annotations

from typing import Any

from autotune.meshes.hardware import Hardware
from autotune.meshes.layout import Layout

VARIABLES = {"tpu": "LIBTPU_INIT_ARGS", "cuda": "XLA_FLAGS", "cpu": "XLA_FLAGS"}
"""Where a program that is not jitted with the options reads them from, by platform."""

LITTLE_EFFORT = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""For XLA's CPU compiler, where the machine code runs once or never: LLVM then takes half the time or less. What comes
before it, and with it the program's text, memory and cost, is the same."""


def compiler_options(layout: Layout, hardware: Hardware) -> dict[str, Any]:
    """The hardware file's options, and the layout's own over them."""
    return {**hardware.compiler_options, **{name: _value(text) for name, text in layout.compiler_options}}


def options_to_read(layout: Layout, hardware: Hardware) -> dict[str, Any]:
    """As `compiler_options`, for a program that is read and never run."""
    return {**(LITTLE_EFFORT if hardware.platform == "cpu" else {}), **compiler_options(layout, hardware)}


def options_to_run_once(platform: str) -> dict[str, Any] | None:
    """For `jax.jit` of what runs once, on a JAX platform ("cpu", "gpu", "tpu"): an initial state."""
    return LITTLE_EFFORT if platform == "cpu" else None


def as_variable(layout: Layout, hardware: Hardware) -> str | None:
    """The same as an environment variable; None where the compiler is told nothing.

    >>> from autotune.meshes.hardware import load_hardware
    >>> as_variable(Layout(compiler_options=(("xla_some_option", "2"),)), load_hardware("h100"))
    'XLA_FLAGS="--xla_some_option=2"'
    """
    told = compiler_options(layout, hardware)
    flags = [f"--{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in told.items()]
    return f'{VARIABLES[hardware.platform]}="{" ".join(flags)}"' if flags else None


def _value(text: str) -> bool | int | float | str:
    """XLA refuses "true" where it wants true, and JAX "-0.5" where it wants a number."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
