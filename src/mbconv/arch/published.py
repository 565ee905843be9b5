"""Published top-1 accuracies on ImageNet's validation set, by the network's name.

Of the weights that the paper or code released for the network's own resolution; single crop. A
network scores differently with other weights: torchvision's newer recipes gain several points.
"""

from typing import Any

from mbconv.arch.zoo import get_spec

# In percent; the source is the one that the network's table cites, unless `_OTHERWISE` has one.
_TOP1 = {
    "efficientnet_b0": 77.1,
    "efficientnet_b1": 79.1,
    "efficientnet_b2": 80.1,
    "efficientnet_b3": 81.6,
    "efficientnet_b4": 82.9,
    "efficientnet_b5": 83.6,
    "efficientnet_b6": 84.0,
    "efficientnet_b7": 84.3,
    "efficientnet_b8": 85.5,
    "efficientnet_l2": 88.4,
    "efficientnet_lite0": 75.1,
    "efficientnet_lite1": 76.7,
    "efficientnet_lite2": 77.6,
    "efficientnet_lite3": 79.8,
    "efficientnet_lite4": 81.5,
    "efficientnetv2_b0": 78.7,
    "efficientnetv2_b1": 79.8,
    "efficientnetv2_b2": 80.5,
    "efficientnetv2_b3": 82.1,
    "efficientnetv2_s": 83.9,
    "efficientnetv2_m": 85.2,
    "efficientnetv2_l": 85.7,
    "efficientnetv2_xl": 87.2,
    "mobilenetv2_035": 60.3,
    "mobilenetv2_050": 65.4,
    "mobilenetv2_075": 69.8,
    "mobilenetv2_100": 71.8,
    "mobilenetv2_130": 74.4,
    "mobilenetv2_140": 75.0,
    "mobilenetv3_large_100": 75.2,
    "mobilenetv3_large_075": 73.3,
    "mobilenetv3_large_minimal_100": 72.3,
    "mobilenetv3_small_100": 67.5,
    "mobilenetv3_small_075": 65.4,
    "mobilenetv3_small_minimal_100": 61.9,
    "mnasnet_a1": 75.2,
    "mnasnet_a1_035": 64.1,
    "mnasnet_a1_050": 68.9,
    "mnasnet_a1_075": 73.3,
    "mnasnet_a1_140": 77.2,
    "mnasnet_b1": 74.5,
    "mnasnet_b1_050": 67.7,
    "mnasnet_b1_075": 71.2,
    "mnasnet_b1_130": 76.5,
    "mnasnet_small": 66.0,
    "mobilenetv4_conv_small": 73.8,
    "mobilenetv4_conv_medium": 79.1,
    "tinynet_a": 77.67,
    "tinynet_b": 74.95,
    "tinynet_c": 71.21,
    "tinynet_d": 66.94,
    "tinynet_e": 59.87,
    # no network of ours, but what ours are compared with
    "resnet50d": 77.16,
}

_OTHERWISE = {
    "efficientnet_b8": "AdvProp, arXiv 1911.09665",
    "efficientnet_l2": "Noisy Student with 300M unlabelled pictures, arXiv 1911.04252",
    "efficientnetv2_xl": "pretrained on ImageNet-21k, arXiv 2104.00298",
    "mobilenetv4_conv_small": "timm's weights",
    "mobilenetv4_conv_medium": "timm's weights",
    **{f"tinynet_{letter}": "timm's weights" for letter in "abcde"},
    "resnet50d": "arXiv 1812.01187, table 5",
}
_RESOLUTION = {"resnet50d": 224}


def published_top1(name: str) -> dict[str, Any] | None:
    """`top1` as a share, the `resolution` in pixels that it was taken at, and its `source`.

    None for a network of which no accuracy is known here. timm's `tf_` networks are those of the
    same name without it.
    """
    name = name.removeprefix("tf_")
    if name not in _TOP1:
        return None
    side = _RESOLUTION.get(name) or get_spec(name).resolution
    source = _OTHERWISE.get(name) or str(get_spec(name).source).partition(";")[0]
    return {"top1": round(_TOP1[name] / 100, 6), "resolution": side, "source": source}
