"""The networks as torch modules; `build(spec)` makes one."""

from mbconv.nn.block import DropPath, MBConvBlock, ResNetD
from mbconv.nn.conv import Conv2d, ConvNormAct
from mbconv.nn.encoder import Encoder
from mbconv.nn.model import Head, Hidden, MBConvNet, build

__all__ = [
    "Conv2d",
    "ConvNormAct",
    "DropPath",
    "Encoder",
    "Head",
    "Hidden",
    "MBConvBlock",
    "MBConvNet",
    "ResNetD",
    "build",
]
