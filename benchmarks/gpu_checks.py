"""The claims that bstune makes of CUDA, each as a function that compares one with a card.

A check returns what it measured and what is wrong with it; with nothing wrong it has passed. Whatever it measures, it
looks at through `see`, which tells the truth unless the check is being broken on purpose.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bstune.tuner.memory.caching_allocator import ReservedPeak, replay, reserved_at
from bstune.tuner.memory.trace import DoesNotPairError, Trace, TraceModel, fitted
from bstune.tuner.probing.memory_fit import SizeTried
from bstune.tuner.probing.size_search import Bounds, Growth
from bstune.tuner.theory.step_time import fit_step_time, throughput_row
from gpu_cards import MIB, Card, Case, Model, NotRunError, Seen

TRACED = (5, 9)
FORETOLD = 32
LIVE_ERROR, RESERVED_ERROR = 0.001, 0.02
AGREEMENT = 0.9
LIGHTNING_STEPS = 3


class Eye:
    """What a check looks through: true, or spoiled on purpose."""

    def __init__(self, *, spoiled: bool = False) -> None:
        """Choose which."""
        self._spoiled = spoiled

    def __call__(self, value: Any) -> Any:
        """Return what is measured; spoiled: another number, the opposite, other words."""
        if not self._spoiled:
            return value
        if isinstance(value, bool):
            return not value
        return 1.5 * value + 1 if isinstance(value, (int, float)) else f"not {value}"


@dataclass
class Judged:
    """What a check measured, and what is wrong with it."""

    measured: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def expect(self, good: bool, text: str) -> None:
        """Note what is wrong unless it is good."""
        if not good:
            self.wrong.append(text)


Left = Callable[[], float]
"""Seconds that the whole run has left."""


def traces(card: Card, see: Eye, left_s: Left) -> Judged:
    """Traces at two small sizes pair, and predict max_memory_allocated at a third to 0.1 % (cudnn.benchmark off)."""
    judged = Judged()
    for benchmark in (False, True):
        for kind in card.kinds:
            name = f"{kind.name}{', cudnn.benchmark' if benchmark else ''}"
            row: dict[str, Any]
            try:
                model = _model(card, kind, benchmark=benchmark)
                foretold = reserved_at(model, FORETOLD).allocated_bytes
                found = see(card.run(kind, FORETOLD, benchmark=benchmark).allocated_bytes)
                row = {"foretold_bytes": foretold, "measured_bytes": found, "error": foretold / found - 1}
            except DoesNotPairError as error:
                row = {"error": None, "why": str(error)}
            judged.measured[name] = row
            if not benchmark:  # An algorithm that is chosen by trying says nothing of the workspace at another size.
                off = row["error"]
                judged.expect(
                    off is not None and abs(off) <= LIVE_ERROR, f"{name}: {row.get('why') or f'off by {off:.3%}'}"
                )
    return judged


def simulator(card: Card, see: Eye, left_s: Left) -> Judged:
    """The simulator reserves what the card does to 2 %, and agrees on failures and retries in 90 % of limited runs."""
    judged = Judged()
    agree: list[bool] = []
    for kind in card.kinds:
        for n in (16, card.large):
            free = card.run(kind, n, traced=True)
            events = _events(free)
            reserved = see(free.reserved_bytes)
            error = replay(*events).reserved_bytes / reserved - 1
            row: dict[str, Any] = {"reserved_bytes": reserved, "error": error, "limited": []}
            judged.measured[f"{kind.name}, {n}"] = row
            judged.expect(abs(error) <= RESERVED_ERROR, f"{kind.name} at {n}: reserved off by {error:.2%}")
            for share in (0.97, 0.9, 0.8):
                limit = int(share * free.reserved_bytes)
                told, seen = replay(*events, capacity_bytes=limit), card.run(kind, n, limit_bytes=limit)
                truth = [seen.outcome == "ok", seen.retries]
                row["limited"].append({"share": share, "simulator": [told.fits, told.retries], "card": truth})
                agree.append(
                    (told.fits, told.retries > 0) == (seen.outcome == "ok", seen.retries > 0)
                    or not (told.fits or truth[0])
                )
    judged.measured["agreement"] = agreement = sum(agree) / len(agree)
    judged.expect(agreement >= AGREEMENT, f"fit and retries agree in {agreement:.0%} of limited runs")
    return judged


def monotone(card: Card, see: Eye, left_s: Left) -> Judged:
    """Which sizes fit a limit without retries is predicted right for 90 % of the sizes around the boundary."""
    judged = Judged()
    for kind in [kind for kind in card.kinds if kind.name in ("cnn", "lstm")]:
        model = _model(card, kind)
        for limit in card.limits:
            sizes = _around_the_boundary(model, limit)
            told = [_clean(reserved_at(model, n, limit)) for n in sizes]
            truth = []
            for n in sizes:
                if left_s() < 30:
                    break
                seen = card.run(kind, n, limit_bytes=limit)
                truth.append(bool(see(seen.outcome == "ok" and not seen.retries)))
            if not truth:
                raise NotRunError("the time was over")
            agreement = sum(a == b for a, b in zip(told, truth, strict=False)) / len(truth)
            expandable = card.expandable(kind, sizes[: len(truth)], limit)
            row = {
                "sizes": sizes,
                "foretold": told,
                "card": truth,
                "expandable_segments": expandable,
                "agreement": agreement,
            }
            judged.measured[f"{kind.name}, {limit // MIB} MiB"] = row | {
                "monotone": {"card": _is_monotone(truth), "expandable": _is_monotone(expandable)}
            }
            judged.expect(
                agreement >= AGREEMENT, f"{kind.name} at {limit // MIB} MiB: agrees for {agreement:.0%} of sizes"
            )
    return judged


def fake(card: Card, see: Eye, left_s: Left) -> Judged:
    """A backward pass on fake tensors of the device works in a process whose context lives."""
    judged = Judged({"gradients": see(card.fake_backward())})
    judged.expect(judged.measured["gradients"] == 4, f"{judged.measured['gradients']} gradients, expected 4")
    return judged


def context(card: Card, see: Eye, left_s: Left) -> Judged:
    """A context takes 0.05 to 2 GiB of NVML's free memory; NVML and CUDA agree on free memory to 1 % of the total."""
    seen = card.context()
    judged = Judged(asdict(seen))
    taken, free = see(seen.context_bytes), see(seen.nvml_free_bytes)
    judged.expect(50 * MIB <= taken <= 2048 * MIB, f"the context takes {taken / MIB:.0f} MiB")
    apart = abs(free - seen.cuda_free_bytes) / seen.cuda_total_bytes
    judged.expect(apart <= 0.01, f"NVML and CUDA differ on free memory by {apart:.1%}")
    return judged


