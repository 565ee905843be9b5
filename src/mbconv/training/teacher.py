"""A teacher: a network whose answers are learnt beside the labels (arXiv 1503.02531)."""

from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from mbconv.errors import UserError
from mbconv.nn.model import MBConvNet
from mbconv.preprocessing import Preprocessing
from mbconv.weights.file import load, save
from mbconv.weights.model import load as load_any

FILE = "teacher.safetensors"  # in the run folder, so that the run can go on


def load_teacher(teacher: MBConvNet | str | Path, classes: tuple[str, ...]) -> MBConvNet:
    """The teacher, which is a network or whatever `load` takes.

    Raises UserError unless its labels are `classes`, in their order.
    """
    network = teacher if isinstance(teacher, MBConvNet) else load_any(teacher)
    if network.labels != classes:
        known = f"{len(network.labels)} others" if network.labels else "none"
        raise UserError(
            f"The teacher must know the {len(classes)} classes of the data in their order; it "
            f"knows {known}. Train it on these classes first."
        )
    return network


def keep_teacher(run: Path, teacher: MBConvNet) -> None:
    """Put a copy of the teacher into the run folder."""
    save(teacher, run / FILE)


def find_teacher(run: Path, config: dict[str, Any]) -> MBConvNet | None:
    """The run's teacher, in evaluation mode; None where its config names none.

    Raises UserError where it names one that has gone.
    """
    if not config.get("teacher"):
        return None
    path = run / FILE
    if not path.is_file():
        raise UserError(f"{path}, the teacher of this run, is gone; put it back or start anew.")
    return load(path)


def as_seen_by(teacher: MBConvNet, x: Tensor, own: Preprocessing) -> Tensor:
    """Pictures [N, C, H, W] normalised for a network with `own` preprocessing, as the teacher's."""
    theirs = teacher.preprocessing
    if (theirs.mean, theirs.std) == (own.mean, own.std):
        return x
    mean, std, mean_t, std_t = (
        x.new_tensor(v).view(-1, 1, 1) for v in (own.mean, own.std, theirs.mean, theirs.std)
    )
    return (x * std + (mean - mean_t)) / std_t


def taught(loss: Tensor, logits: Tensor, answers: Tensor, share: float) -> Tensor:
    """`loss` with `share` of it replaced by the divergence from the teacher's answers.

    Both logits [N, C]; the Kullback-Leibler divergence is the mean of the pictures'.
    """
    divergence = F.kl_div(
        logits.log_softmax(1), answers.log_softmax(1), log_target=True, reduction="batchmean"
    )
    return (1 - share) * loss + share * divergence
