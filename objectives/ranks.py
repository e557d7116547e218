"""How many processes a command starts that train together: its ranks."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence

from ..tuner.core.errors import ArgumentError, ObjectiveError

LAUNCHERS = {
    "torchrun": ("--nproc-per-node", "--nnodes"),
    "torch.distributed.run": ("--nproc-per-node", "--nnodes"),
    "torch.distributed.launch": ("--nproc-per-node", "--nnodes"),
    "accelerate": ("--num-processes",),
    "deepspeed": ("--num-gpus", "--num-nodes"),
    "mpirun": ("-np", "-n"),
    "mpiexec": ("-np", "-n"),
}
"""Programs that start ranks, with their options for it: the product of these, where they are given."""


SEVERAL = "put the training into a script and search that: bstune search -- torchrun --nproc-per-node N train.py ..."


def refuse_launcher(who: str) -> None:
    """Pass, unless a launcher has started this process as one of several, for which a framework would wait.

    Raises:
        ObjectiveError: It has; says what to do.
    """
    if (n := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise ObjectiveError(
            f"A launcher has started bstune as one of {n} processes (WORLD_SIZE={n}), and {who} would wait for the "
            f"others: a trial is one process. Start bstune without it. To train with several, {SEVERAL}"
        )


def ranks_in(words: Sequence[str]) -> int:
    """Return how many processes the launcher in a command starts; 1 where there is none, or it does not say.

    Raises:
        ArgumentError: It starts as many as the machine has of something.

    Example:
        >>> ranks_in(["torchrun", "--nproc_per_node=2", "train.py", "--nnodes", "7"])
        2
        >>> ranks_in(["python", "-m", "torch.distributed.run", "--nproc-per-node", "4", "--nnodes", "2", "train.py"])
        8
        >>> ranks_in(["python", "train.py", "-n", "4"])
        1
    """
    at = next((i for i, word in enumerate(words) if os.path.basename(word) in LAUNCHERS), None)
    if at is None:
        return 1
    options = LAUNCHERS[os.path.basename(words[at])]
    own = itertools.takewhile(lambda word: not word.endswith(".py"), words[at + 1 :])  # What follows is the script's.
    found, n = [word.replace("_", "-") if word.startswith("-") else word for word in own], 1
    if "accelerate" in words[at] and "--cpu" in found:
        return 1  # It starts one process there, whatever it is told.
    for word, after in itertools.zip_longest(found, found[1:], fillvalue=""):
        name, equals, value = word.partition("=")
        if name in options:
            n *= _number(word if equals else f"{word} {after}", value if equals else after)
    if "accelerate" in words[at] and n > 1 and "--multi-gpu" not in found:
        raise ArgumentError(_asked_for(f"accelerate with --num_processes {n}, which are {n} where there are GPUs"))
    return n


def _number(said: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and int(value) >= 1):
        raise ArgumentError(_asked_for(said))
    return int(value)


def _asked_for(said: str) -> str:
    return (
        f"The command has {said}: how many processes train is not known before it runs. Say it with --world-size N "
        "(Command(world_size=N))."
    )
