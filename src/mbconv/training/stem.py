"""How the stem starts: with filters that whiten the pictures' patches."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mbconv.data.decode import Unreadable, decode
from mbconv.data.source import Sample
from mbconv.data.spread import spread
from mbconv.data.transform import normalise, prepare
from mbconv.nn.model import MBConvNet
from mbconv.preprocessing import Preprocessing

PICTURES = 300  # some million patches
FLOOR = 1e-3  # added to variances, of values that are about 1: below it a direction is noise


def whiten_stem(model: MBConvNet, samples: Sequence[Sample]) -> None:
    """Set the stem's filters to the directions that patches of these pictures vary in, in place.

    Each is an eigenvector of the patches' covariance over its deviation, the strongest first, with
    its negative beside it, so that the activation keeps both halves; filters for which there is no
    direction left stay as they are. Neighbouring pixels are nearly equal, and few steps do not
    suffice to learn what differs (Jordan 2024, arXiv 2404.00498, section 3.2).
    """
    weight = model.stem.conv.weight
    covariance = patch_covariance(samples, model.preprocessing, weight.shape[2])
    variances, vectors = torch.linalg.eigh(covariance)
    filters = (vectors / (variances + FLOOR).sqrt()).flip(1).T
    count = min(len(filters), len(weight) // 2)
    with torch.no_grad():
        chosen = filters[:count].view(count, *weight.shape[1:]).to(weight)
        weight[: 2 * count] = torch.cat([chosen, -chosen])


def patch_covariance(
    samples: Sequence[Sample], preprocessing: Preprocessing, kernel: int
) -> Tensor:
    """Second moments of all patches of `kernel` x `kernel` pixels, float64 [3 k k, 3 k k].

    Of up to 300 normalised pictures, spread over `samples`; those that cannot be read are left out.
    """
    chosen = sorted(spread(len(samples), PICTURES))  # read forwards
    total, count = torch.zeros(3 * kernel**2, 3 * kernel**2, dtype=torch.float64), 0
    for place in chosen:
        try:
            image = decode(samples[place].path, min_side=preprocessing.resize)
        except Unreadable:
            continue
        pixels = torch.from_numpy(prepare(image, preprocessing))
        picture = normalise(pixels[None], preprocessing)
        patches = F.unfold(picture, kernel)[0].double()
        total += patches @ patches.T
        count += patches.shape[1]
    return total / max(count, 1)
