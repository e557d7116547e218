"""An unmodified training script as an objective: a command line with places for what a trial sets."""

from __future__ import annotations

import copy
import math
import os
import signal
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from ..tuner.core.command_words import epochs_of, filled, words_without
from ..tuner.core.errors import ArgumentError, ObjectiveError
from ..tuner.core.trials import Facts, MeasureNotes, MeasureSpec, TrialSpec
from ..tuner.device.memory import cpu_memory
from ..tuner.device.tree_memory import TreeMeter
from .base import Meter, Trial, epochs_problems, name_problems
from .command_end import exit_code, failed, no_metric
from .command_line import check_program, default_name, flags_of, places_in, script_of, words_of
from .command_probe import measure
from .command_run import CommandRun, Log
from .fingerprint import code_of, file_parts, optimizer_family, source_hash
from .loop import ENDED_EARLY
from .metric_lines import SaidLoss, compiled
from .ranks import ranks_in
from .schedule import SCHEDULES
from .script_flags import defaults_in, optimizer_in
from .told_losses import ToldLosses

LAST_WORDS_S = 30.0
"""A script that was told where to end has so long, after its last loss, to end by itself: it may save its model."""
NEAR_FULL = 0.1
"""A script that is killed was killed for memory if less than this share of the machine's was free before."""


