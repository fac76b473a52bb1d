"""What XLA is told beside its defaults when a layout is compiled for a chip. JAX-free."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection
from typing import Any

from autotune.meshes.hardware import Hardware
from autotune.meshes.installed import meets
from autotune.meshes.layout import Layout

VARIABLES = {"tpu": "LIBTPU_INIT_ARGS", "cuda": "XLA_FLAGS", "cpu": "XLA_FLAGS"}
"""Where a program that is not jitted with the options reads them from, by platform."""

LITTLE_EFFORT = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""For XLA's CPU compiler, where the machine code runs once or never: LLVM then takes half the time or less. What comes
before it, and with it the program's text, memory and cost, is the same."""


def compiler_options(layout: Layout, hardware: Hardware) -> dict[str, Any]:
    """The hardware file's options that hold for the installed compiler, and the layout's own over them."""
    return {**options_of(hardware), **{name: _value(text) for name, text in layout.compiler_options}}


def options_of(hardware: Hardware) -> dict[str, bool | int | float | str]:
    """The hardware file's options, less those that the installed compiler is known to refuse."""
    refused = options_left_out(hardware)
    return {name: value for name, value in hardware.compiler_options.items() if name not in refused}


def options_left_out(hardware: Hardware) -> dict[str, str]:
    """Option of the hardware file that the installed compiler refuses -> the requirement that is not met."""
    return {
        name: requirement
        for name, requirement in hardware.option_holds_for.items()
        if name in hardware.compiler_options and meets(requirement) is False
    }


def without_options(hardware: Hardware, names: Collection[str]) -> Hardware:
    """The hardware with some of its file's compiler options left out."""
    kept = {name: value for name, value in hardware.compiler_options.items() if name not in names}
    return dataclasses.replace(hardware, compiler_options=kept)


def refused_option(message: str, hardware: Hardware) -> tuple[str, ...]:
    """The hardware file's options to leave out after a compiler error that is about an option; () for other errors.

    The option that the message names; all of them where it speaks of a setting that is not supported and names none.

    >>> from autotune.meshes.hardware import load_hardware
    >>> refused_option("INVALID_ARGUMENT: No such compile option: 'xla_enable_async_all_gather'", load_hardware("v5p"))
    ('xla_enable_async_all_gather',)
    >>> refused_option("RESOURCE_EXHAUSTED: Ran out of memory on HBM", load_hardware("v5p"))
    ()
    """
    told = tuple(options_of(hardware))
    named = tuple(name for name in told if re.search(rf"\b{re.escape(name)}\b", message))
    if named and ("No such compile option" in message or "FAILED_PRECONDITION" in message):
        return named
    unsupported = "FAILED_PRECONDITION" in message and "not supported" in message
    return told if unsupported else ()


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
