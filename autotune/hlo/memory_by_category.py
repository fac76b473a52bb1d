"""What a compiled step needs of one device's memory, and what for.

The total is the backend's own reading, and which one is right depends on the backend. What it is made of is read from
the text: arguments exactly; the rest from the live ranges at the moment when they are largest, scaled down to the
backend's total where the compiler did better than they show. What they do not show (fragmentation, code, scratch
memory of kernels) is counted as workspace.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping

from autotune.compile.compilation import Argument, Compilation
from autotune.hlo.liveness import LiveBuffer, Liveness, liveness
from autotune.hlo.text import Module, Op, read_module
from autotune.hlo.unreadable import UnreadableProgram, reading
from autotune.program import Buffer, Memory

MEMORY_CATEGORIES = ("parameters", "optimizer_state", "gradients", "activations", "logits", "workspace")
WEIGHTS = ("parameters", "frozen")
"""Categories of arguments that are weights; frozen ones have no gradients."""
LARGEST = 12
BACKWARD = "transpose("
RECOMPUTED = ("rematted_computation", "checkpoint")
LOGITS = re.compile(r"logits|lm_head|unembed|log_softmax|logsumexp|cross_entropy", re.IGNORECASE)
EMBEDDING = re.compile(r"embed|vocab|wte|lm_head|unembed|logits", re.IGNORECASE)
REDUCTIONS = ("reduce-scatter", "all-reduce")
SILENT = ("parameter", "broadcast", "copy", "copy-start", "copy-done", "custom-call", "constant", "bitcast")


def peak_bytes(compilation: Compilation) -> int:
    """Bytes one device needs at most, by the reading that is right for the backend.

    CPU: arguments + outputs + temporaries - aliased (its "peak" leaves the temporaries out). TPU and GPU: the peak; on
    TPU the sum can be far off either way, on GPU both agree.
    """
    memory = compilation.memory
    if compilation.platform != "cpu":
        return memory["peak_memory_in_bytes"]
    parts = (memory[f"{part}_size_in_bytes"] for part in ("argument", "output", "temp"))
    return sum(parts) - memory["alias_size_in_bytes"]


def read_memory(compilation: Compilation) -> Memory:
    """The memory of one device while the program runs, attributed.

    `by_category` adds up to the peak. parameters, optimizer_state: the step's arguments of that kind, frozen weights
    among the parameters. gradients:
    written in the backward pass in the shape of a parameter, sharded, gathered, or of one layer. activations: made in
    the forward pass and read in the backward, and what the backward recomputes. logits: one dimension is the
    vocabulary. workspace: all else, the batch and gathered or cast copies of parameters too.
    UnreadableProgram where the text or the backend's figures cannot be read.
    """
    with reading("its memory cannot be read"):
        return _read_memory(compilation)


def _read_memory(compilation: Compilation) -> Memory:
    memory = compilation.memory
    module = read_module(compilation.text)
    lives = liveness(module, compilation.platform)
    peak = peak_bytes(compilation)
    held = _arguments_held(lives, compilation.arguments)
    moment = lives.peak_moment()
    judge = _OwnBuffers(lives, compilation.arguments)
    live = [
        (judge.category(buffer), buffer)
        for buffer in lives.buffers
        if buffer.argument is None and buffer.bytes and buffer.begin <= moment <= buffer.end
    ]
    temporary = dict.fromkeys(MEMORY_CATEGORIES, 0)
    for category, buffer in live:
        temporary[category] += buffer.bytes
    arguments = dict.fromkeys(MEMORY_CATEGORIES, 0)
    for argument, size in zip(compilation.arguments, held, strict=True):
        arguments[category_of(argument)] += size
    shown = _fit(temporary, peak - sum(held))
    largest = [described(argument, size) for argument, size in zip(compilation.arguments, held, strict=True)]
    largest += [_named(module, category, buffer) for category, buffer in live]
    largest.sort(key=lambda buffer: -buffer.bytes)
    host = [memory.get(f"host_{part}_size_in_bytes", 0) for part in ("argument", "output", "temp", "alias")]
    return Memory(
        peak_bytes=peak,
        argument_bytes=memory["argument_size_in_bytes"],
        output_bytes=memory["output_size_in_bytes"],
        temporary_bytes=memory["temp_size_in_bytes"],
        alias_bytes=memory["alias_size_in_bytes"],
        host_bytes=sum(host[:3]) - host[3],
        by_category={name: arguments[name] + shown[name] for name in MEMORY_CATEGORIES},
        largest=tuple(buffer for buffer in largest[:LARGEST] if buffer.bytes),
    )


def category_of(argument: Argument) -> str:
    """What an argument of the step counts as, one of MEMORY_CATEGORIES."""
    if argument.category in WEIGHTS:
        return "parameters"
    return "optimizer_state" if argument.category == "optimizer_state" else "workspace"


def described(argument: Argument, size: int) -> Buffer:
    """An argument of the step as a buffer: named by its path in the state, since no line makes it."""
    return Buffer(
        bytes=size,
        shape=f"{argument.dtype}[{','.join(str(extent) for extent in argument.shape)}]",
        category=category_of(argument),
        source=None,
        scope=argument.name,
    )


def _arguments_held(lives: Liveness, arguments: tuple[Argument, ...]) -> list[int]:
    """Device bytes of each argument, padded as the program holds it."""
    held = {buffer.argument: buffer.bytes for buffer in lives.buffers if buffer.argument is not None}
    if len(held) != len(arguments):
        raise UnreadableProgram(f"hlo: the program has {len(held)} parameters, the step {len(arguments)} arguments")
    return [held[index] for index in range(len(arguments))]


def _fit(temporary: Mapping[str, int], available: int) -> dict[str, int]:
    """The categories made to add up to what the backend says: scaled down, or the rest counted as workspace."""
    total = sum(temporary.values())
    if total > max(available, 0):
        return _scaled(temporary, max(available, 0))
    return {**temporary, "workspace": temporary["workspace"] + available - total}


def _scaled(shares: Mapping[str, int], total: int) -> dict[str, int]:
    """`total` shared out in these proportions, to the byte."""
    whole = sum(shares.values())
    scaled = {name: share * total // whole for name, share in shares.items()}
    scaled["workspace"] += total - sum(scaled.values())
    return scaled


class _OwnBuffers:
    """Tells what a buffer of the program's own is for."""

    def __init__(self, lives: Liveness, arguments: tuple[Argument, ...]) -> None:
        self.lives = lives
        parameters = [argument for argument in arguments if argument.category in WEIGHTS]
        trained = [argument for argument in parameters if argument.category == "parameters"]
        self.parameter_shapes = {shape for argument in trained for shape in _forms(argument)}
        self.parameter_arguments = {index for index, argument in enumerate(arguments) if argument.category in WEIGHTS}
        self.vocabulary = {
            extent
            for argument in parameters
            if EMBEDDING.search(argument.name) and argument.global_shape
            for extent in _largest_dimension(argument)
        }

    def category(self, buffer: LiveBuffer) -> str:
        if self.lives.buffers[buffer.copies].argument in self.parameter_arguments:
            return "workspace"
        scopes = [_scope(op) for op in buffer.makers]
        backward = any(BACKWARD in scope and not _recomputed(scope) for scope in scopes)
        reduced = any(op.opcode.startswith(REDUCTIONS) for op in buffer.makers)
        if _key(buffer.dims) in self.parameter_shapes and (backward or reduced):
            return "gradients"
        if len(buffer.dims) > 1 and self.vocabulary & set(buffer.dims) or any(map(LOGITS.search, scopes)):
            return "logits"
        forward = any(BACKWARD not in scope for scope in scopes)
        if (forward and any(BACKWARD in _scope(op) for op in buffer.readers)) or any(map(_recomputed, scopes)):
            return "activations"
        return "workspace"


