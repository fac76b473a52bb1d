"""A plan on real devices: its mesh, its shardings, its jit."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core.spmd import logical_axis_rules
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from autotune.mesh_context import mesh_set
from autotune.meshes.compiler_options import compiler_options
from autotune.meshes.hardware import hardware_of_kind
from autotune.meshes.topology import position
from autotune.partition import BATCH_AXES, BOTH, Leaf
from autotune.plan.fields import PlanFields
from autotune.workload.adapt import flax_rules, partition_spec, renamed
from autotune.workload.call import (
    NUMBERS,
    Fit,
    PureCall,
    Split,
    abstract_parts,
    donated,
    fit_call,
    is_hole,
    places_of,
)
from autotune.workload.flow import fed_by, flow_of
from autotune.workload.leaves import is_array, leaves_of, map_leaves, same_structure
from autotune.workload.replicas import refuse_replicas
from autotune.workload.returned import find_returned


def mesh(plan: PlanFields, devices: Sequence[Any] | None = None) -> Mesh:
    """The plan's mesh on these devices; ValueError with both values when they are not what it was made for."""
    found = sorted(jax.devices() if devices is None else devices, key=position)
    kinds = sorted({device.device_kind for device in found})
    names = {hardware_of_kind(kind) for kind in kinds}
    if len(found) != plan.devices or names != {plan.hardware}:
        raise ValueError(
            f"plan: made for {plan.devices} devices of {plan.hardware} ({plan.target}); "
            f"here are {len(found)} of {' and '.join(kinds) or 'nothing'}"
        )
    axes = tuple(plan.layout.mesh_shape)
    placed = np.array(found, dtype=object)[list(plan.device_order)].reshape(tuple(plan.layout.mesh_shape.values()))
    on = Mesh(placed, axes, axis_types=(AxisType.Auto,) * len(axes))
    return renamed(on, plan.partition) if plan.partition else on


def shardings(plan: PlanFields, tree: Any, on: Mesh | None) -> Any:
    """NamedShardings in the shape of the tree, None for what is no array; ValueError names an array that the plan does
    not know."""
    on = on if on is not None else mesh(plan)
    reference = placed(reference_step(plan, on).state) if plan.partition is None else {}

    def place(path: str, leaf: Any) -> NamedSharding | None:
        if not is_array(leaf):
            return None
        if plan.partition is None:
            found = reference.get(path) or _ending(reference, path, np.shape(leaf))
            if found is not None and found[0] == np.shape(leaf):
                return found[1]
        elif (known := plan.partition.find(path, np.shape(leaf))) is not None:
            return NamedSharding(on, partition_spec(plan.partition, known, plan.layout))
        raise ValueError(f"plan: {path} {list(np.shape(leaf))} is no array of {plan.workload}, for which it was made")

    return map_leaves(place, tree)


def reference_step(plan: PlanFields, on: Mesh) -> Any:
    """The step of a reference model under the plan on that mesh. (Only such plans need the models, so only here are
    they imported.)"""
    if "model" not in plan.recipe:
        raise ValueError(f"plan: it keeps no record of the arrays of {plan.workload}")
    from autotune.reference_workload import workload_of_plan

    return workload_of_plan(plan).build(plan.layout, on)


def placed(tree: Any) -> dict[str, tuple[tuple[int, ...], NamedSharding]]:
    """(shape, sharding) of every array of a tree that carries its shardings, by path."""
    return {path: (leaf.shape, leaf.sharding) for path, (_, leaf) in leaves_of(tree).items()}


def _ending(known: dict[str, tuple[tuple[int, ...], NamedSharding]], path: str, shape: tuple[int, ...]) -> Any:
    """The array whose path ends so, a parameter before an optimizer's, for a tree that is a part of the state."""
    found = [name for name in known if name.endswith("/" + path) and known[name][0] == shape]
    first = sorted(found, key=lambda name: not name.startswith("parameters/"))
    return known[first[0]] if first else None


