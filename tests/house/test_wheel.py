"""What is shipped: exactly the package, built from what is committed and not from what happens to lie about."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import bstune
import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NOT_SHIPPED = {"tests", "examples", "benchmarks", "docs"}


@pytest.fixture(scope="module")
def project(pytestconfig: pytest.Config) -> dict[str, Any]:
    """What pyproject.toml says."""
    told: dict[str, Any] = tomllib.loads((pytestconfig.rootpath / "pyproject.toml").read_text())
    return told


@pytest.fixture(scope="module")
def archive(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last commit, unpacked beside nothing else."""
    if not (pytestconfig.rootpath / ".git").exists():
        pytest.skip("not a git checkout, and the wheel is built from `git archive`")
    packed = subprocess.run(
        ["git", "archive", "HEAD"], cwd=pytestconfig.rootpath, capture_output=True, check=True
    ).stdout
    folder = tmp_path_factory.mktemp("archive")
    with tarfile.open(fileobj=BytesIO(packed)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def package_folders(root: Path) -> set[str]:
    """Return the package names of all folders with an `__init__.py`, the root included."""
    inits = {path.relative_to(root) for path in root.rglob("__init__.py")}
    shipped = {path for path in inits if not NOT_SHIPPED.intersection(path.parts)}
    return {".".join(["bstune", *path.parent.parts]) for path in shipped}


def test_the_project_lists_every_package(archive: Path, project: dict[str, Any]) -> None:
    """A folder that is missing from `packages` imports in a checkout and is missing from the wheel."""
    tool = project["tool"]["setuptools"]

    assert set(tool["packages"]) == package_folders(archive)
    assert set(tool["package-dir"]) == set(tool["packages"])


def test_the_wheel_holds_exactly_the_package(archive: Path, tmp_path: Path) -> None:
    """Every module and the typing marker, the licence, and nothing of tests, examples, benchmarks or docs."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(archive)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr

    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        files = set(packed.namelist())
    info = f"bstune-{bstune.__version__}.dist-info"
    sources = {
        path.relative_to(archive)
        for pattern in ("*.py", "tuner/**/*.py", "objectives/**/*.py")
        for path in archive.glob(pattern)
    }
    sources |= {path.relative_to(archive) for path in archive.glob("tuner/report/page*") if path.suffix != ".py"}
    expected = {f"bstune/{path.as_posix()}" for path in sources} | {"bstune/py.typed"}
    expected |= {
        f"{info}/{name}"
        for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE")
    }
    assert files == expected


def test_the_version_is_the_same_everywhere(project: dict[str, Any]) -> None:
    """`bstune.__version__` is the version that is installed."""
    assert project["project"]["version"] == bstune.__version__
