"""Every style of docs/your_step.md goes from import to plan to three steps with the losses of the loop alone."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "your_step.md").read_text()
BLOCKS = dict(re.findall(r"```python (\w+)\n(.*?)```", PAGE, re.DOTALL))


def run(name: str, source: str) -> dict:
    """The names that a block defines."""
    found: dict = {"__name__": f"docs_{name}"}
    exec(compile(source, f"docs/your_step.md:{name}", "exec"), found)  # noqa: S102
    return found


def alone(step, loop):
    """The losses of a loop without a mesh."""
    try:
        return loop(step)
    except NameError:  # an axis of pmap
        return loop(
            lambda *arguments: jax.tree.map(
                lambda leaf: leaf[0],
                jax.vmap(lambda: step(*arguments), in_axes=(), axis_name="batch", axis_size=1)(),
            )
        )


def test_every_style_has_its_section():
    assert set(BLOCKS) == {"linen", "nnx", "explicit", "pytree", "equinox", "rules", "lora", "pmap", "trainer"}
    assert PAGE.count("\n## ") == len(BLOCKS) + 1


@pytest.mark.parametrize("name", BLOCKS)
def test_three_steps_have_the_losses_of_the_loop_alone(name):
    made = run(name, BLOCKS[name])
    step = made["train_step"]
    if made["workload"].partition.explicit:
        mesh = jax.make_mesh((1, 1), ("x", "y"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
        with jax.set_mesh(mesh):
            expected = alone(step, made["loop"])
    else:
        expected = alone(step, made["loop"])
    assert len(set(expected)) == 3
    np.testing.assert_allclose(made["losses"], expected, rtol=2e-4)
    assert made["plan"].layout.devices == 8


@pytest.mark.parametrize("name", BLOCKS)
def test_at_most_six_lines_are_the_tuners(name):
    lines = re.search(r"# tuner\n(.*)# end\n", BLOCKS[name], re.DOTALL)[1].strip().splitlines()
    assert len(lines) + 1 <= 6  # and the import
