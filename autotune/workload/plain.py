"""From a user's step, state and batch to the fields of a Workload: names of all dimensions, trace, what was guessed."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from autotune.meshes.layout import AXES
from autotune.partition import LOGICAL_AXIS_RULES, MESH_NAMES, Leaf, Name, Partition
from autotune.workload.guess import describe, guess_names
from autotune.workload.leaves import annotated, leaves_of, match_rules
from autotune.workload.same_program import operations
from autotune.workload.step import Adapted, Builder, adapt, trace
from autotune.workload.trace import Traced, activation_bytes, dots, mesh_axis_names, nbytes, notes

FIXED = {"remat": "none", "accumulate": "1", "stage": "1", "sequence_parallel": "1", "context_attention": "gather",
         "offload": "none"}  # fmt: skip
"""What a step that was not built from the layout cannot change."""

UNTOLD_BYTES_SHARE = 0.01
"""Arrays without annotation are worth a word when they hold more of the parameters than this."""


def plain_fields(
    step: Callable[..., Any],
    state: Any,
    batch: Any,
    *,
    rules: Sequence[tuple[str, Any]] = (),
    logical_rules: Any = (),
    mesh_axes: Mapping[str, str] | None = None,
    parameters: Callable[[Any], Any] | None = None,
    explicit: bool = False,
    name: str | None = None,
) -> dict[str, Any]:
    """Everything `Workload.of` wants, from what the user has."""
    adapted = adapt(step, state, batch, explicit)
    own = dict(mesh_axes or {})
    for one, ours in own.items():
        if ours not in AXES:
            raise ValueError(f"mesh_axes: {one!r} is given as {ours!r}, which is not one of {', '.join(AXES)}")
    closed = trace(adapted, explicit, tuple(own))
    leaves = leaves_of(adapted.state)
    roles = roles_of(leaves, adapted, parameters)
    naming = Naming(own, logical_rules)
    said = match_rules(rules, leaves)
    for path, (node, array) in leaves.items():
        names = annotated(node, array)
        if path not in said and names is not None:
            said[path] = names
    named = {path: tuple(naming.own(one) for one in names) for path, names in said.items()}
    named = naming.settle(named, roles, mesh_axis_names(closed.jaxpr))
    guesses = list(naming.notes)
    shapes = {path: tuple(array.shape) for path, (_, array) in leaves.items()}
    guessed: dict[str, tuple[Name, ...]] = {}
    mine = [path for path, role in roles.items() if role == "parameters"]
    if not any(path in named for path in mine):
        order = {path: index for index, path in enumerate(leaves)}
        batch_inputs = range(len(leaves), len(closed.jaxpr.invars))
        guessed = guess_names(closed.jaxpr, {path: order[path] for path in mine}, list(batch_inputs))
        guesses += describe(guessed, shapes)
    else:
        guesses += _untold(mine, named, leaves)
    state_leaves = {}
    for path, role in roles.items():
        names = named.get(path, guessed.get(path))
        twin = parameter_of(path, shapes, mine) if names is None and role == "optimizer" else path
        if names is None and twin is not None:
            names = named.get(twin, guessed.get(twin))
        state_leaves[path] = Leaf(
            names=names or (None,) * len(shapes[path]), shape=shapes[path], role=role, guessed=twin in guessed
        )
    context = "context" in naming.used
    batch_leaves = {
        path: _batch_leaf(node, array, naming, context) for path, (node, array) in leaves_of(adapted.batch).items()
    }
    partition = Partition(
        state=state_leaves, batch=batch_leaves, rules=naming.rules, mesh_names=naming.mesh_names(), explicit=explicit
    )
    traced = summarise(closed.jaxpr, leaves, roles, adapted)
    sequences, seq = tokens_of(jax.tree.leaves(adapted.batch))
    builder = Builder(adapted=adapted, partition=partition, mesh_axes=tuple(own), operations=operations(closed))
    return {
        "name": name or getattr(step, "__name__", type(step).__name__),
        "build": builder,
        "sequences": sequences,
        "seq": seq,
        "dtype": traced.dtype or "float32",
        "axes": partition.axes(),
        # What changes NNX objects in place cannot be told where to leave them: ZeRO's parameters would drift.
        "fixed": FIXED | ({"zero": "0"} if adapted.in_place else {}),
        "fingerprint": fingerprint(closed, adapted, partition),
        "guesses": (*guesses, *traced.notes),
        "traced": traced,
        "partition": partition,
    }


class Naming:
    """What the user's names mean: logical axes by rules, mesh axes by the names of other codebases."""

    def __init__(self, mesh_axes: Mapping[str, str], logical_rules: Any) -> None:
        self.mesh_axes = mesh_axes
        self.notes: list[str] = []
        self.used: dict[str, str] = {}
        pairs = logical_rules.items() if isinstance(logical_rules, Mapping) else logical_rules
        given: list[tuple[str, tuple[str, ...]]] = []
        for pair in pairs or ():
            try:
                logical, axes = pair
            except (TypeError, ValueError):
                raise ValueError(f"logical_rules: {pair!r} must be a pair (logical axis, mesh axes)") from None
            listed = () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)
            for axis in listed:
                if axis not in mesh_axes and axis not in MESH_NAMES:
                    raise ValueError(
                        f"logical_rules: {logical!r} rides {axis!r}, a mesh axis we do not know; "
                        f"say what it is with mesh_axes={{{axis!r}: 'fsdp'}} (one of {', '.join(AXES)})"
                    )
            if logical not in dict(given):
                given.append((logical, tuple(self._mesh(axis) for axis in listed)))
        self.told = dict(given)
        self.rules = (*given, *((one, axes) for one, axes in LOGICAL_AXIS_RULES if one not in self.told))

    def _mesh(self, name: str) -> str:
        """Our word for the user's mesh axis, remembered."""
        ours = self.mesh_axes.get(name) or MESH_NAMES[name]
        other = next((said for said, axis in self.used.items() if axis == ours and said != name), None)
        if other is not None:
            raise ValueError(
                f"mesh axes {other!r} and {name!r} would both be {ours!r}; say which is which with "
                f"mesh_axes={{{name!r}: ...}} (one of {', '.join(AXES)})"
            )
        self.used[name] = ours
        return ours

    def own(self, name: Name) -> Name:
        """A name as partitions have it: a logical axis as it is, a mesh axis in our word, None where nobody knows."""
        if name is None:
            return None
        if isinstance(name, tuple):
            return tuple(one for one in (self.own(part) for part in name) if isinstance(one, str)) or None
        if not isinstance(name, str):
            raise ValueError(f"sharding: {name!r} names a dimension; it must be a text, a tuple of them, or None")
        logical = dict(self.rules)
        if name in self.told or (name in logical and name not in self.mesh_axes):
            return name
        if name in self.mesh_axes or name in MESH_NAMES:
            return self._mesh(name)
        pin = f"pin it with logical_rules={{{name!r}: 'tensor'}}"
        note = f"logical axis {name!r} has no rule: nothing is cut along it; {pin}"
        if note not in self.notes:
            self.notes.append(note)
        return None

    def settle(
        self, named: dict[str, tuple[Name, ...]], roles: Mapping[str, str], constrained: Sequence[str]
    ) -> dict[str, tuple[Name, ...]]:
        """Learn the mesh axes that the step's own constraints name; a `data` that cuts parameters is our `fsdp`."""
        for name in constrained:
            if name in self.mesh_axes or name in MESH_NAMES:
                self._mesh(name)
        cutting = {
            part
            for path, names in named.items()
            if roles[path] == "parameters"
            for name in names
            for part in (name if isinstance(name, tuple) else (name,))
        }
        said = next((said for said, ours in self.used.items() if ours == "data"), None)
        if "data" not in cutting or "fsdp" in self.used.values() or said in self.mesh_axes:
            return named
        assert said is not None
        self.used[said] = "fsdp"
        self.notes.append(
            f"mesh axis {said!r} cuts parameters, so it was taken for fsdp; pin it with mesh_axes={{{said!r}: 'data'}}"
        )

        def moved(name: Name) -> Name:
            if isinstance(name, tuple):
                return tuple(str(moved(part)) for part in name)
            return "fsdp" if name == "data" else name

        self.rules = tuple((one, tuple("fsdp" if axis == "data" and one in self.told else axis for axis in axes))
                           for one, axes in self.rules)  # fmt: skip
        return {path: tuple(moved(name) for name in names) for path, names in named.items()}

    def mesh_names(self) -> dict[str, str]:
        """Our axis -> the step's own name, where that differs; an unused word of ours that it took is moved aside."""
        names = {ours: said for said, ours in self.used.items()}
        taken = set(names.values())
        for word in AXES:
            if word not in names and word in taken:
                names[word] = f"{word}_"
        return {ours: said for ours, said in names.items() if ours != said}


