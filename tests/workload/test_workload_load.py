"""`--workload package.module:function` from the user's own repository, and what is said when it is not there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.user_code import UserCodeError
from autotune.workload.from_name import load_workload

ROOT = Path(__file__).parents[2]

STEP = """
import jax, jax.numpy as jnp
from models.net import forward
from meshes import SIZE

def step(weights, batch):
    value, gradients = jax.value_and_grad(lambda w: (forward(w, batch) ** 2).mean())(weights)
    return jax.tree.map(lambda w, g: w - 0.1 * g, weights, gradients), value

def workload():
    shape = jax.ShapeDtypeStruct((SIZE, SIZE), jnp.float32)
    return step, {"w": shape}, shape

def built(layout):
    return (step, {"w": jax.ShapeDtypeStruct((SIZE, SIZE), jnp.float32)}, jax.ShapeDtypeStruct((16, SIZE), jnp.float32))

def broken():
    return {}["nothing"]

def number():
    return 3

def misnamed():
    from autotune import Workload
    return Workload(step, {"w": jax.ShapeDtypeStruct((SIZE, SIZE), jnp.float32)},
                    jax.ShapeDtypeStruct((16, SIZE), jnp.float32), rules=[("kernel", ("fsdp",))])
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository whose own top-level packages are called `models` and `meshes`."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("")
    (tmp_path / "models" / "net.py").write_text("def forward(w, x):\n    return x @ w['w']\n")
    (tmp_path / "meshes.py").write_text("SIZE = 16\n")
    (tmp_path / "mine.py").write_text(STEP)
    (tmp_path / "halting.py").write_text("import no_such_library\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("mine", "halting", "models", "models.net", "meshes"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield tmp_path
    for name in ("mine", "halting", "models", "models.net", "meshes"):
        sys.modules.pop(name, None)


def test_a_function_and_a_builder_are_found_beside_the_users_own_models_package(repository):
    found = load_workload("mine:workload")
    assert found.recipe == {"workload": "mine:workload"}
    assert found.traced.flops == 2 * 2 * 16**3  # forward, and the weights' gradient
    built = load_workload("mine:built")
    assert built.sequences == 16 and built.recipe == {"workload": "mine:built"}


def test_an_edited_repository_is_another_builder(repository):
    before = load_workload("mine:built").fingerprint
    (repository / "meshes.py").write_text("SIZE = 16  # an edit\n")
    assert load_workload("mine:built").fingerprint != before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mine", "workload: 'mine' must be written package.module:function"),
        ("mine.py:workload()", "must be written package.module:function"),
        ("mine.py:workload", "workload: 'mine.py:workload': mine is a module, not a package; write mine:function"),
        ("yours:workload", "no module 'yours' in .* or where Python looks"),
        ("models.nets:workload", "no module 'models.nets'"),
        ("mine:worklod", "workload: mine has no 'worklod'; it has: step, workload, built, broken, number, misn"),
        ("mine:misnamed", "^rules: 'kernel' matches no array of the state; paths are like: w$"),
        ("mine:number", "mine:number gives int; it must give a Workload or"),
    ],
)
def test_wrong_module_paths_get_one_clear_line(repository, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_workload(text)
    assert "\n" not in str(caught.value)


def test_errors_in_the_users_module_are_theirs(repository):
    with pytest.raises(
        UserCodeError, match="importing halting: your code failed: ModuleNotFoundError.*no_such_library"
    ):
        load_workload("halting:workload")
    with pytest.raises(UserCodeError, match="calling mine:broken: your code failed: KeyError: 'nothing'") as caught:
        load_workload("mine:broken")
    assert 'return {}["nothing"]' in caught.value.traceback and "workload_load" not in caught.value.traceback


def test_the_command_line_says_whose_error_it_is(repository):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "autotune", "tune", "--workload", "mine:broken", "--target", "cpu:2"],
        cwd=repository, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert 'return {}["nothing"]' in done.stderr
    assert done.stderr.splitlines()[-1].startswith("autotune: calling mine:broken: your code failed: KeyError")
