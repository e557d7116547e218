"""Decisions in words: why a setting is recommended, what to be careful of, and what its loss was measured on."""

from __future__ import annotations

from collections.abc import Iterable

from ..core.probe_results import Loader, ProbeResult
from ..core.remarks import BatchLimits, Caution, CautionCode, NoteCode, Reason, ReasonCode, TargetSource
from .units import duration

IN_MEMORY_S = 50e-6
"""Seconds of waiting for a sample below which it is not read from a disk, nor worked on."""
_REASONS: dict[ReasonCode, str] = {
    "lowest": "is expected to end a full run lowest of {r.n_tried} settings tried",
    "soonest": "is expected to reach the target soonest of {r.n_tried} settings tried",
    "largest": "is the largest batch without measurable loss of {r.n_tried} settings tried",
    "fastest": "is the fastest within {r.tolerance:.0%} of the lowest validation loss, of {r.n_tried} settings tried",
    "unconfirmed": "is expected to be best by the trials so far; it was not confirmed",
    "only": "is the only setting that was tried",
}

_CAUTIONS: dict[CautionCode, str] = {
    "confirmation_off": "Not verified: confirmation is switched off (confirm=0).",
    "budget_below_2": (
        "Not verified: a budget of {budget} leaves no full run on a fresh seed; a budget of {needed} would."
    ),
    "no_trial_left": "Not verified yet: n_trials={n_trials} left no full run on a fresh seed; n_trials={needed} would.",
    "still_to_come": "Not verified yet: the full run on a fresh seed is still to come.",
    "cut_off": "Not verified yet: the full run on a fresh seed was cut off; a budget of {needed} would give one.",
    "no_full_run_left": "Not verified yet: no full run on a fresh seed was left; a budget of {needed} would give one.",
    "confirmations_diverged": (
        "Not verified: the loss was not finite in {n} of {of} full runs on fresh seeds. Look for values in the data "
        "that are not finite, or search smaller learning rates."
    ),
    "confirmations_failed": (
        "Not verified: all {n} full runs on fresh seeds failed by an error of the code that trains. Mend that first: a "
        "larger budget does not."
    ),
    "none_went_further": (
        "Every run past {reach:,} samples diverged: the loss was not finite in {n} runs, {fresh} of them on fresh "
        "seeds. Look for values in the data that are not finite, or search smaller learning rates."
    ),
    "score_like": (
        "What is reported as the loss rose in {n} runs (in one from {first:.4g} to {last:.4g}), and fell in none by "
        "more than {percent:g} %: is it a score, such as accuracy? The lowest was taken for the best. Of a score "
        "report 1 - score, or -score. Of a loss it says that training makes it worse: try smaller learning rates, and "
        "look at the data."
    ),
    "trials_failed": (
        "{n} of {of} trials failed by an error of the code that trains, the last of them trial {last}: their settings "
        "count as bad. `bstune show --verbose` gives the reason of each."
    ),
    "one_loss": (
        "All trials reported the same loss, {loss:.4g}, so nothing tells one setting from another. "
        "Does the loss that is reported depend on the model?"
    ),
    "rate_ignored": (
        "Losses are the same at {rates} learning rates from {low:.3g} to {high:.3g}, so nothing tells one rate from "
        "another. Does the training use the learning rate that it is given (trial.learning_rate)?"
    ),
    "nothing_learned": (
        "Nothing was learned: no run ended more than {percent:g} % below the first losses that were seen "
        "({first:.4g}), and none fell on its way. The longest run had {longest:,.0f} samples: if yours begins to learn "
        "later, as many with BatchNorm do (see precise_batch_norm), give a larger budget. Losses are compared in per "
        "cent: subtract a large constant part, if yours has one. Else look at data, labels and loss, or search other "
        "learning rates."
    ),
    "target_not_reached": "No full run of this setting has reached the target or come near, so it is not known how "
    "soon it would.",
    "diverged": "It diverged on a fresh seed, and nothing else that was run is better. Look for values in the data "
    "that are not finite, or search smaller learning rates.",
    "rate_at_edge": "The learning rate {rate:.3g} is at the edge of its range {low:.3g} to {high:.3g}; "
    "a wider range may do better.",
    "one_batch": (
        "Only batch {batch} was tried, of {low} to {high}, so nothing is known of others. A larger budget may try them."
    ),
    "one_rate": "Only the learning rate {rate:.3g} was tried at batch {batch}: another may be better.",
    "highest_rate": "{rate:.3g} is the highest learning rate tried at batch {batch}: a higher one may be better.",
    "lowest_rate": "{rate:.3g} is the lowest learning rate tried at batch {batch}: a lower one may be better.",
    "no_accumulation": (
        "Batches end at the micro-batch of {batch} that fits: the command has no place for accumulation. With a flag "
        "for it, {{accumulation_steps}} lets larger ones in."
    ),
    "largest_by_steps": (
        "Batch {batch} is the largest that was searched, since a larger one makes under {steps} steps in a full run of "
        "{samples:,.0f} samples. Name larger ones in the space, or train for more epochs."
    ),
    "starts_long": (
        "A run takes {start:,.0f} s until its first step, and a full run at batch {batch} no longer than that to "
        "train, so most of the budget goes to starting. Leave what prepares so long out of trials: data that could be "
        "loaded once, torch.compile."
    ),
    "took_longer": (
        "Full runs really took {times:.2g} times as long as their step times say: the machine was busy, or something "
        "besides steps takes time. The order of settings goes by step times."
    ),
    "took_less": (
        "Full runs really took {times:.2g} times as long as their step times say: the machine was busy while these "
        "were measured. The order of settings goes by step times."
    ),
}

