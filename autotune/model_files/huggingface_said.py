"""What the keys of one file change of its family: (keys) -> fields of `Family`; keys that others have are set, too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from autotune.meshes.fields import short
from autotune.model_files.keys import MOST_LAYERS, Keys

SIDE_BY_SIDE = "attention and MLP side by side"
ALIBI = "position biases of attention (ALiBi)"


def _side_by_side(keys: Keys, key: str, default: bool) -> tuple[str, ...]:
    return (SIDE_BY_SIDE,) if keys.flag(key, default) else ()


def four_times(keys: Keys) -> Mapping[str, Any]:
    """The MLP is four times as wide as the stream where the file says no width."""
    keys.values["intermediate_size"] = keys.whole("intermediate_size", 4 * keys.whole("hidden_size"))
    keys.values["mlp_bias"] = True
    return {}


def gpt_neox(keys: Keys) -> Mapping[str, Any]:
    keys.values["mlp_bias"] = True
    return {"parts": _side_by_side(keys, "use_parallel_residual", True)}


def gpt_neo(keys: Keys) -> Mapping[str, Any]:
    """Local and global attention as `attention_types` lists them, [[kinds], times] a group."""
    four_times(keys)
    keys.values["position_rows"] = keys.whole("max_position_embeddings", 2048)
    groups, told = keys.take("attention_types", None), keys.take("attention_layers", None)
    if told is None:
        try:
            told = [kind for kinds, times in groups for _ in range(min(times, MOST_LAYERS)) for kind in kinds]
        except (TypeError, ValueError):
            raise ValueError(f"{keys.where}: attention_types must be a list of [[kinds], times]") from None
    if not isinstance(told, list) or not set(map(str, told)) <= {"global", "local"}:
        raise ValueError(f"{keys.where}: attention_layers must be a list of global and local")
    keys.values["layer_types"] = ["sliding_attention" if kind == "local" else "full_attention" for kind in told]
    keys.values["sliding_window"] = keys.whole("window_size", 256)
    return {}


def falcon(keys: Keys) -> Mapping[str, Any]:
    """Falcon: multi-query attention, or grouped queries in its newer form; attention and MLP side by side."""
    width = keys.whole("ffn_hidden_size", 4 * keys.whole("hidden_size"))
    keys.values["intermediate_size"] = width
    newer = keys.flag("new_decoder_architecture", False)
    heads, several = keys.whole("num_attention_heads"), keys.flag("multi_query", True)
    told = keys.whole("num_kv_heads", heads)
    keys.values["num_key_value_heads"] = told if newer else 1 if several else heads
    bias = keys.flag("bias", False)
    keys.values |= {"attention_bias": bias, "mlp_bias": bias}
    aside = keys.flag("parallel_attn", True) or newer
    norms = keys.whole("num_ln_in_parallel_attn", 2 if newer else 1) if aside else 2
    parts = ((SIDE_BY_SIDE,) if aside else ()) + ((ALIBI,) if keys.flag("alibi", False) else ())
    return {"norms": norms, "parts": parts}


def bloom(keys: Keys) -> Mapping[str, Any]:
    four_times(keys)
    keys.values["other_parameters"] = 2 * keys.whole("hidden_size")
    return {}


def opt(keys: Keys) -> Mapping[str, Any]:
    d_model = keys.whole("hidden_size")
    if keys.whole("word_embed_proj_dim", d_model) != d_model:
        raise ValueError(f"{keys.where}: word_embed_proj_dim unlike hidden_size={d_model} is not modelled")
    if not keys.flag("do_layer_norm_before", True):
        raise ValueError(f"{keys.where}: do_layer_norm_before=false is not modelled")
    bias = keys.flag("enable_bias", True)
    keys.values |= {"attention_bias": bias, "mlp_bias": bias}
    keys.values["position_rows"] = keys.whole("max_position_embeddings", 2048) + 2
    return {}


def mpt(keys: Keys) -> Mapping[str, Any]:
    d_model, told = keys.whole("hidden_size"), keys.take("attn_config", {})
    if not isinstance(told, Mapping):
        raise ValueError(f"{keys.where}: attn_config must be an object")
    if told.get("attn_type", "multihead_attention") != "multihead_attention":
        raise ValueError(f"{keys.where}: attn_config.attn_type={short(told['attn_type'])} is not modelled")
    if told.get("qk_ln"):
        raise ValueError(f"{keys.where}: attn_config.qk_ln=true is not modelled")
    keys.values["intermediate_size"] = d_model * keys.whole("expansion_ratio", 4)
    bias = not keys.flag("no_bias", True)
    keys.values |= {"attention_bias": bias, "mlp_bias": bias}
    alibi = told.get("alibi", True)
    if not alibi:
        keys.values["position_rows"] = keys.whole("max_seq_len", 2048)
    return {"norm_offset": bias, "parts": ("LayerNorm", *((ALIBI,) if alibi else ()))}


def dbrx(keys: Keys) -> Mapping[str, Any]:
    told = keys.take("attn_config", {})
    if not isinstance(told, Mapping):
        raise ValueError(f"{keys.where}: attn_config must be an object")
    keys.values["num_key_value_heads"] = told.get("kv_n_heads", 1)
    return {}


def stablelm(keys: Keys) -> Mapping[str, Any]:
    aside = _side_by_side(keys, "use_parallel_residual", False)
    normed = "whole" if keys.flag("qk_layernorm", False) else "none"
    bias = "qkv" if keys.flag("use_qkv_bias", False) else "none"
    return {"parts": aside, "norms": 1 if aside else 2, "qk_norm": normed, "bias": bias}


def phi(keys: Keys) -> Mapping[str, Any]:
    keys.values["mlp_bias"] = True
    if keys.flag("qk_layernorm", False):
        raise ValueError(f"{keys.where}: qk_layernorm=true is not modelled")
    return {}


def biased(*names: str) -> Callable[[Keys], Mapping[str, Any]]:
    """Biases of attention and MLP where one of these keys is true."""

    def said(keys: Keys) -> Mapping[str, Any]:
        found = [keys.flag(name, False) for name in names]
        keys.values |= {"attention_bias": any(found), "mlp_bias": any(found)}
        return {}

    return said


def phimoe(keys: Keys) -> Mapping[str, Any]:
    return {"output_bias": keys.flag("lm_head_bias", False)}


def normed(how: str, default: bool) -> Callable[[Keys], Mapping[str, Any]]:
    """Queries and keys are normalised where `use_qk_norm` says so."""
    return lambda keys: {"qk_norm": how if keys.flag("use_qk_norm", default) else "none"}


def starcoder2(keys: Keys) -> Mapping[str, Any]:
    bias = keys.flag("use_bias", True)
    keys.values |= {"attention_bias": bias, "mlp_bias": bias}
    return {}


def qwen1(keys: Keys) -> Mapping[str, Any]:
    """The first Qwen counts gate and up projection together in `intermediate_size`."""
    keys.values["intermediate_size"] = keys.whole("intermediate_size") // 2
    keys.take("no_bias", None)
    return {}


def chatglm(keys: Keys) -> Mapping[str, Any]:
    if keys.flag("multi_query_attention", False):
        keys.values["num_key_value_heads"] = keys.whole("multi_query_group_num", 1)
    if keys.flag("add_bias_linear", False):
        raise ValueError(f"{keys.where}: add_bias_linear=true is not modelled")
    return {
        "bias": "qkv" if keys.flag("add_qkv_bias", False) else "none",
        "norm_offset": not keys.flag("rmsnorm", True),
    }


def seed_oss(keys: Keys) -> Mapping[str, Any]:
    out = keys.flag("attention_out_bias", False)
    return {"bias": ("all" if out else "qkv") if keys.flag("attention_bias", True) else "none"}


def modernbert(keys: Keys) -> Mapping[str, Any]:
    """ModernBERT: every third layer attends to all, the first layer has no norm, and a norm follows the embedding."""
    every = keys.whole("global_attn_every_n_layers", 3)
    keys.values["sliding_window"] = keys.whole("local_attention", 128)
    if keys.values.get("layer_types") is None:
        keys.values["layer_types"] = [
            "sliding_attention" if layer % every else "full_attention"
            for layer in range(keys.layers("num_hidden_layers"))
        ]
    for key in ("mlp_bias", "norm_bias"):
        if keys.flag(key, False):
            raise ValueError(f"{keys.where}: {key}=true is not modelled")
    keys.note("head", "the head of its masked-language model (a projection and a norm) is not counted")
    return {}
