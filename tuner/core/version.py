"""Which version this is, and those of the packages that an answer may depend on."""

from __future__ import annotations

import contextlib
import sys

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """Return the versions that an answer may depend on, without importing anything heavy."""
    from importlib import metadata

    found = {"bstune": __version__, "python": ".".join(map(str, sys.version_info[:3]))}
    for name in ("torch", "optuna", "numpy", "ray"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
