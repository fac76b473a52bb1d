"""Seconds of a collective on a placed axis: bytes over links plus hops and launch. JAX-free, NumPy broadcasts.

Every tier's share is (bytes over its busiest link) / (bytes per second) + (hops) x (seconds a hop) + launch:

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


def tier_seconds(kind, payload_bytes, tier: Tier, *, size, links, hops, spread, far_hops, share, near_hops):
    """(seconds of bytes, seconds of hops) on one tier, launch not included; any argument but `kind` may be an array.

    On a switch an all_reduce takes the faster of ring and tree: 2(k-1) messages with 2(k-1)/k of the payload, or
    2 log2(k) messages with twice the payload.
    """
    bytes_seconds = link_bytes(kind, payload_bytes, size, links, spread, share) / tier.rate(kind)
    latency = messages(kind, hops, far_hops, near_hops) * tier.latency_seconds
    if kind == "all_reduce" and tier.kind == "switch":
        tree_bytes = 2 * payload_bytes / tier.rate(kind)
        tree_latency = 2 * np.ceil(np.log2(size)) * tier.latency_seconds
        tree = tree_bytes + tree_latency < bytes_seconds + latency
        bytes_seconds = np.where(tree, tree_bytes, bytes_seconds)
        latency = np.where(tree, tree_latency, latency)
    return bytes_seconds, latency


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
    tiers = {tier.name: tier for tier in hardware.tiers}
    payloads = tier_payloads(kind, payload_bytes, [route.size for route in routes])
    found = []
    for route, payload in zip(routes, payloads, strict=True):
        tier = tiers[route.tier]
        seconds, latency = tier_seconds(
            kind, payload, tier, size=route.size, links=route.links, hops=route.hops, spread=route.spread,
            far_hops=route.far_hops, share=route.share, near_hops=route.near_hops,
        )  # fmt: skip
        found.append((route, tier, float(wire_bytes(kind, payload, route.size)), float(seconds), float(latency)))
    pipelined = hardware.platform != "tpu" or kind == "permute"
    slowest = max(range(len(found)), key=lambda index: (found[index][3], -index))
    launched = max(range(len(found)), key=lambda index: (found[index][1].launch(kind), -index))
    everything = tuple(lane for route in routes for lane in route.lanes)
    result = []
    for index, (route, tier, sent, seconds, latency) in enumerate(found):
        hidden = pipelined and index != slowest
        if not pipelined or index == launched:
            latency = max(latency + tier.launch(kind), tier.least_seconds.get(kind, 0.0) - seconds)
        result.append(
            Leg(
                tier=route.tier,
                lanes=everything if pipelined and index == slowest else route.lanes,
                wire_bytes=sent,
                bytes_seconds=0.0 if hidden else seconds,
                latency_seconds=latency,
                hidden_seconds=seconds if hidden else 0.0,
            )
        )
    return tuple(result)


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
