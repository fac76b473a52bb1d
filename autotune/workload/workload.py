"""What is to be trained: a train step that can be built for any layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autotune.meshes.layout import AXES, Layout
from autotune.meshes.step import Step
from autotune.meshes.training import Training
from autotune.meshes.transformer import TransformerShape
from autotune.partition import Partition

if TYPE_CHECKING:
    from autotune.workload.trace import Traced


@dataclass(frozen=True, slots=True, init=False)
class Workload:
    """`build(layout, mesh)` makes the Step of one layout on a `jax.sharding.Mesh` (deviceless meshes included).

    `sequences` of `seq` tokens make one step over the whole mesh (examples of 1 token where the data has no length).
    `transformer` is the shape that the closed-form prices use; None for a step that is no transformer we know.
    `axes`: mesh axes that this step can make use of; `fixed`: words of a layout that it cannot change (a step that was
    not built from the layout keeps its own remat and microbatches).
    `fingerprint` names the program: two workloads with the same fingerprint compile to the same thing.
    `guesses`: what nobody said and was guessed, and how to pin it. `traced`: the figures of its trace, and `partition`:
    how its arrays are cut; None for the reference models, which the `transformer` describes.
    `recipe`: the command-line words that build it again (model or workload, batch, seq, dtype); empty when only Python
    can. `training`: the optimizer and dtypes of a reference model; a step of your own has its own, and its trace tells
    them. `ignored`, `not_modelled`: keys of a model file that change nothing in cost, and "key: what it may cost" of
    what the file says and no price or program has. Travels to worker processes by cloudpickle.
    """

    name: str
    build: Callable[[Layout, Any], Step]
    sequences: int
    seq: int
    dtype: str
    transformer: TransformerShape | None
    axes: tuple[str, ...]
    fixed: Mapping[str, str]
    fingerprint: str
    guesses: tuple[str, ...]
    traced: Traced | None
    partition: Partition | None
    recipe: Mapping[str, Any]
    training: Training
    ignored: tuple[str, ...]
    not_modelled: tuple[str, ...]

    def __init__(
        self,
        step: Callable[..., Any],
        state: Any,
        batch: Any,
        *,
        rules: Sequence[tuple[str, Any]] = (),
        logical_rules: Any = (),
        mesh_axes: Mapping[str, str] | None = None,
        parameters: Callable[[Any], Any] | None = None,
        explicit: bool = False,
        batch_axes: Mapping[str, int | None] | None = None,
        name: str | None = None,
    ) -> None:
        """A workload from your own `step(state, batch) -> (state, metrics)`; see docs of the arguments below.

        `state`: a tree of shapes (`jax.eval_shape`) or arrays; NNX objects such as `(model, optimizer)`, whose step is
        `step(model, optimizer, batch)`; or a function without arguments that makes either.
        `batch`: shapes or arrays, the first dimension of each being the batch.
        `rules`: (regex over the path of an array, axes of its dimensions) pairs; they win over Flax metadata.
        `logical_rules`: what the logical axis names of Flax metadata mean, as `flax.linen.logical_axis_rules` has them.
        `mesh_axes`: what your own mesh axes are, where their names do not say: {"mdl": "tensor"}.
        `parameters`: picks the parameters out of the state, where their place does not say.
        `explicit`: the step is written for Explicit mesh axes.
        `batch_axes`: path of an array of the batch -> which of its dimensions is the batch, None for an array that has
        none (a random key, a table of constants): {"tokens": 1, "rng": None}.
        """
        from autotune.workload.from_function import plain_fields

        fields = plain_fields(
            step, state, batch, rules=rules, logical_rules=logical_rules, mesh_axes=mesh_axes, parameters=parameters,
            explicit=explicit, batch_axes=batch_axes, name=name,
        )  # fmt: skip
        self._set(**fields)

    @classmethod
    def of_call(
        cls,
        step: Callable[..., Any],
        args: Sequence[Any] | Callable[[], Sequence[Any]] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        batch: Any,
        batch_axes: Mapping[str, int | None] | None = None,
        rules: Sequence[tuple[str, Any]] = (),
        logical_rules: Any = (),
        mesh_axes: Mapping[str, str] | None = None,
        parameters: Callable[[Any], Any] | None = None,
        explicit: bool | None = None,
        name: str | None = None,
    ) -> Workload:
        """A workload from one call of your step, `step(*args, **kwargs)`, as your own loop makes it.

        `args`, `kwargs`: arrays or shapes (`jax.eval_shape`, `nnx.eval_shape`), NNX objects, numbers, config objects
        and functions, in any order. What is no array is static; a plain number is, where the step takes no other.
        `args` may be a function that returns the tuple: it is called without computing anything, it makes the state of
        measured runs, and arguments that cannot be pickled (a lock, a device) are made by it in worker processes.
        `batch`: which of the arguments is the batch: its position, its name, the object itself, or a tuple of these.
        The new state is found in what the step returns, whole or in parts, or in the NNX objects that it changes.
        `rules`, `logical_rules`, `mesh_axes`, `batch_axes`, `name`: as the constructor takes them; paths begin with the
        name of the argument ("state/params/kernel"), those of the batch do not. `parameters`: picks the parameters out
        of a dict of the arguments by name. `explicit`: whether the mesh axes are Explicit; None: found out.
        ValueError in one line for what cannot be such a call, UserCodeError for what the step itself raises.
        """
        from autotune.workload.from_function import call_fields

        workload = object.__new__(cls)
        fields = call_fields(
            step, args, kwargs or {}, batch, rules=rules, logical_rules=logical_rules, mesh_axes=mesh_axes,
            parameters=parameters, explicit=explicit, batch_axes=batch_axes, name=name,
        )  # fmt: skip
        workload._set(**fields)
        return workload

    @classmethod
    def of(
        cls,
        *,
        name: str,
        build: Callable[[Layout, Any], Step],
        sequences: int,
        seq: int,
        dtype: str,
        fingerprint: str,
        transformer: TransformerShape | None = None,
        axes: tuple[str, ...] = AXES,
        fixed: Mapping[str, str] | None = None,
        guesses: tuple[str, ...] = (),
        traced: Traced | None = None,
        partition: Partition | None = None,
        recipe: Mapping[str, Any] | None = None,
        training: Training | None = None,
        ignored: tuple[str, ...] = (),
        not_modelled: tuple[str, ...] = (),
    ) -> Workload:
        """The workload whose `build` and figures are already known."""
        workload = object.__new__(cls)
        workload._set(
            name=name, build=build, sequences=sequences, seq=seq, dtype=dtype, transformer=transformer, axes=axes,
            fixed=fixed or {}, fingerprint=fingerprint, guesses=guesses, traced=traced, partition=partition,
            recipe=recipe or {}, training=training or Training(), ignored=ignored, not_modelled=not_modelled,
        )  # fmt: skip
        return workload

    @classmethod
    def from_builder(
        cls,
        builder: Callable[..., Any],
        *,
        axes: tuple[str, ...] | None = None,
        name: str | None = None,
        **options: Any,
    ) -> Workload:
        """A workload whose code depends on the layout (pipeline, microbatches, remat).

        `builder(layout)` returns (step, state, batch), as the constructor takes them with its `options`; or
        `builder(layout, mesh)` returns a finished `autotune.meshes.step.Step`. The words of the layout that it reads
        are the ones the search varies. `axes`: the mesh axes to search, where they are not those its arrays name.
        A builder of stages that reads neither `schedule` nor `virtual_stages` is taken to run GPipe.
        """
        from autotune.workload.from_builder import builder_fields

        workload = object.__new__(cls)
        workload._set(**builder_fields(builder, axes, name, options))
        return workload

    def with_recipe(self, recipe: Mapping[str, Any]) -> Workload:
        """The same workload, knowing the command-line words that build it again."""
        return self._with(recipe=recipe)

    def problem(self, layout: Layout) -> str | None:
        """Why this step cannot run under that layout, in one line; None when nothing speaks against it."""
        for word, value in self.fixed.items():
            if str(_word(layout, word)) != value:
                return f"{word}={_word(layout, word)}: the step takes no notice of it (Workload.from_builder can)"
        for axis in AXES:
            if getattr(layout, axis) > 1 and axis not in self.axes:
                if self.partition is not None and axis in self.partition.unusable:
                    return f"{axis}={getattr(layout, axis)}: {self.partition.unusable[axis]}"
                return f"{axis}={getattr(layout, axis)}: no array of the step is cut along {axis}"
        if self.partition and layout.zero == 2:
            return "zero=2: where the gradients live is said inside the step; from outside a plan can add zero=1"
        return self.partition.problem(layout) if self.partition else None

    def priced_only(self, platform: str) -> list[str]:
        """Why a reference model is priced only on a platform, in words: empty where it can be compiled."""
        return [] if self.transformer is None else self.transformer.priced_only(platform, self.training)

    @property
    def model_flops(self) -> float | None:
        """FLOPs of the model itself in one step, whole mesh (the numerator of MFU); None where they are not known."""
        if self.transformer is None:
            return self.traced.flops if self.traced else None
        return self.transformer.train_flops(self.sequences, self.seq, self.training.lora)

    @property
    def taken(self) -> str | None:
        """How a reference model is trained, in words; None of a step of your own, which says it itself."""
        if self.transformer is None:
            return None
        return f"{self.dtype} compute, {self.training.told()}, whole logits where vocab_tiles is 1"

    @property
    def model_note(self) -> str | None:
        """One line on what no price or program has of a model file, and on its keys without effect; None: nothing."""
        found = []
        if self.not_modelled:
            found.append(f"the model file says what is not modelled: {'; '.join(self.not_modelled)}")
        if self.ignored:
            found.append(f"{len(self.ignored)} of its keys change nothing in cost (`autotune models FILE` lists them)")
        return "; ".join(found) or None

    @property
    def tokens(self) -> int:
        """Tokens of one step over the whole mesh."""
        return self.sequences * self.seq

    def _with(self, **values: Any) -> Workload:
        workload = object.__new__(type(self))
        workload._set(**{field: getattr(self, field) for field in self.__slots__} | values)
        return workload

    def _set(self, **values: Any) -> None:
        left_out: dict[str, Any] = {
            "transformer": None,
            "recipe": {},
            "training": Training(),
            "ignored": (),
            "not_modelled": (),
        }
        for field, value in (left_out | values).items():
            object.__setattr__(self, field, value)


def _word(layout: Layout, word: str) -> object:
    value = getattr(layout, word)
    return int(value) if isinstance(value, bool) else value
