"""The best model of the confirmation runs of a search, where the user wants it kept."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from ..core.errors import ArgumentError
from ..core.plain_text import one_line
from ..core.results import SearchResult
from ..studies.model_files import ModelKeeper
from .prepare import Prepared


@contextlib.contextmanager
def kept_models(ready: Prepared) -> Iterator[ModelKeeper | None]:
    """Yield who keeps the models of a search; None where nobody wants them.

    Raises:
        ArgumentError: The runs of this search cannot hand over a model.
        BstuneError: What has the name of the file is not this study's.
    """
    path = ready.arguments.save_model
    if path is None:
        yield None
        return
    if ready.facts.kind == "command":
        raise ArgumentError(
            f"save_model={path!r}: the trials of this objective are programs of their own, and bstune sees no model of "
            "theirs. Have the script save it."
        )
    if not ready.engine.shares(Path(path).absolute().parent):
        raise ArgumentError(
            f"save_model={path!r}: not every node of the cluster sees this folder. Name one they share."
        )
    with contextlib.closing(ModelKeeper(path, ready.study.name)) as models:
        yield models


def with_model(result: SearchResult, models: ModelKeeper, ready: Prepared) -> SearchResult:
    """Return the result with the file of its model, and tell what is in it."""
    header, best = models.best, result.recommendation
    if header is None:
        said = (
            "No model was saved: no confirmation run came to its end in this call. `bstune train` trains and saves one."
        )
        ready.tell("warning", message=said)
        return result
    other = (header.batch_size, header.learning_rate) != (best.global_batch_size, best.learning_rate)
    said = (
        f"model  {one_line(models.path)}: batch {header.batch_size}, lr {header.learning_rate:.3g}, loss "
        f"{header.val_loss:.4g}, the lowest of the confirmation runs"
        f"{'; the recommended setting is another' if other else ''}"
    )
    ready.tell("note", message=said)
    return dataclasses.replace(result, model_path=str(models.path))
