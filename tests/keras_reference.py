"""Write Keras files and what Keras makes of them; run by a Python that has TensorFlow.

    python keras_reference.py OUT NAME...

OUT/NAME.* are files of every layout, OUT/NAME.npz has pictures and logits. The weights are drawn,
and batch norms given statistics near those of the pictures, so that the logits depend on all that
a reader could get wrong. `published` stands for Keras's own weights: B0 in the old layout with
ImageNet's deviations where the variance should be, which Keras mends when it loads them.
"""

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tf_keras  # Keras 2, whose `.h5` is the format of the published weights

SMALL, ODD = (128, 128), (161, 193)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def application(library: Any, name: str, **changes: Any) -> Any:
    """The network of keras.applications that the zoo calls `name`, without softmax."""
    version, size = name.removeprefix("efficientnet").split("_")
    build = getattr(library.applications, f"EfficientNet{version.upper()}{size.upper()}")
    return build(**{"weights": None, "classes": 7, "classifier_activation": None, **changes})


def pictures(count: int, height: int, width: int) -> Any:
    """Coarse patches, so that pictures differ after pooling, with noise on them."""
    rng = np.random.default_rng(count)
    patches = rng.integers(0, 200, (count, 6, 7, 3)).repeat(-(-height // 6), 1)
    patches = patches.repeat(-(-width // 7), 2)[:, :height, :width]
    return (patches + rng.integers(0, 56, patches.shape)).astype(np.uint8)


def set_normalization(layer: Any, mean: Any, variance: Any) -> None:
    layer.set_weights([np.array(mean), np.array(variance), np.array(0)])
    layer.finalize_state()  # the layer computes with copies


def randomise(model: Any) -> None:
    """Draw every weight, then let the batch norms see pictures and shift what they found."""
    rng = np.random.default_rng(0)
    keras.utils.set_random_seed(0)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in model.layers:
        if layer.name.startswith("normalization") and layer.weights:
            set_normalization(layer, rng.uniform(0.3, 0.6, 3), rng.uniform(0.04, 0.08, 3))
    for norm in norms:
        gamma, beta, mean, variance = norm.get_weights()
        norm.set_weights([rng.uniform(0.7, 1.2, gamma.shape), rng.normal(0, 0.2, beta.shape),
                          mean, variance])  # fmt: skip
        norm.momentum = 0.0
    side = model.input_shape[1]
    model(pictures(16, side, side).astype(np.float32), training=True)
    for norm in norms:
        gamma, beta, mean, variance = norm.get_weights()
        deviation = np.sqrt(variance)
        norm.set_weights([gamma, beta, mean + 0.1 * deviation * rng.normal(0, 1, mean.shape),
                          variance * rng.uniform(0.9, 1.2, variance.shape)])  # fmt: skip
        norm.momentum = 0.99
    for layer in model.layers:
        if layer.weights and "_se_" in layer.name:
            kernel, bias = layer.get_weights()
            layer.set_weights([kernel, rng.normal(0, 0.5, bias.shape)])


def copy_weights(model: Any, other: Any) -> None:
    other.set_weights(model.get_weights())
    for layer in other.layers:
        if layer.name.startswith("normalization") and layer.weights:
            layer.finalize_state()


def write(out: Path, name: str) -> None:
    small = application(keras, name, input_shape=(*SMALL, 3))
    randomise(small)
    model, odd = application(keras, name), application(keras, name, input_shape=(*ODD, 3))
    for each in (model, odd):
        copy_weights(small, each)
    side = model.input_shape[1]
    shown = {"native": pictures(1, side, side), "odd": pictures(2, *ODD)}
    logits = {
        "native_logits": model.predict(shown["native"].astype(np.float32), verbose=0),
        "odd_logits": odd.predict(shown["odd"].astype(np.float32), verbose=0),
    }
    model.save_weights(out / f"{name}.weights.h5")
    model.save(out / f"{name}.keras")
    model.save(out / f"{name}.h5")
    if name == "efficientnet_b0":  # the layouts of Keras 2
        old = application(tf_keras, name)
        copy_weights(model, old)
        old.save_weights(out / f"{name}.old.h5")
        old.save_weights(out / f"{name}.old.weights.h5")
    np.savez(out / f"{name}.npz", **shown, **logits)


def write_published(out: Path) -> None:
    model = application(keras, "efficientnet_b0", classes=1000, input_shape=(*SMALL, 3))
    randomise(model)
    old = application(tf_keras, "efficientnet_b0", classes=1000)
    copy_weights(model, old)
    norm = next(layer for layer in old.layers if layer.name.startswith("normalization"))
    set_normalization(norm, MEAN, STD)
    old.save_weights(out / "published.h5")
    files = keras.src.applications.efficientnet.file_utils
    files.get_file = lambda *args, **kwargs: str(out / "published.h5")  # instead of a download
    loaded = application(keras, "efficientnet_b0", weights="imagenet", classes=1000)
    shown = pictures(2, 224, 224)
    loaded.save_weights(out / "published.weights.h5")  # with the Rescaling that mends them
    logits = loaded.predict(shown.astype(np.float32), verbose=0)
    np.savez(out / "published.npz", native=shown, native_logits=logits)


def write_transfer(out: Path) -> None:
    """What people save after fine-tuning, by Keras 3 and 2."""
    shown = pictures(2, *SMALL)
    logits = {}
    for library, name in ((keras, "transfer_3"), (tf_keras, "transfer_2")):
        shape = (*SMALL, 3)
        network = application(library, "efficientnet_b0", include_top=False, pooling="avg",
                              input_shape=shape)  # fmt: skip
        layers = library.layers
        parts = [layers.RandomFlip(), network, layers.Dropout(0.2), layers.Dense(5)]
        model = library.Sequential(parts)
        model.build((None, *shape))
        model.compile(optimizer="adam", loss="mse")
        model.optimizer.build(model.trainable_variables)  # as after training, it is saved too
        for suffix in ("keras", "h5"):
            model.save(out / f"{name}.{suffix}")
        model.save_weights(out / f"{name}.weights.h5")
        logits[name] = model.predict(shown.astype(np.float32), verbose=0)
    np.savez(out / "transfer.npz", shown=shown, **logits)


if __name__ == "__main__":
    for each in sys.argv[2:]:
        if each in (special := {"published": write_published, "transfer": write_transfer}):
            special[each](Path(sys.argv[1]))
        else:
            write(Path(sys.argv[1]), each)
