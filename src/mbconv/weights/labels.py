"""Class names that belong to published weights, and the terms of the data behind them."""

IMAGENET_TERMS = "ImageNet's terms of access: non-commercial research and education"
DATA_LICENSES = dict.fromkeys(("imagenet-1k", "imagenet-12k", "imagenet-22k"), IMAGENET_TERMS)


def imagenet_labels() -> tuple[str, ...]:
    """The 1,000 classes of ImageNet-1k in the order of the logits, as torchvision names them."""
    from torchvision.models import EfficientNet_B0_Weights  # heavy, so only when asked for

    return tuple(EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"])
