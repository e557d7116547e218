"""The whole story on one page: describe the objective, probe what fits, try settings, confirm, recommend.

`search` is the library's front door, `run_search` the story, and `loop.Drive` its loop.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from .core.arguments import SearchArguments, check_search
from .core.errors import BstuneError, NoSignalError
from .core.probe_results import ProbeResult
from .core.progress import Progress
from .core.results import SearchResult
from .core.specs import Forecast
from .searching.kept import kept_models, with_model
from .searching.loop import Drive
from .searching.prepare import Prepared, make_pool, prepared
from .searching.result import make_result
from .studies.catalog import forget_study
from .studies.checkpoints import checkpoint_folder
from .studies.model_files import check_model_path
from .studies.trial_logs import log_folder
from .workers.messages import LOADING


class SearchInterrupted(KeyboardInterrupt):
    """Ctrl-C in the middle of a search; everything that was finished is stored.

    Attributes:
        result: The best so far, or None when nothing was learned yet.
    """

    def __init__(self, result: SearchResult | None) -> None:
        """Keep the best so far."""
        super().__init__("the search was interrupted")
        self.result = result


def search(
    objective: Any,
    *,
    probe: ProbeResult | None = None,
    goal: Literal["loss", "time", "largest"] = "time",
    target: float | None = None,
    tolerance: float = 0.02,
    budget: float | str = 12.0,
    n_trials: int | None = None,
    timeout: float | None = None,
    trial_timeout: float | None = None,
    space: Mapping[str, Any] | None = None,
    engine: str = "optuna",
    jobs: int | Literal["auto"] = 1,
    ray_address: str | None = None,
    pruner: str = "auto",
    sampler: str = "auto",
    confirm: int = 3,
    device: str = "auto",
    threads: int | Literal["auto"] = "auto",
    baseline: tuple[int, float] | None = None,
    isolation: Literal["process", "none"] = "process",
    seed: int = 0,
    study: str | None = None,
    storage: str | None = None,
    fresh: bool = False,
    fresh_prior: bool = False,
    save_model: str | None = None,
    callbacks: Sequence[Callable[[Progress], None]] = (),
) -> SearchResult:
    """Return the batch size and learning rate to train with, and all the evidence for them.

    Running the same search again resumes it: nothing that was finished is run again.

    Args:
        objective: What to train: `bstune.Supervised`, a function under `@bstune.objective`, `bstune.Command`, or
            `bstune.load("model.py")`.
        probe: What `bstune.probe` returned; by default a stored one of the same objective and device, else a new one.
        goal: `time`: the fewest seconds to `target`. `loss`: the lowest loss at equal samples, or the fastest of
            those within `tolerance` of it. `largest`: the largest batch without measurable loss.
        target: Validation loss to reach, with `goal="time"`; by default chosen from the first run.
        tolerance: Share of the best loss that counts as equal.
        budget: Most that the study may train, confirmation included and the probe not: a number of reference runs (full
            runs at the smallest batch that trains at half of the top speed or more), or a duration such as `"20min"`
            or `"1.5h"`.
        n_trials: Most trials of the study.
        timeout: Most seconds of this call.
        trial_timeout: Seconds of silence after which a trial counts as hung; by default many times what it should take,
            or a day where nothing tells that.
        space: Dimensions to fix or add, by name (`batch_size`, `learning_rate`, or your own): a scalar fixes, a list
            means exactly these, `(lo, hi)` a log range, an Optuna distribution itself; a `bstune.When` is there only
            where another dimension has a certain value.
        engine: Who runs the trials: `optuna` on this machine, `ray` by Ray Tune, here or on a cluster.
        jobs: Trials that run side by side, or `auto`: on CPU as many as have cores and memory, at most 8; elsewhere
            as 1. With `ray` and GPUs, 1 means one per GPU of the cluster.
        ray_address: With `ray`: `auto` or `HOST:PORT` of a cluster to join; by default Ray is started here, on
            loopback.
        pruner: `auto`, or `none` to let every trial run to its end.
        sampler: `auto`, or `random` and `tpe` for comparison.
        confirm: Most fresh seeds per finalist.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        threads: CPU threads of each trial; by default what `OMP_NUM_THREADS` says, else one or all cores, as is faster.
        baseline: Your present (batch size, learning rate); it is measured beside the rest and centres the search.
        isolation: `process`, or `none` to run a cheap, trusted function in this process, without a probe.
        seed: Seed of all trials of the search; confirmation uses the seeds that follow.
        study: Name of the study; by default the objective's own, else that of its file, script or notebook, with the
            objective's variable where that is not called `objective`, as in `script-wide`. An objective never takes
            over the study of another: it gets NAME-2.
        storage: Where it is kept: `sqlite:///FILE`; by default `$BSTUNE_STORAGE`, else `sqlite:///bstune.db`.
        fresh: Keep the old study and make a new one, NAME-2.
        fresh_prior: Let a new study begin as if nothing was known. By default it begins at the setting that another
            study of the same storage has verified for the same model, on other data or for other epochs.
        save_model: Keep the best model of the confirmation runs in this file, by validation loss: each is a full run.
            `SearchResult.model_path` says whether there is one. A file that bstune did not write is left alone.
        callbacks: Functions that are called with a `Progress` whenever something has happened.

    Raises:
        ArgumentError: An argument is wrong on its face.
        ObjectiveError: Your code or file is at fault.
        NothingFitsError: Even the smallest micro-batch does not fit.
        DeviceError: The device is absent or does not work.
        StudyError: The storage cannot be used, or holds a study of other settings.
        NoSignalError: No trial has a finite validation loss.
    """
    arguments = check_search(
        probe=probe,
        goal=goal,
        target=target,
        tolerance=tolerance,
        budget=budget,
        n_trials=n_trials,
        timeout=timeout,
        trial_timeout=trial_timeout,
        space=space,
        engine=engine,
        jobs=jobs,
        ray_address=ray_address,
        pruner=pruner,
        sampler=sampler,
        confirm=confirm,
        device=device,
        threads=threads,
        baseline=baseline,
        isolation=isolation,
        seed=seed,
        study=study,
        storage=storage,
        fresh=fresh,
        fresh_prior=fresh_prior,
        save_model=save_model,
        callbacks=callbacks,
    )
    with _progress() as told:
        return run_search(objective, dataclasses.replace(arguments, callbacks=(told, *arguments.callbacks)))


def run_search(objective: Any, arguments: SearchArguments) -> SearchResult:
    """Search with checked arguments."""
    if os.environ.get(LOADING) == str(os.getpid()):
        raise BstuneError(
            "bstune.search() was called by a file that bstune was loading. Put the call under "
            '`if __name__ == "__main__":`, or run the file with Python.'
        )
    deadline_s = math.inf if arguments.timeout is None else time.monotonic() + arguments.timeout
    _check_model_path(arguments)
    with prepared(objective, arguments, deadline_s) as ready:
        ready.tell("forecast", forecast=_forecast(ready), facts=ready.facts, rungs=ready.strategy.rungs.samples)
        with checkpoint_folder(ready.study) as checkpoint_dir, kept_models(ready) as models:
            drive = Drive(
                ready.study,
                ready.strategy,
                ready.probe,
                tell=lambda kind, trial: ready.tell(kind, trial=trial, find_best=ready.best),
                deadline_s=deadline_s,
                checkpoint_dir=checkpoint_dir,
                log_dir=log_folder(ready.study) if ready.facts.kind == "command" else None,
                trial_timeout_s=arguments.trial_timeout,
                models=models,
                say=lambda said: ready.tell("note", message=said),
            )
            with contextlib.closing(make_pool(ready, drive)) as pool:
                try:
                    stopped_by = drive.run(pool)
                except KeyboardInterrupt:
                    raise SearchInterrupted(_best_so_far(ready)) from None
        ready.study.set(stopped_by=stopped_by)
        if stopped_by == "timeout" and not any(record.values for record in ready.study.records):
            raise NoSignalError(
                f"The timeout of {arguments.timeout:g} s was over before any trial had a validation loss. Run the "
                "same command again: it goes on from here, and what was probed is kept."
            )
        result = make_result(ready.study, ready.strategy, ready.probe, stopped_by)
        return result if models is None else with_model(result, models, ready)


def run_forecast(objective: Any, arguments: SearchArguments) -> Forecast:
    """Return what a search would cost, training nothing; it probes if no probe is stored.

    Raises:
        BstuneError: The search itself would fail as it is asked for.
    """
    deadline_s = math.inf if arguments.timeout is None else time.monotonic() + arguments.timeout
    _check_model_path(arguments)
    with prepared(objective, arguments, deadline_s, dry=True) as ready, kept_models(ready):
        forecast = _forecast(ready)
        nothing_to_run = not ready.study.finished and ready.strategy.ask() is None
        if arguments.fresh:
            forget_study(ready.study)
        if nothing_to_run or forecast.over == "no_signal":
            ready.strategy.recommend()  # Which says why.
        return forecast


def _forecast(ready: Prepared) -> Forecast:
    """Return what is left to pay; of a study that goes on, also whether anything is left to run at all."""
    forecast = dataclasses.replace(ready.strategy.forecast(), probe_seconds=ready.probe_s)
    if not ready.study.finished or ready.strategy.ask() is not None:
        return forecast
    over = ready.strategy.stopped_by if any(run.finite for run in ready.strategy.ledger) else "no_signal"
    nothing: dict[str, Any] = {"usual_reference_runs": None, "usual_seconds": None, "n_trials": 0, "over": over}
    nothing |= dict.fromkeys(("reference_runs", "seconds", "most_reference_runs", "most_seconds"), 0.0)
    return dataclasses.replace(forecast, **nothing)


def _check_model_path(arguments: SearchArguments) -> None:
    """Say at once, before anything is probed, that a model cannot be kept where it is asked to be."""
    if arguments.save_model is not None:
        check_model_path(arguments.save_model)


def _best_so_far(ready: Prepared) -> SearchResult | None:
    with contextlib.suppress(NoSignalError):
        return make_result(ready.study, ready.strategy, ready.probe, "interrupted")
    return None


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
    """Show a search below the cell of a notebook; elsewhere its forecast is all that is printed."""
    from .core.pictures import in_notebook
    from .report.notebook_progress import NotebookProgress

    if not in_notebook():
        yield _print_forecast
        return
    with NotebookProgress() as progress:
        yield progress


def _print_forecast(progress: Progress) -> None:
    if progress.kind == "forecast":
        from .report.progress import progress_line

        with contextlib.suppress(OSError):  # Nobody may be there to read it any more.
            print(progress_line(progress), file=sys.stderr)
