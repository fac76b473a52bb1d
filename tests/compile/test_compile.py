"""Compiles in worker processes: what comes back, what a bad one costs, and that no process is left over."""

import dataclasses
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from pathlib import Path

import psutil
import pytest
import toy_steps

from autotune.analysis.overheads import resharded
from autotune.compile import compile as compiling
from autotune.compile.compilation import compilation_from_json, failure_from_json, to_json
from autotune.compile.compile import Candidate, Compilation, CompileFailure, compile_all, store_key
from autotune.compile.jit_step import lower_step
from autotune.compile.log import last_useful_line, memory_needed, warnings_in
from autotune.compile.worker import MEMORY_FIELDS
from autotune.hlo.warnings import readable_warnings
from autotune.meshes.compiler_options import compiler_options, options_to_read
from autotune.meshes.layout import parse_layout
from autotune.meshes.target import parse_target
from autotune.meshes.topology import mesh_of
from autotune.store import Store

FSDP = parse_layout("fsdp=2")
LIMIT_SECONDS = 8.0
BAD = {
    build: getattr(toy_steps, f"build_{build}")
    for build in ("segfault", "abort", "exit", "hang", "mistake", "stack", "noise")
}


def job(build=toy_steps.build_mlp, layout=FSDP, target="cpu:2", **sizes) -> Candidate:
    return Candidate(workload=toy_steps.toy(build, **sizes), layout=layout, target=parse_target(target))


def descendants() -> list[psutil.Process]:
    return [process for process in psutil.Process().children(recursive=True) if "compile.worker" in _command(process)]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """Every bad job between two good ones, with two workers: (outcomes by builder, events, store)."""
    store = Store(tmp_path_factory.mktemp("store"))
    jobs = [job(), *(job(build) for build in BAD.values()), job(layout=parse_layout("tensor=2"))]
    events: list[compiling.CompileEvent] = []
    outcomes = {}
    for one, outcome in compile_all(
        jobs, workers=2, timeout_seconds=LIMIT_SECONDS, store=store, on_event=lambda event: events.append(event)
    ):
        outcomes[one.workload.name.removeprefix("build_"), str(one.layout)] = outcome
    return outcomes, events, store


def bad(everything, name: str) -> CompileFailure:
    outcome = everything[0][name, "fsdp=2"]
    assert isinstance(outcome, CompileFailure)
    return outcome


def test_the_good_ones_compile_whatever_happens_beside_them(everything):
    for layout in ("fsdp=2", "tensor=2"):
        outcome = everything[0]["mlp", layout]
        assert isinstance(outcome, Compilation)
        assert outcome.text.startswith("HloModule jit_step, is_scheduled=true")
        assert "num_partitions=2" in outcome.text.split("\n")[0]
        assert (outcome.layout, outcome.target, outcome.platform) == (layout, "cpu:2", "cpu")
        assert outcome.lower_seconds > 0 and outcome.compile_seconds > 0
        assert 100e6 < outcome.worker_peak_rss_bytes < 1.5e9
        assert outcome.versions["jax"] and outcome.versions["jaxlib"]
        assert outcome.cost is not None and outcome.cost["flops"] > 0


def test_arguments_are_the_entry_parameters_in_order(everything):
    outcome = everything[0]["mlp", "fsdp=2"]
    entry = outcome.text[outcome.text.index("\nENTRY ") :]
    found = re.findall(r"= (\w+)\[([\d,]*)\]\S* parameter\((\d+)\).*op_name=\"([^\"]*)\"", entry)
    in_text = {int(number): (name.replace("\\'", "'"), dims) for _, dims, number, name in found}
    assert [in_text[number] for number in range(len(found))] == [
        (argument.name, ",".join(str(extent) for extent in argument.shape)) for argument in outcome.arguments
    ]
    assert {argument.name: argument.category for argument in outcome.arguments} == {
        "state['count']": "other",
        "state['momentum']": "optimizer_state",
        "state['unread']": "optimizer_state",
        "state['weights']": "parameters",
        "batch['x']": "batch",
        "batch['y']": "batch",
    }
    weights = next(argument for argument in outcome.arguments if argument.category == "parameters")
    assert weights.global_shape == (toy_steps.DEPTH, toy_steps.WIDTH, toy_steps.WIDTH)
    assert weights.bytes == 4 * toy_steps.DEPTH * toy_steps.WIDTH**2 // 2
    assert weights.spec == "(None, 'fsdp', 'tensor')"


def test_the_state_is_donated(everything):
    """All but the metrics and what lies between: the new state takes over the old one's buffers."""
    outcome = everything[0]["mlp", "fsdp=2"]
    state = sum(argument.bytes for argument in outcome.arguments if argument.name.startswith("state"))
    assert outcome.memory["alias_size_in_bytes"] == state


