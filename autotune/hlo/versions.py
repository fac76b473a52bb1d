"""Which compilers the reader has been checked with: HLO text is no stable format."""

from __future__ import annotations

from collections.abc import Mapping

CHECKED_VERSIONS: Mapping[str, tuple[str, ...]] = {
    "jax": ("0.10.2", "0.11.2"),
    "jaxlib": ("0.10.2", "0.11.2"),
    "libtpu": ("0.0.42.1", "0.0.48.1"),
    "jax-cuda12-plugin": ("0.10.2", "0.11.2"),
    "jax-cuda12-pjrt": ("0.10.2", "0.11.2"),
}
"""Package -> versions whose compiled programs are test data of the reader, with their numbers counted by hand."""


def unchecked(versions: Mapping[str, str]) -> tuple[str, ...]:
    """One line for each installed package whose programs were never checked; packages not named are no concern.

    >>> unchecked({"jaxlib": "0.10.2", "libtpu": "0.0.51"})
    ('libtpu 0.0.51: programs of it were never checked; of 0.0.42.1, 0.0.48.1 they were',)
    """
    return tuple(
        f"{package} {versions[package]}: programs of it were never checked; of {', '.join(checked)} they were"
        for package, checked in CHECKED_VERSIONS.items()
        if package in versions and versions[package] not in checked
    )
