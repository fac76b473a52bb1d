"""The whole transformer: embedding, layers (scanned or not), final norm, logits."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from autotune.meshes.architecture import Architecture, LayerKind
from autotune.meshes.lora import Lora
from autotune.meshes.transformer import TransformerShape
from autotune.models.adapters import Twice, freeze
from autotune.models.attention import Attention
from autotune.models.execution import Execution, unsplit
from autotune.models.experts import Experts
from autotune.models.loss import cross_entropy, tiled_cross_entropy
from autotune.models.mlp import MLP
from autotune.models.packing import Places
from autotune.models.parameters import Norm, aligned, weight
from autotune.models.remat import LAYER_INPUT, keep, one_after_another

LOGIT_CAP = 30.0
"""Gemma 2's cap of logits (arXiv 2408.00118, section 2)."""


def norm_of(model: Architecture) -> Norm:
    """A norm of the residual stream."""
    return Norm(model.d_model, scale=model.norm_scale, offset=model.norm_offset)


class Layer(nnx.Module):
    """Attention, then MLP, each behind a norm and added to the residual stream; with four norms also before one."""

    def __init__(
        self, model: Architecture, kind: LayerKind, capacity_factor: float | None, lora: Lora | None, *, rngs: nnx.Rngs
    ):
        self.attention_norm = norm_of(model)
        self.attention = Attention(kind.attention, model.d_model, model.kind == "decoder", rngs=rngs)
        self.mlp_norm = norm_of(model)
        if kind.mlp.experts:
            self.mlp: Experts | MLP = Experts(kind.mlp, model.d_model, capacity_factor, rngs=rngs)
        else:
            self.mlp = MLP(kind.mlp.activation, model.d_model, kind.mlp.width, bias=kind.mlp.bias, rngs=rngs)
        if kind.norms == 4:
            self.attention_out_norm, self.mlp_out_norm = norm_of(model), norm_of(model)
        self.adapted = lora is not None
        if lora is not None:
            shared = getattr(self.mlp, "shared", None)
            for module in (self.attention, self.mlp, *([shared] if shared is not None else [])):
                freeze(module, lora, rngs)

    def __call__(self, x_BLD: jax.Array, places: Places, run: Execution) -> tuple[jax.Array, jax.Array]:
        """(x, load-balance loss of its experts).

        Under sequence parallelism x and its norms are cut along `tensor` over the length, the matmuls' inputs not:
        XLA puts an all-gather before the projections and a reduce-scatter behind them."""
        x = keep(x_BLD, LAYER_INPUT)
        x = x + self._out("attention", self.attention(self._read(self.attention_norm(x), run), places, run))
        y = self.mlp_norm(x)
        if isinstance(self.mlp, Experts):
            out, balance = self.mlp(y, places.order_L, run)
            return x + self._out("mlp", out), balance
        return x + self._out("mlp", self.mlp(self._read(y, run), run)), jnp.zeros(())

    def _read(self, normed_BLD: jax.Array, run: Execution) -> jax.Array | Twice:
        """What the matmuls of a block read of a norm's output."""
        if not self.adapted:
            return unsplit(normed_BLD, run)

        @jax.custom_vjp
        def twice(normed):
            x = unsplit(normed, run)
            return Twice(x, x)

        def added(_, gradients):
            # First whole along `tensor`, as without adapters: asked for its share of the sequence at once, the compiler
            # for TPUs reduces the gradient of each matrix by itself.
            whole = (run.sharder.constrain(part, ("batch", "length", "features")) for part in gradients)
            cut = [run.sharder.constrain(part, ("batch", "norm_length", "features")) for part in whole]
            return (cut[0] + cut[1],)

        twice.defvjp(lambda normed: (twice(normed), None), added)
        return twice(normed_BLD)

    def _out(self, block: str, out_BLD: jax.Array) -> jax.Array:
        norm = getattr(self, f"{block}_out_norm", None)
        return out_BLD if norm is None else norm(out_BLD)


