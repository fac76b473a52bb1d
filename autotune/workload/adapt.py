"""A user's step function as a Step on any mesh: adapted to (state, batch) -> (state, metrics), shapes cut by names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.core.spmd import logical_axis_rules
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from autotune.mesh_context import mesh_set
from autotune.meshes.layout import AXES, Layout
from autotune.meshes.step import Step
from autotune.partition import BOTH, EXTRA, Leaf, Name, Partition
from autotune.user_code import UserCodeError, user_code
from autotune.workload.leaves import arrays_of, is_array, map_leaves, path_of
from autotune.workload.pickled import can_be_pickled
from autotune.workload.same_program import AnotherProgram, Operation, compare, fails_here
from autotune.workload.tracing import tracing


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapted:
    """The user's step in our shape."""

    function: Callable[[Any, Any], tuple[Any, Any]]
    """Pure: (state, batch) -> (state, metrics)."""
    state: Any
    """A tree of `jax.ShapeDtypeStruct`."""
    batch: Any
    """A tree of `jax.ShapeDtypeStruct`."""
    initialise: Callable[[], Any] | None
    """Makes a real state; None where the user gave only shapes."""
    in_place: bool
    """Whether the user's own step changes NNX objects, or takes a state with more than arrays in it: its outputs then
    stay where the user's own jit leaves them."""
    again: Callable[[], Adapted] | None = None
    """Makes the same from the user's own functions; None where the user gave a state and no function that makes it."""

    def __reduce__(self) -> tuple[Any, ...]:
        """A state that cannot be pickled (it keeps a lock, or a device, beside its arrays) is made anew where it
        arrives."""
        if self.again is not None and not can_be_pickled((self.function, self.state, self.batch)):
            return self.again, ()
        return partial(Adapted, **{field.name: getattr(self, field.name) for field in fields(self)}), ()


def adapt(step: Callable[..., Any], state: Any, batch: Any, explicit: bool) -> Adapted:
    """Read what the user gave: `state` is an abstract or real tree, NNX objects, or a function that makes them.

    NNX objects are split; their step may change them in place. `step` takes (state, batch), or the parts of a tuple
    `state` one by one and then the batch; it returns the new state and metrics in either order, or the state alone.
    """
    if not callable(step):
        raise ValueError(f"workload: step={step!r} must be a function")
    if _is_factory(batch):
        with user_code("making the batch"):
            batch = jax.eval_shape(batch)
    batch = abstract(batch)
    if not jax.tree.leaves(batch):
        raise ValueError("workload: batch has no arrays")
    pure = _PureState(make=state if _is_factory(state) else None, made=state)
    if pure.make is None:
        tree = abstract(pure())
    else:
        with user_code("making the state"), tracing(explicit):
            tree = jax.eval_shape(pure)
    if not jax.tree.leaves(tree):
        raise ValueError("workload: state has no arrays")
    spread = _spreads(step, pure.parts)
    call: Callable[[Any, Any], tuple[Any, Any]] = _TreeStep(step=step, spread=spread, skeleton=pure.skeleton)
    if pure.graph is not None:
        call = _ObjectStep(step=step, graph=pure.graph, spread=spread, make=pure.make)
    initialise = _Initialise(make=pure.make) if pure.make is not None else None
    in_place = pure.graph is not None or pure.skeleton is not None
    again = partial(adapt, step, state, batch, explicit) if pure.make is not None else None
    return Adapted(function=call, state=tree, batch=batch, initialise=initialise, in_place=in_place, again=again)


