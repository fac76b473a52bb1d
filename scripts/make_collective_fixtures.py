"""Makes the small programs of tests/data/collectives anew: every kind of collective, for every chip family.

    python scripts/make_collective_fixtures.py [NAME...]

The step says its collectives itself (`shard_map`), so what each moves is known by hand: see
`tests/hlo/test_every_collective.py`. Each file is the text of the compiled module, xz-packed. The TPU and GPU compilers
run without a device; each program takes seconds.
"""

from __future__ import annotations

import dataclasses
import lzma
import os
import sys
import time
from pathlib import Path

from autotune.meshes.topology import DEVICELESS_ENVIRONMENT

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests" / "data" / "collectives"

DEVICES, LAYERS, WIDTH, ROWS = 8, 3, 2048, 256
"""Of the step: devices along its one axis, trips of its loop, width of its square weights, rows of x on each device."""

OFFLOAD = "xla_tpu_enable_sparse_core_collective_offload"
SPARSE_CORE = {f"{OFFLOAD}_{kind}": True for kind in ("all_gather", "reduce_scatter", "all_reduce")}
"""Hands collectives to the SparseCores; what published runs on v6e and TPU7x set, most often for all-reduces."""

TENSOR_CORE = {name: False for name in SPARSE_CORE}

FIXTURES = {
    "v5e": ("v5e:2x4", {}),
    "v5p": ("v5p:2x2x2", None),
    "v5p-options": ("v5p:2x2x2", {}),
    "v5p-sparsecore": ("v5p:2x2x2", SPARSE_CORE),
    "v6e": ("v6e:2x4", None),
    "v6e-options": ("v6e:2x4", {}),
    "v6e-sparsecore": ("v6e:2x4", SPARSE_CORE),
    "tpu7x": ("tpu7x:2x2x1", {}),
    "tpu7x-tensorcore": ("tpu7x:2x2x1", TENSOR_CORE),
    "h100": ("h100:1x8", {}),
    "cpu": ("cpu:8", {}),
}
"""Name -> target, and what the compiler is told beside the options of the chip's file; None: not even these."""


def step(weights, x):
    """What one device does: gather and matmul in a loop, gradients scattered; then a sum, an exchange and a shift.

    weights: [LAYERS, WIDTH / DEVICES, WIDTH]; x: [ROWS, WIDTH].
    """
    import jax
    from jax import lax

    def layer(x, weight):
        whole = lax.all_gather(weight, "fsdp", axis=0, tiled=True)
        y = jax.nn.relu(x @ whole)
        return y, lax.psum_scatter(x.T @ y, "fsdp", scatter_dimension=0, tiled=True)

    y, gradients = lax.scan(layer, x, weights)
    summed = lax.psum(y, "fsdp")
    exchanged = lax.all_to_all(y, "fsdp", split_axis=1, concat_axis=0, tiled=True)
    shifted = lax.ppermute(y, "fsdp", [(place, (place + 1) % DEVICES) for place in range(DEVICES)])
    return gradients, summed, exchanged, shifted


def compiled_text(target_name: str, options: dict[str, bool] | None) -> str:
    """The text of the step's module compiled for that target."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from autotune.compile.jit_step import compile_step
    from autotune.meshes.compiler_options import options_to_read
    from autotune.meshes.layout import parse_layout
    from autotune.meshes.target import parse_target
    from autotune.meshes.topology import mesh_of

    target, layout = parse_target(target_name), parse_layout(f"fsdp={DEVICES}")
    mesh = mesh_of(layout, target)
    hardware = target.hardware
    if options is None:
        hardware = dataclasses.replace(hardware, compiler_options={})
    layout = dataclasses.replace(
        layout, compiler_options=tuple((name, str(value).lower()) for name, value in (options or {}).items())
    )

    def array(shape, *spec):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, P(*spec)))

    cut = P(None, "fsdp")
    stepped = jax.shard_map(
        step, mesh=mesh, in_specs=(cut, P("fsdp")), out_specs=(cut, P(), P(None, "fsdp"), P("fsdp")), check_vma=False
    )
    arguments = array((LAYERS, WIDTH, WIDTH), None, "fsdp"), array((DEVICES * ROWS, WIDTH), "fsdp")
    compiled, refused = compile_step(jax.jit(stepped).lower(*arguments), layout, hardware, options_to_read)
    if refused:
        raise ValueError(f"{target_name}: the compiler refuses {', '.join(refused)}")
    text = compiled.as_text()
    assert text is not None
    return text.replace(f"{ROOT}/", "")


def main(names: list[str]) -> None:
    """Compile the named fixtures, or all."""
    os.environ.update({**DEVICELESS_ENVIRONMENT, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(DEVICES)})
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in names or list(FIXTURES):
        begin = time.perf_counter()
        packed = lzma.compress(compiled_text(*FIXTURES[name]).encode(), preset=9)
        (FOLDER / f"{name}.txt.xz").write_bytes(packed)
        print(f"{name}: {time.perf_counter() - begin:.0f} s, {len(packed)} bytes", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
