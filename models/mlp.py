"""The dense feed-forward block: SwiGLU with three matrices or GELU with two."""

from __future__ import annotations

import jax
from flax import nnx

from autotune.meshes.transformer import TransformerShape
from autotune.models.execution import Execution
from autotune.models.parameters import weight
from autotune.models.remat import MLP_GATE, MLP_OUT, MLP_UP, keep


class MLP(nnx.Module):
    """`d_ff` hidden units of `shape`, or `width` of them where given (shared experts)."""

    def __init__(self, shape: TransformerShape, *, rngs: nnx.Rngs, width: int | None = None):
        d, f = shape.d_model, width or shape.d_ff
        if shape.mlp == "swiglu-3mat":
            self.gate = weight(rngs, (d, f), ("embed", "mlp"), fan_in=d)
        self.up = weight(rngs, (d, f), ("embed", "mlp"), fan_in=d)
        self.down = weight(rngs, (f, d), ("mlp", "embed"), fan_in=f)

    def __call__(self, x_BLD: jax.Array, run: Execution) -> jax.Array:
        def widen(parameter, name):
            w = run.sharder.fetch(parameter[...], ("embed", "mlp"), run.dtype)
            y = run.sharder.einsum("bld,df->blf", x_BLD, w, ("batch", "length", "mlp"))
            return keep(y, name)

        up = widen(self.up, MLP_UP)
        hidden = jax.nn.silu(widen(self.gate, MLP_GATE)) * up if hasattr(self, "gate") else jax.nn.gelu(up)
        w = run.sharder.fetch(self.down[...], ("mlp", "embed"), run.dtype)
        out = run.sharder.einsum("blf,fd->bld", hidden, w, ("batch", "norm_length", "features"))
        return keep(out, MLP_OUT)
