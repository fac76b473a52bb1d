"""Which compilers work with which jax; options that a compiler version refuses; no plan where no compile ended."""

from __future__ import annotations

import dataclasses
import json

import pytest

from autotune import Workload, tune
from autotune.cli import run
from autotune.compile.jit_step import compile_step
from autotune.meshes import compiler_options as options_module
from autotune.meshes import installed
from autotune.meshes.compiler_options import compiler_options, options_left_out
from autotune.meshes.hardware import load_hardware
from autotune.meshes.layout import Layout
from autotune.reference_workload import reference_workload
from autotune.report.report import NoPlanFits
from autotune.store import Store

REFUSED_SINCE_0_0_48 = "xla_tpu_enable_async_collective_fusion_fuse_all_gather"


@pytest.fixture
def versions(monkeypatch):
    """Pretends that these versions are installed."""

    def pretend(**found):
        monkeypatch.setattr(installed, "installed_version", found.get)

    return pretend


@pytest.mark.parametrize("jax, libtpu", installed.CHECKED_PAIRS)
def test_checked_pairs_are_not_refused(versions, jax, libtpu):
    versions(jaxlib=jax, libtpu=libtpu)
    assert installed.why_no_compiler("tpu", "v5e:4x4") is None


@pytest.mark.parametrize("jaxlib, libtpu", [("0.11.2", "0.0.42"), ("0.11.0", "0.0.42.1"), ("0.10.2", "0.0.51")])
def test_a_pair_known_not_to_work_is_refused_with_the_fix(versions, capsys, jaxlib, libtpu):
    versions(jaxlib=jaxlib, libtpu=libtpu)
    assert run(["tune", "--model", "tiny", "--target", "v5e:2x2", "--batch", "8", "--seq", "64"]) == 2
    said = capsys.readouterr().err
    assert f'pip install -U "jax[tpu]=={jaxlib}"' in said and f"libtpu {libtpu}" in said and said.count("\n") == 1


def test_from_python_a_missing_compiler_is_refused_as_by_the_command(versions):
    versions(jaxlib="0.10.2")
    workload = reference_workload("tiny", batch=8, seq=512, dtype="bfloat16")
    with pytest.raises(ValueError, match="libtpu, is not installed"):
        tune(workload, "v5e:2x2", compile=1)
    assert tune(workload, "v5e:2x2", compile=0).plan, "a price needs no compiler"


def test_v5p_leaves_out_the_option_that_a_newer_libtpu_refuses(monkeypatch):
    v5p = load_hardware("v5p")
    monkeypatch.setattr(options_module, "meets", lambda requirement: True)
    assert compiler_options(Layout(), v5p)[REFUSED_SINCE_0_0_48] is True and not options_left_out(v5p)
    monkeypatch.setattr(options_module, "meets", lambda requirement: False)
    assert REFUSED_SINCE_0_0_48 not in compiler_options(Layout(), v5p)
    assert options_left_out(v5p) == {REFUSED_SINCE_0_0_48: "libtpu<0.0.48"}
    asked = Layout(compiler_options=((REFUSED_SINCE_0_0_48, "true"),))
    assert compiler_options(asked, v5p)[REFUSED_SINCE_0_0_48] is True, "the user's own option stays"


class Lowered:
    """A lowered step whose compiler refuses some options."""

    def __init__(self, *refused, message="INVALID_ARGUMENT: No such compile option: '{}'"):
        self.refused, self.message = refused, message

    def compile(self, compiler_options):
        for name in self.refused:
            if name in compiler_options:
                raise RuntimeError(self.message.format(name))
        return dict(compiler_options)


def test_options_that_an_unknown_compiler_refuses_are_left_out_one_by_one():
    v5p = load_hardware("v5p")
    names = list(compiler_options(Layout(), v5p))
    compiled, refused = compile_step(Lowered(names[0], names[2]), Layout(), v5p, compiler_options)
    assert set(refused) == {names[0], names[2]} and set(compiled) == set(names) - set(refused)


def test_a_setting_that_is_not_supported_leaves_out_all_of_the_file():
    v5p = load_hardware("v5p")
    lowered = Lowered(*compiler_options(Layout(), v5p), message="FAILED_PRECONDITION: fusion is not supported here")
    compiled, refused = compile_step(lowered, Layout(), v5p, compiler_options)
    assert not compiled and set(refused) == set(compiler_options(Layout(), v5p))


def test_another_error_and_a_refused_option_of_the_users_own_are_errors():
    v5p = load_hardware("v5p")
    with pytest.raises(RuntimeError, match="out of memory"):
        compile_step(Lowered(REFUSED_SINCE_0_0_48, message="out of memory"), Layout(), v5p, compiler_options)
    own = Layout(compiler_options=(("xla_of_my_own", "1"),))
    with pytest.raises(RuntimeError, match="xla_of_my_own"):
        compile_step(Lowered("xla_of_my_own"), own, v5p, compiler_options)


def failing_step():
    """A step that traces, and that no compiler takes."""
    import jax
    import jax.numpy as jnp

    def step(state, batch):
        def unknown(leaf):
            return jax.ffi.ffi_call("no_such_kernel", jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))(leaf)

        return jax.tree.map(unknown, state), jnp.sum(batch)

    state = {"w": jax.ShapeDtypeStruct((64, 64), jnp.float32)}
    return Workload(step, state, jax.ShapeDtypeStruct((8, 64), jnp.float32))


def test_where_every_compile_fails_there_is_no_plan(tmp_path, capsys):
    """A kernel that nobody registered makes every compile fail for one reason."""
    out = tmp_path / "plan.json"
    words = ["tune", "--workload", "test_installed:failing_step", "--target", "cpu:4", "--axes", "data"]
    words += ["--compile", "2", "--measure", "0", "--store", str(tmp_path / "store"), "--out", str(out)]
    assert run(words) == 1
    said = capsys.readouterr()
    assert "no plan, since all" in said.err and "no_such_kernel" in said.err
    assert not out.exists() and "plan written" not in said.out
    assert run([*words, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["best"] is None and "no plan" in document["compilers_word"]


@pytest.mark.parametrize(
    "option", ["xla_there_is_no_such_option", pytest.param("xla_cpu_no_such_switch", marks=pytest.mark.slow)]
)
def test_an_option_that_the_compiler_does_not_know_is_bad_input(option, tmp_path, capsys):
    words = ["tune", "--model", "tiny", "--target", "cpu:4", "--batch", "8", "--seq", "32", "--axes", "data,fsdp"]
    words += ["--fix", f"xla.{option}=1", "--compile", "2", "--measure", "0", "--store", str(tmp_path), "--quiet"]
    assert run(words) == 2
    error = capsys.readouterr().err
    assert option in error and "No such compile option" in error and error.count("\n") == 1


@pytest.mark.slow
def test_from_python_such_a_report_raises_with_the_reason(tmp_path):
    report = tune(
        failing_step(), "cpu:4", axes=("data",), compile=1, measure=0,
        store=Store(tmp_path / "store"),
    )  # fmt: skip
    with pytest.raises(NoPlanFits, match="no_such_kernel"):
        _ = report.plan
    with pytest.raises(NoPlanFits, match="compiles? failed|compile failed"):
        report.best()


def test_hardware_without_the_option_has_nothing_left_out():
    bare = dataclasses.replace(load_hardware("v5p"), compiler_options={})
    assert not options_left_out(bare)
