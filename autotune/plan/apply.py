"""A plan on real devices: its mesh, its shardings, its jit."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax.core.spmd import logical_axis_rules
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from autotune.mesh_context import mesh_set
from autotune.meshes.compiler_options import compiler_options
from autotune.meshes.topology import DEVICE_KINDS, position
from autotune.partition import BATCH_AXES, Leaf
from autotune.plan.plan import Plan
from autotune.workload.leaves import is_array, leaves_of, map_leaves
from autotune.workload.step import flax_rules, partition_spec


def mesh(plan: Plan, devices: Sequence[Any] | None = None) -> Mesh:
    """The plan's mesh on these devices; ValueError with both values when they are not what it was made for."""
    found = sorted(jax.devices() if devices is None else devices, key=position)
    kinds = sorted({device.device_kind for device in found})
    names = {hardware_of(kind) for kind in kinds}
    if len(found) != plan.devices or names != {plan.hardware}:
        raise ValueError(
            f"plan: made for {plan.devices} devices of {plan.hardware} ({plan.target}); "
            f"here are {len(found)} of {' and '.join(kinds) or 'nothing'}"
        )
    placed = np.array(found, dtype=object)[list(plan.device_order)].reshape(tuple(plan.layout.mesh_shape.values()))
    own = plan.partition.mesh_names if plan.partition else {}
    kind = AxisType.Explicit if plan.partition and plan.partition.explicit else AxisType.Auto
    axes = tuple(own.get(axis, axis) for axis in plan.layout.mesh_shape)
    return Mesh(placed, axes, axis_types=(kind,) * len(axes))


def hardware_of(device_kind: str) -> str | None:
    """The name of the hardware file for what a JAX device calls itself; None when there is none."""
    return next((name for part, name in DEVICE_KINDS if part.lower() in device_kind.lower()), None)


def shardings(plan: Plan, tree: Any, on: Mesh | None) -> Any:
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


def reference_step(plan: Plan, on: Mesh) -> Any:
    """The step of a reference model under the plan on that mesh. (Only such plans need the models, so only here are
    they imported.)"""
    if "model" not in plan.recipe:
        raise ValueError(f"plan: it keeps no record of the arrays of {plan.workload}")
    from autotune.preset import preset_workload

    model, dtype = str(plan.recipe["model"]), str(plan.recipe["dtype"])
    return preset_workload(model, batch=plan.sequences, seq=plan.seq, dtype=dtype).build(plan.layout, on)


def placed(tree: Any) -> dict[str, tuple[tuple[int, ...], NamedSharding]]:
    """(shape, sharding) of every array of a tree that carries its shardings, by path."""
    return {path: (leaf.shape, leaf.sharding) for path, (_, leaf) in leaves_of(tree).items()}


def _ending(known: dict[str, tuple[tuple[int, ...], NamedSharding]], path: str, shape: tuple[int, ...]) -> Any:
    """The array whose path ends so, a parameter before an optimizer's, for a tree that is a part of the state."""
    found = [name for name in known if name.endswith("/" + path) and known[name][0] == shape]
    first = sorted(found, key=lambda name: not name.startswith("parameters/"))
    return known[first[0]] if first else None


def batch_shardings(plan: Plan, batch: Any, on: Mesh | None) -> Any:
    """NamedShardings of a batch: as the plan's own batch where path and rank agree, else along the first dimension."""
    on = on if on is not None else mesh(plan)
    own = plan.partition.mesh_names if plan.partition else {}
    reference = placed(reference_step(plan, on).batch) if "model" in plan.recipe and plan.partition is None else {}

    def place(path: str, leaf: Any) -> NamedSharding:
        if path in reference and len(reference[path][0]) == np.ndim(leaf):
            return reference[path][1]
        known = plan.partition.batch.get(path) if plan.partition else None
        if plan.partition is not None and known is not None and len(known.shape) == np.ndim(leaf):
            here = Leaf(names=known.names, shape=np.shape(leaf), role="batch", guessed=False)
            return NamedSharding(on, partition_spec(plan.partition, here, plan.layout))
        cut = tuple(own.get(axis, axis) for axis in BATCH_AXES if plan.layout.axes[axis] > 1)
        return NamedSharding(on, PartitionSpec(cut or None) if np.ndim(leaf) else PartitionSpec())

    return map_leaves(place, batch)


def jit(plan: Plan, step: Callable[..., Any], on: Mesh | None, options: dict[str, Any]) -> Callable[..., Any]:
    """The step jitted under the plan's mesh, Flax rules and compiler options."""
    on = on if on is not None else mesh(plan)
    machine, platform = plan.machine().hardware, on.devices.flat[0].platform
    if machine.platform != {"gpu": "cuda"}.get(platform, platform):  # tried out on other devices
        machine = dataclasses.replace(machine, compiler_options={})
    chosen = compiler_options(plan.layout, machine)
    programs: dict[Any, Callable[..., Any]] = {}

    @functools.wraps(step)
    def call(*arguments: Any, **named: Any) -> Any:
        with use(plan, on):
            kind = jax.tree.structure((arguments, named))
            if kind not in programs:
                given = {"out_shardings": returned(step, arguments, named), **options}
                programs[kind] = jax.jit(step, compiler_options=chosen or None, **given)
            return programs[kind](*arguments, **named)

    return call


def returned(step: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Shardings of what a step returns: a part built like one of its arguments stays where that one was.

    Left to itself the compiler gives a new state back as it came about: under ZeRO the parameters would come back cut
    like the optimizer's state, and the next step would be another program.
    """
    places = {}
    for argument in (*arguments, *named.values()):
        if all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(argument)):
            shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), argument)
            places[str(shapes)] = jax.tree.map(lambda leaf: leaf.sharding, argument)

    def place(part: Any) -> Any:
        return places.get(str(jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), part)))

    result = jax.eval_shape(step, *arguments, **named)
    if type(result) is tuple and place(result) is None:
        return tuple(place(part) for part in result)
    return place(result)


@contextlib.contextmanager
def use(plan: Plan, on: Mesh | None) -> Iterator[Mesh]:
    """The plan's mesh and the meaning of its logical axes, set."""
    on = on if on is not None else mesh(plan)
    rules = flax_rules(plan.partition, plan.layout) if plan.partition else ()
    with mesh_set(on), logical_axis_rules(rules) if rules else contextlib.nullcontext():
        yield on
