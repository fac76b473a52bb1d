"""From a compiled program's text to Analysis: read, place, replay, and replay on better hardware."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable

from autotune.analysis.analysis import Analysis, analysis_from_json, analysis_to_json
from autotune.analysis.limits import ARC
from autotune.analysis.overheads import overheads_of
from autotune.compile.compilation import Compilation, CompileFailure
from autotune.compile.log import one_line
from autotune.efficiency import at_sustained_share
from autotune.hlo.memory_by_category import read_memory
from autotune.hlo.read import read_program
from autotune.hlo.unreadable import UnreadableProgram, reading
from autotune.hlo.versions import unchecked
from autotune.hlo.warnings import readable_warnings
from autotune.meshes.collectives import Leg, legs
from autotune.meshes.hardware import Hardware, scale
from autotune.meshes.layout import Layout
from autotune.meshes.placement import Placement, place
from autotune.meshes.target import Target
from autotune.program import Collective, Compute, Program, host_traffic, walk
from autotune.replay.op_seconds import core_seconds
from autotune.replay.replay import Prediction, replay
from autotune.replay.timeline import Recorder
from autotune.store import Store
from autotune.system.source_digest import source_digest


def analyse(compilation: Compilation, layout: Layout, target: Target, store: Store | None) -> Analysis:
    """What this compilation says of `layout` on `target`; kept in the store, since reading takes a second.

    UnreadableProgram where the program cannot be read or replayed.
    """
    key = _key(compilation, layout, target)
    if store is not None:
        kept = store.rebuilt(store.get_blob(key), analysis_from_json)
        if kept is not None:
            return kept
    program = program_of(compilation, layout, target)
    with reading("the program cannot be replayed"):
        analysis = analyse_program(program, compilation, layout, target)
        if not math.isfinite(analysis.prediction.step_seconds):
            raise UnreadableProgram(f"hlo: the program takes {analysis.prediction.step_seconds} s")
    if store is not None:
        store.attempt(store.put_blob, key, analysis_to_json(analysis))
    return analysis


def analysis_or_failure(
    compilation: Compilation, layout: Layout, target: Target, store: Store | None
) -> Analysis | CompileFailure:
    """As `analyse`; a program that cannot be read is a failure of its layout."""
    try:
        return analyse(compilation, layout, target, store)
    except UnreadableProgram as error:
        return unread(compilation, error)


def unread(compilation: Compilation, error: UnreadableProgram) -> CompileFailure:
    """The failure of a layout that compiled to a program that cannot be read."""
    return CompileFailure(
        layout=compilation.layout,
        target=compilation.target,
        kind="failed",
        stage="read",
        reason=one_line(f"it compiled, and its program cannot be read: {error}"),
        last_line=None,
        traceback=None,
        source=None,
        log_path=compilation.log_path,
        seconds=compilation.compile_seconds,
        needed_bytes=None,
        available_bytes=None,
        arguments=compilation.arguments,
    )


def program_of(compilation: Compilation, layout: Layout, target: Target) -> Program:
    """The compiled text as a Program; UnreadableProgram where it is none."""
    return read_program(
        compilation.text,
        platform=compilation.platform,
        mesh_shape=layout.mesh_shape,
        devices_per_group=target.devices_per_group,
        memory=read_memory(compilation),
        dcn=layout.dcn_axes,
    )


def predict(
    program: Program, layout: Layout, target: Target, hardware: Hardware, recorder: Recorder | None = None
) -> Prediction:
    """Replay `program`, laid out by `layout` on `target`, with the rates of `hardware`.

    `recorder` is told when each instruction begins and ends on each lane.
    """
    hardware = at_its_clock(program, layout, target, hardware)
    found = replay(program, _legs_on(layout, target, hardware), hardware, recorder)
    return _with_stragglers(found, hardware.straggler_share(target.groups), recorder)


def _legs_on(layout: Layout, target: Target, hardware: Hardware) -> Callable[[Collective], tuple[Leg, ...]]:
    """The links that each collective of a program rides, and how long on each lane."""
    placement = place(layout, target)

    @functools.cache
    def legs_of_collective(collective: Collective) -> tuple[Leg, ...]:
        return tuple(_one_way(leg, collective.shift, hardware) for leg in legs_of(collective, placement, hardware))

    return legs_of_collective


def at_its_clock(program: Program, layout: Layout, target: Target, hardware: Hardware) -> Hardware:
    """The hardware with the rate of matmuls that its power allows in this program: what it draws while it does other
    work, or waits, decides how much is left for them. Hardware whose power is not known is as it was."""
    if not hardware.power_watts or hardware.sustained_share is not None:
        return hardware
    for waits in (False, True):
        spent = dict.fromkeys(("matmul", "attention", "passes", "waits"), 0.0)
        for op, trips in walk(program.instructions):
            if isinstance(op, Compute):
                kind = op.kernel if op.kernel in ("matmul", "attention") else "passes"
                spent[kind] += trips * sum(seconds for _, seconds in core_seconds(op, hardware))
        if waits:
            step = replay(program, _legs_on(layout, target, hardware), hardware).step_seconds
            spent["waits"] = max(step - sum(spent.values()), 0.0)
        hardware = at_sustained_share(hardware, spent)
    return hardware


def _with_stragglers(found: Prediction, share: float, recorder: Recorder | None) -> Prediction:
    """The prediction with slices that wait for the slowest: a share of the step more, of all that it is made of."""
    if not share:
        return found
    if recorder is not None:
        recorder.wait(None, found.step_seconds, found.step_seconds * (1 + share), "wait for the slowest slice")
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


def analyse_program(program: Program, compilation: Compilation, layout: Layout, target: Target) -> Analysis:
    """Replay the program as it is, and once for every resource on its critical path made better."""
    hardware = at_its_clock(program, layout, target, target.hardware)
    prediction = predict(program, layout, target, hardware)
    improved = {}
    for resource in prediction.by_resource():
        better = scale(hardware, resource, ARC)
        improved[resource] = predict(program, layout, target, better).step_seconds
    work = [(op, trips) for op, trips in walk(program.instructions) if isinstance(op, Compute)]
    return Analysis(
        prediction=prediction,
        memory=program.memory,
        flops=sum(trips * op.flops for op, trips in work),
        recompute_flops=sum(trips * op.flops for op, trips in work if "rematted_computation" in (op.scope or "")),
        hbm_bytes=sum(trips * op.hbm_bytes for op, trips in work),
        improved_seconds=improved,
        lower_seconds=compilation.lower_seconds,
        compile_seconds=compilation.compile_seconds,
        losses=overheads_of(program, compilation, layout, hardware),
        traced=bool(compilation.traced_flops),
        warnings=(
            *readable_warnings(compilation),
            *program.warnings,
            *repeated_host_copies(program),
            *unchecked(compilation.versions),
        ),
        log=compilation.log_path,
        not_understood=program.not_understood,
    )


REPEATED = 2.0
"""What waits in the host's memory goes out and comes back once a step; from so many times on, the report says it."""


def repeated_host_copies(program: Program) -> tuple[str, ...]:
    """A line for each direction in which a step moves what it keeps in its host's memory many times over."""
    kept = program.memory.host_bytes
    return tuple(
        f"copies {way} the host's memory move {moved / 2**30:.3g} GiB a step, {moved / kept:.0f} times what the "
        "program keeps there: an array may be copied whole in every trip of a loop"
        for way, moved in zip(("from", "to"), host_traffic(program), strict=True)
        if kept > 0 and moved > REPEATED * kept
    )


def _key(compilation: Compilation, layout: Layout, target: Target) -> str:
    digest = hashlib.sha256(compilation.text.encode())
    source = source_digest("autotune.analysis.analyse")
    digest.update(f"{layout}|{target}|{source}|{compilation.traced_flops}".encode())
    # One program can be two workloads: memory by category depends on what each argument is to the user.
    digest.update("|".join(argument.category for argument in compilation.arguments).encode())
    return f"analysis-{digest.hexdigest()[:40]}"
