"""How a program of bstune is started, and where it and the user's code look for modules.

Python looks in the current folder first when it is started with `-m` or `-c`, so that a `socket.py` that happens to lie
there would be run in place of the standard library's. Here only what the user named is run: a program of bstune's never
looks in the current folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from ...objectives.load import after_standard_library

_ROOT = Path(__file__).parents[2]
# The package is loaded from where the caller has it, so that no other file or folder of its name is taken for it.
_START = """
import sys
sys.path[:] = [folder for folder in sys.path if folder]
import importlib.util
root, module = sys.argv[1:3]
del sys.argv[1:3]
spec = importlib.util.spec_from_file_location("bstune", root + "/__init__.py", submodule_search_locations=[root])
sys.modules["bstune"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["bstune"])
importlib.import_module(module).main()
"""


def command(module: str, *arguments: str) -> list[str]:
    """Return the command line that calls `main()` of a module of bstune in a program of its own."""
    safe_path = ["-P"] if sys.version_info >= (3, 11) else []
    return [sys.executable, *safe_path, "-c", _START, str(_ROOT), module, *arguments]


def safe_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return variables without the empty entries of `PYTHONPATH`: Python takes them for the current folder.

    Example:
        >>> safe_environment({"PYTHONPATH": ":/opt/mine:"}), safe_environment({"PYTHONPATH": ":"})
        ({'PYTHONPATH': '/opt/mine'}, {})
    """
    changed = dict(environment)
    folders = [folder for folder in changed.pop("PYTHONPATH", "").split(os.pathsep) if folder]
    return changed | ({"PYTHONPATH": os.pathsep.join(folders)} if folders else {})


def path_of_caller() -> tuple[str, ...]:
    """Return where workers look for the user's modules: as this process does, but not by accident right here.

    Under the command line `bstune` the current folder counts where `PYTHONPATH` names it. Elsewhere an empty entry,
    which a notebook and an interactive session have at the front, stays what it is, the current folder, but after the
    standard library.
    """
    path = list(sys.path)
    try:
        here = os.getcwd()
    except FileNotFoundError:  # The current folder was removed.
        return tuple(filter(None, path))
    if not _is_command_line():
        named = [folder for folder in path if folder]
        return tuple(named if len(named) == len(path) else after_standard_library(here, named))
    if path and not getattr(sys.flags, "safe_path", False):
        del path[0]  # The folder of the program `bstune`, or with `-m` the current one; Python puts it there.
    variable = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if (
        len(variable) > 1
        and "" in variable
        and here in path
        and here not in map(os.path.abspath, filter(None, variable))
    ):
        path.remove(here)
    return tuple(filter(None, path))


def _is_command_line() -> bool:
    """Tell whether this process is the program `bstune`, or `python -m bstune`."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    return (
        getattr(spec, "name", "") in ("bstune.__main__", "bstune.cli")
        or Path(getattr(main, "__file__", None) or "").name == "bstune"
    )
