"""Train steps as users bring them, at real widths: what prices from a trace and from probes are checked on.

None of them is annotated for this tool, none is built from a layout; layers are scanned where their authors would.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training.train_state import TrainState

from autotune.workload.workload import Workload

WIDTH, HIDDEN, HEADS, HEAD, LAYERS, VOCAB = 1024, 4096, 16, 64, 8, 32768
BATCH, SEQ = 64, 1024
ADAM = optax.adamw(1e-3)


def _tokens() -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct((BATCH, SEQ), jnp.int32) for name in ("x", "y")}


def _normal(key: int, *shape: int) -> jax.Array:
    return 0.02 * jax.random.normal(jax.random.key(key), shape)


def _norm(x: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt((wide**2).mean(-1, keepdims=True) + 1e-6)).astype(x.dtype)


def _entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels).mean()


def _adam_step(loss: Callable) -> Callable:
    """The loop body of the Optax tutorials, for a loss of (params, batch)."""

    def step(params, opt_state, batch):
        value, gradients = jax.value_and_grad(loss)(params, batch)
        updates, opt_state = ADAM.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    return step


def _stacked(name: str, layer: Callable, shapes: dict[str, tuple[int, ...]]) -> Workload:
    """A language model of scanned, checkpointed layers: a plain tree of arrays without any annotation."""

    def make():
        layers = {key: _normal(index, LAYERS, *shape) for index, (key, shape) in enumerate(shapes.items())}
        params = {"table": _normal(50, VOCAB, WIDTH), "layers": layers, "head": _normal(51, WIDTH, VOCAB)}
        return params, ADAM.init(params)

    def loss(params, batch):
        half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
        x = half["table"][batch["x"]]
        x, _ = jax.lax.scan(jax.checkpoint(lambda x, w: (layer(x, w), None)), x, half["layers"])
        return _entropy(_norm(x) @ half["head"], batch["y"])

    return Workload(_adam_step(loss), make, _tokens(), name=name)


def transformer() -> Workload:
    """Attention and a two-matmul MLP."""

    def layer(x, w):
        rows = x.shape[:2]
        h = _norm(x)
        q, k, v = ((h @ w[name]).reshape(*rows, HEADS, HEAD) for name in ("wq", "wk", "wv"))
        x = x + jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(*rows, HEADS * HEAD) @ w["wo"]
        return x + jax.nn.gelu(_norm(x) @ w["up"]) @ w["down"]

    square = (WIDTH, HEADS * HEAD)
    shapes = {"wq": square, "wk": square, "wv": square, "wo": square[::-1]}
    return _stacked("transformer", layer, shapes | {"up": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH)})


def state_space() -> Workload:
    """A gated diagonal recurrence along the sequence, as in S5 and Griffin, and an MLP."""

    def layer(x, w):
        h = _norm(x)
        gate, value = jax.nn.sigmoid(h @ w["gate"]), h @ w["value"]
        keep = jnp.exp(-jax.nn.softplus(w["decay"])[None, None] * gate)

        def join(one, two):
            return one[0] * two[0], two[0] * one[1] + two[1]

        _, state = jax.lax.associative_scan(join, (keep, (1 - keep) * value), axis=1)
        x = x + (state * jax.nn.silu(h @ w["side"])) @ w["out"]
        return x + jax.nn.gelu(_norm(x) @ w["up"]) @ w["down"]

    square = (WIDTH, WIDTH)
    shapes = {"gate": square, "value": square, "side": square, "out": square, "decay": (WIDTH,)}
    return _stacked("state-space", layer, shapes | {"up": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH)})


def convolutions() -> Workload:
    """A residual network on images, its kernels in a plain tree."""
    stages, blocks, images, side = (128, 256, 512), 2, 512, 56

    def make():
        params = {"stem": _normal(0, 3, 3, 3, stages[0])}
        width = stages[0]
        for stage, wider in enumerate(stages):
            for block in range(blocks):
                name = f"{stage}-{block}"
                params[name] = {"in": _normal(1, 3, 3, width, wider), "out": _normal(2, 3, 3, wider, wider)}
                if width != wider:
                    params[name]["skip"] = _normal(3, 1, 1, width, wider)
                width = wider
        params["head"] = _normal(4, width, 1024)
        return params, ADAM.init(params)

    def convolve(x, kernel, stride):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def loss(params, batch):
        half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
        x = convolve(batch["x"], half["stem"], 1)
        for stage in range(len(stages)):
            for block in range(blocks):
                w = half[f"{stage}-{block}"]
                stride = 2 if block == 0 and stage else 1
                h = convolve(jax.nn.relu(_norm(x)), w["in"], stride)
                h = convolve(jax.nn.relu(_norm(h)), w["out"], 1)
                x = h + (convolve(x, w["skip"], stride) if "skip" in w else x)
        return _entropy(x.mean((1, 2)) @ half["head"], batch["y"])

    batch = {
        "x": jax.ShapeDtypeStruct((images, side, side, 3), jnp.bfloat16),
        "y": jax.ShapeDtypeStruct((images,), jnp.int32),
    }
    return Workload(_adam_step(loss), make, batch, name="convolutions")


class _Mlp(nn.Module):
    """Residual MLPs with the logical axes of T5X."""

    @nn.compact
    def __call__(self, tokens):
        def dense(features, names):
            initial = nn.with_logical_partitioning(nn.initializers.lecun_normal(), names)
            return nn.Dense(features, kernel_init=initial, dtype=jnp.bfloat16)

        table = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("vocab", "embed"))
        embed = nn.Embed(VOCAB, WIDTH, embedding_init=table, dtype=jnp.bfloat16)
        x = embed(tokens)
        for _ in range(4):
            hidden = nn.with_logical_constraint(
                nn.gelu(dense(HIDDEN, ("embed", "mlp"))(_norm(x))), ("batch", "length", "mlp")
            )
            x = nn.with_logical_constraint(x + dense(WIDTH, ("mlp", "embed"))(hidden), ("batch", "length", None))
        return embed.attend(_norm(x))


def linen() -> Workload:
    """A Linen train state and its step."""

    def make():
        model = _Mlp()
        params = model.init(jax.random.key(0), jnp.zeros((1, SEQ), jnp.int32))["params"]
        return TrainState.create(apply_fn=model.apply, params=params, tx=ADAM)

    def step(state, batch):
        def loss(params):
            return _entropy(state.apply_fn({"params": params}, batch["x"]), batch["y"])

        value, gradients = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(grads=gradients), value

    return Workload(step, make, _tokens(), name="linen")


MODELS: dict[str, Callable[[], Workload]] = {
    "transformer": transformer,
    "state-space": state_space,
    "convolutions": convolutions,
    "linen": linen,
}
