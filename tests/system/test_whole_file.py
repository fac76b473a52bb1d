"""Results are written whole, into whatever stands at their path, and never at the cost of the result."""

import errno
import json
import os
import resource
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from autotune.cli import autotune as command
from autotune.commands import options
from autotune.system import whole_file
from autotune.system.whole_file import check_writable, descriptor_named, write_whole

ROOT = Path(__file__).resolve().parents[2]
TUNE = (
    *("tune", "--model", "tiny", "--target", "cpu:2", "--batch", "4", "--seq", "16"),
    *("--compile", "0", "--measure", "0", "--quiet"),
)


def tool(*words: str, small_files: bool = False, **given) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "autotune", *words]
    if small_files:
        command = ["/bin/sh", "-c", 'ulimit -f 2; exec "$0" "$@"', *command]  # blocks of 512 bytes
    return subprocess.run(command, env=environment, timeout=120, **{"capture_output": True} | given)


def test_the_mode_of_a_file_stays_and_a_new_one_has_the_umask(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("before")
    old.chmod(0o640)
    before = os.umask(0o027)
    try:
        write_whole(old, "after")
        write_whole(new, "after")
    finally:
        os.umask(before)
    assert old.read_text() == new.read_text() == "after"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (old, new)] == [0o640, 0o640]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_stays_a_link_and_its_target_is_written(tmp_path, dangling):
    (tmp_path / "elsewhere").mkdir()
    target, middle, link = tmp_path / "elsewhere" / "target", tmp_path / "middle", tmp_path / "link"
    if not dangling:
        target.write_text("before")
    middle.symlink_to("elsewhere/target")
    link.symlink_to(middle)
    check_writable(link)
    assert link.is_symlink() and target.exists() is not dangling
    write_whole(link, "after")
    assert link.is_symlink() and middle.is_symlink() and target.read_text() == "after"


def test_a_file_with_two_names_keeps_both(tmp_path):
    (tmp_path / "one").write_text("before, and longer")
    os.link(tmp_path / "one", tmp_path / "two")
    write_whole(tmp_path / "one", "after")
    assert (tmp_path / "two").read_text() == "after"


def test_a_loop_of_links_is_an_error(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for write in (check_writable, lambda path: write_whole(path, "x")):
        with pytest.raises(OSError):
            write(tmp_path / "a")
    assert (tmp_path / "a").is_symlink()


def test_devices_are_written_into(tmp_path):
    before = os.stat("/dev/null")
    write_whole(Path("/dev/null"), "x" * 100000)
    with pytest.raises(OSError) as caught:
        write_whole(Path("/dev/full"), "x")
    assert caught.value.errno == errno.ENOSPC
    for path, old in (("/dev/null", before), ("/dev/full", os.stat("/dev/full"))):
        assert stat.S_ISCHR(os.stat(path).st_mode) and os.stat(path).st_rdev == old.st_rdev


def test_a_fifo_without_a_reader_is_an_error_and_not_a_hang(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo")
    check_writable(tmp_path / "fifo")
    with pytest.raises(OSError, match="Nobody reads from it"):
        write_whole(tmp_path / "fifo", "x")
    monkeypatch.setattr(whole_file, "READER_SECONDS", 0.2)
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(TimeoutError, match="Nobody has read"):
            write_whole(tmp_path / "fifo", "x" * 10**6)  # more than a pipe holds
    finally:
        os.close(reader)
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)


def test_a_slow_reader_of_a_fifo_gets_everything(tmp_path):
    path, text = tmp_path / "fifo", "0123456789" * 50000
    os.mkfifo(path)
    got = []

    def read() -> None:
        with path.open() as file:
            while part := file.read(100000):
                got.append(part)
                time.sleep(0.05)

    reader = threading.Thread(target=read)
    reader.start()
    while True:
        check_writable(path)  # looks, and sends nobody away
        try:
            write_whole(path, text)
            break
        except OSError:
            time.sleep(0.01)  # the reader has not opened it yet
    reader.join(timeout=10)
    assert "".join(got) == text


def test_an_open_descriptor_is_written_where_it_stands(tmp_path):
    """`--out /dev/stdout > file`: the file is neither replaced nor cut while the report goes there too."""
    script = (
        "from pathlib import Path; from autotune.system.whole_file import write_whole\n"
        "print('report', flush=True); write_whole(Path('/dev/stdout'), 'plan'); print('end')"
    )
    with (tmp_path / "all").open("w") as file:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", script], stdout=file, check=True, env=environment)
    assert (tmp_path / "all").read_text() == "report\nplanend\n"
    assert descriptor_named(Path("/dev/fd/7")) == 7 and descriptor_named(tmp_path / "all") is None


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "file").write_text("before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_whole(tmp_path / "file", "x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "file").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_write_left_is_deleted_by_a_later_one(tmp_path):
    old, young, other = (tmp_path / name for name in (f".out.{'0' * 32}.part", f".out.{'1' * 32}.part", ".out.part"))
    for path in (old, young, other):
        path.write_text("half")
    for path in (old, other):
        os.utime(path, (1e9, 1e9))
    write_whole(tmp_path / "out", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([young.name, other.name, "out"])


@pytest.mark.parametrize("option", ["--out", "--html"])
@pytest.mark.parametrize("full", ["device", "disk"])
def test_a_full_disk_at_the_end_costs_the_file_and_not_the_report(tmp_path, option, full):
    store = ("--store", str(tmp_path / "store"))
    where = "/dev/full" if full == "device" else str(tmp_path / "result")
    done = tool(*TUNE, *store, option, where, text=True, small_files=full == "disk")
    assert done.returncode == 2, done.stderr
    assert "chosen: " in done.stdout
    reason = "No space left on device" if full == "device" else "File too large"
    assert done.stderr.splitlines() == [f"autotune: {option} {where}: cannot be written: {reason}"]
    assert not (tmp_path / "result").exists()


def test_a_full_stdout_costs_the_report_and_not_the_plan(tmp_path):
    plan = tmp_path / "plan.json"
    with open("/dev/full", "w") as full:
        done = tool(*TUNE, "--store", str(tmp_path / "store"), "--out", str(plan), capture_output=False, text=True,
                    stdout=full, stderr=subprocess.PIPE)  # fmt: skip
    assert done.returncode == 2
    assert set(done.stderr.splitlines()) == {"autotune: stdout cannot be written: No space left on device"}
    assert json.loads(plan.read_text())["target"] == "cpu:2"


@pytest.mark.parametrize("words", [["targets"], ["models"], ["store", "list", "--json"]])
def test_any_command_says_in_one_line_that_stdout_is_full(tmp_path, words):
    with open("/dev/full", "w") as full:
        done = tool(*words, capture_output=False, text=True, stdout=full, stderr=subprocess.PIPE, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "autotune: the output cannot be written: No space left on device\n"


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("frontier",), marks=pytest.mark.slow),
        ("sweep", "--model", "llama3-8b", "--target", "v5p", "--chips", "64", "--batch-tokens", "1M", "--seq", "4096"),
    ],
)
def test_a_table_is_printed_before_its_picture_is_drawn(tmp_path, words):
    pytest.importorskip("matplotlib")
    (tmp_path / "picture.png").symlink_to("/dev/full")
    done = tool(*words, "--plot", str(tmp_path / "picture.png"), text=True)
    assert done.returncode == 2
    assert len(done.stdout.splitlines()) > 5
    assert done.stderr.splitlines()[-1].endswith("picture.png: cannot be written: No space left on device")
    assert (tmp_path / "picture.png").is_symlink()


