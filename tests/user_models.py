"""Models as their communities write them, none of them ours: NNX, Linen, and a plain tree of arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import PartitionSpec

BATCH, SEQ, WIDTH, HIDDEN, VOCAB = 16, 8, 16, 32, 64
TOKENS = jax.ShapeDtypeStruct((BATCH, SEQ), jnp.int32)


class Block(nnx.Module):
    """An MLP of two matmuls, annotated with whatever names the user likes."""

    def __init__(self, up, down, rngs: nnx.Rngs) -> None:
        initial = nnx.initializers.lecun_normal()
        self.embed = nnx.Embed(VOCAB, WIDTH, rngs=rngs)
        self.up = nnx.Linear(WIDTH, HIDDEN, kernel_init=nnx.with_partitioning(initial, up), rngs=rngs)
        self.down = nnx.Linear(HIDDEN, WIDTH, kernel_init=nnx.with_partitioning(initial, down), rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        x = self.dropout(x + self.down(nnx.gelu(self.up(x))))
        return x @ self.embed.embedding[...].T


def nnx_state(up=("embed", "mlp"), down=("mlp", "embed")):
    """A function that makes (model, optimizer)."""

    def make():
        model = Block(up, down, nnx.Rngs(0))
        return model, nnx.Optimizer(model, optax.adamw(1e-2), wrt=nnx.Param)

    return make


@nnx.jit
def nnx_step(model, optimizer, tokens):
    """The loop body of the NNX tutorials: it changes model and optimizer in place and returns the loss."""

    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(tokens), tokens).mean()

    value, gradients = nnx.value_and_grad(loss)(model)
    optimizer.update(model, gradients)
    return value


class Mlp(nn.Module):
    """Linen with logical partitioning metadata."""

    @nn.compact
    def __call__(self, tokens):
        initial = nn.initializers.lecun_normal()
        table = self.param("table", nn.with_logical_partitioning(initial, ("vocab", "embed")), (VOCAB, WIDTH))
        x = jnp.take(table, tokens, axis=0)
        up = nn.Dense(HIDDEN, kernel_init=nn.with_logical_partitioning(initial, ("embed", "mlp")))
        down = nn.Dense(WIDTH, kernel_init=nn.with_logical_partitioning(initial, ("mlp", "embed")))
        hidden = nn.with_logical_constraint(nn.gelu(up(x)), ("batch", "length", "mlp"))
        return (x + down(hidden)) @ table.T


def linen_state():
    model = Mlp()
    variables = model.init(jax.random.key(0), jnp.zeros((BATCH, SEQ), jnp.int32))
    return TrainState.create(apply_fn=model.apply, params=variables["params"], tx=optax.adamw(1e-2))


def linen_step(state, tokens):
    def loss(params):
        logits = state.apply_fn({"params": params}, tokens)
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens).mean()

    value, gradients = jax.value_and_grad(loss)(state.params)
    return state.apply_gradients(grads=gradients), {"loss": value}


LAYERS, HEADS, KV_HEADS, HEAD = 3, 4, 2, 8
ADAM = optax.adam(1e-2)


def plain_state():
    """Parameters of a small transformer as nested dicts with layers stacked, and Adam's state."""
    keys = iter(jax.random.split(jax.random.key(0), 9))

    def normal(*shape):
        return 0.05 * jax.random.normal(next(keys), shape)

    layers = {
        "norm": jnp.ones((LAYERS, WIDTH)),
        "wq": normal(LAYERS, WIDTH, HEADS * HEAD),
        "wk": normal(LAYERS, WIDTH, KV_HEADS * HEAD),
        "wv": normal(LAYERS, WIDTH, KV_HEADS * HEAD),
        "wo": normal(LAYERS, HEADS * HEAD, WIDTH),
        "up": normal(LAYERS, WIDTH, HIDDEN),
        "bias": jnp.zeros((LAYERS, HIDDEN)),
        "down": normal(LAYERS, HIDDEN, WIDTH),
    }
    params = {"table": normal(VOCAB, WIDTH), "layers": layers, "head": normal(WIDTH, VOCAB)}
    return params, ADAM.init(params)


def transformer(params, tokens):
    def layer(x, w):
        rows = x.shape[:2]
        h = x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6) * w["norm"][None, None]
        q = (h @ w["wq"]).reshape(*rows, HEADS, HEAD)
        k = (h @ w["wk"]).reshape(*rows, KV_HEADS, HEAD)
        v = (h @ w["wv"]).reshape(*rows, KV_HEADS, HEAD)
        x = x + jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(*rows, HEADS * HEAD) @ w["wo"]
        return x + jax.nn.gelu(x @ w["up"] + w["bias"][None, None]) @ w["down"], None

    x, _ = jax.lax.scan(jax.checkpoint(layer), params["table"][tokens], params["layers"])
    return x @ params["head"]


@jax.jit
def plain_step(params, opt_state, batch):
    """The loop body of the Optax tutorials."""

    def loss(params):
        return optax.softmax_cross_entropy_with_integer_labels(transformer(params, batch["x"]), batch["y"]).mean()

    value, gradients = jax.value_and_grad(loss)(params)
    updates, opt_state = ADAM.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, value


PLAIN_BATCH = {"x": TOKENS, "y": TOKENS}


def mlp_step(weights, batch):
    """Plain gradient descent; the step's own constraint names the mesh axes `data` and `model`."""

    def loss(weights):
        hidden = jax.nn.relu(batch["x"] @ weights["w1"])
        hidden = jax.lax.with_sharding_constraint(hidden, PartitionSpec("data", "model"))
        return jnp.mean((hidden @ weights["w2"] - batch["y"]) ** 2)

    value, gradients = jax.value_and_grad(loss)(weights)
    return jax.tree.map(lambda w, g: w - 0.1 * g, weights, gradients), value


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


MLP_STATE = {"w1": array(16, 32), "w2": array(32, 16)}
MLP_BATCH = {"x": array(8, 16), "y": array(8, 16)}
