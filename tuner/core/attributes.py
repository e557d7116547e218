"""Settings where people keep them: attributes and `hparams` of the objects that a framework trains with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .errors import ArgumentError

BATCH_SIZE = ("batch_size", "micro_batch_size", "train_batch_size")
EVAL_BATCH_SIZE = ("eval_batch_size", "val_batch_size")
LEARNING_RATE = ("learning_rate", "lr")


def set_attributes(objects: Iterable[Any], names: Sequence[str], value: Any) -> list[str]:
    """Set each attribute of one of these names, and each of their `hparams`; return which were found.

    Example:
        >>> from types import SimpleNamespace
        >>> module = SimpleNamespace(lr=0.1, hparams={"lr": 0.1, "width": 8})
        >>> set_attributes([module, None], LEARNING_RATE, 0.5), module.lr, module.hparams["lr"]
        (['SimpleNamespace.lr', 'SimpleNamespace.hparams.lr'], 0.5, 0.5)
    """
    found = []
    for one in objects:
        if one is None:
            continue
        hparams = getattr(one, "hparams", None)
        for name in names:
            if not callable(getattr(one, name, callable)) and _assigned(one, name, value):
                found.append(f"{type(one).__name__}.{name}")
            if isinstance(hparams, dict) and name in hparams:
                hparams[name] = value
            elif isinstance(hparams, dict) or not hasattr(hparams, name) or not _assigned(hparams, name, value):
                continue
            found.append(f"{type(one).__name__}.hparams.{name}")
    return found


def _assigned(one: Any, name: str, value: Any) -> bool:
    try:
        setattr(one, name, value)
    except AttributeError:  # A property that can only be read, such as one that reads `hparams`.
        return False
    return True


def no_place(what: str, names: Sequence[str], objects: Iterable[Any]) -> ArgumentError:
    """Return the error for a setting that none of these objects has a place for."""
    kinds = [type(one).__name__ for one in objects if one is not None]
    return ArgumentError(
        f"There is no place for the {what} in {' or '.join(kinds)}: expected an attribute "
        f"{' or '.join(f'self.{name}' for name in names)}, or the same in self.hparams."
    )


def apply_setting(
    objects: Sequence[Any], *, batch_size: int, learning_rate: float, eval_batch_size: int | None
) -> None:
    """Set batch size and learning rate wherever the objects have them; validation's too, if it has a name of its own.

    Raises:
        ArgumentError: There is no place for one of the first two.
    """
    for what, names, value in (("batch size", BATCH_SIZE, batch_size), ("learning rate", LEARNING_RATE, learning_rate)):
        if not set_attributes(objects, names, value):
            raise no_place(what, names, objects)
    if eval_batch_size is not None:
        set_attributes(objects, EVAL_BATCH_SIZE, eval_batch_size)


def training_arguments(
    micro_batch_size: int, accumulation_steps: int, learning_rate: float, eval_batch_size: int | None
) -> dict[str, Any]:
    """Return a setting as fields of Transformers' TrainingArguments.

    Example:
        >>> training_arguments(8, 2, 0.001, None)["per_device_train_batch_size"]
        8
    """
    return {
        "per_device_train_batch_size": micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps,
        "learning_rate": learning_rate,
        **({} if eval_batch_size is None else {"per_device_eval_batch_size": eval_batch_size}),
    }
