"""What a decision has to tell: codes and figures, which `report/reasons.py` puts into words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .results import BatchAnswer

ReasonCode = Literal[
    "lowest",
    "soonest",
    "largest",
    "fastest",
    "unconfirmed",
    "only",
]
"""Why a setting is recommended: the first four by all that is known of the settings that were run on fresh seeds."""

CautionCode = Literal[
    "confirmation_off",
    "budget_below_2",
    "no_trial_left",
    "still_to_come",
    "cut_off",
    "no_full_run_left",
    "confirmations_diverged",
    "confirmations_failed",
    "none_went_further",
    "score_like",
    "trials_failed",
    "one_loss",
    "rate_ignored",
    "nothing_learned",
    "target_not_reached",
    "diverged",
    "rate_at_edge",
    "one_batch",
    "one_rate",
    "highest_rate",
    "lowest_rate",
    "largest_by_steps",
    "no_accumulation",
    "starts_long",
    "took_longer",
    "took_less",
]
"""What a user is warned of; the first eight say why the recommendation is not verified."""

TargetSource = Literal["yours", "present", "lowest"]
"""Where a target is from: the user, what the present setting reaches, or the lowest loss expected of any setting."""

NoteCode = Literal["diverged", "selected_by", "not_to_the_end"]
"""Why the loss of a candidate is not one of a confirmed setting."""


@dataclass(frozen=True)
class BatchLimits:
    """What memory, hardware and gradient noise each allow."""

    memory: int
    """The micro-batch that fits."""
    more_memory: bool
    """The probe ended at the data set or at a limit of the user, so that more may fit."""
    hardware: float | None
    """The batch of half the peak speed; None where the hardware never saturates."""
    noise: float
    """The critical batch size."""
    noise_low: float | None
    noise_high: float | None
    """None where the trials showed no growth beyond doubt."""

    @classmethod
    def of(cls, answer: BatchAnswer, memory: int, hardware: float | None, *, more_memory: bool) -> BatchLimits | None:
        """Return the limits by an answer; None where it does not know the critical batch."""
        if answer.b_crit is None:
            return None
        return cls(memory, more_memory, hardware, answer.b_crit, answer.b_crit_low, answer.b_crit_high)


@dataclass(frozen=True)
class Reason:
    """Why a setting is recommended, with the figures that belong to it."""

    code: ReasonCode
    global_batch_size: int
    learning_rate: float
    is_baseline: bool
    """It is what the user trains with today."""
    n_compared: int
    """Settings run on the same fresh seeds."""
    n_tried: int
    """Settings that were run at all."""
    n_seeds: int
    """Fresh seeds that the setting was run on."""
    n_tied: int
    """Others that cannot be told from it; 0 also where ties do not matter."""
    tolerance: float
    target: float | None
    seconds_to_target: float | None
    limits: BatchLimits | None
    past_end: bool = False
    """No run has come so far as these seconds: they are foreseen along its curve."""


@dataclass(frozen=True)
class Caution:
    """One thing that a user is warned of."""

    code: CautionCode
    figures: Mapping[str, float | str] = field(default_factory=dict)
