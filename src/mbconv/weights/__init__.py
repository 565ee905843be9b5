"""Every model file: our own format, other people's checkpoints, and what MODEL means."""

from mbconv.weights.file import save
from mbconv.weights.model import create_model, load
from mbconv.weights.pretrained import pretrained_names

__all__ = ["create_model", "load", "pretrained_names", "save"]
