"""An example in a short form, in this process, which has imported its framework already."""

from __future__ import annotations

import runpy
from collections.abc import Mapping
from pathlib import Path

import pytest


def run_example(path: Path, folder: Path, patch: pytest.MonkeyPatch, changed: Mapping[str, str]) -> None:
    """Run a copy of an example as a script in this folder, with some of its words changed."""
    text = path.read_text()
    for before, after in changed.items():
        assert before in text
        text = text.replace(before, after)
    script = folder / path.name
    script.write_text(text)
    patch.chdir(folder)
    patch.syspath_prepend(str(folder))
    patch.setattr("sys.argv", [str(script)])
    runpy.run_path(str(script), run_name="__main__")
