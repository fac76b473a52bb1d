"""cuDNN's part of a softmax: the call that JAX's own function writes, and programs along `context` made of it."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import re

import jax
import jax.numpy as jnp
import pytest
from effort import QUICK

from autotune.analysis.analyse import analyse
from autotune.compile.compilation import Candidate, CompileFailure
from autotune.compile.compile import compile_all
from autotune.meshes.layout import parse_layout
from autotune.meshes.target import parse_target
from autotune.models.partial_attention import CUDNN, Row
from autotune.models.presets import PRESETS
from autotune.reference_workload import transformer_workload

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("jax_plugins") is None or importlib.util.find_spec("jax_plugins.xla_cuda12") is None,
    reason="the CUDA plugin is not installed",
)


@pytest.mark.parametrize("causal", [True, False])
def test_the_calls_are_those_of_jax(causal):
    """Both kernels with every word of their configuration: heads of keys shared by heads of queries."""
    q = jax.ShapeDtypeStruct((2, 256, 8, 128), jnp.bfloat16)
    k = jax.ShapeDtypeStruct((2, 256, 2, 128), jnp.bfloat16)

    def calls(function):
        text = jax.jit(function).trace(q, k, k).lower(lowering_platforms=("cuda",)).as_text()
        lines = [line.strip() for line in text.splitlines() if "custom_call @__cudnn" in line]
        return [re.sub(r"%\w+(:\d+|#\d+)?", "%", line) for line in lines]

    def of_jax(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn", is_causal=causal).astype("float32").sum()

    def by_part(q, k, v):
        out, logarithm = CUDNN.forward(q, k, v, causal)
        row = Row(query=q, out=out.astype(q.dtype), logarithm=logarithm, gradient=q, along=logarithm, segments=None)
        return CUDNN.backward(row, [k, v], causal)

    found = calls(by_part)
    assert len(found) == 2
    assert found == calls(jax.grad(of_jax, argnums=(0, 1, 2)))


LENGTH = 8192
SHAPE = dataclasses.replace(
    PRESETS["llama3-8b"], name="narrow", layers=2, d_model=512, heads=4, kv_heads=2, d_ff=768, vocab=5120
)


@pytest.mark.parametrize(
    ("words", "kind", "forward"),
    [
        # Of the two devices' branches: a square and one product, a square and two.
        ("context=2,remat=attention", "all_gather", 1 + 1 + 2),
        # Three products of a device's own, and two with what comes by.
        pytest.param("context=2,context_attention=ring,remat=attention", "permute", 5, marks=pytest.mark.slow),
    ],
)
def test_programs_hold_fused_calls_and_no_scores(words, kind, forward):
    workload = transformer_workload(SHAPE, batch=2, seq=LENGTH, dtype="bfloat16")
    job = Candidate(workload=workload, layout=parse_layout(words + QUICK), target=parse_target("h100:1x2"))
    with contextlib.closing(compile_all([job], workers=1)) as compiles:
        [(_, outcome)] = compiles
    assert not isinstance(outcome, CompileFailure), outcome.reason
    # A kept result is not computed again: the loop over layers has one forward and one backward pass.
    assert outcome.text.count('custom_call_target="__cudnn$fmhaSoftmax"') == forward
    assert outcome.text.count('custom_call_target="__cudnn$fmhaSoftmaxBackward"') == forward
    pieces = {LENGTH // 4 * count for count in range(1, 5)}
    for dims in set(re.findall(r"\b(?:f32|bf16|pred)\[([\d,]+)\]", outcome.text)):
        assert sum(int(size) in pieces for size in dims.split(",")) < 2, dims
    analysis = analyse(outcome, job.layout, job.target, None)
    assert not analysis.warnings
    assert any(row.axis == "context" and row.kind == kind for row in analysis.prediction.ledger)
    # Causal: half of the square, two matmuls forward and five backward.
    flops = 7 * 2.0 * (2 * LENGTH / 2) * LENGTH * SHAPE.heads * SHAPE.head_dim / 2
    assert analysis.prediction.step_seconds > SHAPE.layers * flops / 989e12
