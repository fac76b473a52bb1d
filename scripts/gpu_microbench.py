"""Seconds of matmuls, fused attention and memory passes on one GPU, each run long enough to reach its sustained clock.

    python scripts/gpu_microbench.py --out folder [--seconds 0.4]

Every operation runs in a chain of `repeats` inside one program, whose operands are random. Each row of rows.json has
the shape, the median seconds of one operation, and the clock and power that `nvidia-smi` reported meanwhile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MATMULS = [
    *((n, n, n) for n in (512, 1024, 2048, 3072, 4096, 6144, 8192, 12288, 16384)),
    *((16384, 8192, 2048), (16384, 2048, 8192), (2048, 8192, 16384), (8192, 4096, 11008), (8192, 11008, 4096)),
    *((16384, 28672, 8192), (16384, 8192, 28672), (8192, 28672, 16384), (8192, 8192, 1024), (16384, 8192, 1024)),
    *((32768, 768, 3072), (32768, 3072, 768), (32768, 768, 768), (4096, 14336, 4096), (4096, 4096, 14336)),
    *((2048, 4096, 1792), (4096, 1792, 4096), (16384, 128256, 2048), (16384, 2048, 128256), (1024, 8192, 8192)),
]
"""(m, n, k) of one bfloat16 matmul: squares, and shards of the layers of published models."""

ATTENTION = [
    *((16384 // length, length, 16, 128) for length in (512, 1024, 2048, 4096, 8192, 16384)),
    *((16384 // length, length, 32, 64) for length in (512, 1024, 2048, 4096, 8192, 16384)),
    *((1, 32768, 8, 128), (1, 32768, 4, 128), (2, 4096, 64, 128), (2, 8192, 8, 128), (4, 4096, 8, 64)),
]
"""(sequences, length, heads, head_dim), causal, bfloat16."""

MIXED = [(8192, 1 << 24), (8192, 1 << 26), (8192, 1 << 28), (8192, 3 << 28), (4096, 1 << 24), (4096, 1 << 26)]
"""(n, elements): an n x n x n matmul and then a pass over memory, in turns: what the clock does in between."""

PASSES = [1 << 20, 1 << 22, 1 << 24, 1 << 26, 1 << 28]
"""Elements of arrays that a fused element-wise pass reads and writes."""


class Clock:
    """Samples the SM clock (MHz) and the power (W) of GPU 0 while it is open."""

    def __enter__(self) -> Clock:
        self.samples: list[tuple[float, float]] = []
        query = ["nvidia-smi", "--query-gpu=clocks.sm,power.draw", "--format=csv,noheader,nounits", "-lms", "50"]
        self.process = subprocess.Popen(query, stdout=subprocess.PIPE, text=True)
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()
        return self

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            clock, power = (float(value) for value in line.split(","))
            self.samples.append((clock, power))

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def since(self, count: int) -> tuple[float, float] | tuple[None, None]:
        """Median clock and power of the later half of the samples after the first `count`."""
        some = self.samples[count:]
        some = some[len(some) // 2 :]
        if not some:
            return None, None
        return statistics.median(one[0] for one in some), statistics.median(one[1] for one in some)


def sustained(run: Callable[[], Any], repeats: int, seconds: float, clock: Clock) -> dict[str, Any]:
    """Run for `seconds`; median seconds of one of `repeats` operations over the later half."""
    import jax

    jax.block_until_ready(run())
    times, begin, before = [], time.perf_counter(), len(clock.samples)
    while time.perf_counter() - begin < seconds or len(times) < 4:
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append((time.perf_counter() - start) / repeats)
    mhz, watts = clock.since(before)
    late = times[len(times) // 2 :]
    return {"seconds": statistics.median(late), "first": times[0], "runs": len(times), "mhz": mhz, "watts": watts}


def operations() -> list[tuple[str, Sequence[int], int, Callable[[], Callable[[], Any]]]]:
    """(kind, shape, repeats, make the program)."""
    import jax
    import jax.numpy as jnp

    def random(shape: Sequence[int], seed: int) -> Any:
        return jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)

    def chain(step: Callable[..., Any], repeats: int, *arrays: Any) -> Callable[[], Any]:
        def program(first: Any, *others: Any) -> Any:
            for _ in range(repeats):
                first = jax.lax.optimization_barrier(step(first, *others))
            return first

        compiled = jax.jit(program).lower(*arrays).compile()
        return lambda: compiled(*arrays)

    def matmul(m: int, n: int, k: int, repeats: int) -> Callable[[], Any]:
        def step(pair: Any, w: Any) -> Any:
            x, before = pair
            # One element of each product goes into the next operand, in place: without it the compiler would make one
            # matmul of all.
            x = x.at[0, 0].set(before[0, 0])
            return x, x @ w

        return chain(step, repeats, (random((m, k), 0), random((m, n), 1)), random((k, n), 2))

    def attention(batch: int, length: int, heads: int, width: int, repeats: int, backward: bool) -> Callable[[], Any]:
        q, k, v, g = (random((batch, length, heads, width), seed) for seed in range(4))

        def forward(q: Any, k: Any, v: Any) -> Any:
            return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")

        def step(q: Any, k: Any, v: Any, g: Any) -> Any:
            if not backward:
                return forward(q, k, v)
            out, back = jax.vjp(forward, q, k, v)
            return sum(back(g)) + out * 0

        return chain(step, repeats, q, k, v, g)

    def fused(elements: int, repeats: int) -> Callable[[], Any]:
        shape = (elements // 4096, 4096)
        return chain(lambda x, y: jax.nn.silu(x) * y, repeats, random(shape, 0), random(shape, 1))

    def mixed(n: int, elements: int, repeats: int) -> Callable[[], Any]:
        def step(triple: Any, w: Any, y: Any) -> Any:
            x, before, z = triple
            x = x.at[0, 0].set(before[0, 0])
            z = jax.nn.silu(z) * y
            return x, x @ w, z

        passed = (elements // 4096, 4096)
        first = (random((n, n), 0), random((n, n), 1), random(passed, 2))
        return chain(step, repeats, first, random((n, n), 3), random(passed, 4))

    found: list[tuple[str, Sequence[int], int, Callable[[], Callable[[], Any]]]] = []
    for m, n, k in MATMULS:
        repeats = max(2, min(64, int(3e13 / (2.0 * m * n * k))))
        found.append(("matmul", (m, n, k), repeats, lambda m=m, n=n, k=k, r=repeats: matmul(m, n, k, r)))
    for size, elements in MIXED:
        repeats = max(4, int(2e13 / (2.0 * size**3)))
        found.append(("mixed", (size, elements), repeats, lambda n=size, e=elements, r=repeats: mixed(n, e, repeats=r)))
    for shape in ATTENTION:
        for backward in (False, True):
            kind = "attention_with_gradient" if backward else "attention"
            found.append((kind, shape, 8, lambda s=shape, b=backward: attention(*s, repeats=8, backward=b)))
    for elements in PASSES:
        repeats = 64 if elements < 1 << 26 else 8
        found.append(("silu_times", (elements,), repeats, lambda e=elements, r=repeats: fused(e, r)))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for rows.json")
    parser.add_argument("--seconds", type=float, default=0.4, help="of one operation")
    parser.add_argument("--only", default="", help="a kind of operation: matmul, attention, mixed, silu_times")
    parser.add_argument("--limit", type=float, default=400.0, help="begin no operation after so many seconds")
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    begin = time.perf_counter()
    with Clock() as clock:
        for kind, shape, repeats, make in operations():
            if not kind.startswith(options.only):
                continue
            if time.perf_counter() - begin > options.limit:
                break
            try:
                row = sustained(make(), repeats, options.seconds, clock)
            except Exception as error:  # a shape that the library refuses is a row, not the end of a lease
                row = {"failure": f"{type(error).__name__}: {error}"[:200]}
            rows.append({"kind": kind, "shape": list(shape), **row})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
            (options.out / "rows.json").write_text(json.dumps(rows, indent=0))
    return 0


if __name__ == "__main__":
    sys.exit(main())
