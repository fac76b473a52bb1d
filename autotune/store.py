"""What was compiled and measured, on disk, each thing kept at once and whole.

The files are the truth: one a thing, written aside and renamed into place, a header line and a compressed body with its
checksum. A thing's path follows from its key, so looking one up needs no index; the SQLite index beside them serves
listing and pruning, and is rebuilt from the headers whenever it is damaged, old, or behind. Nothing here needs locks
that a network file system lacks: two tuners on one store at worst do the same work twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import sqlite3
import tarfile
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEMA = 1
RECORD_KINDS = ("compile", "failure", "measurement", "blob")
BUSY_SECONDS = 10.0
ABANDONED_SECONDS = 3600.0
"""A file still being written after an hour belongs to a process that was killed."""


class StoreError(OSError):
    """The store cannot be read or written: one line that says which file and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What was compiled or measured: the workload's fingerprint, the layout in words, target and hardware, the
    versions of the compilers and the flags they ran with."""

    workload: str
    layout: str
    target: str
    hardware: str
    versions: Mapping[str, str]
    flags: Mapping[str, str]

    @property
    def digest(self) -> str:
        """The key as 32 hexadecimal digits: the name of its files."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One kept thing, as its header says. `created`: seconds since 1970; `bytes`: on disk; `key` is {} for a blob."""

    kind: str
    digest: str
    path: Path
    created: float
    bytes: int
    key: Mapping[str, Any]


