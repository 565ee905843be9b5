"""An mbconv network as encoder in segmentation_models.pytorch: a U-Net, then DeepLabV3+.

`register` is all that is needed: any decoder of that library then takes the network by its name.
The pictures are drawn: a disc and a square on a noisy ground, in colours that say nothing about
which is which.

    pip install mbconv segmentation-models-pytorch
    python examples/segmentation.py
"""

from typing import Any

import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.base import SegmentationModel
from segmentation_models_pytorch.encoders._base import EncoderMixin
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchvision.transforms.v2.functional import normalize

import mbconv

CLASSES = ("ground", "disc", "square")


class SmpEncoder(EncoderMixin, mbconv.Encoder):  # type: ignore[misc]
    """segmentation_models.pytorch's encoder interface, around `mbconv.create_model`."""

    def __init__(self, depth: int, output_stride: int, model: str, **options: Any) -> None:
        # An output stride moves maps to finer grids; which maps they are must stay the same.
        levels = mbconv.create_model(model, **options).spec.pyramid()[:depth]
        network = mbconv.create_model(model, output_stride=output_stride, **options)
        mbconv.Encoder.__init__(self, network, taps=[tap.name for tap in levels])
        self._depth, self._output_stride = depth, output_stride
        self._in_channels = self.in_channels
        self._out_channels = [self.in_channels, *(tap.channels for tap in self.taps)]

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """Keep the weights: the library counts only those as pretrained that it downloaded."""
        super().set_in_channels(in_channels, pretrained=True)

    def make_dilated(self, output_stride: int) -> None:
        """Nothing is left to do: the network was created with its dilation."""


def register(name: str, **options: Any) -> None:
    """Make the network known to the library; `options` are those of `mbconv.create_model`."""
    params = {"model": name, **options}
    smp.encoders.encoders[name] = {
        "encoder": SmpEncoder,
        "params": params,
        "pretrained_settings": {},
    }


def draw(number: int, side: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures [N, 3, side, side] in 0..1 and their classes [N, side, side]."""
    random = torch.Generator().manual_seed(seed)
    pictures = torch.rand(number, 3, side, side, generator=random) * 0.4
    masks = torch.zeros(number, side, side, dtype=torch.long)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    for picture, mask in zip(pictures, masks, strict=True):
        for label in (1, 2):
            radius = side * (0.15 + 0.1 * torch.rand((), generator=random))
            dy, dx = (
                c - radius - (side - 2 * radius) * torch.rand((), generator=random) for c in (y, x)
            )
            inside = dy.hypot(dx) < radius if label == 1 else dy.abs().max(dx.abs()) < radius
            picture[:, inside] += 0.6 * torch.rand(3, 1, generator=random)
            mask[inside] = label
    return pictures, masks


def train(model: SegmentationModel, steps: int, side: int, batch: int = 8) -> list[float]:
    """The loss of each step."""
    prepare = model.encoder.preprocessing
    overlap = smp.losses.DiceLoss("multiclass")
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    losses = []
    model.train()
    model.encoder.eval()  # the weights learn; few small batches would only spoil the statistics
    for step in range(steps):
        pictures, masks = draw(batch, side, seed=step)
        logits = model(normalize(pictures, prepare.mean, prepare.std))
        loss = cross_entropy(logits, masks) + overlap(logits, masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def mean_iou(model: SegmentationModel, side: int) -> float:
    """Intersection over union on 32 new pictures, mean of the classes."""
    prepare = model.encoder.preprocessing
    pictures, masks = draw(32, side, seed=1_000_000)
    with torch.inference_mode():
        found = model.eval()(normalize(pictures, prepare.mean, prepare.std)).argmax(1)
    scores = smp.metrics.get_stats(found, masks, mode="multiclass", num_classes=len(CLASSES))
    return float(smp.metrics.iou_score(*scores, reduction="macro"))


def main(encoder: str = "efficientnet_lite0", steps: int = 40, side: int = 64) -> None:
    register(encoder, pretrained=True)
    torch.manual_seed(0)
    unet = smp.Unet(
        encoder, encoder_weights=None, decoder_channels=(64, 48, 32, 24, 16), classes=len(CLASSES)
    )
    deeplab = smp.DeepLabV3Plus(
        encoder, encoder_weights=None, encoder_output_stride=16, decoder_channels=64,
        classes=len(CLASSES),
    )  # fmt: skip
    for model in (unet, deeplab):
        parameters = sum(p.numel() for p in model.parameters())
        print(f"{model.name}: {parameters:,} parameters, maps {model.encoder.out_channels} wide")
        losses = train(model, steps, side)
        print(f"  loss {losses[0]:.3f} -> {losses[-1]:.3f} after {steps} steps")
        print(f"  mean IoU on new pictures: {mean_iou(model, side):.3f}")


if __name__ == "__main__":
    main()
