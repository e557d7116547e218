"""What an objective's code is, as a hash, and which family its optimizer belongs to."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from textwrap import dedent
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, TypeVar

from ..tuner.core.trials import OptimizerFamily
from .instances import arguments_of
from .user_code import functions_of, held, is_users, reached, stable_repr

if TYPE_CHECKING:
    import torch

ADAM_LIKE = ("adam", "lamb", "lion", "rmsprop", "muon", "shampoo", "soap", "sophia", "novograd")
SGD_LIKE = ("sgd", "lars", "asgd", "rprop")
MOST_PARTS, MOST_NAME = 200, 100
"""Of the parts of a source that are told apart, and characters of the name of one."""
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

Found = TypeVar("Found")


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
    return _hash(text + values for text, values in map(_read_part, parts))


def code_hash(*parts: Any) -> str:
    """Return the same of what the source does: another comment, docstring or line break changes nothing."""
    return _hash((code_of(dedent(text)) or text) + values for text, values in map(_read_part, parts))


def source_facts(*parts: Any) -> dict[str, Any]:
    """Return what `Facts` says of the code of an objective that is made of these functions, classes and values.

    What they use of the user's own code belongs to it: functions and classes, and constants with names in capitals.
    """
    parts = (*parts, *reached(parts))
    given = arguments_of(parts)
    read = [_read_part(part) for part in parts]  # Each once: to find a text takes its time.
    named: list[tuple[str, str]] = []
    for part, (text, _) in zip(parts, read, strict=True):
        if callable(part):
            text = dedent(text)
            found = [each for each in _parts_of(text) if each[0].endswith("()") or each[0].isidentifier()]
            named += found or [(_called(part), text)]
            named += [(name, stable_repr(value)) for name, value in held(part).items()]
        else:
            named.append(("its arguments", text))
    return {
        "source_hash": _hash(text + values for text, values in read),
        "code_hash": _hash((code_of(dedent(text)) or text) + values for text, values in read),
        "code_parts": _grouped(named),
        "code_arguments": _grouped(given) or _grouped(("one of many arguments", "=".join(each)) for each in given),
    }


class HasSource:
    """An objective made in Python: its code is what it is when a search asks, not when the objective was made.

    In another process it is what it was when it was sent there.
    """

    _parts: tuple[Any, ...] = ()
    _source: dict[str, Any] | None = None

    @property
    def source(self) -> dict[str, Any]:
        """What `Facts` says of its code."""
        return source_facts(*self._parts) if self._source is None else self._source

    @source.setter
    def source(self, facts: dict[str, Any]) -> None:
        self._source = facts

    def __getstate__(self) -> dict[str, Any]:
        """Return what travels to another process."""
        return {**vars(self), "_source": self.source, "_parts": ()}


def file_parts(source: bytes) -> tuple[tuple[str, str], ...]:
    """Return a hash of each function, class and variable of a file by name, to say later which was changed.

    Example:
        >>> dict(file_parts(b"x = 1")) == dict(file_parts(b"x = 2")), [name for name, _ in file_parts(b"x = 1")]
        (False, ['x'])
    """
    return _grouped(_parts_of(source))


def named_model(name: str | None) -> str | None:
    """Return what stands for the structure of a model that only its user sees; None where it has no name."""
    return None if name is None else source_hash("model", name)


def model_structure(model: torch.nn.Module, sample: Any) -> str:
    """Return a hash of the model, a dash, and one of the shape of a sample."""
    layers = source_hash(
        [(name, type(module).__qualname__) for name, module in model.named_modules()],
        [(name, tuple(parameter.shape), str(parameter.dtype)) for name, parameter in model.named_parameters()],
    )
    return f"{layers}-{source_hash(_shapes(sample))}"


def _shapes(sample: Any) -> Any:
    """Return the types and shapes in a sample, whatever its nesting."""
    if hasattr(sample, "shape") and hasattr(sample, "dtype"):
        return (str(sample.dtype), tuple(sample.shape))
    if isinstance(sample, Mapping):
        return {key: _shapes(value) for key, value in sample.items()}
    if isinstance(sample, (list, tuple)):
        return [_shapes(value) for value in sample]
    return type(sample).__name__


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
    return _read(source, ast.dump)


def _read(source: str | bytes, then: Callable[[ast.Module], Found]) -> Found | None:
    """Return what is made of a source without docstrings; None where it is no Python that can be read."""
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
        return then(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _parts_of(source: str | bytes) -> list[tuple[str, str]]:
    """Return the code of each function, class and variable of a source with its name; methods on their own."""
    return _read(source, _named) or []


def _named(tree: ast.Module) -> list[tuple[str, str]]:
    found = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            methods = [each for each in node.body if isinstance(each, _FUNCTIONS)]
            found += [(f"{node.name}.{each.name}()", ast.dump(each)) for each in methods]
            node.body = [each for each in node.body if each not in methods]
        found.append((_name(node), ast.dump(node)))
    return found


def _name(node: ast.stmt) -> str:
    if isinstance(node, _FUNCTIONS):
        return f"{node.name}()"
    if isinstance(node, ast.ClassDef):
        return node.name
    if isinstance(node, ast.Import | ast.ImportFrom):
        return "its imports"
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return targets[0].id if len(targets) == 1 and isinstance(targets[0], ast.Name) else "lines outside of functions"


def _called(part: Any) -> str:
    name: str = getattr(part, "__qualname__", type(part).__qualname__)
    return "a lambda" if name.endswith("<lambda>") else name


def _grouped(named: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return the hash of all that bears a name; nothing where that is more than anybody wants to keep."""
    texts: dict[str, list[str]] = {}
    for name, text in named:
        texts.setdefault(name[:MOST_NAME], []).append(text)
    return tuple((name, _hash(each)) for name, each in texts.items()) if len(texts) <= MOST_PARTS else ()


def _hash(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def _read_part(part: Any) -> tuple[str, str]:
    """Return the text of a part, and that of the values it holds."""
    return _text(part), "".join(f"\n{name} = {stable_repr(value)}" for name, value in held(part).items())


def _text(part: Any) -> str:
    if not callable(part):
        return repr(part)
    if isinstance(part, functools.partial):
        return _text(part.func)
    try:
        # The function itself is read, not what it wraps, which is reached on its own; a library's wrapper is no matter.
        own = isinstance(part, FunctionType) and is_users(part.__globals__.get("__name__"))
        return inspect.getsource(part.__code__ if own else part)
    except (OSError, TypeError):
        code = getattr(part, "__code__", None)
        if code is not None:
            return _code_text(code)
        name: str = getattr(part, "__qualname__", type(part).__qualname__)
        if not isinstance(part, type):
            return name
        # Such as a class of a notebook, of which no file tells where it stands; its functions know their own place.
        return "\n".join([name, *(f"{each.__name__}: {dedent(_text(each))}" for each in functions_of(part))])


def _code_text(code: CodeType) -> str:
    constants = (_code_text(item) if isinstance(item, CodeType) else stable_repr(item) for item in code.co_consts)
    return f"{code.co_code!r}{code.co_names!r}{'|'.join(constants)}"
