"""An existing Flax Linen loop gets its mesh from a plan: `python linen_loop.py [TARGET]` (default cpu:8)."""

import sys

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training.train_state import TrainState

import autotune


class Model(nn.Module):
    """Your model, with the logical axes it already has."""

    @nn.compact
    def __call__(self, tokens):
        def dense(features, names):
            initial = nn.with_logical_partitioning(nn.initializers.lecun_normal(), names)
            return nn.Dense(features, kernel_init=initial)

        table = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("vocab", "embed"))
        embed = nn.Embed(256, 128, embedding_init=table)
        x = embed(tokens)
        hidden = nn.with_logical_constraint(nn.gelu(dense(512, ("embed", "mlp"))(x)), ("batch", "length", "mlp"))
        return embed.attend(x + dense(128, ("mlp", "embed"))(hidden))


def make():
    """Your train state."""
    model = Model()
    params = model.init(jax.random.key(0), jnp.zeros((16, 64), jnp.int32))["params"]
    return TrainState.create(apply_fn=model.apply, params=params, tx=optax.adamw(1e-2))


def train_step(state, tokens):
    """Your step."""

    def loss(params):
        logits = state.apply_fn({"params": params}, tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    value, gradients = jax.value_and_grad(loss)(state.params)
    return state.apply_gradients(grads=gradients), value


def batches(count: int):
    """Your data."""
    for _ in range(count):
        yield jnp.arange(16 * 65).reshape(16, 65) % 251


def main(target: str) -> list[float]:
    """What autotune adds."""
    workload = autotune.Workload(train_step, make, batch=jax.ShapeDtypeStruct((16, 65), jnp.int32))
    plan = autotune.tune(workload, target, compile=2, measure=0).plan
    print(f"plan: {plan.layout}, bound by {plan.binding['resource']}")
    step = plan.jit(train_step, donate_argnums=0)
    state = make()
    state = jax.device_put(state, plan.shardings(state))
    losses = []
    for number, batch in enumerate(batches(5)):
        state, loss = step(state, jax.device_put(batch, plan.batch_shardings(batch)))
        losses.append(float(loss))
        print(f"step {number}  loss {losses[-1]:.4f}")
    print(f"Dense_0 lives as {jax.tree.leaves(state.params['Dense_0']['kernel'])[0].sharding.spec}")
    return losses


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    main(*sys.argv[1:] or ["cpu:8"])
