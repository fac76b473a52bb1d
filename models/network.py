"""The whole transformer: embedding, a scanned stack of layers, final norm, logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from autotune.meshes.transformer import TransformerShape
from autotune.models.attention import Attention
from autotune.models.execution import Execution
from autotune.models.experts import Experts
from autotune.models.mlp import MLP
from autotune.models.parameters import Norm, weight
from autotune.models.remat import LAYER_INPUT, keep, rematerialise


class Layer(nnx.Module):
    """Attention, then MLP, each behind a norm and added to the residual stream."""

    def __init__(self, shape: TransformerShape, *, rngs: nnx.Rngs):
        self.attention_norm = Norm(shape.d_model)
        self.attention = Attention(shape, rngs=rngs)
        self.mlp_norm = Norm(shape.d_model)
        self.mlp = Experts(shape, rngs=rngs) if shape.experts else MLP(shape, rngs=rngs)

    def __call__(self, x_BLD: jax.Array, positions_L: jax.Array, run: Execution) -> tuple[jax.Array, jax.Array]:
        """(x, load-balance loss of its experts).

        Under sequence parallelism x and its norms are cut along `tensor` over the length, the matmuls' inputs not:
        XLA puts an all-gather before the projections and a reduce-scatter behind them."""
        x = keep(x_BLD, LAYER_INPUT)
        x = x + self.attention(unsplit(self.attention_norm(x), run), positions_L, run)
        y = unsplit(self.mlp_norm(x), run)
        if isinstance(self.mlp, Experts):
            out, balance = self.mlp(y, positions_L, run)
            return x + out, balance
        return x + self.mlp(y, run), jnp.zeros(())


def unsplit(x_BLD: jax.Array, run: Execution) -> jax.Array:
    """The output of a norm, whole along `tensor`. Without the first constraint XLA may gather the norm's float32."""
    x = run.sharder.constrain(x_BLD, ("batch", "norm_length", "features"))
    return run.sharder.constrain(x, ("batch", "length", "features"))


class Network(nnx.Module):
    """A decoder or encoder. Parameters of all layers are stacked on a leading `layers` axis, whatever the layout."""

    def __init__(self, shape: TransformerShape, *, rngs: nnx.Rngs):
        @nnx.split_rngs(splits=shape.layers)
        @nnx.vmap(in_axes=(0,), out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layers"})
        def stack(rngs):
            return Layer(shape, rngs=rngs)

        self.causal = shape.kind == "decoder"
        self.embedding = weight(rngs, (shape.vocab, shape.d_model), ("vocab", "embed"), fan_in=shape.d_model)
        self.layers = stack(rngs)
        self.norm = Norm(shape.d_model)
        if not shape.tied_embeddings:
            self.unembedding = weight(rngs, (shape.d_model, shape.vocab), ("embed", "vocab"), fan_in=shape.d_model)

    def __call__(self, tokens_BL: jax.Array, positions_L: jax.Array, run: Execution) -> tuple[jax.Array, jax.Array]:
        """(logits BxLxV, load-balance loss); `positions_L`: where in the sequence each column stands."""
        x, balance = self.stack(self.embed(tokens_BL, run), positions_L, run)
        return self.logits(x, run), balance

    def embed(self, tokens_BL: jax.Array, run: Execution) -> jax.Array:
        """The residual stream at the bottom, BxLxD."""
        table = run.sharder.fetch(self.embedding[...], ("vocab", "embed"), run.dtype)
        # First whole along `tensor`, so that each device looks up among its own part of the vocabulary and the results
        # are summed; asked for its share of the length at once, XLA gathers the whole table instead.
        axes = ("batch", "length", "features")
        if run.sharder.explicit:
            x = table.at[tokens_BL].get(out_sharding=run.sharder.spec(axes))
        else:
            x = run.sharder.constrain(jnp.take(table, tokens_BL, axis=0), axes)
        return run.sharder.constrain(x, ("batch", "norm_length", "features"))

    def stack(self, x_BLD: jax.Array, positions_L: jax.Array, run: Execution):
        """All layers, one after another: (x, sum of their load-balance losses)."""
        definition, parameters = nnx.split(self.layers)

        def layer(x, parameters):
            return nnx.merge(definition, parameters)(x, positions_L, run)

        x, balance = jax.lax.scan(rematerialise(layer, run.layout.remat), x_BLD, parameters)
        return x, balance.sum()

    def logits(self, x_BLD: jax.Array, run: Execution) -> jax.Array:
        """Scores over the vocabulary in the compute dtype, cut over `vocab`."""
        x = unsplit(self.norm(x_BLD), run)
        axes = ("batch", "length", "vocab")
        if hasattr(self, "unembedding"):
            w = run.sharder.fetch(self.unembedding[...], ("embed", "vocab"), run.dtype)
            return run.sharder.einsum("bld,dv->blv", x, w, axes)
        w = run.sharder.fetch(self.embedding[...], ("vocab", "embed"), run.dtype)
        return run.sharder.einsum("bld,vd->blv", x, w, axes)