class _PureState:
    """Calling it gives the state as a tree of arrays.

    After a call `graph` is what NNX objects are beside their arrays (None for a state without such objects), `skeleton`
    the state with a hole for each array (None where it holds nothing but arrays), and `parts` how many things a tuple
    state has.
    """

    def __init__(self, make: Callable[[], Any] | None, made: Any) -> None:
        self.make, self.made = make, made
        self.graph: Any = None
        self.skeleton: Skeleton | None = None
        self.parts = 1

    def __call__(self) -> Any:
        # Without a mesh of the user's own to live on, an annotated NNX variable must not ask for one when it is made.
        with nnx.use_eager_sharding(False):
            made = self.make() if self.make is not None else self.made
        self.parts = len(made) if type(made) is tuple else 1
        if not _holds_objects(made):
            self.skeleton = skeleton_of(made)
            return arrays_of(made)
        self.graph, tree = nnx.split(made)
        return tree


class _Hole:
    """Stands where an array was. A leaf, unlike None, which a state may hold itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skeleton:
    """A state that holds more than arrays, with a hole in place of each array.

    The tree itself and not its structure: the structure of an Equinox module does not survive pickling.
    """

    tree: Any

    def whole(self, arrays: Any) -> Any:
        """The state with these arrays in their places."""
        given = iter(jax.tree.leaves(arrays))
        return jax.tree.map(lambda leaf: next(given) if isinstance(leaf, _Hole) else leaf, self.tree)


def skeleton_of(state: Any) -> Skeleton | None:
    """The state without its arrays; None where it holds nothing else."""
    if all(is_array(leaf) for leaf in jax.tree.leaves(state)):
        return None
    return Skeleton(tree=jax.tree.map(lambda leaf: _Hole() if is_array(leaf) else leaf, state))


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True, eq=False)
class _Initialise:
    """Makes the user's real initial state, as a tree of arrays."""

    make: Callable[[], Any]

    def __call__(self) -> Any:
        return _PureState(self.make, None)()


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True, eq=False)
class _ObjectStep:
    """A step over NNX objects, which it may change in place.

    Compared by identity, as functions are: the graph need not be hashable (a module that keeps its config dataclass).
    """

    step: Callable[..., Any]
    graph: Any
    spread: bool
    make: Callable[[], Any] | None

    def __reduce__(self) -> tuple[Any, ...]:
        """A graph that cannot be pickled (a module that keeps a lock or a device) is made anew where it arrives, by the
        user's own function that makes the state."""
        if self.make is not None and not can_be_pickled(self.graph):
            return _made_anew, (self.step, self.spread, self.make)
        return _object_step, (self.step, self.graph, self.spread, self.make)

    def __call__(self, state: Any, batch: Any) -> tuple[Any, Any]:
        objects = nnx.merge(self.graph, state)
        arguments = objects if self.spread else (objects,)
        with user_code("the step"):
            metrics = self.step(*arguments, batch)
        return nnx.state(objects), metrics


def _object_step(step: Callable[..., Any], graph: Any, spread: bool, make: Callable[[], Any] | None) -> _ObjectStep:
    return _ObjectStep(step=step, graph=graph, spread=spread, make=make)


def _made_anew(step: Callable[..., Any], spread: bool, make: Callable[[], Any]) -> _ObjectStep:
    """The step with the graph of objects that this process makes."""
    pure = _PureState(make=make, made=None)
    with user_code("making the state"), tracing(False):
        jax.eval_shape(pure)
    return _ObjectStep(step=step, graph=pure.graph, spread=spread, make=make)


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True, eq=False)
class _TreeStep:
    """A pure step over a tree; what stands in it beside its arrays is put back for the call."""

    step: Callable[..., Any]
    spread: bool
    skeleton: Skeleton | None

    def __call__(self, state: Any, batch: Any) -> tuple[Any, Any]:
        whole = state if self.skeleton is None else self.skeleton.whole(state)
        arguments = whole if self.spread else (whole,)
        with user_code("the step"):
            result = self.step(*arguments, batch)
        return split_result(result if self.skeleton is None else arrays_of(result), state)


