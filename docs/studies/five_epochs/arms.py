"""Five epochs from scratch: which optimizer, dropout or drop-path, mixup or none?

    mbconv study docs/studies/five_epochs/arms.py:five_epochs --data imagewoof --resolution 96 \
        --epochs 5 --out studies/five_epochs

Each against `scratch_small` as it is: Muon, no dropout, no drop-path, no mixing.
"""

from mbconv import Arm, Grid
from mbconv.arch.spec import Spec

CHANGES = {
    "scratch_small": (),
    "AdamW 4e-3": ("optimizer.name=adamw", "optimizer.learning_rate=4e-3"),
    "SGD 0.1": ("optimizer.name=sgd", "optimizer.learning_rate=0.1", "optimizer.weight_decay=5e-4"),
    "RMSprop 2e-3": (
        "optimizer.name=rmsprop_tf", "optimizer.learning_rate=0.002", "optimizer.weight_decay=1e-5",
    ),
    "dropout 0.2": ("regularization.dropout=0.2",),
    "drop-path 0.2": ("regularization.drop_path=0.2",),
    "mixup 0.2": ("augmentation.mixup=0.2",),
}  # fmt: skip


def five_epochs(base: Spec) -> Grid:
    """Which optimizer, dropout or drop-path, mixup or none, in five epochs from scratch?

    One change each to the recipe scratch_small; learning rates are the usual ones, not tuned.
    """
    arms = [Arm(name=name, model=base, changes=changes) for name, changes in CHANGES.items()]
    return Grid(arms=arms, baseline="scratch_small")
