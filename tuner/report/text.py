"""Results as text for people; programs read `to_dict()`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..core.plain_text import one_line
from ..core.probe_results import Attempt, ProbeResult
from ..core.results import BatchAnswer, Candidate, LossEstimate, Recommendation, SearchResult, TrialRecord
from .paste import paste_lines
from .progress import trial_line
from .units import duration, gib, given_params, number, per_second, plain_rows

if TYPE_CHECKING:
    from ..core.probe_results import PlanResult
    from ..core.trials import Facts

_PROOFS = {
    "bracket": "the next size was run and failed",
    "model": "the memory line, proven on this run's own measurements, forbids the next size",
    "cap": "not bounded by memory",
    "noise": "the next size cannot be told from this one here",
}


def probe_text(probe: ProbeResult) -> str:
    """Return a probe as text: the answer, the evidence for it, and every attempt."""
    lines = [
        f"Micro-batches of up to {probe.micro_batch_size} samples fit on {one_line(probe.device.name)} (limited by "
        f"{probe.limited_by})",
        f"  proof:       {probe.proof}: {_PROOFS[probe.proof]}",
        f"  peak:        {gib(probe.peak_bytes)} of {gib(probe.budget_bytes)} allowed",
        f"  device:      {gib(probe.usable_bytes)} usable of {gib(probe.capacity_bytes)}{_threads(probe)}",
    ]
    if probe.eval_batch_size is not None:
        lines.append(f"  validation:  batches of {probe.eval_batch_size} samples")
    if probe.memory_line is not None:
        line = probe.memory_line
        lines.append(f"  memory:      {gib(line.fixed_bytes)} + {gib(line.bytes_per_sample)} a sample near the answer")
        if line.predicted_bytes is not None and line.relative_error is not None:
            measured = f"{gib(line.measured_bytes)} measured ({line.relative_error:+.2%})"
            lines.append(f"  prediction:  {gib(line.predicted_bytes)} before it ran, {measured}")
    if probe.memory_by_category is not None:
        parts = probe.memory_by_category.to_dict().items()
        known = [
            f"{name.removesuffix('_bytes').replace('_', ' ')} {gib(value)}"
            for name, value in parts
            if value is not None
        ]
        whole = " (on a CPU, Python and torch as well)" if probe.device.kind == "cpu" else ""
        lines.append(f"  made of:     {', '.join(known)}{whole}")
    if probe.throughput:
        rates = ", ".join(
            f"{per_second(row.samples_per_s).removesuffix(' samples/s')} at {row.batch_size}"
            for row in probe.throughput
        )
        lines.append(f"  samples/s:   {rates}")
    if probe.knee_batch_size is not None:
        saturation = probe.step_time_line and probe.step_time_line.saturation_batch
        half = "" if saturation is None else f"; half of the peak speed at {saturation:.0f}"
        lines.append(f"  knee:        {probe.knee_batch_size}: larger ones are hardly faster{half}")
    if probe.loader is not None:
        lines.append(
            f"  loader:      {probe.loader.wait_share:.0%} of a step; "
            f"{per_second(probe.loader.samples_per_s_without)} without it"
        )
    lines += [
        f"  export:      {one_line(name)}={one_line(value)}  (the answer is for this setting)"
        for name, value in probe.environment.items()
    ]
    again = ", a stored result whose size was run once more" if probe.cached else ""
    lines.append(f"  took:        {duration(probe.seconds)}{again}")
    lines += ["", f"{'size':>8}  {'outcome':<8} {'peak':>10} {'steps':>6} {'seconds':>8}  note"]
    return plain_rows([*lines, *map(_attempt_row, probe.attempts)])


def _threads(probe: ProbeResult) -> str:
    threads = probe.device.threads
    return "" if threads is None or probe.device.kind != "cpu" else f", {threads} thread{'' if threads == 1 else 's'}"


def _attempt_row(attempt: Attempt) -> str:
    note = " ".join(filter(None, [attempt.phase and f"in {attempt.phase}:", one_line(attempt.reason or "")]))
    took = f"{gib(attempt.peak_bytes):>10} {attempt.steps:>6} {attempt.seconds:>8.2f}"
    return f"{attempt.size:>8}  {attempt.outcome:<8} {took}  {note}".rstrip()


def plan_text(plan: PlanResult) -> str:
    """Return what is expected to fit devices that are not here, as a table, and how that is known."""
    lines = [
        f"{'device':<20} {'batch':>8} {'reserved':>10} {'left':>10} {'parameters':>11} {'gradients':>10} "
        f"{'optimizer':>10} {'activations':>12}  limited by"
    ]
    for outlook in plan.outlooks:
        parts = outlook.memory_by_category
        if outlook.micro_batch_size is None or parts is None:
            lines.append(f"{outlook.device:<20} nothing fits in {gib(outlook.budget_bytes)}")
            continue
        lines.append(
            f"{outlook.device:<20} {outlook.micro_batch_size:>8} {gib(outlook.reserved_bytes):>10} "
            f"{gib(outlook.free_bytes):>10} {gib(parts.parameters_bytes):>11} {gib(parts.gradients_bytes):>10} "
            f"{gib(parts.optimizer_state_bytes):>10} {gib(parts.activations_bytes):>12}  {outlook.limited_by}"
        )
    checked = (
        "no third size to check it by"
        if plan.residual is None
        else f"off by {plan.residual:.2%} at the size it was not fitted to"
    )
    lines += [
        "",
        f"Traced at {', '.join(map(str, plan.traced_sizes))} samples on {one_line(plan.traced_on.name)}; the replay "
        f"is {checked}.",
    ]
    return plain_rows([*lines, *(f"- {text}" for text in plan.rests_on)])


def search_text(result: SearchResult, facts: Facts | None = None) -> str:
    """Return a search as text; its last lines can be pasted into a script of the user's kind."""
    best = result.recommendation
    verified = "true" if best.verified else "false"
    lines = [
        f"verified: {verified}  global batch size {best.global_batch_size}, learning rate {best.learning_rate:.4g}",
        f"  reason:        {one_line(best.reason)}",
        f"  as trained:    micro-batch {best.micro_batch_size} x {best.accumulation_steps} accumulation steps x "
        f"{best.world_size} device",
        f"  validation:    {loss_text(best.val_loss)}",
    ]
    if best.params:
        lines.append(f"  parameters:    {given_params(best.params, ', ')}")
    if best.samples_per_s is not None:
        lines.append(f"  speed:         {per_second(best.samples_per_s)}, peak memory {gib(best.peak_bytes)}")
    if best.samples_to_target is not None:
        lines.append(
            f"  to target:     {duration(best.seconds_to_target)}, {best.samples_to_target:,.0f} samples to "
            f"{number(result.target)}"
        )
    lines += _beside(best)
    lines += _device_lines(result)
    lines.append(f"  limits:        {_limits(result)}")
    if result.batch_answer is not None and (said := batch_text(result.batch_answer)):
        lines.append(f"  critical:      {said}")
    if best.batch_interval:
        low, high = best.batch_interval[0], best.batch_interval[-1]
        said = (
            "no other batch size that was run" if low == high else f"batch sizes {low} to {high} cannot be told from it"
        )
        lines.append(f"  as good as:    {said}")
    if best.lr_rule is not None:
        lines.append(f"  rule:          double the batch, multiply the learning rate by {2**best.lr_rule.alpha:.2f}")
    lines += [f"  {label:<14} {_candidate(candidate)}" for label, candidate in _others(best)]
    spent = result.spent
    trained = f"{spent.reference_runs:.2f} reference runs, {len(result.records)} trials, {duration(spent.seconds)}"
    ended = f"ended by {one_line(result.stopped_by)}"
    if result.stopped_by == "interrupted":
        ended = "not finished"
    elif result.stopped_by == "converged":
        ended = "converged: no other run was worth its price"
    lines.append(f"  spent:         {trained}; {ended}")
    lines.append(f"  study:         {one_line(result.study)} in {one_line(result.storage)}")
    return plain_rows([*lines, "", *paste_lines(result, facts)])


