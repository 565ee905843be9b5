"""Grad-CAM: which places of a picture spoke for a class (Selvaraju et al. 2017, ICCV)."""

import base64
import io
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from mbconv.data.decode import Unreadable
from mbconv.data.source import Dataset
from mbconv.data.transform import normalise
from mbconv.nn.model import MBConvNet
from mbconv.record import Record
from mbconv.runtime.backend import evaluating
from mbconv.runtime.predictor import Picture, Predictor

Heat = NDArray[np.float32]
THUMBNAIL = 160  # pixels a side, in the report

# Dark violet, red, orange, yellow: brighter is hotter, also without colour vision.
_HEAT = np.array([[20, 11, 52], [132, 32, 107], [229, 92, 48], [246, 189, 39], [252, 255, 164]])


def grad_cam(model: MBConvNet, picture: Picture, class_index: int | None = None) -> Heat:
    """Heat map of one picture for a class, by default the one the network answers.

    Returns float32 [resolution, resolution] in 0..1 over the crop that the network sees
    (`crop(model, picture)`); 1 is the hottest place, all zeros mean that no place spoke for the
    class. The map is that of the head's convolution, after its activation, brought to the crop's
    size. Raises Unreadable for a picture that cannot be read.
    """
    predictor = Predictor(model)
    return heat_map(predictor, predictor.prepare(picture), class_index)


def crop(model: MBConvNet, picture: Picture) -> Image.Image:
    """What the network sees of a picture, an RGB image of the network's resolution."""
    return Image.fromarray(Predictor(model).prepare(picture))


def overlay(image: Image.Image, heat: Heat, strength: float = 0.65) -> Image.Image:
    """Lay a heat map [h, w] in 0..1 over an image of that size; cold places stay as they are."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    anchors = np.linspace(0.0, 1.0, len(_HEAT))
    colours = np.stack([np.interp(heat, anchors, _HEAT[:, c]) for c in range(3)], axis=-1)
    share = strength * heat[..., None]
    blended = pixels * (1 - share) + colours * share
    return Image.fromarray(blended.round().clip(0, 255).astype(np.uint8))


def explain_mistakes(model: MBConvNet, record: Record, dataset: Dataset, limit: int = 12) -> None:
    """Give the first `limit` mistakes in `record.detail` their pictures, in place.

    Each gets `thumbnail`, what the network saw, and `cam`, the same under the heat map of the
    class it answered: JPEGs of 160 px as data URIs. `dataset` is what was evaluated. A picture that
    has gone since then is left without.
    """
    predictor = Predictor(model)
    places = {dataset.name(sample): sample.path for sample in dataset}
    for mistake in record.detail.get("mistakes", [])[:limit]:
        try:
            pixels = predictor.prepare(places[mistake["path"]])
        except Unreadable:
            continue
        heat = heat_map(predictor, pixels, _class_index(predictor, mistake))
        image = Image.fromarray(pixels)
        mistake["thumbnail"] = _data_uri(image)
        mistake["cam"] = _data_uri(overlay(image, heat))


def heat_map(predictor: Predictor, pixels: NDArray[np.uint8], class_index: int | None) -> Heat:
    """As `grad_cam`, of a picture that `predictor` has prepared: uint8 [R, R, 3]."""
    model = predictor.model
    with evaluating(model), torch.no_grad():
        x = torch.from_numpy(pixels)[None].to(predictor.device)
        maps = model.head.conv(model.stages(model.stem(normalise(x, predictor.preprocessing))))
        with torch.enable_grad():  # through the head alone: nothing below it is needed
            maps = maps.detach().requires_grad_()  # [1, C, h, w]
            pooled = model.head.pool(maps)
            if model.head.hidden is not None:
                pooled = model.head.hidden(pooled)
            logits = model.head.classifier(pooled)[0]
            chosen = logits.argmax() if class_index is None else class_index
            (gradient,) = torch.autograd.grad(logits[chosen], maps)
        weights = gradient.mean((2, 3), keepdim=True)
        heat = (weights * maps).sum(1, keepdim=True).relu()
        most = heat.max()
        heat = F.interpolate(heat, pixels.shape[:2], mode="bicubic", align_corners=False)[0, 0]
        heat = heat.clamp(torch.zeros_like(most), most)  # the cubic curve swings beyond both
        heat = heat / heat.max().clamp_min(1e-12)
    result: Heat = heat.cpu().numpy()
    return result


def _class_index(predictor: Predictor, mistake: dict[str, Any]) -> int | None:
    labels = predictor.labels
    return labels.index(mistake["predicted"]) if mistake["predicted"] in labels else None


def _data_uri(image: Image.Image) -> str:
    image = image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
