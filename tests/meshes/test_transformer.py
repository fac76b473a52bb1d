"""The shape of a model: parameters and FLOPs against published counts, and JSON files."""

import json

import pytest

from autotune.meshes.transformer import TransformerShape, read_transformer

LLAMA3_8B = TransformerShape(
    name="llama3-8b", layers=32, d_model=4096, heads=32, kv_heads=8, head_dim=128, d_ff=14336, vocab=128256
)
SHAPE = {"layers": 2, "d_model": 64, "heads": 4, "kv_heads": 2, "d_ff": 128, "vocab": 256}


def test_llama3_8b_has_its_published_parameters():
    assert LLAMA3_8B.parameters == 8_030_261_248  # meta-llama/Meta-Llama-3-8B model card, safetensors total


def test_mixtral_total_and_active_parameters():
    """mistralai/Mixtral-8x7B: 46.7e9 in all, 12.9e9 a token (its announcement)."""
    mixtral = TransformerShape(
        name="mixtral", layers=32, d_model=4096, heads=32, kv_heads=8, head_dim=128, d_ff=14336, vocab=32000,
        experts=8, experts_per_token=2,
    )  # fmt: skip
    assert mixtral.parameters == pytest.approx(46.7e9, rel=1e-3)
    idle = mixtral.layers * (mixtral.mlp_parameters - mixtral.active_mlp_parameters)
    assert mixtral.parameters - idle == pytest.approx(12.9e9, rel=2e-3)


def test_train_flops_by_hand():
    """One layer, d=2, one head of 2, ff=3 (two matrices), vocab 5, batch 1, seq 4; 2 FLOPs a multiply-add, x3."""
    tiny = TransformerShape(
        name="t", layers=1, d_model=2, heads=1, kv_heads=1, head_dim=2, d_ff=3, vocab=5, mlp="gelu-2mat"
    )
    projections = 4 * (2 * 2) * 4  # query, key, value, output over 4 tokens
    attention = 2 * 4 * 4 * 2  # scores and mixing, every pair of tokens
    mlp = 2 * (2 * 3) * 4
    logits = 2 * 5 * 4
    assert tiny.train_flops(1, 4) == 3 * 2 * (projections + attention + mlp + logits)


def write(tmp_path, values):
    path = tmp_path / "mine.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return path


def test_a_file_needs_only_the_sizes(tmp_path):
    model = read_transformer(write(tmp_path, SHAPE))
    assert (model.name, model.head_dim, model.kv_heads, model.mlp) == ("mine", 16, 2, "swiglu-3mat")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "must be one JSON object"),
        (SHAPE | {"wings": 2}, "unknown key 'wings'"),
        ({key: SHAPE[key] for key in SHAPE if key != "d_ff"}, "missing key 'd_ff'"),
        (SHAPE | {"layers": 0}, "layers=0 must be a whole number above 0"),
        (SHAPE | {"layers": 2.5}, "layers=2.5"),
        (SHAPE | {"heads": 5}, "heads=5 must divide d_model=64"),
        (SHAPE | {"kv_heads": 3}, "kv_heads=3 must divide heads=4"),
        (SHAPE | {"mlp": "relu"}, "mlp='relu' must be one of gelu-2mat"),
        (SHAPE | {"experts": 4}, "experts_per_token=0 must be 1 to experts=4"),
        (SHAPE | {"tied_embeddings": "no"}, "tied_embeddings true or false"),
    ],
)
def test_a_bad_file_names_field_value_and_rule(tmp_path, values, message):
    with pytest.raises(ValueError, match=rf"mine.json: .*{message}"):
        read_transformer(write(tmp_path, values))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="none.json: No such file"):
        read_transformer(tmp_path / "none.json")
