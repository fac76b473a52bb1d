"""The training stacks of published measurements, as assumptions of the closed form. Every value with its source.

Bytes of traffic are counted from the kernels that each code base runs (r: read, w: written, per 2-byte element).
Sources: Megatron-LM megatron/model/transformer.py and fused_kernels (2021 to 2023); Korthikanti et al. 2022 (arXiv
2205.05198) for saved activations; Aleph-Alpha/scaling (the code of the layout sweep, src/scaling/core/nn); Alpa
(OSDI 2022). Nothing here is fitted to the rows that are judged by it.
"""

from __future__ import annotations

import dataclasses

from autotune.price.assumptions import XLA_GPU, XLA_TPU, Assumptions, Saved, State, Traffic

TORCH_BYTES_IN_USE = 1343.0 * 2**20
"""What a PyTorch process holds before its first array: its CUDA kernels (Hugging Face transformers, "Methods and tools
for efficient training on a single GPU")."""

NCCL_GROUP_BYTES = (544.0 * 2**20, 688.0 * 2**20)
"""A communicator of (two, more) A100s with NVLink after its first all-reduce (NVIDIA/nccl issue 964: measured)."""

SYNCHRONOUS_TRANSFER = 0.25e-3
"""Megatron's p2p_communication ends each exchange with a device synchronisation, after which the host must queue work
anew. Qi et al. 2024 (appendix, quoted from memory) profile 0.38 to 0.60 ms for 10 to 28 MB: about this much beside the
bytes."""

MEGATRON_TRAFFIC = Traffic(
    # two LayerNorms r2 w2; two bias-dropout-adds r2 r2 w2 and a 1-byte mask
    # backward: LayerNorm r2 r2 w2 and r4 for its own weights; dropout r2 r1 w2; residual sums r4 w2; bias sums r2
    stream=(22.0, 46.0),
    # bias r2 w2, split into contiguous q, k, v r2 w2, and the context's transposition (a third of the elements) r2 w2
    heads=(9.3, 8.0),
    hidden=(4.0, 8.0),  # bias-GELU r2 w2; backward r2 r2 w2, bias sum r2
    gate=(2.0, 4.0),  # fused with the activation: one more operand read, two gradients written
    scores=(9.0, 11.0),  # fused softmax r2 w2, dropout r2 w2 w1; backward r2 r1 w2 and r2 r2 w2
    # to float32 r2 w4, maximum r4, subtract r4 w4, exponential r4 w4, sum r4, divide r4 w4;
    # backward r4 w4, to half r4 w2
    logits=(38.0, 14.0),
    kernels=(14.0, 20.0),
    saving=0.0,
)

MEGATRON_SAVED = Saved(
    # Korthikanti et al., section 4.1: s b h (10 + 24/t + 5 a s / (h t)), of which 2 are the layer's input
    stream=4.0, whole=4.0, heads=2.0, context=2.0, hidden=2.0, gate=0.0, scores=5.0,
    logits=14.0,  # half, float32, softmax in place of it, and the gradient in float32 before it is halved
    held_logits=0.0, statistics=0.0, working=4.0,
    # the gradient of what dropout passes on, and of the probabilities; the softmax kernel works in place
    scores_working=4.0,
)  # fmt: skip

