"""The named recipes: functions that return one complete config. Nothing else chooses numbers.

Those for pictures of one's own are here, those of papers in `papers`. Each takes the number of
training pictures and the resolution to train for. Nothing here imports torch.
"""

import math
from dataclasses import replace
from typing import Protocol

from mbconv.arch.fields import known
from mbconv.data.augmentation import Augmentation
from mbconv.training.papers import (
    efficientnet_tf,
    efficientnetv2_progressive,
    resnet_strikes_back_a2,
)
from mbconv.training.recipe import (
    SMALLER,
    Optimizer,
    Phase,
    Recipe,
    Regularization,
    Schedule,
    Transfer,
)

SMALLEST = 96  # px; below it the last maps are too small for pretrained weights to help


class Make(Protocol):
    """What a named recipe looks like."""

    __name__: str

    def __call__(self, pictures: int, resolution: int, *, epochs: int | None = None) -> Recipe: ...


def finetune(pictures: int, resolution: int, *, epochs: int | None = None) -> Recipe:
    """Fine-tune pretrained weights on a folder of pictures; the default where there are weights.

    The classifier is first fitted on frozen features; then all but the stem and the first four
    stages learn. Batch-norm statistics stay those of the pretraining, which small batches would
    blur, so that they can be folded into the convolutions. Resolution grows (Tan and Le 2021,
    arXiv 2104.00298). Without `epochs`: about 340 steps, between 4 and 40 epochs.

    Command: mbconv train clothing --budget 5m. Hardware: two CPU cores. Score: 92.7% of 372 test
    pictures (95% interval 89.6 to 95.0), ten classes, 3,068 pictures to train on, 219 s.
    """
    phases = growing(resolution, epochs or _default_epochs(pictures, steps=340))
    return Recipe(
        name="finetune",
        phases=phases,
        optimizer=Optimizer(learning_rate=4e-4),
        regularization=Regularization(drop_path=0.0),  # few epochs: the crops are noise enough
        transfer=Transfer(head_resolution=phases[0].resolution, frozen_stages=4, norms="frozen"),
    )


def further(pictures: int, resolution: int, *, epochs: int | None = None) -> Recipe:
    """Train on from weights that answer already: after growing or shrinking, or with a teacher.

    The classifier stays as it is, everything learns, batch-norm statistics stay. Half of the loss
    is nearness to the teacher's answers, where there is a teacher (Hinton et al. 2015, arXiv
    1503.02531). Without `epochs`: about 340 steps, between 4 and 40 epochs.

    Command: mbconv shrink runs/clothing --to 0.6 --finetune --epochs 4 --out lean. Hardware: one
    thread of a busy CPU. Score: 90.1% of 372 test pictures (95% interval 86.6 to 92.7) at 40% of
    the multiply-adds of a Lite0 with 89.8%.
    """
    return Recipe(
        name="further",
        phases=growing(resolution, epochs or _default_epochs(pictures, steps=340)),
        optimizer=Optimizer(learning_rate=4e-4),
        regularization=Regularization(drop_path=0.0),
        transfer=Transfer(norms="frozen"),
    )


def scratch(pictures: int, resolution: int, *, epochs: int | None = None) -> Recipe:
    """Train fresh weights; the default where there are none: about 6,000 steps.

    Everything learns, batch norms included.

    Command: mbconv train DATA --model SPEC. Hardware: two CPU cores. Score: not yet measured here.
    """
    return Recipe(
        name="scratch",
        phases=growing(resolution, epochs or _default_epochs(pictures, steps=6000)),
        optimizer=Optimizer(learning_rate=3e-3, weight_decay=0.05),
        regularization=Regularization(ema_decay=0.998),
        transfer=Transfer(fresh=True),
    )


def scratch_small(pictures: int, resolution: int, *, epochs: int | None = None) -> Recipe:
    """Fresh weights in few epochs on small sets: Imagewoof, Imagenette, CIFAR; 5 by default.

    Few epochs want a network that learns quickly (fused_shallow), many steps (batches of 32, of 64
    from 4,000 pictures on), a high rate that rises for a quarter of them and then falls to nothing
    (one cycle, Smith and Topin 2017, arXiv 1708.07120), steps by Muon, label smoothing, cheap small
    pictures first, a stem that whitens patches, a classifier that starts from zero, and no noise
    beyond crops: no dropout, no drop-path. From 20 epochs on, overfitting is the danger:
    TrivialAugment (arXiv 2103.10158) and the spec's own rates come in; from 80 on cutmix as well.
    Batch norms follow with a momentum of 0.1, since TensorFlow's 0.01 is too slow for a thousand
    steps. Below 64 px: mbconv info NAME --set stem_stride=1 --save spec.json, --model spec.json.

    Command: mbconv train imagewoof --model fused_shallow --recipe scratch_small --resolution 128.
    Hardware: two CPU cores. Score: 73.8% of 3,929
    pictures (three seeds: 73.7, 73.7, 73.9), where efficientnet_b0 has 45.1%.
    """
    epochs = epochs or 5
    few, many = epochs < 20, pictures >= 4000
    return Recipe(
        name="scratch_small",
        phases=growing(resolution, epochs),
        batch_size=64 if many else 32,
        optimizer=Optimizer(name="muon", learning_rate=6e-3 if many else 4e-3, weight_decay=0.05),
        schedule=Schedule(kind="one_cycle", warmup=0.25),
        augmentation=Augmentation(
            policy="none" if few else "trivialaugment", cutmix=1.0 if epochs >= 80 else 0.0
        ),
        regularization=Regularization(
            dropout=0.0 if few else None,
            drop_path=0.0 if few else None,
            ema_decay=0.99 if few else 0.998,
        ),
        transfer=Transfer(fresh=True, whiten_stem=True, zero_head=True, norm_momentum=0.1),
    )


