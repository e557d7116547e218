"""What a probe learns from one run of a command: the memory of its processes, and the seconds of an epoch."""

from __future__ import annotations

import dataclasses
import time
from typing import Protocol

from ..tuner.core.errors import ObjectiveError
from ..tuner.core.trials import MeasureNotes, MeasureSpec, TrialSpec
from ..tuner.device.tree_memory import LOOK_S, TreeMeter
from .command_end import failed, no_metric
from .command_run import CommandRun, Log
from .steady import IDLE_S, Steady
from .told_losses import ToldLosses


class MeasuredCommand(Protocol):
    """What is asked of a command here; see `command.Command`."""

    metric: str | None
    places: set[str]
    samples_per_epoch: int
    world_size: int

    @property
    def accumulates(self) -> bool:
        """Whether it can make a step of several micro-batches."""

    @property
    def told_the_end(self) -> bool:
        """Whether it is told where to end."""

    def start(self, spec: TrialSpec, device: str, log: Log, *, max_epochs: int) -> CommandRun:
        """Start it for one trial."""

    def losses(self, spec: TrialSpec) -> ToldLosses:
        """Return the reader of what one trial tells."""


def measure(command: MeasuredCommand, spec: MeasureSpec, device: str, meter: TreeMeter) -> MeasureNotes:
    """Run the command at one size until it tells a loss after two steps or its memory is steady; or time an epoch.

    Raises:
        CommandError: It failed.
        ObjectiveError: It does nothing.
    """
    trial = spec.as_trial(spec.n_steps, accumulates=command.accumulates, world_size=command.world_size)
    return _time(command, trial, device, meter) if spec.timed_s else _weigh(command, trial, device, meter)


def _weigh(command: MeasuredCommand, trial: TrialSpec, device: str, meter: TreeMeter) -> MeasureNotes:
    log, losses = Log(None), command.losses(trial)
    steady = Steady()
    meter.phase("train")
    try:
        # A second epoch: what the validation of the first took is read while the process still lives.
        with command.start(trial, device, log, max_epochs=2) as run:
            told = seen = False
            # The second step: in it the optimizer's state is there beside gradients and activations.
            enough = min(2 * trial.global_batch_size, trial.end_samples)
            meter.peak.look()  # At once: it may be over when it is looked at next.
            while run.code is None and not seen and not steady.over:
                new = losses.wait(run, LOOK_S)
                told, seen = told or bool(new), any(each.samples >= enough for each in new)
                meter.peak.look(again=bool(new))
                now_s, peak = time.monotonic() - run.started_s, meter.peak
                steady.note(now_s, peak.peak_bytes, peak.cpu_s, losses.trains, log.n_bytes)
            if run.code is not None:
                told = told or bool(losses.rest(run))
            run.end()
    finally:
        log.show_tail()
    if not told and not steady.over and run.code != 0:
        raise failed(run)
    if steady.idle:
        raise ObjectiveError(
            f"The command did nothing for {IDLE_S:.0f} s at micro-batch {trial.micro_batch_size}: it printed "
            "nothing, and used no processor. Does it wait for something, such as a download or an answer?"
        )
    samples = trial.end_samples if "max_samples" in command.places else command.samples_per_epoch
    whole = told or not steady.over
    no_loss = "" if told else _no_loss(command, ended=not steady.over, epochs=losses.epochs)
    for _ in range(min(samples, trial.end_samples) // trial.global_batch_size if whole else 0):
        meter.step_done()
    unseen = _unseen(told, steady, command)
    if not meter.peak.peak_bytes:
        said = "had nothing on the card for minutes" if steady.over else "was over before its memory could be seen"
        unseen = (*unseen, f"The command {said}: its peak is not known.")
    return MeasureNotes(samples if whole else 0, None, None, unseen, no_loss=no_loss)


def _no_loss(command: MeasuredCommand, *, ended: bool, epochs: int) -> str:
    """Return what to say of a run without a loss that has seen enough to have one, else nothing."""
    # Told of fewer samples than an epoch has, it may end before its first validation.
    if ended and "max_samples" not in command.places:
        return no_metric(command.metric)
    if epochs:
        return no_metric(command.metric, "The command ended an epoch, and began another,")
    return ""


def _time(command: MeasuredCommand, trial: TrialSpec, device: str, meter: TreeMeter) -> MeasureNotes:
    """Time an epoch: from the first loss to the second, which leaves out what the script takes to start."""
    trial = dataclasses.replace(trial, end_samples=2 * command.samples_per_epoch)
    losses = command.losses(trial)
    seen: list[tuple[float, int]] = []
    with command.start(trial, device, Log(None), max_epochs=2) as run:
        while len(seen) < 2:
            over = run.code is not None
            for each in losses.rest(run) if over else losses.wait(run, LOOK_S):
                if each.samples > (seen[-1][1] if seen else 0):
                    seen.append((time.monotonic() - run.started_s, each.samples))
            meter.peak.look()
            if over:
                break
        run.end()
    if len(seen) < 2:
        return MeasureNotes(0, None)
    (first_s, first), (second_s, second) = seen[:2]
    sample_s = (second_s - first_s) / (second - first)
    meter.timed_step_s = (sample_s * trial.global_batch_size,)
    return MeasureNotes(second, None, start_s=max(0.0, first_s - first * sample_s))


def _unseen(told: bool, steady: Steady, command: MeasuredCommand) -> tuple[str, ...]:
    """Return what a measurement has not seen."""
    if told:
        return ()
    if not steady.over:
        return (
            "The command ended without telling a loss, so it is not known whether the memory of validation is part of "
            "the answer.",
        )
    said = (
        "The command was ended when its memory had been the same for some seconds, and before it told a loss: the "
        "memory of validation, and what it would have taken later, are not part of the answer."
    )
    if not command.told_the_end:
        said += " Where the script takes a number of samples or epochs, give it {max_samples} or {max_epochs}."
    return (said,)