def _scope(op: Op) -> str:
    begin = op.attributes.find('op_name="')
    return op.attributes[begin + 9 : op.attributes.find('"', begin + 9)] if begin >= 0 else ""


def _recomputed(scope: str) -> bool:
    return any(word in scope for word in RECOMPUTED) and BACKWARD not in scope.split(RECOMPUTED[0])[-1]


def _key(dims: tuple[int, ...]) -> tuple[int, ...]:
    """A shape up to the order of its dimensions and those of size 1."""
    return tuple(sorted(extent for extent in dims if extent != 1))


def _forms(argument: Argument) -> set[tuple[int, ...]]:
    """The shapes a parameter or its gradient can have on a device: sharded or whole; a matrix or the part of one layer
    also with only some dimensions gathered."""
    choices = [{one, whole} for one, whole in zip(argument.shape, argument.global_shape, strict=True)]
    matrix = choices[1:] if len(choices) > 2 else choices
    forms = {_key(argument.shape), _key(argument.global_shape)}
    forms |= {_key(dims) for dims in itertools.product(*matrix)}
    return {form for form in forms if len(form) > 1}


def _largest_dimension(argument: Argument) -> set[int]:
    """The vocabulary, whole and as sharded: the largest dimension of an embedding."""
    largest = max(range(len(argument.global_shape)), key=lambda index: argument.global_shape[index])
    return {argument.global_shape[largest], argument.shape[largest]}


def _named(module: Module, category: str, buffer: LiveBuffer) -> Buffer:
    """The buffer under the name of the first instruction that computes it, rather than clears or copies it."""
    telling = [op for op in buffer.makers if op.opcode not in SILENT and module.source(op)]
    maker = (telling or [op for op in buffer.makers if module.source(op)] or buffer.makers)[0]
    return Buffer(
        bytes=buffer.bytes,
        shape=buffer.shape,
        category=category,
        source=module.source(maker),
        scope=module.scope(maker),
    )
