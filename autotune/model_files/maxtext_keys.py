"""Keys of a MaxText config that go into no architecture: those without effect on cost, and those with one.

The names are those of MaxText's `configs/base.yml`. A pattern stands for every key that it matches (`fnmatch`).
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

NEUTRAL = {
    "names, logs and metrics": (
        "base_config", "sharding_strategy",
        "run_name", "model_name", "override_*", "metrics_file", "gcs_metrics", "*wandb*", "save_config_to_gcs",
        "base_output_directory", "log_*", "*tensorboard*", "*goodput*", "monitor_*", "step_deviation_*", "*heartbeat*",
        "report_*", "enable_gcp_*", "record_internal_nn_metrics", "*prometheus*", "managed_mldiagnostics*",
        "jax_debug_log_modules", "debug_sharding", "*vertex*", "write_estimator_result", "constant_bound_config",
    ),
    "checkpoints": (
        "load_*", "*checkpoint*", "*lora_adapter*", "lora_input_adapters_path", "enable_orbax_v1",
        "mtc_data_parallelism", "save_quantized_params_path", "*_ckpt_*", "*checkpoint_period", "local_checkpoint_*",
        "multi_tier_*", "elastic_*", "enable_single_controller", "reuse_example_batch", "vllm_*",
    ),
    "data and tokenizer": (
        "dataset_*", "eval_*", "train_*", "grain_*", "hf_*", "olmo_*", "tokenize*", "tokenizer_*", "*chat_template*",
        "add_bos", "add_eos", "use_truncation", "max_corpus_chars", "expansion_factor_real_data", "num_epoch",
        "generate_padding_batch_*", "max_segments_per_seq", "data_shuffle_seed", "enable_data_shuffling",
        "colocated_python_*", "packing", "default_prompt", "target_eval_loss", "enable_rampup_batch_size",
        "per_device_batch_size_*", "global_rampup_samples", "enable_padding_causal_mask", "sft_*",
    ),
    "the run around the step": (
        "steps", "log_period", "max_inflight_computations", "jax_distributed_*", "skip_jax_distributed_system",
        "jax_cache_dir", "hardware", "internal_compile*", "compile_*", "compiled_trainstep_file", "dump_*",
        "profile*", "*profiler*", "hide_profiler_*", "skip_first_n_*", "tpu_num_*", "enable_tpu_profiling_*",
        "upload_all_*", "*xprof*", "abort_on_*", "max_checkify", "init_weights_seed", "enable_checkify",
        "skip_step_*", "custom_mesh_and_rule_for_eval", "logical_axis_rules_for_eval", "sharding_tolerance",
        "num_slices", "subslice_shape", "*_nnx*", "dcn_bandwidth_*", "training_objective", "block_diffusion_*",
        "distill_*", "check_vma", "use_sft", "enable_continuous_*", "trainable_parameters_mask",
    ),
    "learning rate and other numbers of the optimizer": (
        "learning_rate*", "lr_schedule_type", "wsd_*", "warmup_*", "adam_*", "adamw_*", "muon_*",
        "dense_init_scale", "z_loss_multiplier",
    ),
    "generation": (
        "max_prefill_predict_length", "prompt", "prefill_*", "autoregressive_*", "decode_*", "inference_*",
        "enable_model_warmup", "enable_llm_inference_pool", "multi_sampling", "return_log_prob", "stack_prefill_*",
        "generate_slice", "ar_cache_axis_order", "compute_axis_order", "reshape_q", "*chunked_prefill",
        "enable_prefix_caching", "prefix_caching_*", "model_call_mode", "quantize_kvcache", "kv_quant_*",
        "use_ragged_attention", "ragged_block_size", "mla_naive_kvcache",
    ),
    "positions: rotary embeddings of other frequencies take the same time": (
        "rope_*", "*_rope_*", "max_position_embeddings", "original_max_position_embeddings", "beta_fast", "beta_slow",
        "mscale", "partial_rotary_factor", "use_iota_embed", "use_untrainable_positional_embedding",
        "nope_layer_interval", "mrope_section", "use_mrope", "temperature_tuning", "position_id_per_seconds",
    ),
    "numbers that a value is scaled or limited by, and how the router scores": (
        "normalization_layer_epsilon", "normalize_embedding_logits", "mlp_activations_limit", "routed_*",
        "norm_topk_prob", "load_balance_loss_weight", "n_routing_groups", "topk_routing_group", "use_random_routing",
        "*_norm_with_scale", "mtp_loss_scaling_factor", "mtp_eval_target_module", "use_qk_clip", "qk_clip_threshold",
        "sinkhorn_iterations", "use_qk_norm_in_gdn", "scale_*",
    ),
    "blocks of kernels and schedules, which the reference model chooses by itself": (
        "sa_*", "local_sa_*", "wi_tile_*", "wo_tile_*", "*_splash*", "ragged_*", "use_custom_sort_vjp",
        "cost_estimate_*", "dq_reduction_steps", "use_max_logit_estimate", "merge_gating_gmm", "use_tokamax_gmm",
        "use_gmm_v2", "megablox", "sparse_matmul", "moe_*", "num_moe_*", "use_gather_mosaic_kernel", "use_ragged_sort",
        "use_ring_of_experts", "use_batch_split_schedule", "batch_split_factor", "fused_qkv", "fused_mlp",
        "use_sliced_mla_proj", "mla_qk_head_chunk_size", "causal_block_size", "attention", "ring_scan_unroll",
        "force_q_layout", "te_comm_gemm_overlap", "*mhc_pallas*", "cast_logits_to_fp32",
        "float32_weight_sum", "vocab_tiling_ag_once",
        "shard_exp_on_fsdp", "use_2d_fsdp_sharding", "*_two_stage_all_gather", "force_unroll",
        "param_scan_axis", "scan_pipeline_*", "scan_layers_per_stage", "set_remat_policy_on_*", "matmul_precision",
        "inhomogeneous_layer_cycle_interval", "pipeline_*",
        "context_parallel_load_balance", "context_parallel_reorder_strategy",
        "allow_split_physical_axes", "optimize_mesh_for_tpu_v6e", "custom_mesh", "shardy",
        "remove_size_one_mesh_axis_from_type", "shard_mode", "use_sequential_layers", "enable_mhc_lite",
        "num_communication_overlapping_steps", "communication_overlapping_alpha", "*jax_splash*",
    ),
    "the mesh's own names for the axes": (
        "mesh_axes", "logical_axis_rules", "data_sharding", "input_data_sharding_logical_axes", "context_sharding",
        "ulysses_context_sharding", "custom_mesh_and_rule",
    ),
    "parts that this file switches off": (
        "*_for_vit", "*_for_audio", "image_*", "video_*", "audio_*", "freeze_*", "max_num_images_per_example",
        "vision_output_length", "use_audio_in_video", "dtype_mm", "gdn_*", "indexer_*", "moba_*", "engram*",
        "diloco_*", "num_diloco_fragments", "enable_streaming_diloco", "weight_sparsity_*", "quant_cfg_path",
        "replicate_quant_scale", "use_qwix_quantization", "use_manual_quantization", "*_calibration_method",
        "quantization_local_shard_count", "dropout_rate", "remat_policy_for_vit", "vocab_size_per_layer_input",
        "o_groups", "compressed_*", "num_experts_per_tok", "first_num_hash_layers", "experimental_sa_*",
        "use_dpo", "video_max_grid_*", "q_lora_rank", "kv_lora_rank", "qk_*_head_dim",
        "v_head_dim", "base_moe_mlp_dim", "checkpoint_is_quantized", "sliding_window_size", "chunk_attn_window_size",
        "shared_experts", "first_num_dense_layers", "interleave_moe_layer_step",
    ),
    "arrays of the remat policy `custom`, recomputed": (
        "query_wa_proj", "kv_wa_proj", "mla_q", "mla_kv", "attention_out", "indexer_cutoff_threshold", "engram",
    ),
}  # fmt: skip
"""Why keys change nothing in cost -> patterns of the keys."""

OFF: tuple[Any, ...] = (False, None, 0, -1, "", "None", 0.0, -1.0, [], {}, "none", "default", "disabled")
"""Values that switch a feature off."""

REFUSED = {
    "engram_layers": "engram layers", "mhc_expansion_rate": "hyper-connections", "moba": "block attention (MoBA)",
    "hidden_size_per_layer_input": "per-layer embeddings", "num_kv_shared_layers": "layers that share keys and values",
    "use_double_wide_mlp": "double-wide MLPs", "share_kv_projections": "shared key and value projections",
    "use_indexer": "sparse attention with an indexer", "compress_ratios": "compressed attention",
    "o_lora_rank": "a low-rank output projection", "global_head_dim": "global layers with heads of their own",
    "global_num_kv_heads": "global layers with heads of their own",
    "attention_output_dim": "a narrower attention output",
    "moe_expert_input_dim": "experts of a narrower input", "enable_diloco": "DiLoCo", "use_dpo": "DPO",
}  # fmt: skip
"""Key -> the feature that makes it another model's price, where the key switches it on."""

