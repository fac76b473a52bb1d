"""Processes that cannot be one job say why, all of them and soon; a job names who was lost; stdout holds JSON alone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from autotune.system.connection import MESSAGE_BYTES
from autotune.system.gathering import listen
from autotune.system.place import NoJob, Place, parse_coordinator, port_beside
from autotune.system.rendezvous import meet

ROOT = Path(__file__).parents[2]
SMALL = """
import os, time
from pathlib import Path
import jax, jax.numpy as jnp

WIDTH = {width}
print("imported")  # a user's own print is not JSON, nor is what C++ code writes
os.write(1, b"written\\n")

if "AUTOTUNE_TEST_MARK" in os.environ:
    Path(os.environ["AUTOTUNE_TEST_MARK"]).write_text("loading")
    time.sleep(1000)

def step(state, batch):
    def loss(w):
        return jnp.mean((batch["x"] @ w) ** 2)
    value, gradient = jax.value_and_grad(loss)(state["w"])
    return {{"w": state["w"] - 0.1 * gradient}}, {{"loss": value}}

def small():
    matrix = jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)
    return step, {{"w": matrix}}, {{"x": jax.ShapeDtypeStruct((8, WIDTH), jnp.float32)}}

other = small
"""
TUNE = "tune --workload small:small --target local --compile 1 --measure 0 --layouts data=2 --json".split()


@dataclass
class Ended:
    """How a process ended; `seconds` since all were started."""

    code: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def last(self) -> str:
        return self.stderr.strip().splitlines()[-1]


class Started:
    """Processes of one command each, with their output."""

    def __init__(self, folder: Path, commands: list[list[str]], environments: list[dict[str, str]]) -> None:
        self.began, self.processes = time.monotonic(), []
        for index, (command, environment) in enumerate(zip(commands, environments, strict=True)):
            settings = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
            with (folder / f"{index}.out").open("w") as out, (folder / f"{index}.err").open("w") as err:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, *command],
                        stdout=out,
                        stderr=err,
                        cwd=environment.pop("cwd", folder),
                        env={**os.environ, **settings, **environment},
                    )
                )
        self.folder = folder

    def stderr(self, index: int) -> str:
        return (self.folder / f"{index}.err").read_text()

    def await_stderr(self, index: int, text: str) -> None:
        await_true(lambda: text in self.stderr(index) or self.processes[index].poll() is not None)
        assert text in self.stderr(index)

    def ended(self, within: float = 120.0) -> list[Ended]:
        try:
            found = []
            for index, process in enumerate(self.processes):
                process.wait(timeout=within)
                seconds = time.monotonic() - self.began
                found.append(
                    Ended(process.returncode, (self.folder / f"{index}.out").read_text(), self.stderr(index), seconds)
                )
            return found
        finally:
            for process in self.processes:
                process.kill()
                process.wait()


def await_true(condition, within: float = 100.0) -> None:
    until = time.monotonic() + within
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
    assert condition()


@pytest.fixture
def port() -> int:
    """A free port with a free port beside it."""
    for _ in range(50):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            found = probe.getsockname()[1]
            try:
                with socket.create_server(("127.0.0.1", port_beside(found))):
                    return found
            except OSError:
                continue
    raise AssertionError("no two free ports in a row")


@pytest.fixture
def tool(tmp_path, port):
    """Starts `autotune` once for each argument: words (instead of some of TUNE's), and variables of the environment."""
    (tmp_path / "small.py").write_text(SMALL.format(width=16))

    def start(*each: tuple[dict[str, str], dict[str, str]], command: list[str] = TUNE) -> Started:
        commands, environments = [], []
        for index, (changes, environment) in enumerate(each):
            flags = {"--processes": str(len(each)), "--process-id": str(index), "--join-timeout": "5"}
            flags |= {"--coordinator": f"127.0.0.1:{port}", "--store": str(tmp_path / f"store{index}")} | changes
            words = list(command)
            for name in [name for name in flags if name in words]:
                words[words.index(name) + 1] = flags.pop(name)
            commands.append(["-m", "autotune", *words, *(word for pair in flags.items() for word in pair)])
            environments.append(dict(environment))
        return Started(tmp_path, commands, environments)

    return start


@pytest.mark.parametrize("there", [0, 1])
def test_a_process_that_never_starts_is_named_after_the_limit(tool, there):
    [ended] = tool(({"--processes": "2", "--process-id": str(there)}, {})).ended()
    assert ended.code == 2 and ended.seconds < 30
    assert f"waiting for process {1 - there} of 2" in ended.stderr
    assert ended.last.startswith(f"autotune: process {1 - there} of 2 did not come to 127.0.0.1:")
    assert "within 5 s" in ended.last and ended.stdout == ""


def test_every_missing_process_is_named_in_every_process_that_came(tool):
    came = tool(({"--processes": "5"}, {}), ({"--processes": "5", "--process-id": "3"}, {})).ended()
    for one in came:
        assert one.code == 2 and "processes 1, 2, 4 of 5 did not come" in one.last, one


def test_one_killed_while_the_others_are_awaited_is_named(tool):
    started = tool(*(({"--processes": "4", "--join-timeout": "60"}, {}) for _ in range(3)))
    started.await_stderr(2, "waiting for process 3 of 4")
    started.processes[2].kill()
    first, second, _ = started.ended()
    for one in (first, second):
        assert one.code == 3 and "process 2 of 4 was lost before the job began" in one.last, one


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"--workload": "small:other"}, "--workload is small:other, in process 0 it is small:small"),
        pytest.param({"--target": "cpu:2"}, "--target is cpu:2, in process 0 it is local", marks=pytest.mark.slow),
        pytest.param({"--layouts": "fsdp=2"}, "--layouts is fsdp=2, in process 0 it is data=2", marks=pytest.mark.slow),
        ({"--processes": "3"}, "--processes is 3, in process 0 it is 2"),
        pytest.param({"--fix": "zero=1"}, "--fix is zero=1, in process 0 it is not given", marks=pytest.mark.slow),
        pytest.param({"--timeout": "77"}, "--timeout is 77.0, in process 0 it is 3600.0", marks=pytest.mark.slow),
    ],
)
def test_a_process_of_another_command_is_named_with_the_field(tool, changes, field):
    for one in tool(({}, {}), (changes, {})).ended():
        assert one.code == 2 and one.seconds < 30 and one.stdout == ""
        assert one.stderr.splitlines()[-1:] == [
            f"autotune: process 1: {field}; all processes of a job run the same command"
        ]


