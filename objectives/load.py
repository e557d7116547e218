"""A reference to an objective in a file or module; the file is executed only in workers."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ..tuner.core.errors import ObjectiveError
from .fingerprint import code_of, file_parts
from .no_objective import lightning_hint, refusal
from .script_flags import parsed

DEFAULT_NAME = "objective"
MOST_BYTES = 16 << 20
"""Of a file of Python."""


@dataclass(frozen=True)
class ObjectiveRef:
    """Where an objective is, before its file is ever executed.

    Attributes:
        target: As it was given: `model.py`, `model.py:name` or `package.module:name`.
        path: Absolute path of the file, or None for a module.
        module: Dotted name of the module, or None for a file.
        name: Name of the objective in it.
        source_hash: Hash of the file's content, or None for a module.
    """

    target: str
    path: str | None
    module: str | None
    name: str
    source_hash: str | None

    @property
    def default_study_name(self) -> str:
        """The file's stem, and the objective's name where it is not the usual one."""
        stem = Path(self.path).stem if self.path else str(self.module).rsplit(".", 1)[-1]
        return stem if self.name == DEFAULT_NAME else f"{stem}-{self.name}"

    @property
    def place(self) -> str:
        """Where it is: the file or the module, and the name in it."""
        return f"{self.path or self.module}:{self.name}"

    def source(self) -> dict[str, Any]:
        """Return what `Facts` says of the file's code; for a module nothing.

        Where the file is no longer the one that was named, only of that one. Called in workers only: a file can be
        hard to parse.
        """
        content = None if self.path is None else Path(self.path).read_bytes()
        if content is None or _hash(content) != self.source_hash:
            return {"source_hash": self.source_hash, "code_hash": None, "code_parts": ()}
        code = code_of(content)
        code_hash = None if code is None else _hash(code.encode())
        return {"source_hash": self.source_hash, "code_hash": code_hash, "code_parts": file_parts(content)}

    def resolve(self) -> Any:
        """Execute the file and return its objective. Called in workers only.

        Raises:
            ObjectiveError: There is no such objective; the message lists what was found.
        """
        self._refuse_script()
        module = self._import()
        found = getattr(module, self.name, None)
        if is_objective(found):
            return found
        others = [name for name, value in vars(module).items() if is_objective(value)]
        if found is None and self.name == DEFAULT_NAME and len(others) == 1:  # It can be no other.
            return getattr(module, others[0])
        found_here = others or [name for name in vars(module) if not name.startswith("_")]
        what = (
            f"has no {self.name!r}"
            if found is None
            else f"has a {self.name!r} of type {type(found).__name__}, not an objective"
        )
        hint = (
            f"Name the one you mean: {self.target.split(':')[0]}:{others[0]}"
            if others
            else f"Write `{self.name} = bstune.Supervised(...)` or decorate a function `{self.name}` with "
            "@bstune.objective"
        )
        raise ObjectiveError(
            f"{self.target} {what}. Looked for a module-level bstune.Supervised or a function under "
            f"@bstune.objective; found {', '.join(found_here[:12]) or 'nothing'}. {hint}.{self._lightning()}"
        )

    def _lightning(self) -> str:
        """Return how the LightningModule of the file is searched, on lines of its own, if it has one."""
        tree = None if self.path is None else parsed(Path(self.path).read_bytes())
        said = None if tree is None else lightning_hint(tree)
        return "" if said is None else f"\n{said}"

    def _refuse_script(self) -> None:
        """Raise an ObjectiveError for a file in which no objective can be: it would train to its end."""
        if self.path is None:
            return
        place = self.target.removesuffix(f":{self.name}")
        if (said := refusal(Path(self.path).read_bytes(), self.name, place, os.path.dirname(self.path))) is not None:
            raise ObjectiveError(said)

    def _import(self) -> ModuleType:
        if self.path is None:
            return importlib.import_module(str(self.module))
        # Its neighbours can be imported, as with `python model.py`, but none of them is taken for a module of Python's
        # own.
        sys.path[:] = after_standard_library(os.path.dirname(os.path.abspath(self.path)), sys.path)
        name = f"bstune_user_{Path(self.path).stem}"
        spec = importlib.util.spec_from_file_location(name, self.path)
        if spec is None or spec.loader is None:
            raise ObjectiveError(f"{self.target} is not a Python file: expected a path that ends in .py.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module


def load(target: str | Path) -> ObjectiveRef:
    """Return a reference to the objective in a file or module, without executing it.

    Args:
        target: `model.py` (its module-level `objective`, or the only one that it has), `model.py:name` or
            `package.module:name`.

    Raises:
        ObjectiveError: The file is missing, cannot be read, or is not a Python file.
    """
    text = str(target)
    place, _, name = text.rpartition(":") if ":" in text else (text, "", DEFAULT_NAME)
    name = name or DEFAULT_NAME
    path = Path(place)
    if path.suffix == ".py" or os.path.exists(place) or "/" in place:  # Unlike Path's, these take any text.
        if not os.path.isfile(place):
            raise ObjectiveError(f"{place}: no such file. Give the path of a Python file that defines an objective.")
        if path.suffix != ".py":
            raise ObjectiveError(f"{place} is not a Python file: expected a path that ends in .py.")
        path = path.resolve()
        try:
            if path.stat().st_size > MOST_BYTES:
                raise ObjectiveError(f"{place} is larger than {MOST_BYTES >> 20} MiB: expected a Python file.")
            content = path.read_bytes()
        except OSError as error:
            raise ObjectiveError(f"{place} cannot be read: {error.strerror}.") from error
        return ObjectiveRef(text, str(path), None, name, _hash(content))
    if not place or not all(part.isidentifier() for part in place.split(".")) or ":" not in text:
        raise ObjectiveError(f"{text}: no such file. Give model.py, model.py:name or package.module:name.")
    return ObjectiveRef(text, None, place, name, None)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def is_objective(value: Any) -> bool:
    """Tell whether `value` is an objective: it can be prepared, described, measured and trained."""
    return not isinstance(value, type) and all(
        callable(getattr(value, name, None)) for name in ("prepare", "describe", "measure", "train")
    )


def after_standard_library(folder: str, path: Sequence[str]) -> list[str]:
    """Return `sys.path` with a folder after the standard library and before what is installed.

    So its modules are found, and none of them is taken for one of Python's own.

    Example:
        >>> import sys
        >>> found = after_standard_library("/my/model", sys.path)
        >>> found.index("/my/model") > found.index(os.path.dirname(os.__file__))
        True
    """
    library = os.path.dirname(os.__file__)
    parts = [index for index, entry in enumerate(path) if entry in (library, os.path.join(library, "lib-dynload"))]
    place = parts[-1] + 1 if parts else 0
    return [*path[:place], folder, *path[place:]]
