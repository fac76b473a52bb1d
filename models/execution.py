"""How a model runs on one mesh: everything its code may ask beyond its own weights and inputs."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from autotune.meshes.layout import Layout
from autotune.meshes.sharding import Sharder, rules_of

KERNELS = ("splash", "cudnn", "xla")


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """`dtype`: of matmuls and activations. `kernel`: which attention kernel, one of KERNELS. `matmul_dtype`: to which
    the operands of the linear layers inside the layers are quantised (`models.quantised`); None: they are not.

    `stage_dtype`: in which weights and activations cross the border of the pipeline's loop, and are reduced there. It
    is `dtype`, but float32 on CPU, whose compiler aborts on a 16-bit sum in code that is manual along some axes only
    (and widens 16-bit collectives to float32 in any case).
    """

    layout: Layout
    sharder: Sharder
    dtype: jnp.dtype
    stage_dtype: jnp.dtype
    kernel: str
    matmul_dtype: str | None = None

    @property
    def on_tpu(self) -> bool:
        """Whether the mesh is of TPUs, where megablox' kernels run."""
        return self.sharder.mesh.devices.flat[0].platform == "tpu"


def execution_of(layout: Layout, mesh: Mesh, dtype: str, matmul_dtype: str | None = None) -> Execution:
    """The execution of a layout, with the attention kernel that users of the mesh's devices would run."""
    return Execution(
        layout=layout,
        sharder=Sharder(mesh=mesh, rules=rules_of(layout)),
        dtype=jnp.dtype(dtype),
        stage_dtype=jnp.dtype("float32" if mesh.devices.flat[0].platform == "cpu" else dtype),
        kernel=attention_kernel(mesh.devices.flat[0], dtype),
        matmul_dtype=matmul_dtype,
    )


def unsplit(x_BLD: jax.Array, run: Execution) -> jax.Array:
    """The output of a norm, whole along `tensor`. Without the first constraint XLA may gather the norm's float32."""
    x = run.sharder.constrain(x_BLD, ("batch", "norm_length", "features"))
    return run.sharder.constrain(x, ("batch", "length", "features"))


def attention_kernel(device, dtype: str) -> str:
    """Splash attention on TPU, cuDNN's flash attention on NVIDIA GPUs of compute capability 8 or more, else plain XLA.

    cuDNN's takes 16-bit types only; V100 (7.0) has no flash attention in cuDNN.
    """
    if device.platform == "tpu":
        return "splash"
    if device.platform in ("gpu", "cuda") and dtype in ("bfloat16", "float16") and "V100" not in device.device_kind:
        return "cudnn"
    return "xla"
