"""What holds for the demo's model: write docs/folklore.md and its picture.

    python benchmarks/folklore.py

The model is that of examples/digits.py, trained for 20 epochs. The findings rest on a search of it that is stored with
the tests (two CPU cores), on the 150 full runs of benchmarks/results/digits_20_epochs.csv where losses by batch size
and learning rate are compared, and on looks at fresh models that are made now, in worker processes: about two minutes.
"""

from __future__ import annotations

import csv
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import bstune
from bstune.tests.diagnosis.made import record
from bstune.tests.report.told import FACTS, demo_result
from bstune.tuner.core.diagnosis import Finding
from bstune.tuner.core.trial_record import TrialRecord
from bstune.tuner.diagnosis.claims import CLAIMS, chosen, judged
from bstune.tuner.diagnosis.known import Known
from bstune.tuner.diagnosis.measured import measure
from bstune.tuner.report.diagnosis_text import ORDER, measured
from bstune.tuner.workers.fork_server import Host

ROOT = Path(__file__).parents[1]
PAGE, PICTURE = ROOT / "docs" / "folklore.md", ROOT / "docs" / "folklore.png"
GRID = ROOT / "benchmarks" / "results" / "digits_20_epochs.csv"
BY_GRID = (
    "coupling",
    "crossed-pairs",
    "linear-rule",
    "root-rule",
    "rate-too-far",
    "large-is-worse",
    "shared-rate",
    "best-checkpoint",
)
"""Claims that compare losses by batch size and learning rate."""
MARKS = {"holds": "holds", "does not hold": "**does not hold**", "cannot tell": "cannot tell", "not applicable": "-"}


def grid_records() -> tuple[TrialRecord, ...]:
    """Return the full runs of the grid as trials."""
    rows = csv.DictReader(line for line in GRID.open() if not line.startswith("#"))
    found = []
    for i, row in enumerate(rows):
        batch = int(row["global_batch_size"])
        loss = float(row["val_loss"] or "nan")
        values = [(int(FACTS.full_run_samples), loss)]
        made = record(i, batch, float(row["learning_rate"]), values, seed=int(row["seed"]))
        found.append(replace(made, best_val_loss=float(row["best_val_loss"] or "nan")))
    return tuple(found)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def findings() -> tuple[list[Finding], float, float]:
    """Return a finding for each claim, with the seconds and reference runs that the looks took."""
    result = demo_result()
    known = Known(FACTS, result.probe, result, result.records)
    began_s = time.monotonic()
    names = [claim.measurement for claim in CLAIMS if claim.measurement is not None and claim.name not in BY_GRID]
    example = (ROOT / "examples" / "digits.py").read_text().replace("epochs=10", "epochs=20")
    with tempfile.TemporaryDirectory() as folder:
        (longer := Path(folder, "digits.py")).write_text(example)
        objective = bstune.load(str(longer))
    with Host(objective, device="cpu", threads=1) as host:
        known = replace(known, facts=host.facts)
        wanted = list(dict.fromkeys(names))
        known, trained = measure(
            wanted, known, host, budget=10.0, seed=0, on_note=lambda text: print(text, file=sys.stderr)
        )
    by_name = {finding.name: finding for finding in judged(CLAIMS, known)}
    whole = replace(known, records=grid_records())
    by_name.update({finding.name: finding for finding in judged(chosen(BY_GRID), whole)})
    return [by_name[claim.name] for claim in CLAIMS], time.monotonic() - began_s, trained


