"""The store keeps whole things only, whatever happens to the process, the disk or the files."""

import contextlib
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from pathlib import Path

import pytest

from autotune.store import SCHEMA, Key, Store, StoreError

KEY = Key(
    workload="w1", layout="fsdp=8", target="cpu:8", hardware="h", versions={"jax": "0.10.2"}, flags={"XLA_FLAGS": "-x"}
)


def key(number: int) -> Key:
    return Key(workload=f"w{number}", layout="fsdp=8", target="cpu:8", hardware="h", versions={}, flags={})


def open_store(path: Path) -> tuple[Store, list[str]]:
    said: list[str] = []
    return Store(path, warn=said.append), said


def test_what_is_put_comes_back(tmp_path):
    store, said = open_store(tmp_path)
    value = {"text": "HloModule\n" * 1000, "seconds": 1.5, "unknown": None, "nested": {"list": [1, 2]}}
    assert store.get(KEY, "compile") is None
    store.put(KEY, "compile", value)
    assert Store(tmp_path).get(KEY, "compile") == value
    assert said == []


@pytest.mark.parametrize(
    "change",
    [
        {"workload": "w2"},
        {"layout": "fsdp=4,tensor=2"},
        {"target": "cpu:16"},
        {"hardware": "other"},
        {"versions": {"jax": "0.11.0"}},
        {"flags": {}},
    ],
)
def test_every_part_of_the_key_matters(tmp_path, change):
    store, _ = open_store(tmp_path)
    store.put(KEY, "compile", {"value": 1})
    import dataclasses

    assert store.get(dataclasses.replace(KEY, **change), "compile") is None


def test_a_compile_replaces_a_failure_and_the_other_way_round(tmp_path):
    store, _ = open_store(tmp_path)
    store.put(KEY, "failure", {"reason": "crashed"})
    store.put(KEY, "compile", {"text": "x"})
    assert store.get(KEY, "failure") is None
    store.put(KEY, "failure", {"reason": "crashed again"})
    assert store.get(KEY, "compile") is None
    assert [entry.kind for entry in store.entries()] == ["failure"]


def test_measurements_accumulate_in_order(tmp_path):
    store, _ = open_store(tmp_path)
    for seconds in (3.0, 1.0, 2.0):
        store.add_measurement(KEY, {"seconds": seconds})
    assert [value["seconds"] for value in store.measurements(KEY)] == [3.0, 1.0, 2.0]
    assert store.measurements(key(2)) == []


def test_blobs_by_name(tmp_path):
    store, _ = open_store(tmp_path)
    store.put_blob("evidence-1", {"a": [1]})
    assert store.get_blob("evidence-1") == {"a": [1]}
    assert store.get_blob("evidence-2") is None


def test_entries_name_what_they_are_of(tmp_path):
    store, _ = open_store(tmp_path)
    store.put(KEY, "compile", {"text": "x"})
    (entry,) = store.entries()
    assert (entry.kind, entry.digest, entry.key["layout"], entry.key["versions"]) == (
        "compile",
        KEY.digest,
        "fsdp=8",
        {"jax": "0.10.2"},
    )
    assert entry.bytes == entry.path.stat().st_size
    assert abs(entry.created - time.time()) < 60


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "binary", "not a header", "key", "time", "body"])
def test_a_damaged_file_is_said_never_used_and_replaced(tmp_path, damage):
    store, said = open_store(tmp_path)
    store.put(KEY, "compile", {"text": "x" * 1000})
    (path,) = (entry.path for entry in store.entries())
    data = path.read_bytes()
    header, _, body = data.partition(b"\n")
    bad_body = zlib.compress(b"[1]")
    values = {**json.loads(header), "body_bytes": len(bad_body), "body_crc": zlib.crc32(bad_body)}
    damaged = {
        "truncated": data[:-5],
        "flipped": data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
        "empty": b"",
        "binary": bytes(range(256)) * 9,
        "not a header": b'["schema"]\nx',
        "key": header.replace(b"fsdp=8", b"fsdp=4") + b"\n" + body,
        "time": header.replace(b'"created": 1', b'"created": 2') + b"\n" + body,
        "body": json.dumps(values).encode() + b"\n" + bad_body,
    }
    assert damaged[damage] != data
    path.write_bytes(damaged[damage])
    assert store.get(KEY, "compile") is None
    assert len(said) == 1 and "damaged" in said[0] and str(path) in said[0]
    assert path.read_bytes() == damaged[damage], "reading deletes nothing"
    store.put(KEY, "compile", {"text": "y"})
    assert store.get(KEY, "compile") == {"text": "y"}
    assert len(store.entries()) == 1


