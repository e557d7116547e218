"""What becomes of a study that is taken up again: whether anything more is run, and what has changed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..core.plain_text import one_line
from ..core.specs import Plan
from ..studies.spec_json import decode_plan
from ..studies.study import Study, intact

RANKED_BY = ("goal", "target", "tolerance")
"""What only says which of the settings that were run is best: trials are the same for all of it."""
ENDED = frozenset({"budget", "n_trials", "converged"})
"""By these a search comes to its end; one that was interrupted goes on."""


@dataclass(frozen=True)
class TakenUp:
    """How a search begins that finds a study.

    Attributes:
        ended_by: By what the study has ended, if nothing more is to be run; it is then only ranked.
        said: What has changed, for people; empty where nothing has.
    """

    ended_by: str | None = None
    said: str = ""


def take_up(study: Study, plan: Plan) -> TakenUp:
    """Return what becomes of a study under a plan that its trials belong to; asked before the plan is stored."""
    if "plan" not in study.attributes or not study.finished:
        return TakenUp()
    with intact(study.name):
        before, ended_by = decode_plan(study.attributes["plan"]), study.attributes.get("stopped_by")
        ended = isinstance(ended_by, str) and ended_by in ENDED
    changes = [
        f"{name} was {_said(old)}, is now {_said(new)}"
        for name in RANKED_BY
        if (old := getattr(before, name)) != (new := getattr(plan, name))
    ]
    # How many trials run side by side changes nothing for a search that is over, and `jobs="auto"` is not known yet.
    same = {name: getattr(plan, name) for name in (*RANKED_BY, "jobs")}
    over = ended and dataclasses.replace(before, **same) == plan
    what_for = "ranked anew, nothing is run again" if over else "what was run counts for that too"
    return TakenUp(ended_by if over else None, f"{', '.join(changes)}: {what_for}" if changes else "")


def _said(value: Any) -> str:
    return "not given" if value is None else one_line(str(value))