def batch_shardings(plan: PlanFields, batch: Any, on: Mesh | None) -> Any:
    """NamedShardings of a batch: as the plan's own batch where path and rank agree, else along the first dimension."""
    on = on if on is not None else mesh(plan)
    reference = placed(reference_step(plan, on).batch) if "model" in plan.recipe and plan.partition is None else {}

    def place(path: str, leaf: Any) -> NamedSharding:
        if path in reference and len(reference[path][0]) == np.ndim(leaf):
            return reference[path][1]
        known = plan.partition.batch.get(path) if plan.partition else None
        if plan.partition is not None and known is not None and len(known.shape) == np.ndim(leaf):
            here = Leaf(names=known.names, shape=np.shape(leaf), role="batch", guessed=False)
            return NamedSharding(on, partition_spec(plan.partition, here, plan.layout))
        return _by_sequence(plan, on, leaf)

    return map_leaves(place, batch)


def _by_sequence(plan: PlanFields, on: Mesh, leaf: Any) -> NamedSharding:
    """The first dimension cut over the mesh axes that the batch is cut over."""
    used = [axis for axis in BATCH_AXES if plan.layout.axes[axis] > 1]
    cut = tuple(own for axis in used for own in (plan.partition.own_axes(axis) if plan.partition else (axis,)))
    return NamedSharding(on, PartitionSpec(cut or None) if np.ndim(leaf) else PartitionSpec())


def jit(plan: PlanFields, step: Callable[..., Any], on: Mesh | None, options: dict[str, Any]) -> PlannedStep:
    """The step jitted under the plan's mesh, Flax rules and compiler options."""
    on = on if on is not None else mesh(plan)
    machine, platform, layout = plan.machine().hardware, on.devices.flat[0].platform, plan.layout
    if machine.platform != {"gpu": "cuda"}.get(platform, platform):  # tried out on other devices
        if layout.options is not None:
            said = f"plan: options={layout.options} is of {plan.hardware}; on {platform} devices it is not set"
            warnings.warn(said, stacklevel=3)
        machine = dataclasses.replace(machine, compiler_options={})
        layout = dataclasses.replace(layout, options=None)
    return PlannedStep(plan, step, on, options, compiler_options(layout, machine))


