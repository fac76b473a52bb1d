"""An architecture from a Hugging Face `config.json`.

A family (`model_type`) is one entry of `FAMILIES`: the defaults of transformers 4.57 for keys that the file leaves out,
and what its code does that no key says. Families whose price would be another model's are refused in one line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from autotune.meshes.architecture import Architecture, AttentionKind, LayerKind, MlpKind
from autotune.meshes.fields import did_you_mean, short
from autotune.model_files.huggingface_activation import activation_of
from autotune.model_files.huggingface_builders import BUILDERS
from autotune.model_files.huggingface_families import FAMILIES, SAME_AS, Family
from autotune.model_files.huggingface_keys import costs, neutral
from autotune.model_files.huggingface_said import SIDE_BY_SIDE
from autotune.model_files.huggingface_windows import in_chunks
from autotune.model_files.keys import Keys
from autotune.model_files.read_model import DROPS, ReadModel

TEXT_PARTS = ("text_config", "llm_config", "language_config")
"""Keys under which a multimodal config holds its text model."""

TEXT_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
              "vocab_size": 32000},
    "mistral": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
                "num_key_value_heads": 8, "vocab_size": 32000, "sliding_window": 4096},
    "gemma": {"hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28, "num_attention_heads": 16,
              "num_key_value_heads": 16, "vocab_size": 256000},
    "gemma2": {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
               "num_key_value_heads": 4, "vocab_size": 256000},
}  # fmt: skip
"""Sizes of transformers' classes, which the text part of a multimodal config leaves out where it has the same."""

HEADS = ("ForCausalLM", "ForConditionalGeneration", "ForMaskedLM", "ForPreTraining", "LMHeadModel", "Model")
"""Endings of `architectures` whose head is the one that is counted: a language model's, tied or not."""


def read_huggingface(values: Mapping[str, Any], where: str, name: str, asked: tuple[str, ...] = ()) -> ReadModel:
    """The model of a parsed `config.json`. `asked`: keys that were set by hand (`--set`).

    ValueError in one line names what is missing, wrong, or of another kind of model.
    """
    outer = Keys(values, where)
    part, text = next(
        ((name, values[name]) for name in TEXT_PARTS if isinstance(values.get(name), Mapping)), ("", None)
    )
    if text is not None:
        inherited = {key: values[key] for key in ("tie_word_embeddings",) if key in values}
        outer.used |= {part, *inherited}
        outer.ignored += [
            key for key in ("vocab_size", "hidden_size") if key in values and text.get(key) == values[key]
        ]
        outer.used |= set(outer.ignored)
        _refuse(values, where, text_part=True)
        keys = Keys(inherited | TEXT_DEFAULTS.get(str(text.get("model_type")), {}) | dict(text), where)
    else:
        keys = outer
    _refuse(keys.values, where, text_part=keys is not outer)
    kind = keys.take("model_type", "") or values.get("model_type", "")
    build = BUILDERS.get(kind)
    if build is None and kind not in FAMILIES:
        known = ", ".join(sorted({*FAMILIES, *BUILDERS} - set(SAME_AS)))
        close = did_you_mean(str(kind), {*FAMILIES, *BUILDERS})
        raise ValueError(
            f"{where}: model_type={short(kind)} is no architecture that is known here; where its layers are those of a "
            f"known one, say so: --set model_type=llama (keys that llama does not have are then named); "
            f"known: {known}{close}"
        )
    try:
        architecture = build(keys, name) if build else _decoder(keys, name, FAMILIES[kind])
    except ValueError as error:
        told = str(error)
        raise ValueError(told if told.startswith(where) else f"{where}: {told}") from None
    heads = values.get("architectures")
    if isinstance(heads, list) and heads and architecture.vocab and not str(heads[0]).endswith(HEADS):
        outer.note("architectures", f"the head of a {heads[0]} is another; a language model's is counted and priced")
    for some in {id(keys): keys, id(outer): outer}.values():
        some.sort(neutral, costs, asked)
    notes = keys.not_modelled + (outer.not_modelled if outer is not keys else [])
    ignored = keys.ignored + (outer.ignored if outer is not keys else [])
    if any(layer.mlp.experts for layer in architecture.layers):
        notes.append(DROPS)
    source = "Hugging Face config.json, text part" if keys is not outer else "Hugging Face config.json"
    return ReadModel(
        architecture=architecture,
        source=source,
        ignored=tuple(dict.fromkeys(ignored)),
        not_modelled=tuple(dict.fromkeys(notes)),
    )


