"""What became of one layout of a search: the status of a row of the report."""

from __future__ import annotations

from enum import StrEnum


class RowStatus(StrEnum):
    """The status of a row, in the order of the ranking: those that can run first, the best known first.

    A status is its own word in the JSON of a report.
    """

    MEASURED = "measured"
    COMPILED = "compiled"
    PRICED = "priced"
    OOM = "oom"
    TIMEOUT = "timeout"
    FAILED = "failed"
    ILLEGAL = "illegal"

    @property
    def rank(self) -> int:
        """Place in the ranking: 0 is the best."""
        return list(RowStatus).index(self)

    @property
    def can_run(self) -> bool:
        """Whether the layout runs, as far as it is known: a plan can be made of it."""
        return self in (RowStatus.MEASURED, RowStatus.COMPILED, RowStatus.PRICED)

    @property
    def sentence(self) -> str:
        """What the status means, for a reader of the report."""
        return _SENTENCES[self]

    @classmethod
    def of_failure(cls, kind: str) -> RowStatus:
        """The status of a layout whose compile or run failed with this kind ("oom", "failed", "crash", "timeout")."""
        return cls.FAILED if kind == "crash" else cls(kind)


_SENTENCES = {
    RowStatus.MEASURED: "The layout ran on devices, and its step was timed.",
    RowStatus.COMPILED: "The layout was compiled and fits; its step was not timed.",
    RowStatus.PRICED: "The layout was priced only; its priced peak memory fits.",
    RowStatus.OOM: "The layout needs more memory than one device has.",
    RowStatus.TIMEOUT: "The compile or the run was stopped because it took too long.",
    RowStatus.FAILED: "The compile or the run ended with an error that is not about memory.",
    RowStatus.ILLEGAL: "The model cannot be cut by this layout, or two choices of it exclude each other.",
}