def grow(pictures: int, resolution: int, *, epochs: int | None = None) -> Recipe:
    """Begin with a smaller network, which grows into the one asked for within the run.

    For half of the epochs a smaller relative learns from smaller pictures: a named one of about
    half the multiply-adds, else one of half the depth and 1/1.4 of the width. Then it becomes the
    whole network without changing its answers (Net2Net, Chen et al. 2015, arXiv 1511.05641), with
    its moving average and the optimizer's moments. Other ways: --set phases.0.network=NAME,
    phases.0.epochs and so on. The numbers are `scratch`'s; where the smaller network has
    pretrained weights, `--recipe grow` takes `grow_pretrained`.

    Command: mbconv train DATA --model efficientnet_b1 --recipe grow. Hardware: two CPU cores.
    Score: not yet measured here.
    """
    whole = scratch(pictures, resolution, epochs=epochs)
    phases = _network_too(resolution, whole.epochs)
    return replace(whole, name="grow", phases=phases, transfer=Transfer())


def grow_pretrained(pictures: int, resolution: int, *, epochs: int | None = None) -> Recipe:
    """`grow` from pretrained weights of the smaller network: Lite0's, say, for a Lite1.

    As `finetune` has it, the classifier is fitted first and batch-norm statistics stay; but
    everything learns, since what is new in frozen stages never would. Without `epochs`: about 340
    steps, between 4 and 40 epochs.

    Command: mbconv train DATA --model efficientnet_lite1 --recipe grow. Hardware: two CPU cores.
    Score: not yet measured here.
    """
    tuned = finetune(pictures, resolution, epochs=epochs)
    phases = _network_too(resolution, tuned.epochs)
    transfer = Transfer(head_resolution=phases[0].resolution, norms="frozen")
    return replace(tuned, name="grow_pretrained", phases=phases, transfer=transfer)


_ALL: tuple[Make, ...] = (
    finetune,
    further,
    scratch,
    scratch_small,
    grow,
    grow_pretrained,
    efficientnet_tf,
    efficientnetv2_progressive,
    resnet_strikes_back_a2,
)
RECIPES: dict[str, Make] = {make.__name__: make for make in _ALL}


def find_recipe(name: str, pretrained: bool = False) -> Make:
    """The function of that name; UserError names the nearest ones.

    Of `grow` the one that fits whether the weights it starts from are `pretrained`.
    """
    known("mbconv", [name], set(RECIPES), kind="recipe")
    return grow_pretrained if pretrained and name == grow.__name__ else RECIPES[name]


def usual_recipe(pretrained: bool) -> Make:
    """The one where none is named."""
    return finetune if pretrained else scratch


def growing(resolution: int, epochs: int) -> tuple[Phase, ...]:
    """The first half of the epochs at 5/7 of the resolution (160 of 224), the rest at all of it.

    The smaller side is a multiple of 32 and at least 96.
    """
    small, first = _smaller(resolution), epochs // 2
    if first == 0 or small >= resolution:
        return (Phase(resolution, epochs),)
    return (Phase(small, first), Phase(resolution, epochs - first))


def _network_too(resolution: int, epochs: int) -> tuple[Phase, ...]:
    """The same with a smaller network in the first half, even where pictures stay as they are."""
    first = epochs // 2
    last = Phase(resolution, epochs - first)
    if first == 0:
        return (last,)
    small = min(resolution, _smaller(resolution))
    return (Phase(small, first, network=SMALLER), last)


def _smaller(resolution: int) -> int:
    return max(SMALLEST, round(resolution * 5 / 7 / 32) * 32)


def _default_epochs(pictures: int, steps: int, batch_size: int = 32) -> int:
    return min(max(math.ceil(steps * batch_size / pictures), 4), 40)
