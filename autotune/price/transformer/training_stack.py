"""What the closed form takes for granted of a training stack: kernels, precisions, what hides behind what.

What holds on every chip of a platform, and neither a data sheet nor a layout says, is here, one value with one reason
each: `XLA_TPU` and `XLA_GPU`, our own models as XLA compiles them. What differs from chip to chip (what hides behind
what, how fast its attention kernel is) stands in the hardware files; `stack_of` puts both together.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from autotune.meshes.hardware import Hardware
from autotune.meshes.training import Training
from autotune.price.transformer.adapters import Base, base_of
from autotune.replay.attention_cost import kernel_shares


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Device-memory traffic of everything that is no matmul, in bytes of 2-byte elements. Pairs: (forward pass,
    backward pass)."""

    stream: tuple[float, float]
    """Per token and element of d_model: norms, residuals, dropout. Cut along `tensor` only under sequence
    parallelism."""
    qkv: tuple[float, float]
    """Per token and element of queries, keys and values."""
    mlp_hidden: tuple[float, float]
    """Per token and element of the MLP's hidden width."""
    mlp_gate: tuple[float, float]
    """What a gate adds to `mlp_hidden`."""
    scores: tuple[float, float]
    """Per attention score, of plain attention."""
    logits: tuple[float, float]
    """Per logit, of the loss."""
    kernels: tuple[float, float]
    """No bytes: kernel launches of a layer beside its matmuls and attention."""
    saving: float
    """Per byte kept for the backward pass, beside what makes it and reads it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """Bytes of 2-byte elements that are kept for the backward pass where nothing is recomputed."""

    stream: float
    """Per token and element of d_model, beside the layer's input (2). Cut along `tensor` only under sequence
    parallelism."""
    whole: float
    """Per token and element of d_model, of the matmuls' inputs: never cut along `tensor`."""
    qkv: float
    """Per element of queries, keys and values."""
    attention: float
    """Per element of attention's result."""
    mlp_hidden: float
    """Per element of the MLP's hidden width, of an MLP with two matrices."""
    mlp_gate: float
    """What a gate adds to `mlp_hidden`."""
    scores: float
    """Per attention score, of plain attention."""
    logits: float
    """Per logit, held at once around the loss."""
    held_logits: float
    """Per logit, held until the backward pass of the layers has ended."""
    statistics: float
    """Per token and head: the softmax statistics of a fused kernel."""
    working: float
    """Per token and element of d_model: what one layer's backward pass holds at once. Not cut along `tensor`."""
    scores_working: float
    """The same per attention score, of plain attention."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Bytes per parameter that is trained, between steps and in the update."""

    weights: float
    """Kept between steps."""
    gradients: float
    """At the end of a step."""
    optimizer: float
    """Moments, and master weights where there are any."""
    optimizer_beside: float
    """The same of parameters that are no matrix inside a layer."""
    compute: float
    """Of the dtype of matmuls and gathers."""
    reduced: float
    """Of the dtype in which gradients are reduced."""
    update_traffic: float
    """Read and written in an optimizer's update."""
    accumulate_traffic: float
    """Read and written in each pass to add its gradients to their sums."""
    orthogonalises: bool
    """Whether the update of matrices inside the layers is made orthogonal (`orthogonalisation`)."""
    base: Base | None = None
    """The frozen weights under adapters; the other fields are then of adapters alone. None: all weights are trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingStack:
    """One training stack: which kernels it calls, what it keeps, and what it hides behind what."""

    name: str
    flash: bool
    """Whether attention runs as a fused kernel, which never stores its scores."""
    reruns_kernel: bool
    """Whether the backward pass runs the fused kernel again under policies that keep its result."""
    flash_efficiency: tuple[float, float]
    """Share of the peak that the fused kernel reaches, (forward, backward)."""
    flash_matmuls: tuple[float, float]
    """Matmuls over the scores, (forward, backward)."""
    flash_tile: int
    """Side of the tiles that the kernel computes whole along the diagonal of a causal score matrix. 0: it computes
    exactly the visible half."""
    flash_is_cudnn: bool
    """Whether the kernel is cuDNN's. What JAX's call to it does not take runs as plain matmuls on blocks of queries
    (`cudnn_lacks`)."""
    fused_context: tuple[str, ...]
    """Values of `context_attention` whose attention runs in the kernel where the sequence is causal; others run as
    plain matmuls."""
    traffic: Traffic
    saved: Saved
    state: State
    hidden_share: dict[str, float]
    """As the hardware file says (`Hardware`), as the next three."""
    hidden_most: dict[str, float]
    hidden_outer: dict[str, tuple[float, float]]
    scatter_hides: str
    least_shard: int
    """Rows of d_model that a shard along fsdp must have for a reduce-scatter. With fewer, gradients are all-reduced and
    then cut."""
    sums_over_slice: bool
    """As the hardware file says (`Hardware`)."""
    gradients_per_pass: bool
    """Whether every pass of an accumulation reduces its gradients; else the step does so once."""
    sums_tables_once: bool
    """Of `gradients_per_pass`: whether the vocabulary's tables are left out. Without ZeRO their gradients are then
    reduced once a step along all axes but fsdp."""
    whole_layers: float
    """Weights that are whole along fsdp at once in the backward pass, and gradients not yet reduced, in layers."""
    matmul_dtype: str | None = None
    """To which the operands of the layers' linear matmuls are quantised; None: they are not."""
    packed: bool = False
    """Whether sequences are packed documents."""


