"""Small steps in the signatures that people write, all of the same two matrices, and the loops that call them."""

from __future__ import annotations

import dataclasses
import threading

import jax
import jax.numpy as jnp
import optax
from flax import nnx

ADAM = optax.adam(1e-2)
ROWS, WIDTH, HIDDEN = 64, 32, 128
X = jnp.linspace(-1.0, 1.0, ROWS * WIDTH).reshape(ROWS, WIDTH)


def weights():
    one, other = jax.random.split(jax.random.key(0))
    return {
        "up": 0.1 * jax.random.normal(one, (WIDTH, HIDDEN)),
        "down": 0.1 * jax.random.normal(other, (HIDDEN, WIDTH)),
    }


def predict(params, x):
    return jax.nn.gelu(x @ params["up"]) @ params["down"]


def loss(params, x, noise=None):
    made = predict(params, x)
    if noise is not None:
        made = made * jax.random.bernoulli(noise, 0.9, made.shape)
    return ((made - x) ** 2).mean()


def state():
    params = weights()
    return {"params": params, "opt": ADAM.init(params)}


def update(old, gradients):
    updates, opt = ADAM.update(gradients, old["opt"])
    return {"params": optax.apply_updates(old["params"], updates), "opt": opt}


def losses(step, first=weights, count=3):
    """The losses of a loop around `step(state, batch) -> (state, loss)`. `first`: makes the state it begins with."""
    now, found = first(), []
    for _ in range(count):
        now, value = step(now, X)
        found.append(float(value))
    return found


@dataclasses.dataclass
class Config:
    """Settings that are no pytree and cannot be hashed."""

    scale: float = 0.5


def lr_scale(step):
    return 1.0


def lm1b_like(state, batch, config, schedule, smoothing=0.0, dropout_rng=None):
    """Statics in the middle, a number that it branches on, a random key at the end."""
    key, after = jax.random.split(dropout_rng)
    target = batch * config.scale
    if smoothing > 0:
        target = target * (1 - smoothing)
    value, gradients = jax.value_and_grad(loss)(state["params"], target, key)
    gradients = jax.tree.map(lambda one: one * schedule(0), gradients)
    return update(state, gradients), {"loss": value}, after


def parts(params, opt_state, rng, batch):
    """The state in pieces, given back in another order."""
    key, rng = jax.random.split(rng)
    value, gradients = jax.value_and_grad(loss)(params, batch, key)
    new = update({"params": params, "opt": opt_state}, gradients)
    return {"loss": value}, rng, new["opt"], new["params"]


class Trainer:
    """A trainer that cannot be pickled, whose step is a method."""

    def __init__(self):
        self.lock = threading.Lock()

    def train_step(self, batch, state):
        value, gradients = jax.value_and_grad(loss)(state["params"], batch)
        return update(state, gradients), value


def pmapped(state, batch):
    """A step of jax.pmap: gradients averaged over an axis that the caller names."""
    value, gradients = jax.value_and_grad(loss)(state["params"], batch)
    return update(state, jax.lax.pmean(gradients, "batch")), {"loss": jax.lax.pmean(value, axis_name="batch")}


class Net(nnx.Module):
    """Two linear layers and dropout that draws from streams of its own."""

    def __init__(self, rngs):
        self.up = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.norm = nnx.BatchNorm(HIDDEN, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)
        self.down = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)

    def __call__(self, x):
        return self.down(self.drop(nnx.gelu(self.norm(self.up(x)))))


def objects():
    net = Net(nnx.Rngs(0))
    return net, nnx.Optimizer(net, optax.adam(1e-2), wrt=nnx.Param), nnx.MultiMetric(loss=nnx.metrics.Average("loss"))


def nnx_step(model, optimizer, batch, metrics):
    """Everything is changed in place; nothing comes back."""

    def of(model):
        return ((model(batch) - batch) ** 2).mean()

    value, gradients = nnx.value_and_grad(of)(model)
    optimizer.update(model, gradients)
    metrics.update(loss=value)


def nnx_returned(model, optimizer, batch):
    """The same objects are changed and returned, as some loops have it."""

    def of(model):
        return ((model(batch) - batch) ** 2).mean()

    value, gradients = nnx.value_and_grad(of)(model)
    optimizer.update(model, gradients)
    return model, optimizer, value
