"""Every benchmark runs and stands beside its baseline; figures of speed are not judged here but for being there."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

SCRIPTS = Path(__file__).parents[2] / "scripts"
SMALL = ("--model", "tiny", "--target", "cpu:8", "--batch", "16", "--seq", "64", "--compile", "1")


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import bench

    def run(name, *options):
        result = CliRunner().invoke(bench.main, [name, "--json", *options], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return json.loads(result.output)

    return run


@pytest.mark.slow
def test_price_of_many_is_quicker_than_of_one_at_a_time(bench):
    figures = bench("price")
    assert figures["layouts"] > 400_000 and figures["meshes_of_16384_chips"] > 100_000
    assert figures["faster"] > 100  # some 10,000 on a quiet machine


def test_frontier_search_is_quicker_than_plain_loops(bench, monkeypatch):
    from benchmarks import frontier

    monkeypatch.setattr(frontier, "GPUS", {"h100": frontier.GPUS["h100"]})
    monkeypatch.setattr(frontier, "REPEATS", 1)
    figures = bench("frontier")
    assert figures["every_curve_sizes"] > 0
    assert figures["speedup_over_plain_python"] > 1 and figures["speedup_over_unpruned"] > 0


@pytest.mark.slow
def test_help_does_not_import_jax(bench):
    figures = bench("startup")
    assert not figures["help_imports_jax"]
    assert figures["help_over_import_jax"] < 1


@pytest.mark.slow
def test_a_4b_model_is_handed_over_in_seconds(bench):
    figures = bench("handover")
    assert figures["parameters"] > 4e9
    assert figures["handover_cpu_seconds"] < 15 and figures["handover_over_one_trace"] > 1


@pytest.mark.slow
def test_tune_again_answers_the_same(bench, little_effort):
    figures = bench("tune", *SMALL)
    assert figures["same_answer"] and figures["compiled"] == 1
    assert figures["cold_over_serial_compiles"] > 0


@pytest.mark.slow
def test_fixtures_are_made_where_they_belong(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import make_fixtures

    monkeypatch.setattr(make_fixtures, "FOLDER", tmp_path)
    assert make_fixtures.main(["cpu-data"]) == 0
    [made] = tmp_path.iterdir()
    assert made.name.startswith("cpu-data")  # and the version of a later jax
