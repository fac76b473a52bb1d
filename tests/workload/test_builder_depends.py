"""What the step of a builder depends on is tested, not watched: reading a word of the layout is not using it."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from autotune.workload.workload import Workload

X = jax.ShapeDtypeStruct((16, 64), jnp.float32)
STATE = {
    "params": {"w1": jax.ShapeDtypeStruct((64, 256), jnp.float32), "w2": jax.ShapeDtypeStruct((256, 64), jnp.float32)}
}


def parts(remat=False):
    def step(state, batch):
        def loss(p):
            return jnp.mean((jnp.tanh(batch @ p["w1"]) @ p["w2"]) ** 2)

        g = jax.grad(jax.checkpoint(loss) if remat else loss)(state["params"])
        return {"params": jax.tree.map(lambda p, g: p - 0.1 * g, state["params"], g)}, {}

    return step, STATE, X


def quiet(layout):
    return parts()


def prints(layout):
    print("building", layout)
    return parts()


def counts(layout):
    assert layout.devices >= 1
    return parts()


def keeps(layout):
    dataclasses.asdict(layout)
    return parts()


@pytest.mark.parametrize("builder", [prints, counts, keeps])
def test_a_builder_that_only_reads_searches_what_a_quiet_one_does(builder):
    loud, silent = Workload.from_builder(builder), Workload.from_builder(quiet)
    assert loud.axes == silent.axes
    words = ("remat", "accumulate", "offload", "stage", "sequence_parallel", "context_attention")
    assert {word: loud.fixed.get(word) for word in words} == {word: silent.fixed.get(word) for word in words}


def test_a_builder_that_prints_and_uses_one_word_is_searched_over_that_word():
    def build(layout):
        print(layout)
        return parts(remat=layout.remat == "full")

    fixed = Workload.from_builder(build).fixed
    assert "remat" not in fixed and fixed["accumulate"] == "1" and fixed["stage"] == "1"
