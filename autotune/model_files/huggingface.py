"""An architecture from a Hugging Face `config.json`.

A family (`model_type`) is one entry of `FAMILIES`: the defaults of transformers 4.57 for keys that the file leaves out,
and what its code does that no key says. Families whose price would be another model's are refused in one line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from autotune.meshes.architecture import Architecture, AttentionKind, LayerKind, MlpKind
from autotune.meshes.fields import did_you_mean
from autotune.model_files.huggingface_keys import costs, neutral
from autotune.model_files.keys import Keys
from autotune.model_files.read_model import DROPLESS, ReadModel

GATED = {"silu": "swiglu", "swish": "swiglu", "gelu": "geglu", "gelu_pytorch_tanh": "geglu", "gelu_new": "geglu"}
PLAIN = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu", "gelu_new": "gelu", "gelu_fast": "gelu", "relu": "relu",
         "silu": "silu"}  # fmt: skip
"""Activation by the library's name -> by ours, in an MLP with a gate and without."""

HEADS = ("ForCausalLM", "ForConditionalGeneration", "ForMaskedLM", "ForPreTraining", "LMHeadModel", "Model")
"""Endings of `architectures` whose head is the one that is counted: a language model's, tied or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What the code of one `model_type` does that its config does not say."""

    defaults: Mapping[str, Any]
    """Values of keys that a file may leave out."""
    act: str = "hidden_act"
    """The key that names the activation."""
    gated: bool = True
    qk_norm: str = "none"
    bias: str | None = None
    """Biases of attention; None: "all" where the file says `attention_bias`."""
    norms: int = 2
    norm_scale: bool = True
    norm_offset: bool = False
    window: Callable[[Keys, int], list[int | None]] | None = None
    """(keys, layers) -> window of each layer; None: all attention is global."""
    mlps: Callable[[Keys, int, str], list[MlpKind]] | None = None
    """(keys, layers, activation) -> MLP of each layer; None: dense, of `intermediate_size`."""
    latent: bool = False
    """Multi-head latent attention."""
    sinks: bool = False


def read_huggingface(values: Mapping[str, Any], where: str, name: str, asked: tuple[str, ...] = ()) -> ReadModel:
    """The model of a parsed `config.json`. `asked`: keys that were set by hand (`--set`).

    ValueError in one line names what is missing, wrong, or of another kind of model.
    """
    outer = Keys(values, where)
    text = values.get("text_config")
    if isinstance(text, Mapping):
        inherited = {key: values[key] for key in ("tie_word_embeddings",) if key in values}
        outer.used |= {"text_config", *inherited}
        _refuse(values, where, text_part=True)
        keys = Keys(inherited | dict(text), where)
    else:
        keys = outer
    _refuse(keys.values, where, text_part=keys is not outer)
    kind = keys.take("model_type", "") or values.get("model_type", "")
    build = BUILDERS.get(kind)
    if build is None and kind not in FAMILIES:
        known = ", ".join(sorted({*FAMILIES, *BUILDERS} - set(_SAME_AS)))
        close = did_you_mean(str(kind), {*FAMILIES, *BUILDERS})
        raise ValueError(f"{where}: model_type={kind!r} is no architecture that is known here; known: {known}{close}")
    try:
        architecture = build(keys, name) if build else _decoder(keys, name, FAMILIES[kind])
    except ValueError as error:
        told = str(error)
        raise ValueError(told if told.startswith(where) else f"{where}: {told}") from None
    heads = values.get("architectures")
    if isinstance(heads, list) and heads and architecture.vocab and not str(heads[0]).endswith(HEADS):
        outer.note("architectures", f"the head of a {heads[0]} is another; a language model's is counted and priced")
    for part in {id(keys): keys, id(outer): outer}.values():
        part.sort(neutral, costs, asked)
    notes = keys.not_modelled + (outer.not_modelled if outer is not keys else [])
    ignored = keys.ignored + (outer.ignored if outer is not keys else [])
    if any(layer.mlp.experts for layer in architecture.layers):
        notes.append(DROPLESS)
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
}


