"""Ten codebases' structures go from import to plan to three steps with the losses of their own loops."""

import jax
import numpy as np
import pytest
from codebases import CODEBASES

import autotune
from autotune.workload.call import inside_jit


def alone(step, loop, explicit_axes):
    """The losses of a codebase's own loop on one device, without a plan."""
    if explicit_axes:
        kinds = (jax.sharding.AxisType.Explicit,) * len(explicit_axes)
        with jax.set_mesh(jax.make_mesh((1,) * len(explicit_axes), tuple(explicit_axes), axis_types=kinds)):
            return loop(step)
    names = ("dp", "fsdp", "mp")
    mesh = jax.make_mesh((1, 1, 1), names, axis_types=(jax.sharding.AxisType.Auto,) * 3)
    try:
        with jax.set_mesh(mesh):
            return loop(step)
    except NameError:  # an axis of pmap
        bound = jax.vmap(lambda args: step(*args), in_axes=None, axis_name="batch", axis_size=1)
        return loop(lambda *args: jax.tree.map(lambda leaf: leaf[0], bound(args)))


LONG = ("big_vision", "gemma", "imagenet", "lm1b")
"""Ten seconds and more each, by the same paths as the others."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in CODEBASES]
)
def test_import_plan_three_equal_steps(name):
    step, args, kwargs, batch, options, loop = CODEBASES[name]()
    workload = autotune.Workload.of_call(step, args, kwargs, batch=batch, **options)
    axes = ("data", "tensor") if workload.partition.explicit else None
    plan = autotune.tune(workload, "cpu:8", axes=axes, compile=0).plan
    losses = loop(plan.jit(step))
    own = inside_jit(step) if name == "big_vision" else step  # its in_shardings are for eight devices
    expected = alone(own, loop, options.get("mesh_axes") if workload.partition.explicit else None)
    assert plan.layout.devices == 8 and len(set(expected)) == 3
    np.testing.assert_allclose(losses, expected, rtol=5e-4)


EXPECTED = {
    "lm1b": {"parameters", "optimizer"},
    "gemma": {"parameters", "optimizer"},
    "imagenet": {"parameters", "optimizer", "mutable"},
    "nanodo": {"parameters", "optimizer"},
    "big_vision": {"parameters", "optimizer"},
    "easylm": {"parameters", "optimizer"},
    "tunix": {"parameters", "frozen", "optimizer"},
    "jax_llm_examples": {"parameters", "optimizer"},
    "bonsai": {"frozen", "mutable"},
    "levanter": {"parameters", "optimizer"},
}


@pytest.mark.parametrize("name", CODEBASES)
def test_every_array_has_the_role_that_it_plays(name):
    step, args, kwargs, batch, options, _ = CODEBASES[name]()
    workload = autotune.Workload.of_call(step, args, kwargs, batch=batch, **options)
    assert {leaf.role for leaf in workload.partition.state.values()} - {"other"} == EXPECTED[name]