def test_other_versions_are_another_command(tool, tmp_path):
    metadata = tmp_path / "elsewhere" / "optax-0.0.1.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: optax\nVersion: 0.0.1\n")
    path = os.pathsep.join([str(metadata.parents[1]), str(ROOT)])
    for one in tool(({}, {}), ({}, {"PYTHONPATH": path})).ended():
        assert one.code == 2 and "process 1: optax is 0.0.1, in process 0 it is" in one.last, one


def test_a_file_is_compared_by_its_text(tool, tmp_path):
    text = (ROOT / "meshes/hardware_files/cpu.toml").read_text()
    (tmp_path / "a.toml").write_text(text)
    (tmp_path / "b.toml").write_text(text + "\n# other\n")
    for one in tool(({"--hardware": "a.toml"}, {}), ({"--hardware": "b.toml"}, {})).ended():
        assert one.code == 2 and "process 1: --hardware is a file of sha256 " in one.last, one


def test_two_processes_0(tool):
    for one in tool(({"--processes": "2"}, {}), ({"--process-id": "0"}, {})).ended():
        assert one.code == 2 and one.seconds < 30
        assert one.last.startswith("autotune: two processes have --process-id 0: pid ")


def test_two_processes_1_of_3(tool):
    for one in tool(({}, {}), ({}, {}), ({"--process-id": "1"}, {})).ended():
        assert one.code == 2 and one.seconds < 30
        assert one.last.startswith("autotune: two processes have --process-id 1: pid ")


def test_the_same_words_for_another_program(tool, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "small.py").write_text(SMALL.format(width=32))
    for one in tool(({}, {}), ({}, {"cwd": str(other)})).ended():
        assert one.code == 2 and one.stdout == "", one
        assert "process 1: workload fingerprint is " in one.last, one


def test_the_coordinators_own_port_is_taken(tool, port):
    with listen("", port):
        first, second = tool(({}, {}), ({}, {})).ended()
    said = (
        f"coordinator: process 0 cannot listen on port {port}: address already in use; give --coordinator another port"
    )
    assert first.code == 2 and first.last == f"autotune: {said}", first
    assert second.code == 2 and f"process 0 of 2 ended: {said}" in second.last, second


@pytest.mark.slow
def test_what_goes_wrong_in_one_process_is_said_in_all(tool, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "small.py").write_text("raise RuntimeError('no data here')")
    first, second = tool(({}, {}), ({}, {"cwd": str(other)})).ended()
    said = "importing small: your code failed: RuntimeError: no data here"
    assert first.code == 2 and f"process 1 of 2 ended: {said}" in first.last, first
    assert second.code == 2 and second.last == f"autotune: {said}", second


def test_stdout_holds_the_json_alone(tool):
    first, second = tool(({"--compile": "0"}, {}), ({"--compile": "0"}, {})).ended()
    assert [first.code, second.code] == [0, 0], (first, second)
    assert json.loads(first.stdout)["best"]["status"] == "priced"
    assert second.stdout == ""
    assert "imported\n" in first.stderr and "written\n" in first.stderr, "nothing is lost"


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_each_process_names_the_one_that_is_lost(tool, tmp_path, victim):
    mark = tmp_path / "mark"
    started = tool(*(({}, {"AUTOTUNE_TEST_MARK": str(mark)} if index == victim else {}) for index in range(3)))
    await_true(mark.exists)
    started.processes[victim].kill()
    ended = started.ended()
    for index in {0, 1, 2} - {victim}:
        assert ended[index].code == 3, ended[index]
        assert ended[index].last.startswith(f"autotune: process {victim} of 3 was lost; process {index} ends")
        assert "Check failure" not in ended[index].stderr, "JAX's runtime was faster, and aborted"


