"""An architecture, and the run that goes with it, from a MaxText config: a model's yml, alone or over `base.yml`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from autotune.meshes.architecture import Architecture, AttentionKind, LayerKind, MlpKind
from autotune.meshes.fields import did_you_mean, short
from autotune.meshes.transformer import DROPLESS
from autotune.model_files.keys import Keys
from autotune.model_files.maxtext_keys import REFUSED, costs, is_off, neutral
from autotune.model_files.maxtext_run import run_of
from autotune.model_files.read_model import CAPACITY, DROPS, ReadModel

DEFAULTS: dict[str, Any] = {
    "decoder_block": "llama2", "global_parameter_scale": 1, "base_emb_dim": 2048, "base_num_query_heads": 16,
    "base_num_kv_heads": 16, "base_mlp_dim": 7168, "base_num_decoder_layers": 16, "head_dim": 128,
    "mlp_activations": ["silu", "linear"], "logits_via_embedding": False, "vocab_size": 32000, "num_experts": 1,
    "num_experts_per_tok": 1, "attention_type": "global",
}  # fmt: skip
"""Values of `base.yml` for keys that a model's yml leaves out."""

ACTIVATIONS = {("silu", "linear"): "swiglu", ("gelu", "linear"): "geglu", ("sigmoid", "linear"): "swiglu",
               ("gelu",): "gelu", ("relu",): "relu", ("silu",): "silu"}  # fmt: skip
"""`mlp_activations` -> ours. gpt-oss's gate is a sigmoid times its input, which is SiLU."""


def is_maxtext(values: Mapping[str, Any]) -> bool:
    """Whether a parsed yml is a MaxText config."""
    return any(key in values for key in ("decoder_block", "base_emb_dim", "model_name", "base_config"))


def read_maxtext(values: Mapping[str, Any], where: str, name: str, asked: tuple[str, ...] = ()) -> ReadModel:
    """The model of a parsed yml, base.yml's keys already under the model's. `asked`: keys set by hand (`--set`).

    ValueError in one line names what is missing, wrong, or of another kind of model.
    """
    keys = Keys(values, where)
    for key, feature in REFUSED.items():
        if key in values and not is_off(key, values[key]):
            raise ValueError(
                f"{where}: {key}={values[key]!r}: {feature} are not modelled"
                if feature.endswith("s")
                else f"{where}: {key}={values[key]!r}: {feature} is not modelled"
            )
    if keys.take("global_parameter_scale", 1) != 1:
        raise ValueError(
            f"{where}: global_parameter_scale={values['global_parameter_scale']!r} must be 1; set the base_* keys"
        )
    block = keys.take("decoder_block", "llama2")
    if not isinstance(block, str):
        raise ValueError(f"{where}: decoder_block={short(block)} must be a text")
    if block in GATED_DELTA_NET:
        raise ValueError(f"{where}: decoder_block={block!r}: gated delta net (linear attention) is not modelled")
    if block not in BLOCKS:
        close = did_you_mean(str(block), BLOCKS)
        raise ValueError(f"{where}: decoder_block={block!r} is not known here; known: {', '.join(BLOCKS)}{close}")
    try:
        architecture = _architecture(keys, name, BLOCKS[block])
    except ValueError as error:
        told = str(error)
        raise ValueError(told if told.startswith(where) else f"{where}: {told}") from None
    routed = any(layer.mlp.experts for layer in architecture.layers)
    run = run_of(keys, gated=any(layer.mlp.matrices == 3 for layer in architecture.layers), experts=routed)
    room = _capacity(keys)
    run |= room if routed else {}
    keys.sort(neutral, costs, asked)
    notes = keys.not_modelled + ([DROPS] if routed and CAPACITY not in run else [])
    return ReadModel(
        architecture=architecture,
        source="MaxText config",
        ignored=tuple(keys.ignored),
        not_modelled=tuple(dict.fromkeys(notes)),
        run=run,
    )


def _capacity(keys: Keys) -> dict[str, float | None]:
    """The room of an expert, where the file says it: 0 or less, with sorted tokens (`sparse_matmul`), is dropless."""
    value, ordered = keys.take(CAPACITY, None), keys.values.get("sparse_matmul") is not False
    if value is None:
        return {}
    if value == DROPLESS:
        return {CAPACITY: None}
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{keys.where}: {CAPACITY}={short(value)} must be a number or {DROPLESS}")
    if value > 0:
        return {CAPACITY: float(value)}
    return {CAPACITY: None} if ordered else {}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """What the code of one `decoder_block` does that no key says."""

    window: Callable[[int], bool] | None = None
    """Which layers have the window of `sliding_window_size`; None: none, unless `attention_type` says so."""
    chunks: bool = False
    qk_norm: str | None = None
    """Of `use_qk_norm`; "always-" in front: without that key, too."""
    norms: int = 2
    merged: int = 1
    """Layers of the model in one of `base_num_decoder_layers`."""
    norm_offset: bool = False
    bias: str = "qkv"
    """Of `attention_bias`; "always": all, without that key."""
    sinks: bool = False


def _every(period: int) -> Callable[[int], bool]:
    return lambda layer: (layer + 1) % period != 0


GATED_DELTA_NET = ("qwen3_next", "qwen3_5", "qwen3.5")

BLOCKS = {
    "llama2": Block(), "mistral": Block(), "mixtral": Block(), "gemma": Block(), "qwen2": Block(),
    "default": Block(), "deepseek": Block(),
    "qwen3": Block(qk_norm="head"), "qwen3_moe": Block(qk_norm="head"),
    "gemma2": Block(norms=4, merged=2, window=_every(2)),
    "gemma3": Block(norms=4, qk_norm="always-head", window=_every(6)),
    "gpt_oss": Block(window=_every(2), bias="all"),
    "llama4": Block(chunks=True, qk_norm="unscaled"),
    "olmo3": Block(qk_norm="whole", window=_every(4)),
    "gpt3": Block(norm_offset=True, bias="always"),
}  # fmt: skip
"""`decoder_block` -> what its code does."""


