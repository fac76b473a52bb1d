"""The fuzzers run for a minute; every border has its share, and a border that breaks its promise is caught."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import strategies as st

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
MINUTES = 1.0
BORDERS = {"layout", "target", "model", "hardware", "plan", "hlo", "command"}


def test_fuzzing_breaks_no_promise(tmp_path):
    command = [sys.executable, str(SCRIPTS / "fuzz.py"), "--minutes", str(MINUTES), "--seed", "20261127", "--json"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path)}
    limit = 120 + 120 * MINUTES
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment, cwd=tmp_path)
    found = json.loads(done.stdout)["borders"]
    assert {name: one["failures"] for name, one in found.items() if one["failures"]} == {}
    assert done.returncode == 0 and found.keys() == BORDERS
    assert all(one["inputs"] >= 5 for one in found.values()), found


@pytest.fixture
def fuzz(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import fuzz

    return fuzz


@pytest.mark.parametrize("kind", ["raises", "never ends"])
def test_a_broken_promise_is_caught_with_the_smallest_input(fuzz, kind, monkeypatch):
    from fuzzing.borders import Border

    monkeypatch.setattr(fuzz, "ONCE_SECONDS", 0.2)

    def check(number: int) -> None:
        if number >= 17 and kind == "raises":
            raise KeyError(number)
        while number >= 17:
            pass

    broken = Border("numbers", st.integers(0, 1000), check)
    monkeypatch.setattr(fuzz, "borders", lambda: {"numbers": broken, "none": Border("none", st.none(), lambda _: None)})
    found = fuzz.fuzz(("numbers", "none"), 0.05, 1)
    assert found["none"]["failures"] == [] and found["none"]["inputs"] > 0
    assert found["numbers"]["failures"]
    said = found["numbers"]["failures"][0]
    assert ": 17: KeyError" in said if kind == "raises" else "still running after" in said


@pytest.mark.parametrize("name", sorted(BORDERS))
def test_what_the_tool_saves_itself_is_taken(fuzz, name):
    """The fuzzers begin from inputs that are right: a border that refuses these would be fuzzed at its door."""
    from fuzzing import borders

    if name == "plan":
        from autotune.plan.read import plan_from_json

        for document in borders.plan_documents():
            assert plan_from_json(json.dumps(document)).devices >= 8
    elif name == "layout":
        from autotune.meshes.layout import parse_layout

        assert all(str(parse_layout(text)) for text in borders.LAYOUTS)
    elif name == "hlo":
        platforms = {one.platform for one in borders.saved_programs().values()}
        assert platforms == {"cpu", "cuda", "tpu"}
        borders.hlo(next((key, one.text) for key, one in borders.saved_programs().items() if one.platform == "cpu"))
    else:
        assert borders.borders()[name].name == name