@pytest.mark.parametrize(
    ("name", "kind", "stage", "reason", "last_line"),
    [
        ("segfault", "crash", "build", "SIGSEGV", "Segmentation fault"),
        ("abort", "crash", "build", "SIGABRT", "toy_steps.py"),
        ("exit", "crash", "build", "exited with status 7", "INTERNAL: the toy gave up"),
        ("hang", "timeout", "build", "stopped after 8 s", None),
        ("mistake", "failed", "build", "KeyError", "wte"),
    ],
)
def test_each_way_to_fail_has_its_cause(everything, name, kind, stage, reason, last_line):
    failure = bad(everything, name)
    assert (failure.kind, failure.stage) == (kind, stage)
    assert reason in failure.reason and "\n" not in failure.reason
    assert last_line in (failure.last_line or "") if last_line else failure.last_line is None
    assert Path(failure.log_path).exists()


def test_the_users_own_error_is_told_with_its_line_and_traceback(everything):
    failure = bad(everything, "mistake")
    line = (
        Path(toy_steps.__file__).read_text().splitlines().index("    raise KeyError(\"no such parameter: 'wte'\")") + 1
    )
    assert failure.source == f"{toy_steps.__file__}:{line}"
    assert failure.traceback is not None and "in build_mistake" in failure.traceback
    assert bad(everything, "segfault").traceback is None


def test_a_hang_is_stopped_at_its_limit(everything):
    assert LIMIT_SECONDS <= bad(everything, "hang").seconds < LIMIT_SECONDS + 2


def test_workers_run_with_an_unlimited_stack(everything):
    import resource

    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    assert f"stack limit {hard}" in bad(everything, "stack").reason


def test_what_a_worker_prints_goes_to_its_log_alone(everything, capfd):
    failure = bad(everything, "noise")
    log = Path(failure.log_path).read_text()
    assert "printed by the toy" in log and "written to descriptor 2" in log and "said by a child" in log
    assert "noise" not in "".join(capfd.readouterr())


def test_events_count_up(everything):
    _, events, _ = everything
    total = len(BAD) + 2
    assert [event.kind for event in events].count("started") == total
    finished = [event for event in events if event.kind == "finished"]
    assert [event.done for event in finished] == list(range(1, total + 1))
    assert all(event.outcome is not None and event.total == total for event in finished)
    assert max(event.running for event in events) == 2
    assert events[-1].running == 0


def test_no_process_is_left_over(everything):
    assert descendants() == []


def test_the_store_answers_the_second_time(everything, monkeypatch):
    outcomes, _, store = everything
    monkeypatch.setattr(compiling, "WorkerProcess", None)
    jobs = [job(), job(layout=parse_layout("tensor=2")), *(job(BAD[name]) for name in ("segfault", "hang"))]
    events: list[compiling.CompileEvent] = []
    again = list(
        compile_all(jobs, timeout_seconds=LIMIT_SECONDS, store=store, on_event=lambda event: events.append(event))
    )
    assert [outcome for _, outcome in again] == [
        outcomes["mlp", "fsdp=2"],
        outcomes["mlp", "tensor=2"],
        outcomes["segfault", "fsdp=2"],
        outcomes["hang", "fsdp=2"],
    ]
    assert [event.kind for event in events] == ["stored"] * 4


def test_what_is_tried_again(everything):
    _, _, store = everything
    stored = compiling._stored
    assert stored(store, job(BAD["mistake"]), LIMIT_SECONDS, False) is None  # the user will have mended it
    assert stored(store, job(BAD["hang"]), LIMIT_SECONDS, False) is not None
    assert stored(store, job(BAD["hang"]), LIMIT_SECONDS * 10, False) is None  # more time this time
    assert stored(store, job(BAD["hang"]), LIMIT_SECONDS, True) is None
    assert stored(store, job(BAD["segfault"]), LIMIT_SECONDS, True) is None
    assert isinstance(stored(store, job(), LIMIT_SECONDS, True), Compilation)


def test_outcomes_survive_json(everything):
    for outcome in everything[0].values():
        values = json.loads(json.dumps(to_json(outcome)))
        read = compilation_from_json if isinstance(outcome, Compilation) else failure_from_json
        assert read(values) == outcome


def test_an_executor_gives_the_same_answers(everything, tmp_path):
    outcomes, _, _ = everything
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        store = Store(tmp_path)
        found = dict(
            (one.workload.name, outcome)
            for one, outcome in compile_all([job(), job(BAD["segfault"])], store=store, executor=executor)
        )
        mlp, segfault = found["build_mlp"], found["build_segfault"]
        assert isinstance(mlp, Compilation) and isinstance(segfault, CompileFailure)
        assert mlp.text == outcomes["mlp", "fsdp=2"].text
        assert (segfault.kind, segfault.reason) == ("crash", outcomes["segfault", "fsdp=2"].reason)
        assert Path(segfault.log_path).parent == store.logs and "Segmentation" in Path(segfault.log_path).read_text()