def _refuse(values: Mapping[str, Any], where: str, *, text_part: bool) -> None:
    """ValueError in one line for a model of another kind."""
    kind = values.get("model_type", "")
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
    for key, value in family.defaults.items():
        if keys.values.get(key) is None and value is not None:
            keys.values[key] = value
            keys.used.add(key)
    d_model, count = keys.whole("hidden_size"), keys.whole("num_hidden_layers")
    activation = _activation(keys, family.act, family.gated)
    keys.take("hidden_act", None)  # where `hidden_activation` says it, this older name is not read
    attention = _latent(keys) if family.latent else _grouped(keys, d_model, family)
    windows: list[int | None] = family.window(keys, count) if family.window else [None] * count
    if family.mlps:
        mlps = family.mlps(keys, count, activation)
    else:
        bias = keys.flag("mlp_bias", False)
        mlps = [MlpKind(activation=activation, width=keys.whole("intermediate_size"), bias=bias)] * count
    chunks = family.window is _chunks
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
        vocab=keys.whole("vocab_size"),
        layers=tuple(layers),
        tied_embeddings=keys.flag("tie_word_embeddings", False),
        norm_scale=family.norm_scale,
        norm_offset=family.norm_offset,
        logit_cap=bool(keys.take("final_logit_softcapping", None)),
    )


def _activation(keys: Keys, name: str, gated: bool) -> str:
    value = keys.take(name)
    if name == "hidden_act" and gated and keys.values.get("hidden_activation"):
        value = keys.take("hidden_activation")  # Gemma: the newer name wins
    known = GATED if gated else PLAIN
    if value not in known:
        close = did_you_mean(str(value), known)
        raise ValueError(f"{keys.where}: {name}={value!r} must be one of {', '.join(known)}{close}")
    return known[value]


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


# Windows.


def _types(keys: Keys, count: int, local: Callable[[int], bool], key: str = "sliding_window") -> list[int | None]:
    """Window of each layer: by `layer_types` where the file has them, else where `local(layer)` says so."""
    window = keys.whole(key, None)
    types = keys.texts("layer_types", count)
    if types is not None:
        for word in sorted(set(types) - {"full_attention", "sliding_attention", "chunked_attention"}):
            raise ValueError(f"{keys.where}: layer_types: {word!r} is no attention that is known here")
        local = lambda layer: types[layer] != "full_attention"  # noqa: E731
    if window is None:
        if types is not None and any(map(local, range(count))):
            raise ValueError(f"{keys.where}: layer_types names layers with a window, {key} is missing")
        return [None] * count
    return [window if local(layer) else None for layer in range(count)]


def _all(keys: Keys, count: int) -> list[int | None]:
    return _types(keys, count, lambda layer: True)


def _switched(keys: Keys, count: int) -> list[int | None]:
    """Qwen: windows only where `use_sliding_window`, from layer `max_window_layers` on."""
    if not keys.flag("use_sliding_window", False):
        keys.take("layer_types", None)
        keys.used -= {"sliding_window", "max_window_layers"}
        return [None] * count
    first = keys.whole("max_window_layers", 0, least=0)
    return _types(keys, count, lambda layer: layer >= first)


def _in_turn(every: int, key: str | None = None) -> Callable[[Keys, int], list[int | None]]:
    """One global layer behind `every` - 1 local ones; `key` says another number."""

    def windows(keys: Keys, count: int) -> list[int | None]:
        period = (keys.whole(key, None) if key else None) or every
        return _types(keys, count, lambda layer: (layer + 1) % period != 0)

    return windows


