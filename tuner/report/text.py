"""Results as text for people; programs read `to_dict()`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..core.plain_text import one_line
from ..core.probe_results import Attempt, MemoryByCategory, ProbeResult
from ..core.results import SearchResult
from .answer import answer, frontier_table
from .details import details
from .paste import paste_lines
from .reasons import no_advice
from .trials import trials_table
from .units import duration, gib, given_params, limited_text, number, per_second
from .view import Column, View, labelled, laid_out, said, tabled

if TYPE_CHECKING:
    from rich.table import Table

    from ..core.probe_results import PlanResult
    from ..core.take_home import TrainResult
    from ..core.trials import Facts

SCREEN = 24
"""Lines that an answer should not exceed, with the prompt below it."""
_PROOFS = {
    "bracket": "the next size was run and failed",
    "model": "the memory line, proven on this run's own measurements, forbids the next size",
    "cap": "not bounded by memory",
    "noise": "the next size cannot be told from this one here",
}


def probe_text(probe: ProbeResult, view: View | None = None) -> str:
    """Return a probe as text: the answer, the evidence for it, and every attempt."""
    view = view or View()
    title = f"Micro-batches of up to {probe.micro_batch_size} samples fit on {one_line(probe.device.name, 200)}"
    rows = labelled([(label, said(text)) for label, text in _probe_rows(probe)], least=10)
    head = laid_out([said(f"{title} (limited by {limited_text(probe)})", style="bold"), rows], view)
    return f"{head}\n\n{laid_out([_attempts(probe.attempts, view)], view)}"


def _probe_rows(probe: ProbeResult) -> Iterator[tuple[str, str]]:
    yield "proof", f"{probe.proof}: {_PROOFS[probe.proof]}"
    yield "peak", f"{gib(probe.peak_bytes or None)} of {gib(probe.budget_bytes)} allowed"
    yield "device", f"{gib(probe.usable_bytes)} usable of {gib(probe.capacity_bytes)}{_threads(probe)}"
    if probe.eval_batch_size is not None:
        yield "validation", f"batches of {probe.eval_batch_size} samples"
    if probe.memory_line is not None:
        line = probe.memory_line
        yield "memory", f"{gib(line.fixed_bytes)} + {gib(line.bytes_per_sample)} a sample near the answer"
        if line.predicted_bytes is not None and line.relative_error is not None:
            measured = f"{gib(line.measured_bytes)} measured ({line.relative_error:+.2%})"
            yield "prediction", f"{gib(line.predicted_bytes)} before it ran, {measured}"
    if probe.memory_by_category is not None:
        parts = probe.memory_by_category.to_dict().items()
        known = [
            f"{name.removesuffix('_bytes').replace('_', ' ')} {gib(value)}"
            for name, value in parts
            if value is not None
        ]
        whole = " (on a CPU, Python and torch as well)" if probe.device.kind == "cpu" else ""
        yield "made of", f"{', '.join(known)}{whole}"
    yield from _speed_rows(probe)
    for name, value in probe.environment.items():
        yield "export", f"{one_line(name)}={one_line(value)}  (the answer is for this setting)"
    again = ", a stored result whose size was run once more" if probe.cached else ""
    yield "took", f"{duration(probe.seconds)}{again}"


def _speed_rows(probe: ProbeResult) -> Iterator[tuple[str, str]]:
    if probe.throughput:
        rates = ", ".join(
            f"{per_second(row.samples_per_s).removesuffix(' samples/s')} at {row.batch_size}"
            for row in probe.throughput
        )
        yield "samples/s", rates
    if probe.knee_batch_size is not None:
        saturation = probe.step_time_line and probe.step_time_line.saturation_batch
        half = "" if saturation is None else f"; half of the top speed at {saturation:.0f}"
        yield "knee", f"{knee_text(probe.knee_batch_size, [row.batch_size for row in probe.throughput])}{half}"
    if probe.loader is not None:
        without = per_second(probe.loader.samples_per_s_without)
        yield "loader", f"{probe.loader.wait_share:.0%} of a step; {without} without it"


def knee_text(knee: int, timed: Sequence[int]) -> str:
    """Return from which size on larger ones are hardly faster, if any larger was timed.

    Example:
        >>> knee_text(32, [8, 32, 64]), knee_text(32, [8, 32])
        ('32: larger ones are hardly faster', '32 or more: speed still grew up to the largest timed')
    """
    if knee < max(timed, default=knee + 1):
        return f"{knee}: larger ones are hardly faster"
    if len(timed) == 1:
        return f"{knee} is the only size that was timed"
    return f"{knee} or more: speed still grew up to the largest timed"


def _attempts(attempts: Sequence[Attempt], view: View) -> Table:
    notes = [" ".join(filter(None, [a.phase and f"in {a.phase}:", a.reason])) for a in attempts]
    for i, attempt in enumerate(attempts):
        if not notes[i] and any(earlier.size == attempt.size for earlier in attempts[:i]):
            notes[i] = "measured once more"
    return tabled(
        [
            Column("size", [str(a.size) for a in attempts], 0),
            Column("outcome", [a.outcome for a in attempts], 1, "left"),
            Column("peak", [gib(a.peak_bytes or None) for a in attempts], 2),
            Column("steps", [str(a.steps) for a in attempts], 4),
            Column("seconds", [f"{a.seconds:.2f}" for a in attempts], 3),
            Column("note" if any(notes) else "", [said(text, 300).plain for text in notes], 5, "left", wraps=True),
        ],
        view,
    )


def _threads(probe: ProbeResult) -> str:
    threads = probe.device.threads
    return "" if threads is None or probe.device.kind != "cpu" else f", {threads} thread{'' if threads == 1 else 's'}"


def plan_text(plan: PlanResult, view: View | None = None) -> str:
    """Return what is expected to fit devices that are not here, as a table, and how that is known."""
    view = view or View()
    checked = (
        "has no third size to be checked by"
        if plan.residual is None
        else f"is off by {plan.residual:.2%} at the size it was not fitted to"
    )
    sizes = ", ".join(map(str, plan.traced_sizes))
    traced = said(f"Traced at sizes {sizes} on {one_line(plan.traced_on.name)}; the replay {checked}.")
    notes = labelled([("-", said(text)) for text in plan.rests_on], least=1)
    return "\n\n".join(laid_out([part], view) for part in (_outlooks(plan, view), traced, notes))


def _outlooks(plan: PlanResult, view: View) -> Table:
    rows = plan.outlooks
    parts = [row.memory_by_category or MemoryByCategory(None, None, None, None, None) for row in rows]
    columns = [
        Column("device", [said(row.device, 24).plain for row in rows], 0, "left"),
        Column("batch", ["none" if row.micro_batch_size is None else str(row.micro_batch_size) for row in rows], 0),
        Column("needs", [gib(row.reserved_bytes) for row in rows], 1),
        Column("left", [gib(row.free_bytes) for row in rows], 2),
        Column("limited by", [row.limited_by for row in rows], 3, "left"),
        Column("activations", [gib(part.activations_bytes) for part in parts], 4),
        Column("parameters", [gib(part.parameters_bytes) for part in parts], 5),
        Column("gradients", [gib(part.gradients_bytes) for part in parts], 6),
        Column("optimizer", [gib(part.optimizer_state_bytes) for part in parts], 7),
    ]
    return tabled(columns, view)


def search_text(
    result: SearchResult, facts: Facts | None = None, *, view: View | None = None, verbose: bool = False
) -> str:
    """Return a search as text, the answer first; its last lines can be pasted into a script of the user's kind.

    Args:
        result: What was found.
        facts: Of the objective; they decide which lines are to be pasted.
        view: Width and colours; by default those of a pipe. With colours the text is for a terminal as it is.
        verbose: All trials, all limits and what was not tested as well.
    """
    view = view or View()
    head = laid_out(answer(result, facts, view, verbose=verbose), view)
    paste = [] if no_advice(result.recommendation.warnings) else paste_lines(result, facts, width=view.width)
    most = max(2, SCREEN - 6 - head.count("\n") - len(paste))
    parts = [head, laid_out(frontier_table(result, view, most=most, verbose=verbose), view)]
    if verbose:
        parts += [laid_out(part, view) for part in (details(result, facts), trials_table(result.records, view))]
    return "\n\n".join([part for part in parts if part] + ([] if not paste else ["\n".join(paste)]))


def train_text(result: TrainResult) -> str:
    """Return what a training run has come to, as text."""
    low, high = result.expected_low, result.expected_high
    expected = "" if low is None or high is None else f"; the study expected {number(low)} to {number(high)} (90 %)"
    batch, rate = result.setting.global_batch_size, result.setting.learning_rate
    params = "".join(f", {given_params({name: value}, '')}" for name, value in result.setting.params.items())
    split = f"micro-batch {result.micro_batch_size} x {result.accumulation_steps} accumulation step"
    split += "s" if result.accumulation_steps != 1 else ""
    if (ranks := batch // (result.micro_batch_size * result.accumulation_steps)) > 1:
        split += f" x {ranks} ranks"
    return "\n".join(
        [
            f"Saved {one_line(result.path)}: validation loss {number(result.val_loss)}{expected}",
            f"  trained:  batch {batch} ({split}), lr {rate:.3g}{params}",
            f"  run:      {result.samples:,} samples in {duration(result.seconds)}, seed {result.seed}",
            f"  study:    {one_line(result.study)}",
            f'  load it:  model.load_state_dict(torch.load({result.path!r}, weights_only=True)["model"])',
        ]
    )
