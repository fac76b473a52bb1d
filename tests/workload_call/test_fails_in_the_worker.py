"""A step that traces in the user's program and not in the worker says so, and where the change has to be made."""

import os

import jax
import optax
import pytest
import small_steps as small

import autotune
from autotune.workload.same_program import AnotherProgram

FLAGS = {}


def by_replaced_function(batch):
    return optax.old_name(batch)


def by_flag(batch):
    return batch * FLAGS["scale"]


def by_environment(batch):
    return batch * float(os.environ["SCALE_OF_THIS_STEP"])


@pytest.mark.parametrize(
    ("forward", "error"),
    [
        (by_replaced_function, "AttributeError: module 'optax' has no attribute 'old_name'"),
        (by_flag, "KeyError: 'scale'"),
        (by_environment, "KeyError: 'SCALE_OF_THIS_STEP'"),
    ],
)
def test_the_line_names_the_error_and_the_place(forward, error, monkeypatch):
    def step(state, batch):
        return small.Trainer().train_step(forward(batch), state)

    with monkeypatch.context() as program:
        program.setattr(optax, "old_name", lambda batch: batch, raising=False)
        program.setitem(FLAGS, "scale", 1.0)
        program.setenv("SCALE_OF_THIS_STEP", "1")
        workload = autotune.Workload.of_call(step, (small.state(), small.X), batch=1)
        workload.build.check()
    jax.clear_caches()  # another process has none
    with pytest.raises(AnotherProgram) as caught:  # as a worker finds it
        workload.build.check()
    said = f"the step fails in the worker process, and did not where the workload was made: {error}; what your program"
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)
