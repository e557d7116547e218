"""Does CUDA do what bstune assumes? Compares all claims that come from documents with the card of this machine.

Run `make gpu`, or `python benchmarks/gpu.py` with any Python that has torch and numpy: it needs neither an installed
bstune nor Ray, Optuna, pandas or the internet, and takes at most 8 minutes. It writes
`benchmarks/results/gpu-<card>-<date>.json`, a record for each check, and the golden allocator traces that the tests
replay. Exit status 1 when a claim does not hold.

`--dry` runs every check on CPU and on the allocator's simulator: then the figures mean nothing, and only the code is
tried.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 450.0
"""The rest of the 8 minutes is for the golden traces."""


def find_bstune() -> None:
    """Use the checkout around this file as the package where none is installed, whatever its folder is called."""
    if importlib.util.find_spec("bstune") is not None:
        return
    spec = importlib.util.spec_from_file_location(
        "bstune", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules["bstune"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["bstune"])


find_bstune()

import torch  # noqa: E402  # These need bstune to be found.
from gpu_cards import Card, CudaCard, DryCard, NotRunError, child, record_golden  # noqa: E402
from gpu_checks import CHECKS, Eye  # noqa: E402


@dataclass(frozen=True)
class Record:
    """What became of one claim."""

    name: str
    claim: str
    measured: dict[str, Any]
    status: Literal["passed", "failed", "not run"]
    why: str
    seconds: float


def run_check(name: str, card: Card, *, broken: bool, deadline_s: float) -> Record:
    """Compare one claim with the card; an exception is a failure, and the next check runs all the same."""
    check, start_s = CHECKS[name], time.monotonic()
    claim = (check.__doc__ or "").strip()

    def left_s() -> float:
        return deadline_s - time.monotonic()

    def record(measured: dict[str, Any], status: Literal["passed", "failed", "not run"], why: str) -> Record:
        return Record(name, claim, measured, status, why, round(time.monotonic() - start_s, 2))

    if left_s() <= 0:
        return record({}, "not run", "the time was over")
    try:
        judged = check(card, Eye(spoiled=broken), left_s)
    except NotRunError as error:
        return record({}, "not run", str(error))
    except Exception as error:
        return record(
            {}, "failed", f"{type(error).__name__}: {error} at {traceback.extract_tb(error.__traceback__)[-1].name}"
        )
    return record(judged.measured, "failed" if judged.wrong else "passed", "; ".join(judged.wrong))


def about(card: Card, arguments: Sequence[str]) -> dict[str, Any]:
    """Say what the figures were taken on."""
    from bstune.tuner.device.nvml import nvml_devices

    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "card": card.name,
        "driver": next((found["driver"] for found in nvml_devices()), None),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": sys.version.split()[0],
        "commit": done.stdout.strip() or None,
        "command": " ".join(["python benchmarks/gpu.py", *arguments]),
        "date": datetime.date.today().isoformat(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks, print a line for each, write the records; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="on CPU and the simulator; figures mean nothing")
    parser.add_argument("--only", choices=CHECKS, action="append", help="this check only (may be repeated)")
    parser.add_argument(
        "--break", dest="broken", choices=CHECKS, help="spoil what this check measures: it must fail then"
    )
    parser.add_argument(
        "--output", type=Path, help="folder for the results (default: benchmarks/results; with --dry: none)"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--arguments", type=json.loads, default={}, help=argparse.SUPPRESS)
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    if options.child:
        print(json.dumps(child(options.child, options.arguments)))
        return 0
    if not options.dry and not torch.cuda.is_available():
        print(
            "No CUDA device works here, so there is nothing to check. Use --dry to try the checks themselves.",
            file=sys.stderr,
        )
        return 2
    deadline_s = time.monotonic() + LIMIT_S
    card: Card = DryCard() if options.dry else CudaCard()
    records = []
    for name in options.only or CHECKS:
        records.append(run_check(name, card, broken=name == options.broken, deadline_s=deadline_s))
        print(
            f"{records[-1].status:8} {name:10} {records[-1].seconds:6.1f} s  {records[-1].why or records[-1].claim}",
            flush=True,
        )
    folder = options.output or (None if options.dry else ROOT / "benchmarks" / "results")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        facts = about(card, given)
        label = f"{re.sub(r'[^a-z0-9]+', '-', card.name.lower()).strip('-')}-{facts['date']}"
        golden = record_golden(card, folder, label) if isinstance(card, CudaCard) and not options.only else []
        document = facts | {"golden": golden, "records": [asdict(record) for record in records]}
        (folder / f"gpu-{label}.json").write_text(json.dumps(document, indent=1, default=str) + "\n")
        print(f"Written: {folder / f'gpu-{label}.json'}")
    return int(any(record.status == "failed" for record in records))


if __name__ == "__main__":
    sys.exit(main())