def roles_of(
    leaves: Mapping[str, tuple[Any, Any]], adapted: Adapted, parameters: Callable[[Any], Any] | None
) -> dict[str, str]:
    """What each array of the state is: by `parameters(state)` if given, else by NNX's types or by the usual names."""
    from flax import nnx

    if parameters is not None:
        try:
            chosen = {id(leaf) for leaf in jax.tree.leaves(parameters(adapted.state))}
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            raise ValueError(f"parameters: the function finds none in the state: {error!r}") from None
        mine = {path for path, (_, array) in leaves.items() if id(array) in chosen}
    else:
        mine = {path for path, (node, _) in leaves.items() if isinstance(node, nnx.Param)}
        mine = mine or _under(leaves, ("params", "model", "weights")) or _under(leaves, ("0",))
        usual = re.compile(r"(^|/)(opt|mu|nu|momentum|ema|step|count|rng|key)")
        mine = mine or {path for path in leaves if not usual.search(path)}
    if not mine:
        raise ValueError("workload: no parameters found in the state; say parameters=lambda state: ...")
    shapes = {path: tuple(array.shape) for path, (_, array) in leaves.items()}
    roles = {}
    for path, (_, array) in leaves.items():
        if path in mine:
            roles[path] = "parameters"
        else:
            key = jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key)
            roles[path] = "other" if key or math.prod(shapes[path]) <= 1 else "optimizer"
    return roles


