"""The recorded tables on which the search is measured.

They are read from BSTUNE_DATA (default: ../shared/data beside the checkout).
"""

from __future__ import annotations

import dataclasses
import math
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from bstune.tuner.testing.tables import Table

PLANNED_SHARES = (1 / 3, 1 / 9, 1 / 27)
"""Of a full run: the short runs that were measured under a schedule, each scaled to its own end."""
SCHEDULED_EPOCHS = 12
"""Of a full run of such a table."""


def data_dir() -> Path:
    """Return the folder of the recorded curves, or leave with a message that says what is missing."""
    path = Path(os.environ.get("BSTUNE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not (path / "curves").is_dir():
        sys.exit(
            f"No recorded tables in {path}: expected a folder `curves` there. Set BSTUNE_DATA to the folder that "
            "holds it."
        )
    return path


def _table(name: str, frame: pd.DataFrame, n_samples: int, epochs: float) -> Table:
    """Build a table from columns batch, lr, seed, samples, loss."""
    curves: dict[tuple[int, float], list[list[tuple[int, float]]]] = {}
    for _, rows in frame.groupby(["batch", "lr", "seed"], sort=True):
        rows = rows.sort_values("samples")
        curve = [(int(s), float(v)) for s, v in zip(rows["samples"], rows["loss"], strict=True)]
        curves.setdefault((int(rows["batch"].iloc[0]), float(rows["lr"].iloc[0])), []).append(curve)
    return Table(name, n_samples, epochs, curves)


def reseeded(table: Table, seed: int) -> Table:
    """Return a table with the same truth and new luck: the curves of each cell in another order.

    Seeds below the number of recorded ones leave the table as it is; so does a table of one seed.
    """
    if seed < table.n_seeds or table.n_seeds == 1:
        return table
    n = table.n_seeds
    order = {cell: random.Random(f"{seed} {cell}").sample(range(n), n) for cell in table.curves}
    curves = {cell: [seeds[i] for i in order[cell]] for cell, seeds in table.curves.items()}
    short = {cell: [seeds[i] for i in order[cell]] for cell, seeds in table.short.items()}
    return dataclasses.replace(table, curves=curves, short=short)


def digits() -> list[Table]:
    frame = pd.read_csv(data_dir() / "curves" / "own_digits_grid.csv.gz")
    frame["samples"], frame["loss"] = frame["epoch"] * 1024, frame["val_loss"]
    return [_table(f"digits/{task}", rows, 1024, 15) for task, rows in frame.groupby("task")]


def mnist() -> list[Table]:
    frame = pd.read_csv(data_dir() / "curves" / "own_mnist10k_mlp_grid.csv.gz")
    frame = frame.rename(columns={"batch_size": "batch", "examples": "samples", "val_loss": "loss"})
    frame["lr"] = 2.0 ** frame["lr"].map(lambda lr: round(math.log2(lr)))  # Printed with six digits.
    return [_table(f"mnist/{name}", rows, 8000, 6) for name, rows in frame.groupby("optimizer")]


def measured_step_s() -> dict[str, dict[int, float]]:
    """Return the seconds of an optimizer step by batch size, where recorded: a table's median over all runs."""
    digits = pd.read_csv(data_dir() / "curves" / "own_digits_grid.csv.gz")
    digits["step_s"] = digits["secs"] / (digits["epoch"] * (1024 // digits["batch"]))
    digits["name"] = "digits/" + digits["task"]
    mnist = pd.read_csv(data_dir() / "curves" / "own_mnist10k_mlp_grid.csv.gz").rename(columns={"batch_size": "batch"})
    mnist["step_s"] = mnist["cpu_s"] / mnist["step"]
    mnist["name"] = "mnist/" + mnist["optimizer"]
    both = pd.concat([digits, mnist])
    medians = both[both["step_s"] > 0].groupby(["name", "batch"])["step_s"].median()
    return {
        str(name): {int(b): float(s) for b, s in rows.droplevel(0).items()} for name, rows in medians.groupby("name")
    }


def lcbench() -> list[Table]:
    frame = pd.read_csv(data_dir() / "curves" / "lcbench_surrogate_grid.csv.gz")
    frame = frame.rename(columns={"batch_size": "batch", "learning_rate": "lr", "val_ce": "loss"})
    frame["seed"], frame["samples"] = (
        0,
        frame["epoch"] * 10_000,
    )  # The surrogate does not say how many samples an epoch has.
    return [_table(f"lcbench/{task}", rows, 10_000, 52) for task, rows in frame.groupby("task")]


def own(folder: Path) -> list[Table]:
    """Return the tables at a constant rate that `make_tables.py` measured."""
    found = []
    for name, frame in _measured(folder, scheduled=False):
        n_samples = int(frame["samples"].min())
        found.append(_table(f"own/{name}", frame, n_samples, round(frame["samples"].max() / n_samples)))
    return found


def scheduled(folder: Path) -> list[Table]:
    """Return the tables under a falling rate, with their planned short runs, that `make_tables.py` measured."""
    found = []
    for name, frame in _measured(folder, scheduled=True):
        longest = frame.groupby("batch")["end"].transform("max")
        whole = _table(
            f"own/{name}", frame[frame["end"] == longest], int(longest.max()) // SCHEDULED_EPOCHS, SCHEDULED_EPOCHS
        )
        by_end = [_table("", rows, 1, 1).curves for _, rows in frame[frame["end"] < longest].groupby("end")]
        short = {
            cell: [[part[cell][seed] for part in by_end if cell in part] for seed in range(whole.n_seeds)]
            for cell in whole.curves
        }
        found.append(dataclasses.replace(whole, schedule=name.split("_")[-1], short=short))
    return found


def _measured(folder: Path, *, scheduled: bool) -> Iterator[tuple[str, pd.DataFrame]]:
    for path in sorted(folder.glob("*.csv.gz")):
        frame = pd.read_csv(path)
        if ("end" in frame) == scheduled:
            yield path.name.split(".")[0], frame
