"""Arrays without elements (a part of the batch that a setting turns off) do not stop the reading of a step."""

import jax.numpy as jnp
import pytest
import small_steps as small

import autotune


def flattened(batch):
    """The smallest: no columns, in one dimension."""
    return batch[:, :0].reshape(-1)


def rows_last(batch):
    """No columns, taken apart and put behind each other."""
    return batch.reshape(small.ROWS, 4, 8)[:, :, :0].reshape(0, small.ROWS)


def beside_others(batch):
    """As a trainer that adds a share of its batch in other words, here none of it."""
    added = jnp.swapaxes(batch[:0], 0, 1).reshape(0, 8)
    return jnp.concatenate([added, batch.reshape(-1, 8)]).sum(0)


@pytest.mark.parametrize("part", [flattened, rows_last, beside_others])
def test_an_empty_part_of_the_batch(part):
    def step(state, batch):
        new, loss = small.Trainer().train_step(batch, state)
        return new, loss + part(batch).sum()

    workload = autotune.Workload.of_call(step, (small.state(), small.X), batch=1)
    assert workload.sequences == small.ROWS
    assert {path: leaf.names for path, leaf in workload.partition.batch.items()} == {"": ("batch", None)}
    assert workload.partition.state["state/params/up"].names == ("fsdp", "tensor")
