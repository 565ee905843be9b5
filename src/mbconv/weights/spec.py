"""The spec of whatever MODEL means; torch is imported only where a model file has to be read."""

from pathlib import Path

from mbconv.arch.spec import Spec
from mbconv.arch.zoo import get_spec
from mbconv.weights.libraries import is_library_model, library_spec


def find_spec(model: str | Path) -> Spec:
    """The spec of a name, a spec.json, a model file, a run folder or a repository.

    Raises UserError where there is none.
    """
    path, name = Path(model), str(model)
    if path.suffix == ".json" and path.is_file():
        return Spec.from_json(path.read_text(encoding="utf-8"))
    if name.startswith("hf-hub:") and not path.exists():
        from mbconv.weights import hub

        return hub.find_spec(name)
    if path.exists():
        from mbconv.weights.model import load

        return load(model).spec
    return library_spec(name) if is_library_model(name) else get_spec(name)
