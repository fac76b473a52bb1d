"""The limits model against rows and figures computed by its authors' equations elsewhere: nothing here is ours."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from autotune.frontier.assumptions import Assumptions
from autotune.frontier.batch import Overlap
from autotune.frontier.curve import Curve, curve, point
from autotune.frontier.gpu import GPUS
from autotune.frontier.matmul import matmul_time
from autotune.frontier.mix import Mix
from autotune.frontier.rows import bindings, curve_rows
from autotune.frontier.run import scaled_run, widths
from autotune.frontier.search import evaluate

DATA = Path(__file__).parents[1] / "data" / "frontier"
TOLERANCE = 1e-6


def given(name: str) -> list[dict[str, str]]:
    with (DATA / name).open(newline="") as file:
        return list(csv.DictReader(file))


ROWS = given("rows_h100_dense.csv")
FEASIBLE = [row for row in ROWS if row["feasible"] == "1"]


@pytest.fixture(scope="module")
def h100() -> Curve:
    return curve(GPUS["h100"], Assumptions())


def levels(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("x"))


def given_mix(row: dict[str, str]) -> Mix:
    return Mix(
        data=levels(row["dp_by_level"]),
        tensor_model=levels(row["tp_model_by_level"]),
        tensor_ff=levels(row["tp_ff_by_level"]),
        pipeline=levels(row["pp_by_level"]),
        expert=levels(row["ep_by_level"]),
        microbatches=int(row["microbatches"]),
        interleave=int(row["interleave_v"]),
        zero_bubble=row["zero_bubble"] == "1",
    )


def test_matmul_seconds():
    by_label = {gpu.label: gpu for gpu in GPUS.values()}
    for row in given("matmul.csv"):
        d1, d2, b = (np.array(float(row[name])) for name in ("d1", "d2", "b"))
        time = matmul_time(by_label[row["device"]], d1, d2, b, weight_gradient=row["weight_grad"] == "1")
        assert float(time.seconds) == pytest.approx(float(row["seconds"]), rel=TOLERANCE), row


def test_scaling_rules_at_every_width():
    for d_model, row in zip(widths(), given("scaling.csv"), strict=True):
        dense, sparse = scaled_run(d_model), scaled_run(d_model, sparse=True)
        deepseek = scaled_run(d_model, batch_rule="deepseek")
        whole = {
            "d_model": dense.d_model,
            "d_ff": dense.d_ff,
            "layers": dense.layers,
            "sparsity": sparse.experts,
            "dense_params": dense.params,
            "dense_batch_tokens_default": dense.batch_tokens,
            "dense_batch_tokens_deepseek": deepseek.batch_tokens,
            "sparse_total_params": sparse.params,
            "sparse_batch_tokens_default": sparse.batch_tokens,
        }
        assert whole == {name: int(row[name]) for name in whole}
        assert dense.flop == pytest.approx(float(row["dense_flop"]), rel=TOLERANCE)
        assert sparse.flop == pytest.approx(float(row["sparse_flop"]), rel=TOLERANCE)


def test_the_whole_h100_curve(h100):
    ours = curve_rows(h100, bindings(h100))
    assert len(ours) == len(ROWS)
    for mine, theirs in zip(ours, ROWS, strict=True):
        assert set(theirs) <= set(mine)
        for name in ("d_model", "d_ff", "layers", "experts", "params_total", "feasible"):
            assert mine[name] == int(theirs[name]), (theirs["d_model"], name)
        assert mine["train_flop"] == pytest.approx(float(theirs["train_flop"]), rel=TOLERANCE)
        assert (mine["setting"], mine["device"], mine["batch_rule"]) == ("H100 SXM", "H100 SXM", "default")
        if theirs["feasible"] == "1":
            assert mine["batch_tokens"] == int(theirs["batch_tokens"])
            assert mine["n_gpu"] == int(theirs["n_gpu"])
            assert mine["months"] == pytest.approx(float(theirs["months"]), rel=TOLERANCE)
            assert mine["utilization"] == pytest.approx(float(theirs["utilization"]), rel=TOLERANCE)
        else:
            assert mine["n_gpu"] is mine["months"] is mine["utilization"] is mine["binding"] is None


@pytest.mark.parametrize("row", FEASIBLE, ids=[row["d_model"] for row in FEASIBLE])
def test_a_given_mix_is_priced_without_a_search(row):
    run, gpu = scaled_run(int(row["d_model"])), GPUS["h100"]
    found = evaluate(run, gpu, given_mix(row), Overlap())
    priced = point(run, gpu, found)
    time, months_per_second = found.time, priced.months / found.batch_seconds
    latency = time.tensor_latency + time.data_latency + time.point_to_point_latency
    assert found.gpus == int(row["n_gpu"])
    ours = {
        "months": priced.months,
        "utilization": priced.utilization,
        "tp_comm_months": float(time.tensor[0]) * months_per_second,
        "dp_comm_months": float(time.data[0]) * months_per_second,
        "pp_ep_comm_months": float(time.point_to_point[0]) * months_per_second,
        "latency_months": float(latency[0]) * months_per_second,
    }
    assert ours == pytest.approx({name: float(row[name]) for name in ours}, rel=TOLERANCE)


def test_the_fixed_configuration_of_the_text():
    run = scaled_run(53248)
    assert (run.layers, run.experts, run.batch_tokens) == (576, 1, 12288 * 2048)
    mix = Mix(
        data=(1, 256),
        tensor_model=(2, 4),
        tensor_ff=(4, 16),
        pipeline=(1, 64),
        expert=(1, 1),
        microbatches=128,
        interleave=1,
        zero_bubble=True,
    )
    found = evaluate(run, GPUS["h100"], mix, Overlap())
    assert found.batch_seconds == pytest.approx(0.4300746314, rel=1e-9)
    assert point(run, GPUS["h100"], found).utilization == pytest.approx(0.552666043, rel=1e-8)


def test_where_linear_scaling_ends_and_where_the_wall_is(h100):
    end = h100.linear_scaling_end
    assert end.run.flop == pytest.approx(2.0484e28, rel=1e-4)
    assert end.found.gpus == 8388608
    assert end.utilization == pytest.approx(0.553, abs=5e-4)
    assert (math.prod(end.found.mix.pipeline), math.prod(end.found.mix.data)) == (64, 256)
    assert h100.last_feasible.run.flop == pytest.approx(2.7074e31, rel=1e-4)
    assert h100.wall.flop == pytest.approx(5.0756e31, rel=1e-4)
