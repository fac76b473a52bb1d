"""Seconds of each class of CPU work (`autotune.hlo.cpu_work`), from small programs timed on this machine.

Each program is a loop around one operation of a transformer, of a transformer's shapes. What its body asks of the
runtime is read from its compiled text by the reader that reads train steps, so the amounts are of what really runs; one
number of seconds per class is then fitted to all programs by least relative deviations, none below zero.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from autotune.calibrate.fit import least_deviations
from autotune.hlo.cpu_work import CLASSES
from autotune.hlo.read import read_program
from autotune.hlo.text import read_module
from autotune.program import Compute, Instruction, Loop, Memory, Start, walk

DTYPE = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpSample:
    """One timed program: what a trip of its loop asks of the runtime, by class, and the seconds of a trip."""

    name: str
    amounts: Mapping[str, float]
    seconds: float


def _slice(x, y):
    """One layer of a stack, its number known only when the program runs."""
    index = (y.reshape(-1)[0] * 0).astype(jnp.int32) + 1
    return jax.lax.dynamic_index_in_dim(x, index, 0, keepdims=False)


def _store(x, y):
    index = (y.reshape(-1)[0] * 0).astype(jnp.int32) + 1
    return jax.lax.dynamic_update_index_in_dim(x, y, index, 0)


def _adam(p, g, m, v):
    m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
    return p - 1e-3 * (m / 0.9 / (jnp.sqrt(v / 0.95) + 1e-8) + 0.1 * p)


def _chain(x, w):
    """16 matmuls, too small for anything but their launches to count."""
    for _ in range(16):
        x = x @ w
    return x


def _softmax_backward(q, scores, k):
    given = jnp.einsum("hqd,hkd->hqk", q, k)
    return scores * (given - jnp.sum(given * scores, axis=-1, keepdims=True))


def _attention_gradient(q, k, v):
    def attention(q):
        scores = jnp.einsum("bqnh,bknh->bnqk", q, k) * 0.125
        causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        return jnp.einsum("bnqk,bknh->bqnh", jax.nn.softmax(jnp.where(causal, scores, -1e30), axis=-1), v)

    out, back = jax.vjp(attention, q)
    return back(out)[0]


def _one_hot_less(x, targets):
    return jnp.exp(x) - (jax.lax.broadcasted_iota(jnp.float32, x.shape, 1) == targets[:, None])


def _rotate(x, cos, sin):
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _gather(table, rows):
    return table[(jnp.abs(rows) * 100).astype(jnp.int32)]


def _scatter(table, rows, updates):
    return table.at[(jnp.abs(rows) * 100).astype(jnp.int32)].add(updates)


def _dot(form: str) -> Callable[..., jax.Array]:
    return lambda x, w: jnp.einsum(form, x, w)


PROGRAMS: tuple[tuple[str, Callable[..., jax.Array], tuple[tuple[int, ...], ...]], ...] = (
    ("rendezvous", jnp.negative, ((1024,),)),
    ("launches", _chain, ((32, 32), (32, 32))),
    ("add 1 Mi", jnp.add, ((1024, 1024),) * 2),
    ("add 8 Mi", jnp.add, ((8192, 1024),) * 2),
    ("adam 512 Ki", _adam, ((1024, 512),) * 4),
    ("exp 1 Mi", jnp.exp, ((1024, 1024),)),
    ("silu times 1 Mi", lambda x, y: jax.nn.silu(x) * y, ((2048, 512),) * 2),
    ("gelu 1 Mi", jax.nn.gelu, ((2048, 512),)),
    ("rotate", _rotate, ((16, 256, 4, 64), (256, 1, 32), (256, 1, 32))),
    ("rms norm 4096x256", lambda x: x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6), ((4096, 256),)),
    ("softmax 8192x128", lambda x: jax.nn.softmax(x, axis=-1), ((8192, 128),)),
    ("sum of rows", lambda x: jnp.sum(x * x, axis=-1), ((4096, 512),)),
    ("sum of products", lambda x, y, z: jnp.sum(x * z * y, axis=-1), ((64, 128, 128),) * 2 + ((64, 128, 1),)),
    ("sum of columns", lambda x: jnp.sum(x, axis=0), ((4096, 512),)),
    ("one hot", _one_hot_less, ((1024, 512), (1024,))),
    ("one hot transposed", lambda x, y: _one_hot_less(x, y).T, ((1024, 512), (1024,))),
    ("transpose 1024x256", jnp.transpose, ((1024, 256),)),
    ("transpose 1024x1024", jnp.transpose, ((1024, 1024),)),
    ("silu times transposed", lambda x, y: (jax.nn.silu(x) * y).T, ((1024, 512),) * 2),
    ("heads", lambda x: x.transpose(0, 2, 1, 3) * 2.0, ((16, 128, 8, 64),)),
    ("heads transposed", lambda x: x.transpose(0, 2, 3, 1) * 2.0, ((16, 128, 8, 64),)),
    ("scores transposed", lambda x, y: (x * y).transpose(0, 2, 1), ((32, 128, 128),) * 2),
    ("slice of a stack", lambda x, y: _slice(x, y) * y, ((3, 8, 256, 512), (8, 256, 512))),
    ("stored in a stack", _store, ((3, 8, 256, 512), (8, 256, 512))),
    *(
        (f"slice transposed {width}", lambda x, y: (_slice(x, y) * y).transpose(2, 0, 1).reshape(y.shape[2], -1),
         ((3, 8, 128, width), (8, 128, width)))
        for width in (256, 512)
    ),
    ("slice transposed short", lambda x, y: (_slice(x, y) * y).transpose(2, 0, 1).reshape(y.shape[2], -1),
     ((3, 4, 64, 1024), (4, 64, 1024))),
    ("weight transposed", lambda x, y: _slice(x, y).transpose(1, 2, 0).reshape(-1, x.shape[1]) * 2.0,
     ((4, 256, 4, 64), (8,))),
    ("weight's slice transposed", lambda x, y: _slice(x, y).T * 2.0, ((4, 256, 1024), (8,))),
    ("slice transposed silu", lambda x, y: (jax.nn.silu(_slice(x, y)) * y).transpose(2, 0, 1).reshape(y.shape[2], -1),
     ((3, 8, 128, 256), (8, 128, 256))),
    *(
        (f"matmul {m}x{n}x{k}", _dot("mk,kn->mn"), ((m, k), (k, n)))
        for m, n, k in ((1024, 512, 256), (1024, 256, 512), (256, 256, 1024), (512, 128, 128), (2048, 384, 128),
                        (128, 1024, 256), (512, 512, 512))
    ),
    *(
        (f"matmul {b}x{m}x{n}x{k}", _dot("bmk,bkn->bmn"), ((b, m, k), (b, k, n)))
        for b, m, n, k in ((32, 128, 128, 64), (32, 64, 128, 128), (64, 64, 64, 64), (16, 256, 256, 64))
    ),
    *(
        (f"matmul both transposed {m}x{n}x{k}", _dot("km,nk->mn"), ((k, m), (n, k)))
        for m, n, k in ((256, 512, 1024), (128, 512, 2048), (512, 128, 512), (256, 1024, 256), (1024, 256, 256),
                        (128, 384, 1024))
    ),
    ("matmul with softmax's backward", _softmax_backward, ((32, 128, 64), (32, 128, 128), (32, 128, 64))),
    ("attention and its gradient", _attention_gradient, ((8, 128, 4, 64),) * 3),
    ("gather rows", _gather, ((512, 256), (1024,))),
    ("scatter rows", _scatter, ((512, 256), (1024,), (1024, 256))),
)  # fmt: skip
"""(name, operation, shapes of its operands per device): what a transformer's step is made of."""


