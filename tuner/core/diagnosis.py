"""What a diagnosis returns: claims about batch size and learning rate, each with what was found on the user's model."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from .errors import BstuneError
from .pictures import drawn
from .record import Amount, Record

if TYPE_CHECKING:
    from typing_extensions import Self

Judgement = Literal["holds", "does not hold", "cannot tell", "not applicable"]


@dataclass(frozen=True)
class Finding(Record):
    """One claim, and whether it holds for this model, these data and this device."""

    name: str
    claim: str
    """What people say, in one line."""
    source: str
    """Who says it."""
    verdict: Judgement
    found: str
    """What was found here, in one sentence; where nothing could be told, why not."""
    figure: float | None = None
    """The number that the verdict rests on; None where there is none."""
    unit: str = ""
    interval: tuple[float | None, float | None] | None = None
    """90 %, of the figure; None where the figure is counted and not estimated."""
    advice: str = ""
    """What to do."""
    cost_s: Amount = 0.0
    """Seconds that were spent on it; 0 where it was answered from what is recorded."""
    data: dict[str, Any] = field(default_factory=dict)
    """What it rests on, to plot: lists of numbers by name."""


@dataclass(frozen=True)
class Costs:
    """What a diagnosis is expected to cost."""

    rows: tuple[tuple[str, str, float | None], ...]
    """Each finding's name and claim, and the seconds that it takes by itself; None where that is not known."""
    seconds: float | None = None
    """Of all that the budget allows, where it is known; looks made during one run share its training."""
    reference_runs: float = 0.0
    left_out: tuple[str, ...] = ()
    """Names of findings that the budget leaves out."""


@dataclass(frozen=True)
class Diagnosis(Record):
    """Claims about batch size and learning rate, as far as they were looked at."""

    findings: tuple[Finding, ...]
    study: str | None = None
    """Where trials were read, and where this is kept."""
    device: str = ""
    seconds: Amount = 0.0
    """That were spent; what was recorded before costs nothing."""
    reference_runs: Amount = 0.0
    """Training that was spent, in full runs at the smallest batch of half the top speed."""
    warnings: tuple[str, ...] = ()
    reused: tuple[str, ...] = ()
    """Names of findings whose measurements an earlier call has made."""
    left_out_runs: Amount = 0.0
    """Training that everything which the budget left out would take, in reference runs."""
    left_out: tuple[str, ...] = ()
    """Names of the findings that it left out."""

    def __getitem__(self, name: str) -> Finding:
        """Return the finding of this name.

        Raises:
            KeyError: It was not looked at.
        """
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise KeyError(f"{name!r}: expected one of {', '.join(each.name for each in self.findings)}")

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read back what `to_json` wrote.

        Raises:
            BstuneError: The text is something else.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise BstuneError(f"Not a Diagnosis: expected a JSON document ({error}).") from error
        return cls.from_dict(data)

    def __str__(self) -> str:
        """Return it as text of 80 columns."""
        return str(drawn("diagnosis_text", self))

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        return str(drawn("diagnosis_html", self))
