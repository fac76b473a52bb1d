"""What a plan holds: the layout, the job and machine that it is for, its analysis, and why the other layouts lost.

Plain versioned JSON, nothing executable.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.meshes.hardware import load_hardware
from autotune.meshes.layout import Layout, layout_to_json
from autotune.meshes.target import Target, with_memory_fraction
from autotune.partition import Partition
from autotune.plan.figures import FIGURES, Figures
from autotune.system.versions import installed_versions
from autotune.system.whole_file import write_whole

SCHEMA = 1
PACKAGES = ("jax", "jaxlib", "libtpu", "flax")
"""Packages whose versions decide what a plan is worth."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PlanFields:
    """`target`, `hardware`, `shape`, `groups`, `memory_fraction`: the machine it was made for, as `Target` has them.

    `device_order`: for each place of the mesh (in `layout.order`, last axis fastest) which device of the machine sits
    there, counted as `autotune.meshes.topology.devices_of` does. `versions`: of the packages that made it.
    `workload`, `fingerprint`, `recipe`: what is trained, and the words that build it again; `sequences` of `seq` tokens
    make one step. `partition`: how its arrays are cut; None for the reference models.
    `binding`: resource, elasticity, runner_up, margin; `kept_out_by`: constraint, layout, gain. `runners_up`: layout,
    status, step_seconds and the reason it lost.
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
            "partition": self.partition.to_json() if self.partition else None,
        }
        if self.memory_fraction is not None:
            values["memory_fraction"] = self.memory_fraction
        return json.dumps(values, indent=1)

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
