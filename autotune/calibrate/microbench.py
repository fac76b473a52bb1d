"""Seconds of single operations on the devices of this process or job: what `autotune.calibrate` fits its rates to.

Every device works at once, so that what they share (a host's cores and memory) is shared as in a train step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Agree = Callable[[float], float]
"""Gives every process of a job process 0's number, so that all run the same programs equally often."""

SAMPLES = 7
SURE = 0.25
"""Share of the samples that noise may have turned around before they are taken again, of more trips."""
MINIMUM_SECONDS = 0.02
"""A sample is at least this long: well above what timing itself and a thread's wake-up take."""
PROGRAM_SECONDS = 0.05
"""The same for programs that a host's devices run in step: whose turn it is on which core adds noise of its own."""
SLOW_SECONDS = 0.2
"""A sample this long needs no repeating against noise."""
MAXIMUM_TRIPS = 4096
ATTEMPTS = 5
"""How often that many trips are timed before it is said that they take no longer than two."""

ROW = 512
FUSIONS = {
    "add": (jnp.add, 2),
    "gelu": (jax.nn.gelu, 1),
    "silu_times": (lambda x, y: jax.nn.silu(x) * y, 2),
    # A weight's gradient reads its operand transposed; XLA's CPU backend does that inside the fusion, with strides.
    "silu_times_transposed": (lambda x, y: (jax.nn.silu(x) * y).T, 2),
    "rms_norm": (lambda x: x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6), 1),
    "softmax": (lambda x: jax.nn.softmax(x, axis=-1), 1),
    "moments": (lambda m, g: 0.9 * m + 0.1 * g, 2),
}
"""name -> (function, operands of one shape): what lies between a transformer's matmuls, each one pass over memory."""


