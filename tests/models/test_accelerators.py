"""Every axis, compiled for a TPU pod and a GPU cluster without the devices: it compiles, and its traffic is priced.

Few and narrow layers and little effort of the compiler: which collectives there are, along which axis, is the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util

import pytest
from effort import QUICK

from autotune.analysis.analyse import analyse, program_of
from autotune.compile.compilation import Candidate, CompileFailure
from autotune.compile.compile import compile_all
from autotune.meshes.layout import parse_layout
from autotune.meshes.target import parse_target
from autotune.models.presets import PRESETS
from autotune.price.price import estimate
from autotune.program import Loop, Start
from autotune.reference_workload import transformer_workload

BATCH, SEQ = 64, 1024
DENSE = dataclasses.replace(
    PRESETS["llama3-8b"], name="dense", layers=4, d_model=1024, heads=8, kv_heads=8, d_ff=2048, vocab=4096
)
MODELS = {
    "dense": DENSE,
    "dense-8": dataclasses.replace(DENSE, layers=8),
    "deepseek": dataclasses.replace(
        PRESETS["deepseek-moe-16b"], layers=2, vocab=4096, d_model=512, heads=4, kv_heads=4, d_ff=256, experts=16,
        experts_per_token=2, shared_experts=1,
    ),
    "dropless": dataclasses.replace(
        PRESETS["mixtral-8x7b"], layers=2, vocab=4096, d_model=512, heads=4, kv_heads=4, d_ff=512, capacity_factor=None
    ),
    "bert": dataclasses.replace(PRESETS["bert-large"], layers=2),
}  # fmt: skip
TARGETS = {"v5p:4x4x4": "libtpu", "h100:8x8": "jax_plugins.xla_cuda12"}
KERNEL = {"v5p:4x4x4": "tpu_custom_call", "h100:8x8": "__cudnn$fmha"}

GPIPE = "data=2,fsdp=4,tensor=2,stage=4,schedule=gpipe,microbatches=4,remat=full"
CIRCULAR = "data=2,fsdp=8,stage=4,schedule=circular,virtual_stages=2,microbatches=4,zero=2,remat=dots"
RING = "fsdp=16,context=4,context_attention=ring,remat=minimal"
GATHER = "data=4,fsdp=4,context=4,zero=1,accumulate=2,remat=attention"

ROWS = [
    # (model, layout, traffic that must be in the ledger, whether attention is a fused kernel on both: a ring on GPUs)
    ("dense", GPIPE, {"permute stage", "all_gather fsdp", "all_gather tensor", "reduce_scatter tensor"}, True),
    ("dense-8", CIRCULAR, {"permute stage", "reduce_scatter fsdp"}, True),
    ("dense", RING, {"permute context", "all_gather fsdp"}, False),
    ("dense", GATHER, {"all_gather context", "reduce_scatter context", "all_gather data"}, True),
    ("deepseek", "fsdp=8,expert=8,remat=full", {"all_to_all expert", "all_reduce expert", "all_gather fsdp"}, True),
    ("deepseek", "fsdp=4,expert=4,tensor=2,context=2,remat=dots", {"all_to_all expert", "all_gather context"}, True),
    ("bert", "fsdp=16,context=2,tensor=2,remat=full", {"all_gather context", "all_gather tensor"}, True),
]
QUICKEST = (("v5p:4x4x4", RING),)
"""What runs with every change: a compile takes half a minute to three. For a GPU, the README's command compiles."""
CASES = [(target, *row) for target in TARGETS for row in ROWS]


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def job_of(target: str, model: str, text: str) -> Candidate:
    workload = transformer_workload(MODELS[model], batch=BATCH, seq=SEQ, dtype="bfloat16")
    quick = "" if MODELS[model].experts else QUICK
    return Candidate(workload=workload, layout=parse_layout(text + quick), target=parse_target(target))


