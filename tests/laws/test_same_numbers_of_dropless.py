"""The law of `test_same_numbers`, for experts that drop no token; and that they are those of a roomy capacity."""

from __future__ import annotations

import dataclasses

import pytest
import test_same_numbers
from architectures import ARCHITECTURES
from effort import slow
from jax.sharding import AxisType
from test_same_numbers import CIRCULAR, MODELS, PIPELINE, assert_same, one_step, single_device

from autotune.models.presets import PRESETS

SHAPE = dataclasses.replace(PRESETS["tiny-moe"], layers=2)
NAMES = ("like-deepseek", "like-gpt-oss", "like-llama4")
DROPLESS = {"dropless": dataclasses.replace(SHAPE, capacity_factor=None)}
DROPLESS["dropless-4"] = dataclasses.replace(DROPLESS["dropless"], layers=4)
DROPLESS |= {f"dropless-{name}": dataclasses.replace(ARCHITECTURES[name], capacity_factor=None) for name in NAMES}
ROOMY = dataclasses.replace(SHAPE, capacity_factor=SHAPE.experts / SHAPE.experts_per_token)


@pytest.fixture(autouse=True)
def models(monkeypatch):
    monkeypatch.setattr(test_same_numbers, "MODELS", MODELS | DROPLESS | {"roomy": ROOMY})


ROWS = [("dropless", "expert=2,tensor=2,context=2"), ("dropless", "fsdp=4,expert=2,remat=full")]
COMBINATIONS = [
    *(("dropless", f"{axis}=2") for axis in ("fsdp", "tensor", "expert", "context")),
    ("dropless", "expert=8"),
    ("dropless", "expert=2,tensor=2,sequence_parallel=0"),
    ("dropless", "context=2,tensor=2,fsdp=2,remat=save:expert_tokens+attention+mlp_up"),
    ("dropless", "data=2,fsdp=2,tensor=2,zero=2,remat=full,accumulate=2"),
    ("dropless", "data=2,expert=2,accumulate=2,reduce=step"),
    ("dropless", f"expert=2,{PIPELINE}=2"),
    ("dropless", f"fsdp=2,tensor=2,{PIPELINE}=2,remat=dots"),
    ("dropless-4", f"fsdp=2,expert=2,{CIRCULAR}=2"),
    *((f"dropless-{name}", "expert=2,tensor=2") for name in NAMES),
    *((f"dropless-{name}", "fsdp=2,context=2,tensor=2,sequence_parallel=0,remat=attention") for name in NAMES),
]


@pytest.mark.parametrize(
    ("model", "text"),
    [*ROWS, *slow(COMBINATIONS)],
    ids=[f"{model}-{text}" for model, text in ROWS + COMBINATIONS],
)
def test_every_layout_gives_the_numbers_of_one_device(model, text):
    assert_same(one_step(model, text), single_device(model), 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["expert=2,tensor=2,context=2", f"fsdp=2,expert=2,{PIPELINE}=2"])
def test_meshes_with_explicit_axes_give_them_too(text):
    assert_same(one_step("dropless", text, kind=AxisType.Explicit), single_device("dropless"), 2e-5)


def test_no_token_dropped_is_the_same_as_room_for_all():
    assert_same(single_device("dropless"), single_device("roomy"), 2e-5)


def test_explicit_axes_have_no_grouped_matmul_of_replicas():
    with pytest.raises(ValueError, match="reduce=step needs a mesh of Auto axes where experts drop no token"):
        one_step("dropless", "data=2,expert=2,accumulate=2,reduce=step", kind=AxisType.Explicit)
