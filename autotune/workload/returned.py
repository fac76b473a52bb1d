"""Where the state of a step is in what it returns: by tree structure, shapes, and which output an input feeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from autotune.workload.leaves import same_structure


@dataclass(frozen=True, slots=True, kw_only=True)
class _Node:
    """A tree inside another: the name it has there, and which of the other's leaves are its own."""

    name: str
    tree: Any
    start: int
    shapes: tuple[Any, ...]

    @property
    def leaves(self) -> range:
        return range(self.start, self.start + len(self.shapes))


def find_returned(
    arguments: Mapping[str, Any],
    result: Any,
    fed: Callable[[int], set[int]] | None,
    within: Callable[[int], set[int]] | None = None,
    agree: Callable[[int, int], bool] = lambda old, new: True,
) -> dict[int, int]:
    """For the leaves of `arguments` (counted in the order in which they are given here): which leaf of `result` is
    their new value. What is not returned is not in it.

    `arguments`: name -> tree of shapes. `fed(leaf of the result)`: the leaves of the arguments from which it is
    computed otherwise than through the loss; None where nothing is known. A new value must be fed by the old one: so a
    tree of gradients is not taken for the parameters. Of several that are, the one of the same name is taken, then the
    one that is fed by the fewest (a moving average is fed by what it follows too), then the first.
    `within(leaf of the result)`: the leaves from which it is computed inside the loss too, but not through gradients;
    arrays of which no new value is found otherwise come back so (batch statistics, a recurrent state).
    `agree(leaf of the arguments, leaf of the result)`: whether the two can be one array before and after.
    """
    every = list(_nodes(result, "", 0))
    by_shapes: dict[Any, list[_Node]] = {}
    for node in every:
        by_shapes.setdefault(node.shapes, []).append(node)
    found: dict[int, int] = {}
    taken: set[int] = set()

    def search(node: _Node) -> None:
        if not node.shapes:
            return
        alike = [
            one
            for one in by_shapes.get(node.shapes, ())
            if not taken & set(one.leaves) and same_structure(one.tree, node.tree)
            and all(agree(old, new) for old, new in zip(node.leaves, one.leaves, strict=True))
        ]  # fmt: skip
        candidates = [one for one in alike if _follows(node, one, fed)]
        if not candidates and within is not None and any(shape for shape, _ in node.shapes):
            candidates = [one for one in alike if _comes_from(node, one, within)]
        if candidates:
            best = min(candidates, key=lambda one: (one.name != node.name, _sources(one, fed), one.start))
            taken.update(best.leaves)
            found.update(zip(node.leaves, best.leaves, strict=True))
            return
        for child in _children(node):
            search(child)

    start = 0
    for name, tree in arguments.items():
        whole = _Node(name=name, tree=tree, start=start, shapes=_shapes(tree))
        search(whole)
        start += len(whole.shapes)
    return found


def _follows(node: _Node, one: _Node, fed: Callable[[int], set[int]] | None) -> bool:
    """Whether most leaves of one tree are computed from those of the other; a lone number must be, or have its name."""
    if fed is None:
        return bool(node.shapes[0][0]) or len(node.shapes) > 1 or one.name == node.name
    direct = sum(old in fed(new) for old, new in zip(node.leaves, one.leaves, strict=True))
    return 2 * direct >= len(node.shapes)


def _comes_from(node: _Node, one: _Node, within: Callable[[int], set[int]]) -> bool:
    """Whether every array of one tree is computed from that of the other."""
    return all(
        old in within(new) or not shape
        for old, new, (shape, _) in zip(node.leaves, one.leaves, node.shapes, strict=True)
    )


def _sources(one: _Node, fed: Callable[[int], set[int]] | None) -> int:
    return 0 if fed is None else sum(len(fed(new)) for new in one.leaves)


def _nodes(tree: Any, name: str, start: int) -> Iterator[_Node]:
    node = _Node(name=name, tree=tree, start=start, shapes=_shapes(tree))
    yield node
    for child in _children(node):
        yield from _nodes(child.tree, child.name, child.start)


def _children(node: _Node) -> Iterator[_Node]:
    if jax.tree_util.all_leaves([node.tree]):
        return
    start = node.start
    inside = jax.tree_util.tree_flatten_with_path(node.tree, is_leaf=lambda one: one is not node.tree)[0]
    for path, tree in inside:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        shapes = _shapes(tree)
        if shapes:
            yield _Node(name=name, tree=tree, start=start, shapes=shapes)
        start += len(shapes)


def _shapes(tree: Any) -> tuple[Any, ...]:
    return tuple((tuple(leaf.shape), str(leaf.dtype)) for leaf in jax.tree.leaves(tree))
