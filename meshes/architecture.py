"""A transformer layer by layer, as its published config describes it: what its parameters are. No framework in it.

`TransformerShape` (`autotune.meshes.transformer`) is the uniform stack that the reference model runs; an `Architecture`
can say more: layers that differ, attention over a window, latent attention, experts and shared experts of their own
width, norms of queries and keys, biases, soft caps and sinks.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

ACTIVATIONS = {"swiglu": 3, "geglu": 3, "gelu": 2, "relu": 2, "relu2": 2, "silu": 2}
"""Activation of an MLP -> its matrices: three where a gate multiplies the hidden units (Shazeer 2020, arXiv
2002.05202), else two."""

QK_NORMS = ("none", "unscaled", "head", "whole")
"""Norm of queries and keys: none; without a scale (Llama 4); a scale of one head's width, shared by the heads (Qwen 3);
a scale over all heads (OLMo 2)."""

BIASES = ("none", "qkv", "out", "all")
"""Projections of attention with a bias."""


CUDNN_HEAD_DIM = 128
"""The largest head that JAX's public call to cuDNN takes for a GPU that is not attached: it asks the first local device
for its compute capability, and 9 or more would take 256 (jax 0.10.2). So that the program that is compiled is the one
that runs, larger heads are none of cuDNN's where a GPU is attached either."""

GROUPED_ROWS = 512
"""Rows of a tile of a grouped matmul on TPUs (megablox): MaxText's. One with rows of two groups is computed twice."""

