"""Small workloads for tests: one that compiles anywhere, and one for every way in which a compile can go wrong."""

from __future__ import annotations

import ctypes
import functools
import os
import resource
import time

from autotune.meshes.layout import Layout
from autotune.meshes.step import Step
from autotune.workload.workload import Workload

WIDTH, DEPTH, BATCH = 256, 4, 64


def build_mlp(layout: Layout, mesh, *, width: int = WIDTH, batch: int = BATCH) -> Step:
    """Gradient descent with momentum on `DEPTH` scanned square matrices, batch over data and fsdp, columns over tensor.

    The state holds parameters (DEPTH, width, width), momentum of the same shape, a count, and a scale no one reads.
    """
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    def abstract(shape, dtype, *spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))

    def loss(weights, batch):
        def layer(x, weight):
            return jax.nn.relu(x @ weight), None

        x, _ = jax.lax.scan(layer, batch["x"], weights)
        return jnp.mean((x - batch["y"]) ** 2)

    def step(state, batch):
        value, gradients = jax.value_and_grad(loss)(state["weights"], batch)
        momentum = 0.9 * state["momentum"] + gradients
        new = {**state, "weights": state["weights"] - 0.1 * momentum, "momentum": momentum, "count": state["count"] + 1}
        return new, {"loss": value}

    matrix = abstract((DEPTH, width, width), jnp.float32, None, "fsdp", "tensor")
    state = {"weights": matrix, "momentum": abstract(matrix.shape, matrix.dtype, *matrix.sharding.spec),
             "count": abstract((), jnp.int32), "unread": abstract((8,), jnp.float32)}  # fmt: skip
    rows = (("data", "fsdp"),)
    data = {name: abstract((batch, width), jnp.float32, *rows) for name in ("x", "y")}

    def fill(tree):
        return jax.tree.map(lambda leaf: jax.device_put(jnp.ones(leaf.shape, leaf.dtype), leaf.sharding), tree)

    return Step(function=step, mesh=mesh, state=state, batch=data, initialise=lambda seed: fill(state),
                make_batch=lambda seed: fill(data), parameters=lambda state: state["weights"])  # fmt: skip


def build_segfault(layout, mesh) -> Step:
    ctypes.string_at(0)
    raise AssertionError("still alive")


def build_abort(layout, mesh) -> Step:
    os.abort()


def build_exit(layout, mesh) -> Step:
    os.write(2, b"E1121 INTERNAL: the toy gave up\n")
    os._exit(7)


def build_hang(layout, mesh) -> Step:
    time.sleep(3600)
    raise AssertionError("woke up")


def build_on_a_full_disk(layout, mesh, *, bytes_a_file: int) -> Step:
    """Compiles, in a process whose files can hold so many bytes each."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_a_file, resource.RLIM_INFINITY))
    return build_mlp(layout, mesh)


def build_killed(layout, mesh, *, number: int, marks: str, times: int) -> Step:
    """The first `times` processes that come here get a signal, as from outside; `marks` is a file that counts them."""
    with open(marks, "a") as file:
        file.write("x")
    if os.path.getsize(marks) <= times:
        os.kill(os.getpid(), number)
        time.sleep(60)
    return build_mlp(layout, mesh)


def build_noise(layout, mesh) -> Step:
    import subprocess

    print("noise: printed by the toy", flush=True)
    os.write(2, b"noise: written to descriptor 2\n")
    subprocess.run(["/bin/sh", "-c", "echo noise: said by a child"], check=True)
    raise RuntimeError("enough")


def build_mistake(layout, mesh) -> Step:
    raise KeyError("no such parameter: 'wte'")


def build_stack(layout, mesh) -> Step:
    """Fails with the stack limit of the process in its message (-1: none)."""
    import subprocess
    import sys

    limit = "import resource; print(resource.getrlimit(resource.RLIMIT_STACK)[0])"
    answer = subprocess.run([sys.executable, "-c", limit], capture_output=True, text=True, check=True).stdout
    raise RuntimeError(f"stack limit {answer.strip()}")


def toy(build=build_mlp, **sizes) -> Workload:
    """The workload of one of the builders above."""
    name = "-".join([build.__name__, *(f"{key}{value}" for key, value in sizes.items())])
    return Workload.of(
        name=name,
        build=functools.partial(build, **sizes) if sizes else build,
        sequences=sizes.get("batch", BATCH),
        seq=1,
        dtype="float32",
        fingerprint=name,
    )


def own_step() -> Workload:
    """Such matrices under plain gradient descent, as a user hands over a step: `--workload toy_steps:own_step`."""
    import jax
    import jax.numpy as jnp

    def step(weights, batch):
        def loss(weights):
            x, _ = jax.lax.scan(lambda x, weight: (jax.nn.relu(x @ weight), None), batch, weights)
            return (x**2).mean()

        value, gradients = jax.value_and_grad(loss)(weights)
        return weights - 0.1 * gradients, value

    weights = jax.ShapeDtypeStruct((DEPTH, WIDTH, WIDTH), jnp.float32)
    batch = jax.ShapeDtypeStruct((BATCH, WIDTH), jnp.float32)
    return Workload(step, weights, batch, rules=[("", (None, "fsdp", "tensor"))])
