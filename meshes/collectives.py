"""Seconds of a collective on a placed axis: bytes over links plus hops and launch. JAX-free, NumPy broadcasts.

The one place that says so: compiled programs are replayed with `legs`, whole tables of layouts are priced with
`cost_of_routes`, and both are `RouteCost`. Every tier's share is (bytes over its busiest link) / (bytes per second) +
(hops) x (seconds a hop) + launch, and on NVIDIA GPUs what NCCL takes to fill its pipeline:

    all_gather, reduce_scatter   payload (k-1)/k / links            hops of one trip around
    all_reduce                   twice that (one of each)           twice; on a switch a tree where that is faster
    all_to_all                   payload x spread                   the farthest way
    permute                      payload x share                    the longest way of a shift by one

Sources: ring and torus formulas, jax-ml/scaling-book (sharding.md, "all-gather", "all-to-all"); lower bounds and the
bidirectional exchange, Chan et al. 2007, "Collective communication: theory, practice, and experience"; ring or tree,
NCCL src/graph/tuning.cc. `payload_bytes` is as in `autotune.program.Collective`: the gathered size, the unreduced size
of one device, or what one device holds before an all-to-all or permute.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from autotune.meshes.hardware import Hardware, Tier
from autotune.meshes.placement import Placement
from autotune.meshes.route import Factor, Route, switch_route, torus_route


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """What one collective does on one tier, per device and execution. Legs run one after another.

    `wire_bytes`: what a device sends on this tier. `bytes_seconds`: 0 where these bytes flow under those of another
    leg (NCCL's rings pass all tiers at once, the slowest sets the pace); that other leg then holds both legs' lanes.
    `hidden_seconds`: what these bytes take on this tier, where they so flow under another leg's; else 0.
    """

    tier: str
    lanes: tuple[str, ...]
    wire_bytes: float
    bytes_seconds: float
    latency_seconds: float
    hidden_seconds: float = 0.0


def wire_bytes(kind, payload_bytes, size):
    """What one device sends with a bandwidth-optimal algorithm: payload (k-1)/k, twice that for all_reduce.

    A permute sends all it holds.

    >>> float(wire_bytes("all_reduce", 100.0, 4))
    150.0
    """
    if kind == "permute":
        return np.where(np.asarray(size) > 1, payload_bytes, 0.0)
    return (2 if kind == "all_reduce" else 1) * payload_bytes * (np.asarray(size) - 1) / size


def link_bytes(kind, payload_bytes, size, links, spread, share):
    """Bytes over the busiest link of the tier."""
    if kind == "all_to_all":
        return payload_bytes * np.where(np.asarray(size) > 1, spread, 0.0)
    if kind == "permute":
        return payload_bytes * np.where(np.asarray(size) > 1, share, 0.0)
    return wire_bytes(kind, payload_bytes, size) / links


def messages(kind, hops, far_hops, near_hops):
    """Links or messages one after another on the longest way."""
    if kind == "all_to_all":
        return far_hops
    if kind == "permute":
        return near_hops
    return hops * (2 if kind == "all_reduce" else 1)


FIELDS = ("size", "links", "hops", "spread", "far_hops", "share", "near_hops")
"""The figures of a `Route` that decide what a collective takes on it."""

RAMPS = {"all_gather": 1, "reduce_scatter": 1, "all_reduce": 2}
"""Kind that NCCL sends in pipelines of chunks -> how many of them have to fill (`Tier.ramp_bytes`)."""


def tier_seconds(kind, payload_bytes, tier: Tier, *, size, links, hops, spread, far_hops, share, near_hops):
    """(seconds of bytes, seconds of hops) on one tier, launch not included; any argument but `kind` may be an array.

    While NCCL's pipeline fills, bytes take as much longer as `ramp_bytes` take, at most half of their own time. On a
    switch an all_reduce takes the faster of ring and tree: 2(k-1) messages with 2(k-1)/k of the payload, or 2 log2(k)
    messages with twice the payload.
    """
    route = (size, links, hops, spread, far_hops, share, near_hops)
    ring, tree = _per_byte(kind, 1.0, tier, *route), _tree(kind, 1.0, tier, size)
    wait = messages(kind, hops, far_hops, near_hops) * tier.latency_seconds
    return _faster(payload_bytes, ring, wait, _ramp_seconds(kind, tier), tree)


def _per_byte(kind, part, tier: Tier, size, links, hops, spread, far_hops, share, near_hops):
    """Seconds a payload byte, of whose payload the tier moves `part`."""
    return link_bytes(kind, part, size, links, spread, share) / tier.rate(kind)


def _tree(kind, part, tier: Tier, size):
    """(seconds a payload byte, seconds of hops) of NCCL's tree; None where there is no such choice."""
    if kind != "all_reduce" or tier.kind != "switch":
        return None
    used = np.asarray(size) > 1
    return np.where(used, 2 * part / tier.rate(kind), 0.0), 2 * np.ceil(np.log2(size)) * tier.latency_seconds


def _ramp_seconds(kind, tier: Tier) -> float:
    """What the pipelines take to fill: an all_reduce has two, of its reduction and of its gather."""
    return RAMPS.get(kind, 0) * tier.ramp_bytes / tier.rate(kind)


def _faster(payload_bytes, per_byte, wait, ramp_seconds: float, tree):
    """(seconds of bytes, seconds of hops) of the ring, or of the tree where that is the faster."""

    def with_ramp(seconds):
        return seconds + np.minimum(0.5 * seconds, ramp_seconds) if ramp_seconds else seconds

    bytes_seconds = with_ramp(payload_bytes * per_byte)
    if tree is None:
        return bytes_seconds, wait
    tree_bytes = with_ramp(payload_bytes * tree[0])
    is_tree = tree_bytes + tree[1] < bytes_seconds + wait
    return np.where(is_tree, tree_bytes, bytes_seconds), np.where(is_tree, tree[1], wait)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteCost:
    """What one kind of collective takes on some routes, network to itself: worked out once for any number of bytes.

    All arrays are (tiers, routes), tiers inner first; seconds are per device and execution.
    """

    tiers: tuple[Tier, ...]
    kind: str
    pipelined: bool
    """Whether all tiers work at once, at the pace of the slowest (GPUs; a permute): one launch is paid, the slowest.
    Else they work one after another, each with its own launch."""
    per_byte: np.ndarray
    """Seconds a payload byte, without trees and ramps."""
    wait: np.ndarray
    """Seconds of hops, without trees."""
    launched: np.ndarray
    """Whether the tier's launch is paid."""
    trees: tuple[tuple[np.ndarray, np.ndarray] | None, ...]
    """Of each tier (seconds a payload byte, seconds of hops) of NCCL's tree, where an all_reduce has that choice."""
    fixed: np.ndarray
    """(routes) Seconds that no byte decides: launches, and hops of kinds that no tree does."""
    crossed: tuple[bool, ...]
    """Of each tier, whether anything crosses it on any route."""

    def seconds(self, route, payload_bytes, outer_share: np.ndarray | float = 1.0):
        """({tier name: seconds of bytes on it}, seconds of latency) of one collective on each of `route` (indices).

        `outer_share`: of the bytes on the outermost tier, what is left where other axes of a joint reduction cut them.
        """
        found, latency = {}, self.fixed[route]
        for index, tier in enumerate(self.tiers):
            if not self.crossed[index]:
                continue
            payload = payload_bytes * outer_share if index == len(self.tiers) - 1 else payload_bytes
            bytes_seconds, wait = self._on_tier(index, route, payload)
            if self.kind == "all_reduce":
                latency = latency + wait
            if tier.least_seconds.get(self.kind):
                latency = latency + self._short_of_least(index, route, bytes_seconds, wait)
            found[tier.name] = bytes_seconds
        for name, rule in zip(found, self.paced(list(found.values())), strict=True):
            found[name] = found[name] if rule is None else found[name] * rule
        return found, latency

    def by_tier(self, payload_bytes: float) -> list[tuple[float, float, bool]]:
        """Of each tier of the first route (seconds of bytes, seconds of latency, whether its bytes set the pace)."""
        found, latencies = [], []
        for index, tier in enumerate(self.tiers):
            bytes_seconds, wait = self._on_tier(index, 0, payload_bytes)
            latency = wait + tier.launch(self.kind) * self.launched[index, 0]
            latencies.append(float(latency + self._short_of_least(index, 0, bytes_seconds, wait)))
            found.append(bytes_seconds)
        paced = self.paced(found)
        return [
            (float(part), latency, rule is None or bool(rule))
            for part, latency, rule in zip(found, latencies, paced, strict=True)
        ]

    def paced(self, parts: list[np.ndarray]) -> list[np.ndarray | None]:
        """Of each tier 1 where its bytes set the pace and 0 where they flow under another's; None: always 1."""
        if not self.pipelined or len(parts) < 2:
            return [None] * len(parts)
        slowest = functools.reduce(np.maximum, parts)
        left, rules = np.ones_like(slowest), []
        for part in parts:
            rules.append((part >= slowest) * left)
            left = left - rules[-1]
        return rules

    def _on_tier(self, index: int, route, payload_bytes):
        tier, tree = self.tiers[index], self.trees[index]
        return _faster(
            payload_bytes,
            self.per_byte[index][route],
            self.wait[index][route],
            _ramp_seconds(self.kind, tier),
            None if tree is None else (tree[0][route], tree[1][route]),
        )

    def _short_of_least(self, index: int, route, bytes_seconds, wait):
        """What is missing on a tier to the least that it takes."""
        tier, launched = self.tiers[index], self.launched[index][route]
        taken = bytes_seconds + wait + tier.launch(self.kind)
        return np.maximum(tier.least_seconds.get(self.kind, 0.0) - taken, 0.0) * launched


def cost_of_routes(kind: str, tiers: tuple[Tier, ...], routes: np.ndarray, platform: str) -> RouteCost:
    """The cost of one kind of collective on routes (tiers, `FIELDS`, routes); a tier of size 1 costs nothing."""
    pipelined = platform != "tpu" or kind == "permute"
    parts = tier_payloads(kind, 1.0, routes[:, 0])
    per_byte, wait, launch, trees = [], [], [], []
    for tier, route, part in zip(tiers, routes, parts, strict=True):
        size, _, hops, _, far_hops, _, near_hops = route
        per_byte.append(_per_byte(kind, part, tier, *route))
        wait.append(messages(kind, hops, far_hops, near_hops) * tier.latency_seconds * (size > 1))
        launch.append(tier.launch(kind) * (size > 1))
        trees.append(_tree(kind, part, tier, size))
    launches, launched = np.stack(launch), routes[:, 0] > 1
    if pipelined:
        launched = launched & (np.arange(len(tiers))[:, None] == np.where(launched, launches, -1.0).argmax(axis=0))
        launches = np.where(launched, launches, 0.0)
    return RouteCost(
        tiers=tiers,
        kind=kind,
        pipelined=pipelined,
        per_byte=np.stack(per_byte),
        wait=np.stack(wait),
        launched=launched,
        trees=tuple(trees),
        fixed=launches.sum(axis=0) + (0.0 if kind == "all_reduce" else np.sum(wait, axis=0)),
        crossed=tuple(bool(each.any()) for each in per_byte),
    )


def tier_payloads(kind, payload_bytes, sizes):
    """What each tier moves (inner first) of a collective over all of them, whose sizes are given.

    A gather or reduction shrinks by every tier inside (the outer tier works on the shards of the inner); of an
    all-to-all, a tier carries what stays within the tiers outside it; a permute may step over any tier whole.
    """
    payloads = []
    for index in range(len(sizes)):
        others = sizes[:index] if kind in ("all_gather", "reduce_scatter", "all_reduce") else sizes[index + 1 :]
        payloads.append(payload_bytes if kind == "permute" else payload_bytes / np.prod(others, axis=0, initial=1))
    return payloads


def legs(
    kind: str,
    payload_bytes: float,
    axes: tuple[str, ...],
    placement: Placement,
    hardware: Hardware,
    *,
    group_size: int | None = None,
    crosses_groups: int | None = None,
) -> tuple[Leg, ...]:
    """The legs of one collective along `axes`, inner tier first; () when it moves nothing.

    `group_size` and `crosses_groups` (both or neither) are for groups that are only a part of the axes, or none of them
    (`axes` = ()): see `part_routes`.
    """
    routes = placement.route(axes)
    if group_size is not None and crosses_groups is not None:
        routes = part_routes(routes, group_size, crosses_groups, placement)
    if not routes:
        return ()
    figures = np.array([[[float(getattr(route, field))] for field in FIELDS] for route in routes])
    tiers = tuple(hardware.tier(route.tier) for route in routes)
    cost = cost_of_routes(kind, tiers, figures, hardware.platform)
    payloads = tier_payloads(kind, payload_bytes, [route.size for route in routes])
    everything = tuple(lane for route in routes for lane in route.lanes)
    found = zip(routes, payloads, cost.by_tier(payload_bytes), strict=True)
    return tuple(
        Leg(
            tier=route.tier,
            lanes=everything if cost.pipelined and sets_pace else route.lanes,
            wire_bytes=float(wire_bytes(kind, payload, route.size)),
            bytes_seconds=bytes_seconds if sets_pace else 0.0,
            latency_seconds=latency,
            hidden_seconds=0.0 if sets_pace else bytes_seconds,
        )
        for route, payload, (bytes_seconds, latency, sets_pace) in found
    )


def part_routes(
    routes: tuple[Route, ...], group_size: int, crosses_groups: int, placement: Placement
) -> tuple[Route, ...]:
    """The routes of groups of `group_size` devices in `crosses_groups` slices or domains, where axes alone do not say.

    A tier whose size agrees keeps its route (so the part between slices of a TPU all-reduce rides the outer tier only);
    where the inside does not agree it is priced as a line of neighbours on the last torus dimension.
    """
    outer_name = placement.target.hardware.tiers[-1].name
    inside = group_size // crosses_groups
    inner = tuple(route for route in routes if route.tier != outer_name)
    size = 1
    for route in inner:
        size *= route.size
    if size != inside:
        inner = (_line(inside, placement),) if inside > 1 else ()
    return inner + ((switch_route(outer_name, crosses_groups),) if crosses_groups > 1 else ())


def _line(size: int, placement: Placement) -> Route:
    """Neighbours in the devices' order, priced as a line that does not wrap (or as ports of a switch)."""
    hardware = placement.target.hardware
    tier = hardware.tiers[1] if hardware.devices_per_chip > 1 else hardware.tiers[0]
    if tier.kind == "switch":
        return switch_route(tier.name, size)
    last = len(placement.target.shape) - 1
    return torus_route(tier.name, (Factor(dimension=last, size=size, stride=1, extent=size, wraps=False),))


def seconds(kind: str, payload_bytes: float, axes: tuple[str, ...], placement: Placement, hardware: Hardware) -> float:
    """Seconds of one collective with the network to itself."""
    return sum(leg.bytes_seconds + leg.latency_seconds for leg in legs(kind, payload_bytes, axes, placement, hardware))
