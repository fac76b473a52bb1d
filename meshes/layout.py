"""A layout: how one train step is cut over a mesh. Plain hashable data with no devices in it.

In words (`str(layout)`, `parse_layout(text)`):
`data=2,fsdp=16,tensor=4,dcn.data=2,zero=1,remat=full,accumulate=2,microbatches=8,schedule=circular,virtual_stages=2`.
Axis sizes are totals over all tiers; `dcn.<axis>` is the factor of that axis which crosses the outer tier (DCN between
TPU slices, the network between NVLink domains).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

AXES = ("stage", "data", "fsdp", "context", "expert", "tensor")
"""Mesh axes, outermost first: the default physical order, so that `tensor` rides the nearest neighbours."""

WORDS = ("data", "fsdp", "tensor", "stage", "context", "expert")
"""The order axes are written in."""

REMAT = ("none", "dots", "minimal", "attention", "full", "offload")
"""What the backward pass finds saved of each layer besides its input, most first.

none: whatever it reads. dots: outputs of every weight's matmul (query, key and value after rotation, attention out, MLP
in, MLP out) and the attention kernel's output with its softmax statistics. minimal: the same without the kernel's,
which runs again (MaxText's `minimal`). attention: as dots, without the MLP's, which runs again. full: nothing.
offload: nothing, and the layer's input waits in host memory. MoE layers: see `autotune.models.remat`.
"""

SCHEDULES = ("gpipe", "1f1b", "circular", "zero-bubble")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Axis sizes per tier, and every other choice that changes the compiled program.

    `zero`: what is sharded over `data` besides the batch: 0 nothing, 1 optimizer state, 2 gradients too. `fsdp` always
    shards parameters, gradients and optimizer state (ZeRO-3).
    `accumulate`: sequential passes over slices of the batch before one optimizer step.
    `microbatches`, `schedule`, `virtual_stages` belong to the pipeline; schedule is None when `stage` is 1.
    `sequence_parallel`: norms and residuals sharded along `tensor` over the sequence.
    `context_attention`: how attention sees the other shards of a sequence cut over `context`: "gather" or "ring".
    `offload`: "none" or "optimizer" (its state lives in host memory between steps).
    `order`: the mesh axes from the outermost (slowest varying device) to the innermost.
    `compiler_options`: (name, value) pairs for XLA.
    `rules`: (logical axis, mesh axes) pairs that replace the defaults of `autotune.meshes.sharding`.
    """

    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    stage: int = 1
    context: int = 1
    expert: int = 1
    dcn: tuple[tuple[str, int], ...] = ()
    zero: int = 0
    remat: str = "none"
    accumulate: int = 1
    microbatches: int = 1
    schedule: str | None = None
    virtual_stages: int = 1
    sequence_parallel: bool = True
    context_attention: str = "gather"
    offload: str = "none"
    order: tuple[str, ...] = AXES
    compiler_options: tuple[tuple[str, str], ...] = ()
    rules: tuple[tuple[str, tuple[str, ...]], ...] = field(default=())

    def __post_init__(self) -> None:
        for name in (*WORDS, "accumulate", "microbatches", "virtual_stages"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"layout: {name}={value!r} must be a whole number, 1 or more")
        outer = dict(self.dcn)
        for name, factor in self.dcn:
            if name not in WORDS:
                raise ValueError(f"layout: dcn.{name} is not a mesh axis; axes: {', '.join(WORDS)}")
            if not isinstance(factor, int) or factor < 1 or getattr(self, name) % factor:
                raise ValueError(f"layout: dcn.{name}={factor} must divide {name}={getattr(self, name)}")
        if len(outer) != len(self.dcn):
            raise ValueError("layout: dcn names an axis twice")
        object.__setattr__(self, "dcn", tuple((name, outer[name]) for name in WORDS if outer.get(name, 1) > 1))
        for name, known in (
            ("zero", (0, 1, 2)),
            ("remat", REMAT),
            ("schedule", (None, *SCHEDULES)),
            ("context_attention", ("gather", "ring")),
            ("offload", ("none", "optimizer")),
        ):
            if getattr(self, name) not in known:
                listed = ", ".join(str(value) for value in known if value is not None)
                raise ValueError(f"layout: {name}={getattr(self, name)!r} must be one of {listed}")
        if sorted(self.order) != sorted(AXES):
            raise ValueError(f"layout: order={self.order!r} must name each of {', '.join(AXES)} once")
        for word, pairs in (("xla", self.compiler_options), ("rule", self.rules)):
            names = [name for name, _ in pairs]
            if len(set(names)) != len(names):
                raise ValueError(f"layout: {word} names {max(names, key=names.count)!r} twice")
        for name, value in (*self.compiler_options, *((name, "") for name, _ in self.rules)):
            if not name or any(sign in name or sign in value for sign in ", \t\n") or "=" in name:
                raise ValueError(f"layout: {name!r}={value!r} holds a comma or space, which no layout text can say")
        if any(not value for _, value in self.compiler_options):
            raise ValueError("layout: a compiler option has no value")
        for logical, axes in self.rules:
            for axis in axes:
                if axis not in AXES:
                    raise ValueError(
                        f"layout: rule.{logical}={axis!r} is not a mesh axis; axes: {', '.join(WORDS)}, none"
                    )
        if self.stage == 1 and (self.schedule, self.microbatches, self.virtual_stages) != (None, 1, 1):
            raise ValueError("layout: schedule, microbatches and virtual_stages need stage above 1")
        if self.stage > 1 and self.schedule is None:
            raise ValueError(f"layout: stage={self.stage} needs a schedule, one of {', '.join(SCHEDULES)}")

    @property
    def axes(self) -> dict[str, int]:
        """Total size of every mesh axis, in writing order."""
        return {name: getattr(self, name) for name in WORDS}

    @property
    def dcn_axes(self) -> dict[str, int]:
        """The factor of every mesh axis that crosses the outer tier, in writing order."""
        outer = dict(self.dcn)
        return {name: outer.get(name, 1) for name in WORDS}

    @property
    def mesh_shape(self) -> dict[str, int]:
        """Axis name -> total size, outermost first: the shape of the `jax.sharding.Mesh` (all six axes, ones too)."""
        return {name: getattr(self, name) for name in self.order}

    @property
    def devices(self) -> int:
        """JAX devices the mesh takes."""
        total = 1
        for size in self.axes.values():
            total *= size
        return total

    @property
    def batch_shards(self) -> int:
        """Pieces the batch dimension is cut into over devices: data x fsdp x expert."""
        return self.data * self.fsdp * self.expert

    def __str__(self) -> str:
        return ",".join(f"{key}={value}" for key, value in self.words().items()) or "data=1"

    def words(self) -> dict[str, str]:
        """What differs from the defaults, as the words of a layout text."""
        words = {name: str(size) for name, size in self.axes.items() if size > 1}
        words |= {f"dcn.{name}": str(size) for name, size in self.dcn}
        for spec in dataclasses.fields(self):
            value = getattr(self, spec.name)
            if spec.name in (*WORDS, "dcn", "rules", "compiler_options", "order") or value == spec.default:
                continue
            words[spec.name] = str(int(value)) if isinstance(value, bool) else str(value)
        words |= {f"xla.{name}": value for name, value in self.compiler_options}
        if self.order != AXES:
            words["order"] = ">".join(self.order)
        words |= {f"rule.{logical}": "+".join(axes) or "none" for logical, axes in self.rules}
        return words


def parse_layout(text: str) -> Layout:
    """The layout that a text such as "fsdp=64,tensor=4,remat=full" describes.

    ValueError names the word that is wrong and the rule.

    >>> str(parse_layout("tensor=4, fsdp=8,remat=full"))
    'fsdp=8,tensor=4,remat=full'
    """
    words: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key or not value:
            raise ValueError(f"layout: {part!r} must be written name=value")
        if key in words:
            raise ValueError(f"layout: {key} is given twice")
        words[key] = value
    if not words:
        raise ValueError("layout: is empty; write e.g. fsdp=64,tensor=4")
    return layout_from_words(words)


def layout_from_words(words: Mapping[str, str]) -> Layout:
    """The layout of already split words (the inverse of `Layout.words`)."""
    arguments: dict[str, object] = {}
    dcn, options, rules = [], [], []
    known = {spec.name: spec for spec in dataclasses.fields(Layout)}
    for key, value in words.items():
        prefix, _, rest = key.partition(".")
        if prefix == "dcn" and rest:
            dcn.append((rest, _whole(key, value)))
        elif prefix == "xla" and rest:
            options.append((rest, value))
        elif prefix == "rule" and rest:
            rules.append((rest, tuple(axis for axis in value.split("+") if axis != "none")))
        elif key == "order":
            arguments[key] = tuple(value.split(">"))
        elif key in ("remat", "schedule", "context_attention", "offload"):
            arguments[key] = value
        elif key == "sequence_parallel":
            if value not in ("0", "1"):
                raise ValueError(f"layout: sequence_parallel={value!r} must be 0 or 1")
            arguments[key] = value == "1"
        elif key in known and key not in ("dcn", "compiler_options", "rules"):
            arguments[key] = _whole(key, value)
        else:
            names = [name for name in known if name not in ("dcn", "compiler_options", "rules")]
            raise ValueError(f"layout: {key!r} is not known; known: {', '.join(names)}, dcn.<axis>, xla.<option>")
    return Layout(dcn=tuple(dcn), compiler_options=tuple(options), rules=tuple(rules), **arguments)  # type: ignore[arg-type]


def _whole(key: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"layout: {key}={value!r} must be a whole number") from None


def layout_to_json(layout: Layout) -> dict[str, object]:
    """The layout as the JSON of rows and plans has it."""
    return {
        "axes": layout.axes,
        "dcn_axes": layout.dcn_axes,
        "zero": layout.zero,
        "remat": layout.remat,
        "accumulate": layout.accumulate,
        "microbatches": layout.microbatches,
        "schedule": layout.schedule,
        "virtual_stages": layout.virtual_stages,
        "sequence_parallel": layout.sequence_parallel,
        "context_attention": layout.context_attention,
        "offload": layout.offload,
        "order": list(layout.order),
        "compiler_options": dict(layout.compiler_options),
    }
