"""The command line: parse, import lazily, call one function. Nothing here imports torch."""

from mbconv.cli import (
    bench,
    classifier,
    compare,
    data,
    export,
    growing,
    machine,
    networks,
    runs,
    serve,
    shrinking,
    study,
    training,
    weights,
)
from mbconv.cli.base import main

__all__ = [
    "bench",
    "classifier",
    "compare",
    "data",
    "export",
    "growing",
    "machine",
    "main",
    "networks",
    "runs",
    "serve",
    "shrinking",
    "study",
    "training",
    "weights",
]
