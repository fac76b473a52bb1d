"""Routing that drops no token: each device puts the choices of its tokens in order of experts: an expert is a group of
rows (`autotune.models.grouped_matmul`).

Letters: Batch, Length, D model, K experts a token, Tokens, Rows, G devices. Where experts are cut over `expert`, each
device gathers the tokens of all devices along it, works on the rows of its own experts, and the sums of all experts
are scattered back (MaxText's `use_ring_of_experts`). Its buffer has room for every token it may get: all of them, for
as many experts as a token can choose there. An exchange of the chosen rows alone (ragged all-to-all) needs that room,
too, and has no CPU backend. The sequence may be cut anywhere: no token's fate depends on another.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from autotune.models.execution import Execution
from autotune.models.grouped_matmul import BALANCED_ROWS, padded_rows
from autotune.models.take_rows import rows_at, take_rows

TOKENS = ("batch", "norm_length", "features")


class Plan(NamedTuple):
    """Where the choices of all gathered tokens go, one block for each device (`own`)."""

    sizes_GE: jax.Array
    """Rows of each expert of the device; its rows are sorted by expert."""
    places_GKT: jax.Array
    """The row of each of a token's choices here, or -1. At most as many as the device has experts are here. Choices
    come first: TPUs lay out the last two dimensions in tiles, which two choices would fill to a quarter."""
    picks_GKT: jax.Array
    """Which of the token's choices each of them is."""
    choices_GR: jax.Array
    """The reverse of `places`: the choice in each row, numbered choice * T + token, or -1."""


def scope_of(experts: int, per_token: int, run: Execution) -> str:
    """The share of a device's buffer that is filled when tokens are balanced, as the name of a scope."""
    return BALANCED_ROWS.format(per_token, run.layout.expert * choices_here(experts, per_token, run))


def choices_here(experts: int, per_token: int, run: Execution) -> int:
    """How many of a token's choices one device may have."""
    return min(per_token, experts // run.layout.expert)


def dispatch(x_BLD: jax.Array, chosen_BLK: jax.Array, experts: int, run: Execution) -> tuple[jax.Array, Plan]:
    """(rows GxRxD, the plan by which they come back)."""
    here = experts // run.layout.expert

    def local(x, chosen):
        x, chosen = _gathered(x, run), _gathered(chosen, run)
        tokens, per_token = x.shape[0] * x.shape[1], chosen.shape[-1]
        first = jax.lax.axis_index("expert") * here
        plan = assign(chosen.reshape(tokens, per_token).T - first, here, run)
        plan = jax.tree.map(lambda array: array[None], plan)
        return spread(x.reshape(1, tokens, -1), plan.places_GKT, plan.choices_GR), tuple(plan)

    spec = run.sharder.spec
    rows, plan = run.sharder.map(
        local, in_specs=(spec(TOKENS), spec((*TOKENS[:2], None))), out_specs=(spec(("own", None, None)), _specs(run))
    )(x_BLD, chosen_BLK)
    return rows, Plan(*plan)


def combine(out_GRD: jax.Array, gates_BLK: jax.Array, plan: Plan, run: Execution) -> jax.Array:
    """Rows back to tokens, each choice weighted by its gate, summed over experts and over `tensor`: BxLxD."""

    def local(out, gates, *plan):
        _, places, picks, choices = plan
        gates = _gathered(gates, run)
        batch, length = gates.shape[:2]
        rows = take_rows(out, places.reshape(1, -1), choices[..., None]).reshape(*places.shape[1:], -1)
        weights = jnp.take_along_axis(gates.reshape(batch * length, -1).T, picks[0], axis=0)
        mixed = jnp.einsum("ktd,kt->td", rows, weights.astype(rows.dtype)).reshape(batch, length, -1)
        if run.layout.sequence_parallel:
            mixed = jax.lax.psum_scatter(mixed, "tensor", scatter_dimension=1, tiled=True)
        else:
            mixed = jax.lax.psum(mixed, "tensor")
        return jax.lax.psum_scatter(mixed, "expert", scatter_dimension=0, tiled=True)

    spec = run.sharder.spec
    return run.sharder.map(
        local,
        in_specs=(spec(("own", None, None)), spec((*TOKENS[:2], None)), *_specs(run)),
        out_specs=spec(TOKENS),
    )(out_GRD, gates_BLK, *plan)


def assign(chosen_KT: jax.Array, experts: int, run: Execution) -> Plan:
    """One device's plan, without the leading axis. Experts of this device are 0 to `experts` - 1; others have other
    numbers."""
    per_token, tokens = chosen_KT.shape
    each = min(per_token, experts)
    room = padded_rows(tokens * each, run)
    # A running count of each expert's rows, and no sort: XLA for TPUs takes ten seconds to compile one.
    wants = (chosen_KT.reshape(-1, 1) == jnp.arange(experts)[None, :]).astype(jnp.int32)
    ends = jnp.cumsum(wants, axis=0)
    sizes = ends[-1]
    ranks = ((ends - 1 + (jnp.cumsum(sizes) - sizes)[None, :]) * wants).sum(axis=1)
    places = jnp.where(wants.any(axis=1), ranks, -1).reshape(per_token, tokens)
    picks = jnp.tile(jnp.arange(per_token)[:, None], (1, tokens))
    if each < per_token:
        places, picks = (found.T for found in jax.lax.top_k(places.T, each))
    rows = jnp.where(places < 0, room, places).reshape(-1)
    choices = jnp.full(room, -1).at[rows].set(jnp.arange(tokens * each), mode="drop")
    return Plan(sizes, places, picks, choices)


@jax.custom_vjp
def spread(x_BTD: jax.Array, places_BKT: jax.Array, choices_BR: jax.Array) -> jax.Array:
    """Each token to the rows of its choices, BxRxD; its gradient is gathered from them."""
    return rows_at(x_BTD, jnp.where(choices_BR < 0, -1, choices_BR % x_BTD.shape[1]))


def _spread_backward(saved, gradient):
    places, choices = saved
    back = take_rows(gradient, places.reshape(places.shape[0], -1), choices[..., None])
    return back.reshape(*places.shape, -1).sum(axis=1), None, None


spread.defvjp(lambda x, places, choices: (spread(x, places, choices), (places, choices)), _spread_backward)


def _gathered(x: jax.Array, run: Execution) -> jax.Array:
    """What the devices along `expert` hold of the batch, and those along `tensor` of the sequence, BxLx..."""
    x = jax.lax.all_gather(x, "expert", axis=0, tiled=True)
    return jax.lax.all_gather(x, "tensor", axis=1, tiled=True) if run.layout.sequence_parallel else x


def _specs(run: Execution) -> tuple[PartitionSpec, ...]:
    """The cut of each part of a plan."""
    return tuple(run.sharder.spec(("own", *(None,) * count)) for count in (1, 2, 2, 1))
