"""What the backward pass finds saved of each layer: the sets behind `Layout.remat`.

Values with a name (`keep(x, name)`) are the candidates; `autotune.meshes.remat_sets` lists them, and the policies that
are names of sets. `none` is no set: the backward pass finds whatever it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from autotune.meshes.remat_sets import places_of

ATTENTION = "attention"
ATTENTION_OUT = "attention_out"
QUERY, KEY, VALUE = "query", "key", "value"
MLP_GATE, MLP_UP, MLP_OUT = "mlp_gate", "mlp_up", "mlp_out"
EXPERT_TOKENS = "expert_tokens"
LAYER_INPUT = "layer_input"


def keep(x: jax.Array, name: str) -> jax.Array:
    """`x`, saved for the backward pass by the sets that have `name`."""
    return checkpoint_name(x, name)


def rematerialise(layer: Callable, policy: str, *, alone: bool = True) -> Callable:
    """`layer` with its forward pass run again in the backward pass, but for what the set saves or offloads.

    `alone`: whether it is the only layer of its turn of a loop. The second forward pass of another layer would not wait
    for the gradient that its backward pass begins with: the compiler may run those of all layers first.
    """
    if policy == "none":
        return layer
    places = places_of(policy)
    # The layer's input is the argument of what is checkpointed: it is saved without a name.
    saved = [name for name, place in places.items() if place == "device" and name != LAYER_INPUT]
    waiting = [name for name, place in places.items() if place == "host"]
    if waiting:
        rule = jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=saved,
            names_which_can_be_offloaded=waiting,
            offload_src="device",
            offload_dst="pinned_host",
        )
    else:
        rule = jax.checkpoint_policies.save_only_these_names(*saved)
    # Inside a scan nothing can be merged with the first forward pass, so the barriers that prevent it are not needed;
    # they also hold the second forward pass back until the gradient is there.
    return jax.checkpoint(layer, policy=rule, prevent_cse=not alone)


def one_after_another(layers: Iterable[tuple[Callable, Any]], x: jax.Array, policy: str) -> tuple[jax.Array, jax.Array]:
    """(x after all layers, sum of their load-balance losses); each pair is (layer, what it takes beside x), and each
    layer is rematerialised by itself."""
    turn, balances = list(layers), []
    for layer, own in turn:
        x, balance = rematerialise(layer, policy, alone=len(turn) == 1)(x, own)
        balances.append(balance)
    return x, sum(balances[1:], balances[0])
