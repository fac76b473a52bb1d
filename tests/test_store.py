"""The store keeps whole things only, whatever happens to the process, the disk or the files."""

import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import tarfile
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


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "binary", "not a header"])
def test_a_damaged_file_is_said_dropped_and_replaced(tmp_path, damage):
    store, said = open_store(tmp_path)
    store.put(KEY, "compile", {"text": "x" * 1000})
    (path,) = (entry.path for entry in store.entries())
    data = path.read_bytes()
    flipped = data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]
    damaged = {
        "truncated": data[:-5],
        "flipped": flipped,
        "empty": b"",
        "binary": bytes(range(256)) * 9,
        "not a header": b'["schema"]\nx',
    }
    path.write_bytes(damaged[damage])
    assert store.get(KEY, "compile") is None
    assert len(said) == 1 and "damaged" in said[0] and str(path) in said[0]
    assert not path.exists()
    store.put(KEY, "compile", {"text": "y"})
    assert store.get(KEY, "compile") == {"text": "y"}
    assert len(store.entries()) == 1


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
