"""Modules of a user's own, written for a test."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest


def known(path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return a module with this text, known to Python as one of the user's."""
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    monkeypatch.setitem(sys.modules, path.stem, module)
    path.write_text(text)
    exec(compile(text, str(path), "exec"), vars(module))
    return module
