"""The best layout under other sets of XLA options: when they are tried, what that may cost, and what is reported."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

import autotune
from autotune import search as search_module
from autotune.cli import autotune as command
from autotune.compile.compilation import Candidate
from autotune.compile.compile import store_key
from autotune.meshes.compiler_options import told_by
from autotune.meshes.hardware import load_hardware
from autotune.meshes.installed import DEVICELESS_ENVIRONMENT
from autotune.meshes.layout import parse_layout
from autotune.meshes.target import parse_target
from autotune.option_sets import LEAST, cannot_win, sets_of
from autotune.outcomes import Outcomes
from autotune.plan.emit import emit
from autotune.price.priced_space import price_space
from autotune.reference_workload import reference_workload
from autotune.report.document import report_to_json
from autotune.space import enumerate_layouts
from autotune.store import Store
from autotune.tables import lines


@pytest.fixture(scope="module")
def workload():
    return reference_workload("tiny", batch=16, seq=128, dtype="bfloat16")


class Machine:
    """Stands for the compiler and the reader of programs: a layout takes its price times a factor that is drawn by its
    text, within the interval of the price; some layouts do not fit."""

    def __init__(self, space, seed, failing=0.0):
        self.space, self.seed, self.failing, self.compiled = space, seed, failing, []

    def seconds(self, layout):
        base = dataclasses.replace(layout, options=None)
        row = self.space.row_of(base)
        low, high = self.space.prices.low_seconds[row], self.space.prices.high_seconds[row]
        draw = np.random.default_rng([self.seed, *str(base).encode()])
        seconds = float(low + (high - low) * draw.random())
        if layout.options is not None:
            seconds *= np.random.default_rng([self.seed, *str(layout).encode()]).uniform(0.8, 1.2)
        return seconds, draw.random() < self.failing

    def compile_all(self, jobs, **_):
        for job in jobs:
            self.compiled.append(job.layout)
            seconds, fails = self.seconds(job.layout)
            yield job, SimpleNamespace(seconds=seconds, fails=fails, kind="oom", reason="too large")


def searched(space, target, workload, machine, mode, count, monkeypatch):
    """(layouts compiled, best seconds) of the compiling part of a search on a pretended compiler."""
    outcomes = Outcomes(analysis={}, failures={}, measurements={}, run_failures={}, smaller={}, neighbours={})

    def read(outcome, job, store):
        memory = SimpleNamespace(peak_bytes=np.inf if outcome.fails else 1.0)
        return SimpleNamespace(prediction=SimpleNamespace(step_seconds=outcome.seconds), memory=memory)

    monkeypatch.setattr(search_module, "_read", read)
    monkeypatch.setattr(search_module, "Compilation", SimpleNamespace)
    monkeypatch.setattr(search_module, "_layout_compiled", lambda *_: None)
    events = SimpleNamespace(from_store=set())
    eta = SimpleNamespace(took=lambda outcome: 0.0)

    def say(event):
        assert event is None

    say.from_store = events.from_store
    names = search_module._sets_to_try(target, (), None, mode, outcomes)
    spared = len(names) if mode == "auto" and count >= LEAST else 0
    compiled = machine.compile_all
    left = search_module._compile(space, workload, target, count, spared, compiled, None, outcomes, eta, say)
    if names:
        most = len(names) if mode == "try" else left
        search_module._compile_sets(space, workload, target, names[:most], count, compiled, None, outcomes, eta, say)
    times = [one.prediction.step_seconds for one in outcomes.analysis.values() if np.isfinite(one.memory.peak_bytes)]
    return machine.compiled, min(times, default=np.inf)


@pytest.mark.parametrize("chip", ["v5e:2x2", "h100:1x8"])
@pytest.mark.parametrize("count", [1, 3, LEAST, 12])
@pytest.mark.parametrize("failing", [0.0, 0.4])
def test_auto_is_never_worse_than_no_sets_and_compiles_no_more(workload, chip, count, failing, monkeypatch):
    target = parse_target(chip)
    space = price_space(workload, target, enumerate_layouts(target, ("data", "fsdp", "tensor"), 16, 2, {}))
    gained = 0
    for seed in range(20):
        bare, without = searched(space, target, workload, Machine(space, seed, failing), "off", count, monkeypatch)
        with_sets, best = searched(space, target, workload, Machine(space, seed, failing), "auto", count, monkeypatch)
        assert best <= without
        if failing:  # a layout that cannot win might not fit either, so the walk goes on below it
            assert len(with_sets) <= 3 * count
        else:
            assert len(with_sets) <= max(len(bare), count)
            assert {one for one in with_sets if one.options is None} <= {*bare}
        tried, after = searched(space, target, workload, Machine(space, seed, failing), "try", count, monkeypatch)
        assert after <= without and tried[: len(bare)] == bare
        assert len(tried) <= len(bare) + len(target.hardware.recommended_sets)
        gained += after < without
    assert gained, "a set is faster than the default one in half of the draws"


def test_auto_spends_what_a_small_space_leaves_over(workload, monkeypatch):
    target = parse_target("v5e:2x2")
    fixed = {"remat": "full", "accumulate": "1", "zero": "0"}
    space = price_space(workload, target, enumerate_layouts(target, ("data", "fsdp"), 16, 2, fixed))
    legal = int(space.legal.sum())
    assert legal < LEAST - 2
    compiled, _ = searched(space, target, workload, Machine(space, 1), "auto", LEAST, monkeypatch)
    assert [one.options for one in compiled] == [None] * legal + ["maxtext", "vmem"]
    compiled, _ = searched(space, target, workload, Machine(space, 1), "auto", legal + 1, monkeypatch)
    assert [one.options for one in compiled] == [None] * legal + ["maxtext"]
    compiled, _ = searched(space, target, workload, Machine(space, 1), "off", LEAST, monkeypatch)
    assert len(compiled) == legal


def test_a_layout_cannot_win_where_its_price_without_communication_is_above_the_best_time(workload):
    target = parse_target("v5e:2x2")
    space = price_space(workload, target, enumerate_layouts(target, ("data", "fsdp"), 16, 2, {}))
    rows = [int(row) for row in np.flatnonzero(space.legal)]
    outcomes = Outcomes(analysis={}, failures={}, measurements={}, run_failures={}, smaller={}, neighbours={})
    assert cannot_win(space, target, outcomes, rows) == set(), "nothing is known yet"
    low = space.prices.low_seconds

    def learn(row, seconds):
        memory = SimpleNamespace(peak_bytes=1.0)
        found = SimpleNamespace(prediction=SimpleNamespace(step_seconds=seconds), memory=memory)
        outcomes.analysis[space.layout(row)] = found

    first, *others = sorted(rows, key=lambda row: low[row])
    learn(first, float(low[first]))
    slower = {row for row in others if low[row] > low[first]}
    assert cannot_win(space, target, outcomes, others) == slower and slower
    learn(others[-1], 0.5 * float(low[others[-1]]))  # the interval was seen to be too high by half
    best = min(float(low[first]), 0.5 * float(low[others[-1]]))
    assert cannot_win(space, target, outcomes, others) == {row for row in others if 0.5 * low[row] > best}


def test_a_set_that_says_nothing_new_is_refused_with_the_reason():
    chip = load_hardware("v5e")
    chip = dataclasses.replace(chip, recommended_sets=("none", "vmem", "default"))
    names, refused = sets_of(chip)
    assert names == ("vmem",)
    assert {one.name: one.reason for one in refused} == {
        "none": "the same options as default", "default": "the same options as default"
    }  # fmt: skip
    later = dataclasses.replace(chip.option_sets["vmem"], requires="numpy<0.1")
    names, refused = sets_of(dataclasses.replace(chip, option_sets={"vmem": later}, recommended_sets=("vmem",)))
    assert not names and refused[0].reason == "holds for numpy<0.1, which is not installed here"


def test_the_key_of_a_compile_knows_the_set_and_a_layout_without_the_word_keeps_its_key(workload):
    v6e = parse_target("v6e:2x2")

    def key(text, target=v6e):
        return store_key(Candidate(workload=workload, layout=parse_layout(text), target=target))

    bare = dataclasses.replace(v6e, hardware=dataclasses.replace(v6e.hardware, option_sets={}, recommended_sets=()))
    assert key("fsdp=4") == key("fsdp=4", bare)
    changed = dataclasses.replace(v6e.hardware.option_sets["bf16"], options={"xla_tpu_rwb_fusion": False})
    hardware = dataclasses.replace(v6e.hardware, option_sets={**v6e.hardware.option_sets, "bf16": changed})
    other = dataclasses.replace(v6e, hardware=hardware)
    assert key("fsdp=4,options=bf16") != key("fsdp=4,options=bf16", other) and key("fsdp=4") == key("fsdp=4", other)
    assert len({key(f"fsdp=4,options={name}").digest for name in ("none", "bf16", "vmem_80")}) == 3


@pytest.fixture(scope="module", params=["h100:1x4", pytest.param("v5e:2x2", marks=pytest.mark.slow)])
def report(request, workload, tmp_path_factory):
    return autotune.tune(
        workload, request.param, layouts=[parse_layout("fsdp=4,remat=full")], compile=1, option_sets="try",
        store=Store(tmp_path_factory.mktemp("store")),
    )  # fmt: skip


def test_a_real_search_compiles_the_winner_under_each_recommended_set(report):
    recommended = report.target.hardware.recommended_sets
    assert [one.name for one in report.option_sets] == ["default", *recommended]
    assert sum(one.chosen for one in report.option_sets) == 1
    known = {one.name: one.step_seconds for one in report.option_sets}
    chosen = next(one for one in report.option_sets if one.chosen)
    assert known[chosen.name] == min(known.values()) and report.plan.layout == chosen.layout
    assert len({(one.step_seconds, one.peak_bytes) for one in report.option_sets}) > 1, "two sets give two programs"
    assert report.counts == {"compiled": 1 + len(recommended)}
    document = json.loads(json.dumps(report_to_json(report)))
    assert [one["name"] for one in document["option_sets"]] == ["default", *recommended]
    shown = "\n".join(lines(report.screen()))
    page = report.to_html()
    for name in recommended:
        assert re.search(rf"^{name} +[\d.]+ (us|ms|s) ", shown, re.M) and f"<td>{name}</td>" in page


def test_what_emit_prints_is_taken_by_the_compiler_from_the_environment(report):
    """The text goes into a real environment, and a program is compiled there without options of its own."""
    recommended = report.target.hardware.recommended_sets[0]
    plan = dataclasses.replace(report.plan, layout=parse_layout(f"fsdp=4,remat=full,options={recommended}"))
    line = next(line for line in emit(plan, "maxtext").splitlines() if line.startswith("# set "))
    (setting,) = shlex.split(line.removeprefix("# set "))
    name, _, value = setting.partition("=")
    assert name == {"tpu": "LIBTPU_INIT_ARGS", "cuda": "XLA_FLAGS"}[report.target.platform]
    assert len(value.split()) == len(told_by(report.target.hardware, recommended)[0])
    program = f"""
