"""An mbconv network as encoder of a small super-resolution net: photographs at twice their side.

Learns on crops of scikit-image's photographs and is judged on two that it has never seen. The
network reads the small picture at its full size (`stem_stride=1`), a feature pyramid brings its
maps together, and what they add to the bicubic picture is learnt.

    pip install mbconv scikit-image
    python examples/superresolution.py
"""

import numpy as np
import torch
from skimage import data
from torch import Tensor, nn
from torch.nn.functional import interpolate, l1_loss
from torchvision.transforms.v2.functional import normalize

import mbconv

SEEN = ("astronaut", "rocket", "retina", "hubble_deep_field", "immunohistochemistry")
NEW = ("chelsea", "coffee")


class SuperResolution(nn.Module):
    """Pictures [N, 3, H, W] in 0..1 -> [N, 3, 2H, 2W]."""

    def __init__(self, model: mbconv.MBConvNet, levels: int = 3, width: int = 32) -> None:
        super().__init__()
        taps = [tap.name for tap in model.spec.pyramid()[:levels]]
        self.encoder = mbconv.Encoder(model, taps=taps)
        # Normalised, because the maps of a linear bottleneck are far larger than the picture.
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, width, 1), nn.GroupNorm(1, width))
            for c in self.encoder.out_channels
        )
        self.fuse = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU())
        last = nn.Conv2d(width, 12, 3, padding=1, bias=False)
        nn.init.zeros_(last.weight)  # the net starts as the bicubic picture itself
        self.detail = nn.Sequential(last, nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        prepare = self.encoder.preprocessing
        maps = self.encoder(normalize(x, prepare.mean, prepare.std))
        total = sum(
            interpolate(layer(y), size=x.shape[-2:], mode="bilinear")
            for layer, y in zip(self.lateral, maps, strict=True)
        )
        detail: Tensor = self.detail(self.fuse(total))
        return bicubic(x) + detail


def bicubic(x: Tensor) -> Tensor:
    """Pictures [N, 3, H, W] -> [N, 3, 2H, 2W]."""
    return interpolate(x, scale_factor=2, mode="bicubic")


def smaller(x: Tensor) -> Tensor:
    """Pictures [N, 3, 2H, 2W] -> [N, 3, H, W]: what the network is given."""
    return interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True).clamp(0, 1)


def photograph(name: str) -> Tensor:
    """[3, H, W] in 0..1, with even sides."""
    pixels = np.asarray(getattr(data, name)())
    picture = torch.tensor(pixels).permute(2, 0, 1) / 255
    return picture[:, : picture.shape[1] // 2 * 2, : picture.shape[2] // 2 * 2]


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in decibels; the peak is 1."""
    return -10 * float((a.clamp(0, 1) - b).square().mean().log10())


def train(model: SuperResolution, steps: int, side: int, batch: int = 8) -> list[float]:
    """The loss of each step, on crops of `side` pixels."""
    random = np.random.default_rng(0)
    photographs = [photograph(name) for name in SEEN]
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    losses = []
    model.eval()  # batch norms keep ImageNet's statistics, as is usual for restoration
    for _ in range(steps):
        crops = []
        for _ in range(batch):
            whole = photographs[random.integers(len(photographs))]
            top, left = (random.integers(size - side + 1) for size in whole.shape[1:])
            crops.append(whole[:, top : top + side, left : left + side])
        sharp = torch.stack(crops)
        loss = l1_loss(model(smaller(sharp)), sharp)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def main(network: str = "efficientnet_lite0", steps: int = 150, side: int = 64) -> None:
    torch.manual_seed(0)
    model = SuperResolution(mbconv.create_model(network, pretrained=True, stem_stride=1))
    print(f"{network} up to {model.encoder.taps[-1].name}:", end=" ")
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    losses = train(model, steps, side)
    print(f"L1 loss {losses[0]:.4f} -> {losses[-1]:.4f} after {steps} steps")
    for name in NEW:
        sharp = photograph(name)[None]
        small = smaller(sharp)
        with torch.inference_mode():
            ours, usual = psnr(model(small), sharp), psnr(bicubic(small), sharp)
        print(f"{name}: {ours:.2f} dB, bicubic {usual:.2f} dB")


if __name__ == "__main__":
    main()
