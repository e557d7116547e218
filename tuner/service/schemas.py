"""What clients may say, as pydantic models over the project's own dataclasses: strict, bounded, nothing unknown."""

from __future__ import annotations

import functools
import json
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema

from ..core.errors import BstuneError
from ..core.probe_results import DeviceInfo, ProbeResult
from ..core.record import Record
from ..core.trials import Facts, NoisePoint
from ..engines.base import LossCause
from ..engines.http import SaidReport, checkpoint_file, holds
from ..engines.leases import Lease

MOST = 1 << 53
MOST_WAIT_S = 30.0
NAME = r"^[A-Za-z0-9_][A-Za-z0-9_. -]{0,98}[A-Za-z0-9_]$|^[A-Za-z0-9_]$"
CLIENT = r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,99}$"

Name = Annotated[str, Field(pattern=NAME, description="Letters, digits, and _ . - or a blank between them.")]
ClientId = Annotated[str, Field(pattern=CLIENT, description="Chosen by the client; the same at each call.")]
Kind = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[ -~]+$")]
Count = Annotated[int, Field(ge=0, le=MOST)]
Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=20_000)]
_STRICT = ConfigDict(extra="forbid", strict=True, str_max_length=20_000)


def _sendable(value: Any) -> Any:
    """Return what JSON and a database can hold; half a character of two is none."""
    _json(value)
    return value


