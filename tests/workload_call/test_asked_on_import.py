"""Modules that touch devices as they are imported, and programs that have set a mesh before the step is handed over."""

import importlib
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
import small_steps as small
from jax.sharding import AxisType

import autotune
from autotune.meshes.layout import parse_layout

STEP = """

def train_step(weights, batch):
    {first}
    def loss(w):
        return ((jnp.tanh(batch @ w["up"]) @ w["down"]) ** 2).mean(){factor}

    value, gradients = jax.value_and_grad(loss)(weights)
    return jax.tree.map(lambda w, g: w - 0.1 * g, weights, gradients), value
"""
IMPORTS = """import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Imports a module from its text."""
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def write(name, head, first="pass", factor=""):
        (tmp_path / f"{name}.py").write_text(IMPORTS + textwrap.dedent(head) + STEP.format(first=first, factor=factor))
        made.append(name)
        return importlib.import_module(name)

    yield write
    for name in made:
        sys.modules.pop(name, None)


def workload_of(step, **options):
    return autotune.Workload.of_call(step, (jax.eval_shape(small.weights), small.X), batch=1, **options)


@pytest.mark.parametrize(
    ("name", "head", "factor", "word", "held"),
    [
        ("asked_count", "SCALE = 1.0 / jax.device_count()", " * SCALE", "jax.device_count()", "SCALE"),
        ("asked_kind", "ON_TPU = jax.devices()[0].platform == 'tpu'", " * (2 if ON_TPU else 1)", "jax.devices()",
         "ON_TPU"),
        ("asked_through", "from jax import local_devices as here\nN = len(here())\nHALF = N / 2", " * HALF",
         "jax.local_devices()", "HALF"),
        ("asked_in_if", "if True:\n    BACKEND = jax.default_backend()", " * len(BACKEND)", "jax.default_backend()",
         "BACKEND"),
    ],
)  # fmt: skip
def test_what_a_module_asks_on_import_is_said_with_its_line(module, name, head, factor, word, held):
    made = module(name, head, factor=factor)
    [note] = [one for one in workload_of(made.train_step).guesses if one.startswith("a module of the step asks ")]
    lines = Path(made.__file__).read_text().splitlines()
    line = 1 + next(index for index, text in enumerate(lines) if word in text or "here()" in text)
    assert f"{word} at {made.__file__}:{line} ({held})" in note


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("not_asked", "TABLE = jnp.arange(4)"),
        ("not_read", "FOR_THE_LOG = jax.devices()"),
        ("only_in_main", "if __name__ == '__main__':\n    N = jax.device_count()\n    print(N)"),
        ("in_a_function", "def count():\n    return jax.device_count()"),
    ],
)
def test_what_no_function_reads_is_not_said(module, name, head):
    made = module(name, head)
    assert not [one for one in workload_of(made.train_step).guesses if "asks" in one]


def test_a_module_that_the_step_imports_is_looked_at(module):
    module("asking_config", "N = jax.device_count()")
    made = module("asks_elsewhere", "import asking_config", factor=" * asking_config.N")
    [note] = [one for one in workload_of(made.train_step).guesses if one.startswith("a module of the step asks ")]
    assert "asking_config.py:5 (N)" in note


def test_a_mesh_made_on_import_is_named_and_the_step_compiles(module):
    head = """
    MESH = Mesh(np.array(jax.devices()), ("data",))
    ROWS = NamedSharding(MESH, P("data"))
    """
    made = module("mesh_on_import", head, first="batch = jax.lax.with_sharding_constraint(batch, ROWS)")
    workload = workload_of(made.train_step)
    [note] = [one for one in workload.guesses if "a mesh of its own (data=8)" in one]
    assert f"{made.__file__}:11: PartitionSpec('data') in place of the NamedSharding" in note
    report = autotune.tune(
        workload, "cpu:8", layouts=(parse_layout("data=8"),), compile=1, measure=0, probe=False, jobs=1
    )
    assert report.counts == {"compiled": 1}, report.rows[0].reason


@pytest.mark.parametrize(
    ("names", "kind"),
    [(("rows",), AxisType.Auto), (("rows", "columns"), AxisType.Auto), (("rows",), AxisType.Explicit)],
)
def test_a_mesh_that_the_program_has_set_gives_way(names, kind):
    """Loops that set their own mesh at the top hand over the step inside it."""
    step = small.Trainer().train_step

    def plain(weights, batch):
        return step(batch, weights)

    state = small.state()
    expected = float(jax.jit(plain)(state, small.X)[1])
    sizes = (8,) if len(names) == 1 else (4, 2)
    with jax.set_mesh(jax.make_mesh(sizes, names, axis_types=(kind,) * len(names))):
        before = jax.sharding.get_abstract_mesh()
        workload = autotune.Workload.of_call(plain, (jax.eval_shape(small.state), small.X), batch=1)
        report = autotune.tune(
            workload, "cpu:8", layouts=(parse_layout("data=8"),), compile=1, measure=0, probe=False, jobs=1
        )
        assert report.counts == {"compiled": 1}, report.rows[0].reason
        np.testing.assert_allclose(float(report.plan.jit(plain)(state, small.X)[1]), expected, rtol=1e-5)
        assert jax.sharding.get_abstract_mesh() == before
