"""How the tests are collected and started.

The checkout is itself the package, and pytest must not import it a second time.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from bstune.tests.warm_start import WarmPopen

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext

DEAREST = [
    "test_ray",
    "test_ray_cluster",
    "test_ray_command",
    "test_examples",
    "test_probe",
    "test_ranks",
    "test_storage",
    "test_no_harm",
    "test_framework_faults",
    "test_cli",
    "test_search_scenarios",
    "test_page",
    "test_faults",
    "test_worker",
    "test_terminal",
    "test_commands",
    "test_strategy",
    "test_same_answer",
    "test_killed",
    "test_same_as_local",
    "test_launch",
    "test_transformers",
    "test_threads",
    "test_workers",
    "test_probe_traces",
    "test_budget",
    "test_signals",
    "test_scenarios",
    "test_lightning",
    "test_gpu_checks",
    "test_trace",
    "test_search",
]
"""The files that take longest, about the longest first: begun last, one of them would run on alone at the end."""

ROOM_BYTES = 4 << 30
"""A file system in memory with less room, as containers have, does not hold the files of all tests."""
CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class _PlainRoot:
    """Collects the root as a folder, not as a package named after wherever the checkout lies.

    Without it pytest finds the root's `__init__.py` and imports everything once more under that other name: two copies
    of each class, of which one is never an instance of the other.
    """

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        """Return a plain folder for the root, and leave every other folder to pytest."""
        if path == parent.config.rootpath:
            return pytest.Dir.from_parent(parent, path=path)
        return None


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let CI insist on what a developer's machine may lack."""
    parser.addoption("--no-skips", action="store_true", help="A skipped test fails, unless its reason speaks of CUDA.")


def pytest_configure(config: pytest.Config) -> None:
    """Register the plugin early enough for the collection of the root, and listen to signals.

    A shell's background job ignores Ctrl-C, and one under `nohup` also the end of its terminal. What it starts would do
    so too, and tests of both would wait for nothing.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    config.pluginmanager.register(_PlainRoot(), "bstune-plain-root")
    # The key that seals studies is made on first use: not in the home of who runs the tests. What tests start inherits
    # this.
    state = tempfile.mkdtemp(prefix="bstune-state-")
    os.environ["XDG_STATE_HOME"] = state
    # Databases are flushed to the disk at each commit; in memory that costs nothing.
    memory = Path("/dev/shm")
    if memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > ROOM_BYTES:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(memory))
    # Several tests run at once, and threads that wait for a core that another has waste both.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    config.add_cleanup(lambda: shutil.rmtree(state, ignore_errors=True))


@pytest.fixture(scope="session")
def _warm_program() -> Iterator[None]:
    yield
    for program in WarmPopen.programs:
        program.close()


@pytest.fixture(scope="module", autouse=True)
def _start_warm(_warm_program: None, request: pytest.FixtureRequest) -> Iterator[None]:
    """Let the workers of searches in this process begin with torch loaded."""
    with pytest.MonkeyPatch.context() as patch:
        if sys.platform.startswith("linux") and request.node.get_closest_marker("cold_start") is None:
            patch.setattr("bstune.tuner.workers.template.Popen", WarmPopen)
        yield


@pytest.fixture(scope="module", autouse=True)
def _brief_timing() -> Iterator[None]:
    """Let a probe in this process time each size for a moment: no test asks how fast this machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bstune.tuner.probing.timing.TIMED_S", 0.02)
        yield


@pytest.fixture
def formulas_take_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let trials of a moment not tell what training costs: on a busy machine they wait for a core, and take longer."""
    for where in ("cost", "cautions"):
        monkeypatch.setattr(f"bstune.tuner.strategy.{where}.TELLING_S", 60.0)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """Keep the garbage collector from what the imports make: all of it stays."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slowest files."""
    items.sort(key=lambda item: DEAREST.index(item.path.stem) if item.path.stem in DEAREST else len(DEAREST))


def pytest_collection_finish() -> None:
    """Hide what the imports have made from the garbage collector, which would look at it for a second each time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)  # The outermost: whatever else may skip a test has done so.
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Fail a skipped test where --no-skips asks for it."""
    return _insisted((yield), item.config)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    """The same of a whole file."""
    return _insisted((yield), collector.config)


def _insisted(report: Any, config: pytest.Config) -> Any:
    """Turn a skip into a failure if it is forbidden. A machine without a card is as good for CI as one with it."""
    if (
        config.getoption("no_skips")
        and report.skipped
        and not hasattr(report, "wasxfail")
        and "CUDA" not in str(report.longrepr)
    ):
        report.outcome, report.longrepr = "failed", f"skipped, which --no-skips does not allow: {report.longrepr}"
    return report


@pytest.fixture
def root(pytestconfig: pytest.Config) -> Path:
    """The root of the checkout."""
    return pytestconfig.rootpath


@pytest.fixture(autouse=True)
def _close_what_optuna_opens(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close the databases that a test opens with Optuna itself.

    Optuna leaves them to the garbage collector, and Python 3.13 warns of that.
    """
    if "optuna" not in sys.modules:
        yield
        return
    import optuna

    opened: list[Any] = []
    real = optuna.storages.get_storage

    def get_storage(storage: Any) -> Any:
        opened.append(real(storage))
        return opened[-1]

    monkeypatch.setattr(optuna.storages, "get_storage", get_storage)
    yield
    for storage in opened:
        storage.remove_session()
        backend = getattr(storage, "_backend", storage)  # Optuna puts a cache before a database.
        if isinstance(backend, optuna.storages.RDBStorage):
            backend.engine.dispose()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserContext]:
    """A browser without a window, with a profile of its own."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(tmp_path_factory.mktemp("profile")), executable_path=CHROMIUM, args=FLAGS, headless=True
        )
        yield context
        context.close()