def _beside(best: Recommendation) -> list[str]:
    """Return how the answer compares with the user's present setting and with batch 32, and what else it trades."""
    lines = []
    for each in best.compared:
        setting = f"batch {each.setting.global_batch_size}, lr {each.setting.learning_rate:.4g}"
        said = []
        if each.times_sooner is not None:
            factor = each.times_sooner if each.times_sooner >= 1 else 1 / each.times_sooner
            said.append(f"{factor:.3g} times {'sooner' if each.times_sooner >= 1 else 'later'}")
        if each.loss_ratio is not None:
            change = abs(each.loss_ratio - 1)
            said.append(
                "the same loss"
                if change < 0.005
                else f"loss {change:.1%} {'lower' if each.loss_ratio < 1 else 'higher'}"
            )
        lines.append(f"  against:       {each.name} ({setting}): {', '.join(said)}")
    if best.full_runs_to_best is not None and best.full_runs_to_best > 1.05:
        lines.append(
            f"  lowest loss:   about {best.full_runs_to_best:.2g} full runs of it reach the lowest loss expected of any"
        )
    return lines


def _device_lines(result: SearchResult) -> list[str]:
    """Return which kind of device the figures are for and those of the others; nothing where there is one kind."""
    lines: list[str] = []
    for each in result.recommendation.by_device:
        ran = [record for record in result.records if record.device == each.device]
        speed = "" if each.samples_per_s is None else f", {per_second(each.samples_per_s)}"
        target = "" if each.seconds_to_target is None else f", {duration(each.seconds_to_target)} to target"
        said = f"micro-batch {each.micro_batch_size} x {each.accumulation_steps} accumulation steps{speed}{target}"
        took = (
            f"{len(ran)} trial{'s' if len(ran) != 1 else ''}, {duration(sum(record.seconds or 0.0 for record in ran))}"
        )
        device = one_line(each.device)
        lines.append(f"  elsewhere:     {device}: {said} ({took})" if lines else f"  figures for:   {device} ({took})")
    return lines


