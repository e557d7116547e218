"""How long does `bstune --help` take, next to a bare click program in the same run?

Run `python benchmarks/startup.py`. Both are started as programs, in turn, so that a busy moment of the machine hits
both. The answer is the ratio of the medians of their wall times; it should be at most 2. Exit status 1 when it is more.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

BARE = """
import sys
import click

@click.group()
def main():
    "A program without a purpose."

@main.command()
@click.argument("model")
def search(model):
    "Do nothing."

sys.argv = ["bare", "--help"]
main()
"""
BSTUNE = "import sys; sys.argv = ['bstune', '--help']; from bstune.cli import main; main()"
MOST = 2.0


def wall_s(code: str) -> float:
    start_s = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start_s


def main() -> int:
    """Measure both and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--repeats", type=int, default=15, help="times that each program is started (default: %(default)s)"
    )
    repeats = parser.parse_args().repeats
    wall_s(BARE), wall_s(BSTUNE)  # The first start of each reads files that the others find in memory.
    pairs = [(wall_s(BARE), wall_s(BSTUNE)) for _ in range(repeats)]
    bare_s, bstune_s = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = bstune_s / bare_s
    print(
        json.dumps(
            {
                "bare_click_s": round(bare_s, 4),
                "bstune_help_s": round(bstune_s, 4),
                "ratio": round(ratio, 3),
                "most": MOST,
            }
        )
    )
    return 0 if ratio <= MOST else 1


if __name__ == "__main__":
    sys.exit(main())
