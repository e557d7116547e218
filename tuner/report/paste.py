"""The last lines of an answer: Python to paste into a script.

Whatever a study holds, they are comments and assignments of constants.
"""

from __future__ import annotations

import keyword
import shlex
from textwrap import wrap
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

from ..core.command_words import recommended_words
from ..core.plain_text import hide_secrets, one_line
from ..core.results import Recommendation, SearchResult
from . import wording
from .reasons import without_limits
from .units import number

if TYPE_CHECKING:
    from ..core.trials import Facts

IN_A_FRAMEWORK = {
    "lightning": (
        "# Trainer(..., **recommendation.apply(module, datamodule)) uses them in Python; by hand: batch_size and lr of "
        "module and data module, and Trainer(accumulate_grad_batches=accumulation_steps).",
    ),
    "transformers": (
        "# TrainingArguments(..., **recommendation.to_training_arguments()) uses them in Python; by hand: "
        "per_device_train_batch_size=micro_batch_size, gradient_accumulation_steps=accumulation_steps, "
        "per_device_eval_batch_size=eval_batch_size, learning_rate=learning_rate.",
    ),
}
"""What to do with the values, by the kind of the objective."""

_COMMENTS = {"eval_batch_size": "  # For validation only."}
_OF_OPTIMIZERS = ("momentum", "weight_decay", "betas", "eps", "dampening", "nesterov", "alpha")
"""Parameters that are passed on to an optimizer by these names."""


def paste_lines(result: SearchResult, facts: Facts | None = None, *, width: int = 80) -> list[str]:
    """Return lines of Python: the values, the reason, and what to do with them in a script of this kind.

    Comments are broken at the width; an assignment is one line, however long.
    """
    best = result.recommendation
    values: dict[str, Any] = {
        "micro_batch_size": best.micro_batch_size,
        "accumulation_steps": best.accumulation_steps,
        "global_batch_size": best.global_batch_size,
        "eval_batch_size": best.eval_batch_size,
        "learning_rate": best.learning_rate,
    }
    own = {name for record in result.records for name in record.params} | set(() if facts is None else facts.places)
    absent = own - best.params.keys()
    version = one_line(result.versions.get("bstune", ""))
    reason = without_limits(best.reason, best.global_batch_size, best.learning_rate)
    if best.verified and result.goal == "time" and best.seconds_to_target is not None and result.target is not None:
        many = wording.reached_by(best.val_loss, result.target)
        sure = "" if many is None else f", in {many} runs"
        reason = f"loss {number(result.target)} after {wording.to_target(result, best)}{sure}"
    if not best.verified:
        reason = "not confirmed by a full run on a fresh seed"
    lines = [
        one_line(f"# bstune {version}, study {one_line(result.study, 200)}: {one_line(reason, 400)}"),
        *(f"{name} = {value!r}{_COMMENTS.get(name, '')}" for name, value in values.items() if value is not None),
        *(_assignment(name, value, taken=set(values)) for name, value in best.params.items() if value is not None),
        *_steps(best, facts, absent, None if result.probe is None else result.probe.device.kind),
    ]
    if facts is not None and facts.kind == "command":
        width = max(width, len(lines[-1]))  # A command is to be copied whole.
    return [part for line in lines for part in (_broken(line, width) if line.startswith("#") else [line])]


def _broken(comment: str, width: int) -> list[str]:
    """Return a comment as several, none wider than this."""
    rest = comment.removeprefix("# ")
    return [f"# {part}" for part in wrap(rest, max(width - 2, 20), break_on_hyphens=False)] or [comment]


def _assignment(name: str, value: Any, taken: set[str]) -> str:
    """Return one assignment of a constant; what cannot be one becomes a comment."""
    # Python takes names that look alike to a reader for the same one; it is that one which must be free.
    if (
        name.isidentifier()
        and not keyword.iskeyword(name)
        and name == normalize("NFKC", name)
        and name not in {*taken, "__debug__"}
    ):
        line = f"{name} = {_constant(value)}"
        # What sounds like a password is hidden where it is shown, and what is hidden is no Python.
        if _constant(value) is not None and hide_secrets(line) == line:
            return line
    return f"# and the parameter {one_line(repr(name), 80)}: {one_line(repr(value), 200)}"


def _constant(value: Any) -> str | None:
    """Return a plain number or text as Python writes it, also where it came as a kind of its own, such as NumPy's."""
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return repr(kind(value))
    return None


def _steps(best: Recommendation, facts: Facts | None, absent: set[str], device: str | None) -> list[str]:
    if facts is not None and facts.kind == "command":
        return [f"# {one_line(shlex.join(recommended_words(best, facts, absent, device=device)))}"]
    if facts is not None and facts.kind == "loop":
        return ["# Put them where your loop reads the attributes of these names from its trial."]
    if facts is not None and facts.kind in IN_A_FRAMEWORK:
        return list(IN_A_FRAMEWORK[facts.kind])
    optimizer = (facts.optimizer if facts else None) or "AdamW"
    made_by = f"torch.optim.{optimizer}" if optimizer.isidentifier() else "your optimizer"
    own = "".join(f", {name}={name}" for name in _OF_OPTIMIZERS if best.params.get(name) is not None)
    by_tokens = facts is not None and facts.size_unit == "tokens"
    steps = [
        "# DataLoader(train_data, batch_sampler=bstune.TokenBatches(lengths, micro_batch_size), collate_fn=...)"
        if by_tokens
        else "# DataLoader(train_data, micro_batch_size, shuffle=True, drop_last=True)",
        f"# {made_by}(model.parameters(), lr=learning_rate{own}, ...)",
    ]
    if best.world_size > 1:
        dealt = "TokenBatches(..., rank=rank, world_size=N)" if by_tokens else "DistributedSampler"
        steps.insert(0, f"# In each of {best.world_size} processes, with DistributedDataParallel(model) and {dealt}:")
    if best.accumulation_steps > 1:
        steps.append(
            "# (loss / accumulation_steps).backward(); optimizer.step() once every accumulation_steps micro-batches"
        )
    return steps
