"""Measurements in the store: times of one session can be compared, those of two are of two days or loads. JAX-free.

A session is one run of `autotune.measure.measure` over a set of layouts. Each measurement is kept with its session; a
search takes stored times only where one session has them all.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from autotune.compile.compilation import RETRIED
from autotune.measure.measure import Measurement, Outcome, RunFailure, from_json, to_json
from autotune.meshes.layout import Layout
from autotune.store import Key, Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One session as the store knows it.

    `name`: of the session. `keys`: of the layouts that it measures, in the store. `earlier`: what is known of layouts
    where the session was stopped before its end; {} of a new one.
    """

    name: str
    keys: Mapping[Layout, Key]
    earlier: Mapping[Layout, Measurement]

    @property
    def together(self) -> str:
        """Names the set of layouts."""
        digests = sorted(key.digest for key in self.keys.values())
        return hashlib.sha256(" ".join(digests).encode()).hexdigest()[:32]

    def keep_turn(self, store: Store, layout: Layout, outcome: Outcome) -> None:
        """Keep what is known of a layout while the session runs: one that is killed loses only the turn in flight."""
        if isinstance(outcome, Measurement):  # a death takes none of the turns that went before it
            store.attempt(store.put_blob, unfinished(self.keys[layout]), self._told(outcome, finished=False))

    def keep(self, store: Store, outcomes: Mapping[Layout, Outcome]) -> None:
        """Keep what came of the session; a transient death says nothing about its layout and is not kept."""
        outcomes = {
            layout: one for layout, one in outcomes.items() if not (isinstance(one, RunFailure) and one.transient)
        }
        for layout, outcome in outcomes.items():
            store.attempt(store.add_measurement, self.keys[layout], self._told(outcome, finished=True))
        for layout, outcome in outcomes.items():
            store.attempt(store.put_blob, unfinished(self.keys[layout]), self._told(outcome, finished=True))

    def _told(self, outcome: Outcome, *, finished: bool) -> dict:
        return {**to_json(outcome), "session": self.name, "together": self.together, "finished": finished}


def measured_together(store: Store, keys: Mapping[Layout, Key], *, retry: bool) -> dict[Layout, Outcome] | None:
    """The stored outcomes of the latest session that measured all of these layouts; None without such a session.

    A single layout is compared with nothing, so its latest measurement is taken from any session. An outcome that
    cannot be read counts as absent, as does a process killed from outside, and with `retry` any crash or timeout.
    """
    known = {
        layout: [value for value in store.measurements(key) if _believed(store, value, retry)]
        for layout, key in keys.items()
    }
    if not all(known.values()):
        return None
    if len(known) == 1:
        return {layout: _outcome(values[-1]) for layout, values in known.items()}
    by_session = {
        layout: {value["session"]: value for value in values if value.get("session")}
        for layout, values in known.items()
    }
    first, *others = by_session.values()
    shared = [name for name in first if all(name in other for other in others)]
    return {layout: _outcome(values[shared[-1]]) for layout, values in by_session.items()} if shared else None


def session_of(store: Store | None, keys: Mapping[Layout, Key]) -> Session:
    """The session that was stopped while it measured just these layouts, to be continued; a new one otherwise."""
    new = Session(name=uuid.uuid4().hex, keys=keys, earlier={})
    if store is None:
        return new
    found = {layout: store.get_blob(unfinished(key)) for layout, key in keys.items()}
    begun = {layout: value for layout, value in found.items() if store.rebuilt(value, _outcome) is not None and value}
    names = {value.get("session") for value in begun.values()}
    stopped = all(value.get("together") == new.together and not value.get("finished") for value in begun.values())
    if len(names) != 1 or None in names or not stopped:
        return new
    outcomes = {layout: _outcome(value) for layout, value in begun.items()}
    earlier = {layout: one for layout, one in outcomes.items() if isinstance(one, Measurement)}
    return Session(name=str(names.pop()), keys=keys, earlier=earlier)


def unfinished(key: Key) -> str:
    """The name of the blob that keeps the turns of a layout while a session runs."""
    return f"measuring {key.digest}"


def _believed(store: Store, value: Mapping, retry: bool) -> bool:
    outcome = store.rebuilt(dict(value), _outcome)
    if isinstance(outcome, RunFailure):
        return not (outcome.transient or (retry and outcome.kind in RETRIED))
    return outcome is not None


def _outcome(value: Mapping) -> Outcome:
    return from_json({name: one for name, one in value.items() if name not in ("session", "together", "finished")})
