"""What an objective's code is, as a hash, and which family its optimizer belongs to."""

from __future__ import annotations

import hashlib
import inspect
from types import CodeType
from typing import Any

from ..tuner.core.trials import OptimizerFamily

ADAM_LIKE = ("adam", "lamb", "lion", "rmsprop", "muon", "shampoo", "soap", "sophia", "novograd")
SGD_LIKE = ("sgd", "lars", "asgd", "rprop")


def optimizer_family(class_name: str | None) -> OptimizerFamily:
    """Return `sgd`, `adam` or `other` by the name of the optimizer's class.

    Example:
        >>> optimizer_family("AdamW"), optimizer_family("SGD"), optimizer_family("LBFGS")
        ('adam', 'sgd', 'other')
    """
    name = (class_name or "").lower()
    if any(word in name for word in ADAM_LIKE):
        return "adam"
    return "sgd" if any(word in name for word in SGD_LIKE) else "other"


def source_hash(*parts: Any) -> str:
    """Return a hash of functions and classes by source, or by byte code if they have none, and of values by repr."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(_text(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def _text(part: Any) -> str:
    if not callable(part):
        return repr(part)
    try:
        return inspect.getsource(part)
    except (OSError, TypeError):
        code = getattr(part, "__code__", None)
        return _code_text(code) if code else getattr(part, "__qualname__", type(part).__qualname__)


def _code_text(code: CodeType) -> str:
    constants = (_code_text(item) if isinstance(item, CodeType) else repr(item) for item in code.co_consts)
    return f"{code.co_code!r}{code.co_names!r}{'|'.join(constants)}"
