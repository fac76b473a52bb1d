"""Presets have the sizes of the models they are named after, and networks the parameters their shapes say."""

from __future__ import annotations

import math

import jax
import pytest
from published_models import FOLDER

from autotune.meshes.training import Training
from autotune.model_files.read import read_model
from autotune.model_files.shape import shape_of
from autotune.models.presets import PRESETS
from autotune.models.train_step import abstract_network

PUBLISHED = {
    # Llama 3 model cards (huggingface.co/meta-llama), exact: safetensors parameter counts
    "llama3-1b": (1_235_814_400, 0),
    "llama3-8b": (8_030_261_248, 0),
    "llama3-70b": (70_553_706_496, 0),
    # arXiv 2407.21783, table 3: 405B
    "llama3-405b": (405e9, 0.01),
    # huggingface.co/mistralai/Mixtral-8x7B-v0.1, safetensors
    "mixtral-8x7b": (46_702_792_704, 0),
    # arXiv 2401.06066, table 2: 16.4B; its first layer is dense
    "deepseek-moe-16b": (16.4e9, 0.04),
    # Radford et al. 2019; less 1024 learned positions, biases and norm offsets
    "gpt2-124m": (124_439_808 - 1024 * 768 - 12 * (4 * 768 + 5 * 768 + 2 * 768) - 768, 0),
    # arXiv 1810.04805: 340M; without positions, segments, biases, norm offsets and pooler
    "bert-large": (340e6, 0.03),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name):
    published, tolerance = PUBLISHED[name]
    assert PRESETS[name].parameters == pytest.approx(published, rel=tolerance, abs=0)


@pytest.mark.parametrize("name", PRESETS)
def test_the_network_has_exactly_the_parameters_of_its_shape(name):
    _, shapes, axes = abstract_network(PRESETS[name])
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == PRESETS[name].parameters
    ranks = jax.tree.map(lambda leaf, names: len(leaf.shape) == len(names), shapes, axes)
    assert all(jax.tree.leaves(ranks))


COUNTED_ONLY = {"bert-base", "bert-large", "vit-base"}
"""Models with parts outside the layers that the reference model lacks."""


@pytest.mark.parametrize("name", sorted({path.stem for path in FOLDER.glob("*.json")} - COUNTED_ONLY))
def test_the_network_of_a_published_config_has_its_parameters(name):
    shape = shape_of(read_model(str(FOLDER / f"{name}.json")))
    assert shape.priced_only("tpu", Training()) == []
    _, shapes, axes = abstract_network(shape)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == shape.parameters
    assert all(jax.tree.leaves(jax.tree.map(lambda leaf, names: len(leaf.shape) == len(names), shapes, axes)))