def _others(best: Recommendation) -> list[tuple[str, Candidate]]:
    chosen = (best.global_batch_size, best.learning_rate)
    named = [
        ("fastest:", best.fastest),
        ("smallest:", best.smallest_within_tolerance),
        *((_told_apart(best, other), other) for other in best.alternatives[:3] if other.val_loss.mean is not None),
    ]
    seen = {chosen}
    others = []
    for label, candidate in named:
        if candidate is not None and (key := (candidate.global_batch_size, candidate.learning_rate)) not in seen:
            seen.add(key)
            others.append((label, candidate))
    return others


def _told_apart(best: Recommendation, other: Candidate) -> str:
    """Return whether a fresh run of another setting might end as low as the recommended one, as a label."""
    low, mean = other.val_loss.low, best.val_loss.mean
    return "also good:" if low is not None and mean is not None and low <= mean else "also run:"


def _candidate(candidate: Candidate) -> str:
    speed = "" if candidate.samples_per_s is None else f", {per_second(candidate.samples_per_s)}"
    note = f" ({one_line(candidate.note)})" if candidate.note else ""
    setting = f"batch {candidate.global_batch_size}, lr {candidate.learning_rate:.4g}"
    return f"{setting}: {loss_text(candidate.val_loss)}{speed}{note}"


def _limits(result: SearchResult) -> str:
    limits = result.limits
    more = " or more" if result.probe is not None and result.probe.limited_by != "memory" else ""
    memory = "not measured" if limits.memory is None else f"micro-batch {limits.memory}{more}"
    hardware = "not measured" if limits.hardware is None else f"half of the peak speed at {limits.hardware:.0f}"
    answer = result.batch_answer
    least = None if answer is None else answer.noise_scale_low
    unknown = "not measured" if least is None else f"critical batch at least {least:.0f}"
    noise = unknown if limits.noise is None else f"critical batch {limits.noise:.0f}"
    return f"memory {memory}; hardware {hardware}; gradient noise {noise}"


def batch_text(answer: BatchAnswer) -> str | None:
    """Return the critical batch size and on what evidence; None if unknown.

    Example:
        >>> batch_text(BatchAnswer("trials", 0.3, 4, b_crit=290.0, b_crit_low=200.0, b_crit_high=410.0))
        'batch 290 (200 to 410) by 4 batch sizes: there, samples to the target are twice their least'
    """
    if answer.source is None:
        low = answer.noise_scale_low
        return None if low is None else f"batch {low:.0f} at least: gradient noise dominates"
    rests_on = (
        f"{answer.n_batches} batch sizes" if answer.source == "trials" else "gradient noise, which tends to be low"
    )
    critical = _ranged(answer.b_crit, answer.b_crit_low, answer.b_crit_high)
    return f"batch {critical} by {rests_on}: there, samples to the target are twice their least"


def _ranged(value: float | None, low: float | None, high: float | None) -> str:
    middle = "without end" if value is None else f"{value:.0f}"
    if low is None:
        return middle
    return f"{middle} ({low:.0f} or more)" if high is None else f"{middle} ({low:.0f} to {high:.0f})"


def loss_text(loss: LossEstimate) -> str:
    """Return a loss with its uncertainty."""
    if loss.n_seeds == 0:
        return "no full run yet"
    spread = "" if loss.sd is None else f" ± {loss.sd:.2g}"
    seeds = f"{loss.n_seeds} seed{'s' if loss.n_seeds != 1 else ''}"
    interval = (
        ""
        if loss.low is None or loss.high is None
        else f"; a fresh run lands between {number(loss.low)} and {number(loss.high)} (90 %)"
    )
    return f"loss {number(loss.mean)}{spread} on {seeds}{interval}"


def trials_text(records: Sequence[TrialRecord]) -> str:
    """Return one line for each trial."""
    return "\n".join(trial_line(record) for record in records)
