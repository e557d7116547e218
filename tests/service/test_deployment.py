"""The files of examples/service: what they run is understood, and what they name is there."""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path
from typing import Any

import bstune
import click
import pytest
from bstune.cli import main

ROOT = Path(bstune.__file__).resolve().parent
FOLDER = ROOT / "examples" / "service"
INSTRUCTIONS = {"FROM", "RUN", "WORKDIR", "COPY", "USER", "ENTRYPOINT", "ENV", "CMD", "EXPOSE"}


def understood(words: list[str]) -> dict[str, Any]:
    """Parse a command line of bstune as the program does, and return its options by name."""
    command = main.get_command(click.Context(main), words[0])
    assert command is not None
    return command.make_context(words[0], words[1:]).params


def test_the_compose_file_names_what_is_there() -> None:
    """Paths, commands and variables; a service waits for what it needs, and nothing is open to the network."""
    yaml = pytest.importorskip("yaml")
    services = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]

    assert set(services) == {"database", "service", "worker"}
    for name in ("service", "worker"):
        build = services[name]["build"]
        assert (FOLDER / build["context"] / build["dockerfile"]).resolve() == FOLDER / "Dockerfile"
        assert services[name]["image"] == "bstune"
    assert understood(services["service"]["command"])["host"] == "0.0.0.0"
    worker = understood(services["worker"]["command"])
    assert (ROOT / Path(worker["model"]).relative_to("/src")).is_file()
    assert worker["url"] == "http://service:8080"
    assert services["worker"]["deploy"]["replicas"] == 2
    assert {"BSTUNE_STORAGE", "BSTUNE_TOKENS"} == set(services["service"]["environment"])
    assert set(services["worker"]["environment"]) == {"BSTUNE_TOKEN"}
    assert all(port.startswith("127.0.0.1:") for port in services["service"]["ports"])
    for name, waits_for in (("service", "database"), ("worker", "service")):
        assert services[name]["depends_on"] == {waits_for: {"condition": "service_healthy"}}
        assert "healthcheck" in services[waits_for]


def test_the_dockerfile_is_understood() -> None:
    """Known instructions, extras that there are, no root at run time, and no checkout's virtual environment in it."""
    lines = (FOLDER / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line.strip() and not line.startswith("#")]
    project = (ROOT / "pyproject.toml").read_text()

    assert {word for word, _ in steps} <= INSTRUCTIONS
    assert steps[0][0] == "FROM"
    assert ":" in steps[0][1]
    (extras,) = re.findall(r"'\.\[([a-z,]+)\]'", " ".join(rest for word, rest in steps if word == "RUN"))
    assert all(re.search(rf"^{extra} = ", project, re.MULTILINE) for extra in extras.split(","))
    assert [rest for word, rest in steps if word == "USER"] == ["bstune"]
    assert steps[-1] == ["ENTRYPOINT", '["bstune"]']
    assert {".git", ".venv", "examples/service/.env"} <= set(
        (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    )


def test_the_unit_is_understood() -> None:
    """Its command line, and that each credential it names is one that it loads."""
    unit = configparser.RawConfigParser(strict=False, delimiters=("=",))
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    text = (FOLDER / "bstune.service").read_text()
    unit.read_string(text)

    command = shlex.split(unit["Service"]["ExecStart"])
    options = understood(command[1:])
    loaded = re.findall(r"^LoadCredential=(\w+):", text, re.MULTILINE)
    assert sorted(str(options[name]) for name in ("token_file", "tls_key", "tls_certificate")) == sorted(
        f"%d/{name}" for name in loaded
    )
    assert unit["Service"]["Restart"] == "always"
    assert unit["Service"]["DynamicUser"] == "yes"