_TELLS_NOTHING = tuple(_CAUTIONS[code].partition("{")[0] for code in ("one_loss", "rate_ignored", "nothing_learned"))
_NO_ADVICE = (*_TELLS_NOTHING, *(_CAUTIONS[code].partition("{")[0] for code in ("none_went_further", "diverged")))
PAST_THE_END = "past the end of a full run"
"""Of seconds that no run has taken: the curve is taken to go on as it does near its end."""
_LIMITS = "; memory"
"""Between the reason of a recommendation and what limits its batch."""

_NOTES: dict[NoteCode, str] = {
    "diverged": "diverged on a fresh seed",
    "selected_by": "not confirmed: the loss that it was selected by",
    "not_to_the_end": "not run to the end",
}


def reason_text(reason: Reason) -> str:
    """Return why a setting is recommended, in one sentence."""
    yours = " (your present setting)" if reason.is_baseline else ""
    name = f"Batch {reason.global_batch_size} at learning rate {reason.learning_rate:.3g}{yours}"
    said = f"{name} {_REASONS[reason.code].format(r=reason)}"
    if reason.code == "soonest" and reason.target is not None:
        said = said.replace("the target", f"the target loss of {reason.target:.4g}")
        if reason.seconds_to_target is None:
            said = said.replace("to reach", "to come nearest in its time to").replace(" soonest of", " of")
        else:
            seconds = duration(reason.seconds_to_target)
            said += f", after about {seconds}, {PAST_THE_END}" if reason.past_end else f", after {seconds}"
    if reason.n_tied:
        with_whom = "the other" if reason.n_compared == 2 else f"{reason.n_tied} of them"
        said += f", a tie with {with_whom} within the noise of seeds"
    return (
        f"{said}." if reason.limits is None else f"{said}{_LIMITS}{limits_text(reason.limits).removeprefix('memory')}."
    )


