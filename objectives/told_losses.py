"""The losses that one run of a command tells: in reports of its own, or else in what it prints."""

from __future__ import annotations

import math

from ..tuner.core.errors import ObjectiveError
from .command_run import LOOK_S, CommandRun
from .metric_lines import MetricLines, SaidLoss


class ToldLosses:
    """Reads them as they come. Once there is one report, what is printed does not count."""

    def __init__(self, metric: str | None, *, samples_per_epoch: int, batch_size: int, ranks: int | None) -> None:
        """Read by this pattern, or the ready-made ones, for runs of this many ranks; None: however many there are."""
        self._lines = MetricLines(metric, samples_per_epoch=samples_per_epoch, batch_size=batch_size)
        self._samples_per_epoch = samples_per_epoch
        self._ranks = ranks
        self._n_reports = 0

    @property
    def trains(self) -> bool:
        """Whether something was printed that speaks of training."""
        return self._lines.trains

    @property
    def epochs(self) -> int:
        """Epochs that have ended, by what was printed."""
        return self._lines.epochs

    def wait(self, run: CommandRun, within_s: float = LOOK_S) -> list[SaidLoss]:
        """Wait at most this long for output, and return the losses told since the last call.

        Raises:
            ObjectiveError: More or fewer processes train than is known.
        """
        return self._told(run, run.printed(within_s))

    def rest(self, run: CommandRun) -> list[SaidLoss]:
        """Return what is unread of a run that has ended.

        Raises:
            ObjectiveError: As `wait`.
        """
        told = [each for data in run.rest() for each in self._told(run, data)]
        told += self._told(run, b"")
        return told if self._n_reports else [*told, *self._lines.finish()]

    def _told(self, run: CommandRun, printed: bytes) -> list[SaidLoss]:
        reported = self._reported(run)
        return reported if self._n_reports else list(self._lines.feed(printed))

    def _reported(self, run: CommandRun) -> list[SaidLoss]:
        found = []
        for numbers in run.reported():
            self._n_reports += 1
            ranks = numbers.get("world_size")
            if ranks is not None and self._ranks not in (None, ranks):
                raise ObjectiveError(
                    f"The command trains in {ranks:g} processes where {self._ranks} were expected, so its global batch "
                    f"is not the one that is counted: say --world-size {ranks:g} (Command(world_size={ranks:g}))."
                )
            epochs = numbers.get("epoch", self._n_reports)
            samples = numbers.get("samples", epochs * self._samples_per_epoch)
            if math.isfinite(samples) and samples >= 0:
                found.append(SaidLoss(numbers["val_loss"], round(samples)))
        return found
