"""Networks on the Hugging Face hub: `hf-hub:OWNER/NAME`, with `@REVISION` where it matters.

What was downloaded once is used without asking the hub again; `fetch` with `update` looks for
newer weights. Downloads, their resuming and the cache are huggingface_hub's.
"""

import errno
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from mbconv.arch.spec import Spec
from mbconv.errors import UserError
from mbconv.files import file_hash
from mbconv.nn.model import MBConvNet
from mbconv.record import Record
from mbconv.weights import file, repository

if TYPE_CHECKING:
    from huggingface_hub.utils._safetensors import TensorInfo

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when huggingface_hub is imported

PREFIX = "hf-hub:"
SHA256 = re.compile(r"[0-9a-f]{64}")


class Fetched(NamedTuple):
    """A repository in the cache: its folder, named after the commit, and its weights' SHA-256."""

    folder: Path
    sha256: str


def is_hub(model: object) -> bool:
    """Whether MODEL names a repository of the hub."""
    return str(model).startswith(PREFIX)


def load(model: str) -> MBConvNet:
    """The network of a repository in timm's layout or ours, in evaluation mode.

    `provenance` says which commit it is and the file's SHA-256. See `fetch` for the errors.
    """
    folder, sha256 = fetch(model)
    foreign = repository.is_foreign(folder)
    network = repository.load(folder) if foreign else file.load(folder / repository.MODEL_FILE)
    about = {"repository": model, "revision": folder.name, "sha256": sha256}
    network.provenance = {**(network.provenance or {}), **about}
    return network


def find_spec(model: str) -> Spec:
    """The spec of a repository's network; of weights that are not cached only the header is read.

    Errors are those of `fetch`, but for damaged weights.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, SafetensorsParsingError

    name, revision = _parse(model)
    if _cached(name, revision) is not None:
        return load(model).spec
    _check_online(model)
    with _explained(name, revision):
        try:
            header = HfApi(library_name="mbconv").parse_safetensors_file_metadata(
                name, repository.MODEL_FILE, revision=revision
            )
        except (EntryNotFoundError, SafetensorsParsingError) as error:
            raise UserError(_no_weights(model)) from error
        if file.KEY in header.metadata:
            return file.spec_in(header.metadata, model)
        path = Path(hf_hub_download(name, repository.CONFIG, revision=revision))
    config = repository.read_config(path.parent)
    return repository.assembled(config, _shapes(header.tensors), model).spec


def _shapes(tensors: Mapping[str, "TensorInfo"]) -> dict[str, torch.Tensor]:
    """Tensors without content, as a header describes them."""
    return {
        name: torch.empty(
            tuple(about.shape), device="meta",
            dtype=torch.float32 if "F" in about.dtype else torch.int64,
        )
        for name, about in tensors.items()
    }  # fmt: skip


def fetch(model: str, *, update: bool = False) -> Fetched:
    """Download a repository's config, weights and card, unless the cache has them.

    With `update` the hub is asked for a newer commit. The weights' SHA-256 is compared with the
    hub's; a file that differs is removed. HF_HUB_OFFLINE forbids downloads, HF_ENDPOINT and
    HF_HOME move hub and cache. Raises UserError where the name is wrong, the repository is
    missing, gated or without weights, and where there is no network.
    """
    name, revision = _parse(model)
    folder = None if update and not is_offline() else _cached(name, revision)
    if folder is None:
        folder = _download(model, name, revision)
    weights = folder / repository.MODEL_FILE
    if not weights.is_file():
        raise UserError(_no_weights(model))
    return Fetched(folder, _verified(model, weights))


def push_to_hub(
    model: MBConvNet,
    name: str,
    *,
    evaluation: Record | None = None,
    license: str | None = None,
    private: bool = False,
) -> str:
    """Upload the network with its model card to the repository `name` (`owner/name`).

    The repository is made where there is none. `evaluation` and `license` are as in
    `save_pretrained`. Returns the commit's address. Raises UserError where nobody is logged in,
    the token may not write there, or there is no network.
    """
    from huggingface_hub import HfApi

    if is_offline():
        raise UserError(f"{name} is not uploaded: --offline (or HF_HUB_OFFLINE) forbids it.")
    with tempfile.TemporaryDirectory() as folder:
        repository.save_pretrained(
            model, folder, evaluation=evaluation, license=license, repository=name
        )
        api = HfApi(library_name="mbconv")
        with _explained(name):
            api.create_repo(name, private=private, exist_ok=True)
            message = f"Upload {model.spec.name} with mbconv"
            commit = api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    return str(commit.commit_url)


def is_offline() -> bool:
    """Whether the user forbids downloads. Read anew each time, as --offline sets it."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _parse(model: str) -> tuple[str, str | None]:
    name, _, revision = model.removeprefix(PREFIX).partition("@")
    if name.count("/") != 1:
        raise UserError(_no_name(name))
    return name, revision or None