def test_a_process_that_is_stopped_is_lost(tmp_path, port):
    code = """
import sys, time
from autotune.system import job, place, rendezvous
job.BEAT_SECONDS, job.SILENCE_SECONDS = 0.2, 2.0
mine = place.Place(host="127.0.0.1", port={port}, processes=2, process_id=int(sys.argv[1]), runs={{}},
                         seconds=60.0, say=print)
one = job.Job(mine.process_id, 2, *rendezvous.meet(mine))
print("met", file=sys.stderr, flush=True)
time.sleep(100)
"""
    commands = [["-c", code.format(port=port), str(index)] for index in (0, 1)]
    started = Started(tmp_path, commands, [{}, {}])
    for index in (0, 1):
        started.await_stderr(index, "met")
    started.processes[1].send_signal(signal.SIGSTOP)
    try:
        assert started.processes[0].wait(timeout=30) == 3
    finally:
        started.processes[1].kill()
        started.processes[1].wait()
    assert "process 1 of 2 was lost (silent for 2 s)" in started.stderr(0)


def place(port: int, process_id: int, **other) -> Place:
    known = Place(
        host="127.0.0.1", port=port, processes=2, process_id=process_id, runs={"--batch": "8"}, seconds=20.0,
        say=lambda line: None,
    )  # fmt: skip
    return replace(known, **other)


def met(*places: Place) -> list:
    """What each of them got or raised."""
    outcomes: list = [None] * len(places)

    def run(index: int) -> None:
        try:
            outcomes[index] = meet(places[index])
        except NoJob as error:
            outcomes[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(places))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return outcomes


JUNK = {
    "a browser": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "no JSON": b"\x80\x04\x95hello\n",
    "deep JSON": b"[" * 100_000 + b"\n",
    "a long line": b"x" * (MESSAGE_BYTES + 10),
    "another JSON": b'{"autotune": 1, "process": "1", "processes": 2, "from": "x", "runs": {}}\n[1]\nnull\n',
    "a half greeting": b'{"autotune": 1, "proc',
    "nothing": b"",
}


@pytest.mark.parametrize("junk", JUNK.values(), ids=list(JUNK))
def test_strangers_at_the_port_change_nothing(port, junk):
    outcomes: list = []
    host = threading.Thread(target=lambda: outcomes.extend(met(place(port, 0))))
    host.start()
    await_true(lambda: reachable(port), within=10)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as stranger:
        try:
            stranger.sendall(junk)
        except ConnectionError:
            pass  # closed while it was still sending
        [(connections, _)] = met(place(port, 1))
        host.join(20)
    [(others, doorkeeper)] = outcomes
    others[1].send({"value": "hello"})
    assert connections[0].read() == ([{"value": "hello"}], True)
    doorkeeper.close()
    for connection in (connections[0], others[1]):
        connection.close()


def reachable(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def test_a_port_of_another_program_is_named(port):
    with socket.create_server(("127.0.0.1", port)):
        [outcome] = met(place(port, 0))
    assert "is used by another program; give --coordinator another port" in str(outcome)


def test_a_program_that_is_not_autotune_is_no_process_0(port):
    with socket.create_server(("127.0.0.1", port)) as server:
        threading.Thread(target=answer_all, args=(server,), daemon=True).start()
        [outcome] = met(place(port, 1, seconds=2.0))
    assert "process 0 of 2 did not come" in str(outcome) and "what answers there is not autotune" in str(outcome)


def answer_all(server: socket.socket) -> None:
    while True:
        try:
            connected, _ = server.accept()
        except OSError:
            return
        with connected:
            connected.sendall(b"220 mail ready\r\n")


def test_who_comes_when_the_job_runs_is_told_so_at_once(port):
    (others, doorkeeper), (connections, _) = met(place(port, 0), place(port, 1))
    began = time.monotonic()
    late = met(place(port, 1), place(port, 0))
    for one in late:
        assert isinstance(one, NoJob) and "began without this process" in str(one)
    assert time.monotonic() - began < 10
    doorkeeper.close()
    for connection in (others[1], connections[0]):
        connection.close()


def test_several_fields_are_named_and_the_rest_counted(port):
    ours = {name: "1" for name in "abcde"}
    outcomes = met(place(port, 0, runs=ours), place(port, 1, runs={name: "2" for name in "abcd"}))
    line = "process 1: a is 2, in process 0 it is 1; b is 2, in process 0 it is 1; c is 2, in process 0 it is 1; 2 more"
    assert all(str(one).startswith(line) for one in outcomes)


@pytest.mark.parametrize("text", ["host", "host:", ":1", "host:0", "host:65536", "host:1 ", "a b:1", "host:²", "1:2:3"])
def test_addresses_that_are_none(text):
    with pytest.raises(ValueError, match="coordinator: "):
        parse_coordinator(text)


@pytest.mark.parametrize("seconds", ["nan", "0", "-1", "inf"])
def test_a_limit_that_is_none(tool, seconds):
    [ended] = tool(({"--processes": "2", "--join-timeout": seconds}, {})).ended()
    assert ended.code == 2 and ended.last.removeprefix("autotune: ").lstrip("-").startswith("join-timeout")