COSTS = {
    "mtp_num_layers": "multi-token prediction: as many more layers, and a second loss",
    "quantization": "matmuls quantised in another way than all operands to 8 bits; the price is of the compute dtype",
    "float32_qk_product": "float32 attention scores: slower attention",
    "float32_logits": "float32 attention scores: slower attention",
    "logits_dot_in_fp32": "float32 logits: a slower output projection and twice the bytes of logits",
    "float32_gate_logits": "a float32 router",
    "activations_in_float32": "float32 activations: twice the bytes between the matmuls",
    "parameter_memory_host_offload": "weights in host memory: less device memory, and transfers in each layer",
    "use_multimodal": "only the text model is read; the vision tower is not counted and not priced",
    "use_audio": "only the text model is read; the audio tower is not counted and not priced",
    "skip_step_on_spikes": "a copy of the state where a step is skipped",
    "final_logits_soft_cap": "a tanh over the logits",
}  # fmt: skip
"""Key -> what it may cost where it is switched on, and no price has it."""

NEUTRAL_ON = {"mhc_expansion_rate": 1}
"""Keys whose value of "off" is another number."""

_PATTERNS = tuple(pattern for patterns in NEUTRAL.values() for pattern in patterns)


def is_off(key: str, value: Any) -> bool:
    """Whether a value switches the feature of its key off."""
    return value == NEUTRAL_ON[key] if key in NEUTRAL_ON else value in OFF


def neutral(key: str, value: Any) -> bool:
    """Whether a key is known to change nothing in cost."""
    if key in COSTS or key in REFUSED:
        return is_off(key, value)
    return any(fnmatchcase(key, pattern) for pattern in _PATTERNS)


def costs(key: str, value: Any) -> str | None:
    """What a key that is not modelled may cost; None of all others."""
    if key == "vision_encoder_block" and not is_off(key, value):
        return "only the text model is read; the vision tower is not counted and not priced"
    return COSTS[key] if key in COSTS and not is_off(key, value) else None