class Store:
    """A store folder: `$AUTOTUNE_STORE`, else `~/.cache/autotune`, unless a path is given.

    `warn` is called with one line about each thing that was damaged, of another schema, or could not be kept.
    """

    def __init__(self, path: Path | None = None, warn: Callable[[str], None] | None = None) -> None:
        self.path = Path(path or os.environ.get("AUTOTUNE_STORE") or Path.home() / ".cache" / "autotune")
        self.warn = warn or (lambda line: None)
        self.logs = self.path / "logs"
        self._entries = self.path / "entries"
        self._aside = self.path / "aside"
        self._index = self.path / "index.sqlite"
        try:
            for folder in (self.logs, self._entries, self._aside):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"store {self.path}: {error.strerror}: {error.filename}") from None

    # -- one thing --------------------------------------------------------------------------------------------------

    def get(self, key: Key, kind: str) -> dict[str, Any] | None:
        """The compile or failure kept under the key; None when there is none, or only a damaged one (which is said)."""
        return self._read(self._file(key.digest, kind))

    def put(self, key: Key, kind: str, value: Mapping[str, Any]) -> None:
        """Keep a compile or a failure, in place of the key's earlier one of either kind."""
        self._write(self._file(key.digest, kind), kind, key.digest, dataclasses.asdict(key), value)
        other = {"compile": "failure", "failure": "compile"}[kind]
        self._drop(self._file(key.digest, other))

    def measurements(self, key: Key) -> list[dict[str, Any]]:
        """Every measurement kept under the key, oldest first."""
        folder = self._entries / key.digest[:2]
        values = [self._read(path) for path in sorted(folder.glob(f"{key.digest}.measurement.*"))]
        return [value for value in values if value is not None]

    def add_measurement(self, key: Key, value: Mapping[str, Any]) -> None:
        """Keep one measurement beside the key's earlier ones."""
        name = f"{key.digest}.measurement.{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
        path = self._entries / key.digest[:2] / name
        self._write(path, "measurement", key.digest, dataclasses.asdict(key), value)

    def get_blob(self, name: str) -> dict[str, Any] | None:
        """Derived data kept under a name of the caller's choosing; None when there is none."""
        digest = hashlib.sha256(name.encode()).hexdigest()[:32]
        return self._read(self._file(digest, "blob"))

    def put_blob(self, name: str, value: Mapping[str, Any]) -> None:
        """Keep derived data (JSON) under a name; say in the name all that it was derived from."""
        digest = hashlib.sha256(name.encode()).hexdigest()[:32]
        self._write(self._file(digest, "blob"), "blob", digest, {"name": name}, value)

    def attempt(self, write: Callable[..., None], *arguments: Any) -> None:
        """Keep something if that can be done: a full store costs the next run its time, never this run its answer."""
        try:
            write(*arguments)
        except StoreError as error:
            self.warn(str(error))

    # -- all things -------------------------------------------------------------------------------------------------

    def entries(self) -> tuple[Entry, ...]:
        """Everything kept, oldest first. Brings the index up to date with the files."""
        try:
            return self._listed()
        except sqlite3.DatabaseError as error:
            self.warn(f"store {self.path}: the index is not usable ({error}); rebuilt from the files")
        for suffix in ("", "-journal"):
            Path(f"{self._index}{suffix}").unlink(missing_ok=True)
        try:
            return self._listed()
        except sqlite3.DatabaseError as error:  # a file system without locks: the files still tell
            self.warn(f"store {self.path}: no index here ({error}); reading every file's header")
        found = [entry for entry in map(self._header, self._files()) if entry]
        return tuple(sorted(found, key=lambda entry: (entry.created, str(entry.path))))

    def value_of(self, entry: Entry) -> dict[str, Any] | None:
        """What an entry holds; None when it was dropped meanwhile or is damaged."""
        return self._read(entry.path)

    def export(self, destination: Path) -> int:
        """Write every thing that is whole as JSON into a .tar.gz; the number written.

        StoreError when the destination cannot be written; nothing half-written stays there.
        """
        aside = destination.with_name(f".{destination.name}.{uuid.uuid4().hex[:8]}")
        count = 0
        try:
            with tarfile.open(aside, "w:gz") as archive:
                for entry in self.entries():
                    value = self._read(entry.path)
                    if value is None:
                        continue
                    document = {"schema": SCHEMA, "kind": entry.kind, "created": entry.created}
                    data = json.dumps({**document, "key": entry.key, "value": value}, indent=1).encode()
                    member = tarfile.TarInfo(f"{entry.path.name}.json")
                    member.size, member.mtime = len(data), int(entry.created)
                    archive.addfile(member, io.BytesIO(data))
                    count += 1
            os.replace(aside, destination)
        except OSError as error:
            raise StoreError(f"store: cannot export to {destination}: {error.strerror}") from None
        finally:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
        return count

    def prune(self, *, older_than_seconds: float | None = None, keep_bytes: int | None = None) -> tuple[int, int]:
        """Delete what is older, then the oldest until at most `keep_bytes` are left: (files, bytes) deleted.

        Also deletes what killed writers left behind, and logs by the same age.
        """
        now = time.time()
        entries = self.entries()
        doomed = [
            entry for entry in entries if older_than_seconds is not None and now - entry.created > older_than_seconds
        ]
        kept = [entry for entry in entries if entry not in doomed]
        excess = sum(entry.bytes for entry in kept) - keep_bytes if keep_bytes is not None else 0
        for entry in kept:
            if excess <= 0:
                break
            doomed.append(entry)
            excess -= entry.bytes
        for entry in doomed:
            self._drop(entry.path)
        for folder, age in ((self._aside, ABANDONED_SECONDS), (self.logs, older_than_seconds)):
            for path in folder.iterdir():
                with contextlib.suppress(OSError):
                    if age is not None and now - path.stat().st_mtime > age:
                        path.unlink()
        return len(doomed), sum(entry.bytes for entry in doomed)

    # -- files ------------------------------------------------------------------------------------------------------

    def _file(self, digest: str, kind: str) -> Path:
        return self._entries / digest[:2] / f"{digest}.{kind}"

    def _files(self) -> Iterator[Path]:
        for folder in sorted(self._entries.iterdir()):
            if folder.is_dir():
                yield from sorted(folder.iterdir())

    def _write(self, path: Path, kind: str, digest: str, key: Mapping[str, Any], value: Mapping[str, Any]) -> None:
        body = zlib.compress(json.dumps(value).encode(), 6)
        header = {"schema": SCHEMA, "kind": kind, "digest": digest, "created": time.time(), "key": key}
        header |= {"body_bytes": len(body), "body_crc": zlib.crc32(body)}
        aside = self._aside / f"{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        try:
            path.parent.mkdir(exist_ok=True)
            with open(aside, "wb") as file:
                file.write(json.dumps(header).encode() + b"\n" + body)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            raise StoreError(f"store {self.path}: cannot keep a {kind}: {error.strerror}") from None

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self.warn(f"store: cannot read {path}: {error.strerror}")
            return None
        header = _parse_header(data)
        if header is None:
            self._damaged(path)
            return None
        if header["schema"] != SCHEMA:
            self.warn(f"store: {path} has schema {header['schema']}, this is schema {SCHEMA}: not used")
            return None
        body = data[data.index(b"\n") + 1 :]
        if len(body) != header["body_bytes"] or zlib.crc32(body) != header["body_crc"]:
            self._damaged(path)
            return None
        return json.loads(zlib.decompress(body))

    def _header(self, path: Path) -> Entry | None:
        """What the file's first line says; a damaged file is dropped, one of another schema passed over."""
        try:
            with open(path, "rb") as file:
                first = file.readline()
                size = os.fstat(file.fileno()).st_size
        except OSError:
            return None  # dropped by another process meanwhile
        header = _parse_header(first)
        if header is None:
            self._damaged(path)
            return None
        if header["schema"] != SCHEMA:
            return None
        return Entry(
            kind=header["kind"],
            digest=header["digest"],
            path=path,
            created=header["created"],
            bytes=size,
            key=header["key"],
        )

    def _damaged(self, path: Path) -> None:
        self.warn(f"store: {path} is damaged and was dropped")
        self._drop(path)

    def _drop(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)

    # -- index ------------------------------------------------------------------------------------------------------

    def _listed(self) -> tuple[Entry, ...]:
        """The index's rows once they match the files: a killed writer can leave a file that no row names."""
        files = {str(path.relative_to(self._entries)): path for path in self._files()}
        with contextlib.closing(sqlite3.connect(self._index, timeout=BUSY_SECONDS)) as index, index:
            # A rollback journal: WAL needs shared memory, which network file systems do not have.
            index.execute("PRAGMA journal_mode = DELETE")
            (version,) = index.execute("PRAGMA user_version").fetchone()
            if version not in (0, SCHEMA):
                self.warn(f"store {self.path}: the index has schema {version}, this is schema {SCHEMA}: rebuilt")
            index.execute("BEGIN IMMEDIATE")
            if version != SCHEMA:
                index.execute("DROP TABLE IF EXISTS entries")
                index.execute(
                    "CREATE TABLE entries (path TEXT PRIMARY KEY, stamp TEXT, kind TEXT, digest TEXT, created REAL, "
                    "bytes INTEGER, workload TEXT, layout TEXT, target TEXT, key TEXT)"
                )
                index.execute(f"PRAGMA user_version = {SCHEMA}")
            known = dict(index.execute("SELECT path, stamp FROM entries"))
            stamps = {name: _stamp(path) for name, path in files.items()}
            changed = [name for name in files if known.get(name) != stamps[name]]
            gone = [(name,) for name in (*(known.keys() - files.keys()), *changed)]
            index.executemany("DELETE FROM entries WHERE path = ?", gone)
            for name in changed:
                if not (entry := self._header(files[name])):
                    continue
                key = entry.key
                row = (name, stamps[name], entry.kind, entry.digest, entry.created, entry.bytes)
                named = (key.get("workload"), key.get("layout"), key.get("target"), json.dumps(key))
                index.execute("INSERT INTO entries VALUES (?,?,?,?,?,?,?,?,?,?)", row + named)
            rows = index.execute("SELECT path, kind, digest, created, bytes, key FROM entries ORDER BY created, path")
            return tuple(
                Entry(
                    kind=kind,
                    digest=digest,
                    path=self._entries / name,
                    created=created,
                    bytes=size,
                    key=json.loads(key),
                )
                for name, kind, digest, created, size, key in rows
            )


def _parse_header(data: bytes) -> dict[str, Any] | None:
    """The header in the first line; None when it is not one."""
    try:
        header = json.loads(data[: data.index(b"\n")])
        whole = {"schema", "kind", "digest", "created", "key", "body_bytes", "body_crc"} <= header.keys()
        return header if whole or header["schema"] != SCHEMA else None
    except (ValueError, KeyError, AttributeError, TypeError):
        return None


def _stamp(path: Path) -> str:
    """Changes when the file was replaced."""
    try:
        found = path.stat()
    except OSError:
        return "gone"
    return f"{found.st_ino}-{found.st_size}-{found.st_mtime_ns}"
