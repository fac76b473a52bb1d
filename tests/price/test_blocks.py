"""A space priced in blocks gives the report that the whole table gives; all is counted, and memory stays bounded."""

from types import SimpleNamespace

import numpy as np
import pytest

from autotune.meshes.legality import rule_names
from autotune.meshes.target import parse_target
from autotune.meshes.transformer import TransformerShape
from autotune.price import blocks, large_space
from autotune.price.large_space import Dropped
from autotune.reference_workload import reference_workload, transformer_workload
from autotune.report.document import report_to_json
from autotune.report.findings import NOT_LISTED, Omitted
from autotune.report.rows import _dropped, _with_dropped
from autotune.row_status import RowStatus
from autotune.search import search
from autotune.space import mesh_count, meshes_in_blocks, meshes_over


def report(model: str, target: str, batch: int, seq: int, fix: tuple[str, ...] = (), say=None):
    machine = parse_target(target)
    workload = reference_workload(model, batch=batch, seq=seq, dtype="bfloat16")
    return search(
        workload,
        machine,
        axes=None,
        layouts=None,
        fix=fix,
        compile_count=0,
        measure_count=0,
        jobs=1,
        on_event=say and (lambda event: say(str(event))),
    )


@pytest.mark.parametrize(
    ("model", "target", "batch", "seq", "fix", "fast"),
    [
        ("mixtral-8x7b", "a100-80:2x8", 64, 4096, ("remat=full",), 1 << 18),
        ("llama3-8b", "v5p:2x2x2*2", 64, 4096, (), 3000),
        ("llama3-70b", "v5e:4x4", 16, 4096, ("zero=0",), 1 << 18),
        ("llama3-8b", "h100:2x8", 48, 4096, ("tensor=2", "dcn.data=2"), 3000),
    ],
)
def test_blocks_give_the_report_of_the_whole_table(model, target, batch, seq, fix, fast, monkeypatch):
    whole = report_to_json(report(model, target, batch, seq, fix))
    monkeypatch.setattr(blocks, "BLOCKS_FROM", 0)
    monkeypatch.setattr(large_space, "MESHES_AT_ONCE", 23)
    monkeypatch.setattr(blocks, "FAST", fast)
    said = []
    pieces = report_to_json(report(model, target, batch, seq, fix, said.append))
    assert "in blocks" in said[0]
    assert any("were priced in blocks and counted" in note for note in pieces["notes"])
    for key in ("counts", "prices", "kept_out", "more_devices", "target", "workload"):
        assert pieces.get(key) == whole.get(key), key
    listed = [row["step_seconds"] for row in whole["rows"][:60]]
    assert [row["step_seconds"] for row in pieces["rows"][:60]] == listed
    for one in ("best", "closest"):
        assert (pieces[one] or {}).get("step_seconds") == (whole[one] or {}).get("step_seconds")
        assert (pieces[one] or {}).get("kept_out_by") == (whole[one] or {}).get("kept_out_by")
        assert (pieces[one] or {}).get("prices") == (whole[one] or {}).get("prices")
    assert {item["reason"]: item["count"] for item in pieces["omitted"]} == {
        item["reason"]: item["count"] for item in whole["omitted"]
    }
    assert len(pieces["rows"]) + sum(item["count"] for item in pieces["omitted"]) == sum(whole["counts"].values())


@pytest.mark.parametrize("target", ["h100:4x4", "v5p:2x2x2*6", "cpu:12", "h100:1x8"])
@pytest.mark.parametrize("fixed", [{}, {"tensor": "2"}, {"dcn.data": "2"}, {"data": "2", "dcn.fsdp": "2"}])
def test_the_meshes_of_the_blocks_are_those_of_the_table(target, fixed):
    machine, axes = parse_target(target), ("data", "fsdp", "tensor", "expert")
    whole = meshes_over(machine, axes, fixed)
    pieces = list(meshes_in_blocks(machine, axes, fixed, 7))

    def rows(columns):
        return sorted(zip(*(columns[name].tolist() for name in whole), strict=True))

    assert all(len(piece["data"]) <= 7 for piece in pieces)
    assert sorted(row for piece in pieces for row in rows(piece)) == rows(whole)
    if not fixed:
        assert mesh_count(machine, axes, fixed) == len(whole["data"])


def test_a_space_beyond_all_patience_is_refused_with_what_to_do():
    sizes = {"layers": 64, "d_model": 4096, "heads": 32, "kv_heads": 8, "head_dim": 128, "d_ff": 2048, "vocab": 32000}
    shape = TransformerShape(name="many", **sizes, experts=256, experts_per_token=8)
    workload = transformer_workload(shape, batch=2**17, seq=4096, dtype="bfloat16")
    for target in ("h100:100000x8", "cpu:1024x720"):
        with pytest.raises(ValueError, match=r"meshes over data, .*; at most 2,000,000 are priced: name fewer --axes"):
            search(workload, parse_target(target), axes=None, layouts=None, fix=(), compile_count=0, measure_count=0,
                   jobs=1)  # fmt: skip


def test_a_block_is_small_and_the_kept_rows_are_bounded(monkeypatch):
    monkeypatch.setattr(blocks, "FAST", 1000)
    machine = parse_target("h100:64x8")
    workload = reference_workload("llama3-8b", batch=512, seq=4096, dtype="bfloat16")
    tables = large_space.Blocks(axes=workload.axes, fixed={"remat": "full", "zero": "0"}, orders=False)
    sizes = [len(table) for _, table in tables.tables(workload, machine)]
    assert max(sizes) < large_space.MESHES_AT_ONCE * 400
    space = blocks.price_in_blocks(workload, machine, tables)
    assert len(space) == sum(sizes) and len(space.table) < 1000 + blocks.SHORTLISTED + 60 * blocks.FEW
    fastest = np.sort(space.seconds[space.legal & (space.peak_bytes <= machine.hardware.capacity_bytes)])
    assert space.dropped.fits > 0 and len(fastest) >= 1000


def test_dropped_layouts_add_to_the_counted_ones_by_status_and_reason():
    """Two rules share a name: their counts add up, neither replaces the other."""
    codes = [code for code, name in enumerate(rule_names()) if name == "divides(d_model)"]
    assert len(codes) == 2
    space = SimpleNamespace(dropped=Dropped(fits=5, oom=0, illegal=dict(zip(codes, (10, 7), strict=True))))
    listed = [Omitted(reason=NOT_LISTED[RowStatus.PRICED], count=3, best_step_seconds=1.0, status=RowStatus.PRICED)]
    found = _with_dropped(listed, _dropped(space))
    assert [(str(item.status), item.count) for item in found] == [("priced", 8), ("illegal", 17)]