class Bench:
    """Times operations that every device of `devices` does on its own share, or all do together."""

    def __init__(self, devices: Sequence[Any], agree: Agree = lambda value: value) -> None:
        self.devices = np.array(list(devices), dtype=object)
        self.agree = agree

    def matmul_seconds(self, batch: int, m: int, n: int, k: int, dtype: str) -> float:
        """One (batch, m, k) x (batch, k, n) matmul on every device at once."""

        def operation(x, w):
            return jnp.einsum("bmk,bkn->bmn", x, w)

        return self._seconds(operation, Mesh(self.devices, ("device",)), ((batch, m, k), (batch, k, n)), dtype)

    def stream_seconds(self, elements: int, dtype: str) -> float:
        """Reading two arrays of `elements` and writing a third, on every device at once."""
        return self._seconds(jnp.add, Mesh(self.devices, ("device",)), ((elements,), (elements,)), dtype)

    def launch_seconds(self, dtype: str) -> float:
        """One instruction that does next to nothing: a trip of the loop has two, the addition and the update.

        1024 elements: XLA's CPU backend makes one instruction of a whole loop over less.
        """
        return self._seconds(jnp.negative, Mesh(self.devices, ("device",)), ((1024,),), dtype) / 2

    def fusion_seconds(self, name: str, elements: int, dtype: str) -> tuple[float, int]:
        """(seconds, bytes read and written) of one element-wise or row-wise step of a transformer (see FUSIONS)."""
        operation, operands = FUSIONS[name]
        shape = (elements // ROW, ROW)
        seconds = self._seconds(operation, Mesh(self.devices, ("device",)), (shape,) * operands, dtype)
        return seconds, (operands + 1) * elements * jnp.dtype(dtype).itemsize

    def program_seconds(self, operation, shapes: Sequence[tuple[int, ...]], dtype: str) -> tuple[float, str]:
        """Seconds of one `operation` on every device at once, and the text of the loop that was timed.

        The devices of one host wait for each other in every trip, as they do at a step's collectives: so they take
        turns on its cores and caches. Without, each runs its own loop for as long as the system lets it, from warm
        caches: eight devices on two cores were seen to add arrays four times as fast.
        """
        texts: list[str] = []
        hosts = sorted({device.process_index for device in self.devices})
        devices = [[device for device in self.devices if device.process_index == host] for host in hosts]
        mesh = Mesh(np.array(devices, dtype=object), ("host", "device"))
        together = "device" if mesh.shape["device"] > 1 else None
        seconds = self._seconds(operation, mesh, shapes, dtype, texts, together, PROGRAM_SECONDS)
        return seconds, texts[-1]

    def collective_seconds(self, kind: str, payload_bytes: int, mesh: Mesh, axes: tuple[str, ...]) -> float:
        """One collective of float32 along `axes`, all its groups at once; payload as in `autotune.program`."""
        size = int(np.prod([mesh.shape[axis] for axis in axes]))
        elements = max(size, payload_bytes // 4 // size * size)
        held = elements // size if kind == "all_gather" else elements

        def operation(x):
            if kind == "all_gather":
                return jax.lax.all_gather(x, axes, tiled=True)
            if kind == "reduce_scatter":
                return jax.lax.psum_scatter(x, axes, tiled=True)
            if kind == "all_reduce":
                return jax.lax.psum(x, axes)
            if kind == "all_to_all":
                return jax.lax.all_to_all(x.reshape(size, -1), axes, 0, 0)
            return jax.lax.ppermute(x, axes, [(i, (i + 1) % size) for i in range(size)])

        return self._seconds(operation, mesh, ((held,),), "float32")

    def _seconds(
        self,
        operation,
        mesh: Mesh,
        shapes,
        dtype: str,
        texts: list[str] | None = None,
        together: str | None = None,
        minimum_seconds: float = MINIMUM_SECONDS,
    ) -> float:
        """Seconds of one `operation`: a loop of many trips less a loop of two, so that what a program costs cancels.

        Where noise is larger than that difference, of more trips. `texts` gets the compiled text of the longest loop.
        `together`: as in `_compiled`.
        ValueError where even MAXIMUM_TRIPS take no longer than two, in ATTEMPTS.
        """
        arguments = [_filled(mesh, shape, dtype) for shape in shapes]
        few = self._compiled(operation, 2, mesh, shapes, dtype, together)
        self._once(few, arguments)  # connects, and touches memory
        seconds = self._once(few, arguments)
        # Starting a program takes part of that, so this many trips may be too few; then they are counted anew.
        trips = min(MAXIMUM_TRIPS, max(1, round(2 * minimum_seconds / seconds)))
        attempts = 0
        while True:
            many = self._compiled(operation, 2 + trips, mesh, shapes, dtype, together)
            if texts is not None:
                texts.append(many.as_text())
            self._once(many, arguments)
            seconds = self._once(many, arguments)
            if seconds < minimum_seconds and trips < MAXIMUM_TRIPS:
                trips = min(MAXIMUM_TRIPS, max(4 * trips, round(1.5 * trips * minimum_seconds / seconds)))
                continue
            samples = SAMPLES if seconds < SLOW_SECONDS else 2
            differences = sorted(self._once(many, arguments) - self._once(few, arguments) for _ in range(samples))
            if differences[int(SURE * samples)] > 0:
                return statistics.median(differences) / trips
            attempts += trips == MAXIMUM_TRIPS
            if attempts == ATTEMPTS:
                raise ValueError(f"calibrate: {trips} trips of {shapes} {dtype} take no longer than 2: {differences} s")
            trips = min(MAXIMUM_TRIPS, 4 * trips)

    def _compiled(self, operation, trips: int, mesh: Mesh, shapes, dtype: str, together: str | None = None):
        """A loop of `trips` operations, each waiting for the one before; the leading dimension counts devices.

        One element of each result goes into the next operand, in place: the operation can neither be hoisted out of the
        loop, nor fused with its neighbours, nor cut down to the elements in use (the whole result is carried along).
        `together`: the mesh axis along which that element is a mean, for which every device waits.
        """
        spec = PartitionSpec(tuple(mesh.axis_names))

        def body(*shares):
            x, *others = (share[0] for share in shares)
            result = jax.eval_shape(operation, x, *others)

            def trip(_, carried):
                x, _ = carried
                result = operation(x, *others)
                last = result[(-1,) * result.ndim]
                return x.at[(0,) * x.ndim].set(jax.lax.pmean(last, together) if together else last), result

            first = jnp.zeros(result.shape, result.dtype)
            return jax.lax.fori_loop(0, trips, trip, (x, first))[1].reshape(-1)[:1][None]

        mapped = jax.shard_map(body, mesh=mesh, in_specs=(spec,) * len(shapes), out_specs=spec, check_vma=False)
        abstract = [
            jax.ShapeDtypeStruct((mesh.size, *shape), dtype, sharding=NamedSharding(mesh, spec)) for shape in shapes
        ]
        return jax.jit(mapped).lower(*abstract).compile()

    def _once(self, program, arguments) -> float:
        begin = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        return self.agree(time.perf_counter() - begin)


def _filled(mesh: Mesh, shape: tuple[int, ...], dtype: str):
    """Small numbers on every device, none of them zero: some chips multiply zeros faster."""
    share = np.linspace(0.5, 1.5, int(np.prod(shape)), dtype=np.float32).reshape((1, *shape))
    sharding = NamedSharding(mesh, PartitionSpec(tuple(mesh.axis_names)))
    return jax.make_array_from_callback((mesh.size, *shape), sharding, lambda index: share.astype(jnp.dtype(dtype)))
