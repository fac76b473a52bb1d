"""The shape of a transformer: what the mesh cuts, in the field's letters, with no framework in it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

from autotune.meshes.architecture import REFERENCE_MLPS, Architecture, AttentionKind, LayerKind, MlpKind, lacks
from autotune.meshes.fields import did_you_mean, json_object, one_line, read_text, short
from autotune.meshes.lora import PRICED_ONLY, Lora
from autotune.meshes.matrices import matrices_of_layer
from autotune.meshes.training import Training

LARGEST_SIZE = 2**31 - 1
"""Of every size of a model: what the dimension of an array can be."""

LARGEST_STEP = 2**53
"""Tokens of one step; up to here a float counts them exactly."""

MLPS = ("gelu-2mat", "swiglu-3mat")

DROPLESS = "dropless"
"""`capacity_factor` in a file or a setting that drops no token."""

CAPACITY_RULE = f"must be a number above 0, at most 1e6, or {DROPLESS}"

NOTABLE_MASK = 0.1
"""Share of a model's FLOPs from which what a causal mask hides, which MFU counts, is worth a line on a screen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerShape:
    """Sizes of one transformer (global, before any sharding).

    `experts` = 0 is a dense MLP; else each token visits `experts_per_token` of `experts` MLPs of width `d_ff` and all
    of `shared_experts`. An expert has room for `capacity_factor` times its mean load of a sequence (Fedus et al. 2021,
    arXiv 2101.03961, section 2.2); `experts / experts_per_token` drops no token whatever the routing; None is dropless:
    no slots, tokens are sorted by expert (Gale et al. 2022, arXiv 2211.15841). `kind` "decoder"
    is causal and predicts the next token; "encoder" attends both ways.
    `tied_embeddings`: the output projection is the embedding transposed. `architecture`: of a model that this uniform
    stack cannot say, its layers, by which parameters, FLOPs and prices are counted then; the sizes here are those that
    a mesh may cut (a common divisor where layers differ).
    """

    name: str
    layers: int
    d_model: int
    heads: int
    kv_heads: int
    head_dim: int
    d_ff: int
    vocab: int
    mlp: str = "swiglu-3mat"
    experts: int = 0
    experts_per_token: int = 0
    shared_experts: int = 0
    capacity_factor: float | None = 1.25
    kind: str = "decoder"
    tied_embeddings: bool = False
    architecture: Architecture | None = None

    def __post_init__(self) -> None:
        for field in ("layers", "d_model", "heads", "kv_heads", "head_dim", "d_ff", "vocab"):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"model {self.name}: {field}={short(value)} must be a whole number above 0")
            if value > LARGEST_SIZE:
                raise ValueError(f"model {self.name}: {field}={short(value)} must be at most {LARGEST_SIZE:,}")
        for field in ("experts", "experts_per_token", "shared_experts"):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"model {self.name}: {field}={short(value)} must be a whole number, 0 or more")
            if value > LARGEST_SIZE:
                raise ValueError(f"model {self.name}: {field}={short(value)} must be at most {LARGEST_SIZE:,}")
        if not isinstance(self.name, str) or not isinstance(self.tied_embeddings, bool):
            raise ValueError(f"model {self.name}: name must be text and tied_embeddings true or false")
        if self.mlp not in MLPS:
            close = did_you_mean(str(self.mlp), MLPS)
            raise ValueError(f"model {self.name}: mlp={short(self.mlp)} must be one of {', '.join(MLPS)}{close}")
        if self.kind not in ("decoder", "encoder"):
            raise ValueError(f"model {self.name}: kind={short(self.kind)} must be decoder or encoder")
        if self.heads % self.kv_heads:
            raise ValueError(f"model {self.name}: kv_heads={self.kv_heads} must divide heads={self.heads}")
        if self.experts and not 1 <= self.experts_per_token <= self.experts:
            raise ValueError(
                f"model {self.name}: experts_per_token={self.experts_per_token} must be 1 to experts={self.experts}"
            )
        factor = self.capacity_factor
        if not is_capacity(factor):
            raise ValueError(f"model {self.name}: capacity_factor={short(factor)} {CAPACITY_RULE}")
        if factor is None and not self.experts:
            raise ValueError(f"model {self.name}: capacity_factor={DROPLESS} needs experts")

    @property
    def mlp_matrices(self) -> int:
        """Matrices in one MLP: 3 with a gate (SwiGLU), 2 without."""
        return 3 if self.mlp == "swiglu-3mat" else 2

    @property
    def attention_parameters(self) -> int:
        """Matrix parameters of one attention block: query, key, value, output."""
        return self.d_model * self.head_dim * (2 * self.heads + 2 * self.kv_heads)

    @property
    def mlp_parameters(self) -> int:
        """Matrix parameters of one layer's MLPs: all experts, shared experts and the router."""
        one = self.mlp_matrices * self.d_model * self.d_ff
        if not self.experts:
            return one
        return one * (self.experts + self.shared_experts) + self.d_model * self.experts

    @property
    def active_mlp_parameters(self) -> int:
        """Matrix parameters of one layer's MLPs that one token meets."""
        one = self.mlp_matrices * self.d_model * self.d_ff
        if not self.experts:
            return one
        return one * (self.experts_per_token + self.shared_experts) + self.d_model * self.experts

    @property
    def parameters(self) -> int:
        """All parameters: layers, embedding, output projection unless tied, and norm scales."""
        if self.architecture is not None:
            return self.architecture.parameters
        layer = self.attention_parameters + self.mlp_parameters + 2 * self.d_model
        embeddings = self.vocab * self.d_model * (1 if self.tied_embeddings else 2)
        return self.layers * layer + embeddings + self.d_model

    @property
    def dropless(self) -> bool:
        """Whether it has experts that drop no token."""
        return bool(self.experts) and self.capacity_factor is None

    @property
    def slots_per_token(self) -> float:
        """Places of routed experts for each token, filled or not; without a capacity all are filled."""
        if self.capacity_factor is None:
            return float(self.experts_per_token)
        return min(self.experts_per_token * self.capacity_factor, float(self.experts))

    @property
    def routed_share(self) -> float:
        """Of the tokens that the MLPs' last matrices work on, weighed by width: the share in routed experts."""
        if self.architecture is None:
            return self.slots_per_token / (self.slots_per_token + self.shared_experts)
        routed = rest = 0.0
        for kind, count in self.architecture.kinds:
            if kind.mlp.experts:
                routed += count * self.slots_per_token * kind.mlp.width
                rest += count * kind.mlp.shared_width
            else:
                rest += count * kind.mlp.width
        return routed / (routed + rest)

    @property
    def expert_share(self) -> float:
        """Share of the layers that have routed experts."""
        if self.architecture is None:
            return 1.0 if self.experts else 0.0
        return sum(count for kind, count in self.architecture.kinds if kind.mlp.experts) / self.layers

    @property
    def dense_share(self) -> float:
        """Share of the layers whose MLP is dense, or has shared experts beside routed ones."""
        if self.architecture is None:
            return 1.0 if self.shared_experts or not self.experts else 0.0
        kinds = self.architecture.kinds
        return sum(count for kind, count in kinds if kind.mlp.shared_width or not kind.mlp.experts) / self.layers

    @property
    def repeats(self) -> int:
        """How often the pattern of the layers repeats: stages of a pipeline hold whole patterns."""
        return self.layers if self.architecture is None else self.architecture.repeats

    @property
    def described(self) -> Architecture:
        """The same layer by layer."""
        if self.architecture is not None:
            return self.architecture
        layer = LayerKind(
            attention=AttentionKind(heads=self.heads, kv_heads=self.kv_heads, head_dim=self.head_dim),
            mlp=MlpKind(
                activation=next(name for name, mlp in REFERENCE_MLPS.items() if mlp == self.mlp),
                width=self.d_ff,
                experts=self.experts,
                experts_per_token=self.experts_per_token if self.experts else 0,
                shared_width=self.d_ff * self.shared_experts if self.experts else 0,
            ),
        )
        return Architecture(
            name=self.name, d_model=self.d_model, vocab=self.vocab, layers=(layer,) * self.layers, kind=self.kind,
            tied_embeddings=self.tied_embeddings,
        )  # fmt: skip

    def priced_only(self, platform: str, training: Training) -> list[str]:
        """Why no program of the reference model is made for this training on a platform, in words; empty where one
        is."""
        missing = [] if self.architecture is None else lacks(self.architecture)
        reasons = [f"the reference model has no {', '.join(missing)}"] if missing else []
        if training.lora is not None and training.lora.base_dtype in PRICED_ONLY:
            reasons.append(PRICED_ONLY[training.lora.base_dtype])
        return reasons + self._dropless_priced_only(platform, training)

    def _dropless_priced_only(self, platform: str, training: Training) -> list[str]:
        """The reasons of experts that drop no token."""
        if not self.dropless:
            return []
        found = []
        if platform == "cuda":
            found.append("JAX compiles no grouped matmul for a GPU that is not attached")
        if training.matmul_dtype:
            found.append(f"grouped matmuls run in the compute dtype, not in {training.matmul_dtype}")
        if training.lora is not None:
            found.append("matrices of grouped matmuls have no adapters and are not quantised")
        return [f"capacity_factor={DROPLESS}: {reason}" for reason in found]

    @property
    def ring_lacks(self) -> list[str]:
        """Parts of its attention that a ring along `context` does not have, in words."""
        found = []
        for kind, _ in () if self.architecture is None else self.architecture.kinds:
            if kind.attention.window is not None:
                found.append("windows")
            if kind.attention.value_width != kind.attention.head_dim:
                found.append("values of another width than keys")
            if kind.attention.sinks:
                found.append("sinks")
            if kind.attention.soft_cap:
                found.append("soft caps")
        return list(dict.fromkeys(found))

    @property
    def latent_rank(self) -> int:
        """The common divisor of the ranks of latent attention, along which `fsdp` cuts its matrices; 0 without any."""
        kinds = () if self.architecture is None else self.architecture.kinds
        return math.gcd(*(rank for kind, _ in kinds for rank in (kind.attention.kv_rank, kind.attention.query_rank)))

    @property
    def stacks(self) -> tuple[tuple[TransformerShape, LayerKind | None, float], ...]:
        """(shape of one kind of layer, the kind, its share of the layers); a uniform stack is one kind, None."""
        if self.architecture is None:
            return ((self, None, 1.0),)
        return tuple(
            (
                dataclasses.replace(
                    self,
                    layers=count,
                    heads=kind.attention.heads,
                    kv_heads=kind.attention.kv_heads,
                    head_dim=kind.attention.head_dim,
                    d_ff=kind.mlp.width,
                    mlp="swiglu-3mat" if kind.mlp.matrices == 3 else "gelu-2mat",
                    experts=kind.mlp.experts,
                    experts_per_token=kind.mlp.experts_per_token,
                    architecture=None,
                ),
                kind,
                count / self.layers,
            )
            for kind, count in self.architecture.kinds
        )

    def padding_flops(self, batch: int, seq: int) -> float:
        """FLOPs of one train step, whole mesh, on slots beyond the mean load: no part of `train_flops`."""
        empty = max(self.slots_per_token - self.experts_per_token, 0.0)
        if self.architecture is not None:
            kinds = self.architecture.kinds
            experts = sum(count * kind.mlp.one(self.d_model) for kind, count in kinds if kind.mlp.experts)
            return 6.0 * experts * empty * batch * seq
        one = self.mlp_matrices * self.d_model * self.d_ff
        return 6.0 * self.layers * one * empty * batch * seq

    def train_flops(self, batch: int, seq: int, lora: Lora | None = None) -> float:
        """Model FLOPs of one train step, whole mesh: forward and backward matmuls, logits, attention in full.

        6 x active matrix parameters x tokens + 12 x layers x heads x head_dim x seq x tokens; no recomputation, the
        causal half of attention is not taken off. This is the numerator of MFU. With adapters (`lora`) frozen matrices
        have no gradient: 4 x their active parameters, and 6 x those of the adapters.
        """
        tokens = batch * seq
        if lora is not None:
            return self.train_flops(batch, seq) + tokens * self._adapter_flops(lora)
        if self.architecture is not None:
            return _train_flops(self.architecture, batch, seq)
        matrices = self.layers * (self.attention_parameters + self.active_mlp_parameters) + self.vocab * self.d_model
        return 6.0 * matrices * tokens + 12.0 * self.layers * self.heads * self.head_dim * seq * tokens

    def _adapter_flops(self, lora: Lora) -> float:
        """What adapters add to the FLOPs of a token, less the gradients of what is frozen."""
        model = self.described
        total = -2.0 * model.table_parameters
        for kind, count in model.kinds:
            for one in matrices_of_layer(kind, model.d_model):
                active = one.count * (kind.mlp.experts_per_token / kind.mlp.experts if one.routed else 1.0)
                own = 6.0 * lora.rank * sum(one.sides) if one.name in lora.matrices else 0.0
                total += count * active * (own - 2.0 * one.sides[0] * one.sides[1])
        return total

    def masked_flops(self, batch: int, seq: int) -> float:
        """What of `train_flops` a causal mask hides: the pairs of a query with the seq - 1 .. 0 keys after it.

        0 of an encoder, whose attention goes both ways.
        """
        if self.kind != "decoder":
            return 0.0
        if self.architecture is not None:
            return _train_flops(self.architecture, batch, seq) - _train_flops(
                self.architecture, batch, seq, masked=True
            )
        return 6.0 * self.layers * self.heads * self.head_dim * (seq - 1) * batch * seq


