"""The user's code on its way to a Ray cluster: source code and the pickled objective travel, data does not."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ...objectives.load import ObjectiveRef
from ..core.errors import ObjectiveError
from ..workers.messages import Pickled

PACKED_SUFFIXES = {".py", ".pyi", ".json", ".yaml", ".yml", ".toml", ".cfg", ".ini", ".txt"}
PACKED_FILE_BYTES = 1 << 20
PACKED_BYTES = 32 << 20
PACKED_FILES = 2000
NOT_PACKED = {"__pycache__", "node_modules", "site-packages", "build", "dist", "data", "wandb", "mlruns", "ray_results"}


def portable(objective: Any, folder: Path, *, travels: bool) -> tuple[Any, Path | None]:
    """Return the objective as a node will find it, and the folder of source code to send along."""
    if not travels:
        return objective, None
    home = _home(objective)
    if home is None:
        return objective, None
    packed = folder / "packed" / "source"  # Ray has the folder above it on the path of its own processes.
    pack(home, packed)
    if isinstance(objective, ObjectiveRef) and objective.path is not None:
        objective = dataclasses.replace(objective, path=Path(objective.path).name)  # Relative to where it will run.
    return objective, packed


def _home(objective: Any) -> Path | None:
    """Return the folder of the objective's source: that of its file, else of the script, else the current one."""
    if isinstance(objective, ObjectiveRef):
        return Path(objective.path).parent if objective.path is not None else Path.cwd()
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    return None if script is None or _installed(Path(script)) else Path(script).resolve().parent


def pack(home: Path, packed: Path) -> None:
    """Copy source code and small settings of a folder; data and what can be made again stays.

    Raises:
        ObjectiveError: There is too much of it.
    """
    n_files = n_bytes = 0
    for where, folders, files in os.walk(home):
        folders[:] = [
            name
            for name in folders
            if name[0] != "." and name not in NOT_PACKED and not (Path(where) / name / "pyvenv.cfg").exists()
        ]
        for name in files:
            path = Path(where) / name
            if (
                path.suffix not in PACKED_SUFFIXES
                or name[0] == "."
                or not path.is_file()
                or path.stat().st_size > PACKED_FILE_BYTES
            ):
                continue
            n_files, n_bytes = n_files + 1, n_bytes + path.stat().st_size
            if n_files > PACKED_FILES or n_bytes > PACKED_BYTES:
                raise ObjectiveError(
                    f"The folder {home} has more than {PACKED_FILES} files or {PACKED_BYTES >> 20} MiB of source "
                    "code to send. Move the model's file and what it imports into a folder of their own."
                )
            target = packed / path.relative_to(home)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    packed.mkdir(parents=True, exist_ok=True)


def _installed(path: Path) -> bool:
    return any(part in ("site-packages", "dist-packages") for part in path.parts) or str(path).startswith(
        sys.base_prefix
    )


def _local_modules(source_home: Path | None) -> list[ModuleType]:
    """Return the user's own modules that no node will find by name."""
    found = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not file or name == "__main__" or name.split(".")[0] == "bstune" or _installed(Path(file)):
            continue
        if source_home is None or not Path(file).resolve().is_relative_to(source_home):
            found.append(module)
    return found


def pickled(objective: Any, source: Path | None, *, travels: bool) -> Pickled:
    """Pickle the objective; where it travels, with the modules that the nodes do not have."""
    import cloudpickle  # Not Ray's copy of it: what that writes has to import Ray to be read.

    home = _home(objective) if source is not None and not isinstance(objective, ObjectiveRef) else None
    modules = [] if not travels or isinstance(objective, ObjectiveRef) else _local_modules(home)
    try:
        for module in modules:
            cloudpickle.register_pickle_by_value(module)
        data = cloudpickle.dumps(objective)
    except Exception as error:
        raise ObjectiveError(
            f"The objective cannot be sent to the cluster: {last_line(error)}. Expected model, data and functions "
            "that can be pickled: open files, locks and connections inside the functions that use them, or pass data "
            "as a function that makes it."
        ) from error
    finally:
        for module in modules:
            with contextlib.suppress(ValueError):
                cloudpickle.unregister_pickle_by_value(module)
    return Pickled(data, getattr(objective, "kind", None))


def last_line(error: BaseException) -> str:
    """Return the last line of what an error says; Ray's begin with the traceback of another process."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__
