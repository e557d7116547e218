"""Trained models that are kept: a file of torch with a header, complete from the start, and over nothing but its own.

`torch.load(path, weights_only=True)` reads it: `model` is the state_dict, beside it stand `setting`, `seed`, `samples`,
`val_loss` and `study`. Whose a file is can be told without torch, and without running anything of what is in it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickletools
import re
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..core.errors import BstuneError, ObjectiveError
from ..core.plain_text import of_type, one_line
from ..core.trials import TrialSpec
from .own_files import NotPlainError, identity, open_plain

KEY = "made_by_bstune"
"""The first key in the file; its value is the header as JSON."""
MOST_HEADER_BYTES = 1 << 20


@dataclass(frozen=True)
class ModelHeader:
    """What a kept model says of itself."""

    study: str
    val_loss: float | None
    batch_size: int
    learning_rate: float


def write_model(spec: TrialSpec, model: Any, *, samples: int, val_loss: float) -> None:
    """Write the model of a run to `spec.model_to`; called in the process that trains.

    What goes wrong with the file is no fault of the run: there is then none, and whoever asked for it says so.

    Raises:
        ObjectiveError: It is neither a module nor a state_dict.
    """
    import torch

    assert spec.model_to is not None
    if isinstance(model, torch.nn.Module):
        model = model.state_dict()
    if not isinstance(model, dict):
        raise ObjectiveError(f"trial.save got {of_type(model)}: expected a torch.nn.Module or its state_dict.")
    setting = {
        "global_batch_size": spec.global_batch_size,
        "micro_batch_size": spec.micro_batch_size,
        "accumulation_steps": spec.accumulation_steps,
        "learning_rate": spec.learning_rate,
        "params": dict(spec.params),
    }
    header = {
        "study": spec.model_of,
        "setting": setting,
        "seed": spec.seed,
        "samples": samples,
        "val_loss": val_loss if math.isfinite(val_loss) else None,
    }
    part = f"{spec.model_to}.part"
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        with open(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o666), "wb") as file:
            torch.save({KEY: json.dumps(header), **header, "model": model}, file)
        os.replace(part, spec.model_to)
    except Exception:  # A full disk, or a state_dict with what cannot be pickled.
        Path(part).unlink(missing_ok=True)


def read_header(path: Path) -> ModelHeader | None:
    """Return what a kept model says of itself; None where bstune did not write the file.

    Raises:
        OSError: It is not a plain file, or cannot be read.
    """
    with open(open_plain(path, os.O_RDONLY), "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                [name] = [name for name in archive.namelist() if name.endswith("/data.pkl")]
                with archive.open(name) as pickled:
                    content = pickled.read(MOST_HEADER_BYTES)
            texts = (argument for _, argument, _ in pickletools.genops(content) if isinstance(argument, str))
            if next(texts) != KEY:
                return None
            header = json.loads(next(texts))
            setting, loss = header["setting"], header["val_loss"]
            return ModelHeader(
                str(header["study"]),
                None if loss is None else float(loss),
                int(setting["global_batch_size"]),
                float(setting["learning_rate"]),
            )
        # Not a file of torch's, or another's: whatever is wrong with it.
        except (zipfile.BadZipFile, StopIteration, ValueError, KeyError, TypeError, RuntimeError, NotImplementedError):
            return None


def check_model_path(path: str | Path, study: str | None = None) -> ModelHeader | None:
    """Return the header of the model that is there already, or None where nothing is.

    Args:
        path: Where a model is to be kept.
        study: The study that it is of; None: not known yet.

    Raises:
        BstuneError: The folder is missing, or something is there that bstune did not write for this study.
    """
    path, shown = Path(path), one_line(path)
    if not path.parent.is_dir():
        raise BstuneError(f"The model cannot be kept in {shown}: there is no folder {one_line(path.parent)}.")
    if identity(path) is None:
        if not os.access(path.parent, os.W_OK):
            raise BstuneError(f"The model cannot be kept in {shown}: its folder cannot be written to.")
        return None
    try:
        header = read_header(path)
    except NotPlainError:
        header = None
    except OSError as error:
        raise BstuneError(f"The model cannot be kept in {shown}: {error.strerror}.") from error
    if header is None:
        raise BstuneError(f"{shown} exists and was not written by bstune: it is left alone. Name another file.")
    if study is not None and header.study != study:
        raise BstuneError(
            f"{shown} holds a model of the study {one_line(header.study)!r}, and this one is {one_line(study)!r}: "
            "it is left alone. Name another file."
        )
    return header


class ModelKeeper:
    """Keeps the best model of a study in one file, as runs that are asked for it end.

    Attributes:
        path: The file.
        best: The header of what is in it; None while there is nothing.
    """

    def __init__(self, path: str | Path, study: str) -> None:
        """Look at what is there, and remove what a killed search has left beside it.

        Raises:
            BstuneError: The file is not this study's.
        """
        self.path = Path(os.path.abspath(path))
        self.best = check_model_path(self.path, study)
        self._study = study
        self._waiting: set[Path] = set()
        ours = re.compile(rf"\.{re.escape(self.path.name)}\.bstune-[0-9]+\.new(\.part)?")
        for other in self.path.parent.iterdir():
            if ours.fullmatch(other.name) and other.is_file() and other.lstat().st_uid == os.geteuid():
                other.unlink(missing_ok=True)

    def begin(self, spec: TrialSpec) -> TrialSpec:
        """Return the run as one that leaves its model."""
        file = self._file(spec.number)
        self._waiting.add(file)
        return replace(spec, model_to=str(file), model_of=self._study)

    def take(self, number: int, *, always: bool = False) -> ModelHeader | None:
        """Take the model of a run that has ended, if it is the best so far; None where the run has left none.

        Args:
            number: Of the trial.
            always: Take it whatever its loss.

        Raises:
            BstuneError: Somebody else's file has come there meanwhile.
        """
        file = self._file(number)
        try:
            header = read_header(file)
        except OSError:
            header = None
        if header is not None and (always or self._is_better(header)):
            if check_model_path(self.path, self._study) is None:
                os.link(file, self.path)  # Unlike a rename it fails where there is something by now.
            else:
                os.replace(file, self.path)
            self.best = header
        self.drop(number)
        return header

    def take_said(self, number: int) -> str:
        """Take the model of a run if it is the best so far, and return what became of it, in words."""
        before = self.best
        header = self.take(number)
        if header is None:
            return (
                f"trial {number} left no model: a loop of your own calls trial.save(model) at its end; else the file "
                "could not be written"
            )
        if self.best is before:
            return f"model of trial {number} not kept: the one in {one_line(self.path)} has a lower loss"
        return f"model of trial {number} saved to {one_line(self.path)}"

    def drop(self, number: int) -> None:
        """Remove what a run has left."""
        file = self._file(number)
        self._waiting.discard(file)
        for one in (file, Path(f"{file}.part")):
            with contextlib.suppress(OSError):
                one.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove what runs have left that did not end."""
        for file in tuple(self._waiting):
            self.drop(int(file.name.split("-")[-1].removesuffix(".new")))

    def _file(self, number: int) -> Path:
        return self.path.with_name(f".{self.path.name}.bstune-{number}.new")

    def _is_better(self, header: ModelHeader) -> bool:
        before = None if self.best is None else self.best.val_loss
        return header.val_loss is not None and (before is None or header.val_loss < before)
