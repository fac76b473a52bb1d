"""What a search says while it runs: the same lines on stderr, through the logger, and to a callback."""

import logging
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy_steps

import autotune
from autotune.search_events import EarlyAnswer, LayoutCompiled, LayoutMeasured
from autotune.store import Store

WORDS = ["--workload", "toy_steps:own_step", "--target", "cpu:2"]
"""A step that compiles in a second: what is said of it does not depend on the model."""
LAYOUTS = "fsdp=2;data=2"
TINY = ["--model", "tiny", "--target", "cpu:8", "--batch", "16", "--seq", "64"]
TINY_LAYOUTS = "fsdp=8,remat=full;data=8,remat=full"
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}


def tune(*more, words=WORDS):
    command = [sys.executable, "-m", "autotune", "tune", *words, *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=ENVIRONMENT)


@pytest.fixture(scope="module")
def store(tmp_path_factory, little_effort):
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def searched(store):
    """A search of two layouts, neither in the store before."""
    return tune("--layouts", LAYOUTS, "--compile", "2", "--measure", "0", "--store", str(store))


def test_the_early_answer_comes_first_then_a_line_for_each_compile(searched):
    early, compiling, first, second = searched.stderr.splitlines()
    assert early.startswith("early answer, priced and not compiled yet: ") and " a step, " in early
    assert compiling == "compiling 2 layouts to confirm"  # nothing is known of how long compiles take here
    assert first.startswith("compiled 1 of 2: ") and "(priced " in first and "left" in first
    assert second.startswith("compiled 2 of 2: ") and "left" not in second


def test_quiet_hides_progress_and_nothing_else(searched, store):
    again = tune("--layouts", LAYOUTS, "--compile", "2", "--measure", "0", "--store", str(store), "--quiet")
    assert again.stderr == ""
    cut = [re.sub(r"\[pricing[^\]]*\]", "", done.stdout) for done in (searched, again)]  # without the wall times
    assert cut[0] == cut[1]


def test_the_second_run_knows_how_long_compiles_take_and_takes_none(searched, store):
    again = tune("--layouts", LAYOUTS, "--compile", "2", "--measure", "0", "--store", str(store))
    assert ", about " in again.stderr.splitlines()[1]
    assert all("(from the store)" in line for line in again.stderr.splitlines()[2:])


@pytest.mark.slow
def test_no_more_is_announced_than_can_be_compiled(store):
    """A schedule that is priced only is not compiled, and no time is left after the last layout."""
    tune("--layouts", "fsdp=8,remat=full", "--compile", "1", "--measure", "0", "--store", str(store), words=TINY)
    priced_only = "data=4,stage=2,microbatches=4,schedule=1f1b"
    none = tune("--layouts", priced_only, "--compile", "2", "--measure", "0", "--store", str(store), words=TINY)
    assert none.returncode == 0 and [line[:12] for line in none.stderr.splitlines()] == ["early answer"]
    layouts = f"{priced_only};fsdp=8,remat=full"
    both = tune("--layouts", layouts, "--compile", "6", "--measure", "0", "--store", str(store), words=TINY)
    early, compiling, only = both.stderr.splitlines()
    assert compiling.startswith("compiling 1 layout to confirm, about ")
    assert "fsdp=8,remat=full" in only and "left" not in only


def test_without_compiles_there_is_nothing_to_confirm():
    assert tune("--compile", "0").stderr.splitlines()[0].startswith("early answer")
    assert len(tune("--compile", "0").stderr.splitlines()) == 1


def test_python_has_the_same_events_by_callback_and_by_logger(searched, store, caplog):
    seen = []
    layouts = [autotune.parse_layout(text) for text in LAYOUTS.split(";")]
    with caplog.at_level(logging.INFO, logger="autotune"):
        autotune.tune(
            toy_steps.own_step(), "cpu:2", layouts=layouts, compile=2, measure=0, store=Store(store),
            on_event=seen.append,
        )  # fmt: skip
    told = [event for event in seen if isinstance(event, EarlyAnswer | LayoutCompiled)]
    assert [event.kind for event in told] == ["early answer", "layout compiled", "layout compiled"]
    assert "\n".join(map(str, told)).splitlines() == [record.getMessage() for record in caplog.records]
    assert {event.layout for event in told[1:]} == set(LAYOUTS.split(";"))


@pytest.mark.slow
def test_interrupted_it_shows_what_is_there_and_goes_on_later(tmp_path):
    words = ["--layouts", TINY_LAYOUTS, "--compile", "2"]
    command = [sys.executable, "-m", "autotune", "tune", *TINY, *words, "--jobs", "1"]
    running = subprocess.Popen(
        [*command, "--measure", "0", "--store", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in running.stderr:
        if line.startswith("compiled 1"):
            running.send_signal(signal.SIGINT)
            break
    out, err = running.communicate(timeout=120)
    assert running.returncode == 130, err
    assert "interrupted; the same command goes on from here" in err
    assert "note: interrupted before every layout was compiled" in out and "1 compiled" in out
    again = tune(*words, "--measure", "0", "--store", str(tmp_path), words=TINY)
    assert again.returncode == 0 and again.stderr.count("(from the store)") == 1


def test_a_terminal_sees_the_same_lines_whole(searched, store):
    """At 60 columns no layout is broken inside: lines are left to the terminal to wrap."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "autotune", "tune", *WORDS, "--layouts", LAYOUTS, "--compile", "2"]
    with open(os.devnull, "w") as nothing:
        running = subprocess.Popen(
            [*command, "--measure", "0", "--store", str(store)], stdout=nothing, stderr=follower,
            env={**ENVIRONMENT, "COLUMNS": "60", "TERM": "xterm"},
        )  # fmt: skip
    os.close(follower)
    seen, begun = b"", time.monotonic()
    while time.monotonic() - begun < 300:
        try:
            data = os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
        seen += data
    assert running.wait(timeout=60) == 0
    text = seen.decode()
    assert "early answer, priced and not compiled yet: " in text
    assert all(layout in text for layout in LAYOUTS.split(";"))


def test_lines_of_events():
    assert str(
        LayoutCompiled(
            layout="fsdp=8", step_seconds=1.1, priced_seconds=1.0, peak_bytes=2**31, problem=None, took_seconds=240.0,
            done=1, wanted=3, best="data=8", best_seconds=1.05, left_seconds=500.0,
        )
    ) == (
        "compiled 1 of 3: fsdp=8  1.1 s a step (priced 1 s, +10 %), 2 GiB a device (took 4 min); "
        "best so far: data=8  1.05 s; about 8 min left"
    )  # fmt: skip
    failed = LayoutMeasured(
        layout="fsdp=8", median_seconds=None, spread_seconds=None, problem="oom", compiled_seconds=1.0
    )
    assert str(failed) == "measured: fsdp=8  oom"