def is_capacity(factor: object) -> bool:
    """Whether a value can be the `capacity_factor` of a model."""
    if factor is None:
        return True
    return isinstance(factor, int | float) and not isinstance(factor, bool) and 0 < factor <= 1e6


def visible_keys(attention: AttentionKind, seq: int, *, masked: bool) -> float:
    """Keys that one query sees, averaged over a sequence; `masked`: without those that a causal mask hides.

    Without it those of the window are counted in full, as MFU counts attention.
    """
    window = min(attention.window or seq, seq)
    if not masked:
        return float(window)
    if attention.chunked:
        return (window + 1) / 2.0
    return window - window * (window - 1) / (2.0 * seq)


def _train_flops(architecture: Architecture, batch: int, seq: int, *, masked: bool = False) -> float:
    """Model FLOPs of one train step, whole mesh; `masked`: without what a causal mask hides."""
    d, tokens, total = architecture.d_model, batch * seq, 6.0 * architecture.table_parameters
    for kind, count in architecture.kinds:
        attention, mlp = kind.attention, kind.mlp
        each = 6.0 * (sum(attention.matrices(d)) + mlp.active_parameters(d))
        widths = attention.head_dim + attention.value_width
        total += count * (each + 6.0 * attention.heads * widths * visible_keys(attention, seq, masked=masked))
    return total * tokens


