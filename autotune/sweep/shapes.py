"""Short and fat against deep and thin on one target: what the shape of the user's model costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from autotune.frontier.run import near
from autotune.frontier.shapes import round_width
from autotune.meshes.target import Target
from autotune.meshes.transformer import TransformerShape
from autotune.sweep.point import Gap, Point, Question, point_at
from autotune.workload.workload import Workload

DEPTH_FACTORS = (0.25, 0.5, 2**-0.5, 1.0, 2**0.5, 2.0, 4.0)
MLP_STEP = 256
"""Widths of the MLP that are tried: whole multiples of two TPU lanes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One depth and width with the best layout for it. `equal`: what it shares with the user's model.

    `tensor_seconds`, `bubble_seconds`, `latency_seconds`: of a step, None where nothing fits.
    """

    equal: str
    transformer: TransformerShape
    flops: float
    point: Point | Gap

    @property
    def tensor_seconds(self) -> float | None:
        """Collectives along `tensor` that nothing hides."""
        return self._seconds(lambda name: name.startswith("network:tensor@"))

    @property
    def bubble_seconds(self) -> float | None:
        return self._seconds(lambda name: name == "bubble")

    @property
    def latency_seconds(self) -> float | None:
        return self._seconds(lambda name: name == "latency")

    def _seconds(self, wanted: Callable[[str], bool]) -> float | None:
        if isinstance(self.point, Gap):
            return None
        return self.point.step_seconds * sum(share for name, share in self.point.shares.items() if wanted(name))


def reshaped(
    transformer: TransformerShape, factor: float, size: Callable[[TransformerShape], float]
) -> TransformerShape:
    """The model `factor` times as deep and as much thinner as keeps `size` (parameters, FLOPs) nearest to what it was.

    Head size, key-value heads, experts and vocabulary stay; widths keep few binary digits and depths few prime factors,
    so that the shape decides and not what divides it. Factor 1 is the model itself.
    """
    if factor == 1.0:
        return transformer
    layers = max(1, near(transformer.layers * factor))
    wanted = size(transformer)
    thin, wide = 1 / 64, 64.0
    for _ in range(60):
        middle = (thin * wide) ** 0.5
        if size(_scaled(transformer, layers, middle, rounded=False)) > wanted:
            wide = middle
        else:
            thin = middle
    shape = _scaled(transformer, layers, thin, rounded=True)
    # Heads come in whole groups, so the MLP's width makes up for what their rounding gave or took.
    step = max(MLP_STEP, shape.d_ff // 64 // MLP_STEP * MLP_STEP)
    nearby = [max(shape.d_ff // step + move, 1) * step for move in range(-16, 17)]
    fitted = (dataclasses.replace(shape, d_ff=d_ff) for d_ff in nearby)
    return min(fitted, key=lambda one: abs(size(one) - wanted))


def _scaled(transformer: TransformerShape, layers: int, width: float, rounded: bool) -> TransformerShape:
    """Another depth, all widths times `width`."""

    def cut(value: int) -> int:
        return round_width(value * width) if rounded else max(1, round(value * width))

    groups = max(1, round(transformer.heads / transformer.kv_heads * width))
    heads = transformer.kv_heads * groups if rounded else max(1, round(transformer.heads * width))
    return dataclasses.replace(
        transformer,
        name=f"{transformer.name} {layers}x{cut(transformer.d_model)}",
        layers=layers,
        d_model=cut(transformer.d_model),
        heads=heads,
        kv_heads=transformer.kv_heads if rounded else 1,
        d_ff=cut(transformer.d_ff),
    )


def shapes(question: Question, target: Target) -> list[Shape]:
    """The user's model and others as deep and as thin, at equal parameters and at equal FLOPs a step."""
    workload = question.workload
    if workload.transformer is None:
        raise ValueError("shapes: the step is no transformer we know, so there is no depth and width to change")
    if workload.transformer.architecture is not None:
        raise ValueError(f"shapes: {workload.transformer.name} is no uniform stack, whose depth and width could change")
    measures: Mapping[str, Callable[[TransformerShape], float]] = {
        "parameters": lambda model: float(model.parameters),
        "flops": lambda model: model.train_flops(workload.sequences, workload.seq, workload.training.lora),
    }
    found = []
    for equal, size in measures.items():
        for factor in DEPTH_FACTORS:
            model = reshaped(workload.transformer, factor, size)
            point = point_at(dataclasses.replace(question, workload=of_shape(workload, model)), target, arcs=False)
            flops = model.train_flops(workload.sequences, workload.seq, workload.training.lora)
            found.append(Shape(equal=equal, transformer=model, flops=flops, point=point))
    return found


def of_shape(workload: Workload, transformer: TransformerShape) -> Workload:
    """The same step of another shape, to be priced only: its `build` still makes the old one."""
    fields = {name: getattr(workload, name) for name in workload.__slots__}
    return Workload.of(**fields | {"transformer": transformer})
