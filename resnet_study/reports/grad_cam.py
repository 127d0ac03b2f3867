"""Where a net looks: Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391, section 3).

explain(model, images, labels)   heat maps: which parts of a picture speak for a class
write_explanations(...)          each picture beside its heat map, as PNG files
"""

import contextlib
import functools
import io
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from resnet_study.errors import UsageError
from resnet_study.files import write_atomically

_SMALLEST_MAP = 4  # cells in each direction; fewer would show nothing


def explain(model: keras.Model, images: np.ndarray, labels, head: str = "") -> np.ndarray:
    """Heat maps of pictures, one class for each.

    The paper takes the last convolutional maps A_k. A_k weighs as much as the mean, over the places, of the gradient of the
    class score (before softmax) with respect to it; negative sums become 0. We do the same, but where those maps have less
    than 4 x 4 cells, as for small pictures, we take the deepest block of a `keras.applications` base that has more.

    Args:
        model: net that ends in a dense layer, as `cifar10_test.load_model` returns.
        images: raw pixels [n, height, width, RGB], 0..255.
        labels: int [n], the class that each map explains.
        head: of a net with several, the name of the one whose classes these are.

    Returns:
        float32 [n, height, width], 0..1 in each picture; all 0 where nothing speaks for the class.

    Raises:
        UsageError: the net has no such maps or does not end in a dense layer.
    """
    last = model.get_layer(f"predictions_{head}") if head else model.layers[-1]
    if not isinstance(last, keras.layers.Dense):
        raise UsageError(f"--explain needs a net that ends in a dense layer, received {model.name}")
    to_maps, from_maps = _cut(model, last)
    result = []
    for image, label in zip(images, labels, strict=True):
        maps = to_maps(image[None])
        with tf.GradientTape() as tape:
            tape.watch(maps)
            # Without the softmax, in which a sure answer leaves no gradient.
            before = from_maps(maps)
            score = tf.linalg.matvec(tf.cast(before, tf.float32), tf.cast(last.kernel.value[:, label], tf.float32))
        weights = tf.reduce_mean(tape.gradient(score, maps), axis=(1, 2), keepdims=True)
        heat = tf.nn.relu(tf.reduce_sum(tf.cast(maps * weights, tf.float32), axis=-1, keepdims=True))
        heat = tf.image.resize(heat, image.shape[:2], method="bicubic")[0, :, :, 0].numpy().clip(min=0)
        result.append(heat / heat.max() if heat.max() > 0 else heat)
    return np.stack(result)


def _cut(model, last):
    """Two functions: pictures -> the last maps of enough cells that all else follows from; these -> what `last` takes."""

    def is_fine(tensor):
        return len(tensor.shape) == 4 and min(tensor.shape[1:3]) >= _SMALLEST_MAP

    def compute(*pairs):
        nets = [keras.Model(inputs, outputs) for inputs, outputs in pairs]
        return lambda values: functools.reduce(lambda values, net: net(values, training=False), nets, values)

    for index in range(len(model.layers) - 2, 0, -1):
        layer = model.layers[index]
        if not isinstance(layer, keras.Model):
            if is_fine(layer.output):
                # A layer on a branch is passed over: what follows needs more than its output, and so is no function of it.
                with contextlib.suppress(ValueError):
                    return compute((model.input, layer.output)), compute((layer.output, last.input))
            continue
        output = model.layers[index + 1].input  # `output` of a nested net is a tensor within it
        if is_fine(output):
            return compute((model.input, output)), compute((output, last.input))
        blocks = [block.output for block in layer.layers if block.name.endswith("_out") and is_fine(block.output)]
        if blocks:
            return (
                compute((model.input, model.layers[index - 1].output), (layer.input, blocks[-1])),
                compute((blocks[-1], layer.output), (output, last.input)),
            )
    raise UsageError(
        f"--explain needs maps of {_SMALLEST_MAP} x {_SMALLEST_MAP} cells, received {model.name} without any"
    )


def write_explanations(model, files, images, probabilities, names, folder: Path, head: str = "") -> list[Path]:
    """Draws each picture beside what speaks for its most likely class, with that class and its probability as the title.

    Args:
        model: see `explain`.
        files: names of the pictures.
        images: uint8 [n, height, width, RGB or grey].
        probabilities: float [n, classes], what the model says of them.
        names: of the classes.
        folder: where the PNG files go.
        head: see `explain`; `probabilities` and `names` are those of this head.

    Returns:
        Paths of the files, `<number>-<name of the picture>.png`.
    """
    from resnet_study.reports.figures import draw_explanation

    labels = probabilities.argmax(axis=1)
    paths = []
    for number, (file, image, label, heat) in enumerate(
        zip(files, images, labels, explain(model, images, labels, head), strict=True), start=1
    ):
        buffer = io.BytesIO()
        draw_explanation(buffer, image, heat, f"{names[label]} {100 * probabilities[number - 1, label]:.1f} %")
        paths.append(folder / f"{number:03d}-{Path(file).stem}.png")
        write_atomically(paths[-1], buffer.getvalue())
    return paths