def _under(leaves: Mapping[str, Any], words: tuple[str, ...]) -> set[str]:
    """Paths whose first or second part is one of these words."""
    for depth in (0, 1):
        found = {path for path in leaves if len(parts := path.split("/")) > depth and parts[depth] in words}
        if found:
            return found
    return set()


def parameter_of(path: str, shapes: Mapping[str, tuple[int, ...]], parameters: Sequence[str]) -> str | None:
    """The parameter that an optimizer's array belongs to: the longest ending of its path that is the end of one's."""
    parts = path.split("/")
    for start in range(len(parts)):
        ending = "/".join(parts[start:])
        alike = [one for one in parameters if shapes[one] == shapes[path]]
        found = [one for one in alike if one == ending or one.endswith("/" + ending)]
        if len(found) == 1:
            return found[0]
    return None


def summarise(jaxpr: Any, leaves: Mapping[str, tuple[Any, Any]], roles: Mapping[str, str], adapted: Adapted) -> Traced:
    """The trace in figures."""
    bytes_of = {path: nbytes(array) for path, (_, array) in leaves.items()}
    return Traced(
        dots=tuple(dots(jaxpr)),
        parameters=sum(math.prod(leaves[path][1].shape) for path, role in roles.items() if role == "parameters"),
        parameter_bytes=sum(bytes_of[path] for path, role in roles.items() if role == "parameters"),
        optimizer_bytes=sum(bytes_of[path] for path, role in roles.items() if role == "optimizer"),
        batch_bytes=sum(nbytes(leaf) for leaf in jax.tree.leaves(adapted.batch)),
        activation_bytes=activation_bytes(jaxpr),
        notes=notes(jaxpr),
    )


def fingerprint(closed: Any, adapted: Adapted, partition: Partition) -> str:
    """Of the traced program, its shapes and the names of their dimensions; the same on every machine."""
    # Functions print with their address in this process. What was stored before a worker compared its trace with this
    # one may be another program: hence the first words.
    text = "compared in the worker: " + re.sub(r"0x[0-9a-f]+", "", str(closed))
    constants = [(str(one.dtype), one.shape) for one in closed.consts if hasattr(one, "dtype")]
    shapes = [(str(leaf.dtype), leaf.shape) for leaf in jax.tree.leaves((adapted.state, adapted.batch))]
    rest = json.dumps([constants, shapes, partition.to_json()], sort_keys=True, default=str)
    return hashlib.sha256((text + rest).encode()).hexdigest()[:32]


def tokens_of(batch: Sequence[Any]) -> tuple[int, int]:
    """(sequences, tokens of one): of whole numbers in two dimensions or more, or of vectors in three, the first two;
    of anything else as many examples of one token as its first dimension."""
    for array in sorted(batch, key=lambda one: -math.prod(one.shape)):
        whole_numbers = jnp.issubdtype(array.dtype, jnp.integer)
        if len(array.shape) == 3 or (whole_numbers and len(array.shape) == 2):
            return array.shape[0], array.shape[1]
    return next((array.shape[0] for array in batch if array.shape), 1), 1


def _batch_leaf(node: Any, array: Any, naming: Naming, context: bool) -> Leaf:
    names = annotated(node, array)
    rank = len(array.shape)
    if names is None:
        named: tuple[Name, ...] = ("batch", "length" if context else None)[:rank]
        named = (*named, *(None,) * (rank - len(named)))
    else:
        named = tuple(naming.own(name) for name in names)
    return Leaf(names=named, shape=tuple(array.shape), role="batch", guessed=False)


def _untold(mine: list[str], named: Mapping[str, Any], leaves: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """A word about parameters that no annotation reaches, when they weigh something."""
    bare = [path for path in mine if path not in named]
    weight = {path: nbytes(leaves[path][1]) for path in mine}
    total = sum(weight.values())
    share = sum(weight[path] for path in bare) / max(total, 1)
    if share < UNTOLD_BYTES_SHARE:
        return []
    largest = max(bare, key=lambda path: weight[path])
    return [
        f"{len(bare)} parameters have no annotation and stay whole on every device ({100 * share:.0f} % of the bytes, "
        f"the largest {largest} {list(leaves[largest][1].shape)}); pin them with rules=[(r'{largest}$', (...))]"
    ]