def _json(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        raise ValueError("its lists or objects are nested too deeply") from None


def _read(kind: type[Record], value: Any) -> Any:
    try:
        return kind.from_dict(_sendable(value))
    except BstuneError as error:
        raise ValueError(str(error)) from error
    except RecursionError:
        raise ValueError("its lists or objects are nested too deeply") from None


def _facts(value: Any) -> Facts:
    try:
        return _FACTS.validate_json(_json(value))
    except BstuneError as error:
        raise ValueError(str(error)) from error


_CHECKED: Any = pydantic.dataclasses.dataclass(  # Checks the types, too.
    Facts, frozen=True, config=ConfigDict(extra="forbid", strict=True, str_max_length=200)
)
_FACTS: pydantic.TypeAdapter[Facts] = pydantic.TypeAdapter(_CHECKED)
_FACTS_SCHEMA = _FACTS.json_schema(mode="validation")
FactsJson = Annotated[
    Facts,
    PlainValidator(_facts),
    WithJsonSchema({key: value for key, value in _FACTS_SCHEMA.items() if key != "$defs"}),
]
ProbeJson = Annotated[
    ProbeResult,
    PlainValidator(functools.partial(_read, ProbeResult)),
    WithJsonSchema({"type": "object", "description": "What `bstune probe --json` prints."}),
]
DeviceJson = Annotated[
    DeviceInfo,
    PlainValidator(functools.partial(_read, DeviceInfo)),
    WithJsonSchema({"type": "object", "properties": {"kind": {"type": "string"}, "name": {"type": "string"}}}),
]
NoiseJson = Annotated[
    NoisePoint,
    PlainValidator(functools.partial(_read, NoisePoint)),
    WithJsonSchema({"type": "object", "description": "Gradient noise at one moment of a run."}),
]
Plain = Annotated[dict[str, Any], AfterValidator(_sendable)]


class Strict(BaseModel):
    """A body of which every key is known, and every value of its type."""

    model_config = _STRICT


class NewStudy(Strict):
    """What is to be searched, and what a client knows of it. The same again changes nothing."""

    name: Name
    named: bool = True
    """The user chose the name; otherwise another study of the name with `-2`, `-3` ... may be the one."""
    fresh: bool = False
    """Make a new study beside the one of this name."""
    key: ClientId | None = None
    """Chosen by the client for one fresh study: the same call again makes no second."""
    facts: FactsJson
    search: Plain | None = None
    """Arguments of `bstune.search` by name: `goal`, `budget`, `space` and so on."""
    device: Kind = "cpu"
    """The client's kind of device."""
    device_info: DeviceJson = DeviceInfo("cpu", "unknown")
    probe: ProbeJson | None = None
    probe_key: Plain | None = None
    """What the answer of a probe depends on, and as `objective` which objective of its file this is: a stored probe of
    another one is not taken.
    """
    waits: bool = False
    """A probe will follow: do not begin without one."""


class Ask(Strict):
    """A client has nothing to do."""

    client_id: ClientId
    device: Kind | None = None
    wait_s: Annotated[float, Field(ge=0, le=MOST_WAIT_S)] = 0.0
    """Seconds that the answer may take, if there is nothing to do at once."""


class Report(Strict):
    """A validation loss; the same again gets the same answer."""

    client_id: ClientId
    samples: Count
    """Training samples of this trial since its beginning."""
    val_loss: Finite | None
    """null: not finite."""
    seconds: Seconds = 0.0
    metrics: Annotated[dict[Annotated[str, Field(max_length=200)], Finite | None], Field(max_length=100)] = {}
    noise: Annotated[list[NoiseJson], Field(max_length=1000)] = []
    interval: Count = 0

    def said(self) -> SaidReport:
        """Return it as the pool takes it."""
        nan = float("nan")
        return SaidReport(
            samples=self.samples,
            val_loss=nan if self.val_loss is None else self.val_loss,
            metrics={name: nan if value is None else value for name, value in self.metrics.items()},
            seconds=self.seconds,
            noise=tuple(self.noise),
            interval=self.interval,
        )


class Finish(Strict):
    """How a run has ended; the same again gets the same answer."""

    client_id: ClientId
    samples: Count
    seconds: Seconds = 0.0
    peak_bytes: Annotated[int, Field(ge=0, le=1 << 60)] | None = None
    checkpoint: bool = False
    """The client keeps a checkpoint from which it can go on."""
    lost: LossCause | None = None
    """Why it ended without an answer, if it did."""
    message: Text = ""
    error_type: Annotated[str, Field(max_length=200)] | None = None
    traceback: Text | None = None
    output: Text | None = None


class Beat(Strict):
    """A client is there."""

    client_id: ClientId


class StudyAnswer(BaseModel):
    """A study, as a client needs to know it."""

    name: str
    state: Literal["waiting", "running", "ended", "failed"]
    stopped_by: str | None
    message: str
    """Why it failed."""
    probe: dict[str, Any] | None
    """Of the client's kind of device."""
    probe_from: str | None
    """The study that it is from, where it is another."""
    most_useful: int | None = None
    """The largest micro-batch that is worth probing for this search; None: all that fit."""
    learned: dict[str, Any] | None
    """What another study has found of the same model, where this one began: `study`, `batch_size`, `learning_rate`."""


class AskAnswer(BaseModel):
    """A trial to run, or what else to do."""

    state: Literal["trial", "wait", "ended", "failed"]
    trial: dict[str, Any] | None = None
    stopped_by: str | None = None
    message: str = ""


class ReportAnswer(BaseModel):
    """Whether the trial goes on."""

    verdict: Literal["go", "stop"]


class Done(BaseModel):
    """It is stored."""

    state: Literal["waiting", "running", "ended", "failed"]
    """Of the study."""


def trial_json(study: str, lease: Lease, client: str, lease_s: float) -> dict[str, Any]:
    """Return a trial as a client gets it."""
    spec = lease.for_client(lambda checkpoint: holds(checkpoint, client))
    return {
        "id": f"{study}:{spec.number}",
        "study": study,
        "number": spec.number,
        "stage": spec.stage,
        "global_batch_size": spec.global_batch_size,
        "micro_batch_size": spec.micro_batch_size,
        "accumulation_steps": spec.accumulation_steps,
        "eval_batch_size": spec.eval_batch_size,
        "world_size": spec.world_size,
        "learning_rate": spec.learning_rate,
        "params": dict(spec.params),
        "seed": spec.seed,
        "start_samples": spec.start_samples,
        "end_samples": spec.end_samples,
        "points": list(spec.points),
        "noise_samples": spec.noise_samples,
        "most_samples": spec.most_samples,
        "resume_from": None if spec.resume_from is None else checkpoint_file(spec.resume_from),
        "checkpoint_to": None if spec.checkpoint_to is None else checkpoint_file(spec.checkpoint_to),
        "lease_s": lease_s,
    }
