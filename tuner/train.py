"""Training with what a study recommends: a full run in a fresh process, by the loop of a trial; the model is saved."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .core.checks import Checks
from .core.command_words import recommended_words
from .core.errors import ArgumentError, BstuneError, NothingFitsError, ObjectiveError, StudyError
from .core.plain_text import one_line
from .core.results import Recommendation, SearchResult, Setting
from .core.specs import Plan
from .core.take_home import TrainResult
from .core.trials import Facts, TrialReport, TrialSpec
from .engines.base import Finished, Lost, Reported
from .engines.local import LocalPool
from .searching.result import make_result, stored_strategy
from .studies.catalog import find_study, has_changed, searched_study, studies
from .studies.model_files import ModelKeeper, check_model_path
from .studies.naming import anothers_place, objective_identity, said_target, study_name
from .studies.storage import Storage, read_storage
from .studies.study import has_search, intact
from .workers.fork_server import Host
from .workers.resolve import check_objective

if TYPE_CHECKING:
    from ..objectives.command import Command

DEFAULT_OUTPUT = "model.pt"
WAIT_S = 1.0


def train(
    objective: Any,
    *,
    output: str | Path = DEFAULT_OUTPUT,
    study: str | None = None,
    storage: str | None = None,
    seed: int = 0,
    device: str = "auto",
    threads: int | Literal["auto"] = "auto",
    on_report: Callable[[TrialReport], None] | None = None,
) -> TrainResult:
    """Train with what a study recommends, to the end of a full run, and save the model.

    It runs in a fresh process, as a trial does: the same loop, the same data order for the same seed.

    Args:
        objective: What was searched: a `Supervised`, a loop that calls `trial.save(model)`, or
            `bstune.load("model.py")`.
        output: Where the model is saved. A file that bstune did not write for this study is left alone.
        study: Name of the study; by default the objective's own, of several the one that was searched last.
        storage: Where it is kept; by default `$BSTUNE_STORAGE`, else `sqlite:///bstune.db`.
        seed: Of initialisation, data order and dropout.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        threads: CPU threads; by default those of the study's probe.
        on_report: Called with each report on the way.

    Returns:
        Where the model is, what it reached, and what the study had expected.

    Raises:
        ArgumentError: An argument is wrong on its face.
        StudyError: There is no study of the objective, or the one that is named is of another.
        NoSignalError: The study recommends nothing yet.
        ObjectiveError: Your code is at fault, or saves no model.
        NothingFitsError: It ran out of memory.
        BstuneError: The file is somebody else's.
    """
    checks = Checks()
    checks.place(device=device, study=study, storage=storage)
    checks.text("output", os.fspath(output))
    checks.seed(seed)
    n_threads = checks.threads(threads)
    checks.done()
    check_model_path(output)
    with read_storage(storage):  # Without one there is no need to load anything.
        pass
    objective = check_objective(objective)
    with Host(objective, device=device, threads=None if n_threads == "auto" else n_threads) as host:
        facts = host.facts
        if facts.kind == "command":
            raise ArgumentError(
                "bstune sees no model of a program of its own: bstune train -- COMMAND... runs it with the recommended "
                "flags, and it saves its model itself."
            )
        recommended = _recommended(objective, facts, study, storage)
        found, probe = recommended.result, recommended.result.probe
        if probe is not None and host.chooses_threads and probe.device.threads:
            host.use_threads(probe.device.threads)
        with contextlib.closing(ModelKeeper(output, found.study)) as models:
            spec = models.begin(_spec(found.recommendation, facts, seed))
            ended, reports = _run(host, spec, None if probe is None else probe.usable_bytes, on_report)
            if models.take(0, always=True) is None:
                raise ObjectiveError(
                    "The run came to its end and left no model: a loop of your own calls trial.save(model) at its end. "
                    "Add that and train again; the study stays of use. Where your loop does: the file could not be "
                    "written."
                )
    best, last = found.recommendation, reports[-1]
    return TrainResult(
        path=str(models.path),
        study=found.study,
        setting=Setting(best.global_batch_size, best.learning_rate, dict(best.params)),
        micro_batch_size=best.micro_batch_size,
        accumulation_steps=best.accumulation_steps,
        seed=seed,
        samples=ended.samples,
        val_loss=last.val_loss,
        expected_low=best.val_loss.low,
        expected_high=best.val_loss.high,
        seconds=ended.seconds,
        metrics=dict(last.metrics),
        warnings=recommended.warnings,
    )


@dataclass(frozen=True)
class CommandToRun:
    """A command as it is to be run.

    Attributes:
        words: The program and its arguments, with all places filled.
        study: The study that recommends them.
        environment: Variables that are set beside those of this process.
        warnings: What the user should know of that.
    """

    words: list[str]
    study: str
    environment: dict[str, str]
    warnings: tuple[str, ...]


def recommended_command(
    command: Command,
    *,
    study: str | None = None,
    storage: str | None = None,
    seed: int = 0,
    device: str = "auto",
    threads: int | Literal["auto"] = "auto",
) -> CommandToRun:
    """Return the command of a full run with what its study recommends.

    Args:
        command: As it was searched; it may have other words besides, such as where to save the model.
        study: Name of the study; by default the command's own, of several the one that was searched last.
        storage: Where it is kept; by default `$BSTUNE_STORAGE`, else `sqlite:///bstune.db`.
        seed: For `{seed}`.
        device: For `{device}`; `auto`: the kind that was searched on.
        threads: CPU threads, for `OMP_NUM_THREADS`.

    Raises:
        ArgumentError: An argument is wrong on its face, or the command lacks a place for what was searched.
        StudyError: There is no study of the command.
        NoSignalError: The study recommends nothing yet.
        ObjectiveError: There is no such program.
    """
    checks = Checks()
    checks.place(device=device, study=study, storage=storage)
    checks.seed(seed)
    n_threads = checks.threads(threads)
    checks.done()
    command.prepare()
    found = _recommended(command, command.describe(), study, storage)
    best, probe = found.result.recommendation, found.result.probe
    command.for_space(found.plan.space, rate_is_fixed=True)
    if device == "auto" and probe is not None:
        device = probe.device.kind
    facts = dataclasses.replace(found.facts, command=command.words)
    absent = found.plan.space.keys() - {"batch_size", "learning_rate"} - best.params.keys()
    words = recommended_words(best, facts, absent, seed=seed, device=device)
    environment = {} if n_threads == "auto" else {"OMP_NUM_THREADS": str(n_threads)}
    return CommandToRun(words, found.result.study, environment, found.warnings)


@dataclass(frozen=True)
class _Found:
    """What the study of an objective has found, and the facts that it rests on."""

    result: SearchResult
    plan: Plan
    facts: Facts
    changed: bool
    """The objective is no longer what was searched."""

    @property
    def warnings(self) -> tuple[str, ...]:
        warnings = []
        if self.changed:
            warnings.append("The objective has changed since it was searched: its best setting may be another by now.")
        if not self.result.recommendation.verified:
            warnings.append("The recommendation is not verified: no full run on a fresh seed has confirmed it.")
        return tuple(warnings)


def _recommended(objective: Any, facts: Facts, name: str | None, storage: str | None) -> _Found:
    """Return what the study of an objective has found.

    Raises:
        StudyError: There is no such study, or it is of another objective.
        NoSignalError: It has learned nothing yet.
    """
    with read_storage(storage) as opened:
        _, study = searched_study(opened, objective, facts, given=name)
        if study is None or not has_search(study):
            raise StudyError(_no_search(opened, objective, facts, name))
        with intact(study.name):
            strategy = stored_strategy(study)
            result = make_result(study, strategy, study.probe, "interrupted")
        changed = has_changed(study, strategy.facts, facts, objective)
        others = anothers_place(study.attributes.get("identity"), objective_identity(objective))
        if changed and others is not None:
            own = said_target(objective)
            raise StudyError(
                f"Study {study.name!r} is of {others}, and {own} is another objective: what is best there need not be "
                f"best here. Leave out --study for the study of {own}, or search first: bstune search {own}"
            )
        return _Found(result, strategy.plan, strategy.facts, changed)


def _no_search(opened: Storage, objective: Any, facts: Facts, given: str | None) -> str:
    """Say that there is no search, and what to do; a folder that was copied still has the study of its old place."""
    where = opened.location.path or opened.location.url
    if facts.kind == "command":
        what, again = "this command", "... -- COMMAND..."
    else:
        what = again = said_target(objective)
    first = f"{where} holds no search of {what}{'' if given is None else f' named {given!r}'}"
    base = study_name(given, objective, facts)
    of_name = None if given is not None else find_study(opened, base)
    if of_name is None or not has_search(of_name):
        held = [] if given is not None else [each.name for each in studies(opened, readable=True) if has_search(each)]
        names = ", ".join(map(one_line, held[:5]))
        other = f" If it was searched under another name ({names}), give that with --study." if held else ""
        return f"{first}. Search first: bstune search {again}.{other}"
    path = str(of_name.attributes.get("identity")).rpartition(":")[0] or "another objective"
    return (
        f"{first}: its study {base!r} is of {one_line(path)}. If that is the same objective, train with its answer: "
        f"bstune train {again} --study {shlex.quote(base)}. Else search first: bstune search {again}"
    )


def _spec(best: Recommendation, facts: Facts, seed: int) -> TrialSpec:
    """Return a full run of the recommended setting.

    Raises:
        ObjectiveError: The full run is shorter than one step.
    """
    batch = best.global_batch_size
    end = facts.full_run_steps(batch) * batch
    if end < batch:
        raise ObjectiveError(f"A full run has {facts.full_run_samples:g} samples, less than one step of {batch}.")
    points = sorted({min(end, math.ceil(end * part / facts.evals)) for part in range(1, facts.evals + 1)})
    return TrialSpec(
        number=0,
        stage="train",
        global_batch_size=batch,
        micro_batch_size=best.micro_batch_size,
        accumulation_steps=best.accumulation_steps,
        learning_rate=best.learning_rate,
        seed=seed,
        end_samples=end,
        points=tuple(points),
        params=best.params,
        eval_batch_size=best.eval_batch_size,
        most_samples=math.ceil(2 * facts.full_run_samples),
    )


def _run(
    host: Host, spec: TrialSpec, fence_bytes: int | None, on_report: Callable[[TrialReport], None] | None
) -> tuple[Finished, list[TrialReport]]:
    """Run to the end and return how it went, with all reports."""
    reports: list[TrialReport] = []
    with contextlib.closing(LocalPool(host, fence_bytes=fence_bytes)) as pool:
        pool.submit(spec)
        while True:
            for event in pool.events(WAIT_S):
                if isinstance(event, Reported):
                    reports.append(event.report)
                    if on_report is not None:
                        on_report(event.report)
                    finite = math.isfinite(event.report.val_loss)
                    pool.reply(spec.number, "go" if finite else "stop")
                elif isinstance(event, Lost):
                    raise _error(event, spec, fence_bytes)
                elif isinstance(event, Finished):
                    if not reports or not math.isfinite(reports[-1].val_loss):
                        raise BstuneError(
                            f"Training diverged at {event.samples} of {spec.end_samples} samples: nothing was saved. "
                            "Search again with a smaller learning rate, or train with another seed."
                        )
                    return event, reports


def _error(event: Lost, spec: TrialSpec, fence_bytes: int | None) -> BstuneError:
    if event.cause == "oom":
        return NothingFitsError(
            f"Training ran out of memory at micro-batch {spec.micro_batch_size}: {event.message}. Less is free than "
            "when the study was made: probe again (bstune probe --fresh), or free some.",
            needed_bytes=None,
            budget_bytes=fence_bytes or 0,
        )
    said = f"{event.error_type}: {event.message}" if event.error_type else f"{event.cause}: {event.message}"
    return ObjectiveError(f"Training failed: {said}", traceback=event.traceback, output=event.output)
