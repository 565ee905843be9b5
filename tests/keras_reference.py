"""Write Keras files and what Keras makes of them; run by an interpreter that has TensorFlow.

    python keras_reference.py OUT NAME [quirk]

OUT/NAME.* are the files, OUT/NAME.npz holds pictures and logits for each. The weights are drawn
so that wrong padding, a wrong epsilon or a swapped tensor moves the logits.
"""

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tf_keras  # Keras 2, whose `.h5` is the format of the published weights

CLASSES = 7
ODD = (161, 193, 3)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def application(library: Any, name: str, **kwargs: Any) -> Any:
    """The network of keras.applications that the zoo calls `name`, without softmax."""
    title = name.replace("efficientnetv2_", "EfficientNetV2").replace(
        "efficientnet_", "EfficientNet"
    )
    build = getattr(library.applications, title[:-1] + title[-1].upper() if title[-1].isalpha()
                    else title.replace("b", "B"))  # fmt: skip
    return build(**{"weights": None, "classes": CLASSES, "classifier_activation": None, **kwargs})


def randomise(model: Any) -> None:
    """Draw every weight; the last norm of a branch is small, so that deep sums stay finite."""
    rng = np.random.default_rng(0)
    for layer in model.layers:
        new = []
        for variable in layer.weights:
            what = variable.name.split("/")[-1].split(":")[0]
            shape = tuple(variable.shape)
            if what == "count":
                new.append(np.zeros(shape, np.int64))
            elif what in ("gamma", "moving_variance", "variance"):
                scale = 0.4 if what == "gamma" and "project" in layer.name else 1.0
                new.append(scale * rng.uniform(0.5, 1.5, shape))
            elif what in ("beta", "moving_mean", "mean", "bias"):
                new.append(0.2 * rng.standard_normal(shape))
            else:
                fan = (
                    np.prod(shape[:2])
                    if "depthwise" in what or "dw" in layer.name
                    else np.prod(shape[:-1])
                )
                new.append(rng.standard_normal(shape) * (2 / fan) ** 0.5)
        layer.set_weights([w.astype(np.float32) if w.dtype.kind == "f" else w for w in new])


def publish(model: Any, path: Path) -> Any:
    """As the published weights are: ImageNet's deviations as variance; Keras loads them."""
    norm = next(layer for layer in model.layers if layer.name.startswith("normalization"))
    norm.set_weights([np.array(MEAN, np.float32), np.array(STD, np.float32), np.int64(0)])
    model.save_weights(path)
    module = keras.src.applications.efficientnet
    module.file_utils.get_file = lambda *args, **kwargs: str(path)  # instead of a download
    return application(keras, "efficientnet_b0", weights="imagenet", classes=1000)


def main(out: Path, name: str) -> None:
    model = application(keras, name)
    randomise(model)
    odd = application(keras, name, input_shape=ODD)
    odd.set_weights(model.get_weights())
    rng = np.random.default_rng(1)
    side = model.input_shape[1]
    x = {"native": rng.integers(0, 256, (1, side, side, 3)), "odd": rng.integers(0, 256, (2, *ODD))}
    logits = {
        "native_logits": model.predict(x["native"].astype(np.float32), verbose=0),
        "odd_logits": odd.predict(x["odd"].astype(np.float32), verbose=0),
    }
    model.save_weights(out / f"{name}.weights.h5")
    model.save(out / f"{name}.keras")
    model.save(out / f"{name}.full.h5")
    if not name.startswith("efficientnetv2"):
        old = application(tf_keras, name)
        old.set_weights(model.get_weights())
        old.save_weights(out / f"{name}.old.h5")
        old.save_weights(out / f"{name}.old.weights.h5")
    np.savez(out / f"{name}.npz", **x, **logits)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
