"""The price of architectures: bit-equal to a uniform shape's where they say the same, and laws of what they add."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from autotune.cli import run
from autotune.meshes.architecture import Architecture, AttentionKind, LayerKind, MlpKind, beyond_uniform, lacks
from autotune.meshes.layout import AXES, parse_layout
from autotune.meshes.legality import reject
from autotune.meshes.target import parse_target
from autotune.model_files.read import read_model
from autotune.model_files.read_model import architecture_of
from autotune.model_files.shape import shape_of
from autotune.models.presets import PRESETS
from autotune.price.price import price_transformer
from autotune.price.transformer.attention_work import window_share
from autotune.space import enumerate_layouts

FOLDER = Path(__file__).parents[1] / "data" / "models"
UNIFORM = ("llama3-8b", "mixtral-8x7b", "gpt2-124m")
TARGETS = ("v5e:4x4", "h100:2x8")


def priced(shape, target, seq=2048, batch=64):
    machine = parse_target(target)
    table = enumerate_layouts(machine, AXES, batch, shape.layers, {})
    return price_transformer(shape, batch, seq, "bfloat16", table, machine)


def with_layers(shape, change):
    """The shape of an architecture with each layer changed by `change(kind)`."""
    architecture = architecture_of(shape)
    layers = tuple(map(change, architecture.layers))
    return dataclasses.replace(shape, architecture=dataclasses.replace(architecture, layers=layers))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", UNIFORM)
def test_an_architecture_that_says_a_uniform_stack_has_its_price(name, target):
    shape = PRESETS[name]
    told = with_layers(shape, lambda kind: kind)
    assert told.parameters == shape.parameters
    assert told.train_flops(8, 512) == pytest.approx(shape.train_flops(8, 512), rel=1e-12)
    assert told.masked_flops(8, 512) == pytest.approx(shape.masked_flops(8, 512), rel=1e-9)
    ours, theirs = priced(told, target), priced(shape, target)
    assert np.allclose(ours.step_seconds, theirs.step_seconds, rtol=1e-9)
    assert np.allclose(ours.peak_bytes, theirs.peak_bytes, rtol=1e-9)


@pytest.mark.parametrize("target", TARGETS)
def test_layers_in_turn_cost_between_their_kinds(target):
    shape = dataclasses.replace(PRESETS["llama3-8b"], layers=8)
    wide = dataclasses.replace(shape, d_ff=2 * shape.d_ff)
    architecture, other = architecture_of(shape), architecture_of(wide)
    layers = tuple((architecture if layer % 2 else other).layers[0] for layer in range(8))
    mixed = dataclasses.replace(shape, architecture=dataclasses.replace(architecture, layers=layers))
    low, middle, high = (priced(one, target) for one in (shape, mixed, wide))
    one_stage = np.flatnonzero(low.table.stage == 1)
    held = [prices.memory(one_stage) for prices in (low, middle, high)]
    seconds = [prices.step_seconds[one_stage] for prices in (low, middle, high)]
    for least, found, most in (seconds, *([each[name] for each in held] for name in ("parameters", "optimizer_state"))):
        assert (least <= found * (1 + 1e-9)).all() and (found <= most * (1 + 1e-9)).all()


@pytest.mark.parametrize("target", TARGETS)
def test_a_narrower_window_never_takes_longer(target):
    shape = PRESETS["llama3-8b"]

    def windowed(window):
        def change(kind):
            return dataclasses.replace(kind, attention=dataclasses.replace(kind.attention, window=window))

        return priced(with_layers(shape, change), target, seq=8192, batch=32)

    whole, *narrower = [windowed(window) for window in (None, 4096, 1024, 128)]
    # On GPUs no fused kernel takes a window of a sequence that is cut: plain matmuls there, which cost all pairs.
    fused = np.full(len(whole.table.context), True) if target.startswith("v") else whole.table.context == 1
    for prices in narrower:
        assert (prices.step_seconds <= whole.step_seconds * (1 + 1e-9))[fused].all()
        whole, fused = prices, np.full_like(fused, True)
    assert (narrower[-1].step_seconds < windowed(None).step_seconds).any()


def pairs(kind, seq, tile):
    """Tiles that hold a visible pair, counted one by one, as a share of all."""
    tiles = set()
    for query in range(seq):
        first = query // kind.window * kind.window if kind.chunked else max(query - kind.window + 1, 0)
        tiles |= {(query // tile, key // tile) for key in range(first, query + 1)}
    return len(tiles) * tile * tile / seq**2


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("window", [8, 24, 64, 100])
@pytest.mark.parametrize("tile", [1, 16, 32])
def test_tiles_of_a_window_are_those_that_hold_a_visible_pair(window, tile, chunked):
    kind = AttentionKind(heads=1, kv_heads=1, head_dim=8, window=window, chunked=chunked)
    assert window_share(kind, 192, tile) == pytest.approx(pairs(kind, 192, tile))


def test_latent_attention_counts_its_projections_and_widths():
    """DeepSeek-V3: FLOPs of the matrices are 6 a parameter and token, of attention 6 x heads x (192 + 128) a pair."""
    shape = shape_of(read_model(str(FOLDER / "deepseek-v3.json")), 4096)
    model = shape.architecture
    norms = sum(count * (kind.norms * 7168 + 1536 + 512) for kind, count in model.kinds) + 7168
    router_bias = 58 * 256
    matrices = model.active_parameters - norms - router_bias
    attention = 61 * 6 * 128 * (192 + 128) * 4096
    assert shape.train_flops(1, 4096) / 4096 == pytest.approx(6 * matrices + attention, rel=1e-3)


MODELS = ("deepseek-v3", "gemma-3-27b", "gpt-oss-120b", "llama-4-maverick", "qwen3-235b-a22b", "qwen2.5-7b",
          "olmo-2-32b", "glm-4.5", "phi-3-mini", "gpt2", "gemma-2-27b", "kimi-k2")  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_published_model_is_priced_with_its_parameters(name):
    """Parameters, gradients and moments of all devices are at least the model's bytes, and every price is finite."""
    seq = 1024 if name == "gpt2" else 4096
    shape = shape_of(read_model(str(FOLDER / f"{name}.json")), seq)
    machine = parse_target("h100:16x8")
    table = enumerate_layouts(machine, ("data", "fsdp"), 256, shape.layers, {})
    prices = price_transformer(shape, 256, seq, "bfloat16", table, machine)
    assert np.isfinite(prices.step_seconds).all() and (prices.step_seconds > 0).all()
    memory = prices.memory(np.arange(len(table)))
    whole = memory["optimizer_state"] * table.fsdp * np.where(table.zero > 0, table.data, 1)
    assert np.allclose(whole, 8.0 * shape.parameters, rtol=2e-3)


