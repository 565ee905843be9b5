"""The command line: parse, import lazily, call one function. Nothing here imports torch."""

from mbconv.cli import classifier, data, export, growing, machine, networks, training, weights
from mbconv.cli.base import main

__all__ = [
    "classifier",
    "data",
    "export",
    "growing",
    "machine",
    "main",
    "networks",
    "training",
    "weights",
]
