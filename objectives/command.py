"""An unmodified training script as an objective: a command line with places for what a trial sets."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import re
import signal
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..tuner.core.command_words import epochs_of, filled, words_without
from ..tuner.core.errors import ArgumentError, ObjectiveError
from ..tuner.core.probe_results import Outcome
from ..tuner.core.trials import Facts, MeasureNotes, MeasureSpec, TrialSpec
from ..tuner.device.memory import cpu_memory, usable_cores
from ..tuner.device.out_of_memory import classify_exit, first_line
from ..tuner.device.tree_memory import LOOK_S, TreeMeter
from .base import Meter, Trial
from .command_line import check_program, default_name, flags_of, places_in, script_of, words_of
from .command_run import CommandRun, Log
from .fingerprint import code_of, optimizer_family, source_hash
from .loop import ENDED_EARLY
from .metric_lines import READY_MADE, MetricLines, Said, compiled
from .ranks import ranks_in
from .schedule import SCHEDULES
from .script_flags import defaults_in, optimizer_in
from .steady import IDLE_S, Steady

LAST_WORDS_S = 30.0
"""A script that was told where to end has so long, after its last loss, to end by itself: it may save its model."""
NEAR_FULL = 0.1
"""A script that is killed was killed for memory if less than this share of the machine's was free before."""
_SAID_WHY = re.compile(r"^(?:\[\w+\]:\s*)?(?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b.*$", re.MULTILINE)

_RANK_KILLED = re.compile(r"^\s*exitcode\s*:\s*-9\b", re.MULTILINE)
"""What torchrun says of a rank that was killed."""
_BECAUSE_OF_OTHERS = re.compile(r"ChildFailedError|Connection (?:closed|reset) by peer")
"""In errors that a rank, or torchrun, has because another rank has failed."""


