"""Whole screens, compared as text. `AUTOTUNE_WRITE_GOLDEN=1 pytest tests/golden` writes them anew: read the diff."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.analysis.analysis import Analysis
from autotune.analysis.limits import KeptOut, binding_limit, elasticities
from autotune.analysis.overheads import Overhead
from autotune.measure.measure import Measurement
from autotune.memory_use import MemoryUse, compiled_use
from autotune.meshes.layout import parse_layout
from autotune.meshes.target import parse_target
from autotune.price.changes_that_fit import Change
from autotune.price.price import Estimate, Term
from autotune.program import Buffer, Memory
from autotune.replay.replay import CollectiveTotal, Prediction
from autotune.report.comparison import render_comparison
from autotune.report.document import report_to_json
from autotune.report.findings import Omitted, Roomier, Row
from autotune.report.html import render_html
from autotune.report.report import Report
from autotune.report.text import render
from autotune.row_status import RowStatus
from autotune.tables import lines

HERE = Path(__file__).parent
GIB = 2**30


def price(seconds: float, peak: float) -> Estimate:
    terms = {
        "matmul.mlp": Term(seconds=seconds * 0.9, resource="matmul", source="closed form"),
        "bubble": Term(seconds=seconds * 0.1, resource=None, source="closed form"),
    }
    return Estimate(
        step_seconds=seconds,
        low_seconds=0.9 * seconds,
        high_seconds=1.2 * seconds,
        peak_bytes=peak,
        terms=terms,
        resources={"matmul": 0.8 * seconds, "network:fsdp@ici": 0.2 * seconds},
        memory={"parameters": 0.25 * peak, "optimizer_state": 0.5 * peak, "activations": 0.25 * peak},
        flops=1e12 * seconds,
        sent={"fsdp": 1e9 * seconds},
    )


def analysis(matmul: float, network: float, peak_gib: float) -> Analysis:
    critical = {("matmul", "fusion"): matmul, ("network:fsdp@ici", "all_gather"): network, ("latency", "launch"): 0.01}
    ledger = CollectiveTotal(
        axis="fsdp",
        tier="ici",
        kind="all_gather",
        count=193,
        payload_bytes=16.06 * GIB,
        wire_bytes=16.0 * GIB,
        seconds=network * 2,
        exposed_seconds=network,
    )
    return Analysis(
        prediction=Prediction(
            step_seconds=matmul + network + 0.01,
            low_seconds=matmul,
            high_seconds=matmul + 2 * network + 0.01,
            critical=critical,
            busy={"core": matmul},
            ledger=(ledger,),
            losses={"recompute": 0.25 * matmul, "bubble": 0.0},
        ),
        memory=Memory(
            peak_bytes=int(peak_gib * GIB),
            argument_bytes=GIB,
            output_bytes=GIB,
            temporary_bytes=GIB,
            alias_bytes=GIB,
            host_bytes=0,
            by_category={"parameters": GIB, "activations": int((peak_gib - 1) * GIB)},
            largest=(
                Buffer(bytes=2 * GIB, shape="bf16[8]", category="activations", source="model.py:3", scope=None),
                Buffer(bytes=GIB, shape="f32[4]", category="parameters", source=None, scope="state[0]['table']"),
            ),
        ),
        flops=1e15,
        recompute_flops=2e14,
        hbm_bytes=1e12,
        improved_seconds={"matmul": 0.8 * matmul},
        lower_seconds=1.0,
        compile_seconds=40.0,
        losses=(
            Overhead(
                kind="redundant",
                what="matmul done 4 times over the 256 devices",
                seconds=0.05,
                bytes=None,
                source="model.py:3",
            ),
            Overhead(
                kind="replicated",
                what="state['table'] float32[8] is whole on every device",
                seconds=None,
                bytes=GIB,
                source=None,
            ),
        ),  # fmt: skip
        traced=True,
        warnings=(),
        log="/tmp/log",
    )


TOO_LARGE = MemoryUse(
    bytes=17 * GIB,
    by_category={"parameters": 4 * GIB, "activations": 13 * GIB, "logits": 0},
    largest=(Buffer(bytes=9 * GIB, shape="bf16[64]", category="activations", source="model.py:7", scope=None),),
    source="the compiler's total; arguments by their shardings, the rest as in the compile of fsdp=256,accumulate=2, "
    "whose buffers these are",
)
CHANGES = (
    Change(
        what="remat=full",
        layout=parse_layout("fsdp=256,remat=full"),
        same_job=True,
        peak_bytes=13.2 * GIB,
        time_change=0.21,
        source="compiled",
    ),
    Change(
        what="batch 128 instead of 256",
        layout=parse_layout("fsdp=256"),
        same_job=False,
        peak_bytes=9 * GIB,
        time_change=0.0,
        source="priced",
    ),
)


def row(text: str, status: str, found: Analysis | None, *, reason: str | None = None, measured: bool = False) -> Row:
    shares = elasticities(found.prediction.by_resource()) if found else {}
    turns = (1.31, 1.29, 1.30)
    return Row(
        layout=parse_layout(text),
        status=RowStatus(status),
        reason=reason,
        price=price(1.2, 9 * GIB),
        analysis=found,
        measurement=Measurement(
            turn_seconds=turns, steps=30, rounds=3, compile_seconds=5.0, peak_bytes=None, control_drift=None
        )
        if measured
        else None,
        peak_bytes=found.memory.peak_bytes if found else 17 * GIB,
        memory=compiled_use(found.memory) if found else TOO_LARGE,
        changes=() if found else CHANGES,
        mfu=0.512 if found else None,
        mfu_causal=0.4803 if found else None,
        tokens_per_second_per_device=3150.0 if found else None,
        limit=binding_limit(shares),
        elasticities=shares,
        losses_seconds={"bubble": 0.0, "recompute": 0.25, "redundant": None},
        log="/tmp/log" if status == "oom" else None,
    )


@pytest.fixture
def report() -> Report:
    best = row("fsdp=64,tensor=4,remat=full", "compiled", analysis(1.0, 0.2, 11.2))
    second = row(
        "fsdp=256,remat=full", "compiled", analysis(1.1, 0.3, 15.2), reason="+200 ms a step (compiled): matmul +100 ms"
    )
    lost = row("fsdp=256", "oom", None, reason="compiled peak 17.00 GiB is 1.25 GiB over the capacity")
    return Report(
        workload="llama3-8b, batch 256 x 4096 tokens, bfloat16",
        taken="bfloat16 compute, float32 weights and moments, adamw with gradient clipping, whole logits where "
        "vocab_tiles is 1",
        target=parse_target("v5e:16x16"),
        tokens=2**20,
        named=(),
        rows=(best, second, lost),
        omitted=(
            Omitted(reason="illegal: divides(kv_heads)", count=750, best_step_seconds=None, status=RowStatus.ILLEGAL),
        ),
        counts={"compiled": 2, "oom": 1, "illegal": 750},
        prices={"matmul": 0.16, "network:fsdp@ici": 0.03, "capacity": 0.05},
        kept_out=KeptOut(constraint="capacity", layout="fsdp=256", gain=0.05),
        closest=None,
        more_devices=None,
        tied=(),
        rank_correlation=None,
        notes=("compiled time over priced time, 2 layouts: 1.01 to 1.12",),
        seconds={"pricing": 0.1},
        plan_or_none=None,
        compilers_word=None,
    )


def same(name: str, text: str) -> None:
    path = HERE / name
    if os.environ.get("AUTOTUNE_WRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_tune_screen(report):
    same("tune.txt", "\n".join(lines(render(report))) + "\n")


def test_no_limit_is_named_where_the_program_was_not_understood(report):
    best = report.rows[0]
    assert best.limit is not None and best.limit.certain and best.analysis is not None
    found = replace(best.analysis, not_understood={"all-gather": 3, "custom call mine": 1})
    doubtful = replace(best, analysis=found, limit=binding_limit(best.elasticities, certain=False))
    screen = " ".join("\n".join(lines(render(replace(report, rows=(doubtful,))))).split())
    assert "what binds: matmul" not in screen
    assert "what binds is not certain" in screen and "3 x all-gather, 1 x custom call mine" in screen
    document = report_to_json(replace(report, rows=(doubtful,)))["best"]
    assert document["binding"]["certain"] is False
    assert document["not_understood"] == {"all-gather": 3, "custom call mine": 1}
    assert report_to_json(report)["best"]["binding"]["certain"] is True


def test_measured_screen(report):
    best = replace(
        report.rows[0],
        status=RowStatus.MEASURED,
        measurement=row("data=1", "measured", None, measured=True).measurement,
    )
    text = "\n".join(lines(render(replace(report, rows=(best, *report.rows[1:]), tied=("fsdp=256,remat=full",)))))
    same("measured.txt", text + "\n")


def test_near_limit_screen(report):
    """The chosen layout takes 97 % of the memory: said before the ranking, with what room costs."""
    room = report.rows[0]
    other = Roomier(
        layout=room.layout, peak_bytes=room.peak_bytes, step_seconds=1.45, cost_seconds=0.04, source="compiled"
    )
    counts = {"compiled": 1, "oom": 1, "illegal": 750}
    full = replace(report, rows=report.rows[1:], counts=counts, roomier=other)
    same("near_limit.txt", "\n".join(lines(render(full))) + "\n")


def test_nothing_fits_screen(report):
    lost = report.rows[2]
    text = "\n".join(lines(render(replace(report, rows=(lost,), closest=lost, counts={"oom": 1, "illegal": 750}))))
    same("nothing_fits.txt", text + "\n")


def test_compare_screen(report):
    same("compare.txt", "\n".join(lines(render_comparison(report, *report.rows[:2]))) + "\n")


def test_html_page_names_every_row(report):
    page = render_html(report)
    for one in report.rows:
        assert str(one.layout) in page
    assert "llama3-8b" in page and "750 more" in page and "capacity" in page
    assert "model.py:3" in page and "model.py:7" in page and "remat=full -&gt; 13.20 GiB compiled" in page
    assert "51.2, 48.0 %" in page
    assert "near limit" in page  # fsdp=256,remat=full: 15.2 of 15.75 GiB


def test_json_has_the_keys_others_read(report):
    document = report_to_json(report)
    assert document["schema"] == 1 and document["target"] == "v5e:16x16"
    best = document["best"]
    assert best["layout"]["axes"] == {"data": 1, "fsdp": 64, "tensor": 4, "stage": 1, "context": 1, "expert": 1}
    assert set(best["step_seconds"]) >= {"priced", "compiled", "compiled_low", "compiled_high", "measured"}
    assert best["step_seconds"]["measured"] is None
    assert best["binding"]["resource"] == "matmul"
    assert best["kept_out_by"] == {"constraint": "capacity", "gain": 0.05, "layout": "fsdp=256"}
    assert best["collectives"][0]["count"] == 193
    assert best["largest_buffers"][0]["source"] == "model.py:3" and not best["near_capacity"]
    assert (best["mfu"], best["mfu_causal"]) == (0.512, 0.4803)
    assert document["omitted"][0]["status"] == "illegal"
    second, lost = document["rows"][1:]
    assert second["near_capacity"]
    assert sum(lost["memory"].values()) == lost["peak_bytes"] and "compiler's total" in lost["memory_source"]
    assert [one["what"] for one in lost["changes_that_fit"]] == ["remat=full", "batch 128 instead of 256"]
    assert sum(best["elasticities"].values()) == pytest.approx(1.0)
    assert sum(document["counts"].values()) == 753
