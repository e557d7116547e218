"""What is said on stderr while bstune works, a line for what matters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.plain_text import one_line
from ..core.probe_results import Attempt
from ..core.progress import Progress
from ..core.specs import STEPS_AT_LEAST, Forecast
from .terminal import note
from .trials import trial_line
from .units import duration, gib, plain_row
from .wording import ended, tells_probe

if TYPE_CHECKING:
    from ..core.trials import Facts


class PlainProgress:
    """Prints one line to stderr for what matters."""

    facts: Facts | None = None

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def __call__(self, progress: Progress) -> None:
        """Take a step of a search."""
        self.facts = progress.facts or self.facts
        line = progress_line(progress)
        if line is not None:
            self.print(line)

    def print(self, line: str) -> None:
        """Print one line; when nobody can read it any more, the search matters more."""
        note(line)

    def tried(self, attempt: Attempt) -> None:
        """Print an attempt of a probe."""
        self.print(attempt_line(attempt))


def progress_line(progress: Progress) -> str | None:
    """Return one line for what has happened, or None where there is nothing to say."""
    if progress.kind == "study":
        return f"Study {one_line(progress.study)}: {one_line(progress.message)}"
    if progress.kind == "warning":
        return f"Warning: {one_line(progress.message)}"
    if progress.kind == "note":
        return one_line(progress.message)
    if progress.kind == "probe" and progress.message:
        return f"probe  on {one_line(progress.message)}"
    if progress.attempt is not None:
        return attempt_line(progress.attempt)
    if progress.forecast is not None:
        return forecast_line(progress.forecast)
    if progress.kind == "finish" and progress.trial is not None:
        return f"{trial_line(progress.trial)}  [{_used(progress)}]"
    return None


_MORE = {"budget": "; a larger --budget goes on", "n_trials": "; a larger --n-trials goes on"}


_SIZES_END = {
    "memory": "no more fit in memory",
    "data": "the data set has no more",
    "steps": f"a larger one makes under {STEPS_AT_LEAST} steps in a full run",
    "speed": "larger ones are hardly faster",
    "probe": "the probe tried no larger one",
}


def forecast_line(forecast: Forecast) -> str:
    """Return what a search is expected to cost."""
    if forecast.over is not None:
        more = _MORE.get(forecast.over, "")
        return f"Forecast: nothing is left to run: {ended(forecast.over)}{more}."
    batches, rates = forecast.batch_range, forecast.learning_rate_range
    took = (
        "the seconds are not known" if forecast.seconds is None else f"about {duration(forecast.seconds)} of training"
    )
    if forecast.usual_seconds is not None:
        low, high = map(duration, forecast.usual_seconds)
        took += f" ({f'{low} to' if forecast.usual_seconds[0] else 'at most'} {high})"
    if tells_probe(forecast.probe_seconds, forecast.seconds):
        took += f", after a probe of {duration(forecast.probe_seconds)}"
    said = f"as many trials as fit in {took}: how many, the first ones show"
    if forecast.n_trials is not None:
        trials = f"about {forecast.n_trials} trials" if forecast.n_trials != 1 else "about 1 trial"
        runs = f"{forecast.reference_runs:.3g} reference runs (full runs at batch {forecast.reference_batch})"
        said = f"{trials}, {runs}{_range(forecast)}, {took}{_most(forecast)}"
    sizes = f"batch sizes {batches[0]} to {batches[1]}" if batches[0] < batches[1] else f"batch size {batches[0]} only"
    sizes += "" if forecast.sizes_end_by is None else f" ({_SIZES_END[forecast.sizes_end_by]})"
    tried = f"learning rates {rates[0]:.3g} to {rates[1]:.3g}"
    tried = tried if rates[0] < rates[1] else f"learning rate {rates[0]:.3g} only"
    return f"Forecast: {said}; {sizes}, {tried}."


def _range(forecast: Forecast) -> str:
    """Return between what the runs end, where they are what is kept to."""
    if forecast.usual_reference_runs is None or forecast.usual_seconds is not None:
        return ""
    low, high = forecast.usual_reference_runs
    return f", {f'{low:.3g} to' if low else 'at most'} {high:.3g}"


def _most(forecast: Forecast) -> str:
    """Return what the budget allows, where that is more than is planned."""
    left, most, between = forecast.reference_runs, forecast.most_reference_runs, forecast.usual_reference_runs
    longest = left if between is None else between[1]
    if longest is None or most is None or most <= 1.01 * longest:
        return ""
    took = "" if forecast.most_seconds is None else f" ({duration(forecast.most_seconds)})"
    return f"; the budget allows {most:.3g} runs{took}"


def probe_line(budget_s: float | None) -> str:
    """Return what the probe of a command costs the user, before it begins."""
    unpaid = "the budget" if budget_s is None else f"the budget of {duration(budget_s)}"
    return (
        f"The probe starts the command for each size that it tries, and {unpaid} does not count that (a timeout does, "
        "and gives it half)."
    )


def _used(progress: Progress) -> str:
    """Return how much of the budget is used, in the unit in which the user gave it."""
    if progress.budget_s is not None:
        share = progress.spent / progress.budget if progress.budget > 0 else 1.0
        return f"{duration(share * progress.budget_s)} of {duration(progress.budget_s)}"
    return f"{progress.spent:.1f} of {progress.budget:.3g} reference runs"


_DIFFERS = {
    "data": "on other data",
    "epochs": "with other epochs",
    "code": "in other code",
    "name": "under another name",
}


def learned_line(study: str, batch_size: int, learning_rate: float, differs: str = "data") -> str:
    """Return where a new study begins, and why."""
    what = _DIFFERS.get(differs, "too")
    return (
        f"Study {one_line(study)} has this model {what}: the search begins at what it has found, "
        f"batch {batch_size} at a learning rate of {learning_rate:.3g} (--fresh-prior: as if nothing was known)."
    )


def attempt_line(attempt: Attempt) -> str:
    """Return one attempt of a probe."""
    why = "" if attempt.outcome == "ok" else f"  {attempt.phase or ''} {one_line(attempt.reason or '')}".rstrip()
    took = f"peak {gib(attempt.peak_bytes or None)}  {duration(attempt.seconds)}"
    return plain_row(f"probe  micro-batch {attempt.size:<6} {attempt.outcome:<6} {took}{why}")
