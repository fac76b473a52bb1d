"""The law of `test_same_numbers` for attention by parts, as GPUs run it along `context`.

cuDNN does not run on a CPU: the plain kernel, which gives the same statistics of a part, stands for it. What is cut,
gathered, passed on and joined is the code of a GPU.
"""

from __future__ import annotations

import pytest
from effort import slow
from test_same_numbers import PIPELINE, RING, assert_same, one_step, single_device

from autotune.models import attention
from autotune.models.partial_attention import PLAIN

ROWS = [
    # (model, layout, the way)
    ("tiny", "context=4", "gathered_attention"),
    ("tiny", f"context=2,{RING},remat=attention", "ring_attention"),
]
COMBINATIONS = [
    ("tiny", "context=2,remat=attention", "gathered_attention"),
    ("tiny", "context=8,remat=full", "gathered_attention"),
    ("tiny", f"context=8,{RING}", "ring_attention"),
    ("tiny", "fsdp=2,context=2,tensor=2,accumulate=2,remat=save:query+attention", "gathered_attention"),
    ("tiny", f"fsdp=2,context=2,{PIPELINE}=2", "gathered_attention"),
    ("tiny-moe", "expert=2,context=2,remat=dots", "gathered_attention"),
    ("tiny-encoder", f"context=4,tensor=2,{RING}", "ring_attention"),
    ("like-gpt2", "context=2,tensor=2", "gathered_attention"),
    # Layers with a window go along as plain matmuls on blocks of queries, beside layers without one.
    ("like-llama4", "context=2", "gathered_attention"),
]


@pytest.mark.parametrize(
    ("model", "text", "way"),
    [*ROWS, *slow(COMBINATIONS)],
    ids=[f"{model}-{text}" for model, text, _ in ROWS + COMBINATIONS],
)
def test_every_layout_gives_the_numbers_of_one_device(model, text, way, monkeypatch):
    expected = single_device(model)
    ran, function = [], getattr(attention, way)

    def seen(*arguments):
        ran.append(arguments[-1])
        return function(*arguments)

    monkeypatch.setattr("autotune.models.execution.attention_kernel", lambda device, dtype: "cudnn")
    monkeypatch.setattr(attention, "CUDNN", PLAIN)
    monkeypatch.setattr(attention, way, seen)
    assert_same(one_step(model, text), expected, 2e-5)
    assert ran and all(kernel is PLAIN for kernel in ran)