def test_a_pipeline_needs_whole_patterns_and_a_ring_whole_sequences():
    gemma = shape_of(read_model(str(FOLDER / "gpt-oss-20b.json")), 4096)
    target = parse_target("h100:2x8")
    twelve = parse_layout("stage=8,fsdp=2,schedule=1f1b,microbatches=8")
    assert "repeats of the layer pattern=12" in str(reject(twelve, gemma, 64, 4096, target))
    ring = parse_layout("context=2,fsdp=8,context_attention=ring")
    assert "ring has no windows and no sinks: gpt-oss-20b has" in str(reject(ring, gemma, 64, 4096, target))


def test_a_model_that_the_reference_lacks_parts_of_is_priced_only(capsys):
    words = ["tune", "--model", str(FOLDER / "bert-large.json"), "--target", "v6e:4x4", "--batch", "64", "--seq",
             "512", "--axes", "fsdp,tensor", "--compile", "2", "--json"]  # fmt: skip
    assert run(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["best"]["status"] == "priced"
    assert "the reference model has no segment embeddings, an embedding norm, a pooler" in told["best"]["reason"]
    assert told["counts"].get("compiled", 0) == 0


def test_parts_are_named_for_what_a_uniform_stack_and_what_the_reference_lacks():
    layer = LayerKind(
        attention=AttentionKind(heads=4, kv_heads=4, head_dim=16, sinks=True),
        mlp=MlpKind(activation="geglu", width=64, bias=True),
        norms=4,
    )
    model = Architecture(name="t", d_model=64, vocab=256, layers=(layer,) * 2, logit_cap=True)
    parts = ["attention sinks", "geglu MLPs", "MLP biases", "4 norms a layer", "soft-capped logits"]
    assert beyond_uniform(model) == parts and lacks(model) == []
    odd = dataclasses.replace(layer, norms=3, attention=dataclasses.replace(layer.attention, window=8))
    both_ways = dataclasses.replace(model, kind="encoder", layers=(odd,) * 2, other_parts=("a pooler",))
    assert lacks(both_ways) == ["3 norms a layer", "attention over a window both ways", "a pooler"]


def test_learned_positions_end_where_their_table_does():
    gpt2 = read_model(str(FOLDER / "gpt2.json"))
    assert shape_of(gpt2, 1024).architecture.position_rows == 1024
    with pytest.raises(ValueError, match="seq=1025 is longer than its table of 1024 learned positions"):
        shape_of(gpt2, 1025)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A", "A*1"), ("AAAA", "A*4"), ("ABABAB", "AB*3"), ("AAAB", "A*3 B*1"), ("BAAAA", "B*1 A*4"),
        ("AABAABAABAA", "AAB*3 A*2"), ("ABCABC", "ABC*2"), ("ABBBAC", "A*1 B*3 AC*1"), ("AAABAAAB", "AAAB*2"),
    ],
)  # fmt: skip
def test_layers_are_parts_within_which_a_pattern_repeats(text, expected):
    """Letters are kinds of layers. A whole repeat of one pattern stays one part, as pipeline stages need it."""
    kinds = {
        letter: LayerKind(
            attention=AttentionKind(heads=1, kv_heads=1, head_dim=8), mlp=MlpKind(activation="gelu", width=8 + index)
        )
        for index, letter in enumerate("ABC")
    }
    letters = {kind: letter for letter, kind in kinds.items()}
    model = Architecture(name="t", d_model=8, vocab=8, layers=tuple(kinds[letter] for letter in text))
    parts = model.repeating_parts
    assert " ".join(f"{''.join(letters[kind] for kind in pattern)}*{count}" for pattern, count in parts) == expected
    assert tuple(kind for pattern, count in parts for kind in pattern * count) == model.layers
    if model.repeats > 1:
        assert parts == ((model.layers[: len(text) // model.repeats], model.repeats),)


@pytest.mark.parametrize(
    ("name", "target", "words"),
    [
        ("gemma-2-27b", "h100:2x8", "attention of 46 of 46 layers runs as plain matmuls: JAX's call to cuDNN does not "
                                    "take soft-capped scores"),
        ("deepseek-v2-lite", "h100:2x8", "does not take heads of 192 (only multiples of 8 up to 128), values of 128 "
                                         "beside keys of 192"),
        ("gpt-oss-20b", "h100:2x8", "attention sinks of 24 layers cost one more attention in the backward pass"),
        ("gpt-oss-20b", "v5p:4x4x4", None),
        ("qwen3-8b", "h100:2x8", None),
    ],
)  # fmt: skip
def test_a_note_says_which_attention_no_fused_kernel_takes(name, target, words, capsys):
    line = ["tune", "--model", str(FOLDER / f"{name}.json"), "--target", target, "--batch", "64", "--seq", "2048",
            "--compile", "0", "--axes", "fsdp", "--json"]  # fmt: skip
    assert run(line) in (0, 1)
    notes = [note for note in json.loads(capsys.readouterr().out)["notes"] if "cuDNN" in note]
    assert notes == [] if words is None else len(notes) == 1 and words in notes[0]