MEGATRON_2022 = Assumptions(
    name="megatron-2022",
    flash=False,
    reruns_kernel=False,
    flash_efficiency=(1.0, 1.0),
    flash_matmuls=(2.0, 5.0),
    flash_tile=0,
    flash_head_dim=None,
    skips_masked=False,
    fused_context=("gather", "ring"),
    fused_qkv=True,
    gathers_logits=False,
    reduces_each=False,
    reruns_head=False,
    traffic=MEGATRON_TRAFFIC,
    saved=MEGATRON_SAVED,
    state=State(
        weights=2.0, gradients=4.0, optimizer=12.0, compute=2.0, reduced=4.0,
        # megatron/optimizer: unscaling and its check r4 w4, norm r4, clipping r4 w4, Adam r16 w12, master to half
        # r4 w2; the gradient buffer is set to zero, w4
        update_traffic=58.0,
        casts=False,
        # weight gradients are added into float32 buffers by the matmul's epilogue (gradient_accumulation_fusion): r4 w4
        accumulate_traffic=8.0,
        reduce_traffic=8.0,  # divided by the replicas in place, r4 w4
    ),
    hidden_share={},
    hidden_most={},
    hidden_outer={},
    scatter_hides="always",
    least_shard=0,
    sums_over_slice=False,
    partitions_embedding=False,
    transfer_hidden=0.0,
    transfer_wait=SYNCHRONOUS_TRANSFER,
    gradients_per_pass=False,
    sums_tables_once=False,
    head_everywhere=False,
    pipeline_by_hand=False,
    lighter_ends=0,
    keeps_sent=False,  # schedules.py: deallocate_output_tensor
    scatter_transfers=True,  # Narayanan et al. 2021, section 4.1
    gathers_again=True,
    keeps_gathered=False,
    whole_layers=2.0,
    weight_pieces=1,
    piece_seconds=0.0,
    gathers_rerun=False,
    reruns_unread=True,
    shards_zero_weights=False,
    zero1_scatters=True,
    gradients_from_start=True,
    sums_beside=False,
    eager=True,
    regather_hidden=1.0,  # Korthikanti et al., section 4.2.2: overlapped with the gradient of the weights
    zero_bubble="zero-bubble-1p",
    fixed_bytes=TORCH_BYTES_IN_USE,
    group_bytes=NCCL_GROUP_BYTES,
    allocator=1.0,
)  # fmt: skip

MEGATRON_2021 = dataclasses.replace(
    MEGATRON_2022,
    name="megatron-2021",
    # PyTorch 1.8's fuser leaves dropout out (its autodiff calls _fused_dropout), so bias r2 w2, dropout r2 w2 w1 and
    # addition r4 w2 are kernels of their own
    traffic=dataclasses.replace(MEGATRON_TRAFFIC, stream=(38.0, 46.0)),
    # half-precision gradients: autograd adds the new one to the old, r2 r2 w2; the optimizer copies them to float32,
    # r2 w4, instead of keeping a buffer; the reduction flattens, divides and copies back, r2 w2 each
    state=dataclasses.replace(
        MEGATRON_2022.state,
        gradients=2.0,
        reduced=2.0,
        update_traffic=60.0,
        accumulate_traffic=6.0,
        reduce_traffic=12.0,
    ),
)

ZERO_BUBBLE = dataclasses.replace(MEGATRON_2022, name="megatron-zero-bubble", lighter_ends=0, scatter_transfers=False)

MEGATRON_CORE = dataclasses.replace(
    MEGATRON_2022,
    name="megatron-core",
    flash=True,
    # cuDNN 9 and FlashAttention-3 on H100, causal, head dim 128: 500 to 650 and 400 to 550 of 989 TFLOP/s (Shah et al.
    # 2024, arXiv 2407.08608, figures 5 and 6, read off)
    flash_efficiency=(0.55, 0.45),
    skips_masked=True,
    fused_context=("gather", "ring"),
    saved=dataclasses.replace(MEGATRON_SAVED, scores=0.0, statistics=4.0),
)

DEEPSPEED_ZERO3 = dataclasses.replace(
    MEGATRON_2021,
    name="deepspeed-zero3",
    # DeepSpeed 0.3, zero/stage3.py and partition_parameters.py. fetch_sub_module ends in torch.cuda.synchronize(), and
    # reductions run on the stream of the computation (overlap_comm is off unless asked for): taken as hiding nothing,
    # though one matrix is fetched ahead. Taken up after all hidden was seen to be far too fast.
    hidden_share={},
    weight_pieces=4,  # each matrix by itself; biases stay whole (persistence_threshold)
    # lists of one part a rank, which PyTorch copies one by one; small kernels follow each other every 3.8 us (NVIDIA
    # developer blog, Getting Started with CUDA Graphs)
    piece_seconds=3.8e-6,
    gathers_rerun=True,  # fetched before a module's forward pass, the second one too, and before its backward pass
    gradients_per_pass=True,
    sums_tables_once=False,
)

