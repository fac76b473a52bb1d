"""What each array of a user's state is, from the trace of the step and not from its name.

A *parameter* reaches the loss and comes back changed by an update that depends on the loss's gradient. A *frozen* array
reaches the loss and comes back as it was: it has no gradient, no reduction and no moments. A *mutable* array changes
without a gradient of its own: batch statistics, a cache, a teacher that follows the parameters. What only meets updates
is *optimizer* state. Counters and random keys are *other*.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from autotune.workload.flow import Flow, fed_by
from autotune.workload.leaves import is_box, path_of
from autotune.workload.trace import nbytes

ROLES = ("parameters", "frozen", "mutable", "optimizer", "other")

MEANING = {
    "parameters": "reach the loss and come back changed by its gradient",
    "frozen": "reach the loss and come back as they were: no gradient, no moments",
    "mutable": "change without a gradient of their own",
    "optimizer": "meet only the updates",
}


def roles_of(
    flow: Flow,
    state: Any,
    leaves: Mapping[str, tuple[Any, Any]],
    parameters: Callable[[Any], Any] | None,
) -> tuple[dict[str, str], tuple[str, ...]]:
    """(path -> one of ROLES, what is to be said about it).

    `flow`: of the step, its first inputs and outputs being the leaves of the state, in the order of `leaves`.
    `parameters(state)`, where given, picks the parameters; those that the trace gives back untouched are frozen.
    ValueError where it finds none, or where no array of the state can be a parameter.
    """
    paths = list(leaves)
    of_state = _StateFlow(flow, len(paths))
    optax_made = _under_optax(state)
    found = {path: _role(of_state, index, leaves[path][1], path in optax_made) for index, path in enumerate(paths)}
    if parameters is not None:
        told = _told(found, of_state, state, leaves, parameters)
        return told, tuple(line for role in ("frozen", "mutable") for line in _describe(told, leaves, state, role))
    if not of_state.differentiated:
        return _undifferentiated(found, of_state, state, leaves)
    if "parameters" not in found.values() and (given := _with_gradients(found, of_state, leaves)):
        found |= dict.fromkeys(given, "parameters")
        meaning = "have gradients that the step returns: their update is another program, and in no price"
        first = _describe(found, leaves, state, "parameters", meaning)
        rest = (line for role in ("frozen", "mutable") for line in _describe(found, leaves, state, role))
        return found, (*first, *rest)
    usual = usual_parameters(leaves)[0]
    weights = {path for path, role in found.items() if role in ("parameters", "frozen")}
    trained = {path for path, role in found.items() if role == "parameters"}
    if not trained and not weights:
        raise ValueError("workload: no parameters found in the state; say parameters=lambda state: ...")
    said = ("parameters", "frozen", "mutable") if usual != trained else ("frozen", "mutable")
    return found, tuple(line for role in said for line in _describe(found, leaves, state, role))


class _StateFlow:
    """What the dataflow says of each array of the state, by its place among the inputs.

    `changed`: it comes back as another array. `reaches`: the loss is computed from it (in a step without a gradient:
    what it returns beside the state). `meets_updates`: the new state is computed from it. `by_gradient`: the loss's
    gradient is in what it becomes; for an array that reaches the loss, not only by way of what another such array has
    become: so does a teacher follow the parameters. `gradients`: the shapes of what is returned beside the state and is
    computed from gradients.
    """

    def __init__(self, flow: Flow, count: int) -> None:
        ins, outs = flow.inputs[:count], flow.outputs[:count]
        self.differentiated = bool(flow.backward)
        self.changed = [one != other for one, other in zip(ins, outs, strict=True)]
        other = set(flow.outputs[count:]) - set(flow.inputs) or set(flow.outputs) - set(flow.inputs)
        marked = flow.forward | flow.backward
        any_way = flow.by_gradient(set())
        # What has been updated can reach a second loss (a critic, that of its actor): the moments do not so reach it.
        updated = {node for node, one in enumerate(any_way) if one and node not in marked}
        returned = zip(flow.outputs[count:], flow.shapes[count:], strict=True)
        self.gradients = [shape for node, shape in returned if any_way[node]]
        reached = flow.above(marked, updated) if self.differentiated else flow.above(other)
        self.reaches = [node in reached for node in ins]
        new = [out for out, changed in zip(outs, self.changed, strict=True) if changed]
        updates = flow.above(new)
        self.meets_updates = [node in updates for node in ins]
        stops = {out for out, changed, reach in zip(outs, self.changed, self.reaches, strict=True) if changed and reach}
        own = flow.by_gradient(stops)
        self.by_gradient = [
            changed and (own if reach else any_way)[out]
            for out, changed, reach in zip(outs, self.changed, self.reaches, strict=True)
        ]


def _role(of_state: _StateFlow, index: int, array: Any, optax_made: bool) -> str:
    keys = array.dtype == jnp.uint32 and tuple(array.shape[-1:]) == (2,)  # one for each example, layer or micro-batch
    if keys or jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        return "other"
    reaches, changed = of_state.reaches[index], of_state.changed[index]
    by_gradient = of_state.by_gradient[index]
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    if of_state.differentiated and floating and reaches and by_gradient:
        return "parameters"
    if math.prod(array.shape) <= 1:
        return "other"
    if optax_made:
        return "optimizer"
    if reaches:
        return "mutable" if changed else "frozen"
    if changed:
        return "optimizer" if by_gradient else "mutable"
    return "optimizer" if of_state.meets_updates[index] else "other"


def _with_gradients(found: Mapping[str, str], of_state: _StateFlow, leaves: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """The arrays of which the step returns a gradient: those that reach the loss and have the shapes of the longest
    run of gradients that some run of them has."""
    mine = [
        path for path, reaches in zip(found, of_state.reaches, strict=True)
        if reaches and jnp.issubdtype(leaves[path][1].dtype, jnp.floating)
    ]  # fmt: skip
    shapes = [tuple(leaves[path][1].shape) for path in mine]
    for size in range(len(of_state.gradients), 0, -1):  # norms and the like are returned beside the gradients
        for first in range(len(of_state.gradients) - size + 1):
            wanted = of_state.gradients[first : first + size]
            for start in range(len(mine) - size + 1):
                if shapes[start : start + size] == wanted and any(wanted):
                    return mine[start : start + size]
    return []


def is_legacy_key(array: Any) -> bool:
    """Whether it has the shape of a random key of the old kind (`jax.random.PRNGKey`)."""
    return array.dtype == jnp.uint32 and tuple(array.shape) == (2,)


def _told(
    found: dict[str, str],
    of_state: _StateFlow,
    state: Any,
    leaves: Mapping[str, tuple[Any, Any]],
    parameters: Callable[[Any], Any],
) -> dict[str, str]:
    try:
        chosen = {id(leaf) for leaf in jax.tree.leaves(parameters(state))}
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"parameters: the function finds none in the state: {error!r}") from None
    mine = {path for path, (_, array) in leaves.items() if id(array) in chosen}
    if not mine:
        raise ValueError("parameters: the function finds none of the state's arrays")
    told = {}
    for index, (path, role) in enumerate(found.items()):
        if path in mine:
            told[path] = "parameters" if of_state.changed[index] or not of_state.differentiated else "frozen"
        else:
            told[path] = "optimizer" if role == "parameters" else role
    return told


def _undifferentiated(
    found: dict[str, str], of_state: _StateFlow, state: Any, leaves: Mapping[str, tuple[Any, Any]]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Roles of a step without a gradient of `jax.grad`: an evaluation, a decoding step, or gradients made by hand.

    Of the last only the usual names tell the parameters, and that they change and reach what the step returns.
    """
    usual, named = usual_parameters(leaves)
    trained = {
        path
        for path, changed, reaches in zip(found, of_state.changed, of_state.reaches, strict=True)
        if path in usual and changed and reaches
    }
    if not trained or (not named and "frozen" in found.values()):
        said = [line for role in ("frozen", "mutable") for line in _describe(found, leaves, state, role)]
        return found, tuple(said)
    roles = {}
    for path, role in found.items():
        if path in trained:
            roles[path] = "parameters"
        else:
            roles[path] = role if role in ("other", "frozen") else "optimizer"
    why = "the trace holds no gradient of jax.grad, so the parameters are guessed from their names; "
    return roles, tuple(why + line for line in _describe(roles, leaves, state, "parameters"))