def _chunks(keys: Keys, count: int) -> list[int | None]:
    """Llama 4: attention in chunks in the layers with rotary positions, 3 of 4."""
    with_positions = keys.take("no_rope_layers", None) or None
    every = keys.whole("no_rope_layer_interval", 4)
    if with_positions is not None and len(with_positions) != count:
        raise ValueError(f"{keys.where}: no_rope_layers has {len(with_positions)} entries, num_hidden_layers={count}")

    def local(layer: int) -> bool:
        return bool(with_positions[layer]) if with_positions else (layer + 1) % every != 0

    return _types(keys, count, local, "attention_chunk_size")


# Experts.


def _mixtral(keys: Keys, count: int, activation: str) -> list[MlpKind]:
    experts = keys.whole("num_local_experts" if "num_local_experts" in keys.values else "num_experts")
    return [
        MlpKind(
            activation=activation,
            width=keys.whole("intermediate_size"),
            experts=experts,
            experts_per_token=keys.whole("num_experts_per_tok"),
        )
    ] * count


def _gpt_oss(keys: Keys, count: int, activation: str) -> list[MlpKind]:
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


def _qwen_moe(keys: Keys, count: int, activation: str) -> list[MlpKind]:
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


def _deepseek(keys: Keys, count: int, activation: str) -> list[MlpKind]:
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
        router_bias=keys.values.get("topk_method") == "noaux_tc" or keys.values.get("model_type") != "deepseek_v2",
    )
    first, step = keys.whole("first_k_dense_replace", 0, least=0), keys.whole("moe_layer_freq", 1)
    return [dense if layer < first or layer % step else experts for layer in range(count)]


def _llama4(keys: Keys, count: int, activation: str) -> list[MlpKind]:
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