def test_prune_deletes_damaged_entries_and_counts_them(tmp_path):
    store, _ = open_store(tmp_path)
    for number in range(3):
        store.put(key(number), "compile", {"number": number})
    path = store.entries()[1].path
    path.write_bytes(path.read_bytes().replace(b'"schema"', b'"sch\x00ma"'))
    size = path.stat().st_size
    assert store.prune(older_than_seconds=3600) == (1, size)
    assert not path.exists() and len(store.entries()) == 2


def test_an_entry_under_another_ones_name_is_not_its_answer(tmp_path):
    store, said = open_store(tmp_path)
    store.put(key(1), "compile", {"number": 1})
    store.put(key(2), "compile", {"number": 2})
    store.put(key(1), "failure", {"number": 3})  # takes the compile's place
    paths = {entry.key["workload"]: entry.path for entry in store.entries()}
    paths["w2"].write_bytes(paths["w1"].read_bytes())
    assert store.get(key(2), "compile") is None and "damaged" in said[-1]


def test_entries_of_the_first_schema_are_still_read(tmp_path):
    store, said = open_store(tmp_path)
    store.put(KEY, "compile", {"text": "x"})
    (path,) = (entry.path for entry in store.entries())
    header, _, body = path.read_bytes().partition(b"\n")
    values = json.loads(header)
    del values["header_crc"]
    path.write_bytes(json.dumps({**values, "schema": 1}).encode() + b"\n" + body)
    assert store.get(KEY, "compile") == {"text": "x"}
    assert [entry.key["layout"] for entry in store.entries()] == ["fsdp=8"] and said == []
    path.write_bytes(json.dumps({**values, "schema": 1}).replace("fsdp=8", "fsdp=2").encode() + b"\n" + body)
    assert store.get(KEY, "compile") is None and "damaged" in said[-1]


def foreign_files(root: Path, outside: Path) -> list[Path]:
    """Files that are not the store's, put where it looks."""
    digest = key(9).digest
    places = [
        root / "entries" / "diary.md",
        root / "entries" / "ab" / "diary.md",
        root / "entries" / "ab" / "deeper" / "diary.md",
        root / "entries" / "ab" / f"{digest}.compile.bak",
        root / "entries" / "zz" / f"{digest}.compile",
        root / "entries" / "ab" / f"{digest}.compile",  # the name does not belong into this folder
        root / "aside" / "diary.md",
        root / "logs" / "diary.md",
        outside / f"{digest}.compile",
        outside / "diary.md",
    ]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("dear diary")
        os.utime(place, (1e9, 1e9))
    (root / "entries" / digest[:2]).symlink_to(outside)
    (root / "aside" / f"{digest}.compile.1.0a0a0a0a").symlink_to(outside / "diary.md")
    (root / "logs" / f"{digest}-1-1.log").symlink_to(outside / "diary.md")
    return places


def test_other_peoples_files_are_neither_listed_nor_deleted(tmp_path):
    store, said = open_store(tmp_path / "store")
    store.put(key(1), "compile", {"number": 1})
    places = foreign_files(tmp_path / "store", tmp_path / "outside")
    assert [entry.key["workload"] for entry in store.entries()] == ["w1"]
    assert store.get(key(9), "compile") is None
    assert store.prune(older_than_seconds=0)[0] == 1
    assert store.prune(keep_bytes=0) == (0, 0)
    assert [place.read_text() for place in places] == ["dear diary"] * len(places)


def test_a_fifo_or_a_link_with_an_entrys_name_is_passed_over(tmp_path):
    store, said = open_store(tmp_path / "store")
    (tmp_path / "secret").write_text("x")
    for number, make in enumerate((os.mkfifo, lambda path: path.symlink_to(tmp_path / "secret"), Path.mkdir)):
        path = tmp_path / "store" / "entries" / key(number).digest[:2] / f"{key(number).digest}.compile"
        path.parent.mkdir(exist_ok=True)
        make(path)
        assert store.get(key(number), "compile") is None
        assert len(said) == number + 1 and str(path) in said[-1]
    assert store.entries() == () and store.prune(keep_bytes=0) == (0, 0)
    assert (tmp_path / "secret").read_text() == "x"


