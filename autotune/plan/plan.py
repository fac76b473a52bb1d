"""The result of a search that a training codebase saves and applies: the layout, the job and machine that it is for,
its analysis, and why the other layouts lost.

Plain versioned JSON, nothing executable. Importing this module needs no JAX; `mesh`, `shardings` and `jit` do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.meshes.hardware import load_hardware
from autotune.meshes.layout import Layout, layout_to_json
from autotune.meshes.target import Target, with_memory_fraction
from autotune.partition import Partition
from autotune.plan.figures import FIGURES, Figures
from autotune.shown import Shown
from autotune.system.versions import installed_versions
from autotune.system.whole_file import write_whole

if TYPE_CHECKING:
    from rich.console import RenderableType

SCHEMA = 1
PACKAGES = ("jax", "jaxlib", "libtpu", "flax")
"""Packages whose versions decide what a plan is worth."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Plan(Shown):
    """`target`, `hardware`, `shape`, `groups`, `memory_fraction`: the machine it was made for, as `Target` has them.

    `device_order`: for each place of the mesh (in `layout.order`, last axis fastest) which device of the machine sits
    there, counted as `autotune.meshes.topology.devices_of` does. `versions`: of the packages that made it.
    `workload`, `fingerprint`, `recipe`: what is trained, and the words that build it again; `sequences` of `seq` tokens
    make one step. `partition`: how its arrays are cut; None for the reference models.
    `binding`: resource, elasticity, runner_up, margin; `kept_out_by`: constraint, layout, gain. `runners_up`: layout,
    status, step_seconds and the reason it lost. `taken`, `ignored`, `not_modelled`: how a reference model is trained,
    and what its file said beside the architecture, as `Workload` has them.
    """

    layout: Layout
    target: str
    hardware: str
    shape: tuple[int, ...]
    groups: int
    devices: int
    device_order: tuple[int, ...]
    versions: Mapping[str, str]
    workload: str
    fingerprint: str
    recipe: Mapping[str, Any]
    sequences: int
    seq: int
    partition: Partition | None
    figures: Figures
    binding: Mapping[str, Any] | None
    kept_out_by: Mapping[str, Any] | None
    runners_up: tuple[Mapping[str, Any], ...]
    guesses: tuple[str, ...]
    memory_fraction: float | None = None
    taken: str | None = None
    ignored: tuple[str, ...] = ()
    not_modelled: tuple[str, ...] = ()

    def mesh(self, devices: Sequence[Any] | None = None) -> Any:
        """The `jax.sharding.Mesh` of the plan on these devices (default: all that JAX has), in the planned order.

        ValueError with both values when their kind or number is not the plan's.
        """
        from autotune.plan.apply import mesh

        return mesh(self, devices)

    def shardings(self, tree: Any, mesh: Any = None) -> Any:
        """The tree with a `NamedSharding` in place of every array: of the state, or of a part of it."""
        from autotune.plan.apply import shardings

        return shardings(self, tree, mesh)

    def batch_shardings(self, batch: Any, mesh: Any = None) -> Any:
        """The same for a batch: cut along its first dimension."""
        from autotune.plan.apply import batch_shardings

        return batch_shardings(self, batch, mesh)

    def jit(self, step: Callable[..., Any], mesh: Any = None, **options: Any) -> Callable[..., Any]:
        """`jax.jit(step)` under the plan's mesh and compiler options; arrays keep the shardings they come with.

        `options` go to `jax.jit` (`donate_argnums=0` where the step gives back a new state). A Flax logical constraint
        inside the step finds the plan's rules.
        """
        from autotune.plan.apply import jit

        return jit(self, step, mesh, options)

    def use(self, mesh: Any = None) -> AbstractContextManager[Any]:
        """A context with the plan's mesh set (`jax.set_mesh`) and its rules for Flax's logical axes; gives the mesh."""
        from autotune.plan.apply import use

        return use(self, mesh)

    def machine(self) -> Target:
        """The target it was made for."""
        hardware = load_hardware(self.hardware)
        attached = self.target == "local"
        found = Target(name=self.target, hardware=hardware, shape=self.shape, groups=self.groups, attached=attached)
        return with_memory_fraction(found, self.memory_fraction)

    def to_json(self) -> str:
        """The plan as the text of a JSON document; `autotune.plan.read` reads it."""
        values = {
            "schema": SCHEMA,
            "text": str(self.layout),
            "layout": layout_to_json(self.layout),
            "target": self.target,
            "hardware": self.hardware,
            "shape": self.shape,
            "groups": self.groups,
            "devices": self.devices,
            "device_order": self.device_order,
            "versions": dict(self.versions),
            "workload": self.workload,
            "fingerprint": self.fingerprint,
            "recipe": dict(self.recipe),
            "sequences": self.sequences,
            "seq": self.seq,
            "figures": {name: getattr(self.figures, name) for name in FIGURES},
            "binding": self.binding,
            "kept_out_by": self.kept_out_by,
            "runners_up": self.runners_up,
            "guesses": self.guesses,
            "taken": self.taken,
            "ignored": self.ignored,
            "not_modelled": self.not_modelled,
            "partition": self.partition.to_json() if self.partition else None,
        }
        if self.memory_fraction is not None:
            values["memory_fraction"] = self.memory_fraction
        return json.dumps(values, indent=1)

    def headline(self) -> str:
        """Layout, job, machine, step time and its source, in one line."""
        from autotune.plan.screen import plan_headline

        return plan_headline(self)

    def screen(self) -> RenderableType:
        """What the plan says, a line each."""
        from rich.text import Text

        from autotune.plan.screen import plan_lines

        return Text("\n".join(plan_lines(self)))

    def save(self, path: Path | str) -> None:
        """Write aside, then rename: a reader sees the old file or the whole new one."""
        write_whole(Path(path), self.to_json() + "\n")

    def version_differences(self) -> tuple[str, ...]:
        """Packages whose installed version is not the plan's: "jax 0.10.2 (plan), 0.11.0 (here)"."""
        here = installed_versions(PACKAGES)
        return tuple(
            f"{name} {version} (plan), {here[name]} (here)"
            for name, version in self.versions.items()
            if name in here and here[name] != version
        )