def page(found: list[Finding], seconds: float, trained: float) -> str:
    """Return the page."""
    n = Counter(finding.verdict for finding in found)
    made = time.strftime("%Y-%m-%d")
    lines = [
        "# What people say, and what holds for the demo",
        "",
        "Made by `python benchmarks/folklore.py`; do not edit by hand. All of it is true somewhere. For your own "
        "model: `bstune diagnose model.py` ([diagnose.md](diagnose.md)).",
        "",
        "The model is [examples/digits.py](../examples/digits.py), a small CNN without BatchNorm, 1,024 training "
        f"samples, 20 epochs, SGD with momentum, on two CPU cores ({made}). The findings rest on one search of it; on "
        "[150 full runs](../benchmarks/results/digits_20_epochs.csv) where losses by batch size and learning rate are "
        f"compared; and on looks at fresh models ({seconds:.0f} s, {trained:.2g} reference runs of training). Of "
        f"{len(found)} claims {n['holds']} hold, {n['does not hold']} do not, {n['cannot tell']} cannot be told, and "
        f"{n['not applicable']} do not apply.",
        "",
        "![Best learning rate by batch size, losses at one rate and at each batch's own, and losses on new data at "
        "equal training loss](folklore.png)",
        "",
        "| claim | here | found | figure (90 % interval) | what to do |",
        "| --- | --- | --- | --- | --- |",
    ]
    sources = {finding.name: finding.source for finding in found}
    for finding in sorted(found, key=lambda each: ORDER.index(each.verdict)):
        cells = (
            f"{finding.claim} ({sources[finding.name]}) `{finding.name}`",
            MARKS[finding.verdict],
            finding.found[:1].upper() + finding.found[1:],
            measured(finding),
            finding.advice,
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def draw(found: list[Finding]) -> None:
    """Draw best rates by batch size, losses at a shared and at an own rate, and losses on new data by training loss."""
    import altair
    import pandas
    import vl_convert

    by_name = {finding.name: finding for finding in found}
    coupling, shared = by_name["coupling"].data, by_name["shared-rate"].data
    rates = pandas.DataFrame({"batch": coupling["batch_size"], "best rate": coupling["best_learning_rate"]})
    losses = pandas.DataFrame(
        [
            {"batch": batch, "loss": loss, "rate": kind}
            for kind, key in (("one rate for all", "shared_rate_loss"), ("each batch's own", "own_rate_loss"))
            for batch, loss in zip(shared["batch_size"], shared[key], strict=True)
            if loss is not None
        ]
    )
    x = altair.X("batch:Q", scale=altair.Scale(type="log", base=2), title="batch size")
    left = (
        altair.Chart(rates, title="Best learning rate", width=260, height=220)
        .mark_line(point=True)
        .encode(x, altair.Y("best rate:Q", scale=altair.Scale(type="log", base=2), title="learning rate"))
    )
    right = (
        altair.Chart(losses, title="Validation loss", width=260, height=220)
        .mark_line(point=True)
        .encode(
            x,
            altair.Y("loss:Q", scale=altair.Scale(type="log"), title="loss"),
            altair.Color("rate:N", title="learning rate"),
            altair.Shape("rate:N", legend=None),
        )
    )
    gap = by_name["generalization-gap"].data
    curves = pandas.DataFrame(
        [
            {"training loss": train, "validation loss": val, "batch": str(batch), "run": f"{name} {i}"}
            for batch, name in zip(gap["batch_size"], ("small", "large"), strict=True)
            for i, run in enumerate(zip(gap[f"{name}_train"], gap[f"{name}_val"], strict=True))
            for train, val in zip(*run, strict=True)
        ]
    )
    log = altair.Scale(type="log")
    last = (
        altair.Chart(curves, title="On new data, at equal training loss", width=260, height=220)
        .mark_line(point=True)
        .encode(
            altair.X("training loss:Q", scale=log),
            altair.Y("validation loss:Q", scale=log),
            altair.Color("batch:N", title="batch size"),
            altair.Detail("run:N"),
            altair.Order("training loss:Q"),
        )
    )
    row = altair.hconcat(left, right, last).resolve_scale(color="independent")
    PICTURE.write_bytes(vl_convert.vegalite_to_png(row.to_dict(), scale=2))


def main() -> None:
    """Write page and picture."""
    found, seconds, trained = findings()
    PAGE.write_text(page(found, seconds, trained))
    draw(found)


if __name__ == "__main__":
    main()
