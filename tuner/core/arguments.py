"""Checking what the user asked for, before anything is opened, loaded or run: every wrong argument is named at once."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from types import SimpleNamespace
from typing import Any, Literal

from .amounts import TIME, brief, is_time
from .checks import MOST_NAME, Checks, nearest
from .dimension import Dimension, When, distribution
from .probe_results import ProbeResult
from .specs import Plan
from .trial_record import TRIAL_COLUMNS

_RATES = "a number from 1e-15 to 1e15"


def _is_rate(value: float) -> bool:
    """Tell whether a value can be the end of a logarithmic range; beyond it, floating-point arithmetic overflows."""
    return 1e-15 <= value <= 1e15


def check_storage(url: str | None) -> None:
    """Refuse a storage that cannot be the address of one.

    Raises:
        ArgumentError: It is empty or holds control characters.
    """
    checks = Checks()
    checks.text("storage", url)
    checks.done()


def _filled(asked: Mapping[str, Any], *shapes: type) -> SimpleNamespace:
    """Return what was asked, and for everything else the defaults of `shapes`, which are defined only there."""
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
    """The arguments of `bstune.probe`, checked. Its defaults are those of the command and of the function."""

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
    threads: int | Literal["auto"] = "auto"
    malloc: str = "default"
    fresh: bool = False
    study: str | None = None
    storage: str | None = None
    space: Mapping[str, Dimension] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """Return what a stored probe must have been made with to be the answer."""
        kept = {
            name: value
            for name, value in vars(self).items()
            if name not in ("memory", "fresh", "study", "storage", "space")
        }
        return {**kept, "memory_bytes": self.memory}


def check_probe(**asked: Any) -> ProbeArguments:
    """Return the arguments of a probe as numbers; `asked` is what `bstune.probe` takes.

    Raises:
        ArgumentError: One or more are wrong; all are listed.
    """
    checks, given = Checks(), _filled(asked, ProbeArguments)
    checks.place(device=given.device, study=given.study, storage=given.storage)
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
        seed=checks.seed(given.seed),
        threads=checks.threads(given.threads),
        malloc=given.malloc,
        fresh=given.fresh,
        study=given.study,
        storage=given.storage,
        space=_space(checks, given.space),
    )
    checks.choice("malloc", given.malloc, ("default", "stable"))
    checks.done()
    largest, multiple = arguments.max_batch, arguments.multiple_of
    if largest is not None and arguments.min_batch > largest:
        checks.wrong(f"min_batch={arguments.min_batch} is more than max_batch={largest}: expected at most as much.")
    elif largest is not None and -(-arguments.min_batch // multiple) * multiple > largest:
        checks.wrong(
            f"multiple_of={multiple}: no multiple of it lies between min_batch={arguments.min_batch} and "
            f"max_batch={largest}."
        )
    checks.done()
    return arguments


@dataclass(frozen=True)
class SearchArguments:
    """The arguments of `bstune.search`, checked: the plan, and where and how it is run."""

    plan: Plan
    """Its defaults are those of the command and of the function, as are the ones below."""
    device: str = "auto"
    threads: int | Literal["auto"] = "auto"
    """Of each trial."""
    jobs: int | Literal["auto"] = 1
    """As asked; the plan has a number, which for `auto` is known once there is a probe."""
    timeout: float | None = None
    """Seconds of this call."""
    trial_timeout: float | None = None
    """Seconds of silence after which a trial counts as hung; None: many times what it should take."""
    isolation: Literal["process", "none"] = "process"
    engine: Literal["optuna", "ray"] = "optuna"
    ray_address: str | None = None
    study: str | None = None
    storage: str | None = None
    fresh: bool = False
    """Make a new study beside the old one."""
    fresh_prior: bool = False
    """Begin a new study without what earlier ones of the same model have found."""
    save_model: str | None = None
    """File for the best model of the confirmation runs."""
    probe: ProbeResult | None = None
    callbacks: tuple[Callable[[Any], None], ...] = field(default=(), compare=False)


def check_search(**asked: Any) -> SearchArguments:
    """Return the arguments of a search, with defaults filled in; `asked` is what `bstune.search` takes.

    Raises:
        ArgumentError: One or more are wrong; all are listed.
    """
    checks, given = Checks(), _filled(asked, Plan, SearchArguments)
    if isinstance(given.save_model, os.PathLike):
        given.save_model = os.fspath(given.save_model)
    _check_names(checks, given)
    _check_together(checks, given)
    jobs = checks.integer_or_auto("jobs", given.jobs, 2**53)
    n_jobs = 1 if jobs == "auto" else jobs
    threads = checks.threads(given.threads)
    if given.isolation == "none":
        if n_jobs > 1:
            checks.wrong(f"jobs={n_jobs}: with isolation='none' trials run one after another, in this process.")
        if threads != "auto":
            checks.wrong(
                f"threads={threads}: with isolation='none' trials run in this process, with the threads that it has."
            )
    plan = _plan(checks, given, n_jobs)
    seconds = None if given.timeout is None else checks.real("timeout", given.timeout, is_time, TIME)
    silence_s = (
        None if given.trial_timeout is None else checks.real("trial_timeout", given.trial_timeout, is_time, TIME)
    )
    checks.done()
    return SearchArguments(
        plan=plan,
        device=given.device,
        threads=threads,
        jobs=jobs,
        timeout=seconds,
        trial_timeout=silence_s,
        isolation=given.isolation,
        engine=given.engine,
        ray_address=given.ray_address,
        study=given.study,
        storage=given.storage,
        fresh=bool(given.fresh),
        fresh_prior=bool(given.fresh_prior),
        save_model=given.save_model,
        probe=given.probe,
        callbacks=tuple(given.callbacks),
    )


def _check_names(checks: Checks, given: SimpleNamespace) -> None:
    """Note choices that there are not, and texts that cannot be names."""
    checks.choice("goal", given.goal, ("loss", "time", "largest"))
    checks.choice("engine", given.engine, ("optuna", "ray"))
    checks.choice("pruner", given.pruner, ("auto", "none"))
    checks.choice("sampler", given.sampler, ("auto", "random", "tpe"))
    checks.choice("isolation", given.isolation, ("process", "none"))
    checks.place(device=given.device, study=given.study, storage=given.storage)
    for name in ("ray_address", "save_model"):
        checks.text(name, getattr(given, name))


def _check_together(checks: Checks, given: SimpleNamespace) -> None:
    """Note arguments that do not go with each other, and objects of another kind than expected."""
    if given.ray_address is not None and given.engine != "ray":
        address, engine = brief(given.ray_address), brief(given.engine)
        checks.wrong(f"ray_address={address}: it goes with engine='ray', not with engine={engine}.")
    if given.isolation == "none" and given.engine == "ray":
        checks.wrong("engine='ray': with isolation='none' trials run in this process. Leave one of the two out.")
    if given.probe is not None and not isinstance(given.probe, ProbeResult):
        checks.wrong(f"probe={brief(given.probe)}: expected what bstune.probe returned.")
    if isinstance(given.callbacks, str) or not all(callable(item) for item in listed(given.callbacks)):
        checks.wrong(f"callbacks={brief(given.callbacks)}: expected a list of functions.")
    if given.target is not None and given.goal != "time":
        checks.wrong(f"target={brief(given.target)}: it goes with goal='time', not with goal={brief(given.goal)}.")


def _plan(checks: Checks, given: SimpleNamespace, jobs: int) -> Plan:
    """Return what the search is asked to do, as numbers."""
    budget, budget_s = checks.budget(Plan.budget if given.budget is None else given.budget)
    return Plan(
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
        jobs=jobs,
        pruner=given.pruner,
        sampler=given.sampler,
        confirm=checks.integer("confirm", given.confirm, 0),
        baseline=_baseline(checks, given.baseline),
        seed=checks.seed(given.seed),
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


def check_space(space: Any) -> dict[str, Dimension]:
    """Return the dimensions of a space, as `bstune.search` takes it.

    Raises:
        ArgumentError: One or more are wrong; all are listed.
    """
    checks = Checks()
    found = _space(checks, space)
    checks.done()
    return found


def _space(checks: Checks, space: Any) -> dict[str, Dimension]:
    """Read the dimensions of a space; those that are wrong are noted and left out."""
    if space is None:
        return {}
    if not isinstance(space, Mapping):
        checks.wrong(f"space={brief(space)}: expected a dictionary from name to values.")
        return {}
    found = {}
    for name, given in space.items():
        where = f"space[{brief(name)}]"
        known = name in _KNOWN
        meant = (
            None if known or not isinstance(name, str) else _ALSO_CALLED.get(_bare(name)) or nearest(name, _KNOWN, 0.8)
        )
        if meant:
            checks.wrong(f"{where}: did you mean {meant!r}?")
        elif not isinstance(name, str) or not name.isidentifier() or len(name) > MOST_NAME:
            checks.wrong(f"{where}: expected a name such as weight_decay, of at most {MOST_NAME} characters.")
        elif name in TRIAL_COLUMNS and not known:
            checks.wrong(
                f"{where}: bstune uses this name itself; the dimensions it knows are batch_size and learning_rate."
            )
        elif isinstance(given, When):
            problem = _condition_problem(space, name, given)
            dimension = None if problem else _dimension(checks, where, name, given.values)
            if problem:
                checks.wrong(f"{where}={brief(given)}: {problem}.")
            elif dimension is not None:
                found[name] = dimension.only(given.conditions)
        elif (dimension := _dimension(checks, where, name, given)) is not None:
            found[name] = dimension
    return found


def _dimension(checks: Checks, where: str, name: str, given: Any) -> Dimension | None:
    """Read the values of a dimension; None where what is wrong was noted."""
    if isinstance(given, tuple) and len(given) != 2:
        checks.wrong(f"{where}={brief(given)}: expected (lowest, highest); write a list to try exactly these values.")
        return None
    read = _range if isinstance(given, tuple) or distribution(given) in _RANGES else _values
    return read(checks, where, name, given)


def _condition_problem(space: Mapping[Any, Any], name: str, given: When) -> str | None:
    """Return what is wrong with the condition of a dimension, or None."""
    if name in _KNOWN:
        return "every trial has a batch size and a learning rate, so they take no condition"
    if isinstance(given.values, When):
        return "expected one condition; name all that must hold in one When"
    if not given.conditions:
        return "expected the value of another dimension, such as When(optimizer='sgd', values=...)"
    for other, allowed in given.conditions.items():
        if other not in space:
            meant = nearest(other, [known for known in space if isinstance(known, str)])
            return f"the space has no {other!r}" + ("" if meant is None else f"; did you mean {meant!r}?")
        parent = space[other]
        listed = isinstance(parent, list) or distribution(parent) == "CategoricalDistribution"
        values = Dimension.of(parent).values if listed else (parent,)
        if other in _KNOWN or other == name or isinstance(parent, (tuple, When)) or distribution(parent) in _RANGES:
            return f"a condition is on a dimension with a list of values and no condition, and {other!r} is none"
        never = [value for value in allowed if value not in values]
        if never or not allowed:
            return f"{other!r} is never {brief(never[0]) if never else 'so'}; its values are {brief(list(values))}"
    return None


_KNOWN = ("batch_size", "learning_rate")
_ALSO_CALLED = dict.fromkeys(
    ("lr", "learnrate", "baselr", "initlr", "lr0", "stepsize"), "learning_rate"
) | dict.fromkeys(
    ("bs", "batch", "batches", "batchsizes", "globalbatch", "globalbatchsize", "microbatchsize", "trainbatchsize"),
    "batch_size",
)
"""What else people call them, without case and what lies between words."""


def _bare(name: str) -> str:
    return re.sub(r"[\W_]+", "", name[:MOST_NAME].lower())


_RANGES = ("FloatDistribution", "IntDistribution")


def _value(checks: Checks, where: str, name: str, value: Any) -> Any:
    """Check one value of a dimension."""
    if name == "batch_size":
        return checks.integer(where, value, 1)
    if name == "learning_rate":
        return checks.real(where, value, _is_rate, _RATES)
    if not isinstance(value, (bool, int, float, str)) or (isinstance(value, float) and not math.isfinite(value)):
        checks.wrong(f"{where}={brief(value)}: expected a finite number or a text.")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        checks.wrong(f"{where}={brief(value)}: expected a number of at most 64 bits.")
    return value


def _values(checks: Checks, where: str, name: str, given: Any) -> Dimension:
    """Read a dimension that is one value, a list of them, or the choices of a distribution."""
    dimension = Dimension.of(given)
    if dimension.kind == "fixed":
        return Dimension.of(_value(checks, where, name, given))
    if not dimension.values:
        checks.wrong(f"{where}: an empty list leaves nothing to try.")
    listed = isinstance(given, list)
    checked = [
        # None is a choice to Optuna, and to it only.
        value if value is None and not listed else _value(checks, f"{where}[{i}]", name, value)
        for i, value in enumerate(dimension.values)
    ]
    return Dimension.of(checked) if listed else replace(dimension, values=tuple(checked))


def _range(checks: Checks, where: str, name: str, given: Any) -> Dimension:
    """Read a dimension that is (lowest, highest), or a distribution of Optuna's with these two."""
    dimension, family, before = Dimension.of(given), distribution(given), len(checks.problems)
    wanted = {"batch_size": "IntDistribution", "learning_rate": "FloatDistribution"}.get(name, family)
    if family != wanted and family is not None:
        checks.wrong(f"{where}={brief(given)}: expected a list, (lowest, highest) or Optuna's {wanted}.")
        return dimension

    def end(part: str, value: Any) -> Any:
        if name == "batch_size":
            return checks.integer(f"{where}{part}", value, 1)
        if family is not None and name != "learning_rate":
            checks.real(f"{where}{part}", value, lambda _: True, "a finite number")
            return value
        rate = checks.real(f"{where}{part}", value, _is_rate, _RATES)
        return int(value) if dimension.integer and name != "learning_rate" else rate

    parts = ("[0]", "[1]") if family is None else (".low", ".high")
    low, high = end(parts[0], dimension.low), end(parts[1], dimension.high)
    if len(checks.problems) == before and low > high:
        checks.wrong(f"{where}={brief(given)}: the lowest is more than the highest.")
    elif name == "batch_size" and dimension.log and low > 1 << (high.bit_length() - 1):
        checks.wrong(f"{where}={brief(given)}: no power of two lies in it; write the sizes as a list.")
    return Dimension.of((low, high)) if family is None else replace(dimension, low=low, high=high)
