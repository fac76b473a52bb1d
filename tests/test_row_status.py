"""The states of a report's rows: one enumeration that knows rank, sentence and what can run."""

from __future__ import annotations

import ast
import json
from pathlib import Path

from autotune.compile.compilation import FAILURES
from autotune.row_status import RowStatus

ROOT = Path(__file__).resolve().parent.parent


def test_what_can_run_ranks_before_what_cannot():
    ranked = sorted(RowStatus, key=lambda status: status.rank)
    able = [status.can_run for status in ranked]
    assert able == sorted(able, reverse=True) and able.count(True) == 3
    assert [status.rank for status in ranked] == list(range(len(RowStatus)))


def test_each_has_a_sentence_of_its_own_and_is_its_word_in_json():
    assert len({status.sentence for status in RowStatus}) == len(RowStatus)
    assert all(status.sentence.endswith(".") for status in RowStatus)
    assert json.loads(json.dumps(list(RowStatus))) == [status.value for status in RowStatus]


def test_every_kind_of_failure_is_a_status_that_cannot_run():
    assert not any(RowStatus.of_failure(kind).can_run for kind in FAILURES)
    assert RowStatus.of_failure("crash") is RowStatus.FAILED and RowStatus.of_failure("oom") is RowStatus.OOM


def test_no_status_is_spelled_where_rows_are_judged():
    """A row's status is compared with the enumeration, so that a misspelt word cannot be."""
    words = {status.value for status in RowStatus}
    for path in (*(ROOT / "autotune").rglob("*.py"),):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare) and "status" in ast.unparse(node.left):
                told = {text.value for part in node.comparators for text in ast.walk(part)
                        if isinstance(text, ast.Constant)}  # fmt: skip
                assert not told & words, f"{path}:{node.lineno}: {ast.unparse(node)}"
