"""What was compiled and measured, on disk, each thing kept at once and whole.

The files are the truth: one a thing, written aside and renamed into place. A file is a header line and a compressed
body, each with its checksum. A thing's path follows from its key, so looking one up needs no index; the SQLite index
beside them serves listing and pruning, and is rebuilt from the headers whenever it is damaged, old, or behind. Nothing
here needs locks that a network file system lacks: two tuners on one store at worst do the same work twice.

A store folder can hold other people's files, by accident or through a link. Only regular files with the names that the
store gives are read, links are not followed, and only `prune` deletes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
import sqlite3
import stat
import tarfile
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from autotune.system.whole_file import writing_whole
from autotune.typed import check_types

SCHEMA = 2
READABLE = (1, 2)
"""Schemas that are read. The header of a file of schema 1 has no checksum; its key is checked against its name."""
RECORD_KINDS = ("compile", "failure", "measurement", "blob")
BUSY_SECONDS = 10.0
ABANDONED_SECONDS = 3600.0
"""A file still being written after an hour belongs to a process that was killed."""
LATEST = 1e11
"""No time of writing is later (in seconds since 1970, the year 5138)."""
HEADER_BYTES = 2**20
"""No header line is longer."""

_FOLDER = re.compile(r"[0-9a-f]{2}")
_ENTRY = re.compile(r"([0-9a-f]{32})\.(compile|failure|blob|measurement)(?:\.\d{20}-[0-9a-f]{8})?")
_ASIDE = re.compile(rf"{_ENTRY.pattern}\.\d+\.[0-9a-f]{{8}}")
_LOG = re.compile(r"[0-9a-f]{32}-\d+-\d+\.log")

T = TypeVar("T")


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
            # A store that is there but cannot be written still answers.
            if not os.path.isdir(self._entries):  # of a closed folder `Path.is_dir` raises
                raise StoreError(f"store {self.path}: {error.strerror}: {error.filename}") from None

    # -- one thing --------------------------------------------------------------------------------------------------

    def get(self, key: Key, kind: str) -> dict[str, Any] | None:
        """The compile or failure kept under the key; None when there is none, or only a damaged one (which is said)."""
        return self._read(self._file(key.digest, kind))

    def put(self, key: Key, kind: str, value: Mapping[str, Any]) -> None:
        """Keep a compile or a failure, in place of the key's earlier one of either kind."""
        self._write(self._file(key.digest, kind), kind, key.digest, dataclasses.asdict(key), value)
        other = {"compile": "failure", "failure": "compile"}[kind]
        with contextlib.suppress(OSError):
            _delete(self._file(key.digest, other))

    def measurements(self, key: Key) -> list[dict[str, Any]]:
        """Every measurement kept under the key, oldest first."""
        names = [path for path in self._named(self._entries / key.digest[:2]) if path.name.startswith(key.digest)]
        values = [self._read(path) for path in names if ".measurement" in path.name]
        return [value for value in values if value is not None]

    def add_measurement(self, key: Key, value: Mapping[str, Any]) -> None:
        """Keep one measurement beside the key's earlier ones."""
        name = f"{key.digest}.measurement.{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
        path = self._entries / key.digest[:2] / name
        self._write(path, "measurement", key.digest, dataclasses.asdict(key), value)

    def get_blob(self, name: str) -> dict[str, Any] | None:
        """Derived data kept under a name of the caller's choosing; None when there is none."""
        digest = _digest_of_name(name)
        return self._read(self._file(digest, "blob"))

    def put_blob(self, name: str, value: Mapping[str, Any]) -> None:
        """Keep derived data (JSON) under a name; say in the name all that it was derived from."""
        digest = _digest_of_name(name)
        self._write(self._file(digest, "blob"), "blob", digest, {"name": name}, value)

    def rebuilt(self, value: Mapping[str, Any] | None, build: Callable[[Mapping[str, Any]], T]) -> T | None:
        """What `build` makes of a kept value; None, which is said, where it does not fit this version's types."""
        if value is None:
            return None
        try:
            built = build(value)
            check_types(built)
            return built
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            self.warn(f"store {self.path}: an entry does not rebuild ({_one_line(error)}): not used")
            return None

    def attempt(self, write: Callable[..., None], *arguments: Any) -> None:
        """Keep something if that can be done: a full store costs the next run its time, never this run its answer."""
        try:
            write(*arguments)
        except StoreError as error:
            self.warn(str(error))

    # -- all things -------------------------------------------------------------------------------------------------

    def entries(self) -> tuple[Entry, ...]:
        """Everything kept, oldest first. Brings the index up to date with the files."""
        files = {str(path.relative_to(self._entries)): path for path in self._files()}
        problem = self._no_index()
        if problem is None:
            try:
                return self._listed(files)
            except _INDEX_ERRORS as error:
                problem = _one_line(error)
                if _rebuildable(error):
                    self.warn(f"store {self.path}: the index is not usable ({problem}); rebuilt from the files")
                    try:
                        for suffix in ("", "-journal"):
                            _delete(Path(f"{self._index}{suffix}"))
                        return self._listed(files)
                    except (*_INDEX_ERRORS, OSError):
                        return self._from_headers(files.values())
        self.warn(f"store {self.path}: no index here ({problem}); reading every file's header")
        return self._from_headers(files.values())

    def _from_headers(self, paths: Iterable[Path]) -> tuple[Entry, ...]:
        found = [entry for entry in map(self._header, paths) if entry]
        return tuple(sorted(found, key=lambda entry: (entry.created, str(entry.path))))

    def value_of(self, entry: Entry) -> dict[str, Any] | None:
        """What an entry holds; None when it was dropped meanwhile or is damaged."""
        return self._read(entry.path)

    def export(self, destination: Path) -> int:
        """Write every thing that is whole as JSON into a .tar.gz; the number written.

        StoreError when the destination cannot be written; nothing half-written stays there.
        """
        count = 0
        try:
            with writing_whole(destination) as file, tarfile.open(fileobj=file, mode="w|gz") as archive:
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
        except OSError as error:
            raise StoreError(f"store: cannot export to {destination}: {error.strerror or error}") from None
        return count

    def prune(self, *, older_than_seconds: float | None = None, keep_bytes: int | None = None) -> tuple[int, int]:
        """Delete what is older, then the oldest until at most `keep_bytes` are left: (entries, bytes) really deleted.

        Damaged entries go first. Also deletes what killed writers left behind, and logs by the same age. Deletes only
        regular files with the store's own names; what cannot be deleted is said in one line.
        """
        now = time.time()
        count = size = failed = 0
        problem: OSError | None = None

        def gone(path: Path) -> bool:
            nonlocal failed, problem
            try:
                return _delete(path)
            except OSError as error:
                failed, problem = failed + 1, error
                return False

        if os.path.islink(self._entries):
            self.warn(f"store {self.path}: {self._entries} is a link; nothing behind it is deleted")
        else:
            entries = self.entries()
            whole = {entry.path for entry in entries}
            for path in self._files():
                if path not in whole and (bytes_there := self._damaged_bytes(path)) is not None and gone(path):
                    count, size = count + 1, size + bytes_there
            left = sum(entry.bytes for entry in entries)
            for entry in entries:
                old = older_than_seconds is not None and now - entry.created > older_than_seconds
                if (old or (keep_bytes is not None and left > keep_bytes)) and gone(entry.path):
                    count, size, left = count + 1, size + entry.bytes, left - entry.bytes
        rest = [(self._aside, _ASIDE, ABANDONED_SECONDS)]
        if older_than_seconds is not None:
            rest.append((self.logs, _LOG, older_than_seconds))
        for folder, names, age in rest:
            for path in () if os.path.islink(folder) else self._inside(folder):
                with contextlib.suppress(OSError):
                    if names.fullmatch(path.name) and now - path.lstat().st_mtime > age:
                        gone(path)
        if problem is not None:
            self.warn(f"store {self.path}: {failed} files could not be deleted: {problem.strerror}")
        return count, size

    # -- files ------------------------------------------------------------------------------------------------------

    def _file(self, digest: str, kind: str) -> Path:
        return self._entries / digest[:2] / f"{digest}.{kind}"

    def _inside(self, folder: Path) -> list[Path]:
        """What a folder of the store holds, by name; one line and [] where it cannot be read."""
        try:
            return sorted(folder.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            self.warn(f"store: cannot read {folder}: {error.strerror}")
            return []

    def _named(self, folder: Path) -> list[Path]:
        """The regular files of one folder that have names of entries, in order."""
        return [
            path
            for path in self._inside(folder)
            if (match := _ENTRY.fullmatch(path.name)) and match[1].startswith(folder.name) and _regular(path)
        ]

    def _files(self) -> Iterator[Path]:
        for folder in self._inside(self._entries):
            if _FOLDER.fullmatch(folder.name) and os.path.isdir(folder) and not os.path.islink(folder):
                yield from self._named(folder)

    def _write(self, path: Path, kind: str, digest: str, key: Mapping[str, Any], value: Mapping[str, Any]) -> None:
        body = zlib.compress(json.dumps(value).encode(), 6)
        header = {"schema": SCHEMA, "kind": kind, "digest": digest, "created": time.time(), "key": key}
        header |= {"body_bytes": len(body), "body_crc": zlib.crc32(body)}
        header["header_crc"] = _header_crc(header)
        aside = self._aside / f"{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        try:
            path.parent.mkdir(exist_ok=True)
            with open(aside, "xb") as file:
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
            with _opened(path) as file:
                data = file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            self.warn(f"store: cannot read {path}: {error.strerror}")
            return None
        header = _parse_header(data[:HEADER_BYTES], path)
        if header is None:
            self._damaged(path)
            return None
        if header["schema"] not in READABLE:
            self.warn(f"store: {path} has schema {header['schema']}, this is schema {SCHEMA}: not used")
            return None
        body = data[data.index(b"\n") + 1 :]
        if len(body) != header["body_bytes"] or zlib.crc32(body) != header["body_crc"]:
            self._damaged(path)
            return None
        try:
            value = json.loads(zlib.decompress(body))
        except (zlib.error, ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            self._damaged(path)
            return None
        return value

    def _header(self, path: Path) -> Entry | None:
        """What the file's first line says; None of a damaged file, which is said, and of another schema."""
        try:
            with _opened(path) as file:
                first = file.readline(HEADER_BYTES)
                size = os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            return None  # deleted by another process meanwhile
        except OSError as error:
            self.warn(f"store: cannot read {path}: {error.strerror}")
            return None
        header = _parse_header(first, path)
        if header is None:
            self._damaged(path)
            return None
        if header["schema"] not in READABLE:
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
        self.warn(f"store: {path} is damaged: not used (`autotune store prune` deletes it)")

    def _damaged_bytes(self, path: Path) -> int | None:
        """The size of a file whose header is damaged; None of any other, and of one that cannot be read."""
        try:
            with _opened(path) as file:
                size = os.fstat(file.fileno()).st_size
                return size if _parse_header(file.readline(HEADER_BYTES), path) is None else None
        except OSError:
            return None

    # -- index ------------------------------------------------------------------------------------------------------

    def _no_index(self) -> str | None:
        """Why the index must not be touched; None when it may be."""
        for suffix in ("", "-journal"):
            path = Path(f"{self._index}{suffix}")
            if os.path.lexists(path) and not _regular(path):
                return f"{path.name} is no regular file"
        if not os.access(self._index if os.path.exists(self._index) else self.path, os.W_OK):
            return "the store cannot be written"
        return None

    def _listed(self, files: Mapping[str, Path]) -> tuple[Entry, ...]:
        """The index's rows once they match the files: a killed writer can leave a file that no row names.

        Every row carries a checksum. A row that was changed is read anew from its file.
        """
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
                    "bytes INTEGER, key TEXT, crc INTEGER)"
                )
                index.execute(f"PRAGMA user_version = {SCHEMA}")
            rows = {}
            for *row, crc in index.execute("SELECT path, stamp, kind, digest, created, bytes, key, crc FROM entries"):
                if crc == _row_crc(row):
                    rows[row[0]] = tuple(row)
            stamps = {name: _stamp(path) for name, path in files.items()}
            stale = [name for name in files if name not in rows or rows[name][1] != stamps[name]]
            (count,) = index.execute("SELECT count(*) FROM entries").fetchone()
            if stale or count != len(files):
                for name in stale:
                    rows.pop(name, None)
                    if entry := self._header(files[name]):
                        rows[name] = (
                            name, stamps[name], entry.kind, entry.digest, entry.created, entry.bytes,
                            json.dumps(entry.key),
                        )  # fmt: skip
                rows = {name: row for name, row in rows.items() if name in files}
                index.execute("DELETE FROM entries")
                values = [(*row, _row_crc(row)) for row in rows.values()]
                index.executemany("INSERT INTO entries VALUES (?,?,?,?,?,?,?,?)", values)
        found = [
            Entry(kind=kind, digest=digest, path=self._entries / name, created=created, bytes=size, key=json.loads(key))
            for name, _, kind, digest, created, size, key in rows.values()
        ]
        return tuple(sorted(found, key=lambda entry: (entry.created, str(entry.path))))


_INDEX_ERRORS = (sqlite3.Error, sqlite3.Warning, ValueError, TypeError, OverflowError)
"""What a damaged index raises: SQLite's own errors, and values of other types than were written."""


def _rebuildable(error: Exception) -> bool:
    """Whether a new index would help: not where another process holds it, or nothing can be written."""
    code = getattr(error, "sqlite_errorcode", None)
    cannot = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL,
              sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN)  # fmt: skip
    return code is None or code & 0xFF not in cannot


