"""How the tests are collected, and started. The checkout is itself the package, and pytest must not import it a second time."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest


class _PlainRoot:
    """Collects the root as a folder, not as a package named after wherever the checkout lies.

    Without it pytest finds the root's `__init__.py` and imports everything once more under that other name: two copies of
    each class, of which one is never an instance of the other.
    """

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        """Return a plain folder for the root, and leave every other folder to pytest."""
        if path == parent.config.rootpath:
            return pytest.Dir.from_parent(parent, path=path)
        return None


def pytest_configure(config: pytest.Config) -> None:
    """Register the plugin early enough for the collection of the root, and listen to signals.

    A shell's background job ignores Ctrl-C, and one under `nohup` also the end of its terminal. What it starts would do so too,
    and tests of both would wait for nothing.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    config.pluginmanager.register(_PlainRoot(), "bstune-plain-root")
    # The key that seals studies is made on first use: not in the home of who runs the tests. What tests start inherits this.
    state = tempfile.mkdtemp(prefix="bstune-state-")
    os.environ["XDG_STATE_HOME"] = state
    config.add_cleanup(lambda: shutil.rmtree(state, ignore_errors=True))


@pytest.fixture
def root(pytestconfig: pytest.Config) -> Path:
    """The root of the checkout."""
    return pytestconfig.rootpath
