"""Legality: what is refused and why, and that one layout and a table of them are judged alike."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from autotune.meshes.layout import parse_layout
from autotune.meshes.legality import LEGALITY_RULES, reject, reject_codes, rule_names, rules_about
from autotune.meshes.target import parse_target
from autotune.models.presets import PRESETS
from autotune.table import LayoutTable

V5E, H100 = parse_target("v5e:4x4"), parse_target("h100:2x8")

REFUSED = [
    # layout, model, batch, seq, target, constraint, sentence and remedy
    ("tensor=16", "llama3-8b", 16, 4096, V5E, "divides(kv_heads)",
     "tensor=16 does not divide kv_heads=8; tensor=8 would"),
    ("tensor=2,data=8", "gpt2-124m", 16, 1024, V5E, "divides(vocab)",
     "tensor=2 does not divide vocab=50257; tensor=1 would"),
    ("fsdp=16", "llama3-8b", 24, 4096, V5E, "divides(batch)",
     "fsdp=16 does not divide batch=24; fsdp=8 would"),
    ("fsdp=8,data=2,accumulate=2", "llama3-8b", 48, 4096, V5E, "divides(batch)",
     "data=2 x fsdp=8 x accumulate=2 = 32 does not divide batch=48"),
    ("expert=16", "llama3-8b", 16, 4096, V5E, "expert needs experts",
     "expert=16 cuts experts, llama3-8b has none; expert=1 would"),
    ("expert=16", "mixtral-8x7b", 16, 4096, V5E, "divides(experts)",
     "expert=16 does not divide experts=8; expert=8 would"),
    ("fsdp=16,zero=1", "llama3-8b", 16, 4096, V5E, "zero needs data",
     "zero=1 shards over data, which is 1; zero=0 would"),
    ("stage=16,schedule=gpipe,microbatches=16", "llama3-405b", 16, 4096, H100, "divides(layers)",
     "stage=16 does not divide layers=126; stage=2 would"),
    ("stage=4,fsdp=4,schedule=gpipe,microbatches=2", "llama3-8b", 16, 4096, H100, "divides(microbatches)",
     "stage=4 does not divide microbatches=2; stage=2 would"),
    ("stage=2,fsdp=8,schedule=1f1b,microbatches=2,virtual_stages=2", "llama3-8b", 16, 4096, H100,
     "virtual_stages needs circular", "virtual_stages=2 needs schedule=circular; virtual_stages=1 would"),
    ("fsdp=16,context_attention=ring", "llama3-8b", 16, 4096, H100, "ring needs context",
     "context_attention=ring goes round context, which is 1; context_attention=gather would"),
    # of 1024 positions a sixteenth is 64, less than one tile of the TPU kernel
    ("context=16", "llama3-8b", 16, 1024, V5E, "divides(seq)",
     "context=16 x 128 = 2048 does not divide seq=1024; context=8 would"),
    ("context=16", "llama3-8b", 16, 4104, H100, "divides(seq)",
     "context=16 does not divide seq=4104; context=8 would"),
    ("context=16", "llama3-8b", 16, 4112, H100, "divides(seq)",
     "context=16 x 2 = 32 does not divide seq=4112; context=8 would"),
    ("fsdp=16,remat=offload", "llama3-8b", 16, 4096, H100, "remat=offload needs tpu", None),
    ("fsdp=16,offload=optimizer", "llama3-8b", 16, 4096, H100, "offload needs tpu", None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "model", "batch", "seq", "target", "constraint", "sentence"), REFUSED)
def test_refused_with_rule_and_values(text, model, batch, seq, target, constraint, sentence):
    rejection = reject(parse_layout(text), PRESETS[model], batch, seq, target)
    assert rejection is not None and rejection.constraint == constraint
    if sentence:
        assert str(rejection) == sentence


ALLOWED = [
    ("fsdp=16", "llama3-8b", 16, 4096, V5E),
    ("context=16", "llama3-8b", 16, 4096, V5E),
    ("fsdp=4,tensor=4,remat=offload,offload=optimizer", "llama3-8b", 16, 4096, V5E),
    ("stage=2,fsdp=8,schedule=circular,virtual_stages=4,microbatches=2", "llama3-8b", 16, 4096, H100),
    # not ours to run, but another stack's to price
    ("stage=2,fsdp=8,schedule=zero-bubble,microbatches=3", "llama3-8b", 24, 4096, H100),
]


@pytest.mark.parametrize(("text", "model", "batch", "seq", "target"), ALLOWED)
def test_allowed(text, model, batch, seq, target):
    assert reject(parse_layout(text), PRESETS[model], batch, seq, target) is None


@pytest.mark.parametrize("model", ["llama3-8b", "mixtral-8x7b", "gpt2-124m", None])
@pytest.mark.parametrize("target", [V5E, H100], ids=str)
def test_a_table_is_judged_as_its_rows_are(model, target):
    shape = PRESETS[model] if model else None
    choices = itertools.product(
        ("fsdp=16", "data=2,tensor=8", "tensor=16", "expert=4,fsdp=4", "context=16", "data=4,context=4",
         "stage=4,schedule=gpipe,microbatches=4,fsdp=4",
         "stage=4,schedule=circular,virtual_stages=3,microbatches=2,data=4"),
        ("", ",zero=2"), ("", ",accumulate=8"), ("", ",context_attention=ring"), ("", ",remat=offload"),
        ("", ",sequence_parallel=0"),
    )  # fmt: skip
    layouts = [parse_layout("".join(choice)) for choice in choices]
    codes = reject_codes(LayoutTable.from_layouts(layouts), shape, 64, 4096, target)
    single = [reject(layout, shape, 64, 4096, target) for layout in layouts]
    assert [None if code < 0 else rule_names()[code] for code in codes] == [one and one.constraint for one in single]
    assert -1 in codes and len(set(codes)) > 3


def test_every_rule_is_about_one_of_three_matters():
    codes = np.concatenate([rules_about(matter) for matter in ("divisibility", "batch", "exclusion")])
    assert sorted(codes) == list(range(len(LEGALITY_RULES)))
