"""What the backward pass finds saved of each layer: the policies behind `Layout.remat`.

Values with a name (`keep(x, name)`) are the candidates:

    projections   outputs of every weight's matmul: query, key, value (rotated), attention out, MLP in, MLP out
    attention     the attention kernel's output and its softmax statistics
    tokens        an expert's tokens after their all-to-all

and each policy saves, besides the layer's input:

    none        whatever the backward pass reads
    dots        projections, attention and tokens                    (MaxText `minimal_with_context`)
    minimal     projections and tokens; the attention kernel runs again         (MaxText `minimal`)
    attention   attention and its projections; the MLP runs again    (MaxText `save_dot_with_context_except_mlp`)
    full        nothing                                              (MaxText `full`)
    offload     nothing, and the layer's input waits in host memory
"""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name

ATTENTION = "attention"
ATTENTION_PROJECTIONS = "attention_projections"
MLP_PROJECTIONS = "mlp_projections"
EXPERT_TOKENS = "expert_tokens"
LAYER_INPUT = "layer_input"

SAVED = {
    "dots": (ATTENTION, ATTENTION_PROJECTIONS, MLP_PROJECTIONS, EXPERT_TOKENS),
    "minimal": (ATTENTION_PROJECTIONS, MLP_PROJECTIONS, EXPERT_TOKENS),
    "attention": (ATTENTION, ATTENTION_PROJECTIONS),
    "full": (),
}


def keep(x: jax.Array, name: str) -> jax.Array:
    """`x`, saved for the backward pass by the policies that list `name`."""
    return checkpoint_name(x, name)


def rematerialise(layer: Callable, policy: str) -> Callable:
    """`layer` with its forward pass run again in the backward pass, but for what the policy saves."""
    if policy == "none":
        return layer
    if policy == "offload":
        saved = jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[LAYER_INPUT],
            offload_src="device",
            offload_dst="pinned_host",
        )
    else:
        saved = jax.checkpoint_policies.save_only_these_names(*SAVED[policy])
    # Inside a scan nothing can be merged with the first forward pass, so the barriers that prevent it are not needed.
    return jax.checkpoint(layer, policy=saved, prevent_cse=False)
