"""Artifacts of torch.export, and whether one may be loaded."""

import json
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from mbconv.data.cache import cache_dir
from mbconv.errors import UserError
from mbconv.files import file_hash, write_text
from mbconv.runtime.artifact import KEY, Artifact, member
from mbconv.runtime.backend import in_batches


class ProgramBackend:
    """A program of torch.export."""

    def __init__(self, program: torch.export.ExportedProgram, batch: int | None) -> None:
        self.device = torch.device("cpu")
        self._module, self._batch = program.module(), batch

    def logits(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            return in_batches(self._module, x, self._batch)


def check_installed(path: Path) -> None:
    """torch always is."""


def remember(path: Path) -> None:
    """Note down that this machine wrote the file."""
    write_text(_mark(path), str(path.resolve()))


def check_origin(path: Path, trust: bool) -> None:
    """Raise UserError for a file that this machine did not write, unless it is trusted."""
    if not (trust or _mark(path).is_file()):
        raise UserError(
            f"{path} was not exported on this machine, or was changed since then, and loading a "
            ".pt2 can run code that is in it. Say --trust (trust=True) if you know where it "
            "comes from."
        )


def open_sealed(path: Path) -> tuple[Artifact, ProgramBackend]:
    """Open an artifact whose origin and seal were checked."""
    with zipfile.ZipFile(path) as archive:
        about = json.loads(archive.read(member(archive)))[KEY]
    artifact = Artifact.from_json(json.dumps(about), path)
    try:
        program = torch.export.load(path)
    except Exception as error:  # whatever another version's format makes the reader stumble over
        raise UserError(
            f"{path} is not read by torch {torch.__version__} ({error}). Export it again."
        ) from error
    return artifact, ProgramBackend(program, artifact.form.batch)


def _mark(path: Path) -> Path:
    return cache_dir() / "exported" / file_hash(path)