def usual_parameters(leaves: Mapping[str, tuple[Any, Any]]) -> tuple[set[str], bool]:
    """(the paths of the parameters by NNX's types or by the usual names, whether any type or name says so)."""
    mine = {path for path, (node, _) in leaves.items() if isinstance(node, nnx.Param)}
    mine = mine or _under(leaves, ("params", "model", "weights")) or _under(leaves, ("0",))
    usual = re.compile(r"(^|/)(opt|mu|nu|momentum|ema|step|count|rng|key)")
    return mine or {path for path in leaves if not usual.search(path)}, bool(mine)


def _under(leaves: Mapping[str, Any], words: tuple[str, ...]) -> set[str]:
    """Paths whose first part is one of these words. If there are none: paths whose second part is one."""
    for depth in (0, 1):
        found = {path for path in leaves if len(parts := path.split("/")) > depth and parts[depth] in words}
        if found:
            return found
    return set()


def _under_optax(state: Any) -> set[str]:
    """The paths of all arrays inside a state of optax's own."""
    found: set[str] = set()

    def is_optax(node: Any) -> bool:
        return type(node).__module__.split(".")[0] == "optax" and isinstance(node, tuple)

    for path, node in jax.tree_util.tree_flatten_with_path(state, is_leaf=is_optax)[0]:
        if is_optax(node):
            inside = jax.tree_util.tree_flatten_with_path(node, is_leaf=is_box)[0]
            found |= {path_of((*path, *inner)) for inner, _ in inside}
    return found