def without_limits(reason: str, global_batch_size: int, learning_rate: float) -> str:
    """Return the reason of a recommendation for where the setting and what limits it are said already.

    Example:
        >>> without_limits("Batch 64 at learning rate 0.03 is the only setting that was tried.", 64, 0.03)
        'the only setting that was tried'
        >>> without_limits("Batch 8 at learning rate 0.1 is the largest; memory allows 9, ...", 8, 0.1)
        'the largest'
    """
    said = reason.partition(_LIMITS)[0].removeprefix(f"Batch {global_batch_size} at learning rate {learning_rate:.3g}")
    return (
        said.strip()
        .removesuffix(".")
        .replace("(your present setting) is", "your present setting, and")
        .removeprefix("is ")
    )


def no_advice(warnings: Iterable[str]) -> str | None:
    """Return the first of these warnings that says that nothing should be trained with, if there is one."""
    return next((said for said in warnings if said.startswith(_NO_ADVICE)), None)


def tells_nothing(warnings: Iterable[str]) -> bool:
    """Whether one of these warnings says that the losses tell no setting from another: then none is the best."""
    return any(said.startswith(_TELLS_NOTHING) for said in warnings)


def limits_text(limits: BatchLimits) -> str:
    """Return what memory, hardware and gradient noise each say.

    Example:
        >>> limits_text(BatchLimits(512, False, 96.2, 290.4, 150.0, 600.0))
        'memory allows 512, hardware reaches half its speed at 96, gradient noise has its critical batch at 290'
    """
    speed = (
        "hardware never saturates"
        if limits.hardware is None
        else f"hardware reaches half its speed at {limits.hardware:.0f}"
    )
    noise = f"gradient noise has its critical batch at {limits.noise:.0f}"
    if limits.noise_high is None and limits.noise_low is not None:
        noise += f" ({limits.noise_low:.0f} or more)"
    allowed = f"{limits.memory} or more" if limits.more_memory else str(limits.memory)
    return f"memory allows {allowed}, {speed}, {noise}"


def caution_text(caution: Caution) -> str:
    """Return a warning as a sentence that says what to do."""
    return _CAUTIONS[caution.code].format(**caution.figures)


_SOURCES: dict[TargetSource, str] = {
    "yours": "yours",
    "present": "what your present setting reaches",
    "lowest": "the lowest loss expected of any setting + {tolerance:.2g} %",
}


def target_source_text(source: TargetSource, tolerance: float) -> str:
    """Return where a target is from.

    Example:
        >>> target_source_text("lowest", 0.05)
        'the lowest loss expected of any setting + 5 %'
    """
    return _SOURCES[source].format(tolerance=100 * tolerance)


def candidate_note(code: NoteCode | None, *, is_baseline: bool) -> str:
    """Return the note on a candidate; nothing where it was confirmed and is not the user's own."""
    yours = "your present setting" if is_baseline else ""
    return "; ".join(filter(None, [yours, "" if code is None else _NOTES[code]]))


def loader_advice(loader: Loader, sample_size: float = 1.0) -> str:
    """Return what to do where training waits for its batches; a sample counts so many, where sizes are tokens.

    Example:
        >>> loader_advice(Loader(0.6, 1000.0, bound=True))
        'Raise num_workers, or make the data set cheaper to read, before you change the batch size.'
        >>> loader_advice(Loader(0.6, 100_000.0, bound=True))[:55]
        'A sample takes 15 us: it is in memory already, and work'
    """
    each_s = loader.wait_s_per_sample * sample_size
    if each_s > IN_MEMORY_S:
        return "Raise num_workers, or make the data set cheaper to read, before you change the batch size."
    return (
        f"A sample takes {1e6 * each_s:.0f} us: it is in memory already, and worker processes would gain little. Take "
        "whole batches from the data set: give it __getitems__(indices), which returns a batch of tensors, and "
        "collate_fn=lambda batch: batch."
    )


def not_tried(probe: ProbeResult, batch: int) -> str | None:
    """Return that a batch on one device may fit in fewer parts, where a probe has tried no larger ones; else None."""
    if not probe.cut_short or batch <= probe.micro_batch_size:
        return None
    return (
        f"Larger micro-batches than {probe.micro_batch_size} were not tried, and may fit: run bstune probe, and give "
        "what it finds as micro_max."
    )
