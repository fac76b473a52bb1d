"""An existing Flax NNX loop gets its mesh from a plan: `python nnx_loop.py [TARGET]` (default cpu:8)."""

import sys

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import autotune


class Model(nnx.Module):
    """Your model, with the sharding metadata it already has."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        kernel = nnx.initializers.lecun_normal()
        table = nnx.with_partitioning(nnx.initializers.normal(0.02), ("vocab", "embed"))
        self.embed = nnx.Embed(256, 128, embedding_init=table, rngs=rngs)
        self.up = nnx.Linear(128, 512, kernel_init=nnx.with_partitioning(kernel, ("embed", "mlp")), rngs=rngs)
        self.down = nnx.Linear(512, 128, kernel_init=nnx.with_partitioning(kernel, ("mlp", "embed")), rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        return self.embed.attend(x + self.down(nnx.gelu(self.up(x))))


def make():
    """Your model and optimizer."""
    model = Model(nnx.Rngs(0))
    return model, nnx.Optimizer(model, optax.adamw(1e-2), wrt=nnx.Param)


@nnx.jit
def train_step(model, optimizer, tokens):
    """Your step."""

    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(tokens[:, :-1]), tokens[:, 1:]).mean()

    value, gradients = nnx.value_and_grad(loss)(model)
    optimizer.update(model, gradients)
    return value


def batches(count: int):
    """Your data."""
    for _ in range(count):
        yield jnp.arange(16 * 65).reshape(16, 65) % 251


def main(target: str) -> list[float]:
    """What autotune adds."""
    workload = autotune.Workload(train_step, make, batch=jax.ShapeDtypeStruct((16, 65), jnp.int32))
    plan = autotune.tune(workload, target, compile=2, measure=0).plan
    print(f"plan: {plan.layout}, bound by {plan.binding['resource']}")
    losses = []
    with plan.use():
        model, optimizer = make()
        state = nnx.state((model, optimizer))
        nnx.update((model, optimizer), jax.device_put(state, plan.shardings(state)))
        for number, batch in enumerate(batches(5)):
            batch = jax.device_put(batch, plan.batch_shardings(batch))
            losses.append(float(train_step(model, optimizer, batch)))
            print(f"step {number}  loss {losses[-1]:.4f}")
    print(f"up.kernel lives as {model.up.kernel[...].sharding.spec}")
    return losses


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    main(*sys.argv[1:] or ["cpu:8"])
