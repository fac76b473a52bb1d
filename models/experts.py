"""Mixture of experts: top-k routing; a fixed capacity per sequence, dispatch by all-to-all over `expert`, or none.

Letters: Batch, Length, D model, F hidden, Experts, K experts a token, Capacity. The slots of one sequence are ExC rows,
filled in the order of the tokens (so no token's fate depends on a later one); a token beyond an expert's capacity
passes it by. Capacity belongs to a sequence, not to a device, so that no layout changes which tokens are dropped.
Without a capacity no token is dropped (`autotune.models.dropless`).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from autotune.meshes.architecture import MlpKind
from autotune.models import dropless
from autotune.models.adapters import fetched
from autotune.models.execution import Execution, unsplit
from autotune.models.grouped_matmul import grouped_bias, grouped_matmul
from autotune.models.mlp import MLP, activate
from autotune.models.parameters import aligned, biased, weight, zeros
from autotune.models.remat import EXPERT_TOKENS, MLP_GATE, MLP_OUT, MLP_UP, keep
from autotune.models.take_rows import take_rows

BALANCE = 0.01
"""Weight of the load-balance loss in the loss (Fedus et al. 2021, arXiv 2101.03961, section 2.2)."""


class Experts(nnx.Module):
    """Router, routed experts, and shared experts as one wide MLP. Returns (output, load-balance loss).

    `capacity_factor`: None drops no token."""

    def __init__(self, kind: MlpKind, d_model: int, capacity_factor: float | None, *, rngs: nnx.Rngs):
        self.activation = kind.activation
        self.per_token, self.capacity_factor = kind.experts_per_token, capacity_factor
        e, d, f = kind.experts, d_model, kind.width
        self.router = weight(rngs, (d, e), ("embed", "router"), fan_in=d)
        if kind.matrices == 3:
            self.gate = weight(rngs, (e, d, f), ("experts", "embed", "mlp"), fan_in=d)
        self.up = weight(rngs, (e, d, f), ("experts", "embed", "mlp"), fan_in=d)
        self.down = weight(rngs, (e, f, d), ("experts", "mlp", "embed"), fan_in=f)
        if kind.shared_width:
            self.shared = MLP(kind.activation, d, kind.shared_width, rngs=rngs)
        if kind.shared_gate:
            self.shared_gate = weight(rngs, (d, 1), ("embed", "router"), fan_in=d)
        if kind.router_bias:
            self.router_bias = zeros((e,), ("router",))
        if kind.bias:
            self.up_bias, self.down_bias = zeros((e, f), ("experts", "mlp")), zeros((e, d), ("experts", "norm"))
            if kind.matrices == 3:
                self.gate_bias = zeros((e, f), ("experts", "mlp"))

    def __call__(self, x_BLD: jax.Array, positions_L: jax.Array, run: Execution) -> tuple[jax.Array, jax.Array]:
        """`x_BLD`: the norm's output, whole along `tensor` (`unsplit`) or not: each way takes what it needs."""
        whole_BLD = unsplit(x_BLD, run)
        if self.capacity_factor is None:
            mixed, load, probabilities = self._dropless(x_BLD, run)
        else:
            mixed, load, probabilities = self._in_slots(whole_BLD, positions_L, self.capacity_factor, run)
        # load x probability, averaged over tokens: 1 when balanced (Fedus et al. 2021, eq. 4, here per sequence)
        balance = jnp.einsum("be,ble->bl", load, probabilities).mean()
        if hasattr(self, "shared"):
            shared = self.shared(whole_BLD, run)
            if hasattr(self, "shared_gate"):
                weights = jax.nn.sigmoid(self._scores(self.shared_gate, whole_BLD, run)).astype(shared.dtype)
                shared = run.sharder.constrain(weights, ("batch", "norm_length", None)) * shared
            mixed = mixed + shared
        return mixed, BALANCE * balance

    def _in_slots(self, x_BLD, positions_L, capacity_factor: float, run: Execution):
        """(output, load BxE, probabilities) with room for so many times the mean load."""
        scores = biased(self._scores(self.router, x_BLD, run), getattr(self, "router_bias", None))
        probabilities, gates, chosen = choose(scores, self.per_token, run)
        slots, places, owners, load = dispatch(x_BLD, chosen, positions_L, self.router.shape[-1], capacity_factor, run)
        out = self._experts(keep(slots, EXPERT_TOKENS), run)
        return combine(out, gates, places, owners, run), load, probabilities

    def _dropless(self, x_BLD: jax.Array, run: Execution):
        """(output, load BxE, probabilities) with no token dropped."""
        x_BLD = run.sharder.constrain(x_BLD, dropless.TOKENS)
        length, experts = dropless.TOKENS[1], self.router.shape[-1]
        scores = biased(self._scores(self.router, x_BLD, run, length), getattr(self, "router_bias", None))
        probabilities, gates, chosen = choose(scores, self.per_token, run, length)
        rows, plan = dropless.dispatch(x_BLD, chosen, experts, run)
        rows, scope = keep(rows, EXPERT_TOKENS), dropless.scope_of(experts, self.per_token, run)

        def multiply(x, name: str):
            names = ("experts", "mlp", "embed") if name == "down" else ("experts", "embed", "mlp")
            w = run.sharder.fetch(getattr(self, name)[...], names, run.dtype)
            y = grouped_matmul(x, plan.sizes_GE, w, names, run, scope)
            bias = getattr(self, f"{name}_bias", None)
            if bias is None:
                return y
            return grouped_bias(y, plan.sizes_GE, bias[...], ("experts", "norm" if name == "down" else "mlp"), run)

        up = keep(multiply(rows, "up"), MLP_UP)
        gate = keep(multiply(rows, "gate"), MLP_GATE) if hasattr(self, "gate") else None
        out = keep(multiply(activate(self.activation, up, gate), "down"), MLP_OUT)
        wants = (chosen[..., None] == jnp.arange(experts)[None, None, None, :]).sum(axis=(1, 2), dtype=jnp.float32)
        load = run.sharder.constrain(wants, ("batch", None)) * (experts / (chosen.shape[1] * self.per_token))
        return dropless.combine(out, gates, plan, run), load, probabilities

    def _scores(self, parameter: nnx.Param, x_BLD: jax.Array, run: Execution, length: str = "length") -> jax.Array:
        """Each token's scores in float32, whole along `tensor` unless `length` is cut along it."""
        w = run.sharder.fetch(parameter[...], ("embed", "router"), run.dtype)
        return run.sharder.einsum("bld,de->ble", x_BLD.astype(jnp.float32), w, ("batch", length, None))

    def _experts(self, slots_BECD: jax.Array, run: Execution) -> jax.Array:
        """Every expert's MLP on its slots; results cut over `tensor` along D, the sums over F reduced into that."""
        hidden_axes = ("expert_batch", "experts", "slots", "mlp")

        def biased(y, bias):
            # One row for each expert, whatever its slot.
            return y if bias is None else y + aligned(bias[...][:, None, :], y)

        def widen(parameter, bias, name):
            names = ("experts", "embed", "mlp")
            return keep(biased(fetched(parameter, names, run)("becd,edf->becf", slots_BECD, hidden_axes), bias), name)

        up = widen(self.up, getattr(self, "up_bias", None), MLP_UP)
        gate = widen(self.gate, getattr(self, "gate_bias", None), MLP_GATE) if hasattr(self, "gate") else None
        hidden = activate(self.activation, up, gate)
        out_axes = ("expert_batch", "experts", "slots", "slot_features")
        out = fetched(self.down, ("experts", "mlp", "embed"), run)("becf,efd->becd", hidden, out_axes)
        if hasattr(self, "down_bias"):
            bias = aligned(self.down_bias[...][:, None, :], out)
            out = out + run.sharder.constrain(bias, (None, "experts", None, "slot_features"))
        return keep(out, MLP_OUT)


