"""What a layout holds of one device's memory and what for, also where it does not fit and no program says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autotune.compile.compilation import Argument, Compilation, CompileFailure
from autotune.hlo.memory_by_category import LARGEST, MEMORY_CATEGORIES, category_of, described, read_memory
from autotune.meshes.layout import Layout
from autotune.price.price import Estimate
from autotune.program import Buffer, Memory


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """Bytes of one device at the worst moment of a step.

    `by_category` adds up to `bytes`. `largest`: the largest buffers, as far as they are known. `source`: "compiled",
    "priced", or how the figures of a step that did not compile were found.
    """

    bytes: float
    by_category: Mapping[str, float]
    largest: tuple[Buffer, ...]
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Smaller:
    """A layout of the same step that needs less memory, and its compiled program.

    `less`: the categories of which it holds less: all that grow with the batch, or the activations of a layout that
    recomputes them. The others are as large as in the step that did not fit.
    """

    layout: Layout
    compilation: Compilation
    less: tuple[str, ...]


BY_BATCH = ("activations", "logits", "workspace")
"""Categories that grow with the piece of the batch that is worked on at a time."""


def compiled_use(memory: Memory) -> MemoryUse:
    """As the compiled program says."""
    return MemoryUse(bytes=memory.peak_bytes, by_category=memory.by_category, largest=memory.largest, source="compiled")


def priced_use(price: Estimate) -> MemoryUse:
    """As the closed form says; it knows no buffers."""
    return MemoryUse(bytes=price.peak_bytes, by_category=price.memory, largest=(), source="priced")


def failed_use(failure: CompileFailure, price: Estimate, smaller: Smaller | None) -> MemoryUse:
    """What a step needs of which the compiler said only that it does not fit, and how much it needs in all.

    Arguments are exact, from their shardings. The rest is as in `smaller`, those categories made larger of which it
    holds less, until the compiler's total is reached. The buffers are those of `smaller` as they are there: which of
    them grow, and by how much, no one says. Without one, the closed form shares out the rest, and only the arguments
    are known by name.
    """
    held = [one for one in failure.arguments if one.memory_kind is None]
    rest = (failure.needed_bytes or 0) - sum(one.bytes for one in held)
    if rest < 0 or not held:
        return priced_use(price)
    total = {name: float(size) for name, size in _by_category(held).items()}
    buffers = [described(one, one.bytes) for one in held]
    source = "the compiler's total; arguments by their shardings, the rest in the closed form's proportions"
    if smaller is None:
        shares = {name: max(price.memory.get(name, 0.0) - total[name], 0.0) for name in MEMORY_CATEGORIES}
        own: list[Buffer] = []
    else:
        memory = read_memory(smaller.compilation)
        arguments = [one for one in smaller.compilation.arguments if one.memory_kind is None]
        ours = _by_category(arguments)
        shares = {name: max(memory.by_category[name] - float(ours[name]), 0.0) for name in MEMORY_CATEGORIES}
        names = {one.name for one in arguments}
        own = [one for one in memory.largest if one.scope not in names]
        source = (
            f"the compiler's total; arguments by their shardings, the rest as in the compile of "
            f"{smaller.layout}, whose buffers these are"
        )
    spread = _fill(shares, rest, smaller.less if smaller else BY_BATCH)
    for name, size in spread.items():
        total[name] += size
    buffers += own
    buffers.sort(key=lambda buffer: -buffer.bytes)
    return MemoryUse(bytes=sum(total.values()), by_category=total, largest=tuple(buffers[:LARGEST]), source=source)


def _by_category(arguments: list[Argument]) -> dict[str, int]:
    total = dict.fromkeys(MEMORY_CATEGORIES, 0)
    for argument in arguments:
        total[category_of(argument)] += argument.bytes
    return total


def _fill(shares: Mapping[str, float], total: float, growing: tuple[str, ...]) -> dict[str, float]:
    """`shares` made to add up to `total`: the growing ones in proportion; all of them where the others are more.

    >>> _fill({"gradients": 2.0, "activations": 1.0, "workspace": 1.0}, 10.0, ("activations", "workspace"))
    {'gradients': 2.0, 'activations': 4.0, 'workspace': 4.0}
    """
    fixed = sum(size for name, size in shares.items() if name not in growing)
    if fixed >= total:
        return {name: size * total / fixed if name not in growing else 0.0 for name, size in shares.items()}
    room = sum(shares[name] for name in growing)
    if not room:
        return dict(shares) | {"workspace": shares["workspace"] + total - fixed}
    return {name: size * (total - fixed) / room if name in growing else size for name, size in shares.items()}
