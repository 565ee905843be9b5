"""INT8's last resort: weights that bear rounding, learnt from the network's own answers."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mbconv.export.network import folded
from mbconv.export.rounding import input_ranges, layers_of, rounded
from mbconv.nn.model import MBConvNet
from mbconv.runtime.predictor import Logits

STEPS, BATCH = 200, 32
RATE = 1e-4  # of Adam, falling to nothing; 6e-4 forgets what the calibration pictures lack


def distil(model: MBConvNet, batches: Sequence[Logits], *, steps: int = STEPS) -> MBConvNet:
    """A folded copy that answers nearly as `model` does when all of its layers are rounded.

    Quantisation-aware training (Jacob et al. 2018, arXiv 1712.05877) with the network itself as
    the teacher (Polino et al. 2018, arXiv 1802.05668): in every step all layers' weights and inputs
    are rounded to 8 bits, gradients pass through, and the logits' mean square error falls. Labels
    are not used. `batches` are normalised pictures, float32 [N, C, R, R] each; half are mirrored.
    """
    network = folded(model)
    x = torch.cat([torch.from_numpy(b) for b in batches])
    views = torch.stack([x, x.flip(3)])
    with torch.no_grad():
        wanted = torch.stack([_answers(network, view) for view in views])
    layers = layers_of(network)
    ranges = input_ranges(network, layers, torch.split(x, BATCH))
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    falls = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draw = torch.Generator().manual_seed(0)
    with rounded(layers, ranges):
        for _ in range(steps):
            side = torch.randint(2, (BATCH,), generator=draw)
            chosen = torch.randint(len(x), (BATCH,), generator=draw)
            loss = F.mse_loss(network(views[side, chosen]), wanted[side, chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            falls.step()
    return network.requires_grad_(False)


def _answers(network: MBConvNet, x: Tensor) -> Tensor:
    return torch.cat([network(part) for part in torch.split(x, BATCH)])
