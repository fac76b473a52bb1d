"""Architectures of families that share nothing with the decoders of today."""

from __future__ import annotations

from collections.abc import Callable

from autotune.meshes.architecture import Architecture, AttentionKind, LayerKind, MlpKind
from autotune.model_files.huggingface_activation import activation_of
from autotune.model_files.keys import Keys


def _gpt2(keys: Keys, name: str) -> Architecture:
    """Radford et al. 2019: learned positions, LayerNorm, biases everywhere, tied tables."""
    d_model, heads = keys.whole("n_embd", 768), keys.whole("n_head", 12)
    if d_model % heads:
        raise ValueError(f"{keys.where}: n_head={heads} must divide n_embd={d_model}")
    keys.values.setdefault("activation_function", "gelu_new")
    mlp = MlpKind(
        activation=activation_of(keys, "activation_function", False),
        width=keys.whole("n_inner", 4 * d_model),
        bias=True,
    )
    one = keys.values.get("model_type") == "gpt_bigcode" and keys.flag("multi_query", True)  # StarCoder
    attention = AttentionKind(heads=heads, kv_heads=1 if one else heads, head_dim=d_model // heads, bias="all")
    return Architecture(
        name=name,
        d_model=d_model,
        vocab=keys.whole("vocab_size", 50257),
        layers=(LayerKind(attention=attention, mlp=mlp),) * keys.layers("n_layer", 12),
        tied_embeddings=keys.flag("tie_word_embeddings", True),
        norm_offset=True,
        position_rows=keys.whole("n_positions", 1024),
    )


def _encoder_layer(keys: Keys, d_model: int, *, bias: str) -> LayerKind:
    heads = keys.whole("num_attention_heads", 12)
    if d_model % heads:
        raise ValueError(f"{keys.where}: num_attention_heads={heads} must divide hidden_size={d_model}")
    keys.values.setdefault("hidden_act", "gelu")
    return LayerKind(
        attention=AttentionKind(heads=heads, kv_heads=heads, head_dim=d_model // heads, bias=bias),
        mlp=MlpKind(
            activation=activation_of(keys, "hidden_act", False),
            width=keys.whole("intermediate_size", 3072),
            bias=True,
        ),
    )


def _bert(keys: Keys, name: str) -> Architecture:
    """Devlin et al. 2018: learned positions and segments, a norm behind the embedding, a pooler."""
    d_model = keys.whole("hidden_size", 768)
    layer = _encoder_layer(keys, d_model, bias="all")
    segments = keys.whole("type_vocab_size", 2, least=0)
    return Architecture(
        name=name,
        d_model=d_model,
        vocab=keys.whole("vocab_size", 30522),
        layers=(layer,) * keys.layers("num_hidden_layers", 12),
        kind="encoder",
        tied_embeddings=keys.flag("tie_word_embeddings", True),
        norm_offset=True,
        last_norm=False,
        position_rows=keys.whole("max_position_embeddings", 512),
        other_parameters=segments * d_model + 2 * d_model + d_model * (d_model + 1),
        other_parts=("segment embeddings", "an embedding norm", "a pooler"),
    )


def _distilbert(keys: Keys, name: str) -> Architecture:
    """Sanh et al. 2019: BERT with half the layers, without segments and pooler."""
    keys.rename({"dim": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads",
                 "hidden_dim": "intermediate_size", "activation": "hidden_act"})  # fmt: skip
    d_model = keys.whole("hidden_size", 768)
    return Architecture(
        name=name,
        d_model=d_model,
        vocab=keys.whole("vocab_size", 30522),
        layers=(_encoder_layer(keys, d_model, bias="all"),) * keys.layers("num_hidden_layers", 6),
        kind="encoder",
        tied_embeddings=keys.flag("tie_word_embeddings", True),
        norm_offset=True,
        last_norm=False,
        position_rows=keys.whole("max_position_embeddings", 512),
        other_parameters=2 * d_model,
        other_parts=("an embedding norm",),
    )


def _vit(keys: Keys, name: str) -> Architecture:
    """Dosovitskiy et al. 2020: patches in place of tokens; the classifier is not counted."""
    d_model = keys.whole("hidden_size", 768)
    layer = _encoder_layer(keys, d_model, bias="all" if keys.flag("qkv_bias", True) else "none")
    size, patch = keys.whole("image_size", 224), keys.whole("patch_size", 16)
    if size % patch:
        raise ValueError(f"{keys.where}: patch_size={patch} must divide image_size={size}")
    if "encoder_stride" in keys.values:
        keys.take("encoder_stride")
        keys.ignored.append("encoder_stride")
    keys.note("classifier", "the head over image classes is not counted")
    return Architecture(
        name=name,
        d_model=d_model,
        vocab=0,
        layers=(layer,) * keys.layers("num_hidden_layers", 12),
        kind="encoder",
        tied_embeddings=True,
        norm_offset=True,
        position_rows=(size // patch) ** 2 + 1,
        other_parameters=d_model * (patch * patch * keys.whole("num_channels", 3) + 1) + d_model,
        other_parts=("a patch embedding", "a class token"),
    )


BUILDERS: dict[str, Callable[[Keys, str], Architecture]] = {
    "gpt2": _gpt2, "gpt_bigcode": _gpt2, "distilbert": _distilbert,
    "bert": _bert, "roberta": _bert, "xlm-roberta": _bert, "vit": _vit,
}  # fmt: skip
"""`model_type` -> architecture, of families that share nothing with `FAMILIES`."""
