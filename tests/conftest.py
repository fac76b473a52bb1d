"""Eight simulated CPU devices for every test that runs something, whatever this machine has."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# No test times what this process compiles: LLVM's optimisations cost more here than they save. XLA's own passes, and so
# the programs, are those of a user.
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module")
def little_effort() -> Iterator[None]:
    """The same for processes started by a test that judges no time which they measure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        yield
