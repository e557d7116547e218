"""Losses in what a training script prints, and how many samples it had seen by then.

Ready-made patterns know what common scripts and trainers print; a regular expression of the user's does for others. A
script says how far it is by the epoch, by the step, or only by how many losses it has printed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..tuner.core.errors import ArgumentError
from .scores import named_score

NUMBER = r"[-+]?(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:[eE][-+]?\d+)?|[-+]?(?:nan|inf(?:inity)?)\b"
_VALUE = rf"(?P<value>{NUMBER})"
_IS = r"(?:\s*[:=]\s*|\s+(?:is\s+)?)"
# Such as `val_loss`, `Validation set: Average loss`, `loss/val`; not what ends in these letters, as `interval`.
_SET = r"(?<![A-Za-z])(?:(?:{0})(?:[\s_./:-]|\bset\b)*(?:(?:average|avg\.?|mean)[ _])?loss|loss[/_ (]+(?:{0})\b\)?)"
READY_MADE = {
    # Transformers' Trainer prints a dictionary; newer releases put quotes around its numbers.
    "trainer": rf"['\"]eval_loss['\"]:\s*['\"]?{_VALUE}(?:.*['\"]epoch['\"]:\s*['\"]?(?P<passed>{NUMBER}))?",
    # timm's last line of a validation: `Test: [  78/78]  Time: ...  Loss:  0.91 ( 1.02)`, the mean in parentheses.
    "timm": rf"^Test: \[\s*(?P<_at>\d+)/(?P=_at)\].*?Loss:\s*[\d.]+\s*\(\s*{_VALUE}\s*\)",
    # What descends from PyTorch's ImageNet example ends a validation with ` * Acc@1 57.9 Acc@5 80.1 loss 1.12`, and
    # torchvision's scripts with `Test:  Acc@1 57.9 Acc@5 80.1`; some tell no loss.
    "imagenet": rf"^\s*(?:\*|Test:)\s*Acc@1:?\s+(?P<percent>[\d.]+)(?:.*?\bloss:?\s+{_VALUE})?",
    # Ultralytics validates once an epoch: the row of all classes ends with the mean average precision.
    "ultralytics": r"^\s*all(?:\s+\d+){2}(?:\s+[\d.]+)*\s+(?P<accuracy>[\d.]+)\s*$",
    "steps": rf"(?i)\b(?:step|iter(?:ation)?)\s*:?\s*(?P<step>\d+)\b.*"
    rf"\bval(?:id(?:ation)?)?[ _]loss\s*[:=]?\s*{_VALUE}",
    "validation": rf"(?i){_SET.format('val|valid|validation|eval|evaluation|dev')}{_IS}{_VALUE}",
    "test": rf"(?i){_SET.format('test')}{_IS}{_VALUE}",
}
"""By name; the first that matches a line of a script is the one for all that follow. Lightning's and Keras's
progress bars (`val_loss=0.31`, `val_loss: 0.31`) are read by `validation`.