class PlannedStep:
    """A step under a plan, called as the user calls it.

    Static arguments, NNX objects and plain numbers are found out at the first call, and the program is made. Arrays
    that live elsewhere are brought to where the plan wants them; those on the plan's devices stay where they are.
    """

    def __init__(
        self, plan: PlanFields, step: Callable[..., Any], on: Mesh, options: dict[str, Any], chosen: dict[str, Any]
    ) -> None:
        functools.update_wrapper(self, step, updated=())
        self._plan, self._step, self._on, self._chosen = plan, step, on, chosen
        self._options = dict(options)
        self._static = _static_arguments(step, self._options)
        self._devices = set(on.devices.flat)
        self._near = all(device.process_index == jax.process_index() for device in self._devices)
        self._fits: dict[Any, Fit] = {}
        self._programs: list[tuple[PureCall, Any]] = []

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """What the step returns; NNX objects among the arguments are changed in place, as the step changes them."""
        self._refuse_replicas(arguments, named)
        with use(self._plan, self._on):
            split, program, call = self._prepare(arguments, named)
            filled = split.filled(self._placed(split, arguments, named))
            result, after = program(*filled[0], **filled[1])
            split.update(after)
            return call.result(result, split.made)

    def lower(self, *arguments: Any, **named: Any) -> Any:
        """`jax.stages.Lowered` of the program that such a call runs; shapes do for arrays."""
        self._refuse_replicas(arguments, named)
        with use(self._plan, self._on):
            split, program, _ = self._prepare(arguments, named)
            filled = split.filled(self._placed(split, arguments, named))
            return program.lower(*filled[0], **filled[1])

    def _refuse_replicas(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Before the plan's mesh is set: under it `jax.pmap` takes no call."""
        if (len(arguments), tuple(named)) not in self._fits:
            refuse_replicas(self._step, arguments, named)

    def _prepare(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Split, Any, PureCall]:
        """The call taken apart, its program, and the pure call that the program was made of."""
        key = (len(arguments), tuple(named))
        if key not in self._fits:
            self._fits[key], split, closed, shapes = fit_call(self._step, arguments, named, self._static)
        else:
            split, closed, shapes = self._fits[key].split(arguments, named), None, None
        known = next(((program, call) for call, program in self._programs if alike(call, split.call)), None)
        if known is not None:
            return split, *known
        if closed is None:
            parts = abstract_parts(split.parts)
            closed, shapes = jax.make_jaxpr(split.call, return_shape=True)(parts)
        program = self._program(split, arguments, named, closed, shapes)
        self._programs.append((split.call, program))
        return split, program, split.call

    def _program(self, split: Split, arguments: Any, named: Any, closed: Any, shapes: Any) -> Any:
        call, places = split.call, self._shapes(split, arguments, named)

        def pure(*arrays: Any, **more: Any) -> Any:
            return call(call.parts_of((arrays, more)))

        pure.__name__ = pure.__qualname__ = getattr(self._step, "__name__", "step")
        given = {"out_shardings": returned(places, closed, shapes), **self._options}
        if not {"donate_argnums", "donate_argnames"} & self._options.keys():
            given["donate_argnums"] = _donated(split, len(arguments), closed)
        return jax.jit(pure, compiler_options=self._chosen or None, **given)

    def _placed(self, split: Split, arguments: Any, named: Any) -> list[Any]:
        """The parts of the call where the plan wants them. A shape says so; an array of several processes stays."""

        def stays(leaf: Any) -> bool:
            if isinstance(leaf, NUMBERS) or self._is_here(leaf):
                return True
            return not self._near and not isinstance(leaf, jax.ShapeDtypeStruct)

        if all(stays(leaf) for leaf in jax.tree.leaves(split.parts)):
            return split.parts

        def place(leaf: Any, wanted: jax.ShapeDtypeStruct) -> Any:
            if stays(leaf):
                return leaf
            return wanted if isinstance(leaf, jax.ShapeDtypeStruct) else jax.device_put(leaf, wanted.sharding)

        return jax.tree.map(place, split.parts, self._shapes(split, arguments, named))

    def _is_here(self, leaf: Any) -> bool:
        """Whether an array or a shape lives on the plan's devices."""
        there = getattr(leaf, "sharding", None)
        return there is not None and (getattr(there, "mesh", None) is self._on or there.device_set == self._devices)

    def _shapes(self, split: Split, arguments: Any, named: Any) -> list[Any]:
        """The parts of the call as shapes that say where the plan wants each array."""
        names = {place: name for name, place in places_of(self._step, arguments, named).items()}

        def place(path: str, leaf: Any) -> jax.ShapeDtypeStruct:
            if isinstance(leaf, NUMBERS):
                leaf = jax.eval_shape(lambda: jnp.asarray(leaf))
            there = leaf.sharding if self._is_here(leaf) else None
            if there is None:
                top, argument, *inside = path.split("/")
                key = int(argument) if top == "0" else argument
                there = self._sharding(names[key], key, "/".join(inside), leaf)
            weak = bool(getattr(leaf, "weak_type", False))
            return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=there, weak_type=weak)

        return split.call.parts_of(map_leaves(place, split.filled(split.parts)))

    @functools.cached_property
    def _reference_state(self) -> dict[str, tuple[tuple[int, ...], NamedSharding]]:
        return placed(reference_step(self._plan, self._on).state)

    def _sharding(self, name: str, place: int | str, inside: str, leaf: Any) -> NamedSharding:
        """Where the plan wants an array of a call: of its state, else of its batch, else whole on every device.

        `name`, `place`: the argument that holds the array. `inside`: the array's path in that argument.
        """
        plan, on, shape = self._plan, self._on, tuple(np.shape(leaf))
        if plan.partition is None:
            found = self._reference_state.get(inside) or _ending(self._reference_state, inside, shape)
            return found[1] if found is not None and found[0] == shape else _by_sequence(plan, on, leaf)
        paths = ["/".join(part for part in (str(one), inside) if part) for one in (name, place)]
        for path in (*paths, inside):
            known = plan.partition.state.get(path)
            if known is not None and known.shape == shape:
                return NamedSharding(on, partition_spec(plan.partition, known, plan.layout))
        for path in (inside, *paths):
            known = plan.partition.batch.get(path)
            if known is not None and len(known.shape) == len(shape):
                here = dataclasses.replace(known, shape=shape)
                return NamedSharding(on, partition_spec(plan.partition, here, plan.layout))
        known = plan.partition.find(inside, shape) if inside else None
        if known is not None:
            return NamedSharding(on, partition_spec(plan.partition, known, plan.layout))
        return NamedSharding(on, PartitionSpec())


