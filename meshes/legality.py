"""Which layouts a model can be cut by, and why not the others: every rule in one tuple. JAX-free.

A rule is arithmetic on whole numbers, so that the same rule judges one `Layout` or a table of them, one NumPy column a
field. What a layout needs of itself (known names, sizes of 1 or more) is checked by `Layout`; what it needs of memory
is asked of its price or its program.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from autotune.meshes.layout import SCHEDULES, Layout
from autotune.meshes.layout_words import LAYOUT_WORDS, RematWord
from autotune.meshes.remat_sets import RECOMPUTE, REMAT_ARRAYS, RematArray, digits_of
from autotune.meshes.target import Target
from autotune.meshes.training import Training
from autotune.meshes.transformer import TransformerShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Why one layout cannot run: the constraint, and by how much.

    `needed`, `available`: in `unit`. `sentence`: the rule with its values. `remedy`: the smallest known change that
    would pass this rule, in the words of a layout; None when there is none.
    """

    constraint: str
    needed: int
    available: int
    unit: str
    sentence: str
    remedy: str | None

    def __str__(self) -> str:
        return self.sentence + (f"; {self.remedy} would" if self.remedy else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a layout is judged for. `transformer` is None for a user's own step: rules `of_model` are not asked then."""

    transformer: Any
    batch: int
    seq: int
    platform: str
    training: Training = Training()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """`about`: "divisibility" (of model or sequence), "batch", or "exclusion" (choices that do not go together).

    `of_model`: whether it needs the transformer's shape. `broken(columns, job)` is true where the rule is broken:
    a bool, or an array of them where columns are arrays. `rejection(columns, job)` says why, of one layout.
    """

    constraint: str
    about: str
    of_model: bool
    broken: Callable[[Any, Job], Any]
    rejection: Callable[[Any, Job], Rejection]


def _divides(
    unit: str,
    factors: tuple[str, ...],
    size: Callable[[Any, Job], Any],
    *,
    times: int = 1,
    about: str = "divisibility",
    of_model: bool = True,
    when: Callable[[Any, Job], Any] = lambda columns, job: True,
) -> Rule:
    """The product of some fields (and of `times`) must divide a size."""

    def cut(columns):
        product = times
        for name in factors:
            product = product * getattr(columns, name)
        return product

    def rejection(columns, job):
        needed, available = cut(columns), size(columns, job)
        cutting = [name for name in factors if getattr(columns, name) > 1]
        words = " x ".join([f"{name}={getattr(columns, name)}" for name in cutting] + [str(times)] * (times > 1))
        total = f" = {needed}" if " x " in words else ""
        even = available % times == 0 and len(cutting) == 1
        return Rejection(
            constraint=f"divides({unit})",
            needed=needed,
            available=available,
            unit=unit,
            sentence=f"{words}{total} does not divide {unit}={available}",
            remedy=f"{cutting[0]}={math.gcd(needed, available) // times}" if even else None,
        )

    return Rule(
        constraint=f"divides({unit})",
        about=about,
        of_model=of_model,
        broken=lambda columns, job: when(columns, job) & (size(columns, job) % cut(columns) != 0),
        rejection=rejection,
    )


def _excludes(
    constraint: str,
    broken: Callable[[Any, Job], Any],
    sentence: Callable[[Any, Job], str],
    *,
    needed: Callable[[Any, Job], int],
    available: Callable[[Any, Job], int],
    unit: str,
    remedy: str | None = None,
    of_model: bool = False,
) -> Rule:
    """Choices that do not go together, or that say the same as a plainer layout."""
    return Rule(
        constraint=constraint,
        about="exclusion",
        of_model=of_model,
        broken=broken,
        rejection=lambda columns, job: Rejection(
            constraint=constraint,
            needed=needed(columns, job),
            available=available(columns, job),
            unit=unit,
            sentence=sentence(columns, job),
            remedy=remedy,
        ),
    )


def _needs_axis(constraint: str, name: str, works: str) -> Rule:
    """A choice that changes nothing where its mesh axis is 1 says the same as the layout without it."""
    word = LAYOUT_WORDS[name]
    axis, default = str(word.needs_axis), word.code(word.default)

    def told(columns, job) -> str:
        return f"{name}={word.text(word.value(getattr(columns, name)))} {works} {axis}, which is 1"

    return _excludes(
        constraint,
        lambda c, j: (getattr(c, name) != default) & (getattr(c, axis) == 1),
        told,
        needed=lambda c, j: 2, available=lambda c, j: 1, unit=axis, remedy=f"{name}={word.text(word.default)}",
    )  # fmt: skip


def _needs_host_memory(constraint: str, name: str, remedy: str) -> Rule:
    """A choice that keeps arrays in host memory needs a platform on which XLA can address it."""
    word = LAYOUT_WORDS[name]

    def told(columns, job) -> str:
        value = word.text(word.value(getattr(columns, name)))
        return f"{name}={value} needs host memory that XLA can address, {job.platform} has none here"

    return _excludes(
        constraint,
        lambda c, j: word.on_host(getattr(c, name)) & (j.platform != "tpu"),
        told,
        needed=lambda c, j: 1, available=lambda c, j: 0, unit="host memories", remedy=remedy,
    )  # fmt: skip


def _foreign_arrays(remat: Any, shape: TransformerShape) -> dict[str, Any]:
    """Array that the model has not -> whether each set that has no policy's name keeps or offloads it."""
    word = LAYOUT_WORDS["remat"]
    assert isinstance(word, RematWord)
    unnamed = word.unnamed(remat)
    absent = [name for name, array in REMAT_ARRAYS.items() if not has_array(array, shape)] if unnamed.any() else []
    digits = digits_of(word.set_codes(remat)) if absent else {}
    return {name: unnamed & (digits[name] != RECOMPUTE) for name in absent}


def _names_foreign(columns, job) -> Any:
    found = columns.remat < 0
    for named in _foreign_arrays(columns.remat, job.transformer).values():
        found = found | named
    return found


def has_array(array: RematArray, shape: TransformerShape) -> bool:
    """Whether a layer of the model has the array."""
    return {None: True, "gate": shape.mlp_matrices > 2, "experts": bool(shape.experts)}[array.needs]


def _foreign_sentence(columns, job) -> str:
    found = [name for name, named in _foreign_arrays(columns.remat, job.transformer).items() if named]
    return f"remat={LAYOUT_WORDS['remat'].value(columns.remat)} names {found[0]}, {job.transformer.name} has none"


GPIPE = SCHEDULES.index("gpipe")
CIRCULAR = SCHEDULES.index("circular")
ONCE_A_STEP = LAYOUT_WORDS["reduce"].code("step")
RING = LAYOUT_WORDS["context_attention"].code("ring")
LANES = 128
"""The TPU attention kernel works on tiles of at least this many positions (Pallas splash attention, NUM_LANES)."""


def _on(platform: str) -> Callable[[Any, Job], bool]:
    return lambda columns, job: job.platform == platform


def _causal(columns, job):
    return (job.transformer.kind == "decoder") & (columns.context > 1)


LEGALITY_RULES: tuple[Rule, ...] = (
    # What each axis cuts.
    _divides("heads", ("tensor",), lambda c, j: j.transformer.heads),
    _divides("kv_heads", ("tensor",), lambda c, j: j.transformer.kv_heads),
    _divides("d_ff", ("tensor",), lambda c, j: j.transformer.d_ff),
    _divides("vocab", ("tensor", "vocab_tiles"), lambda c, j: j.transformer.vocab),
    _divides("d_model", ("fsdp",), lambda c, j: j.transformer.d_model),
    _divides("d_model", ("fsdp", "data"), lambda c, j: j.transformer.d_model, when=lambda c, j: c.zero > 0),
    _divides("latent rank", ("fsdp",), lambda c, j: j.transformer.latent_rank),
    _divides("latent rank", ("fsdp", "data"), lambda c, j: j.transformer.latent_rank, when=lambda c, j: c.zero > 0),
    _divides(
        "experts", ("expert",), lambda c, j: j.transformer.experts, when=lambda c, j: bool(j.transformer.experts)
    ),
    _divides("layers", ("stage", "virtual_stages"), lambda c, j: j.transformer.layers),
    _divides("seq", ("context",), lambda c, j: j.seq, of_model=False),
    # A causal sequence is dealt out in two pieces a device, one early and one late, so that all have the same work.
    _divides("seq", ("context",), lambda c, j: j.seq, times=2, when=_causal),
    _divides(
        "seq", ("context", "tensor"), lambda c, j: j.seq, when=lambda c, j: c.sequence_parallel > 0
    ),
    _divides("seq", ("context",), lambda c, j: j.seq, times=LANES, when=_on("tpu")),
    _divides(
        "batch", ("data", "fsdp", "expert", "accumulate", "microbatches"), lambda c, j: j.batch,
        about="batch", of_model=False,
    ),
    # What goes together with what.
    # Our pipeline deals the microbatches out over the stages outside its loop, and circulates them in groups of S.
    _divides(
        "microbatches", ("stage",), lambda c, j: c.microbatches, of_model=False, about="exclusion",
        when=lambda c, j: (c.schedule == GPIPE) | (c.schedule == CIRCULAR),
    ),
    _excludes(
        "expert needs experts",
        lambda c, j: (c.expert > 1) & (j.transformer.experts == 0),
        lambda c, j: f"expert={c.expert} cuts experts, {j.transformer.name} has none",
        needed=lambda c, j: c.expert, available=lambda c, j: 0, unit="experts", remedy="expert=1", of_model=True,
    ),
    _needs_axis("zero needs data", "zero", "shards over"),
    _needs_axis("reduce=step needs data", "reduce", "puts off reductions over"),
    _excludes(
        "reduce=step needs accumulate",
        lambda c, j: (c.reduce == ONCE_A_STEP) & (c.accumulate == 1),
        lambda c, j: "reduce=step sums gradients over the passes of accumulate, which is 1",
        needed=lambda c, j: 2, available=lambda c, j: 1, unit="accumulate", remedy="accumulate=2",
    ),
    _excludes(
        "reduce=step excludes zero=2",
        lambda c, j: (c.reduce == ONCE_A_STEP) & (c.zero == 2),
        lambda c, j: "reduce=step keeps whole gradients on every replica, zero=2 cuts them over data in every pass",
        needed=lambda c, j: 2, available=lambda c, j: 1, unit="zero", remedy="zero=1",
    ),
    _excludes(
        "reduce=step excludes stage",
        lambda c, j: (c.reduce == ONCE_A_STEP) & (c.stage > 1),
        lambda c, j: f"reduce=step does not go with stage={c.stage}: a pipeline reduces once for all its microbatches",
        needed=lambda c, j: c.stage, available=lambda c, j: 1, unit="stage", remedy="reduce=pass",
    ),
    _needs_axis("ring needs context", "context_attention", "goes round"),
    _excludes(
        "virtual_stages needs circular",
        lambda c, j: (c.virtual_stages > 1) & (c.schedule != CIRCULAR),
        lambda c, j: f"virtual_stages={c.virtual_stages} needs schedule=circular",
        needed=lambda c, j: 1, available=lambda c, j: c.virtual_stages, unit="virtual_stages",
        remedy="virtual_stages=1",
    ),
    _needs_host_memory("remat=offload needs tpu", "remat", "remat=full"),
    _needs_host_memory("offload needs tpu", "offload", "offload=none"),
    # Where layers differ, each stage holds whole patterns of them: their price is that of the mean layer.
    _divides("repeats of the layer pattern", ("stage", "virtual_stages"), lambda c, j: j.transformer.repeats),
    _excludes(
        "ring needs whole attention",
        lambda c, j: (c.context_attention == RING) & bool(j.transformer.ring_lacks),
        lambda c, j: "context_attention=ring has no "
        f"{' and no '.join(j.transformer.ring_lacks)}: {j.transformer.name} has",
        needed=lambda c, j: 1, available=lambda c, j: 0, unit="parts in a ring", remedy="context_attention=gather",
        of_model=True,
    ),
    _excludes(
        "stage needs scanned layers",
        lambda c, j: (c.stage > 1) & (not j.training.scan_layers),
        lambda c, j: f"stage={c.stage} runs the layers of a stage in a loop: scan_layers=false has none",
        needed=lambda c, j: 1, available=lambda c, j: 0, unit="loops of layers", remedy="stage=1",
    ),
    _excludes(
        "ring excludes packing on gpus",
        lambda c, j: (c.context_attention == RING) & (j.training.packing > 0) & (j.platform == "cuda"),
        lambda c, j: "context_attention=ring runs cuDNN's kernel by parts, which has no borders between documents: "
        f"packing={j.training.packing} has",
        needed=lambda c, j: 1, available=lambda c, j: 0, unit="borders in a ring", remedy="context_attention=gather",
    ),
    _excludes(
        "reduce=step excludes packing on gpus",
        lambda c, j: (c.reduce == ONCE_A_STEP) & (j.training.packing > 0) & (j.platform == "cuda"),
        lambda c, j: "reduce=step runs replicas as one batch, and JAX's call to cuDNN takes no batch of the masks that "
        f"packing={j.training.packing} needs",
        needed=lambda c, j: 1, available=lambda c, j: 0, unit="batches of masks", remedy="reduce=pass",
    ),
    _excludes(
        "remat names arrays of the model",
        _names_foreign,
        _foreign_sentence,
        needed=lambda c, j: 1, available=lambda c, j: 0, unit="arrays", of_model=True,
    ),
)  # fmt: skip
"""Every rule, in the order in which the first broken one is reported."""


def reject(
    layout: Layout,
    transformer: TransformerShape | None,
    batch: int,
    seq: int,
    target: Target,
    training: Training | None = None,
) -> Rejection | None:
    """The first rule that a layout breaks; None when the model can be cut by it.

    >>> from autotune.meshes.layout import Layout
    >>> from autotune.meshes.target import parse_target
    >>> print(reject(Layout(data=16, zero=1), None, 24, 128, parse_target("h100:2x8")))
    data=16 does not divide batch=24; data=8 would
    """
    job = Job(transformer=transformer, batch=batch, seq=seq, platform=target.platform, training=training or Training())
    return reject_for(layout, job)


def reject_for(layout: Layout, job: Job) -> Rejection | None:
    """The first rule that a layout breaks for a job."""
    columns = _columns(layout)
    for rule in LEGALITY_RULES:
        if (job.transformer is not None or not rule.of_model) and rule.broken(columns, job):
            return rule.rejection(columns, job)
    return None


def reject_codes(
    table: Any,
    transformer: TransformerShape | None,
    batch: int,
    seq: int,
    target: Target,
    training: Training | None = None,
) -> np.ndarray:
    """For each row of a table of layouts (an object with one integer array a field): the index in `LEGALITY_RULES`
    of the first rule it breaks, -1 where it breaks none."""
    job = Job(transformer=transformer, batch=batch, seq=seq, platform=target.platform, training=training or Training())
    codes = np.full(np.shape(table.data), -1, dtype=np.int64)
    for index, rule in reversed(list(enumerate(LEGALITY_RULES))):
        if transformer is not None or not rule.of_model:
            codes[np.broadcast_to(rule.broken(table, job), codes.shape)] = index
    return codes


def rule_names() -> tuple[str, ...]:
    """The constraint of every rule, in the order of `reject_codes`; rules on the same size share a name."""
    return tuple(rule.constraint for rule in LEGALITY_RULES)


def rules_about(about: str) -> tuple[int, ...]:
    """Codes of the rules on one matter: "divisibility", "batch" or "exclusion"."""
    return tuple(index for index, rule in enumerate(LEGALITY_RULES) if rule.about == about)


def _columns(layout: Layout) -> SimpleNamespace:
    """The layout's choices as whole numbers, as a table of layouts holds them."""
    return SimpleNamespace(**layout.codes)