def split_result(result: Any, state: Any) -> tuple[Any, Any]:
    """(new state, metrics) out of whatever order the step returns them in; ValueError when no part is a state."""
    wanted: Any = jax.tree.structure(state)

    def fits(tree: Any) -> bool:
        return bool(jax.tree.structure(tree) == wanted)

    if fits(result):
        return result, ()
    if isinstance(result, tuple) and result:
        if fits(result[0]):
            return result[0], result[1:]
        if fits(result[-1]):
            return result[-1], result[:-1]
        if type(state) is tuple:
            size = len(state)
            if fits(result[:size]):
                return result[:size], result[size:]
            if fits(result[-size:]):
                return result[-size:], result[:-size]
    raise ValueError(
        f"workload: the step returns {_shape_of(result)}; it must return the new state, built like the one it takes "
        f"({_shape_of(state)}), and metrics"
    )


def abstract(tree: Any) -> Any:
    """The tree with `jax.ShapeDtypeStruct` in place of arrays."""

    def shape(leaf: Any) -> Any:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
            sharding = getattr(leaf, "sharding", None)
            weak = bool(getattr(leaf, "weak_type", False))
            placed = sharding if _named(sharding) else None
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed, weak_type=weak)
        return jax.eval_shape(lambda: jnp.asarray(leaf))

    return jax.tree.map(shape, tree)


def trace(
    adapted: Adapted,
    explicit: bool,
    names: Sequence[str],
    sizes: Mapping[str, int] | None = None,
    context: str = BOTH,
    only: Sequence[str] = (),
) -> Any:
    """The ClosedJaxpr of the step under a mesh (`tracing`); checks that the new state is built like the old one."""
    with tracing(explicit, names, sizes, context, only=only):
        return traced(adapted)


def traced(adapted: Adapted) -> Any:
    """The same under the mesh that is set."""
    state, batch = unplaced(adapted.state), unplaced(adapted.batch)
    closed, out = jax.make_jaxpr(adapted.function, return_shape=True)(state, batch)
    for (path, old), new in zip(
        jax.tree_util.tree_flatten_with_path(adapted.state)[0], jax.tree.leaves(out[0]), strict=True
    ):
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            raise ValueError(
                f"workload: the step turns {path_of(path) or 'the state'} from {old.dtype}{list(old.shape)} into "
                f"{new.dtype}{list(new.shape)}; a state must keep its shapes"
            )
    return closed


def unplaced(tree: Any) -> Any:
    """Shapes without their shardings."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=leaf.weak_type), tree)


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True)
class Builder:
    """`build(layout, mesh)` of a step that does not depend on the layout: only the cut of its arrays does."""

    adapted: Adapted
    partition: Partition
    mesh_axes: tuple[str, ...] = ()
    operations: tuple[Operation, ...] = ()

    def check(self) -> None:
        """Trace the step here and compare: raises AnotherProgram unless it is the one the workload was made from.

        `operations`: those of that trace, under a mesh with the user's own `mesh_axes` beside ours.
        """
        try:
            found = trace(
                self.adapted, self.partition.explicit, self.mesh_axes, context=self.partition.mesh_context,
                only=self.partition.only_axes,
            )  # fmt: skip
        except UserCodeError as error:
            raise AnotherProgram(fails_here(error.summary)) from error
        compare(found, self.operations)

    def __call__(self, layout: Layout, mesh: Any) -> Step:
        problem = self.partition.problem(layout)
        if problem:
            raise ValueError(f"layout {layout}: {problem}")
        mesh = renamed(mesh, self.partition)
        state = map_leaves(
            lambda path, leaf: _placed(leaf, self.partition.state[path], self.partition, layout, mesh),
            self.adapted.state,
        )
        batch = map_leaves(
            lambda path, leaf: _placed(leaf, self.partition.batch[path], self.partition, layout, mesh),
            self.adapted.batch,
        )
        return Step(
            function=_WithRules(function=self.adapted.function, rules=flax_rules(self.partition, layout)),
            mesh=mesh,
            state=state,
            batch=batch,
            initialise=lambda seed: _initial(self.adapted, self.partition, state, seed),
            make_batch=_random(batch, 1.0),
            parameters=_OfRole(partition=self.partition, role="parameters"),
            frozen=_OfRole(partition=self.partition, role="frozen"),
            mutable=_OfRole(partition=self.partition, role="mutable"),
            mesh_context=self.partition.mesh_context,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfRole:
    """Picks the arrays of one role out of a state."""

    partition: Partition
    role: str

    def __call__(self, state: Any) -> list[Any]:
        roles = [leaf.role for leaf in self.partition.state.values()]
        return [leaf for leaf, role in zip(jax.tree.leaves(state), roles, strict=True) if role == self.role]


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True, eq=False)
class _WithRules:
    """Flax's own logical constraints inside the step find the layout's rules."""

    function: Callable[[Any, Any], tuple[Any, Any]]
    rules: tuple[tuple[str, Any], ...]

    @property
    def __name__(self) -> str:
        """What JAX calls the program."""
        return "step"

    def __call__(self, state: Any, batch: Any) -> tuple[Any, Any]:
        with logical_axis_rules(self.rules):
            return self.function(state, batch)


def flax_rules(partition: Partition, layout: Layout) -> tuple[tuple[str, Any], ...]:
    """The logical rules of a layout as Flax takes them, in the mesh's own names."""
    rules = partition.meanings(layout)
    own = {name: tuple(partition.own_name(axis) for axis in axes) for name, axes in rules.items()}
    return tuple((name, tuple(filter(partition.on_mesh, axes)) or None) for name, axes in own.items())


