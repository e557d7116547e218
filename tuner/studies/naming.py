"""What a study is called when the user does not say, and whose it is.

In a file the objective is a module-level variable, and a name other than `objective` is part of the study's name. The
same holds in a script and in a notebook, so that two objectives of one notebook have studies of their own.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

from ..core.pictures import in_notebook
from ..core.trials import Facts


def study_name(given: str | None, objective: Any, facts: Facts) -> str:
    """Return the name given, else the objective's own, else that of its file, else that of the running script."""
    return given or facts.name or getattr(objective, "default_study_name", None) or _name_in_script(objective)


def _name_in_script(objective: Any) -> str:
    """Return the script's stem, and the name of the variable that holds the objective where it is not the usual one."""
    variables = vars(sys.modules["__main__"]) if "__main__" in sys.modules else {}
    names = [name for name, value in tuple(variables.items()) if value is objective and not name.startswith("_")]
    return script_name() if not names or "objective" in names else f"{script_name()}-{names[0]}"


def objective_identity(objective: Any) -> str | None:
    """Return what tells an objective from another, and stays when it is edited: where it is, or what it is made of.

    None where it has no name at all, such as a model that is a lambda.
    """
    where: str | None = getattr(objective, "place", None)
    if where is not None:
        return where
    made_of = getattr(objective, "function", None) or getattr(objective, "model", None)
    name = getattr(made_of, "__qualname__", None)
    return None if name is None or "<" in name.rpartition(".")[2] else str(name)


def is_anothers(stored: Any, identity: str | None) -> bool:
    """Tell whether a study, by its stored identity, belongs to another objective: a file that is gone has moved.

    Example:
        >>> is_anothers("Net", "Wide"), is_anothers(None, "Wide"), is_anothers("/gone/model.py:net", "/model.py:net")
        (True, False, False)
    """
    if not isinstance(stored, str) or identity is None or stored == identity:
        return False
    return not stored.startswith("/") or os.path.exists(stored.rpartition(":")[0])


def same_object(stored: Any, identity: Any) -> bool:
    """Tell whether two identities are of one objective, as far as they tell, where the source is the same.

    A file may have several, and may have been copied.

    Example:
        >>> same_object("/a/model.py:net", "/b/model.py:net"), same_object("/a/model.py:net", "/a/model.py:wide")
        (True, False)
        >>> same_object("Net", "Wide"), same_object(None, "Wide")
        (False, True)
    """
    if not isinstance(stored, str) or not isinstance(identity, str):
        return True
    return stored.rpartition(":")[2] == identity.rpartition(":")[2]


def anothers_place(stored: Any, identity: str | None) -> str | None:
    """Return where the other objective of a study is, as `file.py:name`; None where the two may be one that has moved.

    A copied folder has files and names as before; a file that is gone has moved.

    Example:
        >>> anothers_place("/dev/null:objective", "/a/model.py:objective")
        'null'
        >>> anothers_place("/dev/null:objective", "/copy/null:objective") is None
        True
    """
    if identity is None or not is_anothers(stored, identity) or not stored.startswith("/") or identity[0] != "/":
        return None
    its, own = os.path.basename(stored), os.path.basename(identity)
    return None if its == own else its.removesuffix(":objective")


def said_target(objective: Any) -> str:
    """Return how the user has named an objective, for a line to paste; `MODEL` where it was called from Python."""
    target = getattr(objective, "target", None)
    return "MODEL" if not isinstance(target, str) else shlex.quote(target)


def script_name() -> str:
    """Return the stem of the running script, or `notebook` where there is none."""
    path = getattr(sys.modules.get("__main__"), "__file__", None)
    if path is None or in_notebook():
        return "notebook"
    stem = Path(path).stem
    return Path(path).parent.name if stem == "__main__" else stem