class Command:
    """A training script that runs unchanged; its losses are read from what it prints."""

    kind = "command"

    def __init__(
        self,
        command: str | Sequence[str],
        *,
        samples_per_epoch: int,
        metric: str | None = None,
        epochs: float = 10,
        schedule: str = "unknown",
        optimizer: str | None = None,
        world_size: int | None = None,
        name: str | None = None,
    ) -> None:
        r"""Describe how the script is called, and how its losses are read.

        Args:
            command: The command line, or its words. In braces stand `micro_batch_size`, `learning_rate`,
                `global_batch_size`, `accumulation_steps`, `seed`, `max_samples`, `max_epochs`, `device`, `trial`
                and the names of other dimensions of the space, as far as the script takes them. No shell sees it.
            samples_per_epoch: Samples in the training data set.
            metric: How a loss is printed: a regular expression with the value in parentheses, such as
                `"val_loss=([\d.eE+-]+)"`, or the name of a ready-made one; default: the first of these that matches.
            epochs: Epochs in one full run.
            schedule: `constant`, `linear`, `cosine` or `wsd`: how the script changes the learning rate over the
                `{max_epochs}` or `{max_samples}` that it is given; `unknown` is taken for constant.
            optimizer: Class of the optimizer, such as `SGD`; default: the one that the script names, if it names one.
            world_size: Processes that it starts and that train one batch together, each on micro-batches of its own;
                default: what torchrun, accelerate, deepspeed or mpirun in the command are told, else 1.
            name: Name of the study; default: the stem of the script.

        Raises:
            ArgumentError: The command, a name in braces, the metric or a number is wrong on its face.
        """
        self.words = words_of(command)
        self.places = places_in(self.words)
        wrong = []
        if not (isinstance(samples_per_epoch, int) and samples_per_epoch >= 1):
            wrong.append(f"samples_per_epoch={samples_per_epoch!r}: expected the number of training samples, 1 or more")
        wrong += epochs_problems(epochs)
        if not (world_size is None or (isinstance(world_size, int) and world_size >= 1)):
            wrong.append(f"world_size={world_size!r}: expected the number of processes that train together, 1 or more")
        if schedule not in (*SCHEDULES, "unknown"):
            wrong.append(
                f"schedule={schedule!r}: expected {', '.join(SCHEDULES)}, or unknown where it is none of these"
            )
        if not {"micro_batch_size", "global_batch_size"} & self.places:
            wrong.append(
                "the command has no place for the batch size: expected {micro_batch_size} where the script takes it, "
                "such as --batch-size {micro_batch_size}"
            )
        wrong += name_problems(name)
        if wrong:
            raise ArgumentError("; ".join(wrong) + ".")
        compiled(metric)
        self.metric = metric
        self.samples_per_epoch = samples_per_epoch
        self.epochs = epochs
        self.schedule = schedule
        self.world_size = ranks_in(self.words) if world_size is None else world_size
        self.name = name
        self._optimizer = optimizer
        self._dimensions: frozenset[str] = frozenset()
        """Names of the other dimensions of the space, once it is known."""
        self.default_study_name = default_name(self.words)
        script = script_of(self.words)
        self.place = None if script is None else f"{os.path.abspath(script)}:command"

    @property
    def accumulates(self) -> bool:
        """Whether the script can be told to make a step of several micro-batches."""
        return "accumulation_steps" in self.places or {"micro_batch_size", "global_batch_size"} <= self.places

    @property
    def told_the_end(self) -> bool:
        """Whether the script is told where to end."""
        return bool({"max_samples", "max_epochs"} & self.places)

    def for_space(self, names: Collection[str], *, rate_is_fixed: bool = False) -> Command:
        """Return the command as one that has a place for all that a search sets.

        Raises:
            ArgumentError: It has none for a dimension, or a name in braces is nearly one of them.
        """
        extra = set(names) - {"batch_size", "learning_rate"}
        places = places_in(self.words, extra)
        missing = sorted(extra - places)
        if "learning_rate" not in places and not rate_is_fixed:
            raise ArgumentError(
                "The command has no {learning_rate}: expected it where the script takes the learning rate, such as "
                "--lr {learning_rate}. To search the batch size alone, say which rate the script uses: "
                "--space learning_rate=0.1"
            )
        if missing:
            raise ArgumentError(
                f"The command has no place for {', '.join(missing)}, which the space names: expected "
                f"{', '.join(f'{{{name}}}' for name in missing)} where the script takes it."
            )
        made = copy.copy(self)
        made._dimensions = frozenset(extra)
        return made

    def prepare(self) -> None:
        """See that there is a program to run.

        Raises:
            ObjectiveError: There is none.
        """
        check_program(self.words[0])

    def describe(self, batch_sizes: Sequence[int] | None = ()) -> Facts:
        """Say what is known without running anything."""
        script = script_of(self.words)
        content = b"" if script is None else Path(script).read_bytes()
        optimizer = self._optimizer or optimizer_in(content)
        code = code_of(content)
        ranks = [self.world_size] if self.world_size > 1 else []
        return Facts(
            name=self.name,
            kind=self.kind,
            n_samples=self.samples_per_epoch,
            epochs=self.epochs,
            schedule=self.schedule,
            optimizer=optimizer,
            optimizer_family=optimizer_family(optimizer),
            source_hash=source_hash(self.words, self.metric, content, *ranks),
            code_hash=None if code is None else source_hash(self.words, self.metric, code, *ranks),
            code_parts=(
                ("the command line", source_hash(self.words)),
                ("the metric", source_hash(self.metric)),
                ("world_size", source_hash(self.world_size)),
                *file_parts(content),
            ),
            structure_hash=source_hash(self.words, content if code is None else code),
            command=self.words,
            places=tuple(sorted(self._dimensions)),
            accumulates=self.accumulates,
            world_size=self.world_size,
        )

    def present_setting(self) -> tuple[int, float] | None:
        """Return the (global batch size, learning rate) that the script has by default; None where that is not read."""
        script = script_of(self.words)
        known = {} if script is None else defaults_in(Path(script).read_bytes(), flags_of(self.words))
        batch, rate = known.get("global_batch_size"), known.get("learning_rate")
        if batch is None and (micro := known.get("micro_batch_size")) is not None:
            batch = micro * known.get("accumulation_steps", 1) * self.world_size
        if (
            batch is None
            or batch < 1
            or batch % self.world_size
            or batch != int(batch)
            or rate is None
            or not 0 < rate < math.inf
        ):
            return None
        return int(batch), float(rate)

    # --- a run ---

    def start(self, spec: TrialSpec, device: str, log: Log, *, max_epochs: int) -> CommandRun:
        """Start the command for one trial."""
        # Python keeps what it prints to a pipe until there is much of it, and a loss is wanted when it is known.
        environment = {"PYTHONUNBUFFERED": "1", **os.environ}
        values = {
            **spec.params,
            "micro_batch_size": spec.micro_batch_size,
            "global_batch_size": spec.global_batch_size,
            "accumulation_steps": spec.accumulation_steps,
            "learning_rate": spec.learning_rate,
            "seed": spec.seed,
            "max_samples": spec.end_samples,
            "max_epochs": max_epochs,
            "device": device,
            "trial": "probe" if spec.number < 0 else spec.number,
        }
        words = words_without(self.words, self._dimensions - values.keys())
        return CommandRun(filled(words, values), environment, log)

    def losses(self, spec: TrialSpec) -> ToldLosses:
        """Return the reader of what one trial tells."""
        return ToldLosses(
            self.metric,
            samples_per_epoch=self.samples_per_epoch,
            batch_size=spec.global_batch_size,
            # A script that is told the global batch divides it by itself.
            ranks=self.world_size if "micro_batch_size" in self.places else None,
        )

    def measure(self, spec: MeasureSpec, device: str, meter: Meter) -> MeasureNotes:
        """Run the command for a probe; see `command_probe`."""
        assert isinstance(meter, TreeMeter)
        return measure(self, spec, device, meter)

    def train(self, trial: Trial, spec: TrialSpec) -> None:
        """Run one trial.

        Raises:
            CommandError: The command failed.
            ObjectiveError: It ended without a loss, or well before the planned end.
        """
        log, losses = Log(spec.log_to), self.losses(spec)
        max_epochs = epochs_of(spec.end_samples, self.samples_per_epoch)
        least_free = 1.0
        try:
            with self.start(spec, trial.device, log, max_epochs=max_epochs) as run:
                while run.code is None and trial.stopped_at is None:
                    said = losses.wait(run)
                    trial.look()
                    least_free = min(least_free, _free_share())
                    _tell(trial, said)
                if trial.stopped_at is None:  # It has ended.
                    _tell(trial, losses.rest(run))
                run.end(after_s=LAST_WORDS_S if self.told_the_end else 0.0)
            if trial.stopped_at is None:
                self._judge(run, trial, spec, least_free)
        finally:
            log.show_tail()
            log.close()

    def _judge(self, run: CommandRun, trial: Trial, spec: TrialSpec, least_free: float) -> None:
        """Say why a run that has ended by itself is none, if it is none."""
        if exit_code(run) in (-signal.SIGKILL, 128 + signal.SIGKILL) and least_free > NEAR_FULL:
            # Somebody has killed it, and not for memory: then this process ends like it, which is tried again.
            run.log.show_tail()
            os.kill(os.getpid(), signal.SIGKILL)
        if run.code != 0:
            raise failed(run)
        if trial.n_reports == 0:
            raise ObjectiveError(no_metric(self.metric))
        if trial.last_samples < ENDED_EARLY * spec.end_samples:
            told = (
                " Does it stop early by itself? Runs are compared at equal samples: switch that off in trials."
                if self.told_the_end
                else " Give it {max_epochs} where it takes its epochs, or name fewer --epochs; let it not stop early."
            )
            raise ObjectiveError(
                f"The command ended (exit code 0) after {trial.last_samples} samples by its losses: expected "
                f"{spec.end_samples}, which are {self.epochs:g} epochs of {self.samples_per_epoch}.{told}"
            )


def _tell(trial: Trial, said: Iterable[SaidLoss]) -> None:
    for each in said:
        # A script that prints a loss of long ago once more, as with its best epoch, has not gone back.
        if each.samples >= trial.last_samples and trial.stopped_at is None:
            trial.report(each.val_loss, samples=each.samples)


def _free_share() -> float:
    memory = cpu_memory()
    return memory.available_bytes / max(1, memory.total_bytes)
