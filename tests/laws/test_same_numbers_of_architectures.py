"""The law of `test_same_numbers`, for the parts of today's architectures (tests/architectures.py) with each axis."""

from __future__ import annotations

import pytest
from architectures import ARCHITECTURES
from effort import slow
from jax.sharding import AxisType
from test_same_numbers import CIRCULAR, PIPELINE, RING, assert_same, one_step, single_device

ROWS = [(model, "tensor=2") for model in ARCHITECTURES]
COMBINATIONS = [
    *((model, text) for model in ARCHITECTURES for text in ("fsdp=4,remat=attention", "context=2")),
    *((model, "data=2,fsdp=2,tensor=2,zero=1,accumulate=2,remat=full") for model in ARCHITECTURES),
    *((model, f"fsdp=2,{PIPELINE}=2,remat=minimal") for model, shape in ARCHITECTURES.items() if shape.repeats > 1),
    *((model, "expert=4,tensor=2") for model, shape in ARCHITECTURES.items() if shape.experts),
    ("like-gemma", "fsdp=2,tensor=2,vocab_tiles=4"),
    ("like-gpt2", f"{CIRCULAR}=4"),
    ("like-gpt2", f"context=2,tensor=2,{RING}"),
    ("like-deepseek", "data=2,expert=2,accumulate=2,reduce=step,remat=save:query+expert_tokens+mlp_up"),
]


@pytest.mark.parametrize(
    ("model", "text"),
    [*ROWS, *slow(COMBINATIONS)],
    ids=[f"{model}-{text}" for model, text in ROWS + COMBINATIONS],
)
def test_every_layout_gives_the_numbers_of_one_device(model, text):
    assert_same(one_step(model, text), single_device(model), 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("model", ARCHITECTURES)
def test_meshes_with_explicit_axes_give_them_too(model):
    assert_same(one_step(model, "fsdp=2,tensor=2,context=2", kind=AxisType.Explicit), single_device(model), 2e-5)
