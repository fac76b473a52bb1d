"""Keys of a Hugging Face `config.json` that go into no architecture: those without effect on cost, and those with one.

The names are those of transformers 4.57 (`configuration_*.py`) and of the published files.
"""

from __future__ import annotations

from typing import Any

NEUTRAL = {
    "the file, the library and the tokenizer": (
        "_name_or_path", "_attn_implementation_autoset", "architectures", "auto_map", "bos_token_id", "boi_token_index",
        "decoder_start_token_id", "eoi_token_index", "eos_token_id", "for_llm_compressor", "id2label",
        "image_token_id", "image_token_index", "is_decoder", "is_encoder_decoder", "label2id", "language",
        "mm_tokens_per_image", "model_type", "pad_token_id", "problem_type", "sep_token_id", "task_specific_params",
        "tokenizer_class", "transformers_version", "transformers_weights", "unk_token_id", "vision_end_token_id",
        "vision_start_token_id", "vision_token_id", "video_token_id", "video_token_index", "boi_token_id",
        "eoi_token_id", "spatial_merge_size", "vision_feature_layer", "multimodal_projector_bias",
        "projector_hidden_act", "ignore_index", "unsloth_fixed", "unsloth_version", "cls_token_id", "class_name",
        "image_seq_length", "vision_feature_select_strategy", "image_grid_pinpoints", "use_image_newline_parameter",
        "force_image_size", "downsample_ratio", "dynamic_image_size", "ps_version", "select_layer", "template",
        "use_thumbnail", "min_dynamic_patch", "max_dynamic_patch", "org_vocab_size", "text_config_dict", "sep_id",
        "pad_id", "eod_token_id", "im_start_id", "im_end_id", "im_newline_id", "text_start_id", "text_end_id",
        "image_token", "video_token", "output_projection", "mask_token_id", "_remove_final_layer_norm", "init_device",
        "tokenizer_name", "name_or_path", "logit_scale", "verbose", "onnx_safe", "is_causal",
    ),
    "the dtype of the checkpoint: the job says in which dtypes it trains": ("dtype", "torch_dtype"),
    "generation and inference": (
        "cache_implementation", "output_attentions", "output_hidden_states", "output_past", "prefix", "return_dict",
        "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj",
        "use_cache", "return_dict_in_generate", "top_k", "top_p", "temperature", "do_sample", "num_beams",
        "validate_runner_input", "use_cache_quantization", "use_cache_kernel", "softmax_in_fp32", "gen_kwargs",
    ),
    "the values that weights are drawn from": (
        "init_config", "init_std", "initializer_cutoff_factor", "initializer_factor", "initializer_range",
    ),
    "positions: rotary embeddings of other frequencies take the same time, and length is the job's": (
        "initial_context_length", "max_position_embeddings", "max_sequence_length", "n_ctx", "no_rope_layer_interval",
        "no_rope_layers", "original_max_position_embeddings", "partial_rotary_factor", "position_embedding_type",
        "rope_interleave", "rope_local_base_freq", "rope_parameters", "rope_pct", "rope_scaling", "rope_theta",
        "rope_traditional", "rope_type", "rotary_dim", "rotary_pct", "seq_length", "model_max_length", "use_mrope",
        "rotary", "rotary_emb_base", "rope_ratio", "max_seq_len", "use_dynamic_ntk", "use_logn_attn", "rope_3d",
        "global_rope_theta", "local_rope_theta", "freq_allocation", "compression_ratio", "original_rope",
    ),
    "numbers that a value is scaled, shifted or limited by": (
        "attention_multiplier", "attn_scale", "attn_temperature_tuning", "clip_qkv", "embedding_multiplier",
        "floor_scale", "layer_norm_eps", "layer_norm_epsilon", "logits_scaling", "norm_eps", "query_pre_attn_scalar",
        "reorder_and_upcast_attn", "residual_multiplier", "rms_norm_eps", "scale_attn_by_inverse_layer_idx",
        "scale_attn_weights", "scale_depth", "scale_emb", "swiglu_limit", "swiglu_alpha", "norm_epsilon",
        "layernorm_epsilon", "apply_query_key_layer_scaling", "apply_residual_connection_post_layernorm",
        "attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", "logit_cap_scale", "norm_type",
        "learned_pos_emb", "resid_scale", "norm_eps_mlp", "layer_norm_elementwise_affine",
    ),
    "how the router scores and balances": (
        "aux_loss_alpha", "ep_size", "moe_router_dtype", "n_group", "norm_topk_prob", "output_router_logits",
        "routed_scaling_factor", "router_aux_loss_coef", "router_jitter_noise", "scoring_func", "seq_aux",
        "topk_group", "topk_method", "router_scaling_factor",
    ),
    "how the reference code cuts, fuses and masks its own matmuls": (
        "pretraining_tp", "slow_but_exact", "masked_softmax_fusion", "bias_dropout_fusion", "skip_bias_add",
        "skip_bias_add_qkv", "use_flash_attn", "fp32_residual_connection", "interleaved_qkv",
        "attn_implementation", "use_flash_attention_2", "attention_type", "fused_qkv", "unpad_inputs",
    ),
    "windows that are switched off, or said again by layer_types": (
        "_sliding_window_pattern", "max_window_layers", "sliding_window", "sliding_window_pattern",
        "use_bidirectional_attention", "use_sliding_window",
    ),
    "biases and features that are switched off": (
        "add_cross_attention", "cross_attention_hidden_size", "tie_encoder_decoder", "pruned_heads", "is_composition",
        "chunk_size_feed_forward", "gradient_checkpointing",
    ),
}  # fmt: skip
"""Why keys change nothing in cost -> the keys."""

DROPOUTS = (
    "attention_dropout", "attention_probs_dropout_prob", "attn_pdrop", "classifier_dropout", "embd_pdrop",
    "embedding_dropout", "hidden_dropout", "hidden_dropout_prob", "resid_pdrop", "residual_dropout", "dropout",
)  # fmt: skip
"""Rates of dropout: nothing where they are 0."""

OFF_ONLY = (
    "add_cross_attention",
    "tie_encoder_decoder",
    "use_bidirectional_attention",
    "use_sliding_window",
    "use_mrope",
)
"""Keys that change nothing only while they are false."""

_NEUTRAL = frozenset(key for keys in NEUTRAL.values() for key in keys)


def neutral(key: str, value: Any) -> bool:
    """Whether a key is known to change nothing in cost."""
    if key in DROPOUTS or key == "num_nextn_predict_layers":
        return not value
    return key in _NEUTRAL and not (key in OFF_ONLY and value)


def costs(key: str, value: Any) -> str | None:
    """What a key that is not modelled may cost; None of all others."""
    if key in DROPOUTS and value:
        return f"dropout at a rate of {value}: random bits and a mask for each activation, some per cent of the step"
    if key in ("vision_config", "audio_config", "perceiver_config"):
        part = key.partition("_")[0]
        return f"only the text model is read; the {part} tower and its projector are not counted and not priced"
    if key == "quantization_config":
        return "the quantisation of the checkpoint; the price trains in the job's dtypes"
    if key == "num_nextn_predict_layers" and value:
        return f"multi-token prediction: {value} more layer(s) with a projection of 2 d_model and a second loss"
    if key == "use_bidirectional_attention" and value:
        return "attention goes both ways: twice the pairs of a causal mask"
    return None
