"""Plain numbers of a call are static only in the arguments that need it: a count of steps is no other program."""

import jax
import jax.numpy as jnp
import pytest
import small_steps as small
from flax.training.train_state import TrainState

import autotune
from autotune.meshes.layout import parse_layout


def train_state():
    return TrainState.create(apply_fn=None, params=small.weights(), tx=small.ADAM)  # its step is the number 0


def narrow_loss(params, x, columns):
    return ((small.predict(params, x)[:, :columns] - x[:, :columns]) ** 2).mean()


def beside_a_size(state, batch, columns):
    """As Flax's VAE: a `TrainState` and a number that makes a shape."""
    loss, grads = jax.value_and_grad(narrow_loss)(state.params, batch, columns)
    return state.apply_gradients(grads=grads), loss


@jax.jit
def _jitted(state, teacher, batch):
    grads = jax.grad(small.loss)(state.params, batch)
    state = state.apply_gradients(grads=grads)
    return state, teacher.replace(step=teacher.step + 1, params=state.params), small.loss(state.params, batch)


def beside_truths(state, teacher, batch, follow):
    """As jaxrl's SAC: two states that count, and a truth value that chooses a program."""
    new, followed, loss = _jitted(state, teacher, batch)
    return (new, followed if follow else teacher, loss)


def counts_itself(state, batch, step, depth, rate):
    """The loop counts the steps: a number beside another one that is a number of turns."""
    for _ in range(depth):
        batch = jnp.tanh(batch)
    loss, grads = jax.value_and_grad(small.loss)(state["params"], batch)
    scaled = jax.tree.map(lambda g: g * rate / (1.0 + step), grads)
    return small.update(state, scaled), loss


def loop_of_sizes(step):
    state, losses = train_state(), []
    for _ in range(3):
        state, loss = step(state, small.X, 5)
        losses.append(float(loss))
    return losses


def loop_of_truths(step):
    state, teacher, losses = train_state(), train_state(), []
    for _ in range(3):
        state, teacher, loss = step(state, teacher, small.X, True)
        losses.append(float(loss))
    return losses


def loop_of_counts(step):
    state, losses = small.state(), []
    for count in range(3):
        state, loss = step(state, small.X, count, 2, 0.5)
        losses.append(float(loss))
    return losses


@pytest.mark.parametrize(
    ("step", "args", "batch", "static", "loop"),
    [
        (beside_a_size, lambda: (train_state(), small.X, 5), 1, "columns=5", loop_of_sizes),
        (beside_truths, lambda: (train_state(), train_state(), small.X, True), 2, "follow=True", loop_of_truths),
        (counts_itself, lambda: (small.state(), small.X, 0, 2, 0.5), 1, "depth=2", loop_of_counts),
    ],
)
def test_a_count_of_steps_is_traced_beside_a_number_that_cannot_be(step, args, batch, static, loop):
    workload = autotune.Workload.of_call(step, args(), batch=batch)
    said = f"the step takes {static} only as plain numbers: another value is another program"
    assert [guess for guess in workload.guesses if "plain numbers" in guess] == [said]
    layout = parse_layout("fsdp=4,tensor=2")
    plan = autotune.tune(workload, "cpu:8", layouts=(layout,), compile=0, probe=False).plan
    calls = []

    def counted(*arguments):
        calls.append(1)
        return step(*arguments)

    planned = plan.jit(counted)
    expected = loop(step)
    assert loop(planned) == pytest.approx(expected, rel=1e-4)
    traced = len(calls)
    loop(planned)
    assert len(calls) == traced  # no step of a second run is traced anew
