"""Where a model looks: Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391, section 3).

explain(model, images, labels)          heat maps: which parts of an image speak for a class
write_explanations(predictions)  images beside their heat maps, as PNG files
"""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from cifar10_test import Predictions
from resnet_study.errors import UsageError
from resnet_study.files import write_atomically
from resnet_study.networks.graph import find_last
from resnet_study.predictor import check_images
from resnet_study.reports.figures import draw_explanation
from resnet_study.saved_models import as_functional
from resnet_study.strings import as_text

_SMALLEST_MAP = 4  # cells in each direction; fewer would show nothing
_LONGEST = 200  # bytes of the name of an image in the name of its explanation; file systems take 255


def explain(model: keras.Model, images: np.ndarray, labels, head: str = "") -> np.ndarray:
    """Heat maps of images, one class for each.

    The paper adds up the last convolutional maps A_k. The weight of A_k is the mean, over its cells, of the gradient of the class
    score (before softmax) with respect to A_k. Negative sums become 0. We do the same. Only where those maps have fewer than 4 x 4
    cells, as for small images, do we take the deepest block of a backbone that has as many.

    Args:
        model: model that ends in a dense layer, as `saved_models.load_model` returns.
        images: raw pixels [n, height, width, channels], 0..255, RGB or grey; a warning tells where they seem to be scaled to 0..1.
        labels: int [n], the class that each map explains.
        head: of a model with several, the name of the one whose classes these are.

    Returns:
        float32 [n, height, width], 0..1 in each image; all 0 where nothing speaks for the class.

    Raises:
        UsageError: the model has no such maps or does not end in a dense layer, or takes images of another shape; or labels that are no
            classes.

    Example:
        import numpy as np
        from resnet_study.data.image_files import read_image
        from resnet_study.reports.grad_cam import explain
        from resnet_study.saved_models import load_model

        image = read_image("examples/cat.jpg", (32, 32, 3))
        heat = explain(load_model("cifar10"), image[None], np.array([3]))  # what speaks for a cat
        print(heat.shape)  # (1, 32, 32)
    """
    heat_map, images = make_explainer(model, head), check_images(images, model, stacklevel=3)
    labels = np.asarray(labels)
    if (labels.size and labels.dtype.kind not in "iu") or labels.shape != images.shape[:1]:
        raise UsageError(
            f"labels must be one whole number for each of the {len(images)} images, received {labels.dtype} of shape {labels.shape}"
        )
    maps = [heat_map(image, label) for image, label in zip(images, labels, strict=True)]
    return np.stack(maps) if maps else np.zeros(images.shape[:3], np.float32)


def make_explainer(model: keras.Model, head: str = "") -> Callable:
    """Function of (image, label) that gives one map of `explain`; prepared once for many calls. See there."""
    model = as_functional(model)
    last = find_last(model, head)
    if not isinstance(last, keras.layers.Dense):
        raise UsageError(f"--explain needs a model that ends in a dense layer, received {model.name}")
    compute = _find_maps(model, last)

    def heat_map(image, label):
        if not 0 <= label < last.units:
            raise UsageError(f"label must be a class, 0 to {last.units - 1}, received {label}")
        pixels = tf.constant(image[None], tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(pixels)
            # Without the softmax, in which a sure answer leaves no gradient.
            maps, before = compute(pixels)
            score = tf.linalg.matvec(
                tf.cast(before, tf.float32), tf.cast(keras.ops.convert_to_tensor(last.kernel)[:, label], tf.float32)
            )
        weights = tf.reduce_mean(tape.gradient(score, maps), axis=(1, 2), keepdims=True)
        heat = tf.nn.relu(tf.reduce_sum(tf.cast(maps * weights, tf.float32), axis=-1, keepdims=True))
        heat = tf.image.resize(heat, image.shape[:2], method="bicubic")[0, :, :, 0].numpy().clip(min=0)
        return heat / heat.max() if heat.max() > 0 else heat

    return heat_map


def _find_maps(model, last):
    """A function: images -> (the last maps of enough cells that all else follows from, what `last` takes)."""

    def is_fine(tensor):
        return (
            isinstance(tensor, keras.KerasTensor) and len(tensor.shape) == 4 and min(tensor.shape[1:3]) >= _SMALLEST_MAP
        )

    def chain(*pairs):
        models = [keras.Model(inputs, outputs) for inputs, outputs in pairs if inputs is not outputs]

        def compute(values):
            for model in models:
                values = model(values, training=False)
                if isinstance(values, list):
                    maps, values = values
            return maps, values

        return compute

    for index in range(len(model.layers) - 2, 0, -1):
        layer = model.layers[index]
        nested = isinstance(layer, keras.Model)
        output = (
            model.layers[index + 1].input if nested else layer.output
        )  # that of a nested model is a tensor within it
        if is_fine(output):
            # A layer on a branch is passed over: what follows needs more than its output, and so is no function of it.
            with contextlib.suppress(ValueError):
                return chain((model.input, [output, output]), (output, last.input))
        if nested:
            fine = [block for block in layer.layers if is_fine(block.output)]
            for block in reversed(fine):
                with contextlib.suppress(ValueError):
                    if block.output is not layer.output:
                        keras.Model(block.output, layer.output)  # as above, of the layers within
                    before = (model.input, model.layers[index - 1].output)
                    return chain(before, (layer.input, [block.output, layer.output]), (output, last.input))
    raise UsageError(
        f"--explain needs maps of {_SMALLEST_MAP} x {_SMALLEST_MAP} cells, received {model.name} without any"
    )


def write_explanations(predictions: Predictions) -> Path:
    """Draws images beside what speaks for their most likely class, with that class and its probability as the title.

    Args:
        predictions: see `cifar10_test.predict`; the images that it kept are drawn, each in a good part of a second.

    Returns:
        The folder of the PNG files, `<number>-<name of the image>.png`: `explanations` beside the table, with its number. Of
        several heads, each has a folder in it.
    """
    table = predictions.csv_path
    folder = table.with_name(table.stem.replace("predictions", "explanations"))
    for head, probabilities in predictions.probabilities.items():
        labels = probabilities[: len(predictions.images)].argmax(axis=1)
        heat_map = make_explainer(predictions.model, head)
        for index, label in enumerate(tqdm(labels, desc=f"explaining {head}".strip(), unit="image")):
            heat, buffer = heat_map(predictions.images[index], label), io.BytesIO()
            title = f"{predictions.class_names[head][label]} {100 * probabilities[index, label]:.1f} %"
            draw_explanation(buffer, predictions.images[index], heat, title)
            stem = as_text(predictions.files[index].stem).encode()[:_LONGEST].decode(errors="ignore")
            write_atomically(folder / head / f"{index + 1:03d}-{stem}.png", buffer.getvalue())
    return folder
