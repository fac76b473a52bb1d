"""Checkpoints of a train state that any plan can go on from: saved in the background, verified, restored on any mesh.

A state is kept as a flat dictionary of its arrays by name; global shapes are the same under every layout, so a restore
only cuts them anew. Of every finished checkpoint the digests of its files are kept beside it: a file that was cut short
or changed later is found before anything is read into a run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

VERIFIED = "verified"
"""Folder of the digests, one JSON file a checkpoint."""


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
    """`step` steps were done when `state` was saved. `refused`: newer checkpoints that could not be used, and why."""

    step: int
    state: Any
    about: Mapping[str, Any]
    refused: tuple[str, ...]


class Checkpoints:
    """The checkpoints in one folder, which is made if need be; ValueError when it cannot be."""

    def __init__(self, folder: Path, *, keep: int = 3) -> None:
        self.folder = folder.absolute()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"checkpoints {folder}: {error.strerror}") from None
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        handlers = {"state": ocp.StandardCheckpointHandler(), "about": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def save(self, step: int, state: Any, about: Mapping[str, Any]) -> None:
        """Begin to save the state after `step` steps; returns before it is on disk."""
        self.verify_finished()
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(flat(state)), about=ocp.args.JsonSave(dict(about)))
        self._manager.save(step, args=arguments)

    def verify_finished(self) -> None:
        """Note the digests of checkpoints that have been finished since, and forget those of deleted ones."""
        if jax.process_index() != 0:
            return
        notes = self.folder / VERIFIED
        notes.mkdir(exist_ok=True)
        steps = set(self.steps())
        for note in notes.glob("*.json"):
            if int(note.stem) not in steps:
                note.unlink()
        for step in steps:
            note = notes / f"{step}.json"
            if not note.exists():
                aside = note.with_suffix(".part")
                aside.write_text(json.dumps(digests(self.folder / str(step))))
                aside.replace(note)

    def close(self) -> None:
        """Wait for what is being saved."""
        self._manager.wait_until_finished()
        self.verify_finished()
        self._manager.close()

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
        return Restored(step=step, state=state, about=read["about"], refused=refused)

    def damage(self, step: int) -> str | None:
        """What is wrong with the files of a checkpoint; None when nothing is, or when nobody noted its digests."""
        note = self.folder / VERIFIED / f"{step}.json"
        if not note.exists():
            return None
        try:
            before = json.loads(note.read_text())
        except ValueError:
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
    """SHA-256 of every file under a folder, by its path there."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                found[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _words(array: Any) -> str:
    return f"{array.dtype}{list(array.shape)}"
