"""Checking what the user asked for, before anything is opened, loaded or run: every wrong argument is named at once."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from types import SimpleNamespace
from typing import Any, Literal
from unicodedata import category

from .dimension import Dimension, distribution
from .errors import ArgumentError
from .probe_results import ProbeResult
from .results import TRIAL_COLUMNS
from .specs import Plan

MOST_BYTES = 2**60
MOST_NAME = 200
"""Characters in the name of a study, and of a dimension."""
MOST_THREADS = 1024
MOST_SEED = 2**43
"""The order of an epoch is drawn from a seed of 64 bits, which is this one times a million (`objectives/data.py`)."""

_UNITS = {"": 1, "B": 1} | {
    prefix + suffix: base**power
    for power, prefix in enumerate("KMGT", start=1)
    # A bare letter counts in powers of two, as in Docker and Slurm.
    for suffix, base in (("", 1024), ("iB", 1024), ("B", 1000))
}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-z]*)")


def _brief(value: Any) -> str:
    """Return a value for a message, cut short."""
    try:
        text = repr(value)
    except Exception:  # Such as a whole number of many thousand digits, which Python does not write.
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:196]} ..."


def parse_size(text: str | int) -> int:
    """Return the bytes in a size such as `12GiB`, `1.5GB` or `4096`.

    Raises:
        ArgumentError: The text is not a positive number with a known unit.

    Example:
        >>> parse_size("1.5GiB")
        1610612736
    """
    match = _SIZE.fullmatch(text.strip() if isinstance(text, str) else _brief(text))
    units = {name.upper(): factor for name, factor in _UNITS.items()}
    if isinstance(text, bool) or match is None or match[2].upper() not in units:
        raise ArgumentError(
            f"{_brief(text)} is not a size: expected a number with a unit, such as 12GiB, 800MiB or 12GB."
        )
    amount = float(match[1]) * units[match[2].upper()]
    if not 1 <= amount <= MOST_BYTES:
        raise ArgumentError(f"{_brief(text)} is not a size: expected at least one byte, and at most a million TiB.")
    return int(amount)


_RATES = "a number from 1e-15 to 1e15"


_TIME = "seconds, more than 0 and at most 1e9"


def _is_time(value: float) -> bool:
    """Tell whether a value can be waited for."""
    return 0 < value <= 1e9


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
            self.wrong(f"{name}={_brief(value)}: expected a whole number of at least {minimum}.")
            return minimum
        if not minimum <= number <= maximum:
            self.wrong(
                f"{name}={_brief(value)}: expected {f'at least {minimum}' if number < minimum else f'at most {maximum}'}."
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
            self.wrong(f"{name}={_brief(value)}: expected {expected}.")
            return 1.0
        return number

    def choice(self, name: str, value: Any, valid: Sequence[str]) -> None:
        """Note a problem unless the value is one of those that are valid."""
        if value not in valid:
            self.wrong(f"{name}={_brief(value)}: expected one of {', '.join(valid)}.")

    def integer_or_auto(self, name: str, value: Any, maximum: int) -> int | Literal["auto"]:
        """Return `auto` or the value as an int of at least 1; on a problem note it."""
        if isinstance(value, str):
            if value != "auto":
                self.wrong(f"{name}={_brief(value)}: expected auto or a whole number of at least 1.")
            return "auto"
        return self.integer(name, value, 1, maximum)

    def size(self, name: str, value: str | int | None) -> int | None:
        """Return a size in bytes; on a problem note it and return None."""
        try:
            return None if value is None else parse_size(value)
        except ArgumentError as error:
            self.wrong(f"{name}: {error}")
            return None

    def text(self, name: str, value: Any) -> None:
        """Note a problem unless the value is a text, or None."""
        if value is not None and (not isinstance(value, str) or not value.strip()):
            self.wrong(f"{name}={_brief(value)}: expected a text that is not empty.")
        elif value is not None and any(category(character) in ("Cc", "Cs") for character in value):
            self.wrong(f"{name}={_brief(value)}: expected a text without control characters.")

    def study(self, value: Any) -> None:
        """Note a problem unless the value can be the name of a study, or is None."""
        if value is not None and not (
            isinstance(value, str) and value.strip() and value.isprintable() and len(value) <= MOST_NAME
        ):
            self.wrong(
                f"study={_brief(value)}: expected a name of at most {MOST_NAME} characters that can be printed on one line."
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
    threads: int | Literal["auto"] = "auto"
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
        timeout=None if given.timeout is None else checks.real("timeout", given.timeout, _is_time, _TIME),
        seed=checks.integer("seed", given.seed, 0, MOST_SEED),
        threads=checks.integer_or_auto("threads", given.threads, MOST_THREADS),
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
            f"ray_address={_brief(given.ray_address)}: it goes with engine='ray', not with engine={_brief(given.engine)}."
        )
    if given.isolation == "none" and given.engine == "ray":
        checks.wrong("engine='ray': with isolation='none' trials run in this process. Leave one of the two out.")
    if given.probe is not None and not isinstance(given.probe, ProbeResult):
        checks.wrong(f"probe={_brief(given.probe)}: expected what bstune.probe returned.")
    if isinstance(given.callbacks, str) or not all(callable(item) for item in listed(given.callbacks)):
        checks.wrong(f"callbacks={_brief(given.callbacks)}: expected a list of functions.")
    if given.target is not None and given.goal != "time":
        checks.wrong(f"target={_brief(given.target)}: it goes with goal='time', not with goal={_brief(given.goal)}.")
    jobs = checks.integer_or_auto("jobs", given.jobs, 2**53)
    n_jobs = 1 if jobs == "auto" else jobs
    if given.isolation == "none" and n_jobs > 1:
        checks.wrong(f"jobs={n_jobs}: with isolation='none' trials run one after another, in this process.")
    threads = checks.integer_or_auto("threads", given.threads, MOST_THREADS)
    if given.isolation == "none" and threads != "auto":
        checks.wrong(
            f"threads={threads}: with isolation='none' trials run in this process, with the threads that it has."
        )
    plan = Plan(
        goal=given.goal,
        target=None
        if given.target is None
        else checks.real("target", given.target, lambda _: True, "a finite validation loss"),
        tolerance=checks.real(
            "tolerance", given.tolerance, lambda x: 0 <= x < 1, "a share of the best loss from 0 up to, but below, 1"
        ),
        budget=Plan.budget
        if given.budget is None
        else checks.real("budget", given.budget, lambda x: 0 < x <= 1e9, "full runs, more than 0 and at most 1e9"),
        n_trials=None if given.n_trials is None else checks.integer("n_trials", given.n_trials, 1),
        space=_space(checks, given.space),
        jobs=n_jobs,
        pruner=given.pruner,
        sampler=given.sampler,
        confirm=checks.integer("confirm", given.confirm, 0),
        baseline=_baseline(checks, given.baseline),
        seed=checks.integer("seed", given.seed, 0, MOST_SEED),
    )
    seconds = None if given.timeout is None else checks.real("timeout", given.timeout, _is_time, _TIME)
    silence_s = (
        None if given.trial_timeout is None else checks.real("trial_timeout", given.trial_timeout, _is_time, _TIME)
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
        checks.wrong(f"baseline={_brief(value)}: expected (batch_size, learning_rate).")
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
        checks.wrong(f"space={_brief(space)}: expected a dictionary from name to values.")
        return {}
    found = {}
    for name, given in space.items():
        where = f"space[{_brief(name)}]"
        known = name in _KNOWN
        meant = [] if known or not isinstance(name, str) else get_close_matches(name[:MOST_NAME], _KNOWN, 1, 0.8)
        if meant:
            checks.wrong(f"{where}: did you mean {meant[0]!r}?")
        elif not isinstance(name, str) or not name.isidentifier() or len(name) > MOST_NAME:
            checks.wrong(f"{where}: expected a name such as weight_decay, of at most {MOST_NAME} characters.")
        elif name in TRIAL_COLUMNS and not known:
            checks.wrong(
                f"{where}: bstune uses this name itself; the dimensions it knows are batch_size and learning_rate."
            )
        elif isinstance(given, tuple) and len(given) != 2:
            checks.wrong(
                f"{where}={_brief(given)}: expected (lowest, highest); write a list to try exactly these values."
            )
        else:
            read = _range if isinstance(given, tuple) or distribution(given) in _RANGES else _values
            found[name] = read(checks, where, name, given)
    return found


_KNOWN = ("batch_size", "learning_rate")
_RANGES = ("FloatDistribution", "IntDistribution")


def _value(checks: Checks, where: str, name: str, value: Any) -> Any:
    """Check one value of a dimension."""
    if name == "batch_size":
        return checks.integer(where, value, 1)
    if name == "learning_rate":
        return checks.real(where, value, _is_rate, _RATES)
    if not isinstance(value, (bool, int, float, str)) or (isinstance(value, float) and not math.isfinite(value)):
        checks.wrong(f"{where}={_brief(value)}: expected a finite number or a text.")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        checks.wrong(f"{where}={_brief(value)}: expected a number of at most 64 bits.")
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
        checks.wrong(f"{where}={_brief(given)}: expected a list, (lowest, highest) or Optuna's {wanted}.")
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
        checks.wrong(f"{where}={_brief(given)}: the lowest is more than the highest.")
    elif name == "batch_size" and dimension.log and low > 1 << (high.bit_length() - 1):
        checks.wrong(f"{where}={_brief(given)}: no power of two lies in it; write the sizes as a list.")
    return Dimension.of((low, high)) if family is None else replace(dimension, low=low, high=high)
