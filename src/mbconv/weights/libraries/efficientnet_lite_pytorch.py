"""EfficientNet-Lite in PyTorch (github.com/ml-illustrated), on PyPI `efficientnet-lite-pytorch`."""

from mbconv.arch.table import TENSORFLOW
from mbconv.weights.libraries import lukemelas
from mbconv.weights.libraries.network import Library, table
from mbconv.weights.libraries.timm import LITE

# Not ImageNet's usual mean and deviation, which cost these weights ten points.
PIXELS = (127 / 255, 128 / 255)

LIBRARY = Library(
    "efficientnet_lite_pytorch",
    table({name: name for name in LITE}, lukemelas.layout, TENSORFLOW, PIXELS),
)