# What is refused.

MAMBA = ("bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "mamba", "mamba2", "nemotron_h",
         "recurrent_gemma", "rwkv", "zamba", "zamba2")  # fmt: skip
DELTA_NET = ("kimi_linear", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next")
ENCODER_DECODER = ("bart", "blenderbot", "led", "longt5", "m2m_100", "marian", "mbart", "mt5", "opus", "pegasus",
                   "prophetnet", "seamless_m4t", "speecht5", "switch_transformers", "t5", "t5gemma", "umt5",
                   "whisper")  # fmt: skip
VISION = ("clip", "clip_vision_model", "dinov2", "siglip", "siglip2", "siglip_vision_model", "swin")
ONE_OF_A_KIND = {
    "mllama": "its cross-attention layers are not modelled",
    "gemma3n": "its per-layer embeddings and alternating updates are not modelled",
    "gemma3n_text": "its per-layer embeddings and alternating updates are not modelled",
    "deepseek_v32": "its sparse attention with an indexer is not modelled",
    "minimax": "its lightning attention is not modelled",
    "minimax_m1": "its lightning attention is not modelled",
    "minimax_text_01": "its lightning attention is not modelled",
}


def _refuse(values: Mapping[str, Any], where: str, *, text_part: bool) -> None:
    """ValueError in one line for a model of another kind."""
    kind = values.get("model_type", "")
    if not isinstance(kind, str):
        raise ValueError(f"{where}: model_type={short(kind)} must be a text")
    if kind in MAMBA or any(key in values for key in ("ssm_cfg", "mamba_d_state", "state_size", "mamba_num_heads")):
        raise ValueError(f"{where}: {kind}: state-space (Mamba) and recurrent layers are not modelled")
    if kind in DELTA_NET or any(key in values for key in ("linear_num_key_heads", "linear_attn_config")):
        raise ValueError(f"{where}: {kind}: gated delta net (linear attention) layers are not modelled")
    if kind in ENCODER_DECODER or values.get("is_encoder_decoder"):
        raise ValueError(f"{where}: {kind}: encoder-decoders are not modelled; a decoder or an encoder alone is")
    if kind in VISION:
        raise ValueError(f"{where}: {kind}: vision towers are not modelled")
    if kind in ONE_OF_A_KIND:
        raise ValueError(f"{where}: {kind}: {ONE_OF_A_KIND[kind]}")
    if values.get("cross_attention_layers") or values.get("add_cross_attention"):
        raise ValueError(f"{where}: {kind}: cross-attention layers are not modelled")
    types = set(values.get("layer_types") or ()) if isinstance(values.get("layer_types"), list) else set()
    if "linear_attention" in types:
        raise ValueError(f"{where}: {kind}: gated delta net (linear attention) layers are not modelled")
    if "mamba" in types:
        raise ValueError(f"{where}: {kind}: state-space (Mamba) and recurrent layers are not modelled")


# Decoders of today.


def _decoder(keys: Keys, name: str, family: Family) -> Architecture:
    """The stack that most families share: embedding, layers, last norm, output projection."""
    keys.rename(family.renamed)
    for key, value in family.defaults.items():
        if keys.values.get(key) is None and value is not None:
            keys.values[key] = value
            keys.used.add(key)
    if family.said:
        family = dataclasses.replace(family, **family.said(keys))
    d_model, count = keys.whole("hidden_size"), keys.layers("num_hidden_layers")
    activation = activation_of(keys, family.act, family.gated)
    keys.take("hidden_act", None)  # where `hidden_activation` says it, this older name is not read
    attention = _latent(keys) if family.latent else _grouped(keys, d_model, family)
    windows: list[int | None] = family.window(keys, count) if family.window else [None] * count
    if family.mlps:
        mlps = family.mlps(keys, count, activation)
    else:
        bias = keys.flag("mlp_bias", False)
        mlps = [MlpKind(activation=activation, width=keys.whole("intermediate_size"), bias=bias)] * count
    chunks = family.window is in_chunks
    vocab = keys.whole("vocab_size")
    if SIDE_BY_SIDE in family.parts:
        keys.not_modelled.append(
            f"attention and MLP stand side by side in a {keys.values.get('model_type')}: along tensor the price sums "
            "after each of them, where one sum a layer is enough"
        )
    layers = []
    for window, mlp in zip(windows, mlps, strict=True):
        kind = attention
        if window is not None:
            kind = dataclasses.replace(attention, window=window, chunked=chunks)
        if chunks and keys.flag("use_qk_norm", True) and window is not None:  # Llama 4: of its layers with positions
            kind = dataclasses.replace(kind, qk_norm="unscaled")
        layers.append(LayerKind(attention=kind, mlp=mlp, norms=family.norms))
    return Architecture(
        name=name,
        d_model=d_model,
        vocab=vocab,
        layers=tuple(layers),
        kind=family.kind,
        tied_embeddings=keys.flag("tie_word_embeddings", False),
        norm_scale=family.norm_scale,
        norm_offset=family.norm_offset,
        position_rows=keys.whole("position_rows", 0, least=0),
        other_parameters=keys.whole("other_parameters", 0, least=0) + (vocab if family.output_bias else 0),
        other_parts=family.parts + (("an output bias",) if family.output_bias else ()),
        logit_cap=bool(keys.take("final_logit_softcapping", None)),
    )


def _grouped(keys: Keys, d_model: int, family: Family) -> AttentionKind:
    """Multi-head or grouped-query attention."""
    heads = keys.whole("num_attention_heads")
    head_dim = keys.whole("head_dim", None)
    if head_dim is None:
        if d_model % heads:
            raise ValueError(f"{keys.where}: num_attention_heads={heads} must divide hidden_size={d_model} where "
                             "head_dim is not given")  # fmt: skip
        head_dim = d_model // heads
    given = keys.flag("attention_bias", False)
    bias = family.bias if family.bias is not None else "all"
    if family.bias is None and not given:
        bias = "none"
    if family.bias == "qkv-if-said":
        bias = "qkv" if given or keys.flag("qkv_bias", False) else "none"
    qk_norm = family.qk_norm
    if qk_norm == "head-if-said":
        qk_norm = "head" if keys.flag("use_qk_norm", False) else "none"
    return AttentionKind(
        heads=heads,
        kv_heads=keys.whole("num_key_value_heads", heads),
        head_dim=head_dim,
        qk_norm=qk_norm,
        bias=bias,
        sinks=family.sinks,
        soft_cap=bool(keys.take("attn_logit_softcapping", None)),
    )


def _latent(keys: Keys) -> AttentionKind:
    """Multi-head latent attention (DeepSeek)."""
    heads = keys.whole("num_attention_heads")
    keys.take("num_key_value_heads", None)  # every head has keys and values of its own, made of the latent
    if keys.flag("attention_bias", False):
        raise ValueError(f"{keys.where}: attention_bias=true with latent attention is not modelled")
    rope = keys.whole("qk_rope_head_dim")
    keys.take("head_dim", None)
    keys.take("qk_head_dim", None)
    return AttentionKind(
        heads=heads,
        kv_heads=heads,
        head_dim=keys.whole("qk_nope_head_dim") + rope,
        value_dim=keys.whole("v_head_dim"),
        kv_rank=keys.whole("kv_lora_rank"),
        query_rank=keys.whole("q_lora_rank", 0, least=0),
        rope_dim=rope,
    )
