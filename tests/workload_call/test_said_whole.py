"""State that stays whole is said with its bytes and the rule that cuts it; a step that no compile takes has no plan."""

import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import autotune


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def step(weights, x):
    def loss(w):
        made = jnp.tanh(x @ w["up"]) @ w["down"]
        return (made**2).mean() + sum((one**2).sum() for name, one in w.items() if name.startswith("table"))

    value, gradients = jax.value_and_grad(loss)(weights)
    return jax.tree.map(lambda w, g: w - 0.1 * g, weights, gradients), value


def workload_of(tables, rules=()):
    weights = {"up": array(32, 64), "down": array(64, 32)} | tables
    given = [("up$", ("fsdp", "tensor")), ("down$", ("tensor", "fsdp")), *rules]
    return autotune.Workload.of_call(step, (weights, array(16, 32)), batch=1, rules=given)


@pytest.mark.parametrize(
    ("tables", "share", "size"),
    [
        ({"table": array(64, 32)}, "33 %", "8 KiB"),
        ({"table_0": array(128, 8), "table_1": array(128, 8)}, "33 %", "8 KiB"),
        ({"table": array(8, 8, 16)}, "20 %", "4 KiB"),
    ],
)
def test_state_that_stays_whole_is_said_with_its_bytes_and_the_rule_ends_it(tables, share, size):
    [note] = [one for one in workload_of(tables).guesses if "of the state stay whole on every device" in one]
    assert f"{size}, {share} of its bytes" in note
    [rule] = re.findall(r"\(r'([^']+)', (\([^)]*\))\)", note)
    cut = workload_of(tables, [(rule[0], eval(rule[1]))])
    assert not [one for one in cut.guesses if "of the state stay whole" in one]


def test_a_small_share_is_not_said():
    assert not [one for one in workload_of({"table": array(4, 32)}).guesses if "of the state stay whole" in one]


OWN_MESH = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import autotune


def step(w, x):
    own = Mesh(np.array(jax.devices()[:1]), ("rows",))
    x = jax.lax.with_sharding_constraint(x, NamedSharding(own, P("rows")))
    value, gradients = jax.value_and_grad(lambda w: ((x @ w) ** 2).mean())(w)
    return w - gradients, value


def make():
    shapes = jax.ShapeDtypeStruct((32, 32), jnp.float32), jax.ShapeDtypeStruct((16, 32), jnp.float32)
    return autotune.Workload.of_call(step, shapes, batch=1)
"""


def test_the_command_ends_with_1_where_every_compile_fails_for_one_reason(tmp_path):
    (tmp_path / "own_mesh_step.py").write_text(OWN_MESH)
    words = ["tune", "--workload", "own_mesh_step:make", "--target", "cpu:8", "--axes", "data", "--compile", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "autotune", *words, "--measure", "0", "--jobs", "1"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr[-2000:]
    assert "no plan, since all" in done.stdout and "incompatible devices" in done.stdout
    assert "own_mesh_step.py:9: PartitionSpec('rows')" in " ".join(done.stdout.split())