def retries(card: Card, see: Eye, left_s: Left) -> Judged:
    """A step in which the allocator has to retry is no faster than the same step without a limit."""
    judged = Judged()
    for kind in card.kinds:
        free = card.run(kind, card.large)
        for share in (0.98, 0.95, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7):
            tight = card.run(kind, card.large, limit_bytes=int(share * free.reserved_bytes))
            if tight.outcome == "ok" and tight.retries:
                ratio = tight.s_per_step / see(free.s_per_step)
                judged.measured[kind.name] = {"limit_share": share, "retries": tight.retries, "ratio": ratio}
                judged.expect(
                    ratio >= 0.97, f"{kind.name}: a step with {tight.retries} retries takes {ratio:.2f} times as long"
                )
                break
    if not judged.measured:
        raise NotRunError("no limit was found at which a step fits with retries")
    return judged


def search(card: Card, see: Eye, left_s: Left) -> Judged:
    """With traces: never too large, in the median no out-of-memory, at most a third of Lightning's steps."""
    judged = Judged()
    ratios, failures = [], []
    for case in card.cases:
        if left_s() < 60:
            judged.measured["left out"] = [*judged.measured.get("left out", []), _name(case)]
            continue
        rows = {
            "traces": _by_growth(card, case, traced=True),
            "secants": _by_growth(card, case, traced=False),
            "lightning": _lightning(card, case),
        }
        judged.measured[_name(case)] = rows
        answer = rows["traces"]["answer"]
        clean = answer is not None and _fits(card.run(case.kind, answer, limit_bytes=case.limit_bytes))
        judged.expect(bool(see(clean)), f"{_name(case)}: the answer {answer} does not fit without retries")
        ratios.append(rows["lightning"]["steps"] / rows["traces"]["steps"])
        failures.append(rows["traces"]["failures"])
    if not ratios:
        raise NotRunError("the time was over, or no emulated card is smaller than what is free")
    judged.measured |= {
        "median_ratio_of_steps": statistics.median(ratios),
        "median_failures": statistics.median(failures),
    }
    judged.expect(
        statistics.median(ratios) >= 3,
        f"Lightning's rule takes {statistics.median(ratios):.1f} times the steps in the median",
    )
    judged.expect(statistics.median(failures) == 0, f"{statistics.median(failures)} out-of-memory in the median")
    return judged


def timing(card: Card, see: Eye, left_s: Left) -> Judged:
    """CUDA events and the host's clock agree to 5 % on a block of steps, and a line fits the step times to 25 %."""
    judged, rows = Judged({"sizes": {}}), []
    for n in card.timed:
        event_s, wall_s = card.time_block(card.kinds[1], n)
        event_s = see(event_s)
        judged.measured["sizes"][n] = {"event_s": event_s, "wall_s": wall_s, "samples_per_s": n / event_s}
        judged.expect(abs(event_s / wall_s - 1) <= 0.05, f"at {n}: events {event_s:.4f} s, clock {wall_s:.4f} s")
        rows.append(throughput_row(n, [event_s]))
    line = fit_step_time(rows)
    assert line is not None
    worst = max(abs((line.a_s + line.c_s_per_sample * row.batch_size) / row.s_per_step - 1) for row in rows)
    knee = min(row.batch_size for row in rows if row.samples_per_s >= 0.95 * max(other.samples_per_s for other in rows))
    judged.measured |= {"line": asdict(line), "worst_error": worst, "knee": knee}
    judged.expect(worst <= 0.25, f"the line is off by {worst:.0%}")
    return judged


