"""A step travels to a worker process: it is the same program there, or the difference is named."""

import importlib
import os
import subprocess
import sys
import textwrap
import threading

import cloudpickle
import jax
import jax.numpy as jnp
import pytest

from autotune.compile.compile import Candidate, Compilation, compile_all
from autotune.compile.sent import CannotBeSent, packed, unpacked
from autotune.meshes.layout import parse_layout
from autotune.meshes.target import parse_target
from autotune.workload.same_program import AnotherProgram, compare, operations
from autotune.workload.workload import Workload

STATE = {"params": jax.ShapeDtypeStruct((16, 16), jnp.float32)}
X = jax.ShapeDtypeStruct((8, 16), jnp.float32)
SOURCE = """
    import os
    import jax, jax.numpy as jnp
    {setting}
    def step(state, x):
        def loss(w):
            h = x
            for _ in range({repeat}):
                h = jnp.tanh(h @ w)
            return (h ** 2).mean()
        return {{"params": state["params"] - jax.grad(loss)(state["params"])}}, {{}}
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    names = []

    def make(name, setting, repeat):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(SOURCE).format(setting=setting, repeat=repeat))
        names.append(name)
        return importlib.import_module(name)

    yield make
    for name in names:
        sys.modules.pop(name, None)


def compiled(workload):
    job = Candidate(workload=workload, layout=parse_layout("data=2"), target=parse_target("cpu:2"))
    [(_, outcome)] = compile_all([job], workers=1, timeout_seconds=100)
    return outcome


def test_globals_set_after_the_import_are_set_in_the_worker(module):
    numbers = module("settings_number", "REPEAT = 1", "REPEAT")
    numbers.REPEAT = 4
    tables = module("settings_table", 'C = {"repeat": 1}', 'C["repeat"]')
    tables.C["repeat"] = 4
    classes = module("settings_class", "class C: repeat = 1", "C.repeat")
    classes.C.repeat = 4
    for one in (numbers, tables, classes):
        workload = Workload(one.step, STATE, X)
        outcome = compiled(workload)
        assert isinstance(outcome, Compilation), outcome.reason
        assert sum(outcome.traced_flops.values()) == workload.traced.flops == 11 * 2 * 8 * 16 * 16


def test_only_what_the_step_reaches_is_imported_in_the_worker(tmp_path, monkeypatch):
    """By an import, in a function, by a held object, through a package; not what only stands beside it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "reach_pack").mkdir()
    files = {
        "reach_step": "import reach_held\nfrom reach_pack import inner\nthing = reach_held.thing\n\n\n"
        "def step():\n    from reach_late import late\n    return late",
        "reach_held": "class Thing: ...\nthing = Thing()",
        "reach_late": "late = 1",
        "reach_pack/__init__": "from . import beside_inner",
        "reach_pack/inner": "from .deep import value",
        "reach_pack/deep": "value = 2",
        "reach_pack/beside_inner": "",
        "reach_alone": "raise_here = 3",
    }
    names = {name: name.removesuffix("/__init__").replace("/", ".") for name in files}
    try:
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
        for name in names.values():
            importlib.import_module(name)
        data, *_ = cloudpickle.loads(packed(sys.modules["reach_step"].step))
        assert {name for name in data if name.startswith("reach")} <= set(names.values()) - {"reach_alone"}
        assert {"reach_late", "reach_held", "reach_step", "reach_pack.deep"} <= set(data)
    finally:
        for name in names.values():
            sys.modules.pop(name, None)


def test_what_cannot_be_sent_is_compared_and_refused(module, monkeypatch):
    hidden = module("settings_hidden", "def repeat(): return 1", "repeat()")
    hidden.repeat = lambda: 4  # a function replaced after the import
    outcome = compiled(Workload(hidden.step, STATE, X))
    assert outcome.kind == "failed" and outcome.stage == "build"
    assert "traces another program" in outcome.reason and "settings_hidden.py:" in outcome.reason


def test_the_first_operation_that_differs_is_named():
    def traced(function):
        return jax.make_jaxpr(function)(jnp.ones((4, 4)))

    expected = operations(traced(lambda x: jnp.tanh(x @ x) + 1))
    compare(traced(lambda x: jnp.tanh(x @ x) + 1), expected)
    for other, said in (
        (lambda x: jnp.sin(x @ x) + 1, "operation 2 is sin"),
        (lambda x: jnp.tanh(x @ x), "operation 3 is the end of the step"),
        (lambda x: jnp.tanh(x @ x) + 2, "operation 3 is add"),
        (lambda x: jnp.tanh(x @ x) + 1 + x, "operation 4 is add"),
    ):
        with pytest.raises(AnotherProgram, match=said):
            compare(traced(other), expected)


class Trainer:
    def __init__(self):
        self.lock = threading.Lock()

    def train_step(self, state, x):
        w = state["params"]
        return {"params": w - jax.grad(lambda w: ((x @ w) ** 2).mean())(w)}, {}


def test_a_step_that_cannot_be_pickled_compiles_here_with_a_note():
    outcome = compiled(Workload(Trainer().train_step, STATE, X))
    assert isinstance(outcome, Compilation)
    [note] = [one for one in outcome.warnings if "compiled in this process" in one]
    assert "lock" in note and "_thread.lock" in note


def test_the_object_that_cannot_be_sent_is_named():
    lock = threading.Lock()
    for value, name in (({"a": [lock]}, "a.0"), (Trainer(), "lock"), (lambda: lock, "lock")):
        with pytest.raises(CannotBeSent, match=name):
            packed(value)
    assert unpacked(packed({"a": 1})) == {"a": 1}


MAPPED = """
import jax, jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec as P
from autotune.workload.same_program import operations
mesh = AbstractMesh((2, 2, 2), ("fsdp", "model", "rows"))
step = jax.shard_map(lambda x: x * 2, mesh=mesh, in_specs=P("rows"), out_specs=P("rows"))
print(*(one.digest for one in operations(jax.make_jaxpr(step)(jnp.zeros(8)))))
"""


def test_the_order_of_a_set_of_axes_is_no_difference():
    """A process writes the axes of a shard_map in an order of its own."""
    printed = {
        subprocess.run(
            [sys.executable, "-c", MAPPED],
            env={**os.environ, "PYTHONHASHSEED": seed, "JAX_PLATFORMS": "cpu"},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }  # fmt: skip
    assert len(printed) == 1 and printed.pop().strip()
