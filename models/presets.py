"""Shapes by name. JAX-free; parameter counts are checked against the published ones in tests/models/test_presets.py."""

from __future__ import annotations

from autotune.meshes.transformer import TransformerShape


def _llama(name: str, **sizes) -> TransformerShape:
    """Llama 3 family: head_dim 128 unless said, SwiGLU, grouped-query attention, vocabulary of 128256."""
    return TransformerShape(name=name, **{"kv_heads": 8, "head_dim": 128, "vocab": 128256, **sizes})


_SHAPES = (
    # For tests: small enough that compile time is all there is.
    TransformerShape(name="tiny", layers=2, d_model=64, heads=4, kv_heads=2, head_dim=16, d_ff=128, vocab=256),
    TransformerShape(
        name="tiny-moe", layers=2, d_model=64, heads=4, kv_heads=2, head_dim=16, d_ff=64, vocab=256,
        experts=8, experts_per_token=2, shared_experts=1,
    ),
    TransformerShape(
        name="tiny-encoder", layers=2, d_model=64, heads=4, kv_heads=4, head_dim=16, d_ff=128, vocab=256,
        mlp="gelu-2mat", kind="encoder",
    ),
    # For measuring on simulated CPU devices: many parameters for few tokens, so that communication shows.
    TransformerShape(name="small", layers=4, d_model=512, heads=8, kv_heads=8, head_dim=64, d_ff=1024, vocab=1024),
    # Radford et al. 2019; learned positions are replaced by rotary ones and biases left out.
    TransformerShape(
        name="gpt2-124m", layers=12, d_model=768, heads=12, kv_heads=12, head_dim=64, d_ff=3072, vocab=50257,
        mlp="gelu-2mat", tied_embeddings=True,
    ),
    # Grattafiori et al. 2024 (arXiv 2407.21783), table 3; the 1B: meta-llama/Llama-3.2-1B config.json.
    _llama("llama3-1b", layers=16, d_model=2048, heads=32, head_dim=64, d_ff=8192, tied_embeddings=True),
    _llama("llama3-8b", layers=32, d_model=4096, heads=32, d_ff=14336),
    _llama("llama3-70b", layers=80, d_model=8192, heads=64, d_ff=28672),
    _llama("llama3-405b", layers=126, d_model=16384, heads=128, d_ff=53248),
    # Jiang et al. 2024 (arXiv 2401.04088), table 1.
    TransformerShape(
        name="mixtral-8x7b", layers=32, d_model=4096, heads=32, kv_heads=8, head_dim=128, d_ff=14336, vocab=32000,
        experts=8, experts_per_token=2,
    ),
    # Dai et al. 2024 (arXiv 2401.06066), table 2: 64 routed and 2 shared experts, 6 of the routed a token. The paper's
    # first layer is dense; here all are alike.
    TransformerShape(
        name="deepseek-moe-16b", layers=28, d_model=2048, heads=16, kv_heads=16, head_dim=128, d_ff=1408, vocab=102400,
        experts=64, experts_per_token=6, shared_experts=2,
    ),
    # Devlin et al. 2018 (arXiv 1810.04805); positions, biases and segment embeddings as in gpt2-124m.
    TransformerShape(
        name="bert-large", layers=24, d_model=1024, heads=16, kv_heads=16, head_dim=64, d_ff=4096, vocab=30522,
        mlp="gelu-2mat", kind="encoder", tied_embeddings=True,
    ),
)  # fmt: skip

PRESETS: dict[str, TransformerShape] = {shape.name: shape for shape in _SHAPES}
"""Name -> shape."""