_SILU = {"hidden_act": "silu"}
_GEMMA = {"hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True, "head_dim": 256}
_QWEN_MOE = {"hidden_act": "silu", "decoder_sparse_step": 1, "num_experts_per_tok": 8}

FAMILIES: dict[str, Family] = {
    "llama": Family(defaults=_SILU),
    "mistral": Family(defaults=_SILU, window=_all),
    "ministral": Family(defaults=_SILU, window=_all),
    "mixtral": Family(defaults=_SILU | {"num_local_experts": 8, "num_experts_per_tok": 2}, window=_all, mlps=_mixtral),
    "granite": Family(defaults=_SILU),
    "smollm3": Family(defaults=_SILU | {"tie_word_embeddings": True}, window=_switched),
    "qwen2": Family(defaults=_SILU, bias="qkv", window=_switched),
    "qwen2_moe": Family(
        defaults=_QWEN_MOE | {"num_experts_per_tok": 4}, bias="qkv", window=_switched, mlps=_qwen_moe
    ),
    "qwen3": Family(defaults=_SILU | {"head_dim": 128}, qk_norm="head", window=_switched),
    "qwen3_moe": Family(defaults=_QWEN_MOE, qk_norm="head", window=_switched, mlps=_qwen_moe),
    "gemma": Family(
        defaults={"hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True, "head_dim": 256}
    ),
    "gemma2": Family(
        defaults=_GEMMA | {"sliding_window": 4096, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0},
        act="hidden_activation", norms=4, window=_in_turn(2),
    ),
    "gemma3_text": Family(
        defaults=_GEMMA | {"sliding_window": 4096, "vocab_size": 262208, "num_attention_heads": 8,
                           "num_key_value_heads": 4, "hidden_size": 2304, "intermediate_size": 9216,
                           "num_hidden_layers": 26},
        act="hidden_activation", norms=4, qk_norm="head", window=_in_turn(6, "sliding_window_pattern"),
    ),
    "deepseek_v2": Family(defaults=_SILU, latent=True, mlps=_deepseek),
    "deepseek_v3": Family(defaults=_SILU, latent=True, mlps=_deepseek),
    "glm4_moe": Family(defaults=_SILU, bias="qkv-if-said", qk_norm="head-if-said", mlps=_deepseek),
    "glm4": Family(defaults=_SILU | {"attention_bias": True}, bias="qkv-if-said", norms=4),
    "gpt_oss": Family(
        defaults=_SILU | {"sliding_window": 128, "head_dim": 64, "num_key_value_heads": 8}, bias="all", sinks=True,
        window=_in_turn(2), mlps=_gpt_oss,
    ),
    "llama4_text": Family(
        defaults=_SILU | {"attention_chunk_size": 8192, "head_dim": 128, "num_key_value_heads": 8,
                          "num_local_experts": 16, "num_experts_per_tok": 1, "intermediate_size_mlp": 16384},
        bias="none", window=_chunks, mlps=_llama4,
    ),
    "olmo": Family(defaults=_SILU, norm_scale=False),
    "olmo2": Family(defaults=_SILU, qk_norm="whole"),
    "olmo3": Family(defaults=_SILU | {"sliding_window": 4096}, qk_norm="whole", window=_in_turn(4)),
    "olmoe": Family(defaults=_SILU | {"num_experts": 64, "num_experts_per_tok": 8}, qk_norm="whole", mlps=_mixtral),
    "phi3": Family(defaults=_SILU, window=_all),
}  # fmt: skip
"""`model_type` -> what its code does."""

_SAME_AS = {"kimi_k2": "deepseek_v3", "gemma3": "gemma3_text", "llama4": "llama4_text", "qwen2_vl_text": "qwen2",
            "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3", "qwen3_vl_moe_text": "qwen3_moe",
            "glm4v_text": "glm4", "glm4v_moe_text": "glm4_moe"}  # fmt: skip
FAMILIES |= {name: FAMILIES[other] for name, other in _SAME_AS.items()}


# Older ones.


def _gpt2(keys: Keys, name: str) -> Architecture:
    """Radford et al. 2019: learned positions, LayerNorm, biases everywhere, tied tables."""
    d_model, heads = keys.whole("n_embd", 768), keys.whole("n_head", 12)
    if d_model % heads:
        raise ValueError(f"{keys.where}: n_head={heads} must divide n_embd={d_model}")
    keys.values.setdefault("activation_function", "gelu_new")
    mlp = MlpKind(
        activation=_activation(keys, "activation_function", False),
        width=keys.whole("n_inner", 4 * d_model),
        bias=True,
    )
    attention = AttentionKind(heads=heads, kv_heads=heads, head_dim=d_model // heads, bias="all")
    return Architecture(
        name=name,
        d_model=d_model,
        vocab=keys.whole("vocab_size", 50257),
        layers=(LayerKind(attention=attention, mlp=mlp),) * keys.whole("n_layer", 12),
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
            activation=_activation(keys, "hidden_act", False),
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
        layers=(layer,) * keys.whole("num_hidden_layers", 12),
        kind="encoder",
        tied_embeddings=keys.flag("tie_word_embeddings", True),
        norm_offset=True,
        last_norm=False,
        position_rows=keys.whole("max_position_embeddings", 512),
        other_parameters=segments * d_model + 2 * d_model + d_model * (d_model + 1),
        other_parts=("segment embeddings", "an embedding norm", "a pooler"),
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
        layers=(layer,) * keys.whole("num_hidden_layers", 12),
        kind="encoder",
        tied_embeddings=True,
        norm_offset=True,
        position_rows=(size // patch) ** 2 + 1,
        other_parameters=d_model * (patch * patch * keys.whole("num_channels", 3) + 1) + d_model,
        other_parts=("a patch embedding", "a class token"),
    )


BUILDERS: dict[str, Callable[[Keys, str], Architecture]] = {
    "gpt2": _gpt2, "bert": _bert, "roberta": _bert, "xlm-roberta": _bert, "vit": _vit,
}  # fmt: skip
"""`model_type` -> architecture, of families that share nothing with `FAMILIES`."""