def _architecture(keys: Keys, name: str, block: Block) -> Architecture:
    d_model = keys.whole("base_emb_dim", DEFAULTS["base_emb_dim"])
    count = keys.layers("base_num_decoder_layers", DEFAULTS["base_num_decoder_layers"]) * block.merged
    activations = keys.take("mlp_activations", DEFAULTS["mlp_activations"])
    activation = ACTIVATIONS.get(tuple(activations) if isinstance(activations, list) else ())
    if activation is None:
        known = "; ".join(map(str, map(list, ACTIVATIONS)))
        raise ValueError(f"{keys.where}: mlp_activations={activations!r} must be one of {known}")
    attention = _attention(keys, block)
    kinds = _windows(keys, block, attention, count)
    layers = [
        LayerKind(attention=kind, mlp=mlp, norms=block.norms)
        for kind, mlp in zip(kinds, _mlps(keys, block, activation, count), strict=True)
    ]
    for key in ("use_post_attn_norm", "use_post_ffw_norm"):
        keys.take(key, False)
    return Architecture(
        name=name,
        d_model=d_model,
        vocab=keys.whole("vocab_size", DEFAULTS["vocab_size"]),
        layers=tuple(layers),
        tied_embeddings=keys.flag("logits_via_embedding", False),
        norm_offset=block.norm_offset,
        position_rows=max(keys.whole("trainable_position_size", 0, least=-1), 0),
        logit_cap=bool(keys.take("final_logits_soft_cap", 0)),
    )


def _attention(keys: Keys, block: Block) -> AttentionKind:
    heads = keys.whole("base_num_query_heads", DEFAULTS["base_num_query_heads"])
    kv_heads = keys.whole("base_num_kv_heads", DEFAULTS["base_num_kv_heads"])
    cap = bool(keys.take("attn_logits_soft_cap", 0))
    biased = keys.flag("attention_bias", False)
    bias = "all" if block.bias == "always" else block.bias if biased else "none"
    if keys.values.get("attention_type") == "mla":
        rope = keys.whole("qk_rope_head_dim", 64)
        keys.used |= {"head_dim", "use_qk_norm", "attention_sink"}
        return AttentionKind(
            heads=heads, kv_heads=heads, head_dim=keys.whole("qk_nope_head_dim", 128) + rope,
            value_dim=keys.whole("v_head_dim", 128), kv_rank=keys.whole("kv_lora_rank", 512),
            query_rank=keys.whole("q_lora_rank", 0, least=0), rope_dim=rope, bias=bias, soft_cap=cap,
        )  # fmt: skip
    normed = keys.flag("use_qk_norm", False)
    qk_norm = block.qk_norm or "head"
    if qk_norm.startswith("always-"):
        qk_norm, normed = qk_norm.removeprefix("always-"), True
    return AttentionKind(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=keys.whole("head_dim", DEFAULTS["head_dim"]),
        qk_norm=qk_norm if normed else "none",
        bias=bias,
        sinks=keys.flag("attention_sink", False),
        soft_cap=cap,
    )


def _windows(keys: Keys, block: Block, attention: AttentionKind, count: int) -> list[AttentionKind]:
    """Each layer's attention, with its window."""
    told = keys.take("attention_type", "global")
    if told not in ("global", "full", "mla", "local_sliding", "chunk"):
        raise ValueError(f"{keys.where}: attention_type={told!r} must be global, mla, local_sliding or chunk")
    kinds = [attention] * count
    if block.chunks:
        size = keys.whole("chunk_attn_window_size", 0, least=0)
        every = keys.whole("nope_layer_interval", 4, least=-1)
        plain = dataclasses.replace(attention, qk_norm="none")
        local = dataclasses.replace(attention, window=size, chunked=True) if size else attention
        return [local if every < 1 or (layer + 1) % every else plain for layer in range(count)]
    local_layers = block.window
    if local_layers is None and told in ("local_sliding", "chunk"):
        local_layers = lambda layer: True  # noqa: E731
    if local_layers is None:
        return kinds
    key = "chunk_attn_window_size" if told == "chunk" else "sliding_window_size"
    size = keys.whole(key, 0, least=0)
    if not size:
        raise ValueError(f"{keys.where}: {key} must be above 0: decoder_block or attention_type has local layers")
    local = dataclasses.replace(attention, window=size, chunked=told == "chunk")
    return [local if local_layers(layer) else attention for layer in range(count)]


def _mlps(keys: Keys, block: Block, activation: str, count: int) -> list[MlpKind]:
    """Each layer's MLP."""
    bias = keys.flag("mlp_bias", False) or block.bias == "always"
    width = keys.whole("base_mlp_dim", DEFAULTS["base_mlp_dim"])
    dense = MlpKind(activation=activation, width=width, bias=bias)
    experts = keys.whole("num_experts", 1)
    if experts == 1:
        return [dense] * count
    each = keys.whole("base_moe_mlp_dim", -1, least=-1)
    each = width if each < 1 else each
    routed = MlpKind(
        activation=activation,
        width=each,
        experts=experts,
        experts_per_token=keys.whole("num_experts_per_tok", 1),
        shared_width=each * keys.whole("shared_experts", 0, least=0),
        bias=bias,
        router_bias=keys.flag("routed_bias", False),
    )
    first = keys.whole("first_num_dense_layers", 0, least=0)
    step = keys.whole("interleave_moe_layer_step", 1)
    return [dense if layer < first or (layer + 1) % step else routed for layer in range(count)]