def test_a_file_of_another_schema_is_said_and_left_alone(tmp_path):
    store, said = open_store(tmp_path)
    store.put(KEY, "compile", {"text": "x"})
    (path,) = (entry.path for entry in store.entries())
    header, _, body = path.read_bytes().partition(b"\n")
    path.write_bytes(json.dumps({**json.loads(header), "schema": SCHEMA + 1}).encode() + b"\n" + body)
    assert store.get(KEY, "compile") is None
    assert f"schema {SCHEMA + 1}" in said[0]
    assert store.entries() == ()
    assert path.exists()


@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_to_the_index_the_files_are_listed(tmp_path, seed):
    """Random bytes changed, cut out, put in; a row that reads well but says something else is not believed either."""
    store, said = open_store(tmp_path)
    for number in range(40):
        store.put(key(number), "compile", {"number": number})
    before = store.entries()
    index = tmp_path / "index.sqlite"
    data, randomness = bytearray(index.read_bytes()), random.Random(seed)
    for _ in range(randomness.choice((1, 3, 30, 1000))):
        place = randomness.randrange(len(data))
        how = randomness.randrange(4)
        if how == 0:
            del data[place : place + randomness.randrange(1, 5000)]
        elif how == 1:
            data[place:place] = randomness.randbytes(randomness.randrange(1, 100))
        else:
            data[place] = randomness.randrange(256)
        data = data or bytearray(b"x")
    index.write_bytes(data)
    assert store.entries() == before
    assert len(said) <= 1
    assert store.entries() == before
    assert store.prune(keep_bytes=0)[0] == 40 and store.entries() == ()


def test_a_row_that_was_changed_is_read_anew(tmp_path):
    """A `created` of long ago would have `prune` delete what is new."""
    import sqlite3

    store, said = open_store(tmp_path)
    for number in range(3):
        store.put(key(number), "compile", {"number": number})
    before = store.entries()
    for change in ("created = 5", "created = 'noon'", "key = '{'", "bytes = -1", "digest = x'00ff'", "crc = NULL"):
        with contextlib.closing(sqlite3.connect(tmp_path / "index.sqlite")) as index, index:
            index.execute(f"UPDATE entries SET {change}")
        assert store.entries() == before
        assert store.prune(older_than_seconds=3600) == (0, 0)
    assert said == []


@pytest.mark.parametrize("kind", ["folder", "link", "fifo", "journal"])
def test_what_is_no_index_file_is_left_alone_in_one_line(tmp_path, kind):
    store, said = open_store(tmp_path / "store")
    store.put(KEY, "compile", {})
    outside = tmp_path / "outside"
    outside.write_text("dear diary")
    index = tmp_path / "store" / ("index.sqlite-journal" if kind == "journal" else "index.sqlite")
    {"folder": Path.mkdir, "link": lambda path: path.symlink_to(outside), "fifo": os.mkfifo, "journal": Path.mkdir}[
        kind
    ](index)
    assert [entry.key["layout"] for entry in store.entries()] == ["fsdp=8"]
    assert len(said) == 1 and "no index here" in said[0]
    assert outside.read_text() == "dear diary" and os.path.lexists(index)


READER = """
import os, sys
from pathlib import Path
from autotune.store import Key, Store, StoreError
if os.getuid() == 0:
    os.setgid(65534), os.setuid(65534)
said = []
store = Store(Path(sys.argv[1]), warn=said.append)
key = Key(workload="new", layout="l", target="t", hardware="h", versions={}, flags={})
try:
    store.put(key, "compile", {})
except StoreError as error:
    print("put:", error)
print("entries:", len(store.entries()), "said:", len(said))
print("pruned:", store.prune(keep_bytes=0))
print("said:", *said, sep="\\n")
"""