def _no_name(name: str) -> str:
    return f"{name!r} names no repository; write {PREFIX}OWNER/NAME or {PREFIX}OWNER/NAME@REVISION."


def _cached(name: str, revision: str | None) -> Path | None:
    """The cached folder of a repository if all that `load` needs is in it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise UserError(_no_name(name)) from error
    needed = (repository.CONFIG, repository.MODEL_FILE)
    return folder if all((folder / name).is_file() for name in needed) else None


def _download(model: str, name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    _check_online(model)
    with _explained(name, revision):
        files = list(repository.FILES)
        return Path(snapshot_download(name, revision=revision, allow_patterns=files))


def _check_online(model: str) -> None:
    from huggingface_hub import constants

    if is_offline():
        raise UserError(
            f"{model} is not in the cache {constants.HF_HUB_CACHE}, and --offline (or "
            f"HF_HUB_OFFLINE) forbids downloading. Run once with network: mbconv weights fetch "
            f"{model}"
        )


def _no_weights(model: str) -> str:
    return (
        f"{model} holds no {repository.MODEL_FILE}; mbconv opens no pickled weights. Take a "
        "repository that has it."
    )


def _verified(model: str, weights: Path) -> str:
    """The SHA-256 of the weights, which must be the hub's: in the cache, the file's true name."""
    stored = weights.resolve()
    digest = file_hash(stored)
    if SHA256.fullmatch(stored.name) and digest != stored.name:
        stored.unlink()
        raise UserError(
            f"The weights of {model} are damaged: their checksum is not the hub's. The file was "
            "removed from the cache; run the command again to download it."
        )
    return digest


@contextmanager
def _explained(name: str, revision: str | None = None) -> Iterator[None]:
    """Turns the client's exceptions into sentences; others pass."""
    try:
        yield
    except Exception as error:
        # While it uploads, the client wraps what went wrong.
        inner = error.__cause__ if isinstance(error, RuntimeError) else error
        sentence = _sentence(inner, name, revision)
        if sentence is None:
            raise
        raise UserError(sentence) from error


def _sentence(error: BaseException | None, name: str, revision: str | None) -> str | None:
    from huggingface_hub import constants, errors
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    hub = constants.ENDPOINT
    login = "log in (hf auth login)"
    if isinstance(error, errors.HFValidationError):
        return _no_name(name)
    if isinstance(error, errors.GatedRepoError):
        return f"{name} is gated: accept its terms at {hub}/{name} and {login}, then try again."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{hub} has no repository {name}, or it is private. Check the name, or {login}."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name} has no revision {revision!r}. Leave it out, or take another."
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"{hub} does not allow this for {name} ({status}): {login} with a token that may."
    if status is not None:
        return f"{hub} answered {status} for {name}. Try again later."
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"The disk is full: {name} was not downloaded. Free some space."
    if isinstance(error, errors.LocalEntryNotFoundError | HTTPError | OSError):
        reason = " ".join(str(error.__cause__ or error).split())
        return (
            f"{name} could not be reached at {hub} ({reason}). Check the network and the proxy, or "
            "copy the repository's folder here and give its path."
        )
    return None
