"""scripts/backends_table.py: quantities of programs side by side, from saved compiles."""

import importlib.util
from pathlib import Path

import pytest
from hlo_fixtures import fixture

SCRIPT = Path(__file__).parents[2] / "scripts" / "backends_table.py"


def table():
    spec = importlib.util.spec_from_file_location("backends_table", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_same_step_side_by_side():
    script = table()
    read = {"cpu": "cpu-tensor", "gpu": "h100-tensor", "tpu": "v5e-tensor"}
    programs = {name: fixture(saved).program for name, saved in read.items()}
    rows = {row["quantity"]: row for row in script.rows_of(fixture("cpu-tensor").layout, programs)}
    matmul, attention = rows["matmul FLOPs"], rows["attention FLOPs"]
    assert matmul["gpu"] == matmul["tpu"] < matmul["cpu"]
    assert attention["cpu"] == 0 and attention["tpu"] / attention["gpu"] == 11 / 4.5
    gathered, reduced = rows["all_gather bytes along tensor"], rows["reduce_scatter bytes along tensor"]
    assert gathered["cpu"] == 2 * gathered["tpu"]
    assert reduced["cpu"] == 0 and reduced["gpu"] == reduced["tpu"]
    # Of a layer CPU reduces 8 arrays in float32, the others 5 in bfloat16; the head's and the embedding's come on top.
    model, batch, seq = (getattr(fixture("cpu-tensor"), name) for name in ("model", "batch", "seq"))
    one = 8 * batch * seq * model.d_model * 2
    above = 1 + model.vocab / (batch * seq)
    assert rows["all_reduce bytes along tensor"]["cpu"] == pytest.approx(2 * one * (8 * model.layers + above), rel=1e-3)
    assert reduced["gpu"] == pytest.approx(one * (5 * model.layers + above), rel=1e-3)


def test_what_did_not_compile_is_said_so():
    script = table()
    programs = {"cpu": fixture("cpu-data").program, "gpu": fixture("h100-data").program, "tpu": None}
    rows = script.rows_of(fixture("cpu-data").layout, programs)
    assert all(row["tpu"] is None for row in rows)
    lines = script.lines_of(rows)
    assert len(lines) == len(rows) + 2 and all("not compiled" in line for line in lines[2:])
