"""What travels to and from a process that looks at a model: what to measure, and what was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ExamineSpec:
    """Train a setting and look at the model on the way; nothing of it is kept."""

    measurements: tuple[str, ...]
    global_batch_size: int
    micro_batch_size: int
    accumulation_steps: int
    learning_rate: float
    seed: int
    eval_batch_size: int
    points: tuple[int, ...] = (0,)
    """Training samples at which to look, ascending."""
    full_samples: int = 0
    """Samples of a full run."""
    sizes: tuple[int, ...] = ()
    """Batch sizes that the measurement is about, where it is about several."""
    rates: tuple[float, ...] = ()
    """Learning rates that the measurement is about, where it is about several."""
    params: Mapping[str, Any] = field(default_factory=dict)
    look_batch_size: int = 0
    """Samples that may be looked at at once; 0: as many as in a micro-batch."""

    @property
    def most_at_once(self) -> int:
        """Samples that may be looked at at once."""
        return self.look_batch_size or self.micro_batch_size


@dataclass(frozen=True)
class Look:
    """What one measurement found at one moment of a run."""

    measurement: str
    at_samples: int
    seed: int
    seconds: float
    values: Mapping[str, tuple[float, ...]]
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    failed: str | None = None
    """Why nothing was found; None where something was."""


@dataclass(frozen=True)
class Examined:
    """All that was found in one process."""

    looks: tuple[Look, ...]
    samples: int
    """Training samples that were used, those of the measurements included."""
    seconds: float
