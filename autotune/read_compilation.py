"""From a compiled program's text to Evidence: read, place, replay, and replay on better hardware."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from pathlib import Path

from autotune import meshes
from autotune.compile.compilation import Compilation
from autotune.evidence import Evidence, evidence_from_json, evidence_to_json
from autotune.hlo.memory import read_memory
from autotune.hlo.read import read_program
from autotune.hlo.versions import unchecked
from autotune.hlo.warnings import readable_warnings
from autotune.limits import ARC
from autotune.losses import losses_of
from autotune.meshes.collectives import Leg, legs
from autotune.meshes.hardware import Hardware, scale
from autotune.meshes.layout import Layout
from autotune.meshes.placement import Placement, place
from autotune.meshes.target import Target
from autotune.program import Collective, Compute, Program, walk
from autotune.replay.replay import Prediction, replay
from autotune.store import Store


def evidence_of(compilation: Compilation, layout: Layout, target: Target, store: Store | None) -> Evidence:
    """What this compilation says of `layout` on `target`; kept in the store, since reading takes a second."""
    key = _key(compilation, layout, target)
    if store is not None:
        kept = store.get_blob(key)
        if kept is not None:
            return evidence_from_json(kept)
    program = program_of(compilation, layout, target)
    evidence = evidence_of_program(program, compilation, layout, target)
    if store is not None:
        store.attempt(store.put_blob, key, evidence_to_json(evidence))
    return evidence


def program_of(compilation: Compilation, layout: Layout, target: Target) -> Program:
    """The compiled text as a Program."""
    return read_program(
        compilation.text,
        platform=compilation.platform,
        mesh_shape=layout.mesh_shape,
        devices_per_group=target.devices_per_group,
        memory=read_memory(compilation),
        dcn=layout.dcn_axes,
    )


def predict(program: Program, layout: Layout, target: Target, hardware: Hardware) -> Prediction:
    """Replay `program`, laid out by `layout` on `target`, with the rates of `hardware`."""
    placement = place(layout, target)

    @functools.cache
    def ridden(collective: Collective) -> tuple[Leg, ...]:
        return tuple(_one_way(leg, collective.shift, hardware) for leg in legs_of(collective, placement, hardware))

    return _waiting(replay(program, ridden, hardware), hardware.waiting(target.groups))


def _waiting(found: Prediction, share: float) -> Prediction:
    """The prediction with slices that wait for the slowest: a share of the step more, of all that it is made of."""
    if not share:
        return found
    return dataclasses.replace(
        found,
        step_seconds=found.step_seconds * (1 + share),
        high_seconds=found.high_seconds * (1 + share),
        critical={term: seconds * (1 + share) for term, seconds in found.critical.items()},
        losses={**found.losses, "waiting": share * found.step_seconds},
    )


def legs_of(collective: Collective, placement: Placement, hardware: Hardware) -> tuple[Leg, ...]:
    """The links that a collective of a program rides, and how long on each."""
    return legs(
        collective.kind,
        collective.payload_bytes,
        collective.axes,
        placement,
        hardware,
        group_size=collective.group_size,
        crosses_groups=collective.crosses_groups,
    )


def _one_way(leg: Leg, shift: int | None, hardware: Hardware) -> Leg:
    """The leg on lanes with a direction, where links are a torus: a shift holds its own way, all else both.

    The compiler sends halves of a matmul's operand both ways around a ring at once; on one lane they would queue.
    """
    if hardware.tier(leg.tier).kind != "torus":
        return leg
    ways = ("+", "-") if shift is None else ("+",) if shift > 0 else ("-",)
    return dataclasses.replace(leg, lanes=tuple(lane + way for lane in leg.lanes for way in ways))


def evidence_of_program(program: Program, compilation: Compilation, layout: Layout, target: Target) -> Evidence:
    """Replay the program as it is, and once for every resource on its critical path made better."""
    hardware = target.hardware
    prediction = predict(program, layout, target, hardware)
    improved = {}
    for resource in prediction.by_resource():
        better = scale(hardware, resource, ARC)
        improved[resource] = predict(program, layout, target, better).step_seconds
    work = [(op, trips) for op, trips in walk(program.instructions) if isinstance(op, Compute)]
    return Evidence(
        prediction=prediction,
        memory=program.memory,
        flops=sum(trips * op.flops for op, trips in work),
        recompute_flops=sum(trips * op.flops for op, trips in work if "rematted_computation" in (op.scope or "")),
        hbm_bytes=sum(trips * op.hbm_bytes for op, trips in work),
        improved_seconds=improved,
        lower_seconds=compilation.lower_seconds,
        compile_seconds=compilation.compile_seconds,
        losses=losses_of(program, compilation, layout, hardware),
        traced=bool(compilation.traced_flops),
        warnings=(*readable_warnings(compilation), *program.warnings, *unchecked(compilation.versions)),
        log=compilation.log_path,
    )


def _key(compilation: Compilation, layout: Layout, target: Target) -> str:
    digest = hashlib.sha256(compilation.text.encode())
    digest.update(f"{layout}|{target}|{_reader()}|{compilation.traced_flops}".encode())
    # One program can be two workloads: memory by category depends on what each argument is to the user.
    digest.update("|".join(argument.category for argument in compilation.arguments).encode())
    return f"evidence-{digest.hexdigest()[:40]}"


@functools.cache
def _reader() -> str:
    """Of the source that reads and replays: a mended reader answers anew."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    names = (
        "hlo/*.py",
        "replay/*.py",
        "efficiency.py",
        "evidence.py",
        "losses.py",
        "program.py",
        Path(__file__).name,
    )
    paths = [path for name in names for path in here.glob(name)]
    paths += [Path(meshes.__path__[0]) / name for name in ("placement.py", "route.py", "collectives.py", "hardware.py")]
    for path in sorted(paths):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