class CommandError(ObjectiveError):
    """The user's command failed.

    Attributes:
        outcome: What that means, by its exit code and its last words: `oom`, `limit` or `error`.
    """

    def __init__(self, message: str, outcome: Outcome, *, output: str | None = None) -> None:
        """Keep what it means."""
        super().__init__(message, output=output)
        self.outcome = outcome


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
                `global_batch_size`, `accumulation_steps`, `seed`, `max_samples`, `max_epochs`, `device` and the names
                of other dimensions of the space, as far as the script takes them. No shell sees it.
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
        if not epochs > 0:
            wrong.append(f"epochs={epochs!r}: expected a number above 0")
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

    def _start(self, values: Mapping[str, Any], log: Log) -> CommandRun:
        import torch

        # Python keeps what it prints to a pipe until there is much of it, and a loss is wanted when it is known.
        environment = {"PYTHONUNBUFFERED": "1", **os.environ}
        threads = torch.get_num_threads()  # As many as this process was given.
        if threads < usable_cores():
            environment.setdefault("OMP_NUM_THREADS", str(threads))
        words = words_without(self.words, self._dimensions - values.keys())
        return CommandRun(filled(words, values), environment, log)

    def _reader(self, global_batch_size: int) -> MetricLines:
        return MetricLines(self.metric, samples_per_epoch=self.samples_per_epoch, batch_size=global_batch_size)

    def _values(self, spec: TrialSpec, device: str, max_epochs: int) -> dict[str, Any]:
        return {
            **spec.params,
            "micro_batch_size": spec.micro_batch_size,
            "global_batch_size": spec.global_batch_size,
            "accumulation_steps": spec.accumulation_steps,
            "learning_rate": spec.learning_rate,
            "seed": spec.seed,
            "max_samples": spec.end_samples,
            "max_epochs": max_epochs,
            "device": device,
        }

    def train(self, trial: Trial, spec: TrialSpec) -> None:
        """Run one trial.

        Raises:
            CommandError: The command failed.
            ObjectiveError: It ended without a loss, or well before the planned end.
        """
        max_epochs = epochs_of(spec.end_samples, self.samples_per_epoch)
        log, lines, said = Log(spec.log_to), self._reader(spec.global_batch_size), _Reports(self)
        least_free = 1.0
        try:
            with self._start(self._values(spec, trial.device, max_epochs), log) as run:
                while run.code is None and trial.stopped_at is None:
                    data = run.printed()
                    trial.look()
                    least_free = min(least_free, _free_share())
                    self._tell(trial, said.of(run) or ([] if said.seen else lines.feed(data)))
                if trial.stopped_at is None:  # It has ended.
                    for data in run.rest():
                        self._tell(trial, [] if said.seen else lines.feed(data))
                    self._tell(trial, said.of(run) or ([] if said.seen else lines.finish()))
                run.end(after_s=LAST_WORDS_S if self.told_the_end else 0.0)
            if trial.stopped_at is None:
                self._judge(run, trial, spec, least_free)
        finally:
            log.show_tail()
            log.close()

    def _tell(self, trial: Trial, said: Any) -> None:
        for each in said:
            # A script that prints a loss of long ago once more, as with its best epoch, has not gone back.
            if each.samples >= trial.last_samples and trial.stopped_at is None:
                trial.report(each.val_loss, samples=each.samples)

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
                "" if self.told_the_end else " Give it {max_epochs} where it takes its epochs, or name fewer --epochs."
            )
            raise ObjectiveError(
                f"The command ended (exit code 0) after {trial.last_samples} samples by its losses: expected "
                f"{spec.end_samples}, which are {self.epochs:g} epochs of {self.samples_per_epoch}.{told}"
            )

    # --- the probe ---

    def measure(self, spec: MeasureSpec, device: str, meter: Meter) -> MeasureNotes:
        """Run the command at one size until it has told a loss, has ended, or its memory is steady.

        Raises:
            CommandError: It failed.
            ObjectiveError: It does nothing.
        """
        assert isinstance(meter, TreeMeter)
        accumulation = spec.accumulation_steps if self.accumulates else 1
        batch = spec.micro_batch_size * accumulation * self.world_size
        trial = TrialSpec(
            number=-1,
            stage="probe",
            global_batch_size=batch,
            micro_batch_size=spec.micro_batch_size,
            accumulation_steps=accumulation,
            learning_rate=1e-6,
            seed=spec.seed,
            end_samples=spec.n_steps * batch,
            points=(),
            params=spec.params,
        )
        if spec.timed_s:
            return self._time(trial, device, meter)
        log, lines, said = Log(None), self._reader(batch), _Reports(self)
        steady = Steady()
        meter.phase("train")
        try:
            with self._start(self._values(trial, device, 1), log) as run:
                told = False
                meter.peak.look()  # At once: it may be over when it is looked at next.
                while run.code is None and not told and not steady.over:
                    told = any(True for _ in lines.feed(run.printed(LOOK_S))) or bool(said.of(run))
                    meter.peak.look()
                    steady.note(time.monotonic() - run.started_s, meter.peak.peak_bytes, meter.peak.cpu_s, lines.trains)
                run.end()
        finally:
            log.show_tail()
        if not told and not steady.over and run.code != 0:
            raise failed(run)
        if steady.idle:
            raise ObjectiveError(
                f"The command did nothing for {IDLE_S:.0f} s at micro-batch {spec.micro_batch_size}: it printed "
                "nothing, and used no processor. Does it wait for something, such as a download or an answer?"
            )
        samples = trial.end_samples if "max_samples" in self.places else self.samples_per_epoch
        whole = told or not steady.over
        for _ in range(min(samples // batch, spec.n_steps) if whole else 0):
            meter.step_done()
        return MeasureNotes(samples if whole else 0, None, None, _unseen(told, steady))

    def _time(self, trial: TrialSpec, device: str, meter: TreeMeter) -> MeasureNotes:
        """Time an epoch: from the first loss to the second, which leaves out what the script takes to start."""
        trial = dataclasses.replace(trial, end_samples=2 * self.samples_per_epoch)
        batch = trial.global_batch_size
        log, lines, said = Log(None), self._reader(batch), _Reports(self)
        seen: list[tuple[float, int]] = []

        def note(losses: Iterable[Said], run: CommandRun) -> None:
            for each in losses:
                if each.samples > (seen[-1][1] if seen else 0):
                    seen.append((time.monotonic() - run.started_s, each.samples))

        with self._start(self._values(trial, device, 2), log) as run:
            while run.code is None and len(seen) < 2:
                data = run.printed(LOOK_S)
                meter.peak.look()
                note(said.of(run) or ([] if said.seen else lines.feed(data)), run)
            for data in run.rest():
                note([] if said.seen else lines.feed(data), run)
            note(said.of(run) or ([] if said.seen else lines.finish()), run)
            run.end()
        if len(seen) < 2:
            return MeasureNotes(0, None)
        (first_s, first), (second_s, second) = seen[:2]
        sample_s = (second_s - first_s) / (second - first)
        meter.timed_step_s = (sample_s * batch,)
        return MeasureNotes(second, None, start_s=max(0.0, first_s - first * sample_s))


class _Reports:
    """The losses that a script has reported itself; once there is one, what it prints does not count."""

    def __init__(self, command: Command) -> None:
        self.seen = 0
        self._samples_per_epoch = command.samples_per_epoch
        # A script that is told the global batch divides it by itself.
        self._ranks = command.world_size if "micro_batch_size" in command.places else None

    def of(self, run: CommandRun) -> list[Said]:
        """Return what has been reported since the last call.

        Raises:
            ObjectiveError: More or fewer processes train than is known.
        """
        found = []
        for numbers in run.reported():
            self.seen += 1
            ranks = numbers.get("world_size")
            if ranks is not None and self._ranks not in (None, ranks):
                raise ObjectiveError(
                    f"The command trains in {ranks:g} processes where {self._ranks} were expected, so its global batch "
                    f"is not the one that is counted: say --world-size {ranks:g} (Command(world_size={ranks:g}))."
                )
            epochs = numbers.get("epoch", self.seen)
            samples = numbers.get("samples", epochs * self._samples_per_epoch)
            if math.isfinite(samples) and samples >= 0:
                found.append(Said(numbers["val_loss"], round(samples)))
        return found


def _unseen(told: bool, steady: Steady) -> tuple[str, ...]:
    """Return what a measurement has not seen."""
    if told:
        return ()
    if not steady.over:
        return (
            "The command ended without telling a loss, so it is not known whether the memory of validation is part of "
            "the answer.",
        )
    return (
        "The command was ended when its memory had been the same for some seconds, and before it told a loss: the "
        "memory of validation, and what it would have taken later, are not part of the answer. Where the script takes "
        "a number of samples or epochs, give it {max_samples} or {max_epochs}.",
    )


def _free_share() -> float:
    memory = cpu_memory()
    return memory.available_bytes / max(1, memory.total_bytes)


def exit_code(run: CommandRun) -> int:
    """Return the exit code of a command that has ended; under torchrun a rank that was killed counts for all."""
    assert run.code is not None
    tail = run.log.tail()
    killed = run.code == 1 and _RANK_KILLED.search(tail) and classify_exit(run.code, tail) == "error"
    return -signal.SIGKILL if killed else run.code


def failed(run: CommandRun) -> CommandError:
    """Return the error for a command that ended with a code other than 0."""
    code, tail = exit_code(run), run.log.tail()
    whys = _SAID_WHY.findall(tail)
    whys = [why for why in whys if not _BECAUSE_OF_OTHERS.search(why)] or whys
    last = whys[-1] if whys else next((line for line in reversed(tail.splitlines()) if line.strip(" =-")), "")
    name = signal.Signals(-code).name if -code in set(signal.Signals) else None
    how = f"was ended by {name}" if name else f"ended with exit code {code}"
    said = f": {first_line(last)}" if last.strip() else ""
    return CommandError(f"the command {how}{said}{_shadowed(tail)}", classify_exit(code, tail))


def _shadowed(tail: str) -> str:
    """Name the file that a script has imported in place of this package, where there is one."""
    found = re.search(r"module 'bstune' (?:\(consider renaming '([^']+)'|from '([^']+)'|has no attribute)", tail)
    beside = [Path(path).parent / "bstune.py" for path in re.findall(r'File "([^"]+\.py)"', tail)]
    path = next((path for path in (*beside, Path("bstune.py")) if path.is_file()), None)
    if found is None or path is None:
        return ""
    return f". The script has imported the file {path} in place of the package bstune: rename that file"


def no_metric(metric: str | None) -> str:
    """Return what to say of a command that has ended well, and told no loss."""
    looked = f"what matches {metric!r}" if metric is not None else f"the ready-made patterns ({', '.join(READY_MADE)})"
    return (
        f"The command ended (exit code 0) without a validation loss: looked in all that it printed for {looked}. Say "
        r"how it prints it, such as --metric 'val_loss=([\d.eE+-]+)', or add bstune.report(val_loss=..., samples=...) "
        "to the script."
    )
