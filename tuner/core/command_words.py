"""The words of a command line with places in braces: filled, or left out with their flags.

What stands in braces and is no known name is left as it is, since shells, JSON and templates have braces too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from .results import Recommendation
from .trials import Facts

PLACE = re.compile(r"(?<!\{)\{([A-Za-z_]\w*)\}")
"""In doubled braces, `{{lr}}`, a name is none of ours."""


def filled(words: Sequence[str], values: Mapping[str, Any]) -> list[str]:
    """Return the command with its places filled; braces around anything else stay.

    Example:
        >>> filled(["train", "--lr={learning_rate}", '{"a": {}}'], {"learning_rate": 1e-5})
        ['train', '--lr=1.0e-05', '{"a": {}}']
    """
    written = {name: _written(value) for name, value in values.items()}
    return [PLACE.sub(lambda place: written.get(place[1], place[0]), word) for word in words]


def _written(value: Any) -> str:
    """Return a value as programs read it: for YAML, a number with an exponent has a dot."""
    text = str(value)
    if isinstance(value, float) and "e" in text and "." not in text:
        return text.replace("e", ".0e")
    return text


def words_without(words: Sequence[str], absent: Collection[str]) -> list[str]:
    """Return a command line without the words that name a dimension which is not there, and the flags before them.

    Example:
        >>> words_without(["train", "--lr", "{lr}", "--momentum", "{momentum}", "--beta={beta}"], {"momentum", "beta"})
        ['train', '--lr', '{lr}']
    """
    kept: list[str] = []
    for i, word in enumerate(words):
        if not any(re.search(rf"(?<!\{{)\{{{name}\}}", word) for name in absent):
            kept.append(word)
        elif i and kept and not word.startswith("-") and re.fullmatch(r"--?[A-Za-z][^={}]*", words[i - 1]):
            kept.pop()
    return kept


def epochs_of(samples: float, samples_per_epoch: int) -> int:
    """Return the whole epochs that a run of so many samples needs, at least one."""
    return max(1, math.ceil(samples / samples_per_epoch - 1e-9))


def recommended_words(
    best: Recommendation, facts: Facts, absent: Collection[str], *, seed: int = 0, device: str | None = None
) -> list[str]:
    """Return the command of a full run with a recommendation, which lacks the `absent` parameters of the space."""
    values = {
        **best.params,
        "micro_batch_size": best.micro_batch_size,
        "accumulation_steps": best.accumulation_steps,
        "global_batch_size": best.global_batch_size,
        "learning_rate": best.learning_rate,
        "seed": seed,
        "max_samples": round(facts.full_run_samples),
        "max_epochs": epochs_of(facts.full_run_samples, facts.n_samples),
        "trial": "best",
        **({} if device is None else {"device": device}),
    }
    return filled(words_without(facts.command, absent), values)
