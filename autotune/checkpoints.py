"""Checkpoints of a train state that any plan can go on from: saved in the background, verified, restored on any mesh.

A state is kept as a flat dictionary of its arrays by name; global shapes are the same under every layout, so a restore
only cuts them anew. The digests of a checkpoint's files are noted when the files are written and before the checkpoint
counts as finished: a file that was cut short or changed later is found before anything is read into a run, also after a
run that was killed. Digests are noted by the run that saves, never later: what is damaged by then would be noted as
good.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from autotune.system.whole_file import write_whole

VERIFIED = "verified"
"""Folder of the digests, one JSON file a checkpoint."""

LOCK = ".lock"
"""Locked by the run that saves here. The kernel drops the lock with the process."""

CHANGED_AT_COMMIT = "_CHECKPOINT_METADATA"
"""Orbax writes the time of the commit into this file; it holds no array."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """One array of a checkpoint against one of a plan; None where the other side has no such array."""

    name: str
    saved: str | None
    wanted: str | None
    sharding: str | None

    @property
    def problem(self) -> str | None:
        """Why this array cannot be restored; None when it can."""
        if self.saved is None:
            return "not in the checkpoint"
        if self.wanted is None:
            return "not in the plan's model"
        return None if self.saved == self.wanted else f"is {self.saved}, the plan's model has {self.wanted}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """`step` steps were done when `state` was saved. `refused`: newer checkpoints that could not be used, and why.

    `verified`: its files are the ones that were saved; False where nobody noted their digests.
    """

    step: int
    state: Any
    about: Mapping[str, Any]
    refused: tuple[str, ...]
    verified: bool


class Checkpoints:
    """The checkpoints in one folder.

    To save, the folder is made if need be and locked, so that no second run saves there; `read_only` does neither.
    ValueError when the folder cannot be made, or another run holds it.
    """

    def __init__(self, folder: Path, *, keep: int = 3, read_only: bool = False) -> None:
        self.folder = folder.absolute()
        self._lock = None if read_only else self._locked()
        self._saving: int | None = None
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=True,
            async_options=ocp.options.AsyncOptions(post_finalization_callback=self._note_digests),
            create=not read_only,
        )
        handlers = {"state": ocp.StandardCheckpointHandler(), "about": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def save(self, step: int, state: Any, about: Mapping[str, Any]) -> None:
        """Begin to save the state after `step` steps; returns before it is on disk. Waits for the save before it."""
        self._manager.wait_until_finished()
        self._forget()
        self._saving = step
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(flat(state)), about=ocp.args.JsonSave(dict(about)))
        self._manager.save(step, args=arguments)

    def close(self) -> None:
        """Wait for what is being saved, and give the folder back."""
        self._manager.wait_until_finished()
        if self._lock is not None:
            self._forget()
        self._manager.close()
        if self._lock is not None:
            os.close(self._lock)

    def verified(self, step: int) -> bool:
        """Whether the digests of a checkpoint were noted, so that `damage` can tell."""
        return (self.folder / VERIFIED / f"{step}.json").is_file()

    def _locked(self) -> int | None:
        """The descriptor that holds the folder's lock; None in the other processes of a job, whose first one has it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / VERIFIED).mkdir(exist_ok=True)
            if jax.process_index() != 0:
                return None
            descriptor = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise ValueError(f"checkpoints {self.folder}: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise ValueError(f"checkpoints {self.folder}: another run saves there ({owner})") from None
        except OSError as error:
            os.close(descriptor)
            raise ValueError(f"checkpoints {self.folder}: cannot be locked: {error.strerror}") from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        return descriptor

    def _note_digests(self) -> None:
        """Called by Orbax in its own thread, when the files are written and before they become the checkpoint."""
        step = self._saving
        if jax.process_index() != 0 or step is None:
            return
        (written,) = self.folder.glob(f"{step}.orbax-checkpoint-tmp*")
        write_whole(self.folder / VERIFIED / f"{step}.json", json.dumps(digests(written)))

    def _forget(self) -> None:
        """Delete the digests of checkpoints that are no more."""
        if jax.process_index() != 0:
            return
        steps = {str(step) for step in self.steps()}
        for note in (self.folder / VERIFIED).glob("*.json"):
            if note.stem not in steps:
                note.unlink()

    def steps(self) -> list[int]:
        """Finished checkpoints, newest first."""
        self._manager.reload()  # without it, one that is still being written is listed too
        return sorted(self._manager.all_steps(), reverse=True)

    def restore(self, wanted: Any, only: int | None = None) -> Restored | None:
        """The newest good checkpoint (or the one after `only` steps) in the shapes and shardings of `wanted`; None when
        there is none at all.

        ValueError when there are some and none is good, or when the newest good one is of another model.
        """
        refused: list[str] = []
        for step in self.steps() if only is None else [only]:
            problem = self.damage(step)
            if problem is None:
                try:
                    fits = self.fits(step, wanted)
                except ValueError as error:
                    problem, fits = str(error).partition(": ")[2], []
                bad = [fit for fit in fits if fit.problem]
                if bad:
                    raise ValueError(
                        f"checkpoint {self.folder}/{step}: is of another model: {bad[0].name} {bad[0].problem}"
                        + (f", and {len(bad) - 1} more (scripts/reshard.py lists them)" if len(bad) > 1 else "")
                    )
            if problem is None:
                try:
                    return self._read(step, wanted, tuple(refused))
                except Exception as error:  # what a damaged file raises depends on the place of the damage
                    problem = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            refused.append(f"checkpoint {step} refused: {problem}")
        if refused:
            raise ValueError(f"checkpoints {self.folder}: none is good; {'; '.join(refused)}")
        return None

    def _read(self, step: int, wanted: Any, refused: tuple[str, ...]) -> Restored:
        target = flat(wanted)
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(target), about=ocp.args.JsonRestore())
        read = self._manager.restore(step, args=arguments)
        state = jax.tree.unflatten(jax.tree.structure(wanted), [read["state"][name] for name in target])
        return Restored(step=step, state=state, about=read["about"], refused=refused, verified=self.verified(step))

    def damage(self, step: int) -> str | None:
        """What is wrong with the files of a checkpoint; None when nothing is, or when nobody noted its digests."""
        note = self.folder / VERIFIED / f"{step}.json"
        if not note.exists():
            return None
        try:
            before = json.loads(note.read_text())
        except (OSError, ValueError):
            before = None
        if not isinstance(before, dict) or not before:
            return f"{note.name}, its digests, cannot be read"
        now = digests(self.folder / str(step))
        for name, digest in before.items():
            if name not in now:
                return f"{name} is missing"
            if now[name] != digest:
                return f"{name} was changed or cut short after it was saved"
        return None

    def fits(self, step: int, wanted: Any) -> list[Fit]:
        """Array by array, whether a checkpoint fits the state of a plan. Reads no array."""
        try:
            saved = {name: _words(one) for name, one in self._manager.item_metadata(step)["state"].tree.items()}
        except Exception as error:
            raise ValueError(f"checkpoint {self.folder}/{step}: cannot be read: {error}") from None
        target = flat(wanted)
        return [
            Fit(
                name=name,
                saved=saved.get(name),
                wanted=_words(target[name]) if name in target else None,
                sharding=str(target[name].sharding.spec) if name in target else None,
            )
            for name in sorted({*saved, *target})
        ]


def flat(state: Any) -> dict[str, Any]:
    """The arrays of a state by name, in the order of its leaves."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file under a folder, by its path there; without the one that the commit itself changes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / CHANGED_AT_COMMIT:
            with path.open("rb") as file:
                found[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _words(array: Any) -> str:
    return f"{array.dtype}{list(array.shape)}"
