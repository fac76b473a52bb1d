"""Which versions of the compiler's packages are installed, and which of them do not work together. JAX-free."""

from __future__ import annotations

from collections.abc import Mapping

from packaging.requirements import Requirement

from autotune.system.versions import installed_version

COMPILER = {"tpu": ("libtpu", "tpu"), "cuda": ("jax-cuda12-plugin", "gpu")}
"""Platform -> (the package that holds its compiler, the extra of this tool that installs it)."""

CHECKED_PAIRS = (("0.10.2", "0.0.42.1"), ("0.11.2", "0.0.48.1"))
"""(jax, libtpu) whose TPU programs were compiled, read and compared: the same collectives, times within 0.001 %."""

BROKEN_PAIRS = (
    ("jaxlib>=0.11", "libtpu<0.0.48", "every Pallas kernel ends in 'Failed to parse the Mosaic module'"),
    ("jaxlib<0.11", "libtpu>=0.0.51", "a compiled program cannot be printed"),
)
"""Two requirements that are not to be met together, and what happens then."""

DEVICELESS_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
}
"""What a process that only compiles needs in its environment before libtpu loads: no metadata server, no lock file.

A second process that loads libtpu aborts without ALLOW_MULTIPLE_LIBTPU_LOAD. On a TPU host that variable would let two
processes fight over the chips, so only processes that open no chip have it. On a machine with accelerators such a
process also needs JAX_PLATFORMS=cpu before jax is imported, or jax takes the accelerators.
"""


def meets(requirement: str, versions: Mapping[str, str | None] | None = None) -> bool | None:
    """Whether an installed package meets a requirement such as "libtpu<0.0.48"; None where it is not installed.

    >>> meets("libtpu<0.0.48", {"libtpu": "0.0.42.1"}), meets("libtpu<0.0.48", {})
    (True, None)
    """
    wanted = Requirement(requirement)
    version = installed_version(wanted.name) if versions is None else versions.get(wanted.name)
    return None if version is None else wanted.specifier.contains(version, prereleases=True)


def broken_pair(versions: Mapping[str, str | None] | None = None) -> str | None:
    """Why the installed jaxlib and libtpu do not work together, with the fix, in one line; None where nothing is known.

    >>> print(broken_pair({"jaxlib": "0.11.2", "libtpu": "0.0.42.1"}))
    jaxlib 0.11.2 with libtpu 0.0.42.1: every Pallas kernel ends in 'Failed to parse the Mosaic module'; install the \
libtpu that this jax asks for: pip install -U "jax[tpu]==0.11.2"
    >>> broken_pair({"jaxlib": "0.11.2", "libtpu": "0.0.48.1"})
    """
    for one, other, happens in BROKEN_PAIRS:
        if meets(one, versions) and meets(other, versions):
            found = {name: versions.get(name) if versions is not None else installed_version(name)
                     for name in ("jaxlib", "libtpu")}  # fmt: skip
            return (
                f"jaxlib {found['jaxlib']} with libtpu {found['libtpu']}: {happens}; install the libtpu that this jax "
                f'asks for: pip install -U "jax[tpu]=={found["jaxlib"]}"'
            )
    return None


def why_no_compiler(platform: str, target: str) -> str | None:
    """Why nothing can be compiled here for a target that is not attached, in one line with the fix; None: it can."""
    if platform not in COMPILER:
        return None
    package, extra = COMPILER[platform]
    if installed_version(package) is None:
        return (
            f"--target {target}: its compiler, {package}, is not installed "
            f"(in the clone: pip install -e '.[{extra}]', Linux only); --compile 0 only prices, "
            "and --target cpu:8 compiles and measures on a simulated mesh"
        )
    pair = broken_pair() if platform == "tpu" else None
    return f"--target {target}: {pair}" if pair else None