def check_step(batch: int, seq: int) -> None:
    """ValueError unless batch and sequence are whole numbers, 1 or more, of at most `LARGEST_STEP` tokens together."""
    for name, value in (("batch", batch), ("seq", seq)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}={short(value)} must be a whole number, 1 or more")
    if batch * seq > LARGEST_STEP:
        raise ValueError(f"batch={short(batch)} x seq={short(seq)} tokens: must be at most 2^53 tokens in one step")


def read_transformer(path: Path) -> TransformerShape:
    """A shape from a JSON file with the keys of `TransformerShape` (`head_dim` may be left out: d_model / heads).

    ValueError names the file, the field and the rule.
    """
    values = json_object(read_text(path, "model file"), f"model file {one_line(path)}")
    known = [field.name for field in dataclasses.fields(TransformerShape) if field.name != "architecture"]
    for key in values:
        if key not in known:
            close = did_you_mean(key, known)
            raise ValueError(f"model file {path}: unknown key {key!r}{close}; known: {', '.join(known)}")
    values.setdefault("name", one_line(path.stem))
    if "head_dim" not in values and isinstance(values.get("d_model"), int) and isinstance(values.get("heads"), int):
        if values["heads"] < 1 or values["d_model"] % values["heads"]:
            raise ValueError(
                f"model file {path}: heads={values['heads']} must divide d_model={values['d_model']} "
                "when head_dim is not given"
            )
        values["head_dim"] = values["d_model"] // values["heads"]
    values.setdefault("kv_heads", values.get("heads"))
    if values.get("capacity_factor") == DROPLESS:
        values["capacity_factor"] = None
    missing = [
        field.name
        for field in dataclasses.fields(TransformerShape)
        if field.default is dataclasses.MISSING and values.get(field.name) is None
    ]
    if missing:
        raise ValueError(f"model file {path}: missing key {missing[0]!r}")
    try:
        return TransformerShape(**values)
    except ValueError as error:
        raise ValueError(f"model file {one_line(path)}: {error}") from None


def check_packing(training: Training, shape: TransformerShape, seq: int) -> None:
    """ValueError where a model or its sequences cannot be packed as the job says."""
    if not training.packing:
        return
    if training.packing > seq:
        raise ValueError(f"packing={training.packing} documents have a token each at least: seq={seq} has fewer")
    if any(kind.attention.chunked for kind, _ in shape.described.kinds):
        raise ValueError(
            f"packing={training.packing}: {shape.name} has attention in chunks, which begin anew in each document: the "
            "kernels here know chunks of whole sequences only"
        )
