"""What a process's death says about its layout: what it brought upon itself is kept, what came from outside is not."""

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import toy_steps

from autotune.compile import compile as compiling
from autotune.compile.compilation import Candidate, Compilation, CompileFailure, failure_from_json, to_json
from autotune.compile.compile import compile_all, store_key
from autotune.measure import worker_runner
from autotune.measure.measure import Prepared, RunFailure, Turn
from autotune.measure.worker_runner import WorkerRunner
from autotune.meshes.layout import parse_layout
from autotune.meshes.target import parse_target
from autotune.store import Store
from autotune.system import scratch
from autotune.system.death import ATTEMPTS, death, is_shortage

FSDP = parse_layout("fsdp=2")


@pytest.mark.parametrize(
    ("how", "log", "transient"),
    [
        (-signal.SIGKILL, "", True),
        (-signal.SIGTERM, "", True),
        (-signal.SIGHUP, "", True),
        (-signal.SIGINT, "", True),
        (-signal.SIGXCPU, "", True),
        (-(signal.SIGRTMIN + 3), "", True),
        (128 + signal.SIGKILL, "", True),
        (-signal.SIGSEGV, "Fatal Python error: Segmentation fault", False),
        (-signal.SIGABRT, "Check failed: rank == 2", False),
        (-signal.SIGBUS, "", False),
        (-signal.SIGFPE, "", False),
        (-signal.SIGILL, "", False),
        (128 + signal.SIGSEGV, "", False),
        (7, "INTERNAL: the toy gave up", False),
        (255, "", False),
        (os.EX_TEMPFAIL, "", True),
        (-signal.SIGABRT, "terminate called after throwing an instance of 'std::bad_alloc'", True),
        (1, "OSError: [Errno 28] No space left on device", True),
        (1, "pthread_create failed: Resource temporarily unavailable", True),
    ],
)
def test_only_what_a_process_brought_upon_itself_says_something(tmp_path, how, log, transient):
    (tmp_path / "log").write_text(f"{log}\n")
    found = death(how, tmp_path / "log")
    assert found.transient is transient and "\n" not in found.reason and not found.out_of_memory
    assert death(how, tmp_path / "no log").reason == found.reason


def test_the_kernels_killer_is_named(tmp_path):
    found = death(-signal.SIGKILL, tmp_path / "log", killed_for_memory=True)
    assert found.transient and found.out_of_memory and "out-of-memory killer" in found.reason
    assert not death(-signal.SIGSEGV, tmp_path / "log", killed_for_memory=True).transient


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (MemoryError(), True),
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EMFILE, "Too many open files"), True),
        (RuntimeError("INTERNAL: ptxas was killed by signal 9"), True),
        (RuntimeError("RESOURCE_EXHAUSTED: writing /tmp/x.ptx: No space left on device"), True),
        (RuntimeError("RESOURCE_EXHAUSTED: Used 17G of 16G hbm"), False),
        (OSError(errno.ENOENT, "No such file"), False),
        (ValueError("INVALID_ARGUMENT: signal 99"), False),
    ],
)
def test_a_shortage_of_this_machine_is_no_property_of_a_layout(error, short):
    assert is_shortage(error) is short


def killed(marks: Path, times: int, number: int = signal.SIGKILL) -> Candidate:
    workload = toy_steps.toy(toy_steps.build_killed, number=int(number), marks=str(marks), times=times)
    return Candidate(workload=workload, layout=FSDP, target=parse_target("cpu:2"))


@pytest.mark.slow
def test_a_killed_compile_is_tried_again_and_a_killer_is_never_kept(tmp_path):
    """In one call: one job that is killed once, one that always is, and one that crashes by itself."""
    store = Store(tmp_path / "store")
    once, always, own = (
        killed(tmp_path / "once", 1),
        killed(tmp_path / "always", 99, signal.SIGTERM),
        killed(tmp_path / "own", 99, signal.SIGSEGV),
    )
    events: list[compiling.CompileEvent] = []
    found = {}
    for job, outcome in compile_all([once, always, own], workers=2, store=store, on_event=events.append):
        found[job.workload.name] = outcome
    first, second, third = (found[job.workload.name] for job in (once, always, own))
    assert isinstance(first, Compilation)
    assert isinstance(second, CompileFailure) and second.transient and second.attempts == ATTEMPTS
    assert "SIGTERM" in second.reason and second.reason.endswith(f"tried {ATTEMPTS} times")
    assert isinstance(third, CompileFailure) and not third.transient and third.attempts == 1
    assert [(tmp_path / name).stat().st_size for name in ("once", "always", "own")] == [2, ATTEMPTS, 1]
    assert {entry.kind for entry in store.entries()} == {"compile", "failure"} and len(store.entries()) == 2
    assert compiling._stored(store, always, 900.0, False) is None
    kept = compiling._stored(store, own, 900.0, False)
    assert kept == third and compiling._stored(store, own, 900.0, True) is None
    assert [event.kind for event in events].count("started") == 3 and events[-1].running == 0
    # Tried again by hand, it crashes again: both attempts are counted.
    ((_, again),) = compile_all([own], store=store, retry=True)
    assert isinstance(again, CompileFailure) and again.attempts == 2
    assert compiling._stored(store, own, 900.0, False) == again


