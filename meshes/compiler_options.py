"""What XLA is told beside its defaults when a layout is compiled for a chip. JAX-free."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any

from autotune.meshes.fields import did_you_mean
from autotune.meshes.hardware import Hardware
from autotune.meshes.installed import meets
from autotune.meshes.layout import Layout
from autotune.meshes.option_sets import DEFAULT, NONE
from autotune.meshes.option_sets import Value as OptionValue

VARIABLES = {"tpu": "LIBTPU_INIT_ARGS", "cuda": "XLA_FLAGS", "cpu": "XLA_FLAGS"}
"""Where a program that is not jitted with the options reads them from, by platform."""

REFUSED = "this compiler refuses an option of the hardware file, which was left out:"
"""How a warning about such an option begins."""

LITTLE_EFFORT = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""For XLA's CPU compiler, where the machine code runs once or never: LLVM then takes half the time or less. What comes
before it, and with it the program's text, memory and cost, is the same."""


def compiler_options(layout: Layout, hardware: Hardware) -> dict[str, Any]:
    """The options of the layout's set that hold for the installed compiler, and the layout's own over them.

    ValueError where the hardware has no set of that name.
    """
    own = {name: _value(text) for name, text in layout.compiler_options}
    return {**options_of(hardware, layout.options), **own}


def check_set(name: str | None, hardware: Hardware) -> None:
    """ValueError, naming those that there are, where the hardware has no set of that name; None is every chip's."""
    known = set_names(hardware)
    if name is not None and name not in known:
        close = did_you_mean(name, known)
        raise ValueError(
            f"layout: options={name} is no option set of {hardware.name}; it has {', '.join(known)}{close}"
        )


def set_names(hardware: Hardware) -> tuple[str, ...]:
    """The option sets that a layout can name on this hardware."""
    return (NONE, DEFAULT, *hardware.option_sets)


def told_by(hardware: Hardware, name: str | None = None) -> tuple[dict[str, OptionValue], dict[str, str]]:
    """(option -> value, option -> the requirement that it holds for) of a set; None: the default one."""
    check_set(name, hardware)
    if name == NONE:
        return {}, {}
    if name in (None, DEFAULT):
        return dict(hardware.compiler_options), dict(hardware.option_holds_for)
    chosen = hardware.option_sets[name]
    options, holds_for = told_by(hardware, chosen.base)
    own = {option: requirement for option, requirement in holds_for.items() if option not in chosen.options}
    limits = {**own, **chosen.holds_for}
    if chosen.requires is not None:
        limits |= {option: chosen.requires for option in chosen.options if option not in chosen.holds_for}
    return {**options, **chosen.options}, limits


def options_of(hardware: Hardware, name: str | None = None) -> dict[str, OptionValue]:
    """The options of a set (None: the default one), less those that the installed compiler is known to refuse."""
    refused = options_left_out(hardware, name)
    return {option: value for option, value in told_by(hardware, name)[0].items() if option not in refused}


def options_left_out(hardware: Hardware, name: str | None = None) -> dict[str, str]:
    """Option of a set that the installed compiler refuses -> the requirement that is not met."""
    options, holds_for = told_by(hardware, name)
    return {
        option: requirement
        for option, requirement in holds_for.items()
        if option in options and meets(requirement) is False
    }


def without_options(hardware: Hardware, names: Collection[str]) -> Hardware:
    """The hardware with some of its file's compiler options left out, in every set."""

    def kept(options: Mapping[str, OptionValue]) -> dict[str, OptionValue]:
        return {name: value for name, value in options.items() if name not in names}

    sets = {name: dataclasses.replace(one, options=kept(one.options)) for name, one in hardware.option_sets.items()}
    return dataclasses.replace(hardware, compiler_options=kept(hardware.compiler_options), option_sets=sets)


def refused_option(message: str, hardware: Hardware, name: str | None = None) -> tuple[str, ...]:
    """The options of a set (None: the default one) to leave out after a compiler error that is about an option; () for
    other errors.

    The option that the message names; all of them where it speaks of a setting that is not supported and names none.

    >>> from autotune.meshes.hardware import load_hardware
    >>> refused_option("INVALID_ARGUMENT: No such compile option: 'xla_enable_async_all_gather'", load_hardware("v5p"))
    ('xla_enable_async_all_gather',)
    >>> refused_option("RESOURCE_EXHAUSTED: Ran out of memory on HBM", load_hardware("v5p"))
    ()
    """
    told = tuple(options_of(hardware, name))
    named = tuple(option for option in told if re.search(rf"\b{re.escape(option)}\b", message))
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