def renamed(mesh: Any, partition: Partition) -> Any:
    """The same devices under the names that the step itself uses; an axis that several of its own share is split, and
    one that its mesh must not have is left out."""
    kind = AxisType.Explicit if partition.explicit else AxisType.Auto
    sizes = partition.own_shape(dict(mesh.shape))
    if tuple(sizes) == mesh.axis_names and all(one == kind for one in mesh.axis_types):
        return mesh
    return Mesh(mesh.devices.reshape(tuple(sizes.values())), tuple(sizes), axis_types=(kind,) * len(sizes))


def partition_spec(partition: Partition, leaf: Leaf, layout: Layout) -> PartitionSpec:
    """The cut of one array in the mesh's own names."""
    parts = []
    for name, axes in zip(leaf.names, partition.cut(leaf, layout), strict=True):
        own = _own_axes(partition, name, axes, layout)
        parts.append(own[0] if len(own) == 1 else own or None)
    return PartitionSpec(*parts)


def _own_axes(partition: Partition, name: Name, axes: tuple[str, ...], layout: Layout) -> tuple[str, ...]:
    """The own names of the axes that cut one dimension.

    With Explicit axes ("y", "z") and "y" are two types though "z" has size 1: a dimension that was named so keeps all
    of its axes, and one whose name means several of one kind keeps those of the kinds that cut it.
    """
    if not axes:
        return ()
    said, sizes = partition.meant(name, layout), partition.sizes(layout)
    shared = {partition.kind(axis) for axis in axes} & set(partition.extra_axes.values())
    listed = isinstance(name, tuple) and len(name) > 1 and all(part in AXES or part.startswith(EXTRA) for part in name)
    every = listed and bool(partition.explicit or partition.extra_axes)

    def is_kept(axis: str) -> bool:
        return axis in axes or (sizes[axis] == 1 and (every or partition.kind(axis) in shared))

    kept = [axis for axis in said if is_kept(axis)]
    added = [axis for axis in axes if axis not in said]  # by ZeRO
    return tuple(partition.own_name(axis) for axis in (*kept, *added))


def _placed(leaf: Any, named: Leaf, partition: Partition, layout: Layout, mesh: Any) -> jax.ShapeDtypeStruct:
    sharding = NamedSharding(mesh, partition_spec(partition, named, layout))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding, weak_type=leaf.weak_type)


