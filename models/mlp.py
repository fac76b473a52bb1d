"""The dense feed-forward block: three matrices where a gate multiplies the hidden units, else two."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from autotune.meshes.architecture import ACTIVATIONS
from autotune.models.adapters import Twice, fetched
from autotune.models.execution import Execution
from autotune.models.parameters import biased, weight, zeros
from autotune.models.remat import MLP_GATE, MLP_OUT, MLP_UP, keep

FUNCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "swiglu": jax.nn.silu,
    "geglu": jax.nn.gelu,
    "gelu": jax.nn.gelu,
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "silu": jax.nn.silu,
}
"""Activation -> its function: of the gate where there is one, else of the hidden units."""


class MLP(nnx.Module):
    """`width` hidden units."""

    def __init__(self, activation: str, d_model: int, width: int, *, bias: bool = False, rngs: nnx.Rngs):
        self.activation = activation
        d, f = d_model, width
        if ACTIVATIONS[activation] == 3:
            self.gate = weight(rngs, (d, f), ("embed", "mlp"), fan_in=d)
        self.up = weight(rngs, (d, f), ("embed", "mlp"), fan_in=d)
        self.down = weight(rngs, (f, d), ("mlp", "embed"), fan_in=f)
        if bias:
            self.up_bias, self.down_bias = zeros((f,), ("mlp",)), zeros((d,), ("norm",))
            if hasattr(self, "gate"):
                self.gate_bias = zeros((f,), ("mlp",))

    def __call__(self, x_BLD: jax.Array | Twice, run: Execution) -> jax.Array:
        def widen(parameter, bias, name):
            y = fetched(parameter, ("embed", "mlp"), run)("bld,df->blf", x_BLD, ("batch", "length", "mlp"))
            return keep(biased(y, bias), name)

        up = widen(self.up, getattr(self, "up_bias", None), MLP_UP)
        gate = widen(self.gate, getattr(self, "gate_bias", None), MLP_GATE) if hasattr(self, "gate") else None
        narrow = fetched(self.down, ("mlp", "embed"), run)
        hidden = activate(self.activation, up, gate)
        out = narrow("blf,fd->bld", hidden, ("batch", "norm_length", "features"))
        return keep(biased(out, getattr(self, "down_bias", None)), MLP_OUT)


def activate(activation: str, up: jax.Array, gate: jax.Array | None) -> jax.Array:
    """The hidden units after the activation."""
    function = FUNCTIONS[activation]
    return function(up) if gate is None else function(gate) * up
