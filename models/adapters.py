"""Weights that are frozen, whole or quantised, and low-rank adapters beside them (LoRA, arXiv 2106.09685).

A model with adapters has a `Frozen` in the place of each of its layers' matrices that has an adapter or is quantised.
What is trained is told from what is frozen by name: adapters are called `lora_a` and `lora_b`, and where a tree of
parameters has any, all others are frozen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from autotune.meshes.lora import LORA_TARGETS, Lora
from autotune.models.execution import Execution
from autotune.models.parameters import zeros
from autotune.models.quantised import linear

ADAPTERS = ("lora_a", "lora_b")

MATRICES = tuple(dict.fromkeys(name for names in LORA_TARGETS.values() for name in names))
"""Every matrix inside a layer but routers, by its name in the modules of a layer."""

SCALE_DTYPE = jnp.bfloat16
"""Of the scales of int8 weights. They are rounded before the weights are divided by them, so no rounding of theirs is
left in the product."""


class Twice(NamedTuple):
    """One activation that frozen matrices and their adapters read, as two values, so that its gradient has two parts.

    Over `tensor` the gradients of all matrices are partial sums, which XLA adds up before it reduces them once; those
    of adapters are whole. Added to each other one by one, each matrix would have a reduction of its own."""

    matrices: jax.Array
    adapters: jax.Array


class Frozen(nnx.Module):
    """One frozen matrix, an adapter of rank r beside it where `rank` is above 0: x W + (x A) B.

    A is drawn with the variance of the matrix itself and B is zero, so that training begins at the frozen model. The
    factor alpha / r in front of the product is 1. A has the axes of W's rows, B those of its columns; the rank is never
    cut. int8: one scale for each output channel (of each expert); weights are made of it where they are used.
    """

    def __init__(self, matrix: nnx.Param, rows: int, rank: int, quantised: bool, rngs: nnx.Rngs):
        names = matrix.get_metadata("out_sharding")
        first = 1 if names[0] == "experts" else 0
        self.contracted = tuple(range(first, first + rows))
        value = matrix[...]
        outer, outer_names = value.shape[:first], names[:first]
        if quantised:
            self.base, self.scale = _quantised(value, names, self.contracted)
        else:
            self.base = nnx.Param(value, out_sharding=names)
        if rank:
            into, into_names = value.shape[first : first + rows], names[first : first + rows]
            out, out_names = value.shape[first + rows :], names[first + rows :]
            drawn = jax.random.normal(rngs.params(), (*outer, *into, rank), jnp.float32) / math.sqrt(math.prod(into))
            self.lora_a = nnx.Param(drawn, out_sharding=(*outer_names, *into_names, "latent"))
            self.lora_b = zeros((*outer, rank, *out), (*outer_names, "latent", *out_names))

    def weight(self, names: tuple[str, ...], run: Execution) -> jax.Array:
        """The matrix in the compute dtype, whole along fsdp. Integers are gathered as they are."""
        if not hasattr(self, "scale"):
            return run.sharder.fetch(self.base[...], names, run.dtype)
        whole = run.sharder.fetch(self.base[...], names, jnp.dtype(jnp.int8))
        return whole.astype(run.dtype) * jnp.expand_dims(self.scale[...].astype(run.dtype), self.contracted)

    def low_rank(self, formula, x, names, out_names, run: Execution) -> jax.Array:
        """(x A) B. What x A sums over `tensor` is cut along the sequence before B, where the result is."""
        read, made = formula.split("->")
        first, second = read.split(",")
        rows = "".join(second[index] for index in self.contracted)
        outer, columns = second[: self.contracted[0]], second[self.contracted[-1] + 1 :]
        kept = "".join(letter for letter in first if letter not in rows)
        between = (*(out_names[made.index(letter)] for letter in kept), "latent")
        cut = len(outer) + len(rows)
        a = run.sharder.fetch(self.lora_a[...], (*names[:cut], "latent"), run.dtype)
        b = run.sharder.fetch(self.lora_b[...], (*names[: len(outer)], "latent", *names[cut:]), run.dtype)
        low = run.sharder.einsum(f"{first},{outer}{rows}z->{kept}z", x, a, between)
        return run.sharder.einsum(f"{kept}z,{outer}z{columns}->{made}", low, b, out_names)


def _quantised(value: jax.Array, names: tuple[str, ...], contracted: tuple[int, ...]) -> tuple[nnx.Param, nnx.Param]:
    """(int8, scales): symmetric, the largest number of each output channel at 127.

    A scale's own axis is never cut over fsdp: it would be a gather of a few kilobytes for each matrix.
    """
    scale = (jnp.abs(value).max(axis=contracted) / 127.0).astype(SCALE_DTYPE)
    wide = jnp.expand_dims(scale.astype(jnp.float32), contracted)
    codes = jnp.clip(jnp.round(value / jnp.maximum(wide, jnp.finfo(jnp.float32).tiny)), -127, 127).astype(jnp.int8)
    own = tuple("norm" if name == "embed" else name for i, name in enumerate(names) if i not in contracted)
    return nnx.Param(codes, out_sharding=names), nnx.Param(scale, out_sharding=own)


def freeze(module: nnx.Module, lora: Lora, rngs: nnx.Rngs) -> None:
    """Put a `Frozen` in the place of each matrix of an attention block or MLP that has an adapter or is quantised."""
    for name in MATRICES:
        matrix = getattr(module, name, None)
        if not isinstance(matrix, nnx.Param):
            continue
        rank = lora.rank if name in lora.matrices else 0
        if rank or lora.quantised:
            setattr(module, name, Frozen(matrix, 2 if name == "output" else 1, rank, lora.quantised, rngs))


Product = Callable[[str, "jax.Array | Twice", tuple[str, ...]], jax.Array]
"""(formula, activation, logical axes of the result) -> the result."""


def fetched(matrix: nnx.Param | Frozen, names: tuple[str, ...], run: Execution) -> Product:
    """Fetch a matrix of the model, given its logical axes, for the product of an activation with it."""
    w = matrix.weight(names, run) if isinstance(matrix, Frozen) else run.sharder.fetch(matrix[...], names, run.dtype)

    def multiply(formula: str, x: jax.Array | Twice, out_names: tuple[str, ...]) -> jax.Array:
        read, beside = x if isinstance(x, Twice) else (x, x)
        y = linear(run, formula, read, w, out_names)
        if not isinstance(matrix, Frozen) or not hasattr(matrix, "lora_a"):
            return y
        return y + matrix.low_rank(formula, beside, names, out_names, run)

    return multiply


def trained(tree: Any) -> Any:
    """Whether each leaf of a tree of parameters (or of their logical axes) is trained: where there are adapters, they
    alone are."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_names)]
    adapted = any(map(_is_adapter, paths))
    return jax.tree_util.tree_map_with_path(lambda path, _: not adapted or _is_adapter(path), tree, is_leaf=_is_names)


def parted(tree: dict) -> tuple[dict, dict]:
    """(what is trained, what is frozen) of nested dicts of parameters or of their logical axes."""
    flags = trained(tree)
    return _where(tree, flags, True), _where(tree, flags, False)


def joined(some: dict, others: dict) -> dict:
    """One tree of both: the reverse of `parted`."""
    both = {**some, **others}
    for name in some.keys() & others.keys():
        both[name] = joined(some[name], others[name])
    return both


def _where(tree: dict, flags: dict, wanted: bool) -> dict:
    found = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            inside = _where(value, flags[name], wanted)
            if inside:
                found[name] = inside
        elif flags[name] == wanted:
            found[name] = value
    return found


def _is_adapter(path: Any) -> bool:
    return getattr(path[-1], "key", None) in ADAPTERS


def _is_names(node: Any) -> bool:
    return isinstance(node, tuple)