_XLA_TRAFFIC = Traffic(
    # Each norm reads its input and writes its output (4), each residual addition reads one operand and writes (4; the
    # other is still in the matmul's epilogue); backward: twice the norms' and the additions' sums of gradients.
    stream=(16.0, 28.0),
    qkv=(8.0, 8.0),  # rotary positions: read and write; a transposition into the kernel's layout
    mlp_hidden=(4.0, 8.0),
    mlp_gate=(2.0, 6.0),
    scores=(20.0, 24.0),  # float32 scores written, read, exponentiated, written in the compute dtype and read
    logits=(6.0, 6.0),  # written and read twice in the compute dtype (models/loss.py keeps no float32 copy)
    kernels=(8.0, 16.0),
    saving=0.0,
)

_XLA_GPU_TRAFFIC = dataclasses.replace(
    _XLA_TRAFFIC,
    # The scan over layers fills the stacked array with zeros once, and copies each layer's part into it in a kernel of
    # its own (dynamic-update-slice, read and write): h100 and a100-80, jax 0.10.2, all remat policies.
    saving=3.0,
)

_XLA_SAVED = Saved(
    # Both norms in float32, input and normalised (16), less the layer's own input; as the scan's stacked residuals of a
    # dense layer without remat show (h100, jax 0.10.2)
    stream=14.0,
    whole=4.0,  # outputs of the two norms
    qkv=2.0,
    attention=2.0,
    # What JAX keeps of GELU's tanh form: six arrays in all, the input and the product among them; of SiLU and the gate
    # two less than that beside the second matmul's (a100-80 and h100, remat=none, jax 0.10.2; six in all there too)
    mlp_hidden=10.0,
    mlp_gate=-2.0,
    scores=6.0,
    logits=4.0,  # logits and their gradient: the loss keeps nothing in float32
    held_logits=0.0,
    statistics=4.0,
    # Seven to eight arrays of tokens x d_model, whole along `tensor`: gathered inputs, partial sums before their
    # scatter, and their gradients (h100 and v5e, remat=full, tensor 1 to 8).
    working=16.0,
    scores_working=10.0,
)

_XLA_GPU_SAVED = dataclasses.replace(
    _XLA_SAVED,
    # The GPU compiler fuses the loss into one pass: the gradient takes the place of the logits, and waits there until
    # after the layers for the matmul of the unembedding's gradient (h100, jax 0.10.2, every layout looked at).
    logits=2.0,
    held_logits=2.0,
)

_XLA_STATE = State(
    weights=4.0, gradients=4.0, optimizer=8.0, optimizer_beside=8.0, compute=2.0, reduced=2.0,
    update_traffic=32.0,  # AdamW: parameter, two moments read and written, gradient read; and its norm read once more
    accumulate_traffic=0.0,
    orthogonalises=False,
)  # fmt: skip

OF_THE_CHIP = (1.0, 1.0)
"""Of fields that every chip's own figures take the place of (`stack_of`): all of the peak."""

