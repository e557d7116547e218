"""Names of scores, which are better the higher they are: what is minimised must not be one."""

from __future__ import annotations

import re

SCORES = frozenset(
    {"acc", "accuracy", "auc", "auroc", "auprc", "bleu", "dice", "f1", "iou", "miou", "precision", "psnr", "r2"}
    | {"recall", "rouge", "ssim"}
)
TURNED = frozenset({"loss", "error", "err", "neg", "negative", "minus", "inverse"})
"""A name with one of these is of something that falls."""


def named_score(name: str) -> str | None:
    """Return the part of a name, or of a regular expression, that names a score; None where nothing does.

    Example:
        >>> named_score("val/BinaryAccuracy"), named_score("eval_f1"), named_score("neg_f1")
        ('BinaryAccuracy', 'f1', None)
    """
    words = [word for word in re.split(r"[^A-Za-z0-9]+", name) if word]
    if any(word.lower() in TURNED or word.lower().endswith(("loss", "error")) for word in words):
        return None
    return next((word for word in words if word.lower() in SCORES or word.lower().endswith("accuracy")), None)


def score_problems(metric: str) -> list[str]:
    """Return what is wrong with the name of a metric that is to be minimised, a sentence at most."""
    if not isinstance(metric, str) or named_score(metric) is None:
        return []
    return [
        f"metric={metric!r} names a score, and bstune minimises: expected a loss; make 1 - score or -score a metric of "
        "its own, such as val_error, and name that"
    ]
