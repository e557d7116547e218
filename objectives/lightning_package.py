"""Lightning itself: which of its two packages a module is of, its callbacks, and its advice."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..tuner.core.errors import ObjectiveError


def package_of(module: Any) -> Any:
    """Return the package whose LightningModule this is: a Trainer of the other one would refuse it.

    Raises:
        ObjectiveError: It is none.
    """
    for kind in type(module).__mro__:
        if kind.__name__ == "LightningModule":
            return importlib.import_module(
                "pytorch_lightning" if kind.__module__.startswith("pytorch_lightning") else "lightning.pytorch"
            )
    raise ObjectiveError(f"module_factory returned a {type(module).__name__}: expected a LightningModule.")


def kept(pl: Any, callbacks: Sequence[Any]) -> list[Any]:
    """Return the callbacks without those that write checkpoints or end a run: bstune does that in a trial."""
    return [one for one in callbacks if not isinstance(one, (pl.callbacks.Checkpoint, pl.callbacks.EarlyStopping))]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning from repeating its advice in every trial."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "pytorch_lightning", "lightning.fabric")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(lightning|pytorch_lightning|torchmetrics)\b.*")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
