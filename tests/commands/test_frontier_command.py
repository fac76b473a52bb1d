"""`autotune frontier` from the outside: its JSON, its screen, its pictures, and one line for bad input."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ElementTree

import click
import pytest
from click.testing import CliRunner
from effort import slow

from autotune.commands.frontier import frontier
from autotune.frontier.limits import RESOURCES


def run(*arguments: str):
    return CliRunner().invoke(frontier, list(arguments), catch_exceptions=False)


def document(*arguments: str) -> dict:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_json_of_the_default_is_the_h100_curve():
    found = document()
    assert found["schema"] == 1
    assert found["hardware"] == "h100"
    assert len(found["rows"]) == 32
    assert [row["feasible"] for row in found["rows"]] == [1] * 31 + [0]
    assert found["linear_scaling_ends_flop"] == pytest.approx(2.0484e28, rel=1e-4)
    assert found["latency_wall"]["last_feasible_flop"] == pytest.approx(2.7074e31, rel=1e-4)
    assert found["latency_wall"]["first_infeasible_flop"] == pytest.approx(5.0756e31, rel=1e-4)
    by_alpha = {row["alpha"]: row for row in found["closed_forms"]["by_alpha"]}
    assert by_alpha[0.0]["linear_scaling_end_flop"] == pytest.approx(1.924e28, rel=1e-3)
    assert by_alpha[0.2]["latency_wall_flop"] == pytest.approx(2.625e36, rel=1e-3)
    first = found["rows"][0]
    assert first["binding"] == "compute"
    assert sum(first["shares"].values()) == pytest.approx(1)
    assert "what_helps" not in found


@pytest.mark.slow
def test_options_reach_the_model():
    base = document()
    fixed = document("--batch-rule", "fixed", "--sparse", "--hardware", "a100")
    assert {row["batch_rule"] for row in fixed["rows"]} == {"none"}
    assert {row["device"] for row in fixed["rows"]} == {"A100 SXM"}
    assert fixed["rows"][0]["experts"] == 8
    assert document("--months", "12")["rows"][0]["n_gpu"] < base["rows"][0]["n_gpu"]
    assert document("--batch-tokens", "1e7")["rows"][3]["batch_tokens"] == pytest.approx(1e7, rel=0.1)
    assert document("--depth-scale", "0.5")["rows"][0]["layers"] == 96
    slow = document("--scale", "network_bandwidth=0.1", "--scale", "matmul_latency=0")
    assert slow["rows"][0]["utilization"] < base["rows"][0]["utilization"]
    assert slow["rows"][0]["device"] == "H100 SXM, network_bandwidth x0.1, matmul_latency x0"
    hidden = document("--overlap", "tensor,pipeline,data")
    assert hidden["assumptions"]["overlap"] == {"tensor": True, "pipeline": True, "data": True}
    assert hidden["rows"][15]["n_gpu"] < base["rows"][15]["n_gpu"]


def test_a_figure_that_is_never_reached_is_null():
    found = document("--hardware", "h100-infinite-network-low-latency", "--batch-rule", "deepseek")
    assert found["linear_scaling_ends_flop"] is None
    assert found["latency_wall"]["first_infeasible_flop"] is None
    assert found["closed_forms"]["by_alpha"][0]["linear_scaling_end_flop"] is None
    assert all(row["feasible"] for row in found["rows"])


def test_a_measured_critical_batch_is_the_one_the_norms_come_from():
    small, big, gradient, trace = 2**19, 2**22, 1.0, 7340032.0
    norms = f"{small}={gradient + trace / small},{big}={gradient + trace / big}"
    row = document("--critical-batch-norms", norms)["rows"][0]
    assert row["tokens_over_minimum"] == pytest.approx(1 + row["batch_tokens"] / trace)


def test_a_critical_batch_adds_what_the_batch_costs():
    row = document("--critical-batch-tokens", "7340032")["rows"][0]
    assert (row["batch_tokens"], row["steps_over_minimum"], row["tokens_over_minimum"]) == (7340032, 2, 2)


def test_what_helps_and_shapes_in_json_and_on_screen():
    arguments = ("--months", "0.2", "--batch-rule", "fixed", "--what-helps", "--shapes")
    found = document(*arguments)
    assert found["what_helps"][0]["change"] == "as it is"
    assert {"memory x2", "arithmetic x2", "batch x2"} <= {row["change"] for row in found["what_helps"]}
    assert all(set(RESOURCES) == set(row["shares"]) for row in found["equal_parameters"] if row["shares"])
    screen = run(*arguments).stdout
    assert "what would help" in screen
    assert "shapes of about equal parameters" in screen


def test_the_screen_names_the_ends():
    screen = run().stdout
    assert "linear scaling ends at 2.05e28 FLOP (8.39 M GPUs, utilisation 55.3%" in screen
    assert "the wall lies between 2.71e31 and 5.08e31 FLOP" in screen
    assert "16x32" in screen
    assert max(len(line) for line in screen.splitlines()) <= 160


def test_a_curve_says_why_it_stops():
    assert "utilisation falls below 0.1%" in run("--scale", "network_bandwidth=1e-6").stdout
    assert "no size on this curve is out of reach" in run("--months", "1e6").stdout


def test_a_deadline_nothing_meets_is_a_result():
    assert "no size is in time" in run("--months", "1e-9").stdout
    found = document("--months", "1e-9")
    assert [row["feasible"] for row in found["rows"]] == [0]


def test_nothing_in_time_still_draws_or_says_why_not(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "none.png"
    drawn = run("--months", "1e-9", "--plot", str(path), "--beside", "none")
    assert drawn.exit_code == 0, drawn.output
    assert path.stat().st_size > 0
    with pytest.raises(click.UsageError, match="no size is in time"):
        frontier.main(["--months", "1e-9", "--plot", str(path), "--picture", "mix"], standalone_mode=False)


@pytest.mark.parametrize(("picture", "rows"), [("utilization", 64), ("mix", 32), *slow([("shape", 200)])])
def test_pictures_come_with_their_numbers(tmp_path, picture, rows):
    pytest.importorskip("matplotlib")
    path = tmp_path / "picture.svg"
    result = run("--plot", str(path), "--picture", picture, "--beside", "a100", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["hardware"] == "h100"
    assert ElementTree.parse(path).getroot().tag.endswith("svg")
    with path.with_suffix(".csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) >= rows
    feasible = [row for row in table if row["utilization"]]
    assert feasible
    for row in feasible:
        assert sum(float(row[f"share_{resource}"]) for resource in RESOURCES) == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--hardware", "h1000"), ("--target='h1000'", "h100-low-latency")),
        (("--batch-rule", "huge"), ("--batch-rule='huge'", "deepseek")),
        (("--months", "0"), ("--months=0", "above 0")),
        (("--months", "nan"), ("--months=nan must be a finite number",)),
        (("--batch-tokens", "-4e6"), ("batch_tokens='-4e6'",)),
        (("--batch-scale", "0"), ("--batch-scale=0",)),
        (("--critical-batch-tokens", "0"), ("critical_batch_tokens='0'",)),
        (("--critical-batch-norms", "1M=2"), ("needs two batch sizes",)),
        (("--critical-batch-norms", "1M=1,4M=2"), ("average over more steps",)),
        (("--critical-batch-norms", "1M=nan,4M=2"), ("average over more steps",)),
        (("--critical-batch-norms", "1M=a,4M=2"), ("TOKENS=NORM2",)),
        (("--scale", "network_bandwidth"), ("RESOURCE=FACTOR",)),
        (("--scale", "colour=2"), ("'colour' must be one of",)),
        (("--scale", "memory=0"), ("--scale memory=0", "from 1e-6")),
        (("--scale", "memory=nan"), ("--scale memory=nan", "from 1e-6")),
        (("--overlap", "everything"), ("'everything' must be one of tensor, pipeline, data",)),
        (("--picture", "pie"), ("--picture='pie'", "shape")),
        (("--picture", "mix"), ("--picture='mix'", "needs --plot")),
        (("--beside", "tpu"), ("--beside='tpu'",)),
        (("--plot", "picture.gif"), ("must end in .png, .svg or .pdf",)),
        (("--plot", "/nowhere/at/all.png"), ("/nowhere/at",)),
    ],
)
def test_bad_input_gets_one_line_that_names_it(arguments, words):
    with pytest.raises(click.UsageError) as caught:
        frontier.main(list(arguments), standalone_mode=False)
    message = caught.value.format_message()
    assert "\n" not in message
    for word in words:
        assert word in message
