"""Shrinking: the public door, with the pictures that nothing was chosen by."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mbconv.arch.spec import Spec
from mbconv.data.source import Dataset, Sample
from mbconv.errors import UserError
from mbconv.growing.inverse import ungrow
from mbconv.growing.target import target_spec
from mbconv.growing.transfer import provenance
from mbconv.measure.accuracy import collect, matched
from mbconv.measure.paired import Paired, paired
from mbconv.nn.model import MBConvNet
from mbconv.runtime.predictor import Predictor
from mbconv.shrinking.measured import Shrinking, Tell, Wishes
from mbconv.shrinking.plan import MEASURES, Measure, Plan
from mbconv.training import folder
from mbconv.training.console import Reporter
from mbconv.training.run import Run, train
from mbconv.training.setup import open_data
from mbconv.weights.model import load


@dataclass(frozen=True)
class Shrunk:
    """A smaller network. `plan` is None where it was shrunk to a given spec.

    `comparison` has the source and the result on pictures that decided nothing.
    """

    model: MBConvNet
    plan: Plan | None = None
    comparison: Paired | None = None


def shrink(
    model: MBConvNet | str | Path,
    data: str | Path | Dataset | None = None,
    *,
    to: float | Spec | str | Path,
    by: Measure = "ms",
    pictures: int = 256,
    multiple: int = 16,
    seed: int = 0,
    tell: Tell = lambda what, done, total: None,
) -> Shrunk:
    """A smaller network by removing what costs least, or back to what a network was grown from.

    `model` is a network or whatever `load` takes; it stays as it is. With a share as `to` (0.6),
    blocks, expanded channels and kernels are removed until that share of the network's `by` is
    left: `ms` a picture here (batch 1, float32), `macs` or `params`. Each removal is first tried
    alone on `pictures` held-out pictures, and what stays is fitted to do what went, on training
    pictures. `data` is whatever `scan` takes, by default a run folder's own; `multiple` is what
    channels are left in. What decides is the validation split, or half of it where there is no
    test split; `comparison` is taken on the other pictures. `tell` hears of progress.

    With a Spec, a spec file, a model or a name as `to`, growing is undone: right after `grow` the
    result computes what the source did.

    Raises UserError for a goal that cannot be reached, pictures of other classes, and a `to` that
    could not have grown into `model`.
    """
    source = model if isinstance(model, MBConvNet) else load(model)
    goal = as_share(to)
    if goal is None:
        assert not isinstance(to, float)
        return Shrunk(ungrow(source, target_spec(to, source.spec)))
    if by not in MEASURES:
        raise UserError(f"by is {by!r}; it must be {', '.join(MEASURES)}.")
    wishes = Wishes(to=goal, by=by, pictures=pictures, multiple=multiple, seed=seed)
    deciding, scoring, learnt = _parts(source, opened(model, data, seed), seed)
    shrunk, plan = Shrinking(source, learnt, deciding, wishes, tell).run()
    shrunk.labels, shrunk.preprocessing = source.labels, source.preprocessing
    steps = [(step.module, step.kind, step.before, step.after) for step in plan.steps]
    shrunk.provenance = provenance(
        source, source.state_dict(), shrunk_from=source.spec.name, by=by, goal=goal,
        reached=plan.reached, removed=steps,
    )  # fmt: skip
    return Shrunk(shrunk, plan, compared(source, shrunk, scoring))


def finetune(
    model: MBConvNet | str | Path,
    shrunk: Shrunk,
    data: str | Path | None,
    out: str | Path,
    *,
    epochs: int | None = None,
    budget: float | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> tuple[Run, Paired]:
    """Train a shrunk network further, taught by the one it comes from, in a run folder `out`.

    Returns the run, and both networks' answers beside each other on the pictures that the run is
    scored on. The other parameters are those of `train` and of `shrink`.
    """
    source = model if isinstance(model, MBConvNet) else load(model)
    source_data, seed = _where(model, data, seed)
    run = train(
        shrunk.model, source_data, out, recipe="further", teacher=source, epochs=epochs,
        budget=budget, seed=seed, quiet=quiet,
    )  # fmt: skip
    _, scoring, _ = _parts(source, folder.read_data(run.path), seed)
    return run, compared(source, run.model, scoring)


def as_share(to: float | Spec | str | Path) -> float | None:
    """0.6 or "0.6"; None for what names a network."""
    if isinstance(to, Spec):
        return None
    try:
        return float(to)  # type: ignore[arg-type]  # of a Path it raises TypeError
    except (TypeError, ValueError):
        return None


def opened(model: MBConvNet | str | Path, data: str | Path | Dataset | None, seed: int) -> Dataset:
    """The pictures in the splits that training makes of them; of a run its own."""
    if isinstance(data, Dataset):
        return data
    if data is None and not isinstance(model, MBConvNet) and _is_run(model):
        return folder.read_data(Path(model))
    where, seed = _where(model, data, seed)
    return open_data(where, seed, Reporter(quiet=True))[0]


def compared(source: MBConvNet, shrunk: MBConvNet, samples: Sequence[Sample]) -> Paired:
    """Both networks on the same pictures."""
    one, other = (collect(Predictor(network), samples) for network in (source, shrunk))
    if one.paths != other.paths:
        raise UserError("Pictures changed while the networks were compared; do it again.")
    return paired(one.right, other.right)


def _parts(
    source: MBConvNet, dataset: Dataset, seed: int
) -> tuple[Sequence[Sample], Sequence[Sample], Sequence[Sample]]:
    """Samples that decide, that score and that were learnt from, with the network's labels."""
    predictor = Predictor(source)

    def samples(split: str) -> Sequence[Sample]:
        return matched(predictor, dataset, split=split).samples

    deciding, learnt = samples("val"), samples("train")
    if dataset.splits.get("test"):
        return deciding, samples("test"), learnt
    order = np.random.default_rng(seed).permutation(len(deciding)).tolist()
    half = len(order) // 2
    return [deciding[i] for i in order[:half]], [deciding[i] for i in order[half:]], learnt


def _is_run(model: str | Path) -> bool:
    return (Path(model) / "data.json").is_file() and (Path(model) / "config.json").is_file()


def _where(
    model: MBConvNet | str | Path, data: str | Path | None, seed: int
) -> tuple[str | Path, int]:
    """What `scan` takes, and the seed of its splits: a run's own, so that they are the same."""
    if not isinstance(model, MBConvNet) and _is_run(model):
        config = folder.read_config(Path(model) / "config.json")
        return (config["data"] if data is None else data), config["seed"]
    if data is None:
        raise UserError("Say what to measure on: --data DIR. Only a run folder knows its own.")
    return data, seed
