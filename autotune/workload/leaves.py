"""The arrays of a user's state by path, and what their own annotations call each dimension.

Read are: NNX variables with `out_sharding` metadata (logical or mesh axis names), Linen's `Partitioned` and
`LogicallyPartitioned` boxes, arrays that carry a `NamedSharding`, and (regex -> axes) rules over the paths.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax import nnx
from flax.core import meta
from jax.sharding import NamedSharding, PartitionSpec

from autotune.partition import Name


def is_box(node: Any) -> bool:
    """An array with its metadata around it."""
    return isinstance(node, (nnx.Variable, meta.AxisMetadata))


def is_array(leaf: Any) -> bool:
    """An array, its shape, or a plain number: what a traced step can take. All else in a state stands beside them, as
    the functions in an Equinox model do."""
    return (hasattr(leaf, "shape") and hasattr(leaf, "dtype")) or isinstance(leaf, (bool, int, float, complex))


def arrays_of(tree: Any) -> Any:
    """The tree with None in place of what is no array."""
    return jax.tree.map(lambda leaf: leaf if is_array(leaf) else None, tree)


def same_structure(one: Any, other: Any) -> bool:
    """Whether two trees are built alike, what their nodes carry beside arrays included."""
    structure: Any = jax.tree.structure(one)
    return bool(structure == jax.tree.structure(other))


def path_of(path: tuple[Any, ...]) -> str:
    """A JAX key path in words, the box's own key left out: "params/Dense_0/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaves_of(tree: Any) -> dict[str, tuple[Any, Any]]:
    """Path -> (the box or the array itself, the array), in the order `jax.tree.leaves` has them."""
    found = {}
    for path, node in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_box)[0]:
        arrays = jax.tree.leaves(node)
        if len(arrays) == 1:
            found[path_of(path)] = (node, arrays[0])
        else:  # a box around several arrays: they share its names
            for inner, array in jax.tree_util.tree_flatten_with_path(node)[0]:
                found[path_of((*path, *inner))] = (node, array)
    return found


def map_leaves(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """The tree with every array replaced by `function(path, array)`, boxes kept around them."""

    def inside(path, node):
        if not is_box(node):
            return function(path_of(path), node)
        several = len(jax.tree.leaves(node)) > 1
        return jax.tree_util.tree_map_with_path(
            lambda inner, array: function(path_of((*path, *inner) if several else path), array), node
        )

    return jax.tree_util.tree_map_with_path(inside, tree, is_leaf=is_box)


def annotated(node: Any, array: Any) -> tuple[Name, ...] | None:
    """The names that the box or the array's own sharding gives its dimensions; None when it says nothing.

    A box's local rules (`sharding_rules`, `rules`) are applied: the names are then mesh axes. Names for more dimensions
    than there are describe another array: an optimizer that keeps sums of rows (Adafactor) leaves them in the
    parameter's box.
    """
    rules: Any = None
    if isinstance(node, nnx.Variable):
        metadata = node.get_metadata()
        given = metadata.get("out_sharding") or metadata.get("sharding_names")
        rules = metadata.get("sharding_rules")
    elif isinstance(node, meta.AxisMetadata):
        given, rules = getattr(node, "names", None), getattr(node, "rules", None)
    else:
        given = getattr(array, "sharding", None)
    if isinstance(given, NamedSharding):
        # P() too says something: whole on every device. On a mesh of one device nothing else can be said.
        if not any(given.spec) and given.mesh.size == 1:
            return None
        given = given.spec
    if not isinstance(given, (tuple, list, PartitionSpec)):
        return None
    local: dict[str, Any] = {}
    for name, axes in rules or ():
        local.setdefault(name, tuple(axes) if isinstance(axes, (tuple, list)) else axes)
    names = tuple(local.get(name, name) if isinstance(name, str) else name for name in given)
    return whole(names, len(array.shape)) if len(names) <= len(array.shape) else None


def whole(names: Sequence[Any], rank: int) -> tuple[Name, ...]:
    """Names for every dimension: a PartitionSpec may leave out the last ones."""
    plain = tuple(tuple(name) if isinstance(name, (list, tuple)) else name for name in names)
    return (*plain, *(None for _ in range(rank - len(plain))))


def match_rules(rules: Sequence[tuple[str, Any]], leaves: Mapping[str, tuple[Any, Any]]) -> dict[str, tuple[Name, ...]]:
    """Names from (regex -> axes) rules: the first whose regex is found in the path names the dimensions.

    ValueError for a regex that is none or that finds no array, and for more axes than an array has dimensions.
    """
    compiled = []
    for rule in rules:
        try:
            regex, axes = (None,) if isinstance(rule, str) else rule
            compiled.append((re.compile(regex), axes))
        except re.error as error:
            raise ValueError(f"rules: {rule[0]!r} is not a regular expression: {error}") from None
        except (TypeError, ValueError):
            raise ValueError(f"rules: {rule!r} must be a pair (regex, axes)") from None
    used: set[int] = set()
    found: dict[str, tuple[Name, ...]] = {}
    for path, (_, array) in leaves.items():
        for index, (pattern, axes) in enumerate(compiled):
            if not pattern.search(path):
                continue
            used.add(index)
            named = (axes,) if isinstance(axes, str) else tuple(axes or ())
            rank = len(array.shape)
            if rank == 0 or path in found:
                break
            if len(named) > rank:
                raise ValueError(
                    f"rules: {pattern.pattern!r} names {len(named)} dimensions, {path} has {rank}: {tuple(array.shape)}"
                )
            found[path] = whole(named, rank)
            break
    for index, (pattern, _) in enumerate(compiled):
        if index not in used and not any(pattern.search(path) for path in leaves):
            known = ", ".join(one or "'' (the state is one array)" for one in list(leaves)[:5])
            raise ValueError(f"rules: {pattern.pattern!r} matches no array of the state; paths are like: {known}")
    return found
