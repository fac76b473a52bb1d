"""Kept answers carry a digest of the source that made them."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from autotune.analysis import analyse
from autotune.compile import compile as compile_module
from autotune.system import source_digest as module
from autotune.system.source_digest import source_digest, sources_of


def names(*modules):
    return {name.removeprefix("autotune.") for name in sources_of(*modules)}


def test_what_is_imported_is_part_of_it():
    found = names("autotune.analysis.analyse")
    assert {"hlo.read", "replay.replay", "analysis.limits", "efficiency", "meshes.collectives", "meshes.route"} <= found
    assert not {"report.report", "commands.tune", "search"} & found


def test_a_compile_depends_on_what_makes_its_program():
    found = names(*compile_module.SOURCES)
    assert {
        "compile.jit_step",
        "meshes.placement",
        "meshes.topology",
        "meshes.step",
        "meshes.compiler_options",
    } <= found


def test_a_module_that_is_not_there_is_an_error():
    with pytest.raises(ModuleNotFoundError, match=r"autotune\.hlo\.no_such_file"):
        source_digest("autotune.hlo.no_such_file")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        source_digest("no_such_package.x")


@pytest.mark.parametrize("edited", ["autotune.analysis.limits", "autotune.meshes.route", "autotune.hlo.shape"])
def test_an_edit_of_any_of_them_changes_it(monkeypatch, edited):
    before = source_digest.__wrapped__("autotune.analysis.analyse")
    file, read = sources_of("autotune.analysis.analyse")[edited], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"#" if path == file else read(path))
    assert source_digest.__wrapped__("autotune.analysis.analyse") != before


def test_an_import_inside_a_function_counts_and_one_for_types_does_not(tmp_path, monkeypatch):
    source = """from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autotune.report.report import Report


def late():
    from autotune.meshes import (
        layout,  # a submodule
        route as way,
    )
    import autotune.store
"""
    path = tmp_path / "x.py"
    path.write_text(source)
    assert sorted(module._imports(path)) == ["autotune.meshes.layout", "autotune.meshes.route", "autotune.store"]


def test_it_takes_no_time():
    for cached in (source_digest, module._imports, module._file, module._folder):
        cached.cache_clear()
    begin = time.process_time()
    source_digest("autotune.analysis.analyse")
    source_digest(*compile_module.SOURCES)
    assert time.process_time() - begin < 0.15  # 25 ms on an idle machine


def test_answers_are_kept_under_it(monkeypatch):
    """An edited reader finds no analysis that the reader of before has kept."""
    compilation = SimpleNamespace(text="HloModule x", traced_flops=None, arguments=())
    arguments = [compilation, "data=8", "cpu:8"]
    before = analyse._key(*arguments)
    monkeypatch.setattr(analyse, "source_digest", lambda *modules: "0" * 16)
    assert analyse._key(*arguments) != before
