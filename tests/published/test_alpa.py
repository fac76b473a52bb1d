"""Alpa's V100 runs from our saved programs: who runs out of memory, how fast, how large, in which order."""

from __future__ import annotations

import dataclasses
import operator
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import alpa_cases  # noqa: E402


@pytest.fixture(scope="module")
def rows() -> list[alpa_cases.Row]:
    found = alpa_cases.rows_of(alpa_cases.compiled_cases())
    assert None not in found, "a saved program is missing: scripts/alpa_cases.py --recompile"
    return [row for row in found if row is not None]


def test_every_verdict_on_memory_is_right(rows):
    assert len(rows) == 11 and sum(row.published_seconds is None for row in rows) == 2
    assert [row.id for row in rows if not row.verdict_right] == []


def test_step_times(rows):
    errors = [abs(row.time_error) for row in rows if row.time_error is not None]
    assert sum(errors) / len(errors) < 0.05 and max(errors) < 0.10


def test_order_of_the_layouts(rows):
    """All pairs but data=4 against tensor=4, measured 2.9 % apart."""
    assert len(alpa_cases.pairs(rows)) == 14
    assert {frozenset(pair) for pair in alpa_cases.misordered(rows)} <= {
        frozenset({"alpa_osdi22-003", "alpa_osdi22-005"}),
        frozenset({"alpa_osdi22-016", "alpa_osdi22-005"}),
    }


def test_peaks(rows):
    """Within 10 %, but for fsdp=4, 15 % above: gradients lie beside their buffer while they are joined in it.

    Written into it as they come, as Alpa's compiler has it, fsdp=4 is 8 % above and fsdp=2 14 %: now the backward pass
    of a layer is the peak, whose scores we hold in float32 and Alpa (model/bert_model.py) in float16. That is not done.
    """
    known = {row.id: row.memory_error for row in rows if row.memory_error is not None}
    missed = {name for name, error in known.items() if abs(error) > alpa_cases.MEMORY_ERROR}
    assert missed <= {"alpa_osdi22-020"}


@pytest.mark.parametrize("words", ["data=4,zero=2", "fsdp=4", "data=4"])
def test_alpas_step_has_the_plain_gradients(words):
    """Its backward pass is written out and its gradients share a buffer; the numbers are autodiff's."""
    from validation.alpa_step import build_alpa_step, reduced_gradients, unstack

    from autotune.meshes.layout import parse_layout
    from autotune.meshes.target import parse_target
    from autotune.meshes.topology import mesh_of
    from autotune.models.presets import PRESETS
    from autotune.models.train_step import abstract_network, mean_loss

    shape = dataclasses.replace(PRESETS["tiny"], tied_embeddings=True)
    layout = parse_layout(f"{words},remat=full,sequence_parallel=0")
    mesh = mesh_of(layout, parse_target("cpu:4"))
    step = build_alpa_step(shape, 8, 16, "float32", layout, mesh)
    definition, stacked, axes = abstract_network(shape)
    leaves, tree = jax.tree.flatten(stacked)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    drawn = [0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    weights = jax.tree.unflatten(tree, drawn)
    _, names = unstack(stacked, axes, shape.layers)
    layers = [jax.tree.map(operator.itemgetter(index), weights["layers"]) for index in range(shape.layers)]
    run = step.function.keywords["run"]
    tokens = jax.random.randint(jax.random.key(1), (2, 8, 16), 0, shape.vocab)
    batch = {"tokens": tokens[0], "targets": tokens[1]}
    with jax.set_mesh(mesh):
        loss, found = jax.jit(lambda weights, batch: reduced_gradients(weights, batch, definition, names, run))(
            {**weights, "layers": layers}, batch
        )
        plain, wanted = jax.jit(jax.value_and_grad(lambda weights: mean_loss(definition, run, weights, batch)))(weights)
    assert float(loss) == pytest.approx(float(plain), rel=1e-5)
    pieces = jax.tree.map(lambda *parts: np.stack(parts), *found["layers"])
    found = {**found, "layers": pieces}
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(dict(wanted)), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-6)


def test_the_script_prints_its_table(capsys):
    assert alpa_cases.main([]) == 0
    assert "verdicts right: 11 of 11" in capsys.readouterr().out