def alike(one: PureCall, other: PureCall) -> bool:
    """Whether two calls differ in nothing but their arrays: then they are one program."""
    if one is other:
        return True
    if not same_structure(one.skeleton, other.skeleton) or one.objects != other.objects:
        return False
    for mine, theirs in zip(jax.tree.leaves(one.skeleton), jax.tree.leaves(other.skeleton), strict=True):
        if mine is theirs or (is_hole(mine) and is_hole(theirs)):
            continue
        if type(mine) is not type(theirs) or not bool(mine == theirs):
            return False
    return bool(one.graph == other.graph)


def _static_arguments(step: Callable[..., Any], options: dict[str, Any]) -> frozenset[int | str]:
    """The arguments that the options of `jax.jit` call static, by position and by name; they are taken out of them."""
    found: set[int | str] = set()
    for word in ("static_argnums", "static_argnames"):
        given = options.pop(word, ())
        found |= {given} if isinstance(given, (int, str)) else set(given or ())
    try:
        names = list(inspect.signature(step).parameters)
    except (TypeError, ValueError):
        return frozenset(found)
    for one in list(found):
        if isinstance(one, int):
            at = one + len(names) if one < 0 else one
            found |= {at, names[at]} if at < len(names) else {at}
        elif one in names:
            found.add(names.index(one))
    return frozenset(found)


def _donated(split: Split, positional: int, closed: Any) -> tuple[int, ...]:
    """The positions of the arguments that the user's own jit takes over whole."""
    numbers = iter(range(len(closed.jaxpr.invars)))
    arguments, _ = split.filled(jax.tree.map(lambda leaf: next(numbers), split.parts))
    taken = donated(closed.jaxpr)
    return tuple(
        position for position in range(positional)
        if (leaves := jax.tree.leaves(arguments[position])) and set(leaves) <= taken
    )  # fmt: skip


def returned(places: list[Any], closed: Any, shapes: Any) -> Any:
    """Shardings of what a call gives: the new value of an argument's array stays where the old one was.

    Left to itself the compiler gives a new state back as it came about: under ZeRO the parameters would come back cut
    like the optimizer's state, and the next step would be another program. `places`: for each part of the call its
    shapes with their shardings.
    """
    result, after = shapes
    where = [leaf.sharding for leaf in jax.tree.leaves(places)]
    flow = flow_of(closed.jaxpr)
    arguments = {str(index): part for index, part in enumerate(places)}
    found = find_returned(arguments, result, fed_by(flow), fed_by(flow, within_loss=True))
    old = {new: index for index, new in found.items()}
    numbers = iter(range(len(jax.tree.leaves(result))))
    of_result = jax.tree.map(lambda leaf: where[old[number]] if (number := next(numbers)) in old else None, result)
    of_objects = [
        None if new is None else jax.tree.map(lambda leaf: leaf.sharding, part)
        for part, new in zip(places, after, strict=True)
    ]
    return of_result, of_objects


@contextlib.contextmanager
def use(plan: PlanFields, on: Mesh | None) -> Iterator[Mesh]:
    """The plan's mesh and the meaning of its logical axes, set."""
    on = on if on is not None else mesh(plan)
    rules = flax_rules(plan.partition, plan.layout) if plan.partition else ()
    context = plan.partition.mesh_context if plan.partition else BOTH
    with mesh_set(on, context), logical_axis_rules(rules) if rules else contextlib.nullcontext():
        yield on
