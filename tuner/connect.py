"""A training script as a client of the service: the same trials as in a local search, in the script's own process."""

from __future__ import annotations

import dataclasses
import platform
from typing import Any

from .client.link import Link
from .client.relay import new_client_id
from .client.remote import RemoteStudy
from .client.wire import search_json
from .core.arguments import check_search
from .core.errors import ArgumentError
from .core.probe_results import DeviceInfo
from .core.trials import Facts
from .studies.naming import script_name

FIRST_S = 30.0
"""So long a service may be away when a script begins; later it is waited for longer."""


def connect(
    url: str,
    *,
    token: str | None = None,
    study: str | None = None,
    n_samples: int,
    epochs: float = 1,
    evals: int = 16,
    optimizer: str | None = None,
    schedule: str = "unknown",
    model: str | None = None,
    device: str = "cpu",
    search: dict[str, Any] | None = None,
) -> RemoteStudy:
    """Take part in a study of a service, and make it if there is none.

    Args:
        url: Of the service, such as `http://127.0.0.1:8080`.
        token: For the service; by default that of the variable BSTUNE_TOKEN.
        study: Name of the study; by default that of the running script.
        n_samples: Samples in the training data set.
        epochs: Passes over them in one full run.
        evals: Equal points of a full run at which a report is wanted.
        optimizer: Name of the optimizer's class, such as `"SGD"`; it sets the range of learning rates.
        schedule: `constant`, `linear`, `cosine` or `wsd`: how your loop changes the learning rate.
        model: What you call the model: a new study begins at the best setting of an earlier one, on other data, of a
            model of this name; `optimizer` is then needed, and it and `schedule` are to be the same.
            Default: the service knows it from no other study.
        device: What `trial.device` says.
        search: Arguments of `bstune.search` that a new study begins with, such as `{"budget": 8}`.

    Raises:
        ArgumentError: A number is wrong on its face.
        RefusedError: The service refuses: a wrong token, or a study of other settings.
        AwayError: The service is away.

    Example:
        study = bstune.connect("http://127.0.0.1:8080", n_samples=50_000, epochs=10)
        for trial in study.trials():
            with contextlib.suppress(bstune.TrialPruned):
                train(trial)
    """
    if search is not None:
        check_search(**search)
    if not (isinstance(n_samples, int) and n_samples >= 1 and epochs > 0):
        raise ArgumentError(f"n_samples={n_samples!r}, epochs={epochs!r}: expected samples and epochs of a full run.")
    from ..objectives.fingerprint import model_problems, named_model, optimizer_family

    if wrong := model_problems(model, optimizer):
        raise ArgumentError("; ".join(wrong) + ".")
    facts = Facts(
        name=None,
        kind="loop",
        n_samples=n_samples,
        epochs=epochs,
        evals=evals,
        optimizer=optimizer,
        optimizer_family=optimizer_family(optimizer),
        schedule=schedule,
        structure_hash=named_model(model),
    )
    link = Link(url, token)
    body = {
        "name": study or script_name(),
        "named": study is not None,
        "facts": dataclasses.asdict(facts),
        "search": search_json(search),
        "device": device,
        "device_info": DeviceInfo(device.partition(":")[0], device).to_dict(),
    }
    answer = link.post("/v1/studies", body, patience_s=FIRST_S)
    return RemoteStudy(link, str(answer["name"]), new_client_id(platform.node()), device, learned=answer.get("learned"))
