"""What to say of a file in which no objective can be, by reading it: nothing of it is run.

It may be a script that is searched as it is, or have a LightningModule.
"""

from __future__ import annotations

import ast
import importlib.util
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from .script_flags import ROLES, ScriptLine, binds, called, parsed, script_line


def refusal(content: bytes, name: str, place: str, folder: str | None = None) -> str | None:
    """Return what to say of a file instead of running it; None where an objective may be in it.

    Args:
        content: Of the file.
        name: Of the objective that was looked for.
        place: The path, as the user gave it.
        folder: Where it is, with the modules that it may import; None: not known.
    """
    tree = parsed(content)
    if tree is None:
        return None
    lightning = lightning_hint(tree)
    line = script_line(content, name, place)
    if line is not None:
        return "\n".join([*_of_flags(line, name, place), *([lightning] if lightning else [])])
    if _may_define(tree, name, folder):
        return None
    opening = (
        f"{place} defines no {name!r}, and nothing in it could be one: it does not use bstune. Nothing of it was run."
    )
    return "\n".join([opening, *([lightning] if lightning else _as_a_script(tree, place))])


def _of_flags(line: ScriptLine, name: str, place: str) -> Iterator[str]:
    """Yield how a script that reads flags is searched."""
    yield (
        f"{place} defines no {name!r}, and is a script that reads its command line ({line.flags.parser}). Nothing of "
        "it was run. It can be searched as it is:"
    )
    yield f"  bstune search {line.options} -- {line.words}"
    yield (
        "In place of N put the number of samples in its training data. bstune fills in what stands in braces. Trials "
        "run in this folder and write where the script writes; {trial} is the number of each."
    )
    if line.missing:
        yield (
            f"No flag was recognised for {' and '.join(line.missing)}; it has {', '.join(line.flags.flags) or 'none'}. "
            "Put yours in place of --YOUR-FLAG."
        )


def _as_a_script(tree: ast.Module, place: str) -> Iterator[str]:
    """Yield how a file is searched that trains by itself, and what makes it an objective."""
    path, start = shlex.quote(place), "  bstune search --samples-per-epoch N -- "
    variables = _variables(tree)
    yield "A script is searched as it is where it takes its settings from outside, as environment variables or flags:"
    if {"micro_batch_size", "global_batch_size"} & set(variables) and "learning_rate" in variables:
        yield f"{start}env {' '.join(f'{name}={{{role}}}' for role, name in variables.items())} python {path}"
    else:
        yield f"{start}env BATCH_SIZE={{micro_batch_size}} LR={{learning_rate}} python {path}"
        yield f"{start}python {path} --batch-size {{micro_batch_size}} --lr {{learning_rate}}"
    yield "For one that reads a file see docs/scripts.md, Settings by environment variables or a file."
    yield (
        "For bstune to train your model itself, write `objective = bstune.Supervised(...)`, or decorate your loop with "
        "@bstune.objective."
    )


def _variables(tree: ast.Module) -> dict[str, str]:
    """Return the environment variables that a script reads for our places."""
    read = set()
    for node in ast.walk(tree):
        key = None
        if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("environ"):
            key = node.slice
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("environ.get", "getenv")) and node.args:
            key = node.args[0]
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            read.add(key.value)
    by_name = {name.lower(): name for name in sorted(read)}
    found = {role: next((by_name[name] for name in names if name in by_name), None) for role, names in ROLES.items()}
    return {role: name for role, name in found.items() if name is not None}


def _may_define(tree: ast.Module, name: str, folder: str | None) -> bool:
    """Tell whether a file may have an objective when it is run, under this name or as its only one."""
    if binds(tree, name):
        return True
    modules: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules.append("." * node.level + (node.module or ""))
        elif _makes_names(node, name):
            return True
    if all(module.partition(".")[0] in sys.stdlib_module_names for module in modules):
        return True  # It trains nothing, and running it tells what is wrong with it.
    return any(
        module.startswith((".", "bstune")) or _beside(module, folder) or _missing(module, folder) for module in modules
    )


def _makes_names(node: ast.AST, name: str) -> bool:
    """Tell whether a part of a file may define the name where it is not seen, or be an objective itself."""
    if isinstance(node, ast.Global):
        return name in node.names
    if isinstance(node, ast.ClassDef):
        return {"measure", "train"} <= {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
    return isinstance(node, ast.Call) and called(node) in ("import_module", "__import__")


def _missing(module: str, folder: str | None) -> bool:
    """Tell whether a module is not there: running the file ends at once, and says so."""
    root = module.partition(".")[0]
    beside = folder is not None and (Path(folder, root).is_dir() or Path(folder, f"{root}.py").is_file())
    return not beside and root not in sys.modules and importlib.util.find_spec(root) is None


def _beside(module: str, folder: str | None) -> bool:
    """Tell whether a module lies beside the file and knows bstune, so that it may make objectives."""
    if folder is None:
        return False
    path = Path(folder, *module.split("."))
    root = Path(folder, module.partition(".")[0])
    files = [root.with_suffix(".py"), path.with_suffix(".py"), *(root.rglob("*.py") if root.is_dir() else ())]
    return any(b"bstune" in file.read_bytes() for file in files if file.is_file())


def lightning_hint(tree: ast.Module) -> str | None:
    """Return how the LightningModule of a file is searched, if it has one."""
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    bases = {node.name: " ".join(map(ast.unparse, node.bases)) for node in classes}
    module = next((name for name, of in bases.items() if "LightningModule" in of), None)
    data = next((name for name, of in bases.items() if "DataModule" in of), "YourDataModule")
    if module is None:
        return None
    return (
        f"Its LightningModule {module} can be searched as it is, with these lines at its end (docs/lightning.md):\n"
        "  from bstune.objectives.lightning import from_module\n"
        f"  objective = from_module({module}, {data}, max_epochs=20)\n"
        'What trains belongs under `if __name__ == "__main__":`.'
    )
