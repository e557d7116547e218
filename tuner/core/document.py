"""A document that the user names.

It is read only if it is a plain file of a sensible size, and holds what it should.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from .errors import BstuneError
from .probe_results import ProbeResult

MOST_BYTES = 16 << 20
"""Far more than a probe has; what is read of a document takes many times its size of memory."""


def read_probe(path: Path) -> ProbeResult:
    """Return the probe that `bstune probe --json` wrote to a file.

    Raises:
        BstuneError: The file cannot be read, or is something else.
    """
    try:
        return ProbeResult.from_dict(json.loads(_content(path)))
    except RecursionError:
        said = "its lists or objects are nested too deeply"
    except (BstuneError, OSError, ValueError) as error:
        said = str(error).removesuffix(".")
    raise BstuneError(f"--probe {path} cannot be read: {said}. Expected a file that `bstune probe --json` wrote.")


def _content(path: Path) -> str:
    # Without waiting: a named pipe opens at once, and is then recognised and refused.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is not a plain file")
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(MOST_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(content) > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES >> 20} MiB")
    return content.decode("utf-8")