ALEPH_RMS = Assumptions(
    name="aleph-flash2-rms",
    flash=True,
    reruns_kernel=False,
    # FlashAttention-2 on A100, causal, head dim 128, 2k tokens: 62 and 56 % of 312 TFLOP/s (Dao 2023, figures 5 and 6)
    flash_efficiency=(0.60, 0.52),
    flash_matmuls=(2.0, 5.0),
    flash_tile=0,
    flash_head_dim=None,
    skips_masked=True,
    fused_context=("gather", "ring"),
    fused_qkv=True,
    gathers_logits=True,  # ColumnParallelLinear of TransformerLMHead gathers its output; the loss is not parallel
    reduces_each=True,  # nn/linear/column_parallel_linear.py: dense_in and siglu_weight each copy to the region
    reruns_head=True,  # nn/parallel_module: "every layer" is every entry of the layer list, TransformerLMHead too
    traffic=Traffic(
        # RMS kernel r2 w2 twice, two residual additions r4 w2; backward r4 w2 r4 twice, sums r4 w2 three times
        stream=(20.0, 38.0),
        # rotary in plain PyTorch: q cos r2 w2, rotate r3 w3, sin r2 w2, add r4 w2 on two thirds; copies r2 w2.
        # Backward: products r4 w4, halves filled out with zeros r3 w7, sums r8 w4 on two thirds; q, k and v put
        # together r2 w2, copies
        heads=(17.0, 27.0),
        hidden=(4.0, 6.0),  # silu r2 w2
        gate=(6.0, 12.0),  # product r4 w2; backward two products
        scores=(0.0, 0.0),
        # float32 copy r2 w4, log-softmax r8 w4, argmax r4; backward w4, r12 w4, to bfloat16 r4 w2
        logits=(22.0, 26.0),
        kernels=(24.0, 40.0),
        saving=0.0,
    ),
    saved=Saved(
        stream=2.0,  # the residual between the blocks
        whole=4.0,
        heads=3.3,  # the fused projection stays for its values (6), rotated queries and keys (4): 10 of 3
        context=4.0,  # the kernel's output and its transposed copy
        hidden=2.0, gate=2.0,  # silu's output and the product
        scores=0.0, scores_working=0.0,
        # bfloat16, log-softmax and the gradients on both its sides in float32: 14 (the float32 copy of the logits goes
        # when the loss function returns, losses/cross_entropy.py). The logits stay in their stage-output buffer, of
        # which there are two, until a later microbatch takes their place (nn/parallel_module/parallel_module.py,
        # _execute_loss_fn; pipeline_schedule/train.py, required_buffer_count): two more of the microbatch before
        logits=16.0, held_logits=4.0, statistics=4.0, working=4.0,
    ),
    state=State(
        weights=2.0, gradients=2.0, optimizer=12.0, compute=2.0,
        reduced=4.0,  # all-reduced in float32 (optimizer/allreduce.py)
        update_traffic=40.0, casts=False, accumulate_traffic=6.0,
        # to a float32 bucket r2 w4, divided r4 w4, copied back r4 w2, and their norm r2 (optimizer/allreduce.py)
        reduce_traffic=22.0,
    ),
    hidden_share={},
    hidden_most={},
    hidden_outer={},
    scatter_hides="always",
    least_shard=0,
    sums_over_slice=False,
    partitions_embedding=False,
    transfer_hidden=0.0,
    transfer_wait=SYNCHRONOUS_TRANSFER,
    gradients_per_pass=False,
    sums_tables_once=False,
    head_everywhere=False,
    pipeline_by_hand=False,
    lighter_ends=0,
    keeps_sent=True,  # nn/parallel_module: stage-output buffers (buffers.py), gradient_recv_buffer (communicator.py)
    scatter_transfers=False,
    gathers_again=False,
    keeps_gathered=False,
    whole_layers=2.0,
    weight_pieces=1,
    piece_seconds=0.0,
    gathers_rerun=False,
    reruns_unread=True,
    shards_zero_weights=False,
    zero1_scatters=False,  # all-reduce, then each rank keeps its part (optimizer/optimizer.py)
    gradients_from_start=True,
    sums_beside=False,
    eager=True,
    regather_hidden=0.0,
    zero_bubble="zero-bubble-1p",
    fixed_bytes=TORCH_BYTES_IN_USE,
    group_bytes=NCCL_GROUP_BYTES,
    allocator=1.0,
)  # fmt: skip

