"""Recipes of papers, for ImageNet: what was published, and what is different here.

They take the number of training pictures and the resolution to train for, like those of
`recipes`, which has them all by name. Nothing here imports torch.
"""

from mbconv.data.augmentation import Augmentation
from mbconv.training.recipe import (
    Loss,
    Optimizer,
    Phase,
    Recipe,
    Regularization,
    Schedule,
    Transfer,
)

_MICRO_BATCH = 32  # whole batches fit into few memories


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