What their named groups say: `value`: the loss; `accuracy`: its complement is the loss; `percent`: the same, of a number
that is one of a hundred also below 1; `epoch`: the number of the epoch; `passed`: epochs passed, also a part of one;
`step` and `samples`: optimizer steps and samples passed.
"""
LOSSES = ("value", "accuracy", "percent")
"""The groups that say the loss; the first that has matched counts."""
_EPOCH = re.compile(r"(?i)\bepoch\b[\s:=#\[(]*(\d+)|^\s*(\d+)/\d+\s+[\d.]+G\b|^Train: (\d+) \[")
"""Such as `Epoch 3/10`, `Train Epoch: 3 [0/60000]`, Ultralytics' `3/100  2.1G`, timm's `Train: 3 [`."""
_TRAINS = re.compile(r"(?i)\bloss\b|\bepoch\b|\bstep\b|\biter|it/s\b|s/it\b|\d+%\|")
"""A line that a script prints when it trains."""
_PREPARES = re.compile(
    r"(?i)^[^|]*\b(?:(?:down|up)?load|fetch|map|filter|token|generat|prepar|preprocess|extract|unpack|cach|convert|read)"
)
"""Before a progress bar: it is one of what comes before training, as of `Map`, or of `Loading checkpoint shards`."""
_LEARNS = re.compile(r"(?i)\bloss\b|\bepoch\b")
"""No bar of what comes before training says this, whatever else is on the line: `Generator loss: 0.3 | ...`."""
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-_]")
_WORDS = (b"val", b"test", b"dev", b"epoch", b"all", b"train:", b"acc@1", b"/")
"""What has none of these in it has no loss and no epoch for a ready-made pattern; most that is printed has none."""
_WORDS_OF_TRAINING = (b"loss", b"step", b"iter", b"%|")
_NOT_FINITE = re.compile(r"(?i)(?<![\w.])[-+]?(?:nan|inf(?:inity)?)(?![\w.])")
MOST_LINE = 10_000
"""Characters: what is longer is read at its end."""


@dataclass(frozen=True)
class SaidLoss:
    """A loss that a script has told, and the training samples that it had seen."""

    val_loss: float
    samples: int


class MetricLines:
    """Reads the output of one run, as it comes.

    Attributes:
        name: The name of the pattern that has matched, or None so far.
        trains: A line was seen that scripts print when they train.
        epochs: How often an epoch was named that follows on the one named before.
    """

    def __init__(self, metric: str | None, *, samples_per_epoch: int, batch_size: int) -> None:
        """Read by a ready-made pattern, a regular expression, or (None) the first ready-made one that matches.

        Args:
            metric: Name or expression, as `compiled` takes it.
            samples_per_epoch: Training samples in an epoch of the script.
            batch_size: Samples in an optimizer step.
        """
        self._patterns = compiled(metric)
        self._own = metric is not None and metric not in READY_MADE
        self.name: str | None = None
        self.trains = False
        self.epochs = 0
        self._samples_per_epoch = samples_per_epoch
        self._batch_size = batch_size
        self._rest = b""
        self._redrawn = False
        """The line that is being read is drawn over and over, as progress bars are."""
        self._epoch: int | None = None
        self._first_epoch = 1
        self._waiting: tuple[int | None, float] | None = None
        """Epoch and loss on such a line, until it is known that no newer loss replaces them."""
        self._told_epoch: int | None = None
        self._n_told = 0

    def feed(self, data: bytes) -> Iterator[SaidLoss]:
        """Yield the losses in what was printed now."""
        if self._waiting is None and not self._may_tell(self._rest + data):
            last = max(data.rfind(b"\n"), data.rfind(b"\r"))
            self._redrawn = self._redrawn if last < 0 else data[last : last + 1] == b"\r"
            self._rest = (self._rest + data if last < 0 else data[last + 1 :])[-4 * MOST_LINE :]
            return
        parts = re.split(rb"(\r\n|\n|\r)", self._rest + data)
        self._rest = parts[-1][-4 * MOST_LINE :]
        for text, end in zip(parts[0:-1:2], parts[1::2], strict=True):
            yield from self._line(text, redrawn=end == b"\r")

    def finish(self) -> Iterator[SaidLoss]:
        """Yield the losses that stood on a line without an end."""
        text, self._rest = self._rest, b""
        yield from self._line(text, redrawn=False)
        yield from self._settle()

    def _may_tell(self, data: bytes) -> bool:
        lower = data.lower()
        return (
            self._own
            or any(word in lower for word in _WORDS)
            or (not self.trains and any(word in lower for word in _WORDS_OF_TRAINING))
        )

    def _line(self, text: bytes, *, redrawn: bool) -> Iterator[SaidLoss]:
        drawn_over, self._redrawn = self._redrawn or redrawn, redrawn
        found = self._read(text) if self._may_tell(text) else None
        if self._waiting is not None and self._waiting[0] != self._epoch:
            yield from self._settle()  # Another epoch has begun.
        if found is not None:
            loss, told = found
            samples = self._stated(told)
            if samples is not None:
                yield SaidLoss(loss, samples)
                return
            self._waiting = (self._epoch, loss)
        # What is drawn over and over repeats the loss of the epoch before, until there is a new one.
        if not redrawn and (self._epoch is None or (found is not None and not drawn_over)):
            yield from self._settle()

    def _read(self, text: bytes) -> tuple[float, dict[str, str]] | None:
        """Return the loss on a line and what else the pattern has found there; note the epoch that it names."""
        line = _ESCAPES.sub("", text[-4 * MOST_LINE :].decode(errors="replace"))[-MOST_LINE:]
        self.trains = self.trains or _trains(line)
        mark = _EPOCH.search(line)
        if mark is not None:
            self._note_epoch(int(next(filter(None, mark.groups()))))
        found = self._match(line)
        if found is None:
            return None
        return _loss(found), {name: found[name] for name in found.re.groupindex if found[name] is not None}

    def _note_epoch(self, epoch: int) -> None:
        self.epochs += self._epoch is not None and epoch == self._epoch + 1
        self._epoch, self._first_epoch = epoch, min(self._first_epoch, epoch)

    def _match(self, line: str) -> re.Match[str] | None:
        for name, pattern in self._patterns.items():
            if self.name not in (None, name):
                continue
            # The usual pattern of a number does not match one that is not finite.
            found = pattern.search(line) or pattern.search(_NOT_FINITE.sub("9e999", line))
            if found is not None:
                self.name = name
                return found
        return None

    def _stated(self, told: dict[str, str]) -> int | None:
        """Return the samples where the line itself says them."""
        for name, factor in (("samples", 1), ("step", self._batch_size), ("passed", self._samples_per_epoch)):
            if name in told:
                return round(_number(told[name]) * factor)
        if "epoch" in told:
            self._note_epoch(int(_number(told["epoch"])))
        return None

    def _settle(self) -> Iterator[SaidLoss]:
        """Yield the loss that waits; the first of an epoch counts, and a second one is a repetition."""
        if self._waiting is None:
            return
        (epoch, loss), self._waiting = self._waiting, None
        if epoch is None:
            self._n_told += 1
            yield SaidLoss(loss, self._n_told * self._samples_per_epoch)
        elif self._told_epoch is None or epoch > self._told_epoch:
            self._told_epoch = epoch
            yield SaidLoss(loss, (epoch - self._first_epoch + 1) * self._samples_per_epoch)


def compiled(metric: str | None) -> dict[str, re.Pattern[str]]:
    """Return the patterns to try, by name: all ready-made ones, the one of this name, or the user's own expression.

    Raises:
        ArgumentError: It is not a regular expression, or has no group with the value.
    """
    if metric is None:
        return {name: re.compile(pattern) for name, pattern in READY_MADE.items()}
    if metric in READY_MADE:
        return {metric: re.compile(READY_MADE[metric])}
    try:
        pattern = re.compile(metric)
    except re.error as error:
        raise ArgumentError(
            f"metric={metric!r} is not a regular expression ({error}): expected the value in parentheses, such "
            rf"as 'val_loss=([\d.eE+-]+)', or one of {', '.join(READY_MADE)}."
        ) from error
    if pattern.groups == 0 or (pattern.groupindex and not set(LOSSES) & set(pattern.groupindex)):
        raise ArgumentError(
            f"metric={metric!r} does not say which part is the value: expected it in parentheses, such as "
            rf"'val_loss=([\d.eE+-]+)', or as a group (?P<value>...), (?P<accuracy>...) or "
            f"(?P<percent>...); or one of the ready-made {', '.join(READY_MADE)}."
        )
    text = re.sub(r"\(\?P<\w+>", "(", metric)
    if not {"accuracy", "percent"} & set(pattern.groupindex) and (score := named_score(text)) is not None:
        raise ArgumentError(
            f"metric={metric!r} reads {score!r} as the loss, and bstune minimises: expected a loss. Of a score "
            "between 0 and 1, or in percent, name the group (?P<accuracy>...): its complement is then the loss."
        )
    return {"yours": pattern}


def _trains(line: str) -> bool:
    """Return whether scripts print such a line when they train."""
    if _LEARNS.search(line):
        return True
    return bool(_TRAINS.search(line)) and not ("|" in line and _PREPARES.search(line))


def _loss(found: re.Match[str]) -> float:
    names = found.re.groupindex
    name: Any = next((name for name in LOSSES if name in names and found[name] is not None), 1)
    text, end = found[name] or "", found.end(name)
    # A pattern of digits and dots ends where a decimal comma begins.
    if text.lstrip("+-").isdigit() and (more := re.match(r",\d+(?:[eE][-+]?\d+)?", found.string[end:])):
        text += more[0]
    value = _number(text)
    if name in ("accuracy", "percent"):
        return 1 - (value / 100 if value > 1 or name == "percent" else value)
    return value


def _number(text: str) -> float:
    """Return a number as a script prints it; NaN where it is none.

    Example:
        >>> _number("0,25"), _number("1e-3"), _number("9e999")
        (0.25, 0.001, inf)
    """
    try:
        return float(text.strip().replace(",", "."))
    except ValueError:
        return math.nan


def reported_in(line: bytes) -> dict[str, float] | None:
    """Return the numbers of one line of JSON that a script has written; None where it is no such line.

    Example:
        >>> reported_in(b'{"val_loss": 0.5, "samples": 2000}')
        {'val_loss': 0.5, 'samples': 2000.0}
    """
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("val_loss", math.nan), (int, float)):
        return None
    return {
        str(name): float(value)
        for name, value in found.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    } | ({"val_loss": math.nan} if found.get("val_loss", 0) is None else {})
