"""What a study is called when the user does not say."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ..core.trials import Facts


def study_name(given: str | None, objective: Any, facts: Facts) -> str:
    """Return the name given, else the objective's own, else that of its file, else that of the running script."""
    return given or facts.name or getattr(objective, "default_study_name", None) or script_name()


def script_name() -> str:
    """Return the stem of the running script, or `notebook` where there is none."""
    path = getattr(sys.modules.get("__main__"), "__file__", None)
    if path is None or "ipykernel" in sys.modules:
        return "notebook"
    stem = Path(path).stem
    return Path(path).parent.name if stem == "__main__" else stem
