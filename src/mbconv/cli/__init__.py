"""The command line: parse, import lazily, call one function. Nothing here imports torch."""

from mbconv.cli import classifier, data, machine, networks, runs, training, weights
from mbconv.cli.base import main

__all__ = ["classifier", "data", "machine", "main", "networks", "runs", "training", "weights"]