def size_text(count: int) -> str:
    """A count of bytes as people say it: "1.5 GiB"."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB"


LISTED = 3
"""Groups of arrays of one role said one by one, largest first."""

NAMES = {
    "parameters": "parameters",
    "frozen": "frozen weights",
    "mutable": "mutable state",
    "optimizer": "optimizer state",
}


def _describe(
    roles: Mapping[str, str], leaves: Mapping[str, tuple[Any, Any]], state: Any, role: str, meaning: str | None = None
) -> Iterable[str]:
    size = {path: nbytes(array) for path, (_, array) in leaves.items()}
    ranked = _groups(roles, role, size)
    if not ranked:
        return
    of_parameters = _groups(roles, "parameters", size)
    shown = ", ".join(
        f"{group or 'the state'} ({len(paths)} array{'s' if len(paths) > 1 else ''}, "
        f"{size_text(sum(size[path] for path in paths))})"
        for group, paths in ranked[:LISTED]
    )
    more = f" and {len(ranked) - LISTED} more" if len(ranked) > LISTED else ""
    pin = f"; pin it with parameters={_picker(of_parameters, state)}" if of_parameters else ""
    yield f"{NAMES[role]} by the trace: {shown}{more}, which {meaning or MEANING[role]}{pin}"


def _groups(roles: Mapping[str, str], role: str, size: Mapping[str, int]) -> list[tuple[str, list[str]]]:
    """The arrays of a role by the shortest beginning of their paths under which all arrays have it, largest first."""
    inside: dict[str, set[str]] = {}
    for path, one in roles.items():
        parts = path.split("/")
        for count in range(1, len(parts) + 1):
            inside.setdefault("/".join(parts[:count]), set()).add(one)
    groups: dict[str, list[str]] = {}
    for path in (path for path, one in roles.items() if one == role):
        parts = path.split("/")
        starts = ("/".join(parts[:count]) for count in range(1, len(parts) + 1))
        groups.setdefault(next((start for start in starts if inside[start] == {role}), path), []).append(path)
    return sorted(groups.items(), key=lambda one: -sum(size[path] for path in one[1]))


def _picker(groups: Sequence[tuple[str, list[str]]], state: Any) -> str:
    """The Python that picks these groups out of the state: "lambda state: state['params']"."""
    if not groups or len(groups) > LISTED:
        return "lambda state: ..."
    keys = {path_of(path): path for path, _ in jax.tree_util.tree_flatten_with_path(state, is_leaf=is_box)[0]}
    words = []
    for group, paths in groups:
        path = keys.get(paths[0])
        if path is None:
            return "lambda state: ..."
        depth = group.count("/") + 1 if group else 0
        words.append("state" + jax.tree_util.keystr(path[:depth]))
    return "lambda state: " + (words[0] if len(words) == 1 else f"({', '.join(words)})")


def twins_of(flow: Flow, leaves: Mapping[str, tuple[Any, Any]], roles: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """For each array of the optimizer and each mutable one: the parameters of its shape that it goes with.

    A moment is what a parameter's new value is computed from; an average of a parameter is computed from it.
    """
    fed = fed_by(flow)
    paths = list(leaves)
    shapes = [tuple(leaves[path][1].shape) for path in paths]
    weights: dict[tuple[int, ...], list[int]] = {}
    for index, path in enumerate(paths):
        if roles[path] in ("parameters", "frozen"):
            weights.setdefault(shapes[index], []).append(index)
    found = {}
    for index, path in enumerate(paths):
        if roles[path] not in ("optimizer", "mutable") or math.prod(shapes[index]) <= 1:
            continue
        mine = [one for one in weights.get(shapes[index], ()) if index in fed(one)]
        mine = mine or [one for one in weights.get(shapes[index], ()) if one in fed(index)]
        found[path] = tuple(paths[one] for one in mine)
    return found
