"""A worker of the service: it probes its own device, then runs what the service hands out until the study has ended."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import secrets
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .client.link import Link
from .client.relay import Relay, new_client_id
from .client.wire import search_json
from .core.arguments import SearchArguments, check_search
from .core.probe_results import DeviceInfo, ProbeResult
from .core.trials import Facts
from .engines.local import LocalEngine
from .report.progress import attempt_line, learned_line
from .searching.probes import as_far
from .studies.catalog import probe_key
from .studies.naming import objective_identity, study_name
from .workers.resolve import check_objective


@dataclass(frozen=True)
class WorkArguments:
    """How a worker runs.

    Attributes:
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        threads: CPU threads of each trial.
        study: Name of the study; by default the objective's, else the file's.
        search: Arguments of `bstune.search` that a new study begins with; None: its defaults, or what the study has.
        probe: One that was made before.
        fresh: Make a new study beside an old one.
    """

    device: str = "auto"
    threads: int | Literal["auto"] = "auto"
    study: str | None = None
    search: dict[str, Any] | None = None
    probe: ProbeResult | None = None
    fresh: bool = False


@dataclass(frozen=True)
class Worked:
    """What a worker has come to.

    Attributes:
        study: The study at the service.
        ended_by: By what it has ended; `drained` where the worker was told to stop.
    """

    study: str
    ended_by: str


def work(
    objective: Any,
    arguments: WorkArguments,
    *,
    say: Callable[[str], None],
    link: Link,
    joined: Callable[[str, Facts], None] | None = None,
) -> Worked:
    """Run trials for the service until the study has ended.

    Args:
        objective: What to train, as `bstune.search` takes it.
        arguments: How.
        say: Takes a line for people.
        link: The service; whoever sets its `stopped` ends the worker.
        joined: Called with the study's name and the facts of the objective before the first trial; whoever gives it
            tells of the trials himself.

    Raises:
        BstuneError: The objective, the device or the service is at fault.
    """
    objective = check_objective(objective)
    asked: SearchArguments = check_search(**(arguments.search or {}))
    threads = None if arguments.threads == "auto" else arguments.threads
    with (
        contextlib.closing(
            LocalEngine(objective, device=arguments.device, threads=threads, batch_sizes=asked.plan.named_batches)
        ) as engine,
        _folder() as folder,
    ):
        for warning in engine.warnings:
            say(f"Warning: {warning}")
        kind = kind_of(engine.device_info)
        body = _new_study(objective, engine, arguments, kind, asked.plan.seed)
        study, probe = _joined(link, body, engine, asked.plan.seed, arguments.probe, say)
        client = new_client_id(platform.node())
        tell = _teller(say) if joined is None else _silent
        if joined is not None:
            joined(study, engine.facts)
        say(f"Worker {client} of study {study} at {link.url}, on {kind}")
        relay = Relay(link, study, client, device=kind, folder=folder, say=say, tell=tell)
        pool = engine.make_pool(lambda _: "go", probe, {})
        with contextlib.closing(pool):
            return Worked(study, relay.run(pool))


def _new_study(objective: Any, engine: LocalEngine, arguments: WorkArguments, kind: str, seed: int) -> dict[str, Any]:
    facts, info = engine.facts, engine.device_info
    key = probe_key(facts, info, seed=seed, chooses_threads=engine.chooses_threads)
    identity = objective_identity(objective)
    if identity is not None:  # Where the file lies on this machine is no matter of the service.
        key["objective"] = identity.rpartition(":")[2]
    return {
        "name": study_name(arguments.study, objective, facts),
        "named": arguments.study is not None,
        "fresh": arguments.fresh,
        **({"key": secrets.token_hex(8)} if arguments.fresh else {}),
        "facts": dataclasses.asdict(facts),
        "search": search_json(arguments.search),
        "device": kind,
        "device_info": info.to_dict(),
        "probe": None if arguments.probe is None else arguments.probe.to_dict(),
        "probe_key": None if arguments.probe is not None else key,
        "waits": True,
    }


def _joined(
    link: Link,
    body: dict[str, Any],
    engine: LocalEngine,
    seed: int,
    given: ProbeResult | None,
    say: Callable[[str], None],
) -> tuple[str, ProbeResult]:
    """Find or make the study; probe, unless it is known what fits here. Return the study's name and the probe."""
    answer = link.post("/v1/studies", body)
    if (learned := answer.get("learned")) is not None:
        differs = learned.get("differs", "data")
        say(learned_line(learned["study"], learned["batch_size"], learned["learning_rate"], differs))
    if given is not None:
        _use_threads_of(given, engine)
        return str(answer["name"]), given
    if answer["probe"] is not None:
        if answer["probe_from"] is not None:
            say(f"probe  known from study {answer['probe_from']}: not measured again")
        probe = ProbeResult.from_dict(answer["probe"])
    else:
        most = answer.get("most_useful")
        probe = engine.run_probe(
            None,
            timeout=None,
            seed=seed,
            on_attempt=lambda attempt: say(attempt_line(attempt)),
            on_note=lambda text: say(f"probe  {text}"),
            max_batch=most,
        )
        if probe.limited_by == "max_batch":
            say(f"probe  larger sizes than {most} were not tried: the search has no use for them")
        key = as_far(body["probe_key"], probe, most)
        body = {**body, "name": answer["name"], "fresh": False, "probe": probe.to_dict(), "probe_key": key}
        answer = link.post("/v1/studies", body)
    _use_threads_of(probe, engine)
    return str(answer["name"]), probe


def _use_threads_of(probe: ProbeResult, engine: LocalEngine) -> None:
    threads, ours = probe.device.threads, engine.device_info.threads
    if engine.chooses_threads and threads is not None and ours is not None and threads < ours:
        engine.use_threads(threads)


def kind_of(info: DeviceInfo) -> str:
    """Return what a kind of device is called at the service: equal names train at equal speed.

    Example:
        >>> kind_of(DeviceInfo("cpu", "a CPU", threads=2)), kind_of(DeviceInfo("cuda", "a card"))
        ('a CPU, 2 threads', 'a card')
    """
    plain = "".join(character if " " <= character <= "~" else "?" for character in info.name)[:150]
    if info.kind != "cpu" or info.threads is None:
        return plain or info.kind
    return f"{plain}, {info.threads} thread{'' if info.threads == 1 else 's'}"


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """Yield a folder for the checkpoints of this worker, which go when it ends."""
    with tempfile.TemporaryDirectory(prefix="bstune-worker-") as folder:
        yield Path(folder)


def _silent(kind: str, spec: Any, event: Any) -> None:
    """Say nothing of a trial."""


def _teller(say: Callable[[str], None]) -> Callable[..., None]:
    losses: dict[int, str] = {}
    """Of each trial that runs, what it has reported last."""

    def tell(kind: str, spec: Any, event: Any) -> None:
        if kind == "report":
            losses[spec.number] = f", loss {event.val_loss:.4g},"
        elif kind == "start":
            batch, rate = spec.global_batch_size, spec.learning_rate
            what = f"{spec.stage}: batch {batch}, learning rate {rate:.3g}"
            say(f"trial {spec.number}  {what}, to {spec.end_samples} samples")
        elif kind == "finish":
            how = getattr(event, "cause", None) or "ended"
            loss = losses.pop(spec.number, "")
            say(f"trial {spec.number}  {how} at {event.samples} samples{loss} after {event.seconds:.1f} s")

    return tell
