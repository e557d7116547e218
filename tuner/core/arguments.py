"""Checking what the user asked for, before anything is opened, loaded or run: every wrong argument is named at once."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from types import SimpleNamespace
from typing import Any, Literal
from unicodedata import category

from .amounts import TIME, brief, is_time, parse_duration, parse_size
from .errors import ArgumentError
from .results import TRIAL_COLUMNS, ProbeResult
from .specs import Plan

MOST_NAME = 200
"""Characters in the name of a study, and of a dimension."""
MOST_SEED = 2**43
"""The order of an epoch is drawn from a seed of 64 bits, which is this one times a million (`objectives/data.py`)."""

_RATES = "a number from 1e-15 to 1e15"


def _is_rate(value: float) -> bool:
    """Tell whether a value can be the end of a logarithmic range; beyond, arithmetic itself gives out."""
    return 1e-15 <= value <= 1e15


def check_storage(url: str | None) -> None:
    """Refuse a storage that cannot be the address of one.

    Raises:
        ArgumentError: It is empty or holds control characters.
    """
    checks = Checks()
    checks.text("storage", url)
    checks.done()


class Checks:
    """Collects what is wrong; `done` raises it all at once."""

    def __init__(self) -> None:
        """Begin with nothing wrong."""
        self.problems: list[str] = []

    def wrong(self, problem: str) -> None:
        """Note a problem."""
        self.problems.append(problem)

    def integer(self, name: str, value: Any, minimum: int, maximum: int = 2**53) -> int:
        """Return the value as an int; on a problem note it and return the minimum."""
        try:
            if isinstance(value, bool):
                raise TypeError
            number = operator.index(value)
        except TypeError:
            self.wrong(f"{name}={brief(value)}: expected a whole number of at least {minimum}.")
            return minimum
        if not minimum <= number <= maximum:
            self.wrong(
                f"{name}={brief(value)}: expected {f'at least {minimum}' if number < minimum else f'at most {maximum}'}."
            )
            return minimum
        return number

    def real(self, name: str, value: Any, accept: Callable[[float], bool], expected: str) -> float:
        """Return the value as a float; a number that is not finite, or not accepted, is a problem."""
        try:
            number = math.nan if isinstance(value, (bool, str)) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number) or not accept(number):
            self.wrong(f"{name}={brief(value)}: expected {expected}.")
            return 1.0
        return number

    def choice(self, name: str, value: Any, valid: Sequence[str]) -> None:
        """Note a problem unless the value is one of those that are valid."""
        if value not in valid:
            self.wrong(f"{name}={brief(value)}: expected one of {', '.join(valid)}.")

    def size(self, name: str, value: str | int | None) -> int | None:
        """Return a size in bytes; on a problem note it and return None."""
        try:
            return None if value is None else parse_size(value)
        except ArgumentError as error:
            self.wrong(f"{name}: {error}")
            return None

    def budget(self, value: Any) -> tuple[float, float | None]:
        """Return a budget as reference runs, and as seconds where it is a duration; on a problem note it."""
        if not isinstance(value, str):
            expected = "reference runs, more than 0 and at most 1e9, or a duration such as 20min"
            return self.real("budget", value, lambda x: 0 < x <= 1e9, expected), None
        try:
            return Plan.budget, parse_duration(value)
        except ArgumentError as error:
            self.wrong(f"budget: {error} A plain number counts reference runs.")
            return Plan.budget, None

    def text(self, name: str, value: Any) -> None:
        """Note a problem unless the value is a text, or None."""
        if value is not None and (not isinstance(value, str) or not value.strip()):
            self.wrong(f"{name}={brief(value)}: expected a text that is not empty.")
        elif value is not None and any(category(character) in ("Cc", "Cs") for character in value):
            self.wrong(f"{name}={brief(value)}: expected a text without control characters.")

    def study(self, value: Any) -> None:
        """Note a problem unless the value can be the name of a study, or is None."""
        if value is not None and not (
            isinstance(value, str) and value.strip() and value.isprintable() and len(value) <= MOST_NAME
        ):
            self.wrong(
                f"study={brief(value)}: expected a name of at most {MOST_NAME} characters that can be printed on one line."
            )

    def done(self) -> None:
        """Raise an ArgumentError with all that is wrong, if anything is."""
        if len(self.problems) == 1:
            raise ArgumentError(self.problems[0])
        if self.problems:
            raise ArgumentError(
                "\n".join(
                    [f"{len(self.problems)} arguments are wrong:", *(f"  {problem}" for problem in self.problems)]
                )
            )


def _filled(asked: Mapping[str, Any], *shapes: type) -> SimpleNamespace:
    """Return what was asked, and of all else the defaults of the fields of `shapes`: they stand nowhere else."""
    defaults = {
        each.name: each.default if each.default_factory is MISSING else each.default_factory()
        for shape in shapes
        for each in fields(shape)
        if each.default is not MISSING or each.default_factory is not MISSING
    }
    unknown = sorted(set(asked) - set(defaults))
    if unknown:
        raise TypeError(f"Not an argument: {', '.join(unknown)}. Known are {', '.join(sorted(defaults))}.")
    return SimpleNamespace(**{**defaults, **asked})


@dataclass(frozen=True)
class ProbeArguments:
    """The arguments of `bstune.probe`, checked. The defaults of its fields are those of the command and of the function."""

    device: str = "auto"
    memory: int | None = None
    """Bytes."""
    headroom: float = 0.05
    min_batch: int = 1
    max_batch: int | None = None
    multiple_of: int = 1
    timeout: float | None = None
    """Seconds."""
    seed: int = 0
    malloc: str = "default"
    fresh: bool = False
    study: str | None = None
    storage: str | None = None

    def settings(self) -> dict[str, Any]:
        """Return what a stored probe must have been made with to be the answer."""
        kept = {
            name: value for name, value in asdict(self).items() if name not in ("memory", "fresh", "study", "storage")
        }
        return {**kept, "memory_bytes": self.memory}


def check_probe(**asked: Any) -> ProbeArguments:
    """Return the arguments of a probe as numbers; `asked` is what `bstune.probe` takes.

    Raises:
        ArgumentError: One or more are wrong; all are listed.
    """
    checks, given = Checks(), _filled(asked, ProbeArguments)
    checks.text("device", given.device)
    checks.study(given.study)
    checks.text("storage", given.storage)
    arguments = ProbeArguments(
        device=given.device,
        memory=checks.size("memory", given.memory),
        headroom=checks.real(
            "headroom", given.headroom, lambda x: 0 <= x < 1, "a share of memory from 0 up to, but below, 1"
        ),
        min_batch=checks.integer("min_batch", given.min_batch, 1),
        max_batch=None if given.max_batch is None else checks.integer("max_batch", given.max_batch, 1),
        multiple_of=checks.integer("multiple_of", given.multiple_of, 1),
        timeout=None if given.timeout is None else checks.real("timeout", given.timeout, is_time, TIME),
        seed=checks.integer("seed", given.seed, 0, MOST_SEED),
        malloc=given.malloc,
        fresh=given.fresh,
        study=given.study,
        storage=given.storage,
    )
    checks.choice("malloc", given.malloc, ("default", "stable"))
    checks.done()
    largest, multiple = arguments.max_batch, arguments.multiple_of
    if largest is not None and arguments.min_batch > largest:
        checks.wrong(f"min_batch={arguments.min_batch} is more than max_batch={largest}: expected at most as much.")
    elif largest is not None and -(-arguments.min_batch // multiple) * multiple > largest:
        checks.wrong(
            f"multiple_of={multiple}: no multiple of it lies between min_batch={arguments.min_batch} and max_batch={largest}."
        )
    checks.done()
    return arguments


@dataclass(frozen=True)
class SearchArguments:
    """The arguments of `bstune.search`, checked: the plan, and where and how it is run."""

    plan: Plan
    """Its defaults are those of the command and of the function, as are the ones below."""
    device: str = "auto"
    timeout: float | None = None
    """Seconds of this call."""
    trial_timeout: float | None = None
    """Seconds of silence after which a trial counts as hung; None: many times what it should take."""
    isolation: Literal["process", "none"] = "process"
    engine: Literal["optuna", "ray"] = "optuna"
    ray_address: str | None = None
    study: str | None = None
    storage: str | None = None
    probe: ProbeResult | None = None
    callbacks: tuple[Callable[[Any], None], ...] = field(default=(), compare=False)


def check_search(**asked: Any) -> SearchArguments:
    """Return the arguments of a search, with defaults filled in; `asked` is what `bstune.search` takes.

    Raises:
        ArgumentError: One or more are wrong; all are listed.
    """
    checks, given = Checks(), _filled(asked, Plan, SearchArguments)
    checks.choice("goal", given.goal, ("loss", "time", "largest"))
    checks.choice("engine", given.engine, ("optuna", "ray"))
    checks.choice("pruner", given.pruner, ("auto", "none"))
    checks.choice("sampler", given.sampler, ("auto", "random", "tpe"))
    checks.choice("isolation", given.isolation, ("process", "none"))
    for name, text in (("device", given.device), ("storage", given.storage), ("ray_address", given.ray_address)):
        checks.text(name, text)
    checks.study(given.study)
    if given.ray_address is not None and given.engine != "ray":
        checks.wrong(
            f"ray_address={brief(given.ray_address)}: it goes with engine='ray', not with engine={brief(given.engine)}."
        )
    if given.isolation == "none" and given.engine == "ray":
        checks.wrong("engine='ray': with isolation='none' trials run in this process. Leave one of the two out.")
    if given.probe is not None and not isinstance(given.probe, ProbeResult):
        checks.wrong(f"probe={brief(given.probe)}: expected what bstune.probe returned.")
    if isinstance(given.callbacks, str) or not all(callable(item) for item in listed(given.callbacks)):
        checks.wrong(f"callbacks={brief(given.callbacks)}: expected a list of functions.")
    if given.target is not None and given.goal != "time":
        checks.wrong(f"target={brief(given.target)}: it goes with goal='time', not with goal={brief(given.goal)}.")
    n_jobs = checks.integer("jobs", given.jobs, 1)
    if given.isolation == "none" and n_jobs > 1:
        checks.wrong(f"jobs={n_jobs}: with isolation='none' trials run one after another, in this process.")
    budget, budget_s = checks.budget(Plan.budget if given.budget is None else given.budget)
    plan = Plan(
        goal=given.goal,
        target=None
        if given.target is None
        else checks.real("target", given.target, lambda _: True, "a finite validation loss"),
        tolerance=checks.real(
            "tolerance", given.tolerance, lambda x: 0 <= x < 1, "a share of the best loss from 0 up to, but below, 1"
        ),
        budget=budget,
        budget_s=budget_s,
        n_trials=None if given.n_trials is None else checks.integer("n_trials", given.n_trials, 1),
        space=_space(checks, given.space),
        jobs=n_jobs,
        pruner=given.pruner,
        sampler=given.sampler,
        confirm=checks.integer("confirm", given.confirm, 0),
        baseline=_baseline(checks, given.baseline),
        seed=checks.integer("seed", given.seed, 0, MOST_SEED),
    )
    seconds = None if given.timeout is None else checks.real("timeout", given.timeout, is_time, TIME)
    silence_s = (
        None if given.trial_timeout is None else checks.real("trial_timeout", given.trial_timeout, is_time, TIME)
    )
    checks.done()
    return SearchArguments(
        plan=plan,
        device=given.device,
        timeout=seconds,
        trial_timeout=silence_s,
        isolation=given.isolation,
        engine=given.engine,
        ray_address=given.ray_address,
        study=given.study,
        storage=given.storage,
        probe=given.probe,
        callbacks=tuple(given.callbacks),
    )


def listed(value: Any) -> Sequence[Any]:
    """Return a list or tuple as it is, and anything else as one value that is not known."""
    return value if isinstance(value, (list, tuple)) else (None,)


def _baseline(checks: Checks, value: Any) -> tuple[int, float] | None:
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        checks.wrong(f"baseline={brief(value)}: expected (batch_size, learning_rate).")
        return None
    batch_size = checks.integer("baseline[0] (batch size)", value[0], 1)
    return batch_size, checks.real("baseline[1] (learning rate)", value[1], _is_rate, _RATES)


def _space(checks: Checks, space: Any) -> dict[str, Any]:
    if space is None:
        return {}
    if not isinstance(space, Mapping):
        checks.wrong(f"space={brief(space)}: expected a dictionary from name to values.")
        return {}
    checked = {}
    for name, values in space.items():
        where = f"space[{brief(name)}]"
        if not isinstance(name, str) or not name.isidentifier() or len(name) > MOST_NAME:
            checks.wrong(f"{where}: expected a name such as weight_decay, of at most {MOST_NAME} characters.")
        elif name in TRIAL_COLUMNS and name != "learning_rate":
            checks.wrong(
                f"{where}: bstune uses this name itself; the dimensions it knows are batch_size and learning_rate."
            )
        else:
            checked[name] = _dimension(checks, where, name, values)
    return checked


def _dimension(checks: Checks, where: str, name: str, values: Any) -> Any:
    """Check one dimension: a scalar fixes it, a list means exactly these, (lo, hi) a log range, or an Optuna distribution."""

    def one(value: Any, part: str = where) -> Any:
        if name == "batch_size":
            return checks.integer(part, value, 1)
        if name == "learning_rate":
            return checks.real(part, value, _is_rate, _RATES)
        if not isinstance(value, (bool, int, float, str)) or (isinstance(value, float) and not math.isfinite(value)):
            checks.wrong(f"{part}={brief(value)}: expected a finite number or a text.")
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            checks.wrong(f"{part}={brief(value)}: expected a number of at most 64 bits.")
        return value

    if isinstance(values, list):
        if not values:
            checks.wrong(f"{where}: an empty list leaves nothing to try.")
        return [one(value, f"{where}[{i}]") for i, value in enumerate(values)]
    if isinstance(values, tuple):
        if len(values) != 2:
            checks.wrong(
                f"{where}={brief(values)}: expected (lowest, highest); write a list to try exactly these values."
            )
            return values
        whole, before = name == "batch_size", len(checks.problems)
        low, high = (
            checks.integer(f"{where}[{i}]", value, 1)
            if whole
            else checks.real(f"{where}[{i}]", value, _is_rate, _RATES)
            for i, value in enumerate(values)
        )
        if low > high and len(checks.problems) == before:
            checks.wrong(f"{where}={brief(values)}: the lowest is more than the highest.")
        return (low, high)
    if _is_distribution(values):
        if name == "batch_size" and type(values).__name__ != "IntDistribution":
            checks.wrong(
                f"{where}={brief(values)}: expected whole numbers; write a list, (lowest, highest) or an IntDistribution."
            )
        return values
    return one(values)


def _is_distribution(value: Any) -> bool:
    """Tell an Optuna distribution without importing Optuna."""
    return any(base.__module__ == "optuna.distributions" for base in type(value).__mro__)
