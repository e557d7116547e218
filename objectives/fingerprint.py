"""What an objective's code is, as a hash, and which family its optimizer belongs to."""

from __future__ import annotations

import ast
import hashlib
import inspect
import warnings
from collections.abc import Iterable
from textwrap import dedent
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
    return _hash(map(_text, parts))


def code_hash(*parts: Any) -> str:
    """Return the same of what the source does: another comment, docstring or line break changes nothing."""
    return _hash(code_of(dedent(text)) or text for text in map(_text, parts))


def named_model(name: str | None) -> str | None:
    """Return what stands for the structure of a model that only its user sees; None where it has no name."""
    return None if name is None else source_hash("model", name)


def model_problems(name: str | None, optimizer: str | None) -> list[str]:
    """Return what is wrong with the name that a user gives a model, a sentence each."""
    if name is None or optimizer is not None:
        return []
    return [f"model={name!r}: expected optimizer= beside it, since the best learning rate depends on both"]


def code_of(source: str | bytes) -> str | None:
    """Return the code of a source without comments, docstrings and layout; None where it is no Python that can be read.

    Example:
        >>> code_of("x = (1)  # one") == code_of("x=1"), code_of("x = 1") == code_of("x = 2"), code_of("x =")
        (True, False, None)
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of the user's own file; running it tells them.
            tree = ast.parse(source)
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
                and ast.get_docstring(node, clean=False) is not None
            ):
                node.body = node.body[1:]
        return ast.dump(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _hash(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode())
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