def test_an_executor_that_loses_a_job_is_a_crash_of_that_job():
    class Losing(Executor):
        def submit(self, function, /, *arguments, **named):
            future: Future = Future()
            future.set_exception(ConnectionError("node 7 is gone"))
            return future

    ((_, failure),) = compile_all([job()], executor=Losing())
    assert isinstance(failure, CompileFailure)
    assert (failure.kind, failure.stage) == ("crash", "start")
    assert failure.reason == "the executor lost the job: ConnectionError: node 7 is gone"


def test_closing_the_iterator_kills_the_workers():
    compiles = compile_all([job(layout=parse_layout("data=2")), job(BAD["hang"]), job(BAD["hang"])], workers=2)
    next(compiles)
    assert len(descendants()) >= 2
    compiles.close()
    assert descendants() == []


PARENT = """
import signal
import sys
# A shell's background jobs, and so the tests run by one, start with this signal ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {tests!r})
import toy_steps
from autotune.compile.compile import Candidate, compile_all
from autotune.meshes.layout import parse_layout
from autotune.meshes.target import parse_target
workload = toy_steps.toy(toy_steps.build_hang)
hang = Candidate(workload=workload, layout=parse_layout("data=2"), target=parse_target("cpu:2"))
try:
    list(compile_all([hang, hang], on_event=lambda event: print(event.kind, flush=True)))
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_parent_leaves_no_process(sent):
    root = Path(__file__).resolve().parents[2]
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(tests=str(root / "tests"))],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert parent.stdout is not None
    assert [parent.stdout.readline() for _ in range(2)] == ["started\n"] * 2
    workers = psutil.Process(parent.pid).children(recursive=True)
    assert len(workers) == 2
    time.sleep(1.0)  # into the hang
    parent.send_signal(sent)
    said = parent.stdout.read()
    parent.stdout.close()
    parent.wait()
    assert said == ("interrupted\n" if sent == signal.SIGINT else "")
    _, alive = psutil.wait_procs(workers, timeout=5)
    # A zombie has ended: the process that adopted it has not asked for its status yet.
    assert [one for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []


def test_the_key_follows_what_changes_the_program(monkeypatch):
    base = store_key(job())
    hardware = parse_target("cpu:2").hardware
    faster = dataclasses.replace(hardware, hbm_bytes_per_second=2 * hardware.hbm_bytes_per_second)
    calibrated = dataclasses.replace(job(), target=dataclasses.replace(job().target, hardware=faster))
    assert store_key(calibrated) == base
    assert store_key(job(layout=parse_layout("tensor=2"))) != base
    assert store_key(job(target="cpu:4")) != base
    assert store_key(job(width=512)) != base
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    assert store_key(job()) != base


def test_a_workload_that_cannot_travel_is_bad_input():
    lock = threading.Lock()
    stuck = dataclasses.replace(job(), workload=toy_steps.toy(toy_steps.build_mlp, lock=lock))
    with pytest.raises(ValueError, match="workload build_mlp-lock.*cannot be sent to a worker process"):
        list(compile_all([dataclasses.replace(stuck, target=parse_target("cpu:16"))]))  # tests have 8 devices


def test_bad_arguments():
    with pytest.raises(ValueError, match="workers=0 must be 1 or more"):
        next(compile_all([], workers=0))
    with pytest.raises(ValueError, match="timeout_seconds=0 must be above 0"):
        next(compile_all([], timeout_seconds=0))


def test_a_cpu_program_that_is_only_read_is_the_one_that_runs():
    """Workers compile with little effort: the same text and memory, from which all figures come."""
    layout, target = parse_layout("fsdp=2"), parse_target("cpu:2")
    lowered = lower_step(toy_steps.build_mlp(layout, mesh_of(layout, target)))
    usual = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}  # XLA's defaults
    read, run = (lowered.compile(options) for options in (options_to_read(layout, target.hardware), usual))
    assert read.as_text() == run.as_text() and " fusion(" in run.as_text()
    assert read.cost_analysis() == run.cost_analysis()
    memory = [{name: getattr(one.memory_analysis(), name) for name in MEMORY_FIELDS} for one in (read, run)]
    assert memory[0] == memory[1] and memory[0]["temp_size_in_bytes"] > 0


def test_the_users_own_options_stand_over_little_effort():
    layout = parse_layout("fsdp=2,xla.xla_backend_optimization_level=2")
    told = options_to_read(layout, parse_target("cpu:2").hardware)
    assert told == {"xla_backend_optimization_level": 2, "xla_llvm_disable_expensive_passes": True}
    for name in ("h100:1x2", "v5p:2x2x1"):
        hardware = parse_target(name).hardware
        assert options_to_read(FSDP, hardware) == compiler_options(FSDP, hardware)


def test_a_step_too_large_for_a_tpu_says_how_much_is_missing():
    pytest.importorskip("libtpu")
    small, large = list(
        outcome
        for _, outcome in compile_all(
            [job(target="v5e:2x2", layout=parse_layout("fsdp=4"), batch=batch) for batch in (64, 2**24)],
            workers=1,
        )
    )
    assert isinstance(small, Compilation) and "num_partitions=4" in small.text
    assert isinstance(large, CompileFailure)
    assert (large.kind, large.stage) == ("oom", "compile")
    assert large.available_bytes == int(15.75 * 2**30)
    # x and y alone: 2 x 2^24 rows x 256 columns x 4 bytes over 4 devices
    assert large.needed_bytes is not None and large.needed_bytes > 2 * 2**24 * 256 * 4 / 4
    assert [argument.category for argument in large.arguments].count("parameters") == 1


def test_memory_needed_reads_both_forms_of_the_message():
    short = "total memory required for HLO temporaries (512.5M) exceeds available HBM (15.75G)."
    assert memory_needed(short) == (int(512.5 * 2**20), int(15.75 * 2**30))
    long = "Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm. Exceeded hbm capacity by 1.75G."
    assert memory_needed(long) == (int(17.5 * 2**30), int(15.75 * 2**30))
    assert memory_needed("INTERNAL: something else") == (None, None)


def test_the_last_useful_line_is_neither_noise_nor_a_frame(tmp_path):
    log = tmp_path / "log"
    log.write_text(
        "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
        "F1121 12:00:00 1 layout.cc:99] Check failed: rank == 2 (3 vs. 2)\n"
        "*** Check failure stack trace: ***\n    @ 0x7f00 main\n"
        "I0000 00:00:1 1 cudart_stub.cc:31] Could not find cuda drivers on your machine, GPU will not be used.\n"
    )
    assert last_useful_line(log) == "F1121 12:00:00 1 layout.cc:99] Check failed: rank == 2 (3 vs. 2)"
    assert last_useful_line(tmp_path / "none") is None


def test_warnings_are_kept_once(tmp_path):
    log = tmp_path / "log"
    line = "W1 spmd_partitioner.cc:656] [SPMD] Involuntary full rematerialization. The compiler cannot go"
    log.write_text(f"noise\n{line} 1\n{line} 2\n{line} 1\n")
    assert warnings_in(log) == (f"{line} 1", f"{line} 2")


def test_warnings_name_the_line_of_source(everything):
    """The frame number of the weights' update in the toy, looked up in the module it was compiled to."""
    compiled = everything[0]["mlp", "fsdp=2"]
    assert isinstance(compiled, Compilation) and readable_warnings(compiled) == ()
    update = next(line for line in compiled.text.splitlines() if 'op_name="jit(step)/sub"' in line)
    frame = re.search(r"stack_frame_id=(\d+)", update)
    assert frame is not None
    start = (
        "W1121 07:37:32.770201   18523 spmd_partitioner.cc:656] [SPMD] Involuntary full rematerialization. The compiler"
    )
    middle = "cannot go from sharding {devices=[2,1]<=[2]} to {devices=[1,2]<=[2]} efficiently for HLO operation"
    lines = (
        f"{start} {middle} %fake.2 = f32[4,8]{{1,0}} parameter(2), sharding={{devices=[2,1]<=[2]}}. As the last resort",
        f'{start} {middle} %sub.3 = f32[4,8]{{1,0}} copy(%b), metadata={{op_name="jit(step)/sub" {frame[0]}}}. As the',
        "W1121 07:37:32.770201   18523 hlo_remat.cc:9] Can't reduce memory use below 5GiB",
    )
    source = Path(toy_steps.__file__).read_text().splitlines()
    number = 1 + next(index for index, line in enumerate(source) if "new = {**state" in line)
    assert readable_warnings(dataclasses.replace(compiled, warnings=lines)) == (
        f"{toy_steps.__file__}:{number} (jit(step)/sub): f32[4,8] is gathered whole to get from sharding "
        "{devices=[2,1]<=[2]} to {devices=[1,2]<=[2]}",
        "Can't reduce memory use below 5GiB",
    )
    [loss] = resharded(dataclasses.replace(compiled, warnings=lines))
    assert loss.source == f"{toy_steps.__file__}:{number}" and loss.what.startswith("f32[4,8] is gathered whole")
