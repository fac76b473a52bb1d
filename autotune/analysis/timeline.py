"""The timeline of one compiled layout: its program replayed with a recorder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from autotune.analysis.analyse import at_its_clock, predict, program_of
from autotune.compile.compilation import Compilation
from autotune.meshes.layout import Layout
from autotune.meshes.target import Target
from autotune.replay.replay import Prediction
from autotune.replay.timeline import CORE, Recorder, Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """One predicted step of one device, as spans on lanes; every device of the mesh runs the same program.

    `device`: the kind of device, as `jax.Device.device_kind` says where that is known. `prediction`: what the spans
    add up to (see `autotune.replay.timeline`).
    """

    layout: Layout
    target: Target
    device: str
    prediction: Prediction
    spans: tuple[Span, ...]
    versions: dict[str, str]

    def lanes(self) -> tuple[str, ...]:
        """The lanes that hold a span: the core first, then memory copies, links, other cores, and the host."""
        return tuple(sorted({span.lane for span in self.spans}, key=lambda lane: (_rank(lane), lane)))


def timeline_of(compilation: Compilation, layout: Layout, target: Target) -> Timeline:
    """Read the compiled program again and replay it. UnreadableProgram where it cannot be read."""
    program = program_of(compilation, layout, target)
    hardware = at_its_clock(program, layout, target, target.hardware)
    recorder = Recorder(hardware)
    prediction = predict(program, layout, target, hardware, recorder)
    kinds = target.hardware.device_kinds
    return Timeline(
        layout=layout,
        target=target,
        device=kinds[0] if kinds else target.hardware.name,
        prediction=prediction,
        spans=tuple(recorder.spans),
        versions=dict(compilation.versions),
    )


def lane_title(lane: str) -> str:
    """A lane in words.

    >>> [lane_title(lane) for lane in ("core", "dma", "ici:0+", "nvlink:0", "sparsecore 0", "host in")]
    ['compute', 'HBM copies', 'link ici, ring 0, way +', 'link nvlink 0', 'SparseCore 0', 'host to device']
    """
    known = {CORE: "compute", "dma": "HBM copies", "host in": "host to device", "host out": "device to host"}
    if lane in known:
        return known[lane]
    if lane.startswith("sparsecore"):
        return lane.replace("sparsecore", "SparseCore")
    tier, colon, number = lane.partition(":")
    if not colon:
        return lane
    if number.endswith(("+", "-")):
        return f"link {tier}, ring {number[:-1]}, way {number[-1]}"
    return f"link {tier} {number}"


def _rank(lane: str) -> int:
    known: Iterable[tuple[int, str]] = ((0, CORE), (1, "dma"), (3, "sparsecore"), (4, "host"))
    return next((rank for rank, start in known if lane.startswith(start)), 2)
