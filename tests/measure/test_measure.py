"""Measuring: what a Measurement says, when a session stops, and what becomes of runs that hang, crash or are killed."""

from __future__ import annotations

import math
import os
import signal
import statistics
import time

import pytest
from toy_steps import build_mlp, toy

from autotune.measure.measure import (
    Budget,
    Measurement,
    Prepared,
    RunFailure,
    Turn,
    from_json,
    measure,
    tied,
    to_json,
)
from autotune.measure.worker_runner import WorkerRunner
from autotune.meshes.layout import Layout
from autotune.meshes.target import parse_target

FAST, SLOW, THIRD = Layout(data=2), Layout(fsdp=2), Layout(tensor=2)


def measurement(*seconds: float, **changes) -> Measurement:
    known = {"steps": len(seconds), "rounds": len(seconds), "compile_seconds": 1.0, "peak_bytes": None}
    return Measurement(**{"turn_seconds": seconds, "control_drift": None, **known, **changes})


class Script:
    """A Runner that plays out listed times; a layout's turn may also be a RunFailure."""

    def __init__(self, turns: dict[Layout, list]) -> None:
        self.turns = {layout: iter(times) for layout, times in turns.items()}
        self.log: list[Layout] = []
        self.released: list[Layout] = []

    def prepare(self, layouts):
        return [
            Prepared(compile_seconds=2.0, step_seconds=0.1)
            if layout in self.turns
            else RunFailure(kind="oom", phase="compile", reason="too large")
            for layout in layouts
        ]

    def turn(self, layout, steps):
        self.log.append(layout)
        value = next(self.turns[layout])
        return value if isinstance(value, RunFailure) else Turn(seconds=value, steps=steps, peak_bytes=None)

    def release(self, layout):
        self.released.append(layout)

    def close(self):
        pass


def noisy(level: float):
    """Within 2 % of `level`, the same every time."""
    return [level * (1 + 0.02 * math.sin(37 * i)) for i in range(100)]


def test_figures_of_a_measurement_by_hand():
    one = measurement(1.0, 2.0, 4.0, 3.0, 10.0)
    assert one.median_seconds == 3.0
    assert one.spread_seconds == 2.0  # quartiles of 1 2 3 4 10: 2 and 4
    assert one.standard_error == pytest.approx(
        math.sqrt(math.pi / 2) * statistics.stdev([1, 2, 3, 4, 10]) / math.sqrt(5)
    )
    single = measurement(1.0)
    assert single.spread_seconds is None and single.standard_error is None


def test_ties():
    a, b, c = measurement(1.0, 1.1, 0.9, 1.0), measurement(1.05, 1.1, 1.0, 1.02), measurement(2.0, 2.1, 1.9, 2.0)
    assert tied(a, a) and tied(a, b) and tied(b, a)
    assert not tied(a, c) and not tied(c, a)
    assert tied(measurement(1.0), c), "a single turn says nothing about noise"


def test_json_round_trip():
    for outcome in (measurement(1.0, 2.0, peak_bytes=5), RunFailure(kind="crash", phase="run", reason="why")):
        assert from_json(to_json(outcome)) == outcome


def test_rounds_are_interleaved_between_two_turns_of_the_control():
    script = Script({FAST: noisy(1.0), SLOW: noisy(1.001), THIRD: noisy(0.999)})
    measure(script, [FAST, SLOW, THIRD], Budget(rounds=5, precision=0.0))
    rounds = [script.log[i : i + 4] for i in range(0, len(script.log), 4)]
    assert len(rounds) == 5
    assert all(one[0] == one[3] == FAST and set(one[1:3]) == {SLOW, THIRD} for one in rounds)
    assert len({tuple(one) for one in rounds}) == 2, "the order changes between rounds"


def test_a_layout_clearly_behind_is_dropped_early_and_kept_as_measured():
    script = Script({FAST: noisy(1.0), SLOW: noisy(1.5)})
    outcomes = measure(script, [FAST, SLOW], Budget(rounds=8, precision=0.0))
    assert outcomes[SLOW].samples == 3 and outcomes[FAST].rounds == 8
    assert SLOW in script.released
    script = Script({FAST: noisy(1.5), SLOW: noisy(1.0)})
    assert measure(script, [FAST, SLOW], Budget(rounds=8, precision=0.0))[FAST].rounds == 8, "the control stays"


def test_it_stops_once_every_layout_is_known_well_enough():
    script = Script({FAST: [1.0] * 50, SLOW: [1.0] * 50})
    assert measure(script, [FAST, SLOW], Budget(rounds=40, precision=0.01))[FAST].rounds == 3


def test_the_time_budget_ends_with_a_whole_round():
    script = Script({FAST: noisy(1.0), SLOW: noisy(1.0)})
    outcomes = measure(script, [FAST, SLOW], Budget(rounds=40, precision=0.0, seconds=1e-9))
    assert outcomes[FAST].samples == 2 and outcomes[SLOW].samples == 1


