"""stderr holds what a command says, and every real error; not what JAX prints while it starts without accelerators."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.system.quiet import NOISE, no_accelerator, without_noise

NOISY = (
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
    "I0000 00:00:1795787957.742479   10635 cudart_stub.cc:31] Could not find cuda drivers on your machine, "
    "GPU will not be used.\n"
)
ERRORS = (
    "F1127 14:20:16.547951   20562 client.h:80] Terminating process because of a fatal error.\n"
    "RuntimeError: Unable to load CUDA. Is it installed?\n"
    "E0000 00:00:1795788130.647769   11987 common_lib.cc:554] INVALID_ARGUMENT: Error\n"
    "cudart_stub.cc is a file name\n"
)


@pytest.mark.parametrize("fails", [False, True])
def test_only_noise_is_dropped_and_in_order(capfd, fails):
    try:
        with without_noise():
            for line in (NOISY + ERRORS + NOISY).splitlines(keepends=True):
                os.write(2, line.encode())
            if fails:
                raise KeyError("as it was")
    except KeyError as error:
        assert fails and error.args == ("as it was",)
    os.write(2, NOISY.encode())
    assert capfd.readouterr().err == ERRORS + NOISY


def test_the_noise_of_other_places_is_not_known():
    assert not any(NOISE.search(line.encode()) for line in ERRORS.splitlines())


@pytest.mark.parametrize("file", ["nvidia0", "accel3", "vfio/7", "kfd", "dri/renderD128"])
def test_an_accelerator_is_left_to_jax(tmp_path, file):
    (tmp_path / "null").touch()
    found = no_accelerator(tmp_path)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    assert not no_accelerator(tmp_path)
    (tmp_path / file).unlink()
    assert no_accelerator(tmp_path) == found


@pytest.mark.skipif(not no_accelerator(), reason="where there are accelerators JAX may say what it likes")
@pytest.mark.parametrize("target", ["h100:1x2", "local"])
def test_a_command_says_nothing_but_its_own(tmp_path, target):
    command = [sys.executable, "-m", "autotune", "tune", "--model", "tiny", "--target", target, "--batch", "8"]
    layouts = "data=2" if target != "local" else "data=1"
    command += ["--seq", "64", "--layouts", layouts, "--compile", "0", "--measure", "0", "--quiet"]
    environment = {name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "XDG_CACHE_HOME": str(tmp_path)}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout


def test_a_module_is_what_it_would_be_without(tmp_path):
    code = (
        "from autotune.system.quiet import quiet_start; quiet_start()\n"
        "import jax, inspect\n"
        "same = jax.__spec__.loader is jax.__loader__\n"
        "print(type(jax.__loader__).__name__, same, 'Apache' in inspect.getsource(jax))\n"
        "print(jax.devices()[0].platform)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120
    )
    assert ended.stdout.split() == ["SourceFileLoader", "True", "True", "cpu"], ended
    assert ended.stderr == ""