XLA_TPU = TrainingStack(
    name="xla-tpu",
    flash=True,
    reruns_kernel=False,  # splash attention names its statistics, too
    flash_efficiency=OF_THE_CHIP,
    flash_matmuls=(2.0, 7.0),  # two kernels backward, both of which make the scores again
    flash_tile=1024,
    flash_is_cudnn=False,
    fused_context=("gather",),
    traffic=_XLA_TRAFFIC,
    saved=_XLA_SAVED,
    state=_XLA_STATE,
    hidden_share={},
    hidden_most={},
    hidden_outer={},
    scatter_hides="never",
    least_shard=128,  # the lanes of a tile (v5e and v5p, libtpu 0.0.42)
    sums_over_slice=False,
    gradients_per_pass=True,
    sums_tables_once=False,
    whole_layers=2.0,
)

XLA_GPU = TrainingStack(
    name="xla-gpu",
    flash=True,
    # cuDNN's softmax statistics have no name that a policy could keep, and plain attention makes its scores again
    reruns_kernel=True,
    flash_efficiency=OF_THE_CHIP,
    flash_matmuls=(2.0, 5.0),
    flash_tile=0,
    flash_is_cudnn=True,
    fused_context=("gather", "ring"),  # by parts (autotune.models.gathered, autotune.models.ring)
    traffic=_XLA_GPU_TRAFFIC,
    saved=_XLA_GPU_SAVED,
    # Under accumulation: a pass's gradients set to zero (4), read, and added to sums that are read and written (12),
    # some of it copied once more: 17 to 20 in all (h100 and a100-80, accumulate 2 to 8, dense and experts, jax 0.10.2).
    state=dataclasses.replace(_XLA_STATE, accumulate_traffic=18.0),
    hidden_share={},
    hidden_most={},
    hidden_outer={},
    scatter_hides="never",
    least_shard=0,
    sums_over_slice=False,
    gradients_per_pass=True,
    sums_tables_once=True,  # that reduction is moved out of the loop over passes (h100 and a100-80, jax 0.10.2)
    # Of a gated MLP two matrices and the gradient of one, where the layer's backward pass needs the most (h100 and
    # h200, widths 2048 to 8192, jax 0.10.2).
    whole_layers=1.0,
)


FUSED_ATTENTION_FROM = 8.0
"""Compute capability from which JAX calls cuDNN's fused attention (jax 0.10.2: "Require at least Ampere arch to
run")."""


def stack_of(hardware: Hardware, dtype: str, training: Training | None = None) -> TrainingStack:
    """The training stack that stands for a chip: our own models as XLA compiles them for it, with the attention kernel
    that `models.execution` picks and what the hardware file says hides behind what. `training`: the optimizer and the
    dtypes of the state; None: AdamW with float32 weights and moments."""
    shares = hardware.attention_shares
    of_chip = (shares["forward"], shares["backward"]) if shares else OF_THE_CHIP
    if hardware.platform == "tpu":
        stack = dataclasses.replace(XLA_TPU, flash_efficiency=kernel_shares(hardware) or of_chip)
    else:
        flash = fused_attention(hardware, dtype)
        stack = dataclasses.replace(XLA_GPU, flash=flash, flash_efficiency=of_chip, name=f"xla-{hardware.platform}")
    if training is not None and training != Training():
        stack = dataclasses.replace(
            stack,
            state=_state(stack.state, training),
            matmul_dtype=training.matmul_dtype,
            packed=training.packing > 0,
        )
    return dataclasses.replace(
        stack,
        hidden_share=dict(hardware.hidden_share),
        hidden_most=dict(hardware.hidden_most),
        hidden_outer={axis: both for axis, both in hardware.hidden_outer.items() if any(both)},
        scatter_hides=hardware.scatter_hides,
        sums_over_slice=hardware.sums_over_slice,
    )


def _state(state: State, training: Training) -> State:
    """The bytes of a parameter under another optimizer or other dtypes."""
    return dataclasses.replace(
        state,
        weights=training.weight_bytes,
        gradients=training.gradient_bytes,
        optimizer=training.moment_bytes,
        optimizer_beside=training.moment_bytes_beside,
        orthogonalises=training.optimizer == "muon",
        update_traffic=training.update_bytes,
        accumulate_traffic=state.accumulate_traffic * training.gradient_bytes / 4.0,
        base=base_of(training.lora, state.compute) if training.lora else None,
    )


def fused_attention(hardware: Hardware, dtype: str) -> bool:
    """Whether cuDNN's fused attention runs there: 16-bit types, compute capability 8 or more (`jax.nn` asks for it)."""
    if hardware.platform != "cuda" or dtype not in ("bfloat16", "float16"):
        return False
    return float(str(hardware.compile_fields["cuda_compute_capability"])) >= FUSED_ATTENTION_FROM