def _initial(adapted: Adapted, partition: Partition, state: Any, seed: int) -> Any:
    """The user's own initial state, made where it will live; else small random parameters and zeros."""
    leaves, structure = jax.tree.flatten(state)
    if adapted.initialise is not None:
        make = adapted.initialise
        # As a list: made anew, a tree can differ in what it carries beside its arrays (the functions of a TrainState).
        flat = jax.jit(lambda: jax.tree.leaves(make()), out_shardings=[leaf.sharding for leaf in leaves])
        with user_code("making the state"), mesh_set(leaves[0].sharding.mesh, partition.mesh_context):
            return jax.tree.unflatten(structure, flat())
    roles = [leaf.role for leaf in partition.state.values()]
    weights = [role in ("parameters", "frozen") for role in roles]
    chosen = [leaf for leaf, weight in zip(leaves, weights, strict=True) if weight]
    made = iter(_random(chosen, 0.02)(seed) if chosen else ())
    zeros = iter(_zeros([leaf for leaf, weight in zip(leaves, weights, strict=True) if not weight]))
    return jax.tree.unflatten(structure, [next(made if weight else zeros) for weight in weights])


def _zeros(leaves: list[Any]) -> list[Any]:
    if not leaves:
        return []

    def make() -> list[Any]:
        return [
            jax.random.split(jax.random.key(0), leaf.shape)
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) and leaf.shape
            else jax.random.key(0)
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else jnp.zeros(leaf.shape, leaf.dtype)
            for leaf in leaves
        ]

    return jax.jit(make, out_shardings=[leaf.sharding for leaf in leaves])()


def _random(tree: Any, scale: float) -> Callable[[int], Any]:
    """Makes such a tree from a seed: normal floats, small whole numbers (0 or 1: valid as any index), False."""
    leaves, structure = jax.tree.flatten(tree)

    def draw(key: Any) -> list[Any]:
        keys = jax.random.split(key, len(leaves))
        return [_random_array(one, leaf, scale) for one, leaf in zip(keys, leaves, strict=True)]

    program = jax.jit(draw, out_shardings=[leaf.sharding for leaf in leaves])

    def make(seed: int) -> Any:
        with mesh_set(leaves[0].sharding.mesh):
            return jax.tree.unflatten(structure, program(jax.random.key(seed)))

    return make


def _random_array(key: Any, leaf: Any, scale: float) -> Any:
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return (scale * jax.random.normal(key, leaf.shape)).astype(leaf.dtype)
    if jnp.issubdtype(leaf.dtype, jnp.integer):
        return jax.random.randint(key, leaf.shape, 0, 2).astype(leaf.dtype)
    return jnp.zeros(leaf.shape, leaf.dtype)


def _named(sharding: Any) -> bool:
    return isinstance(sharding, NamedSharding)


def _is_factory(state: Any) -> bool:
    return callable(state) and jax.tree_util.all_leaves([state])


def _holds_objects(state: Any) -> bool:
    parts = state if isinstance(state, (tuple, list)) else (state,)
    return any(isinstance(part, nnx.Pytree) for part in parts)


def _spreads(step: Callable[..., Any], parts: int) -> bool:
    """Whether the step takes the parts of a tuple state one by one: (model, optimizer, batch)."""
    try:
        given = inspect.signature(step).parameters.values()
    except (TypeError, ValueError):
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [one for one in given if one.kind in kinds and one.default is inspect.Parameter.empty]
    if parts > 1 and len(needed) == parts + 1:
        return True
    if len(needed) != 2:
        raise ValueError(
            f"workload: the step takes {len(needed)} arguments; it must take (state, batch)"
            + (f", or the {parts} parts of the state and then the batch" if parts > 1 else "")
            + "; Workload.of_call(step, args=(...), batch=...) takes any call"
        )
    return False


def _shape_of(tree: Any) -> str:
    text = str(jax.tree.structure(tree))
    return text if len(text) < 120 else text[:117] + "..."
