"""Versions of installed packages."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from functools import cache


@cache
def installed_version(package: str) -> str | None:
    """The version of an installed package; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Package -> installed version, without the packages that are not installed."""
    found = {package: installed_version(package) for package in packages}
    return {package: version for package, version in found.items() if version is not None}
