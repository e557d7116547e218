"""Measurements on the model itself: what each costs, and making those that are asked for and affordable.

Each group of looks has a fresh process to itself: one that fails or hangs leaves the others.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from ...objectives.look_at_optimizers import KINDS, TRIED
from ...objectives.look_at_sizes import CROSSED_RUNS, SEEDS
from ...objectives.look_at_training import ROUNDS, early_steps
from ..core.errors import BstuneError, NothingFitsError, in_words
from ..core.examination import Examined, ExamineSpec
from ..core.trials import Facts
from ..strategy.cost import Cost
from ..strategy.rungs import Rungs
from ..theory.scaling import SLOPE_PRIOR
from ..workers import messages
from ..workers.fork_server import Host
from ..workers.template import Died
from .known import Known, usual_rate

POINTS = (0.02, 0.08, 0.16, 0.25)
"""Shares of a full run at which a model is looked at: four, so that what is found has an error."""
ALONG = ("gradients", "agreement", "layers", "strata", "batch_norm", "running_statistics", "curvature")
FULL_BATCH_MOST = 4096
"""Samples of a data set up to which it may be one batch."""
SHARE, SHORT_SHARE, CROSSED_SHARE = 0.25, 0.125, 0.0625
"""Of a full run, which a training takes: one that is compared, one of several kinds, and one of a dozen."""
TIMES_APART = 8
"""Two batch sizes that are compared are so many times apart."""
LEAST_STEPS = 20
"""Of the larger of them."""
GHOSTS = (32, 16)
"""Most and fewest samples in a part of a micro-batch that BatchNorm is to see alone."""
PATIENCE = 20.0
"""So many times as long as foreseen, and five minutes more, a process may take."""
LEAST_S = 300.0
LOOKS_AT = {
    "gradients": (8, 700),
    "agreement": (256, 1024),
    "layers": (256, 256),
    "strata": (8, 1536),
    "batch_norm": (32, 2048),
    "running_statistics": (64, 2048),
    "curvature": (256, 15_000),
    "side_by_side": (256, 20_000),
}
"""By look: the size of its batches and the samples of training that take as long; about right, for a forecast."""
MOST_AT_ONCE = 256
SIZES = (4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class LookTask:
    """One process: looks that share a run, its price and what it is to do."""

    measurements: tuple[str, ...]
    spec: ExamineSpec
    reference_runs: float
    seconds: float
    """That it is expected to take."""


class Tasks:
    """What each measurement would take, by what is known of the model."""

    def __init__(self, known: Known, seed: int) -> None:
        """Plan with the setting that is recommended, else with a usual one."""
        assert known.facts is not None
        self._known, self._seed = known, seed
        self._facts: Facts = known.facts
        self._cost = Cost.of(known.facts, known.probe)
        setting = known.setting
        self._rate, self._params = setting.learning_rate, dict(setting.params)
        self._micro, self._accumulation = own_split(known)
        self._batch = self._micro * self._accumulation
        # Second copies of gradients, and graphs of weights moved aside, need room beside a micro-batch.
        fits = 0 if known.probe is None else known.probe.micro_batch_size // 2
        self._at_once = max(self._micro, min(MOST_AT_ONCE, fits))
        self.reference_s = reference_run_s(known)

    def of(self, measurement: str) -> list[LookTask]:
        """Return the processes of a measurement."""
        makers = {
            "structure": self._structure,
            "step_times": self._step_times,
            "early_losses": self._early,
            "grown_batch": self._grown,
            "at_full_batch": self._full,
            "ghost_batches": self._ghosts,
            "crossed_pairs": self._crossed,
            "side_by_side": self._beside,
            "two_optimizers": self._two_optimizers,
        }
        return makers.get(measurement, self._along)(measurement)

    def _task(self, measurement: str, samples: float, *, batch: int | None = None, **changed: object) -> LookTask:
        seconds = self._cost.seconds(batch or self._batch, samples)
        full = self._facts.full_run_samples
        runs = samples / full if seconds is None or not self.reference_s else seconds / self.reference_s
        spec = ExamineSpec(
            measurements=(measurement,),
            global_batch_size=self._batch,
            micro_batch_size=self._micro,
            accumulation_steps=self._accumulation,
            learning_rate=self._rate,
            seed=self._seed,
            eval_batch_size=(self._known.probe and self._known.probe.eval_batch_size) or self._micro,
            full_samples=Rungs.of(self._facts).end_of(self._batch),
            params=self._params,
            look_batch_size=self._at_once,
        )
        return LookTask((measurement,), replace(spec, **changed), runs, seconds or 0.0)  # type: ignore[arg-type]

    def _structure(self, measurement: str) -> list[LookTask]:
        return [self._task(measurement, 0)]

    def _along(self, measurement: str) -> list[LookTask]:
        full = self._facts.full_run_samples
        points = sorted({max(self._batch, math.floor(full * share / self._batch) * self._batch) for share in POINTS})
        sizes = tuple(n for n in SIZES if n <= self._at_once)
        batch, samples = LOOKS_AT[measurement]
        look_s = self._cost.seconds(min(batch, self._at_once), samples) or 0.0
        task = self._task(measurement, points[-1], points=tuple(points), sizes=sizes)
        return [replace(task, seconds=task.seconds + len(points) * look_s)]

    def _step_times(self, measurement: str) -> list[LookTask]:
        sizes = odd_sizes(self._known)
        seconds = sum(self._cost.step_s(n) or 0.0 for n in sizes) * (ROUNDS + 3)
        runs = 0.0 if not self.reference_s else seconds / self.reference_s
        task = self._task(measurement, 0, sizes=sizes, micro_batch_size=self._micro, accumulation_steps=1)
        return [replace(task, seconds=seconds, reference_runs=runs)]

    def _early(self, measurement: str) -> list[LookTask]:
        steps = early_steps(self._facts.full_run_samples, self._batch)
        return [self._task(measurement, steps * self._batch, seed=self._seed + i, points=(0,)) for i in range(SEEDS)]

    def _grown(self, measurement: str) -> list[LookTask]:
        total = self._facts.full_run_samples * SHARE
        samples = math.ceil(total / self._batch) * self._batch
        return [self._task(measurement, 2 * samples, sizes=(samples,), seed=self._seed + i) for i in range(SEEDS)]

    def _full(self, measurement: str) -> list[LookTask]:
        n = self._facts.n_samples
        fits = n if self._known.probe is None else min(n, self._known.probe.micro_batch_size)
        whole = n // fits * fits
        steps = max(1, math.floor(self._facts.full_run_samples * SHORT_SHARE / self._batch))
        own_s, whole_s = self._cost.step_s(self._batch), self._cost.step_s(whole, (fits, whole // fits))
        whole_steps = steps if own_s is None or whole_s is None else max(1, round(steps * own_s / whole_s))
        samples = 4 * steps * self._batch  # Four trainings of as many seconds.
        return [self._task(measurement, samples, sizes=(whole, fits, whole_steps, steps))]

    def _ghosts(self, measurement: str) -> list[LookTask]:
        part = ghost_size(self._micro)
        if part is None:
            return []
        samples = math.ceil(self._facts.full_run_samples * SHORT_SHARE / self._batch) * self._batch
        trainings = ((self._batch, None), (self._batch, (part, self._batch // part)))
        tasks = [self._task(measurement, 0, sizes=(samples, part), seed=self._seed + i) for i in range(SEEDS)]
        return [self._priced(task, trainings, samples) for task in tasks]

    def _crossed(self, measurement: str) -> list[LookTask]:
        return self._two_sizes(measurement, CROSSED_SHARE, CROSSED_RUNS, seeds=1)

    def _beside(self, measurement: str) -> list[LookTask]:
        batch, samples = LOOKS_AT[measurement]
        look_s = self._cost.seconds(min(batch, self._at_once), samples) or 0.0
        tasks = self._two_sizes(measurement, SHARE, 1, seeds=SEEDS)
        return [replace(task, seconds=task.seconds + look_s) for task in tasks]

    def _two_optimizers(self, measurement: str) -> list[LookTask]:
        full = self._facts.full_run_samples
        short, long = (math.ceil(full * share / self._batch) * self._batch for share in (CROSSED_SHARE, SHORT_SHARE))
        # The rate that the model is looked at with is one of its own optimizer's.
        own = self._facts.optimizer_family
        rates = tuple(self._rate if kind == own else usual_rate(kind, self._batch) for kind in KINDS)
        task = self._task(measurement, 0, sizes=(short, long), rates=rates, points=(0,))
        trials = self._priced(task, [(self._batch, None)] * 2 * TRIED, short)
        runs = self._priced(task, [(self._batch, None)] * 2 * SEEDS, long)
        seconds, price = trials.seconds + runs.seconds, trials.reference_runs + runs.reference_runs
        return [replace(task, seconds=seconds, reference_runs=price)]

    def _two_sizes(self, measurement: str, share: float, n_runs: int, *, seeds: int) -> list[LookTask]:
        """Return trainings of two batch sizes, at rates by the slope that a search has learned, or by a usual one."""
        pair = two_sizes(self._known, share)
        if pair is None:
            return []
        slope = SLOPE_PRIOR[self._facts.optimizer_family][0]
        rule = None if self._known.best is None else self._known.best.lr_rule
        if n_runs == 1 and rule is not None:  # Rates that are to be crossed stay as far apart as the claim has them.
            slope = min(max(rule.alpha, 0.0), 1.0)
        samples = math.ceil(self._facts.full_run_samples * share / pair[1]) * pair[1]
        sizes = (samples, *(size for batch in pair for size in (batch, self._cost.split(batch)[0])))
        rates = tuple(self._rate * (batch / self._batch) ** slope for batch in pair)
        tasks = [
            self._task(measurement, 0, sizes=sizes, rates=rates, seed=self._seed + i, points=(0,)) for i in range(seeds)
        ]
        return [self._priced(task, [(batch, None) for batch in pair] * n_runs, samples) for task in tasks]

    def _priced(
        self, task: LookTask, trainings: Iterable[tuple[int, tuple[int, int] | None]], samples: int
    ) -> LookTask:
        """Return a task with the price of trainings of these batches, each split as stated, and validated once."""
        trainings = list(trainings)
        each = [self._cost.seconds(batch, samples, split, validations=1) for batch, split in trainings]
        seconds = math.fsum(second or 0.0 for second in each)
        runs = len(trainings) * samples / self._facts.full_run_samples
        if self.reference_s and None not in each:
            runs = seconds / self.reference_s
        return replace(task, seconds=seconds, reference_runs=runs)


def two_sizes(known: Known, share: float) -> tuple[int, int] | None:
    """Return a small and a large batch size around the one that is looked at; None where a run is too short for them.

    The large one makes enough steps in that share of a full run.
    """
    assert known.facts is not None
    most = min(known.facts.n_samples, int(known.facts.full_run_samples * share / LEAST_STEPS))
    small = max(2, min(4 * known.batch, most) // TIMES_APART)
    return (small, TIMES_APART * small) if TIMES_APART * small <= most else None


def own_split(known: Known) -> tuple[int, int]:
    """Return the micro-batch size and the accumulation steps of the setting that is looked at."""
    assert known.facts is not None
    batch = min(known.setting.global_batch_size, max(1, int(known.facts.full_run_samples)))
    return Cost.of(known.facts, known.probe).split(batch)


def ghost_size(micro_batch: int) -> int | None:
    """Return the samples of the parts into which a micro-batch can be cut for BatchNorm; None where it is none larger.

    Where it is run in several micro-batches anyway, BatchNorm has never seen more of a batch than one of them.

    Example:
        >>> ghost_size(128), ghost_size(48), ghost_size(32), ghost_size(37)
        (32, 24, None, None)
    """
    most, least = GHOSTS
    if micro_batch <= most:
        return None
    return next((size for size in range(most, least - 1, -1) if micro_batch % size == 0), None)


def reference_run_s(known: Known) -> float | None:
    """Return the seconds of a full run at the smallest power of two of half the peak speed; None if not known."""
    assert known.facts is not None
    cost = Cost.of(known.facts, known.probe)
    half = None if cost.line is None else cost.line.saturation_batch
    most = max(1, min(known.facts.n_samples, int(known.facts.full_run_samples)))
    batch = min(most, 4 if half is None else 2 ** max(2, math.ceil(math.log2(max(half, 1.0)))))
    return cost.full_run_s(batch)


def odd_sizes(known: Known) -> tuple[int, ...]:
    """Return a power of two, half as much again, and the neighbours of both; none where they do not fit."""
    most = known.batch if known.probe is None else known.probe.micro_batch_size
    middle = max(16, min(256, 2 ** round(math.log2(max(known.batch, 1)))))
    while middle > 16 and 3 * middle // 2 + 1 > most:
        middle //= 2
    sizes = [n for centre in (middle, 3 * middle // 2) for n in (centre - 1, centre, centre + 1)]
    return tuple(sizes) if sizes[-1] <= most else ()


def cost_of(measurement: str, known: Known) -> float | None:
    """Return the seconds that a measurement is expected to take; None where no step time is known."""
    if known.facts is None or not Cost.of(known.facts, known.probe).known:
        return None
    return sum(task.seconds for task in Tasks(known, 0).of(measurement))


def foreseen(wanted: Iterable[str], known: Known, budget: float) -> tuple[float, float, tuple[str, ...]]:
    """Return the seconds and reference runs of measurements, and those that a budget leaves out; nothing is run."""
    tasks = Tasks(known, 0)
    seconds, runs = 0.0, 0.0
    left_out: list[str] = []
    for names, group in _grouped({name: tasks.of(name) for name in wanted}):
        price = sum(task.reference_runs for task in group)
        if runs + price > budget:
            left_out += names
            continue
        seconds, runs = seconds + sum(task.seconds for task in group), runs + price
    return seconds, runs, tuple(left_out)


def measure(
    wanted: Iterable[str],
    known: Known,
    host: Host,
    *,
    budget: float,
    seed: int,
    on_note: Callable[[str], None] = lambda text: None,
    on_known: Callable[[Known], None] = lambda known: None,
) -> tuple[Known, float]:
    """Make measurements, the cheapest first, as far as the budget goes.

    Args:
        wanted: Names of measurements.
        known: What is known without them.
        host: Where processes are started.
        budget: Reference runs that may be trained.
        seed: Of the first model and its data.
        on_note: Called with what is done.
        on_known: Called with what is known after each group of processes: what is found is not lost if one stops here.

    Returns:
        What is known with them, and the reference runs that they took.
    """
    tasks, whole = Tasks(known, seed), budget
    found = known
    for names, group in _grouped({name: tasks.of(name) for name in wanted}):
        price = sum(task.reference_runs for task in group)
        if price > budget:
            why = f"it takes {price:.2g} reference runs of training, and {max(budget, 0):.2g} of the budget is left"
            found = replace(
                found,
                unmeasured={**found.unmeasured, **dict.fromkeys(names, why)},
                prices={**found.prices, **dict.fromkeys(names, price)},
                left_out_runs=found.left_out_runs + price,
            )
            continue
        on_note(f"{', '.join(names)}: {price:.2g} reference runs")
        for task in group:
            seen, failed = _examined(host, task, known)
            budget -= task.reference_runs
            if failed is not None:
                found = replace(found, unmeasured={**found.unmeasured, **dict.fromkeys(names, failed)})
                break
            assert seen is not None
            cost_s = dict(found.cost_s)
            training_s = seen.seconds - sum(look.seconds for look in seen.looks)
            for name in names:
                own_s = sum(look.seconds for look in seen.looks if look.measurement == name)
                cost_s[name] = cost_s.get(name, 0.0) + own_s + training_s / len(names)
            found = replace(found, looks=(*found.looks, *seen.looks), cost_s=cost_s)
        on_known(found)
    return found, whole - budget


def _grouped(tasks: Mapping[str, list[LookTask]]) -> list[tuple[tuple[str, ...], list[LookTask]]]:
    """Return measurements with their processes, the cheapest first; looks made during one run share it."""
    groups: list[tuple[tuple[str, ...], list[LookTask]]] = []
    along = tuple(name for name in ALONG if name in tasks)
    if along:
        task = tasks[along[0]][0]
        seconds = sum(tasks[name][0].seconds for name in along)
        shared = replace(task, measurements=along, spec=replace(task.spec, measurements=along), seconds=seconds)
        groups.append((along, [shared]))
    groups += [((name,), found) for name, found in tasks.items() if name not in along]
    return sorted(groups, key=lambda group: sum(task.reference_runs for task in group[1]))


def _examined(host: Host, task: LookTask, known: Known) -> tuple[Examined | None, str | None]:
    """Have a process look at the model; return what it saw, or why it saw nothing."""
    fence = None if known.probe is None else known.probe.usable_bytes
    limit_s = LEAST_S + PATIENCE * task.seconds
    began_s = time.monotonic()
    try:
        worker = host.start(messages.Examine(task.spec), fence_bytes=fence)
        try:
            answer = host.answer(worker, limit_s)
        finally:
            worker.end()
    except NothingFitsError:
        return None, "it ran out of memory"
    except BstuneError as error:
        return None, str(error).splitlines()[0]
    if isinstance(answer, Examined):
        return answer, None
    if isinstance(answer, messages.Failure):
        return None, "it ran out of memory" if answer.outcome == "oom" else in_words(answer.error_type, answer.message)
    if isinstance(answer, Died):
        return None, answer.text
    return None, f"it took longer than {time.monotonic() - began_s:.0f} s"
