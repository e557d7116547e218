"""Lightning itself: which of its two packages a module is of, its callbacks, its loaders, and its advice."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..tuner.core.errors import ObjectiveError
from ..tuner.core.plain_text import of_type
from .longest import repeated_longest

KEPT = (
    "num_workers",
    "collate_fn",
    "pin_memory",
    "pin_memory_device",
    "drop_last",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "generator",
    "prefetch_factor",
    "persistent_workers",
)
"""What a loader of other samples has of the user's."""


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
    raise ObjectiveError(f"module_factory returned {of_type(module)}: expected a LightningModule.")


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


def load_longest(holder: Any, length: Callable[[Any], float] | None) -> None:
    """Have the loaders of a module or data module give nothing but the longest sample, where it is known."""
    for name in ("train_dataloader", "val_dataloader"):
        kinds = [kind for kind in type(holder).__mro__ if name in vars(kind)]
        inherited = not kinds or kinds[0].__module__.startswith(("lightning.", "pytorch_lightning."))
        if name in vars(holder) or not inherited:  # What Lightning itself has there raises.
            setattr(holder, name, _of_longest(getattr(holder, name), length))


def _of_longest(make: Callable[[], Any], length: Callable[[Any], float] | None) -> Callable[[], Any]:
    from torch.utils.data import DataLoader, Subset

    def made() -> Any:
        loader = make()
        if type(loader) is not DataLoader or loader.batch_size is None:
            return loader
        indices = repeated_longest(loader.dataset, length)
        if indices is None:
            return loader
        kept = {name: getattr(loader, name) for name in KEPT}
        return DataLoader(Subset(loader.dataset, indices), batch_size=loader.batch_size, **kept)

    return made