REFERENCE_MLPS = {"swiglu": "swiglu-3mat", "gelu": "gelu-2mat"}
"""Activation -> MLP of the reference model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionKind:
    """One layer's attention. All sizes are global, before any sharding."""

    heads: int
    kv_heads: int
    head_dim: int
    """Width of a query and of a key; of latent attention both parts, with and without rotary positions."""
    value_dim: int = 0
    """Width of a value; 0: as `head_dim`."""
    kv_rank: int = 0
    """Latent attention (DeepSeek-V2, arXiv 2405.04434): width of the latent that keys and values are made of."""
    query_rank: int = 0
    """Latent attention: width of the latent that queries are made of; 0: straight from the residual stream."""
    rope_dim: int = 0
    """Latent attention: the part of a key that carries the position, one for all heads."""
    window: int | None = None
    """Tokens that a query sees, itself included; None: all."""
    chunked: bool = False
    """The sequence is cut into chunks of `window` tokens and a query sees its own chunk (Llama 4)."""
    qk_norm: str = "none"
    bias: str = "none"
    sinks: bool = False
    """One learned logit a head in the softmax (gpt-oss)."""
    soft_cap: bool = False
    """Scores pass through a tanh (Gemma 2)."""

    def __post_init__(self) -> None:
        for field in ("heads", "kv_heads", "head_dim"):
            _whole("attention", field, getattr(self, field), 1)
        for field in ("value_dim", "kv_rank", "query_rank", "rope_dim"):
            _whole("attention", field, getattr(self, field), 0)
        if self.window is not None:
            _whole("attention", "window", self.window, 1)
        if self.heads % self.kv_heads:
            raise ValueError(f"attention: kv_heads={self.kv_heads} must divide heads={self.heads}")
        if self.qk_norm not in QK_NORMS:
            raise ValueError(f"attention: qk_norm={self.qk_norm!r} must be one of {', '.join(QK_NORMS)}")
        if self.bias not in BIASES:
            raise ValueError(f"attention: bias={self.bias!r} must be one of {', '.join(BIASES)}")
        if self.kv_rank and not self.rope_dim < self.head_dim:
            raise ValueError(f"attention: rope_dim={self.rope_dim} must be less than head_dim={self.head_dim}")

    @property
    def latent(self) -> bool:
        """Whether it is multi-head latent attention."""
        return self.kv_rank > 0

    @property
    def splash_tile(self) -> int:
        """The largest tile of queries and of keys in the fused kernel for TPUs (splash attention).

        Tiles of 1024 do not fit in the 16 MiB of vector memory that a kernel has with soft caps or heads wider than 128
        (v5e, jax 0.10.2), and of a window they would compute more that is masked.
        """
        return 512 if self.soft_cap or self.window is not None or self.head_dim > 128 else 1024

    @property
    def value_width(self) -> int:
        """Width of one head's value."""
        return self.value_dim or self.head_dim

    def matrices(self, d_model: int) -> tuple[int, int]:
        """Parameters of its matrices: (cut along heads, the same on every tensor rank)."""
        out = self.heads * self.value_width * d_model
        if not self.latent:
            keys = self.kv_heads * (self.head_dim + self.value_width)
            return d_model * (self.heads * self.head_dim + keys) + out, 0
        into = self.query_rank or d_model
        keys = self.kv_rank * self.heads * (self.head_dim - self.rope_dim + self.value_width)
        latents = self.query_rank + self.kv_rank + self.rope_dim
        return into * self.heads * self.head_dim + keys + out, d_model * latents

    def vectors(self, d_model: int) -> int:
        """Parameters of its norms, biases and sinks."""
        count = {"none": 0, "unscaled": 0, "head": 2, "whole": self.heads + self.kv_heads}[self.qk_norm] * self.head_dim
        if self.bias in ("qkv", "all"):
            count += (self.heads + self.kv_heads) * self.head_dim + self.kv_heads * self.value_width
        if self.bias in ("out", "all"):
            count += d_model
        return count + self.sinks * self.heads + self.latent * (self.query_rank + self.kv_rank)

    def words(self) -> str:
        """In one line, for a screen."""
        reach = "global"
        if self.window is not None:
            reach = f"chunks of {self.window}" if self.chunked else f"local, window {self.window}"
        if self.latent:
            ranks = f"ranks {self.query_rank or 'none'} and {self.kv_rank}"
            shape = f"latent, {self.heads} heads of {self.head_dim} and {self.value_width}, {ranks}"
        else:
            shape = f"{self.heads} heads of {self.head_dim}, {self.kv_heads} of keys"
        return ", ".join([reach, shape, *self.extras()])

    def extras(self) -> list[str]:
        """Its parts beyond plain attention over the whole sequence, in words."""
        found = []
        if self.qk_norm != "none":
            found.append("normalised queries and keys")
        if self.bias != "none":
            found.append("attention biases")
        if self.sinks:
            found.append("attention sinks")
        if self.soft_cap:
            found.append("soft-capped attention scores")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpKind:
    """One layer's MLP: dense, or routed experts with shared ones beside them."""

    activation: str
    width: int
    """Hidden units; of experts those of each."""
    experts: int = 0
    experts_per_token: int = 0
    shared_width: int = 0
    """Hidden units of all shared experts together."""
    shared_gate: bool = False
    """A learned gate weighs the shared experts (Qwen 2 MoE)."""
    bias: bool = False
    router_bias: bool = False
    """One bias an expert in the router."""

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"mlp: activation={self.activation!r} must be one of {', '.join(ACTIVATIONS)}")
        _whole("mlp", "width", self.width, 1)
        for field in ("experts", "experts_per_token", "shared_width"):
            _whole("mlp", field, getattr(self, field), 0)
        if self.experts and not 1 <= self.experts_per_token <= self.experts:
            raise ValueError(f"mlp: experts_per_token={self.experts_per_token} must be 1 to experts={self.experts}")

    @property
    def matrices(self) -> int:
        """Matrices of one MLP."""
        return ACTIVATIONS[self.activation]

    def one(self, d_model: int) -> int:
        """Parameters of the dense MLP or of one routed expert."""
        return self.matrices * d_model * self.width + self.bias * ((self.matrices - 1) * self.width + d_model)

    def beside(self, d_model: int) -> int:
        """Parameters that every token meets beside routed experts: router and shared experts."""
        if not self.experts:
            return 0
        shared = self.matrices * d_model * self.shared_width + self.shared_gate * d_model
        return shared + self.experts * (d_model + self.router_bias)

    def parameters(self, d_model: int) -> int:
        """All parameters of the layer's MLPs."""
        return self.one(d_model) * (self.experts or 1) + self.beside(d_model)

    def active_parameters(self, d_model: int) -> int:
        """Those that one token meets."""
        return self.one(d_model) * (self.experts_per_token if self.experts else 1) + self.beside(d_model)

    def words(self) -> str:
        """In one line, for a screen."""
        if not self.experts:
            text = f"dense, {self.activation} of {self.width}"
        else:
            text = f"experts, {self.experts_per_token} of {self.experts}, {self.activation} of {self.width}"
            if self.shared_width:
                text += f", shared experts of {self.shared_width}"
        return text + (", biases" if self.bias else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerKind:
    """One layer: attention and MLP with their norms."""

    attention: AttentionKind
    mlp: MlpKind
    norms: int = 2
    """Norms of the layer's residual stream: 2, or 4 where the blocks' outputs are normalised, too (Gemma 2)."""

    def parameters(self, d_model: int, norm: int) -> int:
        """All parameters, `norm` of them in each norm."""
        attention = sum(self.attention.matrices(d_model)) + self.attention.vectors(d_model)
        return attention + self.mlp.parameters(d_model) + self.norms * norm

    def idle_parameters(self, d_model: int) -> int:
        """Parameters of the experts that a token passes by."""
        return self.mlp.parameters(d_model) - self.mlp.active_parameters(d_model)


@dataclass(frozen=True, kw_only=True)  # no slots: what its layers have in common is found once
class Architecture:
    """One transformer. `layers` has one entry a layer, the first one first.

    >>> layer = LayerKind(
    ...     attention=AttentionKind(heads=32, kv_heads=8, head_dim=128), mlp=MlpKind(activation="swiglu", width=14336)
    ... )
    >>> Architecture(name="llama3-8b", d_model=4096, vocab=128256, layers=(layer,) * 32).parameters
    8030261248
    """

    name: str
    d_model: int
    vocab: int
    """Rows of the embedding; 0: there is none (a vision encoder)."""
    layers: tuple[LayerKind, ...]
    kind: str = "decoder"
    tied_embeddings: bool = False
    norm_scale: bool = True
    """Norms have a learned scale (OLMo 1 has none)."""
    norm_offset: bool = False
    """Norms have a learned offset (LayerNorm)."""
    last_norm: bool = True
    """A norm stands behind the last layer."""
    position_rows: int = 0
    """Rows of a table of learned positions."""
    other_parameters: int = 0
    """Parameters of what is in no layer and no table: a pooler, an embedding norm, a patch embedding."""
    other_parts: tuple[str, ...] = ()
    """What `other_parameters` belong to, and other parts outside the layers, in words."""
    logit_cap: bool = False
    """Logits pass through a tanh (Gemma 2)."""

    def __post_init__(self) -> None:
        _whole(f"model {self.name}", "d_model", self.d_model, 1)
        for field in ("vocab", "position_rows", "other_parameters"):
            _whole(f"model {self.name}", field, getattr(self, field), 0)
        if not self.layers:
            raise ValueError(f"model {self.name}: layers must be 1 or more")
        if self.kind not in ("decoder", "encoder"):
            raise ValueError(f"model {self.name}: kind={self.kind!r} must be decoder or encoder")

    @property
    def norm_parameters(self) -> int:
        """Parameters of one norm of the residual stream."""
        return (self.norm_scale + self.norm_offset) * self.d_model

    @property
    def table_parameters(self) -> int:
        """Parameters of the embedding, which an output projection that is not tied has once more."""
        return self.vocab * self.d_model

    @property
    def parameters(self) -> int:
        """All parameters: layers, tables, norms, and what stands outside the layers."""
        layers = sum(count * kind.parameters(self.d_model, self.norm_parameters) for kind, count in self.kinds)
        tables = self.table_parameters * (1 if self.tied_embeddings else 2) + self.position_rows * self.d_model
        return layers + tables + self.last_norm * self.norm_parameters + self.other_parameters

    @property
    def active_parameters(self) -> int:
        """Parameters that one token meets: without the experts that it passes by, and of embedding and output
        projection one (a token looks up one row of the embedding)."""
        idle = sum(count * kind.idle_parameters(self.d_model) for kind, count in self.kinds)
        return self.parameters - idle - (0 if self.tied_embeddings else self.table_parameters)

    @cached_property
    def kinds(self) -> tuple[tuple[LayerKind, int], ...]:
        """(kind of layer, how many of it), in the order in which they first appear."""
        counts: dict[LayerKind, int] = {}
        for layer in self.layers:
            counts[layer] = counts.get(layer, 0) + 1
        return tuple(counts.items())

    @cached_property
    def repeats(self) -> int:
        """How often the shortest pattern of layers repeats; 1 where the layers have no repeating pattern."""
        count = len(self.layers)
        for period in range(1, count // 2 + 1):
            if count % period == 0 and self.layers == self.layers[:period] * (count // period):
                return count // period
        return 1

    @cached_property
    def repeating_parts(self) -> tuple[tuple[tuple[LayerKind, ...], int], ...]:
        """The layers as (pattern, how often it repeats), first part first.

        One part where one pattern makes up the model (`repeats`); else the parts with the fewest layers in their
        patterns together, and of those the fewest parts: what a compiler has to compile.
        """
        count = len(self.layers)
        if self.repeats > 1 or count == 1:
            return ((self.layers[: count // self.repeats], self.repeats),)
        best: list[tuple[int, int, tuple[tuple[tuple[LayerKind, ...], int], ...]]] = [(0, 0, ())]
        for end in range(1, count + 1):
            options = []
            for period in range(1, end + 1):
                pattern, turns = self.layers[end - period : end], 0
                while end - period * (turns + 1) >= 0 and (
                    self.layers[end - period * (turns + 1) : end - period * turns] == pattern
                ):
                    turns += 1
                    layers, parts, before = best[end - period * turns]
                    options.append((layers + period, parts + 1, (*before, (pattern, turns))))
            best.append(min(options, key=lambda option: option[:2]))
        return best[count][2]

    def at_length(self, seq: int) -> Architecture:
        """The same for sequences of `seq` tokens: a window or chunk that holds a whole sequence is none."""

        def widened(kind: LayerKind) -> LayerKind:
            window = kind.attention.window
            if window is None or window < seq:
                return kind
            return dataclasses.replace(kind, attention=dataclasses.replace(kind.attention, window=None, chunked=False))

        return dataclasses.replace(self, layers=tuple(map(widened, self.layers)))


def cudnn_lacks(head_dim: int, value_dim: int, soft_cap: bool) -> list[str]:
    """What JAX's public call to cuDNN does not take of a layer's attention, in words: it runs as plain matmuls."""
    found = []
    if head_dim > CUDNN_HEAD_DIM or head_dim % 8:
        found.append(f"heads of {head_dim} (only multiples of 8 up to {CUDNN_HEAD_DIM})")
    if value_dim != head_dim:
        found.append(f"values of {value_dim} beside keys of {head_dim}")
    if soft_cap:
        found.append("soft-capped scores")
    return found


def lacks(architecture: Architecture) -> list[str]:
    """Parts of an architecture that the reference model does not have, in words: then it is priced only."""
    found = []
    for kind, _ in architecture.kinds:
        if kind.norms not in (2, 4):
            found.append(f"{kind.norms} norms a layer")
        if kind.attention.window is not None and architecture.kind == "encoder":
            found.append("attention over a window both ways")
        if kind.attention.latent and kind.attention.extras():
            found.append("latent attention with " + " and ".join(kind.attention.extras()))
        if kind.attention.latent and kind.attention.kv_heads != kind.attention.heads:
            found.append("latent attention with fewer heads of keys")
    return list(dict.fromkeys([*found, *architecture.other_parts]))


def beyond_uniform(architecture: Architecture) -> list[str]:
    """Parts of an architecture that a stack of equal plain layers does not have, in words."""
    found: list[str] = []
    kinds = [kind for kind, _ in architecture.kinds]
    if len(kinds) > 1:
        found.append("layers that differ")
    for kind in kinds:
        attention, mlp = kind.attention, kind.mlp
        if attention.latent:
            found.append("latent attention")
        if attention.window is not None:
            found.append("attention in chunks" if attention.chunked else "attention over a window")
        found += attention.extras()
        if mlp.activation not in REFERENCE_MLPS:
            found.append(f"{mlp.activation} MLPs")
        if mlp.bias:
            found.append("MLP biases")
        if mlp.shared_width % mlp.width:
            found.append("shared experts of another width")
        if mlp.shared_gate:
            found.append("a gate on shared experts")
        if kind.norms != 2:
            found.append(f"{kind.norms} norms a layer")
    if architecture.norm_offset:
        found.append("LayerNorm")
    if architecture.position_rows:
        found.append("learned positions")
    if architecture.logit_cap:
        found.append("soft-capped logits")
    return list(dict.fromkeys([*found, *architecture.other_parts]))


def _whole(where: str, field: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        rule = "a whole number above 0" if least else "a whole number, 0 or more"
        raise ValueError(f"{where}: {field}={value!r} must be {rule}")