import jax, jax.numpy as jnp
from autotune.meshes.layout import Layout
from autotune.meshes.target import parse_target
from autotune.meshes.topology import mesh_of
from jax.sharding import NamedSharding, PartitionSpec
mesh = mesh_of(Layout(fsdp=4), parse_target({report.target.name!r}))
x = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec("fsdp")))
print(len(jax.jit(lambda x: x @ x).lower(x).compile().as_text()))
"""

    def ran(flags):
        env = {**os.environ, **DEVICELESS_ENVIRONMENT, "JAX_PLATFORMS": "cpu", name: flags}
        return subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=300)

    good = ran(value)
    assert good.returncode == 0 and int(good.stdout) > 0, good.stderr[-2000:]
    assert ran(value + " --xla_no_such_option_of_ours=1").returncode != 0, "the compiler does read the variable"


def test_nothing_is_emitted_for_the_compilers_own_defaults(report):
    plan = dataclasses.replace(report.plan, layout=parse_layout("fsdp=4,remat=full,options=none"))
    assert "XLA_FLAGS" not in emit(plan, "maxtext") and "LIBTPU_INIT_ARGS" not in emit(plan, "maxtext")


def test_a_plan_keeps_the_set_and_a_plan_of_an_unknown_one_is_refused(report, tmp_path):
    path = tmp_path / "plan.json"
    report.plan.save(path)
    assert autotune.load_plan(path).layout == report.plan.layout
    name = report.target.hardware.recommended_sets[0]
    plan = dataclasses.replace(report.plan, layout=parse_layout(f"fsdp=4,remat=full,options={name}"))
    path.write_text(plan.to_json().replace(f"options={name}", "options=gone").replace(f'"{name}"', '"gone"'))
    with pytest.raises(ValueError, match="text: layout: options=gone is no option set of"):
        autotune.load_plan(path)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--option-sets", "always"], "--option-sets='always' must be one of auto, try, off"),
        (["--option-sets", "tri"], "did you mean 'try'?"),
    ],
)
def test_a_wrong_choice_is_one_line(arguments, told):
    job = ["tune", "--model", "tiny", "--target", "v5e:2x2", "--batch", "8", "--seq", "128", "--compile", "0"]
    found = CliRunner().invoke(command, [*job, *arguments])
    assert found.exit_code == 2 and told in " ".join(found.output.split())


def test_python_refuses_a_wrong_choice_and_says_why_no_set_was_tried(workload):
    with pytest.raises(ValueError, match="option_sets='always' must be one of auto, try, off"):
        autotune.tune(workload, "v5e:2x2", compile=0, option_sets="always")
    pinned = autotune.tune(workload, "v5e:2x2", compile=0, fix=("options=vmem",), option_sets="try")
    assert "no other option set was tried: the word options is given" in pinned.notes
    assert all(row.layout.options == "vmem" for row in pinned.rows)
    bare = autotune.tune(workload, "v5e:2x2", compile=0)
    assert [row.price for row in bare.ranked[:1]][0].step_seconds == pinned.ranked[0].price.step_seconds
    bare = autotune.tune(workload, "cpu:4", compile=0, option_sets="try")
    assert any("recommends no option sets" in note for note in bare.notes)
