"""Names of number types: what JAX calls them, and the other names that people write. JAX-free."""

from __future__ import annotations

from collections.abc import Collection

from autotune.meshes.fields import did_you_mean, one_line

ALIASES: dict[str, tuple[str, ...]] = {
    "float64": ("f64", "fp64", "double"),
    "float32": ("f32", "fp32", "float", "single"),
    "bfloat16": ("bf16",),
    "float16": ("f16", "fp16", "half"),
    "float8": ("f8", "fp8"),
    "int8": ("s8", "i8"),
}
"""JAX's name of each dtype that hardware files give a peak of -> other names of it."""

COMPUTE_DTYPES = ("bfloat16", "float16", "float32")
"""What a train step of the reference models can compute in."""


def dtype_of(text: str, known: Collection[str] = COMPUTE_DTYPES) -> str:
    """JAX's name of the dtype that a text names, in any case and by any of its names; ValueError lists those known.

    >>> dtype_of("BF16"), dtype_of("fp32"), dtype_of("float16")
    ('bfloat16', 'float32', 'float16')
    """
    word = text.strip().lower().removeprefix("jnp.").removeprefix("jax.numpy.")
    found = next((name for name, others in ALIASES.items() if word == name or word in others), None)
    if found is not None and found in known:
        return found
    listed = ", ".join(" or ".join((name, *ALIASES[name])) for name in known)
    close = did_you_mean(word, [*known, *(other for name in known for other in ALIASES[name])])
    raise ValueError(f"dtype: {one_line(text)!r} must be one of {listed}{close}")
