"""`bstune.report`: one line in a script of the user's, which does nothing unless bstune runs that script."""

from __future__ import annotations

import json
import os
from typing import Any

VARIABLE = "BSTUNE_REPORT"
"""The environment variable with the path of the file to which a script may append lines of JSON."""


def report(val_loss: Any, *, samples: int | None = None, epoch: float | None = None, **metrics: Any) -> None:
    """Tell bstune the validation loss; outside of a search this does nothing.

    Without a search it costs nothing and needs nothing, so the line may stay in the script. The search may end the
    script after a report.

    Args:
        val_loss: The validation loss, to be minimised: a number, or a tensor of one.
        samples: Training samples that were seen since the start.
        epoch: Epochs that have passed, where the samples are not at hand. With neither, each report is an epoch.
        metrics: Other numbers to record beside it.

    Example:
        >>> report(val_loss=0.5, samples=2000)
    """
    path = os.environ.get(VARIABLE)
    if not path:
        return
    numbers = {"val_loss": val_loss, "samples": samples, "epoch": epoch, **metrics}
    if (ranks := os.environ.get("WORLD_SIZE", "")).isdigit():  # As torchrun and others set it.
        numbers["world_size"] = int(ranks)
    line = json.dumps({name: _plain(value) for name, value in numbers.items() if value is not None}) + "\n"
    try:
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
    except OSError:  # The search has gone; training goes on.
        return
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def _plain(value: Any) -> float:
    return float(value.item() if hasattr(value, "item") else value)
