"""Rows of ours beside theirs, and what they come to a set: mean error, ranking, regret, memory verdicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from validation.cases import Case, Skipped
from validation.predict import Compiled, predict

NEAR = 0.02
"""Measurements closer than this are tied: which of two layouts is faster is not asked of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One published row with our answer; seconds of a step, bytes per device. None where one side says nothing."""

    id: str
    group: str
    rank_set: str | None
    measured: float | None
    predicted: float | None
    oom_measured: bool | None
    oom_predicted: bool | None
    peak_bytes_predicted: float | None
    memory: dict[str, float] | None
    source: str | None
    skipped: str | None
    measured_from: str | None = None
    differs: tuple[str, ...] = ()

    @property
    def error(self) -> float | None:
        """predicted / measured - 1."""
        if self.measured is None or self.predicted is None:
            return None
        return self.predicted / self.measured - 1.0

    def to_json(self) -> dict[str, object]:
        """The row as `validate.py --json` prints it; keys are a contract."""
        return {
            "id": self.id,
            "rank_set": self.rank_set,
            "quantity": "step_seconds",
            "measured": self.measured,
            "measured_from": self.measured_from,
            "predicted": self.predicted,
            "error": self.error,
            "oom_measured": self.oom_measured,
            "oom_predicted": self.oom_predicted,
            "peak_bytes_predicted": self.peak_bytes_predicted,
            "memory_predicted": self.memory,
            "source": self.source,
            "differs": list(self.differs),
            "skipped": self.skipped,
        }


def row_of(case: Case | Skipped, compiled: Compiled | None = None) -> Row:
    """Our answer to one case; `compiled`: what its compiled step says, where it was compiled now."""
    if isinstance(case, Skipped):
        return Row(
            id=case.id, group=group_of(case.id), rank_set=case.rank_set, measured=None, predicted=None,
            oom_measured=None, oom_predicted=None, peak_bytes_predicted=None, memory=None, source=None,
            skipped=case.reason,
        )  # fmt: skip
    found = predict(case, compiled)
    return Row(
        id=case.id,
        group=group_of(case.id),
        rank_set=case.rank_set,
        measured=case.measured_seconds,
        predicted=found.seconds,
        oom_measured=case.oom,
        oom_predicted=not found.fits,
        peak_bytes_predicted=found.peak_bytes,
        # by category only where the closed form's peak is the one that is told
        memory=dict(found.estimate.memory) if found.peak_bytes == found.estimate.peak_bytes else None,
        source=found.source,
        skipped=None,
        measured_from=case.measured_from,
        differs=case.differs,
    )


GROUPS = ("alpa", "maxtext-v5p", "maxtext-v5e")


def group_of(identifier: str) -> str:
    """The published set a row belongs to: the longest known beginning of its id, else its first word."""
    known = [group for group in GROUPS if identifier.startswith(group)]
    return max(known, key=len) if known else identifier.split("-")[0].split("_")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What the rows of one group come to. None where the group does not say.

    `mean_error`: mean of |error|; `bias`: mean error. `spearman`: of each rank set with at least four times, the least;
    `regret`: how much slower the measured time of our first choice is than the measured best, the most of all rank
    sets. `oom_right`: share of memory verdicts that agree. `order_wrong`: pairs of layouts whose order we have
    wrong.
    """

    group: str
    rows: int
    skipped: int
    mean_error: float | None
    bias: float | None
    spearman: float | None
    regret: float | None
    oom_right: float | None
    order_wrong: int | None


def score(group: str, rows: Sequence[Row]) -> Score:
    """The score of one group's rows."""
    timed = [row for row in rows if row.error is not None]
    errors = [row.error for row in timed if row.error is not None]
    sets = [
        [row for row in timed if row.rank_set == name] for name in dict.fromkeys(row.rank_set for row in timed) if name
    ]
    ranks = [spearman(members) for members in sets if len(members) >= 4]
    verdicts = [
        row.oom_measured == row.oom_predicted for row in rows if row.oom_measured is not None and not row.skipped
    ]
    return Score(
        group=group,
        rows=len(rows),
        skipped=sum(row.skipped is not None for row in rows),
        mean_error=float(np.mean(np.abs(errors))) if errors else None,
        bias=float(np.mean(errors)) if errors else None,
        spearman=min(ranks) if ranks else None,
        regret=max((regret(members) for members in sets if len(members) > 1), default=None),
        oom_right=sum(verdicts) / len(verdicts) if verdicts else None,
        order_wrong=sum(wrong_pairs(members) for members in sets) if sets else None,
    )


def spearman(rows: Sequence[Row]) -> float:
    """Rank correlation of predicted against measured times; tied values share their mean rank.

    >>> round(correlation([1.0, 2.0, 3.0], [1.0, 3.0, 2.0]), 3)
    0.5
    """
    return correlation([row.measured for row in rows], [row.predicted for row in rows])


def correlation(first: Sequence[float | None], second: Sequence[float | None]) -> float:
    """Spearman's rank correlation of two series; 0 where one of them is constant."""
    ranks = [_ranks(np.array(values, dtype=float)) for values in (first, second)]
    if min(np.ptp(values) for values in ranks) == 0:
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    return np.array([(values < value).sum() + ((values == value).sum() - 1) / 2 for value in values])


def regret(rows: Sequence[Row]) -> float:
    """How much slower (measured) our first choice among those that ran is than the measured best."""
    chosen = min(rows, key=lambda row: (row.predicted or math.inf, row.id))
    best = min(row.measured for row in rows if row.measured is not None)
    assert chosen.measured is not None
    return chosen.measured / best - 1.0


def wrong_pairs(rows: Sequence[Row]) -> int:
    """Pairs that we rank the other way than measured; pairs measured within `NEAR` of each other do not count."""
    wrong = 0
    for index, a in enumerate(rows):
        for b in rows[index + 1 :]:
            assert a.measured is not None and b.measured is not None and a.predicted is not None
            assert b.predicted is not None
            if abs(a.measured / b.measured - 1.0) > NEAR:
                wrong += (a.measured < b.measured) != (a.predicted < b.predicted)
    return wrong