def choose(scores_BLE: jax.Array, per_token: int, run: Execution, length: str = "length"):
    """(probabilities BxLxE, gates and experts of each token's choices BxLxK), each device for its own tokens.

    Left to the partitioner, top-k gathers the scores of the whole batch where they are repeated along another axis.
    """

    def local(scores):
        probabilities = jax.nn.softmax(scores, axis=-1)
        gates, chosen = jax.lax.top_k(probabilities, per_token)
        return probabilities, gates / gates.sum(axis=-1, keepdims=True), chosen

    spec = run.sharder.spec(("batch", length, None))
    return run.sharder.map(local, in_specs=(spec,), out_specs=(spec, spec, spec))(scores_BLE)


def capacity(length: int, experts: int, per_token: int, factor: float) -> int:
    """Slots of one expert for one sequence: never more than its tokens."""
    return min(length, math.ceil(factor * length * per_token / experts))


def dispatch(x_BLD, chosen_BLK, positions_L, experts: int, factor: float, run: Execution):
    """Tokens into slots: (BxExCxD, cut over `expert` along E; slot of each choice BxLxK; choice in each slot BxEC; load
    BxE). Slots of one sequence are dealt out over `context`, rows of D over `tensor`, so that no copy is sent twice."""
    context = run.layout.context
    per_token = chosen_BLK.shape[-1]

    def local(x, chosen, positions):
        x, chosen, positions = (
            jax.lax.all_gather(value, "context", axis=axis, tiled=True)
            for value, axis in ((x, 1), (chosen, 1), (positions, 0))
        )
        limit = capacity(x.shape[1], experts, per_token, factor)
        size = limit + -limit % context  # slots past the capacity stay empty
        plan = jax.vmap(lambda one: assign(one, positions, experts, limit, size))
        places, owners, load = plan(chosen)
        tokens = jnp.where(owners < 0, -1, owners // per_token)
        rows = x.shape[1]
        mine = _context_part(tokens.reshape(-1, experts, size), context)
        own = _local_places(places, size, context)
        slots = take_rows(x, mine.reshape(mine.shape[0], -1), own.reshape(own.shape[0], rows, per_token))
        slots = slots.reshape(*mine.shape, x.shape[-1])
        slots = jax.lax.all_to_all(slots, "expert", split_axis=1, concat_axis=0, tiled=True)
        return slots, places, owners, load

    spec = run.sharder.spec
    return run.sharder.map(
        local,
        in_specs=(
            spec(("batch", "length", "slot_features")),
            spec(("batch", "length", None)),
            spec(("length",)),
        ),
        out_specs=(
            spec(("expert_batch", "experts", "slots", "slot_features")),
            spec(("batch", None, None)),
            spec(("batch", None)),
            spec(("batch", None)),
        ),
    )(x_BLD, chosen_BLK, positions_L)


def combine(out_BECD, gates_BLK, places_BLK, owners_BS, run: Execution) -> jax.Array:
    """Slots back to tokens, each choice weighted by its gate: the way of `dispatch` in reverse, BxLxD."""
    context = run.layout.context

    def local(out, gates, places, owners):
        out = jax.lax.all_to_all(out, "expert", split_axis=0, concat_axis=1, tiled=True)
        batch, experts, part, width = out.shape
        length, per_token = places.shape[1:]
        gates = jax.lax.all_gather(gates, "context", axis=1, tiled=True)
        own = _local_places(places, part * context, context).reshape(batch, -1)
        mine = _context_part(owners.reshape(batch, experts, -1), context).reshape(batch, -1, 1)
        rows = take_rows(out.reshape(batch, -1, width), own, mine).reshape(batch, length, per_token, width)
        mixed = jnp.einsum("blkd,blk->bld", rows, gates.astype(rows.dtype))
        return jax.lax.psum_scatter(mixed, "context", scatter_dimension=1, tiled=True)

    spec = run.sharder.spec
    mixed = run.sharder.map(
        local,
        in_specs=(
            spec(("expert_batch", "experts", "slots", "slot_features")),
            spec(("batch", "length", None)),
            spec(("batch", None, None)),
            spec(("batch", None)),
        ),
        out_specs=spec(("batch", "length", "slot_features")),
    )(out_BECD, gates_BLK, places_BLK, owners_BS)
    return run.sharder.constrain(mixed, ("batch", "norm_length", "features"))


def assign(chosen_LK: jax.Array, positions_L: jax.Array, experts: int, limit: int, size: int):
    """One sequence's plan: (slot of each choice LxK or -1, choice in each slot or -1, load of each expert).

    Choices are numbered row * K + k. An expert takes the `limit` earliest positions; load is its share of the choices
    times the number of experts, 1 when balanced.
    """
    length, per_token = chosen_LK.shape
    choices = chosen_LK.reshape(-1)
    order_key = (choices * length + jnp.repeat(positions_L, per_token)) * per_token
    order = jnp.argsort(order_key + jnp.tile(jnp.arange(per_token), length))
    counts = (choices[:, None] == jnp.arange(experts)[None, :]).sum(axis=0, dtype=jnp.int32)
    starts = jnp.cumsum(counts) - counts
    rank = jnp.argsort(order) - starts[choices]
    places = jnp.where(rank < limit, choices * size + rank, -1)
    slot = jnp.arange(size)[None, :]
    filled = slot < jnp.minimum(counts, limit)[:, None]
    owners = jnp.where(filled, order[jnp.where(filled, starts[:, None] + slot, 0)], -1)
    load = counts.astype(jnp.float32) * (experts / choices.size)
    return places.reshape(length, per_token), owners.reshape(-1), load


def _context_part(slots_BEC: jax.Array, context: int) -> jax.Array:
    """This device's slots of every expert."""
    part = slots_BEC.shape[-1] // context
    return jax.lax.dynamic_slice_in_dim(slots_BEC, jax.lax.axis_index("context") * part, part, axis=2)


def _local_places(places: jax.Array, size: int, context: int) -> jax.Array:
    """Places among this device's slots; -1 for those of another."""
    part = size // context
    expert, slot = places // size, places % size
    here = (places >= 0) & (slot // part == jax.lax.axis_index("context"))
    return jnp.where(here, expert * part + slot % part, -1)