@pytest.fixture(scope="module")
def compiled(request):
    """(target, model, layout) -> (job, outcome), skipped where the target's compiler is not installed.

    One worker process compiles for all tests that were asked for, and goes on while a test looks at its program.
    """
    asked = [item.callspec.params for item in request.session.items if item.path == request.path]
    named = {(one["target"], one["model"], one["text"]): job_of(one["target"], one["model"], one["text"])
             for one in asked if _installed(TARGETS[one["target"]])}  # fmt: skip
    compiles = compile_all(named.values(), workers=1)
    outcomes = {}

    def find(target, model, text):
        if not _installed(TARGETS[target]):
            pytest.skip(f"{TARGETS[target]} is not installed")
        job = named[target, model, text]
        while id(job) not in outcomes:
            finished, outcome = next(compiles)
            outcomes[id(finished)] = outcome
        outcome = outcomes[id(job)]
        assert not isinstance(outcome, CompileFailure), f"{outcome.reason} ({outcome.log_path})"
        return job, outcome

    with contextlib.closing(compiles):
        yield find


@pytest.mark.parametrize(
    ("target", "model", "text", "traffic", "fused"),
    [pytest.param(*c, marks=[] if (c[0], c[2]) in QUICKEST else [pytest.mark.slow]) for c in CASES],
    ids=["-".join(c[:3]) for c in CASES],
)
def test_it_compiles_and_its_traffic_is_in_the_ledger(compiled, target, model, text, traffic, fused):
    job, outcome = compiled(target, model, text)
    analysis = analyse(outcome, job.layout, job.target, None)
    ledger = {f"{row.kind} {row.axis}": row for row in analysis.prediction.ledger}
    for name in traffic:
        same = [row for key, row in ledger.items() if key == name]
        assert same and same[0].seconds > 0 and same[0].count > 0, f"{name}: {sorted(ledger)}"
    assert not any(row.axis == "unmapped" for row in analysis.prediction.ledger)
    assert not [line for line in analysis.warnings if "not known" in line or "no known" in line]
    if fused or target.startswith("h100"):
        assert KERNEL[target] in outcome.text
    if job.layout.stage > 1:
        pipeline_is_as_long_as_the_formula(job, outcome, analysis)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "model", "text"), [("v5p:4x4x4", "dropless", "fsdp=16,expert=4,remat=full")], ids=["dropless"]
)
def test_experts_that_drop_no_token_run_grouped_matmuls(compiled, target, model, text):
    """Three kernels for each matrix, and the forward pass again: as many FLOPs as the price counts."""
    job, outcome = compiled(target, model, text)
    analysis = analyse(outcome, job.layout, job.target, None)
    assert "jit(gmm)/pallas_call" in outcome.text and "jit(tgmm)/pallas_call" in outcome.text
    priced = estimate(MODELS[model], BATCH, SEQ, "bfloat16", job.layout, job.target)
    assert analysis.flops == pytest.approx(priced.flops, rel=0.01)
    ledger = {f"{row.kind} {row.axis}" for row in analysis.prediction.ledger}
    assert {"all_gather expert", "reduce_scatter expert"} <= ledger
    assert not any(name.startswith("all_to_all expert") for name in ledger)


def pipeline_is_as_long_as_the_formula(job, outcome, analysis):
    """Ticks and transfers read from the program: M V + S - 1 each way, of which S - 1 are idle."""
    layout = job.layout
    ticks = layout.microbatches * layout.virtual_stages + layout.stage - 1
    loops = list(pipeline_loops(program_of(outcome, layout, job.target).instructions))
    assert len(loops) == 2, "forward and backward"
    for trips, sends in loops:
        assert ticks - 2 <= trips <= ticks and sends == 1
    [idle] = [loss for loss in analysis.losses if loss.kind == "bubble"]
    share = (layout.stage - 1) / ticks
    assert f"{layout.stage - 1} of {ticks} ticks of the pipeline, {100 * share:.1f} %" in idle.what
    assert 0 < idle.seconds < share * analysis.prediction.step_seconds * 1.01


def pipeline_loops(instructions):
    """(trips, transfers between stages a trip) of each loop that has any."""
    for one in instructions:
        if isinstance(one, Loop):
            sends = [
                op for op in one.body
                if isinstance(op, Start) and op.collective.kind == "permute" and op.collective.axes == ("stage",)
            ]  # fmt: skip
            if sends:
                yield one.trips, len(sends)
            yield from pipeline_loops(one.body)