@pytest.fixture
def open_path():
    """A folder that every user can reach; pytest's own belongs to this one alone."""
    with tempfile.TemporaryDirectory(prefix="autotune-test-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_store_of_another_user_is_read_and_what_is_closed_is_one_line(open_path):
    """Run as somebody else where the tests run as root, to whom nothing is closed."""
    tmp_path = open_path
    store, _ = open_store(tmp_path / "store")
    for number in range(4):
        store.put(key(number), "compile", {"number": number})
    store.entries()
    closed = store.entries()[0].path.parent
    open_folders = [path for path in (tmp_path / "store").rglob("*") if path.is_dir() and path != closed]
    for path in (tmp_path / "store", *open_folders, tmp_path / "store" / "index.sqlite"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    closed.chmod(0)
    command = [sys.executable, "-c", READER, str(tmp_path / "store")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    finally:
        for path in (tmp_path / "store", *open_folders, closed):
            path.chmod(0o755)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    left = 4 - sum(1 for entry in store.entries() if entry.path.parent == closed)
    assert "put: store" in done.stdout and "cannot keep a compile: Permission denied" in done.stdout
    assert f"entries: {left} said: 2" in done.stdout  # the folder that is closed, the index
    assert "pruned: (0, 0)" in done.stdout
    assert f"{left} files could not be deleted: Permission denied" in done.stdout
    assert len(store.entries()) == 4


@pytest.mark.parametrize("damage", [b"", b"no database" * 500, "header", "schema"])
def test_a_damaged_or_old_index_is_rebuilt_from_the_files(tmp_path, damage):
    store, said = open_store(tmp_path)
    for number in range(5):
        store.put(key(number), "compile", {"number": number})
    before = store.entries()
    index = tmp_path / "index.sqlite"
    if damage == "header":
        data = index.read_bytes()
        index.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))
    elif damage == "schema":
        import sqlite3

        with sqlite3.connect(index) as connection:
            connection.execute("PRAGMA user_version = 77")
        connection.close()
    else:
        index.write_bytes(damage)
    assert store.entries() == before
    assert len(before) == 5
    assert damage == b"" or len(said) == 1 and "rebuilt" in said[0]
    assert Store(tmp_path).entries() == before


def test_a_file_that_no_row_names_is_found(tmp_path):
    """What a writer killed between renaming and indexing leaves behind."""
    store, _ = open_store(tmp_path)
    store.put(key(1), "compile", {})
    assert len(store.entries()) == 1
    store.put(key(2), "compile", {})
    store.entries()[0].path.unlink()
    assert [entry.key["workload"] for entry in store.entries()] == ["w2"]


WRITER = """
import sys
from pathlib import Path
from autotune.store import Key, Store
store = Store(Path(sys.argv[1]))
for number in range(10**9):
    key = Key(workload=f"w{number % 7}", layout="a", target="t", hardware="h", versions={}, flags={})
    store.put(key, "compile", {"number": number, "text": "some text of a program " * 20000})
    if number % 5 == 0:
        store.entries()
    print(number, flush=True)
"""


def test_killed_at_random_points_the_store_stays_whole(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    randomness = random.Random(1)
    for _ in range(12):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(randomness.random() * 0.1)
        writer.send_signal(signal.SIGKILL)
        last = [int(line) for line in writer.stdout.read().split()][-1:]
        writer.stdout.close()
        writer.wait()
        store, said = open_store(tmp_path)
        entries = store.entries()
        values = {entry.key["workload"]: store.get(Key(**entry.key), "compile") for entry in entries}
        assert said == []
        assert all(value is not None and value["text"].startswith("some text") for value in values.values())
        for number in last:  # what it said it had kept is there, or its successor
            kept = values[f"w{number % 7}"]
            assert kept is not None and kept["number"] in (number, number + 7)
    store.prune(keep_bytes=0)
    assert store.entries() == ()


def _write_many(path: str, start: int) -> list[str]:
    said: list[str] = []
    store = Store(Path(path), warn=said.append)
    for number in range(60):
        store.put(key(number % 20), "compile", {"writer": start, "number": number, "text": "t" * 10000})
        store.add_measurement(KEY, {"writer": start, "number": number})
        if number % 10 == start:
            store.entries()
    return said


def test_two_writers_at_once_lose_nothing(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        said = pool.starmap(_write_many, [(str(tmp_path), 0), (str(tmp_path), 1)])
    assert said == [[], []]
    store, said_here = open_store(tmp_path)
    assert len(store.measurements(KEY)) == 120
    assert len(store.entries()) == 140
    assert all(store.get(key(number), "compile") for number in range(20))
    assert said_here == []


def test_a_full_disk_is_one_clear_error_and_nothing_half_written(tmp_path):
    store, said = open_store(tmp_path)
    store.put(key(1), "compile", {"text": "fits"})
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))  # the write itself fails, part of the way
    try:
        with pytest.raises(StoreError, match="cannot keep a compile: File too large"):
            store.put(key(2), "compile", {"text": random.Random(0).randbytes(50000).hex()})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert [path.name for path in (tmp_path / "aside").iterdir()] == []
    assert [entry.key["workload"] for entry in store.entries()] == ["w1"]
    assert store.get(key(2), "compile") is None
    assert said == []


def test_a_place_that_cannot_be_a_store(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="Not a directory"):
        Store(tmp_path / "file" / "store")


def test_a_store_in_a_closed_folder_is_one_line(open_path):
    store, _ = open_store(open_path / "store")
    store.put(KEY, "compile", {})
    command = [sys.executable, "-c", READER, str(open_path / "store")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    open_path.chmod(0)
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    finally:
        open_path.chmod(0o755)
    assert done.stderr.splitlines()[-1].startswith(f"autotune.store.StoreError: store {open_path}/store: Permission")


def test_a_read_only_file_system_is_read(tmp_path):
    """As `mount -o ro` makes one; where the tests may mount."""
    store, _ = open_store(tmp_path / "store")
    store.put(KEY, "compile", {"text": "x"})
    store.entries()
    script = f"""
import sys
from pathlib import Path
from autotune.store import Store
said = []
store = Store(Path({str(tmp_path / "store")!r}), warn=said.append)
print(len(store.entries()), store.prune(keep_bytes=0), *said, sep="\\n")
"""
    mount = f"mount --bind {tmp_path}/store {tmp_path}/store && mount -o remount,bind,ro {tmp_path}/store"
    shell = ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$0" "$@"', sys.executable, "-c", script]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run(shell, capture_output=True, text=True, env=environment, timeout=60)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("mounting is not allowed here")
    assert done.returncode == 0, done.stderr
    count, pruned, *said = done.stdout.splitlines()
    assert (count, pruned) == ("1", "(0, 0)")
    assert "no index here (the store cannot be written)" in said[0]
    assert "1 files could not be deleted: Read-only file system" in said[-1]


def test_default_place(monkeypatch, tmp_path):
    monkeypatch.setenv("AUTOTUNE_STORE", str(tmp_path / "here"))
    assert Store().path == tmp_path / "here"
    monkeypatch.delenv("AUTOTUNE_STORE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store().path == tmp_path / ".cache" / "autotune"


def test_export_holds_everything_whole(tmp_path):
    store, _ = open_store(tmp_path / "store")
    store.put(KEY, "compile", {"text": "x"})
    store.add_measurement(KEY, {"seconds": 2.0})
    assert store.export(tmp_path / "out.tar.gz") == 2
    with tarfile.open(tmp_path / "out.tar.gz") as archive:
        documents = [json.load(archive.extractfile(member)) for member in archive.getmembers()]  # type: ignore[arg-type]
    assert {document["kind"]: document["value"] for document in documents} == {
        "compile": {"text": "x"},
        "measurement": {"seconds": 2.0},
    }
    assert documents[0]["key"]["versions"] == {"jax": "0.10.2"}
    with pytest.raises(StoreError, match="cannot export"):
        store.export(tmp_path / "nowhere" / "out.tar.gz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.tar.gz", "store"]


def test_prune_by_age_and_by_size_takes_the_oldest(tmp_path):
    store, _ = open_store(tmp_path)
    for number in range(4):
        store.put(key(number), "compile", {"text": random.Random(number).randbytes(1000).hex()})
    sizes = [entry.bytes for entry in store.entries()]
    assert store.prune(older_than_seconds=3600) == (0, 0)
    assert store.prune(keep_bytes=sizes[2] + sizes[3]) == (2, sizes[0] + sizes[1])
    assert [entry.key["workload"] for entry in store.entries()] == ["w2", "w3"]
    assert store.prune(older_than_seconds=0) == (2, sizes[2] + sizes[3])
    assert store.entries() == ()


def test_looking_up_a_whole_search_is_quick(tmp_path):
    """Eight programs of 3 MB each: little more than decompressing and parsing them, in seconds of this process."""
    store, _ = open_store(tmp_path)
    line = '  %fusion.{0} = bf16[8,128]{{1,0}} fusion(%p.{0}), metadata={{op_name="jit(step)/layer/{0}"}}\n'
    text = "".join(line.format(number) for number in range(36000))
    for number in range(8):
        store.put(key(number), "compile", {"text": text})
    packed = zlib.compress(json.dumps({"text": text}).encode(), 6)
    begin = time.process_time()
    found = [store.get(key(number), "compile") for number in range(8)]
    between = time.process_time()
    assert [json.loads(zlib.decompress(packed)) for _ in range(8)] == found
    assert between - begin < 3 * (time.process_time() - between)
    assert found == [{"text": text}] * 8
