"""Which way the embedding's gradient goes, as programs compiled for a100-80, h100 and h200 send it (jax 0.10.2)."""

from __future__ import annotations

import numpy as np
import pytest

from autotune.meshes.layout import AXES
from autotune.price.transformer.embedding_gradient import ways_of

MB = 1e6


@pytest.mark.parametrize(
    ("sizes", "zero", "local", "table", "way"),
    [
        # llama3-1b-like, 525 MB of table
        ({"fsdp": 16}, 0, 67 * MB, 525 * MB, "moved"),
        ({"data": 8, "fsdp": 2}, 2, 67 * MB, 525 * MB, "moved"),
        ({"data": 16}, 1, 67 * MB, 525 * MB, "summed"),
        ({"data": 4, "fsdp": 4}, 1, 67 * MB, 525 * MB, "scattered"),
        ({"fsdp": 4, "stage": 4}, 0, 67 * MB, 525 * MB, "gathered"),
        ({"stage": 16}, 0, 67 * MB, 525 * MB, "summed"),
        # gelu-1536, 155 MB: with tensor=8 the stream's gradient is more than the table's part
        ({"fsdp": 16}, 0, 25 * MB, 155 * MB, "moved"),
        ({"fsdp": 2, "tensor": 8}, 0, 201 * MB, 19 * MB, "scattered"),
        ({"data": 2, "fsdp": 2, "tensor": 4}, 0, 101 * MB, 39 * MB, "summed"),
        # mixtral-2048, 134 MB: gathered once accumulation has made the stream small
        ({"fsdp": 2, "expert": 8}, 0, 2.0**25, 2.0**27, "summed"),
        ({"fsdp": 2, "expert": 8}, 0, 2.0**23, 2.0**27, "gathered"),
        # 1049 MB, little of the stream on each of sixteen devices
        ({"data": 2, "fsdp": 2, "stage": 2, "context": 2}, 1, 17 * MB, 1049 * MB, "gathered"),
        ({"stage": 2, "context": 8}, 0, 17 * MB, 1049 * MB, "summed"),
    ],
)
def test_the_embeddings_gradient_goes_the_way_that_was_compiled(sizes, zero, local, table, way):
    size = {name: np.array([float(sizes.get(name, 1))]) for name in AXES}
    ways = ways_of(size, np.array([zero == 2]), np.array([local]), np.array([table]))
    found = [name for name in ("moved", "gathered", "scattered", "summed") if getattr(ways, name)[0]]
    assert found == [way]
