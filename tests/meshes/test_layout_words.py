"""The table of a layout's words: parser, columns, search space, bounds and help texts are made from it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from click.testing import CliRunner

from autotune.cli import autotune
from autotune.meshes.layout import Layout, layout_from_words, parse_layout
from autotune.meshes.layout_words import LAYOUT_WORDS, WORD_FAMILIES, words_help
from autotune.meshes.target import parse_target
from autotune.models.pipeline import RUNNABLE
from autotune.models.presets import PRESETS
from autotune.reference_workload import transformer_workload
from autotune.space import enumerate_layouts
from autotune.sweep.bounds import Bounds
from autotune.table import LayoutTable

PIPELINE = {"stage": "2", "schedule": "circular"}


def examples(word):
    """Values that the word may have, as texts, the default left out."""
    if word.kind == "order":
        return [word.text(tuple(reversed(word.default)))]
    if word.kind == "name":
        return ["none", "sparse_core_2"]
    return [word.text(value) for value in (word.values or (2, 3)) if value != word.default]


@pytest.mark.parametrize("name", LAYOUT_WORDS)
def test_every_word_is_parsed_printed_and_kept_by_a_table(name):
    word = LAYOUT_WORDS[name]
    assert examples(word)
    for text in examples(word):
        layout = layout_from_words((PIPELINE if word.needs_axis == "stage" else {}) | {name: text} | (
            {"schedule": "gpipe"} if name == "stage" else {}
        ))  # fmt: skip
        assert layout.words()[name] == text
        assert parse_layout(str(layout)) == layout
        assert LayoutTable.from_layouts([layout]).layout(0) == layout
        assert getattr(layout, name) != word.default


def test_a_word_is_a_field_of_a_layout_and_a_column_of_a_table():
    families = {"dcn", "compiler_options", "rules"}
    assert set(LAYOUT_WORDS) == {field.name for field in dataclasses.fields(Layout)} - families
    assert set(LAYOUT_WORDS) == {name for name in LayoutTable.columns() if not name.startswith("dcn_")}
    assert len(WORD_FAMILIES) == len(families)


@pytest.mark.parametrize("name", LAYOUT_WORDS)
def test_defaults_and_searched_values_are_values_of_the_word(name):
    word = LAYOUT_WORDS[name]
    for value in (word.default, *(word.searched or ())):
        Layout(**({"stage": 2, "schedule": "circular"} if word.needs_axis == "stage" and value else {}) | {name: value})
    assert (word.searched is None) <= (word.search_rule is not None), "how the search finds its values must be said"
    assert set(word.host_memory) <= set(word.values)
    assert word.needs_axis is None or LAYOUT_WORDS[word.needs_axis].kind == "axis"
    assert word.meaning.endswith(".") and set(word.value_meanings or word.values) == set(word.values)


def test_the_search_tries_no_schedule_that_the_reference_models_cannot_run():
    assert set(LAYOUT_WORDS["schedule"].searched) == set(RUNNABLE)


@pytest.mark.parametrize("command", ["tune", "sweep"])
def test_help_lists_every_word_with_its_values(command):
    shown = "".join(CliRunner().invoke(autotune, [command, "--help"], terminal_width=200).output.split())
    assert "".join(words_help().split()) in shown
    for word in LAYOUT_WORDS.values():
        assert word.name + ("=" + "|".join(map(word.text, word.values)) if word.values else "") in shown


@pytest.mark.parametrize(
    ("name", "more"),
    [("microbatches", (1, 2, 4, 8, 16)), ("virtual_stages", (1, 2, 4, 8, 16)), ("microbatches", (2, 4))],
)
def test_the_space_and_the_bounds_of_sweep_follow_the_table(monkeypatch, name, more):
    """A search column that grows (or shrinks) changes both: what `sweep` leaves unpriced can still win nothing."""
    target = parse_target("h100:1x8")
    workload = transformer_workload(PRESETS["llama3-1b"], batch=256, seq=2048, dtype="bfloat16")

    def answer():
        table = enumerate_layouts(target, ("data", "stage"), 256, 64, {})
        bounds = Bounds(workload, target, {})
        bounds.layers = 64
        one = {axis: np.array([1]) for axis in ("fsdp", "tensor", "context", "expert")}
        full = bounds.table({**one, "data": np.array([4]), "stage": np.array([2])})
        columns = {key: getattr(full, key) for key in LayoutTable.columns()}
        staged = table.stage > 1
        counts = getattr(table, name)[staged] // (table.stage[staged] if name == "microbatches" else 1)
        return set(counts.tolist()), float(bounds.seconds(columns).bubble[0])

    counts, bubble = answer()
    assert counts == set(LAYOUT_WORDS[name].searched)
    largest = max(LAYOUT_WORDS[name].searched)
    monkeypatch.setitem(LAYOUT_WORDS, name, dataclasses.replace(LAYOUT_WORDS[name], searched=more))
    wider, less = answer()
    assert wider == set(more)
    assert less == pytest.approx(bubble * largest / max(more))
