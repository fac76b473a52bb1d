"""Imports go one way: no circle of files, none from a lower layer to a higher one, and JAX only where it is needed."""

import ast
from functools import cache
from pathlib import Path

import autotune
import autotune.meshes
import autotune.models

LAYERS = (
    ("system", "tables", "units"),
    ("meshes",),
    ("mesh_context", "user_code", "partition", "program", "row_status", "table", "store", "typed", "picture", "shown"),
    ("models", "frontier", "efficiency", "space", "workload"),
    ("compile", "replay", "checkpoints", "model_files"),
    ("hlo", "measure"),
    ("analysis", "price", "calibrate", "reference_workload"),
    ("probes", "memory_use"),
    ("option_sets", "outcomes", "plan", "sweep", "testing"),
    ("report",),
    ("search", "search_events"),
    ("commands",),
    ("cli",),
    ("__main__",),
)
"""Packages and modules of `autotune`, the lowest first. Each imports from its own layer and from lower ones."""

ABOVE_ALL = {"autotune"}
"""`autotune/__init__.py` names the public objects and imports them when they are first used."""

JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "libtpu"}

WITH_JAX = (
    "autotune.models",
    "autotune.calibrate.cpu_ops", "autotune.calibrate.microbench",
    "autotune.checkpoints",
    "autotune.compile.jit_step", "autotune.compile.worker",
    "autotune.measure.local_runner", "autotune.measure.worker",
    "autotune.mesh_context",
    "autotune.meshes.sharding",
    "autotune.plan.apply",
    "autotune.workload.adapt", "autotune.workload.batch", "autotune.workload.call",
    "autotune.workload.devices_asked", "autotune.workload.dimensions", "autotune.workload.explicit_axes",
    "autotune.workload.flow", "autotune.workload.from_function", "autotune.workload.handover",
    "autotune.workload.leaves", "autotune.workload.logical_names", "autotune.workload.mapped_state",
    "autotune.workload.pinned", "autotune.workload.replicas", "autotune.workload.returned", "autotune.workload.roles",
    "autotune.workload.same_program", "autotune.workload.trace", "autotune.workload.tracing",
)  # fmt: skip
"""Packages and modules that import JAX or Flax when they are loaded. All others must not: a price needs no JAX."""


def files() -> dict[str, Path]:
    """Module name -> file, of everything that is installed."""
    found = {}
    for package in (autotune, autotune.meshes, autotune.models):
        root = Path(package.__path__[0])
        for path in root.rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join((package.__name__, *parts)).removesuffix(".__init__")
            found[name] = path
    return found


FILES = files()


@cache
def imports_of(name: str) -> tuple[frozenset[str], frozenset[str]]:
    """(modules of this tool that a module imports anywhere, top-level names of others that it imports when loaded)."""
    ours, others = set(), set()
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    loaded = [statement for statement in tree.body if not _types_only(statement)]
    on_load = {id(node) for statement in loaded for node in _outside_functions(statement)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: a relative import hides what it imports"
            named = [f"{node.module}.{alias.name}" for alias in node.names]
            named = [full if full in FILES else node.module or "" for full in named]
        else:
            continue
        ours |= {full for full in named if full in FILES}
        if id(node) in on_load:
            others |= {full.split(".")[0] for full in named}
    return frozenset(ours - {name}), frozenset(others)


def _types_only(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(statement.test)


def _outside_functions(node: ast.AST):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _outside_functions(child)


def layer_of(name: str) -> int:
    part = name.split(".")[1]
    [level] = [level for level, parts in enumerate(LAYERS) if part in parts]
    return level


def test_every_part_has_one_layer():
    parts = {name.split(".")[1] for name in FILES if "." in name}
    listed = [part for layer in LAYERS for part in layer]
    assert sorted(listed) == sorted(parts)


def test_no_import_goes_up():
    up = [
        f"{name} imports {other}"
        for name in sorted(FILES.keys() - ABOVE_ALL)
        for other in sorted(imports_of(name)[0] - ABOVE_ALL)
        if layer_of(other) > layer_of(name)
    ]
    assert not up, "\n".join(up)


def circles(edges: dict[str, frozenset[str]]) -> list[list[str]]:
    """Groups of names that reach each other, by following `edges` from each name."""

    @cache
    def reached(start: str) -> frozenset[str]:
        seen, waiting = set(), [start]
        while waiting:
            for other in edges[waiting.pop()]:
                if other not in seen:
                    seen.add(other)
                    waiting.append(other)
        return frozenset(seen)

    again = [name for name in edges if name in reached(name)]
    return sorted({tuple(sorted(one for one in reached(name) if name in reached(one))) for name in again})


def test_no_circle_of_files():
    edges = {name: imports_of(name)[0] - ABOVE_ALL for name in FILES.keys() - ABOVE_ALL}
    assert circles(edges) == []


def test_no_circle_of_packages_within_a_layer():
    """Two packages of one layer that import each other are one package."""
    edges: dict[str, set[str]] = {name.split(".")[1]: set() for name in FILES if "." in name}
    for name in FILES.keys() - ABOVE_ALL:
        part = name.split(".")[1]
        edges[part] |= {other.split(".")[1] for other in imports_of(name)[0] - ABOVE_ALL} - {part}
    assert circles({name: frozenset(others) for name, others in edges.items()}) == []


def test_a_circle_is_found():
    edges = {"a": frozenset("b"), "b": frozenset("c"), "c": frozenset("a"), "d": frozenset("a")}
    assert circles(edges) == [("a", "b", "c")]


def with_jax(name: str) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in WITH_JAX)


def test_jax_is_imported_only_where_listed():
    loads = {name for name in FILES if imports_of(name)[1] & JAX}
    wrong = sorted(name for name in loads if not with_jax(name))
    assert not wrong, f"these import JAX when loaded: {wrong}"
    unused = sorted(one for one in WITH_JAX if not any(name == one or name.startswith(f"{one}.") for name in loads))
    assert not unused, f"these are listed and import no JAX: {unused}"
