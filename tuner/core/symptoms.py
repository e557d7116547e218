"""What a check of the machine finds, and how much it matters."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from .plain_text import one_line

Standing = Literal["ok", "note", "wrong"]


@dataclass(frozen=True)
class Symptom:
    """One thing that was looked at."""

    name: str
    verdict: Standing
    """`wrong` when something will not work; `note` when it will, less well."""
    found: str
    advice: str = ""

    def __post_init__(self) -> None:
        """Make the texts lines that can be shown: they come from drivers, servers and files."""
        for item in ("found", "advice"):
            object.__setattr__(self, item, one_line(getattr(self, item)))


@dataclass(frozen=True)
class Examination:
    """Everything that was looked at."""

    items: tuple[Symptom, ...]

    @property
    def healthy(self) -> bool:
        """Whether everything will work."""
        return all(item.verdict != "wrong" for item in self.items)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {"healthy": self.healthy, "findings": [asdict(item) for item in self.items]}

    def text(self) -> str:
        """Return one line for each finding, and what to do about those that are wrong."""
        width = max(len(item.name) for item in self.items)
        lines = []
        for item in self.items:
            advice = f"  {item.advice}" if item.advice else ""
            lines.append(f"{item.verdict:<6}{item.name:<{width}}  {item.found}{advice}")
        last = (
            "Everything that bstune needs works."
            if self.healthy
            else "Something will not work: see the lines that begin with `wrong`."
        )
        return "\n".join([*lines, last])
