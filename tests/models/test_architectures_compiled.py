"""Today's architectures, compiled for a GPU node and a TPU slice: attention of each layer is the kernel that the price
counts, and the gathers of every part of the model are in the ledger."""

from __future__ import annotations

import dataclasses
import importlib.util
import re

import pytest
from architectures import ARCHITECTURES, model_of
from effort import QUICK

from autotune.analysis.analyse import analyse
from autotune.compile.compilation import Candidate, CompileFailure
from autotune.compile.compile import compile_all
from autotune.meshes.layout import parse_layout
from autotune.meshes.target import parse_target
from autotune.reference_workload import transformer_workload

SEQ = 512


def wide(name):
    """The small model with heads of 64 and windows of 128, as the kernels take them."""
    architecture = ARCHITECTURES[name].architecture

    def widened(kind):
        attention = dataclasses.replace(
            kind.attention, head_dim=64, window=128 if kind.attention.window is not None else None
        )
        return dataclasses.replace(kind, attention=attention)

    return model_of(
        name, tuple(map(widened, architecture.layers)), tied_embeddings=True, logit_cap=architecture.logit_cap
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "target", "package", "kernel", "calls"),
    [
        # In each of a pattern's two layers: forward, and again before the backward pass, since no policy can name the
        # statistics that cuDNN keeps; backward; and forward and backward the attention over keys that sinks need.
        ("like-gpt-oss", "h100:1x4", "jax_plugins", r'custom_call_target="__cudnn\$fmha', 10),
        # Forward, and backward in two kernels.
        ("like-gemma", "v5e:2x2", "libtpu", r'custom-call\(.*custom_call_target="tpu_custom_call"', 6),
    ],
)
def test_attention_of_every_layer_is_the_fused_kernel(name, target, package, kernel, calls):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    shape = wide(name)
    work = transformer_workload(shape, batch=8, seq=SEQ, dtype="bfloat16")
    quick = "" if shape.experts and target.startswith("v") else QUICK
    layout = parse_layout(f"fsdp=4,remat=attention{quick}")
    ((job, outcome),) = compile_all([Candidate(workload=work, layout=layout, target=parse_target(target))], workers=1)
    assert not isinstance(outcome, CompileFailure), f"{outcome.reason} ({outcome.log_path})"
    assert len(re.findall(kernel, outcome.text)) == calls
    analysis = analyse(outcome, job.layout, job.target, None)
    assert not [line for line in analysis.warnings if "not known" in line or "no known" in line]
    gathered = sum(row.payload_bytes for row in analysis.prediction.ledger if row.kind == "all_gather")
    # At least the weights in bfloat16, once for each pass; the table is one of them.
    assert gathered >= 2.0 * 2.0 * shape.parameters * 0.9
