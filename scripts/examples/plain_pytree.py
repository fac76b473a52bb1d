"""A step over plain arrays with no annotation at all: `python plain_pytree.py [TARGET]` (default cpu:8)."""

import sys

import jax
import jax.numpy as jnp
import optax

import autotune

OPTIMIZER = optax.adam(1e-2)


def make():
    """Your parameters and optimizer state."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = {"table": (256, 128), "up": (128, 512), "down": (512, 128)}
    params = {
        name: 0.05 * jax.random.normal(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    return params, OPTIMIZER.init(params)


def train_step(params, opt_state, tokens):
    """Your step."""

    def loss(params):
        x = params["table"][tokens[:, :-1]]
        logits = (x + jax.nn.gelu(x @ params["up"]) @ params["down"]) @ params["table"].T
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    value, gradients = jax.value_and_grad(loss)(params)
    updates, opt_state = OPTIMIZER.update(gradients, opt_state)
    return optax.apply_updates(params, updates), opt_state, value


def batches(count: int):
    """Your data."""
    for _ in range(count):
        yield jnp.arange(16 * 65).reshape(16, 65) % 251


def main(target: str) -> list[float]:
    """What autotune adds."""
    workload = autotune.Workload(train_step, make, batch=jax.ShapeDtypeStruct((16, 65), jnp.int32))
    plan = autotune.tune(workload, target, compile=2, measure=0).plan
    print("\n".join([f"plan: {plan.layout}, bound by {plan.binding['resource']}", *plan.guesses]))
    step = plan.jit(train_step, donate_argnums=(0, 1))
    state = make()
    params, opt_state = jax.device_put(state, plan.shardings(state))
    losses = []
    for number, batch in enumerate(batches(5)):
        params, opt_state, loss = step(params, opt_state, jax.device_put(batch, plan.batch_shardings(batch)))
        losses.append(float(loss))
        print(f"step {number}  loss {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    main(*sys.argv[1:] or ["cpu:8"])
