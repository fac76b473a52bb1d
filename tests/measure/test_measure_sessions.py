"""Only times of one session are ranked together: those of two runs are of two moods of the machine."""

import itertools
import shutil

import pytest
import toy_steps

import autotune
from autotune.measure.measure import Prepared, Turn
from autotune.meshes.layout import parse_layout
from autotune.store import Store

STEPS = {"data=2": 1.0, "fsdp=2": 1.1, "tensor=2": 1.2}
"""What a step of each layout takes on an idle machine."""


class Machine:
    """A runner whose steps take `slow` times as long as on an idle machine; it dies after `lives` turns."""

    def __init__(self) -> None:
        self.slow, self.lives, self.turns = 1.0, float("inf"), 0

    def prepare(self, layouts):
        return [Prepared(compile_seconds=1.0, step_seconds=1.0) for _ in layouts]

    def turn(self, layout, steps):
        if self.lives <= 0:
            raise KeyboardInterrupt
        self.lives, self.turns = self.lives - 1, self.turns + 1
        return Turn(seconds=self.slow * STEPS[str(layout)], steps=steps, peak_bytes=None)

    def release(self, layout):
        pass

    def close(self):
        pass


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    monkeypatch.setattr("autotune.search.runner_for", lambda workload, target: machine)
    return machine


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A store with the compiles of all three layouts."""
    store = Store(tmp_path_factory.mktemp("compiled"))
    tune(store, *STEPS, measure=0)
    return store


@pytest.fixture
def store(compiled, tmp_path):
    shutil.copytree(compiled.path, tmp_path / "store")
    return Store(tmp_path / "store")


def tune(store, *texts, measure=None):
    return autotune.tune(
        toy_steps.own_step(), "cpu:2", layouts=[parse_layout(text) for text in texts], compile=len(texts),
        measure=len(texts) if measure is None else measure, store=store, probe=False,
    )  # fmt: skip


def medians(report):
    return {str(row.layout): row.measurement.median_seconds for row in report.rows if row.measurement}


def test_times_of_three_runs_are_of_the_last_one(machine, store):
    pairs = list(itertools.combinations(STEPS, 2))
    order = [pairs[0], pairs[2], pairs[1]]  # A;B, then B;C, then A;C
    for number, pair in enumerate(order, 1):
        machine.slow = float(number)
        assert medians(tune(store, *pair)) == pytest.approx({text: number * STEPS[text] for text in pair})
    assert machine.turns


def test_a_repeat_is_answered_from_the_session_that_has_all(machine, store):
    tune(store, "data=2", "fsdp=2")
    machine.slow = 2.0
    tune(store, "fsdp=2", "tensor=2")
    before, machine.slow = machine.turns, 3.0
    assert medians(tune(store, "data=2", "fsdp=2")) == pytest.approx({"data=2": 1.0, "fsdp=2": 1.1})
    assert medians(tune(store, "tensor=2", "fsdp=2")) == pytest.approx({"fsdp=2": 2.2, "tensor=2": 2.4})
    assert machine.turns == before
    assert medians(tune(store, *STEPS)) == pytest.approx({text: 3 * seconds for text, seconds in STEPS.items()})


def test_a_single_layout_is_compared_with_nothing(machine, store):
    tune(store, "data=2", "fsdp=2")
    before = machine.turns
    assert medians(tune(store, "fsdp=2")) == pytest.approx({"fsdp=2": 1.1}) and machine.turns == before


def test_a_stopped_session_goes_on_and_says_so(machine, store):
    machine.lives = 4
    with pytest.raises(KeyboardInterrupt):
        tune(store, "data=2", "fsdp=2")
    machine.lives = float("inf")
    report = tune(store, "data=2", "fsdp=2")
    assert "4 of the measured turns are of an earlier run that was stopped" in report.notes
    assert sum(row.measurement.samples for row in report.rows) == machine.turns > 4


def test_a_stopped_session_is_not_mixed_with_another_one(machine, store):
    machine.lives = 4
    with pytest.raises(KeyboardInterrupt):
        tune(store, "data=2", "fsdp=2")
    machine.lives, machine.slow = float("inf"), 5.0
    assert medians(tune(store, "fsdp=2", "tensor=2")) == pytest.approx({"fsdp=2": 5.5, "tensor=2": 6.0})
    machine.slow = 7.0
    report = tune(store, "data=2", "fsdp=2")
    assert medians(report) == pytest.approx({"data=2": 7.0, "fsdp=2": 7.7})
    assert not any("stopped" in note for note in report.notes)


def test_times_kept_without_a_session_are_measured_again(machine, store):
    report = tune(store, "data=2", "fsdp=2")
    kept = {row.layout: row.measurement for row in report.rows}
    for entry in store.entries():
        if entry.kind == "measurement":
            value = store._read(entry.path)
            del value["session"]
            store._write(entry.path, "measurement", entry.digest, dict(entry.key), value)
    machine.slow = 2.0
    again = tune(store, "data=2", "fsdp=2")
    assert all(row.measurement.median_seconds == pytest.approx(2 * kept[row.layout].median_seconds)
               for row in again.rows)  # fmt: skip
