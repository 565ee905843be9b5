"""What an artifact says of itself, and the seal that tells whether it was changed.

An artifact is a file that `mbconv export` wrote: `.onnx`, `.xml` with its `.bin` (OpenVINO), `.pte`
(ExecuTorch) or `.pt2` (torch). Two entries of its metadata are ours: `mbconv`, JSON with what
`Artifact` holds, and `mbconv_sha256`, the SHA-256 of the artifact's content with these 64 digits as
zeros.
"""

import hashlib
import json
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mbconv.arch.spec import Spec
from mbconv.errors import UserError
from mbconv.preprocessing import Preprocessing

Runtime = Literal["torch", "onnx", "openvino", "executorch"]
Precision = Literal["float32", "bfloat16", "int8"]
Entry = Literal["tensor", "pictures"]

FORMAT = 1
KEY, SEAL = "mbconv", "mbconv_sha256"
UNSEALED = 64 * "0"
SUFFIXES: dict[str, Runtime] = {
    ".onnx": "onnx", ".xml": "openvino", ".pt2": "torch", ".pte": "executorch"
}  # fmt: skip
MEMBER = "extra/mbconv.json"  # of a .pt2, which is a zip archive
_SEALED = re.compile(SEAL.encode() + rb"[^0-9]{1,20}?([0-9a-f]{64})")


@dataclass(frozen=True, kw_only=True)
class Form:
    """How an artifact computes. `batch` is the number of pictures a call, None for any.

    `piece`, for many pictures a second: each core computes so many of a call's pictures at a time,
    by itself. None: all cores share the work on all pictures, which answers a single one soonest.
    """

    runtime: Runtime
    precision: Precision = "float32"
    entry: Entry = "tensor"
    batch: int | None = None
    piece: int | None = None


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """An artifact's description.

    Of the entries, `tensor` takes normalised float32 [N, 3, R, R] and `pictures` uint8 RGB
    [N, H, W, 3] of any size; both give logits, float32 [N, classes]. `accuracy` is what the
    guard measured, None without data. `needs` names alternative features of the processor, one of
    which must be there.
    """

    form: Form
    spec: Spec
    labels: tuple[str, ...] | None
    preprocessing: Preprocessing
    provenance: dict[str, Any] = field(default_factory=dict)
    accuracy: dict[str, Any] | None = None
    needs: tuple[str, ...] = ()

    def to_json(self) -> str:
        return json.dumps(
            {
                "format": FORMAT,
                **vars(self.form),
                "spec": self.spec.to_dict(),
                "labels": None if self.labels is None else list(self.labels),
                "preprocessing": self.preprocessing.to_dict(),
                "provenance": self.provenance,
                "accuracy": self.accuracy,
                "needs": list(self.needs),
            }
        )

    @classmethod
    def from_json(cls, text: str, path: Path) -> "Artifact":
        """Raises UserError, naming `path`, for what is broken or of a newer version."""
        try:
            data = json.loads(text)
            if data["format"] > FORMAT:
                raise UserError(
                    f"{path} has format {data['format']}, written by a newer mbconv; this one "
                    f"reads up to format {FORMAT}. Upgrade mbconv."
                )
            return cls(
                form=Form(**{n: data[n] for n in Form.__dataclass_fields__ if n in data}),
                spec=Spec.from_dict(data["spec"]),
                labels=None if data["labels"] is None else tuple(data["labels"]),
                preprocessing=Preprocessing.from_dict(data["preprocessing"]),
                provenance=data["provenance"],
                accuracy=data["accuracy"],
                needs=tuple(data["needs"]),
            )
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            if isinstance(error, UserError) and "newer" in str(error):
                raise
            raise UserError(
                f"The description inside {path} is broken ({error}). Export it again."
            ) from error


def runtime_of(path: str | Path) -> Runtime | None:
    """Whose file a path is by its suffix; None for everything that is no artifact."""
    return SUFFIXES.get(Path(path).suffix.lower())


def files_of(path: Path) -> list[Path]:
    """All files of an artifact: OpenVINO keeps the weights beside the graph."""
    return [path, path.with_suffix(".bin")] if runtime_of(path) == "openvino" else [path]


def unsealed(description: str) -> str:
    """Both entries as JSON, with room for the seal."""
    return f'{{"{SEAL}": "{UNSEALED}", "{KEY}": {description}}}'


def seal(path: Path) -> None:
    """Put the content's hash where the writer of the file, no archive, has left room for it."""
    digest = content_hash(path)
    data = bytearray(path.read_bytes())
    found = _SEALED.search(data)
    assert found is not None, "the writer leaves room for the seal"
    data[found.start(1) : found.end(1)] = digest.encode()
    path.write_bytes(data)


def seal_archive(path: Path, description: str) -> None:
    """Add the description and the content's hash to a `.pt2`, whose members carry checksums."""
    text = unsealed(description)
    digest = _hash(text.encode(), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(member(archive), text.replace(UNSEALED, digest, 1))


def check_seal(path: Path) -> None:
    """Raise UserError unless the artifact is one of ours, and as it was written."""
    for part in files_of(path):
        if not part.is_file():
            beside = f" beside {path.name}" if part != path else ""
            raise UserError(f"{part} does not exist{beside}; give an artifact's path.")
    try:
        found = _SEALED.search(_sealed_part(path))
    except (OSError, KeyError, zipfile.BadZipFile, IndexError) as error:
        raise UserError(f"{path} cannot be read ({error}). Copy or export it again.") from error
    if found is None:
        raise UserError(
            f"{path} was not written by mbconv export: it lacks the description with labels and "
            "preprocessing. Export the network that it was made from."
        )
    if found[1].decode() != content_hash(path):
        raise UserError(
            f"{path} was changed after it was exported: its content does not match the checksum "
            "inside. Copy or export it again."
        )


def content_hash(path: Path) -> str:
    """SHA-256 of the artifact's content with the seal as zeros, 64 hex digits."""
    return _hash(_blank(_sealed_part(path)), path)


def _sealed_part(path: Path) -> bytes:
    if runtime_of(path) != "torch":
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        return archive.read(member(archive))


def _hash(sealed: bytes, path: Path) -> str:
    digest = hashlib.sha256(sealed)
    if runtime_of(path) == "torch":
        with zipfile.ZipFile(path) as archive:
            for name in sorted(set(archive.namelist()) - {member(archive)}):
                digest.update(name.encode() + archive.read(name))
    for part in files_of(path)[1:]:
        digest.update(part.read_bytes())
    return digest.hexdigest()


def member(archive: zipfile.ZipFile) -> str:
    """The name of our description in a .pt2, below the archive's own folder."""
    return f"{archive.namelist()[0].split('/')[0]}/{MEMBER}"


def _blank(data: bytes) -> bytes:
    found = _SEALED.search(data)
    return (
        data if found is None else data[: found.start(1)] + UNSEALED.encode() + data[found.end(1) :]
    )