class Pattern(nnx.Module):
    """Layers that differ and follow one another, as often as the pattern repeats."""

    def __init__(
        self, model: Architecture, kinds: tuple[LayerKind, ...], capacity_factor: float | None, lora: Lora | None, *,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        for index, kind in enumerate(kinds):
            setattr(self, f"layer_{index}", Layer(model, kind, capacity_factor, lora, rngs=rngs))
        self.count = len(kinds)


def layers_of(stacked: Layer | Pattern) -> list[Layer]:
    """The layers of one turn of a stack's loop, in order; each parameter has one entry a turn on its first axis."""
    if isinstance(stacked, Layer):
        return [stacked]
    return [getattr(stacked, f"layer_{index}") for index in range(stacked.count)]


class Network(nnx.Module):
    """A decoder or encoder. Parameters of layers are stacked on a leading `layers` axis, whatever the layout: of all
    layers, of every layer of a pattern that repeats, or of each part of the model within which a pattern repeats.
    `lora`: the adapters beside what is then frozen. `scan_layers` False: all layers are one pattern that does not
    repeat, so that each has parameters of its own (their `layers` axis has one entry) and none runs in a loop."""

    def __init__(self, shape: TransformerShape, *, rngs: nnx.Rngs, lora: Lora | None = None, scan_layers: bool = True):
        model = shape.described

        def stack(kinds, count):
            @nnx.split_rngs(splits=count)
            @nnx.vmap(in_axes=(0,), out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layers"})
            def stacked(rngs):
                if len(kinds) == 1:
                    return Layer(model, kinds[0], shape.capacity_factor, lora, rngs=rngs)
                return Pattern(model, kinds, shape.capacity_factor, lora, rngs=rngs)

            return stacked(rngs)

        self.causal, self.logit_cap, self.frozen = shape.kind == "decoder", model.logit_cap, lora is not None
        self.embedding = weight(rngs, (shape.vocab, shape.d_model), ("vocab", "embed"), fan_in=shape.d_model)
        if model.position_rows:
            self.positions = weight(
                rngs, (model.position_rows, shape.d_model), ("positions", "embed"), fan_in=shape.d_model
            )
        parts = model.repeating_parts if scan_layers else ((model.layers, 1),)
        self.scanned = scan_layers
        self.stacks = ("layers",) if len(parts) == 1 else tuple(f"layers_{index}" for index in range(len(parts)))
        for name, (kinds, count) in zip(self.stacks, parts, strict=True):
            setattr(self, name, stack(kinds, count))
        if model.last_norm:
            self.norm = norm_of(model)
        if not shape.tied_embeddings:
            self.unembedding = weight(rngs, (shape.d_model, shape.vocab), ("embed", "vocab"), fan_in=shape.d_model)

    def __call__(self, tokens_BL: jax.Array, places: Places, run: Execution) -> tuple[jax.Array, jax.Array]:
        """(logits BxLxV, load-balance loss)."""
        x, balance = self.last_stream(tokens_BL, places, run)
        return self.logits(x, run), balance

    def last_stream(self, tokens_BL: jax.Array, places: Places, run: Execution) -> tuple[jax.Array, jax.Array]:
        """(the residual stream behind the last layer BxLxD, load-balance loss)."""
        return self.stack(self.embed(tokens_BL, places.positions, run), places, run)

    def losses(self, x_BLD: jax.Array, targets_BL: jax.Array, run: Execution) -> jax.Array:
        """Cross-entropy of each position, float32, of the residual stream behind the last layer."""
        if run.layout.vocab_tiles == 1:
            return cross_entropy(self.logits(x_BLD, run), targets_BL)
        weight, axes = self.embedding, ("vocab", "embed")
        if hasattr(self, "unembedding"):
            weight, axes = self.unembedding, ("embed", "vocab")
        return tiled_cross_entropy(
            self._last(x_BLD, run), weight[...], axes, targets_BL, self.capped, run, frozen=self.frozen
        )

    def embed(self, tokens_BL: jax.Array, positions: jax.Array, run: Execution) -> jax.Array:
        """The residual stream at the bottom, BxLxD. `positions`: L, or BxL where sequences are packed."""
        table = run.sharder.fetch(self.embedding[...], ("vocab", "embed"), run.dtype)
        # First whole along `tensor`, so that each device looks up among its own part of the vocabulary and the results
        # are summed; asked for its share of the length at once, XLA gathers the whole table instead.
        axes = ("batch", "length", "features")
        if run.sharder.explicit:
            x = table.at[tokens_BL].get(out_sharding=run.sharder.spec(axes))
        else:
            x = run.sharder.constrain(jnp.take(table, tokens_BL, axis=0), axes)
        if hasattr(self, "positions"):
            learned = run.sharder.fetch(self.positions[...], ("positions", "embed"), run.dtype)
            cut = axes if positions.ndim == 2 else ("length", "features")
            if run.sharder.explicit:
                rows = learned.at[positions].get(out_sharding=run.sharder.spec(cut))
            else:
                rows = run.sharder.constrain(jnp.take(learned, positions, axis=0), cut)
            x = x + aligned(rows, x)
        return run.sharder.constrain(x, ("batch", "norm_length", "features"))

    def stack(self, x_BLD: jax.Array, places: Places, run: Execution):
        """All layers, one after another: (x, sum of their load-balance losses)."""

        def layer(definition, x, own):
            return nnx.merge(definition, own)(x, places, run)

        x, total = x_BLD, None
        for name in self.stacks:
            definitions, parameters = zip(*map(nnx.split, layers_of(getattr(self, name))), strict=True)
            calls = [partial(layer, definition) for definition in definitions]

            def turn(x, parameters, calls=calls):
                return one_after_another(zip(calls, parameters, strict=True), x, run.layout.remat)

            if not self.scanned:
                return turn(x, jax.tree.map(lambda leaf: leaf[0], parameters))
            x, balance = jax.lax.scan(turn, x, parameters)
            total = balance.sum() if total is None else total + balance.sum()
        return x, total

    def logits(self, x_BLD: jax.Array, run: Execution) -> jax.Array:
        """Scores over the vocabulary in the compute dtype, cut over `vocab`."""
        return self.capped(self._project(self._last(x_BLD, run), run))

    def capped(self, logits: jax.Array) -> jax.Array:
        """The logits, soft-capped where the model does so."""
        return LOGIT_CAP * jnp.tanh(logits / LOGIT_CAP) if self.logit_cap else logits

    def _last(self, x_BLD: jax.Array, run: Execution) -> jax.Array:
        return unsplit(self.norm(x_BLD) if hasattr(self, "norm") else x_BLD, run)

    def _project(self, x: jax.Array, run: Execution) -> jax.Array:
        axes = ("batch", "length", "vocab")
        if hasattr(self, "unembedding"):
            w = run.sharder.fetch(self.unembedding[...], ("embed", "vocab"), run.dtype)
            return run.sharder.einsum("bld,dv->blv", x, w, axes)
        w = run.sharder.fetch(self.embedding[...], ("vocab", "embed"), run.dtype)
        return run.sharder.einsum("bld,vd->blv", x, w, axes)