ALEPH_FLASH2 = dataclasses.replace(
    ALEPH_RMS,
    name="aleph-flash2",
    # RMSNorm in plain PyTorch as LLaMA's own (facebookresearch/llama, model.py): to float32 r2 w4, square r4 w4, mean
    # r4, scale r4 w4, to bfloat16 r4 w2, weight r2 w2: 36 a norm. Backward: weight r6 w4 and its sum r2, to float32
    # r2 w4, scale r12 w8 and its sum r4, square and mean r16 w16, sum of both r8 w4, to bfloat16 r4 w2: 92. Times 1.32,
    # as kernels that cast and broadcast are slower than copies: 2048 x 5120 forward was measured at 353 us on an A100
    # (vllm-project/vllm, pull request 16; of 40 GB, as in that project's paper), where 34 bytes an element and eight
    # launches would be 269. The code published in 2024 (nn/norm/rms_norm.py) squares and scales in bfloat16 and then
    # casts to and fro. That the runs of 2023 had the original was taken up after layouts had run out of memory that
    # the other would fit.
    traffic=dataclasses.replace(ALEPH_RMS.traffic, stream=(107.0, 261.0), kernels=(36.0, 64.0)),
    # each norm keeps its input in float32 and the scaled one
    saved=dataclasses.replace(ALEPH_RMS.saved, stream=14.0),
)

ALEPH_FLASH1 = dataclasses.replace(
    ALEPH_FLASH2,
    name="aleph-flash1",
    # FlashAttention 1 on A100, causal, head dim 128, 2k tokens: 35 and 30 % (Dao 2023, figures 5 and 6)
    flash_efficiency=(0.35, 0.30),
)

ALEPH_FUSED = dataclasses.replace(
    ALEPH_FLASH2,
    name="aleph-fused-softmax",
    flash=False,
    skips_masked=False,
    fused_context=("gather", "ring"),
    traffic=dataclasses.replace(ALEPH_FLASH2.traffic, scores=MEGATRON_TRAFFIC.scores),
    saved=dataclasses.replace(ALEPH_FLASH2.saved, context=2.0, scores=5.0, scores_working=4.0, statistics=0.0),
)

ALEPH_TORCH = dataclasses.replace(
    ALEPH_FUSED,
    name="aleph-torch",
    # nn/masked_softmax/masked_softmax.py with softmax_in_fp32: to float32 r2 w4, mask r5 w4, softmax r4 w4, to bfloat16
    # r4 w2, dropout r2 w2 w1; backward r2 r1 w2, r2 w4, softmax r8 w4, mask r9 w8, r4 w2. The option is off unless
    # asked for; that it was on was taken up after the runs were seen to take longer than bfloat16 would.
    traffic=dataclasses.replace(ALEPH_FUSED.traffic, scores=(34.0, 46.0)),
    # the softmax's output in float32, dropout's mask and output; gradients on both sides of the softmax
    saved=dataclasses.replace(ALEPH_FUSED.saved, scores=7.0, scores_working=8.0),
)

ALPA = dataclasses.replace(
    XLA_GPU,
    name="alpa",
    flash=False,
    # XLA of 2021 has no asynchronous collectives
    hidden_share={},
)

BY_KERNEL = {
    "flash_attention2 + RMS kernel": ALEPH_RMS,
    "flash_attention2": ALEPH_FLASH2,
    "flash_attentionv1.0.8": ALEPH_FLASH1,
    "fused": ALEPH_FUSED,
    "torch": ALEPH_TORCH,
}
"""Attention kernels by the names of the layout sweep."""

MAXTEXT = XLA_TPU
"""XLA on TPUs with asynchronous collectives turned on, as the scripts of MaxText's published runs do on every chip."""
