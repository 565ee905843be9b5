"""The named recipes: functions that return one complete config. Nothing else chooses numbers.

Each takes the number of training pictures and the resolution to train for. Nothing here imports
torch.
"""

import math
from dataclasses import replace
from typing import Protocol

from mbconv.arch.fields import known
from mbconv.data.augmentation import Augmentation
from mbconv.training.recipe import (
    SMALLER,
    Loss,
    Optimizer,
    Phase,
    Recipe,
    Regularization,
    Schedule,
    Transfer,
)

SMALLEST = 96  # px; below it the last maps are too small for pretrained weights to help
_MICRO_BATCH = 32  # of the recipes for ImageNet, whose batches fit into few memories


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

    Few epochs want many steps (batches of 32), a high rate that rises for a quarter of them and
    then falls to nothing (one cycle, Smith and Topin 2017, arXiv 1708.07120), steps by Muon, label
    smoothing, cheap small pictures first, a classifier that starts from zero, and no noise beyond
    crops: no dropout, no drop-path. From 20 epochs on, overfitting is the danger: TrivialAugment
    (arXiv 2103.10158) and the spec's own rates come in; from 80 on cutmix as well. Batch norms
    follow with a momentum of 0.1, since TensorFlow's 0.01 is too slow for a thousand steps. Below
    64 px: mbconv info efficientnet_b0 --set stem_stride=1 --save spec.json, and --model spec.json.

    Command: mbconv train imagewoof --model efficientnet_b0 --recipe scratch_small --resolution 128.
    Hardware: two CPU cores. Score: 45.1% of 3,929 (three
    seeds: 46.8, 44.2, 44.2).
    """
    epochs = epochs or 5
    few = epochs < 20
    return Recipe(
        name="scratch_small",
        phases=growing(resolution, epochs),
        optimizer=Optimizer(name="muon", learning_rate=4e-3, weight_decay=0.05),
        schedule=Schedule(kind="one_cycle", warmup=0.25),
        augmentation=Augmentation(
            policy="none" if few else "trivialaugment", cutmix=1.0 if epochs >= 80 else 0.0
        ),
        regularization=Regularization(
            dropout=0.0 if few else None,
            drop_path=0.0 if few else None,
            ema_decay=0.99 if few else 0.998,
        ),
        transfer=Transfer(fresh=True, zero_head=True, norm_momentum=0.1),
    )


def efficientnet_tf(pictures: int, resolution: int, *, epochs: int | None = None) -> Recipe:
    """EfficientNet V1 as its TensorFlow code trains it (Tan and Le 2019, arXiv 1905.11946).

    RMSprop as TensorFlow has it, 0.016 for 256 pictures, times 0.97 every 2.4 epochs in steps,
    after a warm-up of 5; weight decay 1e-5; moving average 0.9999; drop-path 0.2; AutoAugment;
    label smoothing 0.1; 350 epochs. Dropout is the spec's. For another batch size change the rate
    in proportion. Different here: batches of 256 instead of 4,096, batch-norm statistics of 32
    pictures each, biases without decay, crops resized bilinearly, torchvision's AutoAugment.

    Command: mbconv train imagenet --model efficientnet_b0 --recipe efficientnet_tf. Hardware: made
    for a TPU pod; expect weeks on one GPU. Score: the paper's table 2 has 77.1% for B0 at 224 px;
    not yet measured here.
    """
    epochs = epochs or 350
    return Recipe(
        name="efficientnet_tf",
        phases=(Phase(resolution, epochs),),
        batch_size=256,
        optimizer=_tensorflow(),
        schedule=_staircase(epochs),
        augmentation=Augmentation(crop_scale=0.08, policy="autoaugment"),
        regularization=Regularization(drop_path=0.2, ema_decay=0.9999),
        transfer=Transfer(fresh=True),
    )


def efficientnetv2_progressive(
    pictures: int, resolution: int, *, epochs: int | None = None
) -> Recipe:
    """Progressive learning of EfficientNet V2 (Tan and Le 2021, arXiv 2104.00298, table 6).

    Four phases from 128 px to `resolution`, in which RandAugment (5 to 10), mixup (0 to 0.2) and
    dropout (0.1 to 0.4) grow in equal steps, as the table has it for M; for S set phases.3.mixup
    and the like to 0 and dropout to at most 0.3. The rest is `efficientnet_tf`'s. Different here:
    torchvision's operations end at a magnitude of 10, the paper goes to 15, 20 and 25; batches of
    256 instead of 4,096; the finished network is used at the resolution of the last phase, the
    paper's at a larger one.

    Command: mbconv train imagenet --model efficientnetv2_s --recipe efficientnetv2_progressive
    --resolution 300. Hardware: made for 32 TPU cores. Score: the paper has 83.9% for S and 85.1%
    for M, at 384 and 480 px; not yet measured here.
    """
    epochs = epochs or 350
    count = min(4, epochs)
    smallest = min(128, resolution)
    phases = []
    for index in range(count):
        share = index / (count - 1) if count > 1 else 1.0
        phases.append(
            Phase(
                resolution=round(smallest + share * (resolution - smallest)),
                epochs=epochs // count + (index < epochs % count),
                magnitude=round(5 + share * 5, 2),
                mixup=round(share * 0.2, 3),
                dropout=round(0.1 + share * 0.3, 2),
            )
        )
    return Recipe(
        name="efficientnetv2_progressive",
        phases=tuple(phases),
        batch_size=256,
        optimizer=_tensorflow(),
        schedule=_staircase(epochs),
        augmentation=Augmentation(crop_scale=0.08, policy="randaugment"),
        regularization=Regularization(drop_path=0.2, ema_decay=0.9999),
        transfer=Transfer(fresh=True),
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


def resnet_strikes_back_a2(pictures: int, resolution: int, *, epochs: int | None = None) -> Recipe:
    """Procedure A2 of "ResNet strikes back" (Wightman et al. 2021, arXiv 2110.00476, table 2).

    LAMB at 5e-3 for batches of 2,048, weight decay 0.02, cosine after 5 of 300 epochs; binary
    cross-entropy; RandAugment 7, mixup 0.1 or cutmix 1; drop-path 0.05; no dropout, label smoothing
    or average. Different here: no repeated augmentation, RandAugment without its noise of 0.5,
    batch-norm statistics of 32 pictures each, among which pictures are mixed too.

    Command: mbconv train imagenet --model efficientnet_b0 --recipe resnet_strikes_back_a2
    --resolution 224. Hardware: made for four V100. Score: the paper has 79.8% for ResNet-50; not
    yet measured here.
    """
    epochs = epochs or 300
    return Recipe(
        name="resnet_strikes_back_a2",
        phases=(Phase(resolution, epochs),),
        batch_size=2048,
        optimizer=Optimizer(
            name="lamb",
            learning_rate=5e-3,
            weight_decay=0.02,
            clip=1.0,
            micro_batch=_MICRO_BATCH,
        ),
        schedule=Schedule(warmup=_first_epochs(epochs)),
        augmentation=Augmentation(
            crop_scale=0.08, policy="randaugment", magnitude=7.0, mixup=0.1, cutmix=1.0
        ),
        loss=Loss(kind="bce", label_smoothing=0.0),
        regularization=Regularization(dropout=0.0, drop_path=0.05, ema_decay=0.0),
        transfer=Transfer(fresh=True),
    )


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


def _tensorflow() -> Optimizer:
    """Of the reference code, its rate for the 256 pictures of a batch."""
    return Optimizer(
        name="rmsprop_tf", learning_rate=0.016, weight_decay=1e-5, micro_batch=_MICRO_BATCH
    )


def _staircase(epochs: int) -> Schedule:
    return Schedule(kind="step", warmup=_first_epochs(epochs), factor=0.97, every=2.4)


def _first_epochs(epochs: int) -> float:
    """Five epochs as a share of the run; of short ones a fourth."""
    return min(5 / epochs, 0.25)


def _default_epochs(pictures: int, steps: int, batch_size: int = 32) -> int:
    return min(max(math.ceil(steps * batch_size / pictures), 4), 40)
