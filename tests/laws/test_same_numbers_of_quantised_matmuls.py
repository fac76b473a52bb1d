"""The law of `test_same_numbers` for matmuls in 8 bits.

The largest magnitude of an array is the same however it is cut, so the scales are. Sums in another order differ by 1e-7
of their size; now and then a number then rounds to the next of the few that 8 bits have. So the loss agrees to 1e-4,
and gradients to 10 % of their norm (the worst of these rows: 6 %, most 1e-6). Another scale moves every number, as
quantisation itself does: by 17 to 33 %. A layout that slices the batch has a scale of each slice, and differs by as
much.
"""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from effort import slow
from jax.sharding import AxisType
from test_same_numbers import PIPELINE, one_step

from autotune.meshes.training import MATMUL_DTYPES, Training

WHOLE = [
    ("tiny", "fsdp=8"),
    ("tiny", "data=2,tensor=2,zero=1"),
    ("tiny", "context=2,fsdp=2,remat=full"),
    ("tiny-moe", "expert=2,tensor=2"),
    ("like-deepseek", "fsdp=2,tensor=2"),
]
SLICED = [("tiny", "fsdp=2,accumulate=2"), ("tiny", f"{PIPELINE}=4"), ("tiny", "data=4,accumulate=2,reduce=step")]


@functools.cache
def single_device(model, kind):
    return one_step(model, "data=1", training=Training(matmul_dtype=kind))


def errors(found, expected):
    """Of each gradient, the norm of the difference over the norm."""
    of_each = jax.tree.map(lambda a, b: np.linalg.norm(a - b) / np.linalg.norm(b), found[1], expected[1])
    return jax.tree.leaves(of_each)


def rows(table):
    return [(*row, kind) for kind in MATMUL_DTYPES for row in table]


@pytest.mark.parametrize(("model", "text", "kind"), [*rows(WHOLE)[:4], *slow(rows(WHOLE)[4:])])
def test_every_layout_gives_the_numbers_of_one_device(model, text, kind):
    found, expected = one_step(model, text, training=Training(matmul_dtype=kind)), single_device(model, kind)
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    assert max(errors(found, expected)) < 0.1


@pytest.mark.parametrize(("model", "text", "kind"), [rows(SLICED)[0], *slow(rows(SLICED)[1:])])
def test_slices_of_the_batch_agree_to_what_quantisation_leaves(model, text, kind):
    found, expected = one_step(model, text, training=Training(matmul_dtype=kind)), single_device(model, kind)
    assert found[0] == pytest.approx(expected[0], rel=0.01)
    assert max(errors(found, expected)) < 0.5


@pytest.mark.parametrize("text", ["fsdp=2,tensor=2", pytest.param("data=2,context=2", marks=pytest.mark.slow)])
def test_meshes_with_explicit_axes_give_them_too(text):
    found = one_step("tiny", text, kind=AxisType.Explicit, training=Training(matmul_dtype="int8"))
    assert max(errors(found, single_device("tiny", "int8"))) < 0.1


@pytest.mark.parametrize("kind", MATMUL_DTYPES)
def test_gradients_are_those_of_wide_matmuls_but_for_rounding(kind):
    exact = one_step("tiny", "data=1")
    found = single_device("tiny", kind)
    assert found[0] == pytest.approx(exact[0], rel=0.01) and found[0] != exact[0]
    assert 0.1 < max(errors(found, exact)) < 0.5
