"""What the code of each `model_type` does that no key says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from autotune.meshes.architecture import MlpKind
from autotune.model_files import huggingface_experts as experts
from autotune.model_files import huggingface_said as said
from autotune.model_files import huggingface_windows as windows
from autotune.model_files.huggingface_said import ALIBI, SIDE_BY_SIDE
from autotune.model_files.keys import Keys


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
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Key of this family -> key of the others that says the same."""
    said: Callable[[Keys], Mapping[str, Any]] | None = None
    """What the keys of one file change of these fields; it may set keys, too."""
    output_bias: bool = False
    """A bias of the output projection."""
    parts: tuple[str, ...] = ()
    """What its code has beside all this, in words."""
    kind: str = "decoder"


_SILU = {"hidden_act": "silu"}
_GEMMA = {"hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True, "head_dim": 256}
_QWEN_MOE = {"hidden_act": "silu", "decoder_sparse_step": 1, "num_experts_per_tok": 8}

FAMILIES: dict[str, Family] = {
    "llama": Family(defaults=_SILU),
    "mistral": Family(defaults=_SILU, window=windows.everywhere),
    "ministral": Family(defaults=_SILU, window=windows.everywhere),
    "mixtral": Family(defaults=_SILU | {"num_local_experts": 8, "num_experts_per_tok": 2},
                      window=windows.everywhere, mlps=experts.mixtral),
    "granite": Family(defaults=_SILU),
    "smollm3": Family(defaults=_SILU | {"tie_word_embeddings": True}, window=windows.switched),
    "qwen2": Family(defaults=_SILU, bias="qkv", window=windows.switched),
    "qwen2_moe": Family(
        defaults=_QWEN_MOE | {"num_experts_per_tok": 4}, bias="qkv", window=windows.switched, mlps=experts.qwen_moe
    ),
    "qwen3": Family(defaults=_SILU | {"head_dim": 128}, qk_norm="head", window=windows.switched),
    "qwen3_moe": Family(defaults=_QWEN_MOE, qk_norm="head", window=windows.switched, mlps=experts.qwen_moe),
    "gemma": Family(
        defaults={"hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True, "head_dim": 256}
    ),
    "gemma2": Family(
        defaults=_GEMMA | {"sliding_window": 4096, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0},
        act="hidden_activation", norms=4, window=windows.in_turn(2),
    ),
    "gemma3_text": Family(
        defaults=_GEMMA | {"sliding_window": 4096, "vocab_size": 262208, "num_attention_heads": 8,
                           "num_key_value_heads": 4, "hidden_size": 2304, "intermediate_size": 9216,
                           "num_hidden_layers": 26},
        act="hidden_activation", norms=4, qk_norm="head", window=windows.in_turn(6, "sliding_window_pattern"),
    ),
    "deepseek_v2": Family(defaults=_SILU, latent=True, mlps=experts.deepseek),
    "deepseek_v3": Family(defaults=_SILU, latent=True, mlps=experts.deepseek),
    "glm4_moe": Family(defaults=_SILU, bias="qkv-if-said", qk_norm="head-if-said", mlps=experts.deepseek),
    "glm4": Family(defaults=_SILU | {"attention_bias": True}, bias="qkv-if-said", norms=4),
    "gpt_oss": Family(
        defaults=_SILU | {"sliding_window": 128, "head_dim": 64, "num_key_value_heads": 8}, bias="all", sinks=True,
        window=windows.in_turn(2), mlps=experts.gpt_oss,
    ),
    "llama4_text": Family(
        defaults=_SILU | {"attention_chunk_size": 8192, "head_dim": 128, "num_key_value_heads": 8,
                          "num_local_experts": 16, "num_experts_per_tok": 1, "intermediate_size_mlp": 16384},
        bias="none", window=windows.in_chunks, mlps=experts.llama4,
    ),
    "olmo": Family(defaults=_SILU, norm_scale=False),
    "olmo2": Family(defaults=_SILU, qk_norm="whole"),
    "olmo3": Family(defaults=_SILU | {"sliding_window": 4096}, qk_norm="whole", window=windows.in_turn(4)),
    "olmoe": Family(defaults=_SILU | {"num_experts": 64, "num_experts_per_tok": 8}, qk_norm="whole",
                    mlps=experts.mixtral),
    "phi3": Family(defaults=_SILU, window=windows.everywhere),
    "phimoe": Family(
        defaults=_SILU | {"num_local_experts": 16, "num_experts_per_tok": 2}, norm_offset=True,
        window=windows.everywhere, mlps=experts.mixtral, said=said.phimoe,
    ),
    "granitemoe": Family(defaults=_SILU, mlps=experts.mixtral),
    "minimax_m2": Family(defaults=_SILU | {"num_local_experts": 256, "num_experts_per_tok": 8},
                         said=said.normed("whole", True), mlps=experts.mixtral),
    "deepseek": Family(defaults=_SILU, mlps=experts.deepseek),
    "dots1": Family(defaults=_SILU, qk_norm="head", mlps=experts.deepseek),
    "ernie4_5": Family(defaults=_SILU | {"tie_word_embeddings": True}, said=said.biased("use_bias")),
    "ernie4_5_moe": Family(defaults=_SILU | {"tie_word_embeddings": True, "moe_k": 6, "moe_num_experts": 64},
                           said=said.biased("use_bias"), mlps=experts.ernie),
    "hunyuan_v1_dense": Family(defaults=_SILU, said=said.normed("head", True)),
    "hunyuan_v1_moe": Family(defaults=_SILU, said=said.normed("head", True), mlps=experts.hunyuan),
    "seed_oss": Family(defaults=_SILU, said=said.seed_oss),
    "exaone": Family(defaults={"hidden_act": "silu"},
                     renamed={"num_layers": "num_hidden_layers", "activation_function": "hidden_act"}),
    "exaone4": Family(defaults=_SILU, qk_norm="head", window=windows.by_pattern),
    "glm": Family(defaults=_SILU | {"head_dim": 128}, bias="qkv-if-said"),
    "chatglm": Family(
        defaults=_SILU, said=said.chatglm,
        renamed={"padded_vocab_size": "vocab_size", "num_layers": "num_hidden_layers", "kv_channels": "head_dim",
                 "ffn_hidden_size": "intermediate_size"},
    ),
    "internlm": Family(defaults=_SILU, said=said.biased("bias")),
    "internlm2": Family(defaults=_SILU, said=said.biased("bias")),
    "internlm3": Family(defaults=_SILU, said=said.biased("bias", "qkv_bias")),
    "baichuan": Family(defaults=_SILU),
    "Yi": Family(defaults=_SILU),
    "qwen": Family(defaults=_SILU, bias="qkv", said=said.qwen1, renamed={"kv_channels": "head_dim"}),
    "stablelm": Family(defaults=_SILU, norm_offset=True, said=said.stablelm),
    "cohere": Family(defaults=_SILU | {"tie_word_embeddings": True}, norms=1, said=said.normed("whole", False),
                     parts=("LayerNorm", SIDE_BY_SIDE)),
    "cohere2": Family(defaults=_SILU | {"tie_word_embeddings": True, "sliding_window": 4096}, norms=1,
                      window=windows.in_turn(4, "sliding_window_pattern"), parts=("LayerNorm", SIDE_BY_SIDE)),
    "nemotron": Family(defaults={"hidden_act": "relu2"}, gated=False, norm_offset=True),
    "arcee": Family(defaults={"hidden_act": "relu2"}, gated=False),
    "starcoder2": Family(defaults={"hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True}, gated=False,
                         norm_offset=True, window=windows.everywhere, said=said.starcoder2),
    "phi": Family(defaults={"hidden_act": "gelu_new"}, gated=False, norms=1, norm_offset=True, bias="all",
                  output_bias=True, said=said.phi, parts=(SIDE_BY_SIDE,)),
    "gptj": Family(
        defaults={"hidden_act": "gelu_new"}, gated=False, norms=1, norm_offset=True, bias="none", output_bias=True,
        said=said.four_times, parts=(SIDE_BY_SIDE,),
        renamed={"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
                 "n_inner": "intermediate_size", "activation_function": "hidden_act"},
    ),
    "gpt_neox": Family(defaults={"hidden_act": "gelu", "attention_bias": True}, gated=False, norm_offset=True,
                       said=said.gpt_neox),
    "gpt_neo": Family(
        defaults={"hidden_act": "gelu_new", "tie_word_embeddings": True}, gated=False, norm_offset=True, bias="out",
        said=said.gpt_neo, window=windows.everywhere,
        renamed={"num_layers": "num_hidden_layers", "num_heads": "num_attention_heads",
                 "activation_function": "hidden_act"},
    ),
    "falcon": Family(
        defaults={"hidden_act": "gelu", "tie_word_embeddings": True}, gated=False, norm_offset=True, said=said.falcon,
        renamed={"n_layer": "num_hidden_layers", "n_head": "num_attention_heads", "n_head_kv": "num_kv_heads",
                 "activation": "hidden_act"},
    ),
    "bloom": Family(
        defaults={"hidden_act": "gelu", "tie_word_embeddings": True}, gated=False, norm_offset=True, bias="all",
        said=said.bloom, parts=("an embedding norm", ALIBI),
        renamed={"n_embed": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
                 "n_inner": "intermediate_size"},
    ),
    "opt": Family(
        defaults={"hidden_act": "relu", "tie_word_embeddings": True}, gated=False, norm_offset=True, said=said.opt,
        renamed={"ffn_dim": "intermediate_size", "activation_function": "hidden_act"},
    ),
    "mpt": Family(
        defaults={"hidden_act": "gelu", "tie_word_embeddings": True}, gated=False, said=said.mpt,
        renamed={"d_model": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads"},
    ),
    "dbrx": Family(
        defaults=_SILU, said=said.dbrx, mlps=experts.dbrx, parts=("LayerNorm",),
        renamed={"d_model": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads"},
    ),
    "modernbert": Family(
        defaults={"hidden_act": "gelu", "tie_word_embeddings": True}, act="hidden_act", window=windows.everywhere,
        said=said.modernbert, kind="encoder", parts=("LayerNorm", "an embedding norm"),
        renamed={"hidden_activation": "hidden_act"},
    ),
}  # fmt: skip
"""`model_type` -> what its code does."""

SAME_AS = {"kimi_k2": "deepseek_v3", "gemma3": "gemma3_text", "llama4": "llama4_text", "qwen2_vl_text": "qwen2",
            "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3", "qwen3_vl_moe_text": "qwen3_moe",
            "glm4v_text": "glm4", "glm4v_moe_text": "glm4_moe", "qwen2_vl": "qwen2", "qwen2_5_vl": "qwen2",
            "codegen": "gptj", "RefinedWebModel": "falcon", "RefinedWeb": "falcon"}  # fmt: skip
"""A `model_type` that is another one's model."""

FAMILIES |= {name: FAMILIES[other] for name, other in SAME_AS.items()}
