"""An mbconv network as backbone of torchvision's RetinaNet, with a feature pyramid.

The pictures are drawn: one disc and one square each, to be found and told apart.

    pip install mbconv
    python examples/detection.py
"""

from collections import OrderedDict
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FeaturePyramidNetwork, box_iou

import mbconv

CLASSES = ("disc", "square")
# Without it the first steps of pyramid and head diverge: the maps of a linear bottleneck are large.
NORM = partial(nn.GroupNorm, 8)


class PyramidBackbone(nn.Module):
    """Maps at 1/8, 1/16 and 1/32 of `model`, as `out_channels` wide maps of a feature pyramid."""

    def __init__(self, model: mbconv.MBConvNet, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        levels = [tap for tap in model.spec.pyramid() if tap.reduction >= 8]
        self.names = [tap.name for tap in levels]
        self.encoder = mbconv.Encoder(model, taps=self.names)
        widths = [tap.channels for tap in levels]
        self.pyramid = FeaturePyramidNetwork(widths, out_channels, norm_layer=NORM)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        _, *maps = self.encoder(x)
        found: dict[str, Tensor] = self.pyramid(OrderedDict(zip(self.names, maps, strict=True)))
        return found


def detector(model: mbconv.MBConvNet, side: int, classes: int, width: int = 64) -> RetinaNet:
    """RetinaNet for pictures of about `side` pixels, normalised as the weights expect it."""
    backbone = PyramidBackbone(model, width)
    sizes = tuple((base, int(base * 1.26), int(base * 1.59)) for base in (16, 32, 64))
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    each = anchors.num_anchors_per_location()[0]
    return RetinaNet(
        backbone,
        classes,
        anchor_generator=anchors,
        head=RetinaNetHead(width, each, classes, norm_layer=NORM),
        min_size=side,
        max_size=2 * side,
        image_mean=model.preprocessing.mean,
        image_std=model.preprocessing.std,
    )


def draw(number: int, side: int, seed: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Pictures [3, side, side] in 0..1, and for each its boxes (x1, y1, x2, y2) and labels."""
    random = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    pictures, targets = [], []
    for _ in range(number):
        picture = torch.rand(3, side, side, generator=random) * 0.4
        boxes = []
        for label in range(len(CLASSES)):
            radius = side * (0.12 + 0.08 * torch.rand((), generator=random))
            cy, cx = radius + (side - 2 * radius) * torch.rand(2, generator=random)
            dy, dx = y - cy, x - cx
            inside = dy.abs().max(dx.abs()) < radius if label else dy.hypot(dx) < radius
            picture[:, inside] += 0.6 * torch.rand(3, 1, generator=random)
            boxes.append(torch.stack([cx - radius, cy - radius, cx + radius, cy + radius]))
        pictures.append(picture)
        targets.append({"boxes": torch.stack(boxes), "labels": torch.arange(len(CLASSES))})
    return pictures, targets


def train(model: RetinaNet, steps: int, side: int, batch: int = 4) -> list[dict[str, float]]:
    """The losses of each step."""
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    history = []
    model.train()
    model.backbone.encoder.eval()  # the weights learn; small batches would spoil the statistics
    for step in range(steps):
        losses = model(*draw(batch, side, seed=step))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    return history


def found(model: RetinaNet, side: int) -> float:
    """Share of the shapes in 16 new pictures whose best box of their class has an IoU of 0.5."""
    pictures, targets = draw(16, side, seed=1_000_000)
    with torch.inference_mode():
        answers = model.eval()(pictures)
    hits = []
    for answer, target in zip(answers, targets, strict=True):
        for box, label in zip(target["boxes"], target["labels"], strict=True):
            best = answer["boxes"][answer["labels"] == label][:1]  # sorted by score
            hits.append(bool((box_iou(best, box[None]) >= 0.5).any()))
    return sum(hits) / len(hits)


def main(network: str = "efficientnet_lite0", steps: int = 80, side: int = 128) -> None:
    torch.manual_seed(0)
    model = detector(mbconv.create_model(network, pretrained=True), side, len(CLASSES))
    print(f"RetinaNet on {network}: {sum(p.numel() for p in model.parameters()):,} parameters")
    history = train(model, steps, side)
    for name, first in history[0].items():
        print(f"  {name} loss {first:.3f} -> {history[-1][name]:.3f} after {steps} steps")
    print(f"  found in new pictures: {found(model, side):.0%} of the shapes")


if __name__ == "__main__":
    main()