def _row_crc(row: Iterable[Any]) -> int:
    return zlib.crc32(repr(tuple(row)).encode(errors="replace"))


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _regular(path: Path) -> bool:
    """Whether the path itself, not what it links to, is a regular file."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    """A regular file, open for reading. OSError of anything else: a link is not followed, a fifo does not block."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "is no regular file", str(path))
        yield file


def _delete(path: Path) -> bool:
    """Delete a regular file; whether one was there. OSError where it is not allowed."""
    if not _regular(path):
        return False
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _parse_header(data: bytes, path: Path) -> dict[str, Any] | None:
    """The header in the first line; None when it is damaged, or of another file than `path` names."""
    try:
        header = json.loads(data[: data.index(b"\n")])
        if header["schema"] not in READABLE:
            return header if isinstance(header["schema"], int) else None
        if (header["schema"] > 1 or "header_crc" in header) and header["header_crc"] != _header_crc(header):
            return None
        kind, digest, key, created = (header[name] for name in ("kind", "digest", "key", "created"))
        name = path.name.split(".")
        fits = name[:2] == [digest, kind] and isinstance(key, dict) and 0 <= created < LATEST
        fits = fits and isinstance(header["body_bytes"], int) and isinstance(header["body_crc"], int)
        if kind == "blob":
            fits = fits and _digest_of_name(key["name"]) == digest
        elif kind in RECORD_KINDS:
            fits = fits and Key(**key).digest == digest
        return header if fits else None
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError):
        return None


def _header_crc(header: Mapping[str, Any]) -> int:
    """Of all that a header says but this checksum."""
    said = {name: value for name, value in header.items() if name != "header_crc"}
    return zlib.crc32(json.dumps(said, sort_keys=True).encode())


def _digest_of_name(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def _stamp(path: Path) -> str:
    """Changes when the file was replaced."""
    try:
        found = path.lstat()
    except OSError:
        return "gone"
    return f"{found.st_ino}-{found.st_size}-{found.st_mtime_ns}"
