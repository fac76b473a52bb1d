"""Whether a step of `jax.pmap` is called as its loop calls it: with a dimension of replicas before the arrays' own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from autotune.workload.call import NUMBERS, is_pmap, names_of
from autotune.workload.leaves import is_array
from autotune.workload.trace import equations
from autotune.workload.trace import names_of as axes_of


def refuse_replicas(
    step: Callable[..., Any], arguments: Sequence[Any], named: Mapping[str, Any], batch: Sequence[str] = ()
) -> None:
    """ValueError where `jax.pmap` itself takes these arguments, which then have a dimension of replicas.

    The step that is tuned is one replica with the whole batch. Many models take arrays with a dimension more without an
    error (a mean over the axes (1, 2) is then one over others), so that another program would be tuned without a word.
    `batch`: the names of the arguments that are the batch, where they are known.
    """
    if not is_pmap(step):
        return
    given = names_of(step, tuple(arguments), named)
    mapped = _mapped(step, arguments, named)
    if mapped is None:
        return
    count, places = mapped
    found = [name for name, one in given.items() if any(id(leaf) in places for leaf in jax.tree.leaves(one))]
    rows = [name for name in found if name in batch]
    others = [name for name in found if name not in batch]
    words = []
    if others and rows:
        words.append(f"one replica of {', '.join(others)}: jax.tree.map(lambda x: x[0], {others[0]})")
    if rows:
        joined = "jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), "
        words.append(f"the global {', '.join(rows)}: {joined}{rows[0]})")
    give = ", and ".join(words) or "one replica of the state and the global batch, as Workload.of_call was given them"
    raise ValueError(
        f"the step is inside jax.pmap, and {', '.join(found)} {'have' if len(found) > 1 else 'has'} a first dimension "
        f"of {count} replicas; give {give}; if {count} is no count of replicas, hand over the function inside jax.pmap"
    )


def _mapped(step: Any, arguments: Sequence[Any], named: Mapping[str, Any]) -> tuple[int, set[int]] | None:
    """(the number of replicas, the ids of the arrays that have a dimension of them); None where jax.pmap does not take
    these arguments."""
    leaves, structure = jax.tree.flatten((tuple(arguments), dict(named)))
    at = [index for index, leaf in enumerate(leaves) if is_array(leaf) and not isinstance(leaf, NUMBERS)]

    def call(*arrays: Any) -> Any:
        every = list(leaves)
        for index, array in zip(at, arrays, strict=True):
            every[index] = array
        positional, keywords = jax.tree.unflatten(structure, every)
        return step(*positional, **keywords)

    try:
        closed = jax.make_jaxpr(call)(
            *(jax.ShapeDtypeStruct(leaves[index].shape, leaves[index].dtype) for index in at)
        )  # fmt: skip
    except Exception:  # whatever the step raises: pmap does not take the call, which is then of one replica
        return None
    map_of = next((one for one in equations(closed.jaxpr) if one.primitive.name == "shard_map"), None)
    if map_of is None:
        return None
    cut = [any(axes_of(part) for part in spec) for spec in map_of.params["in_specs"]]
    cut = cut[len(cut) - len(at) :]  # arrays that the step closes over come before
    return map_of.params["mesh"].size, {id(leaves[index]) for index, one in zip(at, cut, strict=True) if one}