Timing = tuple[str, str, float]
"""Name, compiled text, seconds of a trip of its loop."""


def time_ops(bench, on_progress: Callable[[str], None] = lambda line: None) -> list[Timing]:
    """Time PROGRAMS on every device of `bench` at once."""
    timings = []
    for name, operation, shapes in PROGRAMS:
        seconds, text = bench.program_seconds(operation, shapes, DTYPE)
        timings.append((name, text, seconds))
        on_progress(f"calibrate: {name}: {seconds:.3g} s")
    return timings


def read_timings(timings: Sequence[Timing]) -> list[OpSample]:
    """What each timed program asked of the runtime, read from its text."""
    return [OpSample(name=name, amounts=body_amounts(text), seconds=seconds) for name, text, seconds in timings]


def body_amounts(text: str) -> dict[str, float]:
    """Amounts by class of one trip of the loop that a timed program consists of."""
    memory = Memory(
        peak_bytes=0, argument_bytes=0, output_bytes=0, temporary_bytes=0, alias_bytes=0, host_bytes=0,
        by_category={}, largest=(),
    )  # fmt: skip
    devices = read_module(text).partitions
    program = read_program(
        text, platform="cpu", mesh_shape={"device": devices}, devices_per_group=devices, memory=memory
    )
    loop = max(_loops(program.instructions), key=lambda one: one.trips)
    amounts: Counter[str] = Counter()
    for instruction, trips in walk(loop.body):
        if isinstance(instruction, Compute):
            for name, amount in instruction.cpu_work:
                amounts[name] += trips * amount
        elif isinstance(instruction, Start):
            amounts["rendezvous"] += trips
    return dict(amounts)


def fit_ops(samples: Sequence[OpSample]) -> dict[str, float]:
    """Seconds of one unit of each class that some sample has."""
    classes = [name for name in CLASSES if any(sample.amounts.get(name) for sample in samples)]
    rows = np.array([[sample.amounts.get(name, 0.0) / sample.seconds for name in classes] for sample in samples])
    return {name: float(seconds) for name, seconds in zip(classes, least_deviations(rows), strict=True)}


def op_residual(rates: Mapping[str, float], sample: OpSample) -> float:
    """Modelled seconds over measured seconds, less one."""
    return sum(amount * rates.get(name, 0.0) for name, amount in sample.amounts.items()) / sample.seconds - 1


def op_sources(rates: Mapping[str, float], samples: Sequence[OpSample], when: str) -> dict[str, str]:
    """For each class: the programs in which it takes most of the time, with what the fit leaves unexplained."""
    errors = [abs(op_residual(rates, sample)) for sample in samples]
    whole = (
        f"{when}: fitted to {len(samples)} programs, "
        f"median error {statistics.median(errors):.0%}, worst {max(errors):.0%}"
    )
    led: dict[str, list[str]] = {}
    for sample in samples:
        seconds = {name: amount * rates.get(name, 0.0) for name, amount in sample.amounts.items()}
        most = max(seconds, key=lambda name, of=seconds: of[name])  # type: ignore[misc]
        led.setdefault(most, []).append(f"{sample.name} {op_residual(rates, sample):+.0%}")
    return {f"op_seconds.{name}": "; ".join([whole, ", ".join(led.get(name, ()))]).rstrip("; ") for name in rates}


def _loops(instructions: Sequence[Instruction]) -> list[Loop]:
    return [one for one in instructions if isinstance(one, Loop)]