def errors(card: Card, see: Eye, left_s: Left) -> Judged:
    """What fails for lack of memory at the edge of the card is `oom`, and what destroys the context is `error`."""
    rows = card.errors()
    judged = Judged({"errors": [asdict(row) for row in rows]})
    judged.expect(bool(rows), "nothing failed on a full card")
    for row in rows:
        judged.expect(
            see(row.outcome) == row.expected,
            f"{row.where}: {row.kind}: {row.message[:80]!r} is taken for {row.outcome}",
        )
    return judged


Check = Callable[[Card, Eye, Left], Judged]
CHECKS: dict[str, Check] = {
    check.__name__: check for check in (context, traces, simulator, fake, errors, timing, retries, monotone, search)
}
"""By name, in the order in which they run: cheap ones first."""


# --- how they do it -------------------------------------------------------------------------------------------------


def _events(seen: Seen) -> tuple[list[int], list[int], list[int]]:
    if seen.trace is None:
        raise NotRunError(f"no trace: {seen.error or 'the history could not be read'}")
    return seen.trace.signs.tolist(), seen.trace.storages.tolist(), seen.trace.nbytes.tolist()


def _model(card: Card, kind: Model, *, benchmark: bool = False) -> TraceModel:
    card.run(
        kind, TRACED[0], benchmark=benchmark
    )  # Once without looking: the first use of a library makes its workspace.
    seen = [card.run(kind, n, traced=True, benchmark=benchmark) for n in TRACED]
    return TraceModel.fit([run.trace for run in seen if run.trace is not None])


def _clean(told: Any) -> bool:
    return bool(told.fits and not told.retries)


def _fits(seen: Seen) -> bool:
    return seen.outcome == "ok" and not seen.retries


def _around_the_boundary(model: TraceModel, limit_bytes: int) -> list[int]:
    """Return up to a dozen sizes from where the simulator's first failure lies, to past its last fit."""
    high = 2
    while _clean(reserved_at(model, high, limit_bytes)) and high < 1 << 16:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _clean(reserved_at(model, middle, limit_bytes)) else (low, middle)
    return sorted({max(1, round(low * (0.9 + 0.03 * i))) for i in range(12)})


def _is_monotone(fits: Sequence[bool]) -> bool:
    return list(fits) == sorted(fits, reverse=True)


def _name(case: Case) -> str:
    return f"{case.kind.name}, {case.limit_bytes // MIB} MiB"


def _by_growth(card: Card, case: Case, *, traced: bool) -> dict[str, Any]:
    """Search as the probe does, by traces or by secants alone."""
    growth = Growth(Bounds(1, case.cap), budget_bytes=case.limit_bytes)
    seen_traces: list[Trace | None] = []
    steps, sizes = 0, []
    while (n := growth.next_size()) is not None:
        wanted = traced and growth.predictor is None and len(seen_traces) < 3
        seen = card.run(case.kind, n, limit_bytes=case.limit_bytes, traced=wanted)
        if seen.outcome not in ("ok", "oom"):
            raise RuntimeError(f"{_name(case)} at {n}: {seen.error}")
        if wanted and seen.outcome == "ok":
            seen_traces.append(seen.trace)
            model, _ = fitted(seen_traces)
            growth.predictor = ReservedPeak(model, case.limit_bytes) if model else None
        growth.add(SizeTried(n, _fits(seen), seen.reserved_bytes if seen.outcome == "ok" else None, seen.outcome))
        sizes.append(n)
        steps += 2 if seen.outcome == "ok" else 1
    failures = sum(m.outcome == "oom" for m in growth.history)
    return {
        "answer": growth.answer.size,
        "proof": growth.answer.proof,
        "steps": steps,
        "failures": failures,
        "sizes": sizes,
    }


def _lightning(card: Card, case: Case) -> dict[str, Any]:
    """Search as Lightning's binsearch does (2.6, batch_size_scaling.py), rewritten: double from 2, then halve."""
    low, high, n, sizes = 0, None, 2, []
    steps = failures = 0
    while True:
        fits = card.run(case.kind, n, limit_bytes=case.limit_bytes).outcome == "ok"
        sizes.append(n)
        steps += LIGHTNING_STEPS if fits else 1
        failures += not fits
        low, high = (n, high) if fits else (low, n)
        if high is None and 2 * n > case.cap:
            break
        if high is not None and high - low <= 1:
            break
        n = 2 * n if high is None else (low + high) // 2
    return {"answer": low, "steps": steps, "failures": failures, "sizes": sizes}
