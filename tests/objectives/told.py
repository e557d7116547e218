"""What an objective says while it is measured, written down."""

from __future__ import annotations

from bstune.objectives.base import Meter


class Phases(Meter):
    """Writes down what it is told."""

    def __init__(self) -> None:
        """Nothing was said so far."""
        self.said: list[str] = []

    def phase(self, name: str) -> None:
        """Keep the name."""
        self.said.append(name)

    def step_done(self) -> None:
        """Keep that there was one."""
        self.said.append("step")

    def holds(self, *, parameters_bytes: int, gradients_bytes: int, optimizer_state_bytes: int) -> None:
        """Keep whether there are parameters and gradients."""
        self.said.append("holds" if parameters_bytes and gradients_bytes else "nothing held")
