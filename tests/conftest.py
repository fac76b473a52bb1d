"""Eight simulated CPU devices for every test that runs something, whatever this machine has; which tests are run, and
by which worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# No test times what this process compiles: LLVM's optimisations cost more here than they save. XLA's own passes, and so
# the programs, are those of a user.
jax.config.update("jax_disable_most_optimizations", True)


DEFAULT = "not slow"
"""What `addopts` in pyproject.toml selects."""


def pytest_configure(config: pytest.Config) -> None:
    """A test that is named (FILE::TEST) is run, slow or not. With xdist the workers get what is decided here."""
    named = [argument for argument in config.args if "::" in argument]
    if named and named == config.args and config.option.markexpr == DEFAULT and not hasattr(config, "workerinput"):
        config.option.markexpr = ""


def pytest_report_header(config: pytest.Config) -> str | None:
    return 'slow tests are left out; run them too with -m ""' if config.option.markexpr == DEFAULT else None


@pytest.fixture(scope="module")
def little_effort() -> Iterator[None]:
    """The same for processes started by a test that judges no time which they measure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        yield


LONGEST = (
    "test_accelerators.py",
    "test_readme.py",
    "test_examples.py",
    "test_gpu_check.py",
    "test_same_numbers_of_architectures.py",
    "test_same_numbers.py",
)
"""Files that take minutes begin first, so that no worker is left with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, each in its own order."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(Path(item.path).name, len(LONGEST)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """With `-n` a file's tests stay on one worker: what they share (a search, a store, a program) is made once."""
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)