def test_drift_of_the_control_is_seen_and_does_not_favour_a_layout():
    drifting = [1.0 + 0.01 * i for i in range(40)]
    clock = iter(drifting)
    script = Script({FAST: [], SLOW: []})
    script.turns = {FAST: clock, SLOW: clock}  # one machine, slower with every turn whatever runs
    outcomes = measure(script, [FAST, SLOW], Budget(rounds=6, precision=0.0))
    assert outcomes[FAST].control_drift > 0.05
    assert outcomes[SLOW].median_seconds == pytest.approx(outcomes[FAST].median_seconds, rel=0.01)


def test_failures_are_outcomes_and_the_rest_goes_on():
    boom = RunFailure(kind="crash", phase="run", reason="gone")
    script = Script({FAST: noisy(1.0), SLOW: [1.0, boom]})
    heard: dict[Layout, list] = {}
    outcomes = measure(
        script, [FAST, SLOW, THIRD], Budget(rounds=4, precision=0.0),
        on_outcome=lambda layout, outcome: heard.setdefault(layout, []).append(outcome),
    )  # fmt: skip
    assert outcomes[SLOW] == boom and outcomes[THIRD].kind == "oom"
    assert outcomes[FAST].rounds == 4
    assert isinstance(heard[SLOW][0], Measurement) and heard[SLOW][-1] == boom
    assert [one.samples for one in heard[FAST][:3]] == [1, 2, 3], "heard after every turn"


def test_a_killed_session_goes_on_where_its_last_turn_ended():
    class Killed(Exception):
        pass

    kept: dict[Layout, Measurement] = {}

    def keep(layout, outcome):
        kept[layout] = from_json(to_json(outcome))
        if sum(one.samples for one in kept.values()) == 7:
            raise Killed

    with pytest.raises(Killed):
        measure(
            Script({FAST: noisy(1.0), SLOW: noisy(2.0)}), [FAST, SLOW], Budget(rounds=4, precision=0.0), on_outcome=keep
        )
    before = {layout: one.turn_seconds for layout, one in kept.items()}
    again = Script({FAST: noisy(1.0), SLOW: noisy(1.0)})
    outcomes = measure(again, [FAST, SLOW], Budget(rounds=4, precision=0.0), earlier=kept)
    assert all(outcomes[layout].turn_seconds[: len(turns)] == turns for layout, turns in before.items())
    assert len(again.log) == 3 * 2, "two whole rounds were kept, two are left"
    done = measure(Script({}), [FAST, SLOW], Budget(rounds=4), earlier=outcomes)
    assert done == outcomes, "a finished session runs nothing"


def build_slow_start(layout, mesh, *, flag: str):
    """Sleeps forever in its fifth step; crashes instead if the flag file says so."""
    import dataclasses

    import jax

    step = build_mlp(layout, mesh)
    calls = []

    def count(_):
        calls.append(1)
        if len(calls) > 4 * layout.devices:
            os.kill(os.getpid(), signal.SIGSEGV) if flag == "crash" else time.sleep(3600)

    def function(state, batch):
        jax.debug.callback(count, batch["x"][0, 0])
        return step.function(state, batch)

    return dataclasses.replace(step, function=function)


@pytest.mark.parametrize(("flag", "kind"), [("crash", "crash"), ("hang", "timeout")])
def test_a_run_that_hangs_or_crashes_costs_one_worker(flag, kind):
    target = parse_target("cpu:2")
    runner = WorkerRunner(toy(build_slow_start, flag=flag), target, timeout_seconds=20.0)
    try:
        assert isinstance(runner.prepare([FAST])[0], Prepared)
        runner.timeout_seconds = 2.0
        process = runner._workers[FAST].process
        outcome = runner.turn(FAST, 40)
        assert isinstance(outcome, RunFailure) and (outcome.kind, outcome.phase) == (kind, "run")
        assert process.poll() is not None, "the worker is gone"
    finally:
        runner.close()


def test_a_real_measurement_on_simulated_devices():
    target = parse_target("cpu:2")
    runner = WorkerRunner(toy(), target)
    try:
        outcomes = measure(runner, [FAST, SLOW], Budget(rounds=2, turn_seconds=0.05, precision=0.0))
    finally:
        runner.close()
    for one in outcomes.values():
        assert isinstance(one, Measurement), one
        assert 0 < one.median_seconds < 1 and one.compile_seconds > 0
        assert one.peak_bytes is None, "the CPU backend keeps no such figure"


def test_two_processes_cannot_share_an_accelerator():
    with pytest.raises(ValueError, match="v5e:2x2 must be cpu"):
        WorkerRunner(toy(), parse_target("v5e:2x2"))