def test_deaths_that_earlier_versions_kept_are_not_believed(tmp_path):
    store, job = Store(tmp_path), killed(tmp_path / "marks", 0)
    failure = CompileFailure(
        layout="fsdp=2", target="cpu:2", kind="crash", stage="compile", last_line=None, traceback=None, source=None,
        log_path="", seconds=1.0, needed_bytes=None, available_bytes=None, arguments=(),
        reason="the worker process was killed by SIGSEGV (Segmentation fault)",
    )  # fmt: skip
    said = {"SIGSEGV": True, "SIGABRT": True, "SIGKILL": False, "SIGTERM": False}
    for name, kept in said.items():
        values = to_json(dataclasses.replace(failure, reason=failure.reason.replace("SIGSEGV", name)))
        del values["transient"], values["attempts"]
        store.put(store_key(job), "failure", values)
        assert (compiling._stored(store, job, 900.0, False) is not None) is kept, name
    reason = "killed by SIGKILL: this machine ran out of memory (the kernel's out-of-memory killer)"
    store.put(store_key(job), "failure", to_json(dataclasses.replace(failure, reason=reason)))
    assert compiling._stored(store, job, 900.0, False) is None


@pytest.mark.parametrize(
    "change", [{"newer": 1}, {"kind": "melted"}, {"seconds": "long"}, {"arguments": [{"name": "x"}]}]
)
def test_a_failure_that_does_not_rebuild_counts_as_absent(tmp_path, change):
    said: list[str] = []
    store, job = Store(tmp_path, warn=said.append), killed(tmp_path / "marks", 0)
    values = {
        "layout": "fsdp=2", "target": "cpu:2", "kind": "failed", "stage": "compile", "reason": "r", "last_line": None,
        "traceback": None, "source": None, "log_path": "", "seconds": 1.0, "needed_bytes": None,
        "available_bytes": None, "arguments": [],
    }  # fmt: skip
    store.put(store_key(job), "failure", values)
    assert compiling._stored(store, job, 900.0, False) == failure_from_json(values) and said == []
    store.put(store_key(job), "failure", {**values, **change})
    assert compiling._stored(store, job, 900.0, False) is None
    assert len(said) == 1 and "does not rebuild" in said[0]


@pytest.mark.slow
def test_a_measuring_worker_that_is_killed_is_started_again(monkeypatch):
    """Killed between turns and while it prepares; a third death is told, and is no property of the layout."""
    runner = WorkerRunner(toy_steps.toy(), parse_target("cpu:2"), jobs=1)
    try:
        (prepared,) = runner.prepare([FSDP])
        assert isinstance(prepared, Prepared)
        runner._workers[FSDP].process.kill()
        turn = runner.turn(FSDP, 1)
        assert isinstance(turn, Turn) and runner._deaths[FSDP] == 1
        monkeypatch.setattr(worker_runner, "ATTEMPTS", 2)
        runner._workers[FSDP].process.send_signal(signal.SIGTERM)
        failure = runner.turn(FSDP, 1)
        assert isinstance(failure, RunFailure) and failure.transient and "SIGTERM" in failure.reason
    finally:
        runner.close()


def test_folders_of_killed_runs_are_deleted_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    script = """
import sys, time
from autotune.system.scratch import scratch_folder
for purpose in ("compile", "measure", "logs"):
    folder = scratch_folder(purpose)
    (folder / "file").write_text("x")
    print(folder, flush=True)
time.sleep(600)
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment) as owner:
        folders = [Path(owner.stdout.readline().strip()) for _ in range(3)]
        for name in ("autotune-compile-notours1.bak", "autotune-mine", "other-compile-abcdefgh"):
            (tmp_path / name).mkdir()
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "autotune-compile-abcdefgh").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "autotune-measure-abcdefgh").write_text("no folder")
        (tmp_path / "autotune-compile-justmade").mkdir()
        (tmp_path / "autotune-compile-verysold").mkdir()
        os.utime(tmp_path / "autotune-compile-verysold", (1e9, 1e9))
        others = set(tmp_path.iterdir()) - set(folders) - {tmp_path / "autotune-compile-verysold"}
        assert scratch.delete_abandoned() == 1, "of the living nothing is deleted"
        owner.kill()
    assert set(folders) < set(tmp_path.iterdir())
    mine = scratch.scratch_folder("compile")
    scratch.delete_abandoned()
    left = set(tmp_path.iterdir())
    assert left == others | {mine, folders[2]}, "logs stay for a while: a report names them"
    os.utime(folders[2], (time.time() - 8 * 86400,) * 2)
    assert scratch.delete_abandoned() == 1 and not folders[2].exists()
    scratch.delete_scratch(mine)
    assert not mine.exists()


@pytest.mark.slow
def test_a_full_disk_in_a_worker_is_no_property_of_the_layout(tmp_path):
    """The worker cannot write its outcome: files of at most 8 KiB there."""
    store = Store(tmp_path / "store")
    workload = toy_steps.toy(toy_steps.build_on_a_full_disk, bytes_a_file=8192)
    job = Candidate(workload=workload, layout=FSDP, target=parse_target("cpu:2"))
    ((_, outcome),) = compile_all([job], store=store)
    assert isinstance(outcome, CompileFailure) and outcome.transient, outcome
    assert store.entries() == ()
