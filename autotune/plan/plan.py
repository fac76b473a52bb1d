"""What a codebase takes home from a search: the layout, what it is for, the evidence, and why the others lost.

Plain versioned JSON, nothing executable. Importing this module needs no JAX; `mesh`, `shardings` and `jit` do.
"""

from __future__ import annotations

import importlib.metadata
import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.meshes.layout import Layout, parse_layout
from autotune.meshes.target import Target, parse_target
from autotune.partition import Partition, partition_from_json
from autotune.whole_file import write_whole

if TYPE_CHECKING:
    from autotune.replay.replay import LedgerRow
    from autotune.report.report import Report, Row
    from autotune.workload.workload import Workload

SCHEMA = 1
PACKAGES = ("jax", "jaxlib", "libtpu", "flax")
RUNNERS_UP = 10
"""Runners-up a plan carries."""


class PlanWarning(UserWarning):
    """The plan was made with other versions than those installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What the search knew of the chosen layout; per device and step, None where that was not done.

    `axis_bytes`: what one device sends along each mesh axis, "fsdp@ici" -> bytes. `collectives`: kind, axis and tier of
    each kind of collective in the compiled program, with how many run.
    """

    priced_seconds: float | None
    compiled_seconds: float | None
    compiled_low_seconds: float | None
    compiled_high_seconds: float | None
    measured_seconds: float | None
    measured_spread_seconds: float | None
    mfu: float | None
    tokens_per_second_per_device: float | None
    model_flops: float | None
    peak_bytes: float | None
    flops: float | None
    axis_bytes: Mapping[str, float] | None
    collectives: Mapping[str, int] | None

    @property
    def step_seconds(self) -> float | None:
        """The best number there is: measured, else compiled, else priced."""
        return next((one for one in (self.measured_seconds, self.compiled_seconds, self.priced_seconds) if one), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`target`, `hardware`, `shape`, `groups`: the machine it was made for, as `Target` has them.

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
        from autotune.meshes.hardware import load_hardware

        hardware = load_hardware(self.hardware)
        attached = self.target == "local"
        return Target(name=self.target, hardware=hardware, shape=self.shape, groups=self.groups, attached=attached)

    def to_json(self) -> str:
        """The plan as the text of a JSON document; `plan_from_json` reads it."""
        from autotune.report.report import layout_to_json

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
        return json.dumps(values, indent=1)

    def save(self, path: Path | str) -> None:
        """Write aside, then rename: a reader sees the old file or the whole new one."""
        write_whole(Path(path), self.to_json() + "\n")

    def version_differences(self) -> tuple[str, ...]:
        """Packages whose installed version is not the plan's: "jax 0.10.2 (plan), 0.11.0 (here)"."""
        here = installed_versions()
        return tuple(
            f"{name} {version} (plan), {here[name]} (here)"
            for name, version in self.versions.items()
            if name in here and here[name] != version
        )


FIGURES = tuple(Figures.__dataclass_fields__)


def plan_of(report: Report, workload: Workload) -> Plan:
    """The plan of a report's best row."""
    from autotune.meshes.placement import place

    row = report.best()
    target = report.target
    order = place(row.layout, target).device_order()
    return Plan(
        layout=row.layout,
        target=target.name,
        hardware=target.hardware.name,
        shape=target.shape,
        groups=target.groups,
        devices=target.devices,
        device_order=tuple(int(index) for index in order.flat),
        versions=installed_versions(),
        workload=workload.name,
        fingerprint=workload.fingerprint,
        recipe=dict(workload.recipe),
        sequences=workload.sequences,
        seq=workload.seq,
        partition=workload.partition,
        figures=figures_of(row, workload),
        binding=_values(report.best().limit, "resource", "elasticity", "runner_up", "margin"),
        kept_out_by=_values(report.kept_out, "constraint", "layout", "gain"),
        runners_up=tuple(
            {"layout": str(other.layout), "status": other.status, "step_seconds": other.step_seconds,
             "reason": other.reason}
            for other in report.ranked[1 : RUNNERS_UP + 1]
        ),
        guesses=workload.guesses,
    )  # fmt: skip


def _values(thing: Any, *names: str) -> dict[str, Any] | None:
    return None if thing is None else {name: getattr(thing, name) for name in names}


def figures_of(row: Row, workload: Workload) -> Figures:
    """What one row of a report says, as a plan keeps it."""
    evidence, measured = row.evidence, row.measurement
    prediction = evidence.prediction if evidence else None
    if workload.transformer:
        model_flops: float | None = workload.transformer.train_flops(workload.sequences, workload.seq)
    else:
        model_flops = workload.traced.flops if workload.traced else None
    return Figures(
        priced_seconds=row.price.step_seconds if row.price else None,
        compiled_seconds=prediction.step_seconds if prediction else None,
        compiled_low_seconds=prediction.low_seconds if prediction else None,
        compiled_high_seconds=prediction.high_seconds if prediction else None,
        measured_seconds=measured.median_seconds if measured else None,
        measured_spread_seconds=measured.spread_seconds if measured else None,
        mfu=row.mfu,
        tokens_per_second_per_device=row.tokens_per_second_per_device,
        model_flops=model_flops,
        peak_bytes=row.peak_bytes,
        flops=evidence.flops if evidence else None,
        axis_bytes=axis_bytes_of(prediction.ledger) if prediction else None,
        collectives=collectives_of(prediction.ledger) if prediction else None,
    )


def axis_bytes_of(ledger: Iterable[LedgerRow]) -> dict[str, float]:
    """What one device sends along each mesh axis and tier in a step: "fsdp@ici" -> bytes."""
    found: dict[str, float] = {}
    for line in ledger:
        place = f"{line.axis}@{line.tier}"
        found[place] = found.get(place, 0.0) + line.wire_bytes
    return found


def collectives_of(ledger: Iterable[LedgerRow]) -> dict[str, int]:
    """How many collectives of each kind run in a step: "all_gather fsdp@ici" -> count."""
    found: dict[str, int] = {}
    for line in ledger:
        kind = f"{line.kind} {line.axis}@{line.tier}"
        found[kind] = found.get(kind, 0) + line.count
    return found


def installed_versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Installed versions of `packages`: unless said, those that decide what a plan is worth."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def load_plan(path: Path | str) -> Plan:
    """Read a plan file; ValueError with file, field and rule when it is none. Warns where versions differ."""
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise ValueError(f"plan {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"plan {path}: not a text file") from None
    plan = plan_from_json(text, str(path))
    differences = plan.version_differences()
    if differences:
        warnings.warn(f"plan {path}: made with other versions: {'; '.join(differences)}", PlanWarning, stacklevel=2)
    return plan


def plan_from_json(text: str, where: str = "text") -> Plan:
    """Read back what `Plan.to_json` wrote; ValueError with field and rule when it is not that."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"plan {where}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"plan {where}: must be one JSON object")
    read = _Reader(where, values)
    if read("schema", int) != SCHEMA:
        raise ValueError(f"plan {where}: schema={values['schema']} is not known; this version reads {SCHEMA}")
    layout = _layout(read)
    shape = read.numbers("shape", whole=True)
    order = read.numbers("device_order", whole=True)
    devices = read("devices", int)
    if layout.devices != devices:
        raise ValueError(f"plan {where}: devices={devices} must be the layout's {layout.devices}")
    if sorted(order) != list(range(devices)):
        raise ValueError(f"plan {where}: device_order must name each of the {devices} devices once")
    figures = _figures(read)
    target = _target(read, shape, devices)
    return Plan(
        layout=layout,
        target=target.name,
        hardware=target.hardware.name,
        shape=shape,
        groups=target.groups,
        devices=devices,
        device_order=order,
        versions=read.mapping("versions", str),
        workload=read("workload", str),
        fingerprint=read("fingerprint", str),
        recipe=read.mapping("recipe", (str, int)),
        sequences=read("sequences", int),
        seq=read("seq", int),
        partition=_partition(read),
        figures=figures,
        binding=read("binding", (dict, type(None))),
        kept_out_by=read("kept_out_by", (dict, type(None))),
        runners_up=tuple(read.listed("runners_up", dict)),
        guesses=tuple(read.listed("guesses", str)),
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    """Fields of a JSON object, each checked; ValueError names file, field and rule."""

    where: str
    values: Mapping[str, Any]

    def __call__(self, field: str, kind: Any) -> Any:
        if field not in self.values:
            raise ValueError(f"plan {self.where}: {field} is missing")
        value = self.values[field]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"plan {self.where}: {field}={_short(value)} must be {_kind(kind)}")
        return value

    def listed(self, field: str, kind: Any) -> list[Any]:
        found = self(field, list)
        for value in found:
            if not isinstance(value, kind) or isinstance(value, bool):
                raise ValueError(f"plan {self.where}: {field} holds {_short(value)}; each must be {_kind(kind)}")
        return found

    def numbers(self, field: str, *, whole: bool) -> tuple[Any, ...]:
        return tuple(self.listed(field, int if whole else (int, float)))

    def mapping(self, field: str, kind: Any) -> dict[str, Any]:
        found = self(field, dict)
        for key, value in found.items():
            if not isinstance(value, kind) or isinstance(value, bool):
                raise ValueError(f"plan {self.where}: {field}.{key}={_short(value)} must be {_kind(kind)}")
        return found


def _layout(read: _Reader) -> Layout:
    from autotune.report.report import layout_to_json

    try:
        layout = parse_layout(read("text", str))
    except ValueError as error:
        raise ValueError(f"plan {read.where}: text: {error}") from None
    written = read("layout", dict)
    for key, value in json.loads(json.dumps(layout_to_json(layout))).items():
        if key in written and written[key] != value:
            both = f"layout.{key}={_short(written[key])}, text says {_short(value)}"
            raise ValueError(f"plan {read.where}: {both}; they must agree")
    return layout


def _target(read: _Reader, shape: tuple[int, ...], devices: int) -> Target:
    """The machine, its name and its figures agreeing."""
    from autotune.meshes.hardware import load_hardware

    name, groups = read("target", str), read("groups", int)
    try:
        hardware = load_hardware(read("hardware", str))
        said = None if name == "local" else parse_target(name, hardware)
        target = Target(name=name, hardware=hardware, shape=shape, groups=groups, attached=said is None)
    except ValueError as error:
        raise ValueError(f"plan {read.where}: {str(error).removeprefix(f'plan {read.where}: ')}") from None
    if said is not None and (said.shape, said.groups) != (shape, groups):
        both = f"shape={list(shape)} and groups={groups}, target {name} says {list(said.shape)} and {said.groups}"
        raise ValueError(f"plan {read.where}: {both}; they must agree")
    if target.devices != devices:
        raise ValueError(f"plan {read.where}: devices={devices} must be the target's {target.devices}")
    return target


def _partition(read: _Reader) -> Partition | None:
    values = read("partition", (dict, type(None)))
    if values is None:
        return None
    try:
        return partition_from_json(values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"plan {read.where}: partition is not one: {error!r}") from None


def _figures(read: _Reader) -> Figures:
    values = read("figures", dict)
    inside = _Reader(f"{read.where}: figures", values)
    found: dict[str, Any] = {}
    for name in FIGURES:
        if name in ("axis_bytes", "collectives"):
            found[name] = inside.mapping(name, (int, float)) if values.get(name) is not None else None
        else:
            found[name] = inside(name, (int, float, type(None)))
    return Figures(**found)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _kind(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "a text", dict: "an object", list: "a list",
             type(None): "null"}  # fmt: skip
    return " or ".join(names[one] for one in (kind if isinstance(kind, tuple) else (kind,)))