def test_a_fifo_as_out_neither_hangs_nor_is_replaced(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    done = tool(*TUNE, "--store", str(tmp_path / "store"), "--out", str(fifo), text=True)
    assert done.returncode == 2 and "chosen: " in done.stdout
    assert done.stderr == f"autotune: --out {fifo}: cannot be written: Nobody reads from it\n"
    with subprocess.Popen(["cat", str(fifo)], stdout=subprocess.PIPE, text=True) as reader:
        done = tool(*TUNE, "--store", str(tmp_path / "store"), "--out", str(fifo), text=True)
        got = reader.stdout.read()
    assert done.returncode == 0 and json.loads(got)["target"] == "cpu:2"
    assert stat.S_ISFIFO(fifo.stat().st_mode)


@pytest.mark.parametrize(
    ("path", "reason"),
    [("folder", "is a folder"), ("nowhere/plan", "does not exist"), ("file/plan", "does not exist"),
     ("loop", "Too many levels"), ("socket", "Is a socket")],
)  # fmt: skip
def test_what_cannot_be_written_is_refused_before_the_search(tmp_path, path, reason):
    import socket

    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as listening:
        here = os.getcwd()
        os.chdir(tmp_path)  # the path of a socket is at most 107 bytes long
        listening.bind("socket")
        os.chdir(here)
        done = CliRunner().invoke(command, [*TUNE, "--out", str(tmp_path / path)])
    assert done.exit_code == 2 and reason in done.output, done.output


def test_the_store_is_exported_into_a_link(tmp_path):
    from autotune.store import Key, Store

    store = Store(tmp_path / "store")
    store.put(Key(workload="w", layout="l", target="t", hardware="h", versions={}, flags={}), "compile", {"text": "x"})
    (tmp_path / "link").symlink_to("target")
    words = ["store", "export", "--store", str(tmp_path / "store")]
    done = CliRunner().invoke(command, [*words, str(tmp_path / "link")])
    assert done.exit_code == 0 and (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes()[:2] == b"\x1f\x8b"
    done = CliRunner().invoke(command, [*words, "/dev/full"])
    assert done.exit_code == 2 and "cannot export to /dev/full: No space left on device" in done.output


def test_saved_and_shown_say_false():
    assert options.saved(lambda path: write_whole(path, "x"), Path("/dev/null"), "--out")
    assert not options.saved(lambda path: write_whole(path, "x"), Path("/dev/full"), "--out")
