"""The MLP of each layer of Hugging Face models with experts: (keys, layers, activation) -> one kind a layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autotune.meshes.architecture import MlpKind
from autotune.model_files.keys import REQUIRED, Keys


def mixtral(keys: Keys, count: int, activation: str) -> list[MlpKind]:
    experts = keys.whole("num_local_experts" if "num_local_experts" in keys.values else "num_experts")
    return [
        MlpKind(
            activation=activation,
            width=keys.whole("intermediate_size"),
            experts=experts,
            experts_per_token=keys.whole("num_experts_per_tok"),
        )
    ] * count


def gpt_oss(keys: Keys, count: int, activation: str) -> list[MlpKind]:
    again = keys.take("experts_per_token", None)
    per_token = keys.whole("num_experts_per_tok", again)
    return [
        MlpKind(
            activation=activation,
            width=keys.whole("intermediate_size"),
            experts=keys.whole("num_local_experts"),
            experts_per_token=per_token,
            bias=True,
            router_bias=True,
        )
    ] * count


def qwen_moe(keys: Keys, count: int, activation: str) -> list[MlpKind]:
    """Qwen 2 and 3 MoE: experts in every `decoder_sparse_step`-th layer but `mlp_only_layers`."""
    shared = keys.whole("shared_expert_intermediate_size", 0, least=0)
    experts = MlpKind(
        activation=activation,
        width=keys.whole("moe_intermediate_size"),
        experts=keys.whole("num_experts"),
        experts_per_token=keys.whole("num_experts_per_tok"),
        shared_width=shared,
        shared_gate=bool(shared),
    )
    dense = MlpKind(activation=activation, width=keys.whole("intermediate_size"))
    step, only = keys.whole("decoder_sparse_step", 1), keys.take("mlp_only_layers", [])
    if not isinstance(only, list):
        raise ValueError(f"{keys.where}: mlp_only_layers={only!r} must be a list of layers")
    return [dense if layer in only or (layer + 1) % step else experts for layer in range(count)]


def deepseek(keys: Keys, count: int, activation: str) -> list[MlpKind]:
    """DeepSeek and GLM 4.5: dense layers first, then experts with shared ones beside them."""
    width = keys.whole("moe_intermediate_size")
    dense = MlpKind(activation=activation, width=keys.whole("intermediate_size"))
    if not keys.whole("n_routed_experts", 0, least=0):
        return [dense] * count
    experts = MlpKind(
        activation=activation,
        width=width,
        experts=keys.whole("n_routed_experts"),
        experts_per_token=keys.whole("num_experts_per_tok"),
        shared_width=width * keys.whole("n_shared_experts", 0, least=0),
        router_bias=keys.values.get("topk_method") == "noaux_tc"
        or keys.values.get("model_type") not in ("deepseek", "deepseek_v2"),
    )
    first, step = keys.whole("first_k_dense_replace", 0, least=0), keys.whole("moe_layer_freq", 1)
    return [dense if layer < first or layer % step else experts for layer in range(count)]


def llama4(keys: Keys, count: int, activation: str) -> list[MlpKind]:
    """Llama 4: experts with one shared expert of their width in every `interleave_moe_layer_step`-th layer."""
    width = keys.whole("intermediate_size")
    experts = MlpKind(
        activation=activation,
        width=width,
        experts=keys.whole("num_local_experts"),
        experts_per_token=keys.whole("num_experts_per_tok"),
        shared_width=width,
    )
    dense = MlpKind(activation=activation, width=keys.whole("intermediate_size_mlp"))
    step, named = keys.whole("interleave_moe_layer_step", 1), keys.take("moe_layers", None)
    if named is not None and not isinstance(named, list):
        raise ValueError(f"{keys.where}: moe_layers={named!r} must be a list of layers")
    routed = set(named) if named is not None else {layer for layer in range(count) if (layer + 1) % step == 0}
    return [experts if layer in routed else dense for layer in range(count)]


def ernie(keys: Keys, count: int, activation: str) -> list[MlpKind]:
    """ERNIE 4.5: experts in every `moe_layer_interval`-th layer from `moe_layer_start_index` to the end index."""
    bias = keys.flag("mlp_bias", False)
    each = keys.whole("moe_intermediate_size")
    experts = MlpKind(
        activation=activation,
        width=each,
        experts=keys.whole("moe_num_experts"),
        experts_per_token=keys.whole("moe_k"),
        shared_width=each * keys.whole("moe_num_shared_experts", 0, least=0),
        bias=bias,
        router_bias=True,
    )
    dense = MlpKind(activation=activation, width=keys.whole("intermediate_size"), bias=bias)
    first, step = keys.whole("moe_layer_start_index", 0, least=0), keys.whole("moe_layer_interval", 1)
    last = keys.whole("moe_layer_end_index", -1, least=-1)
    last = count - 1 if last == -1 else last
    return [experts if first <= layer <= last and (layer + 1) % step == 0 else dense for layer in range(count)]


def hunyuan(keys: Keys, count: int, activation: str) -> list[MlpKind]:
    """Hunyuan: experts in every layer; its lists of one number a layer must say one number."""

    def one(name: str, default: Any = REQUIRED, least: int = 1) -> int:
        value = keys.values.get(name)
        if isinstance(value, list):
            if len(set(map(str, value))) != 1:
                raise ValueError(f"{keys.where}: {name}: layers with different experts are not modelled")
            keys.values[name] = value[0]
        return keys.whole(name, default, least=least)

    each = one("moe_intermediate_size", keys.whole("intermediate_size"))
    return [
        MlpKind(
            activation=activation,
            width=each,
            experts=one("num_experts"),
            experts_per_token=one("moe_topk", 1),
            shared_width=each * one("num_shared_expert", 1, 0),
        )
    ] * count


def dbrx(keys: Keys, count: int, activation: str) -> list[MlpKind]:
    told = keys.take("ffn_config")
    if not isinstance(told, Mapping):
        raise ValueError(f"{keys.where}: ffn_config must be an object")
    inside = Keys(told, keys.where)
    return [
        MlpKind(
            activation=activation,
            width=inside.whole("ffn_hidden_size"),
            experts=inside.whole("moe_num_experts"),
            experts_per_token=inside.whole("moe_top_k"),
        )
    ] * count
