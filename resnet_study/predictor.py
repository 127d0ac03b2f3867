"""A trained model made ready to answer with the probabilities of raw images: for tests of this library and for programs of others."""

import functools
import math
import os
import warnings

import keras
import numpy as np
import tensorflow as tf

from resnet_study import devices
from resnet_study.environment import has_onednn, used_gpus
from resnet_study.errors import UsageError, naming_memory, say_once
from resnet_study.exporting.exported_model import ExportedModel, open_model
from resnet_study.networks.fold_batch_norm import fold_batch_norm
from resnet_study.networks.weights import has_normalization
from resnet_study.saved_models import CANNOT_COPY, as_functional, by_head, find_heads
from resnet_study.strings import shorten

# Bytes of weights. TensorFlow holds constants some 25 times over while it makes graphs of them: 250 MB of memory at this size.
_LARGEST_CONSTANTS = 10_000_000


class Predictor:
    """Answers with probabilities, in compiled batches; only the first call takes time to prepare.

    The answers come from a copy of the model whose batch normalisation is folded into the convolutions, see `fold_batch_norm`. Where
    the threads of each operation were set, as by a training with towers or by `devices.share_batches`, the cores share each batch.

    Args:
        model: what `exporting.exported_model.open_model` gives, or what it takes: a path, "cifar10". Weights that change afterwards
            are not seen. A `.onnx` or `.tflite` file or a SavedModel is computed by its own runtime, in a process of its own.
        precision: "float32"; "bfloat16" = faster on some processors and GPUs, see `devices.is_bfloat16_faster`, with the same class as in float32
            for at least 99.8 % of the images; "auto" = bfloat16 on these devices, float32 on others.

    Raises:
        UsageError: the path names no model of this library, or an argument is of another kind.
        ValueError: bfloat16 for a model that cannot be folded, such as one that uses a layer twice; a model whose outputs are no classes.

    Example:
        import numpy as np
        from resnet_study.predictor import Predictor

        predictor = Predictor("cifar10")
        probabilities = predictor.predict(np.zeros((3, 32, 32, 3), np.uint8))
        print(probabilities.shape)  # (3, 10)
    """

    def __init__(self, model: keras.Model | str | os.PathLike, precision: str = "float32"):
        if precision not in ("auto", "float32", "bfloat16"):
            raise UsageError(f"precision must be auto, float32 or bfloat16, received {precision!r}")
        self.model = open_model(str(model)) if isinstance(model, str | os.PathLike) else as_functional(model)
        if isinstance(self.model, ExportedModel):
            if precision == "bfloat16":
                raise UsageError(f"precision of {self.model.name} is that of its file, received bfloat16; leave it out")
            self._towers, self._answer = 1, lambda images, _towers: self.model.answer(images)
            return
        if not isinstance(self.model, keras.Model):
            raise UsageError(f"model must be a keras.Model or the path of one, received {type(model).__name__}")
        find_heads(self.model)
        shape = self.model.input_shape
        if not isinstance(shape, tuple) or len(shape) != 4 or not all(isinstance(size, int) for size in shape[1:]):
            raise UsageError(
                f"model must have one input of images of one size, (None, height, width, channels), received {shorten(str(shape), 80)}; build it on "
                "such a keras.Input"
            )
        policy = devices.choose_policy(precision, "auto")
        try:
            folded = fold_batch_norm(self.model, policy)
        except CANNOT_COPY as error:
            if precision == "bfloat16":
                raise
            computes = sorted({layer.compute_dtype for layer in self.model.layers} - {"float32"})
            how = f"in {' and '.join(computes)} as it is" if computes else "as it is, which is slower"
            say_once(f"note: {self.model.name} answers {how}: its batch norm cannot be folded ({shorten(str(error))})")
            folded = self.model
        self._towers = devices.count_inference_towers()
        weights = None if folded is self.model else _small_weights(folded)

        @functools.partial(tf.function, reduce_retracing=True)
        def answer(images, towers):
            compute = functools.partial(folded, training=False) if weights is None else _with_constants(folded, weights)
            parts = [compute(*part) for part in devices.split_among_towers(towers, images)]
            return tf.nest.map_structure(lambda *outputs: tf.concat(outputs, 0), *parts)

        self._answer = answer

    def predict(self, images: np.ndarray, batch_size: int = 128) -> np.ndarray | dict[str, np.ndarray]:
        """Probabilities of any number of images: of a softmax, or of several labels of a sigmoid for each class.

        Args:
            images: [num_images, height, width, channels], RGB or grey, raw pixels 0..255, uint8 or float; a warning tells where they seem to be scaled to
                0..1 or lie outside of 0..255, unless the model has no layer that normalises pixels.
            batch_size: images at a time, int >= 1; the result depends on it by rounding alone.

        Returns:
            float32 [num_images, num_labels]; of a model with several heads a dict, name of the head -> such an array.

        Raises:
            UsageError: the images have another shape than the model was built for, or hold pixels that are no finite numbers; or
                `batch_size` is no int >= 1, or the model answers with NaN or with other numbers than probabilities.
        """
        found = self.compute(images, batch_size)
        answers = by_head(found).values()
        low = min(array.min(initial=0) for array in answers)
        high = max(array.max(initial=0) for array in answers)
        if low < -0.01 or high > 1.01:  # rounding aside
            raise UsageError(
                f"the model {self.model.name} must answer with probabilities 0..1, received {low:.3g} .. {high:.3g}; give one that ends in a "
                "softmax"
            )
        return found

    def compute(self, images: np.ndarray, batch_size: int = 128) -> np.ndarray | dict[str, np.ndarray]:
        """As `predict`, of a model whose outputs [batch, n] may be any numbers, such as features."""
        if not isinstance(batch_size, int | np.integer) or batch_size < 1:
            raise UsageError(f"batch_size must be an int >= 1, received {batch_size!r}")
        images = check_images(images, self.model)
        answers = {
            name: np.empty((len(images), classes), np.float32) for name, classes in find_heads(self.model).items()
        }
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            towers = min(self._towers, len(batch))
            with naming_memory(f"give fewer images at a time than batch_size (--test_batch_size) {batch_size}"):
                found = self._answer(batch, towers)
            for name, values in by_head(found).items():
                answers[name][start : start + batch_size] = values
        if not all(np.isfinite(array).all() for array in answers.values()):
            raise UsageError(
                f"the model {self.model.name} must answer with finite numbers, received NaN; give other weights"
            )
        return answers.get("", answers)


def _small_weights(model):
    """The values of trainable and other variables, where constants in their place answer sooner; else None. oneDNN brings constants into its
    own order once, but variables at each call, for which a single image waits longer than for its answer.
    """
    variables = model.trainable_variables, model.non_trainable_variables
    if used_gpus("auto") or sum(4 * math.prod(variable.shape) for variable in model.variables) > _LARGEST_CONSTANTS:
        return None
    devices.note_missing_onednn("auto")
    return [[variable.numpy() for variable in part] for part in variables] if has_onednn() else None


def _with_constants(model, weights):
    """The model as a function of images in the graph that is being made, with `weights` of `_small_weights` as constants of it."""
    constants = tf.nest.map_structure(tf.constant, weights)
    return lambda images: model.stateless_call(*constants, images, training=False)[0]


def check_images(images, model, stacklevel: int = 4) -> np.ndarray:
    """The images as uint8 or float32, of the shape that the model takes; raises UsageError for anything else. Warnings are of the caller that
    many calls up, as of `warnings.warn`.
    """
    try:
        images = np.asarray(images)
    except ValueError as error:
        raise UsageError(f"images must be one array, received {error}; bring them to one size") from error
    if images.dtype.kind not in "buif":
        raise UsageError(f"images must be an array of numbers, received one of {images.dtype}; give uint8 or float32")
    largest = np.finfo(np.float32).max
    if not (images.min(initial=0) >= -largest and images.max(initial=0) <= largest):  # so for NaN, too
        raise UsageError("images must hold finite float32 numbers, received NaN or infinity; mend or leave them out")
    if images.shape[1:] != (shape := tuple(model.input_shape[1:])):
        raise UsageError(
            f"images must have the shape (num_images, {', '.join(map(str, shape))}), received {images.shape}; "
            + _reshaping(images.shape, shape)
            + f"give such, or a model other than {model.name}"
        )
    if isinstance(model, keras.Model) and not has_normalization(model):  # who built it, knows its range
        return images if images.dtype == np.uint8 else images.astype(np.float32)
    if images.dtype != np.uint8 and len(images) and images.min() >= 0 and 0 < images.max() <= 1:
        warnings.warn(
            "the pixels seem to be scaled to 0..1, expected raw pixels 0..255; leave the division out",
            stacklevel=stacklevel,
        )
    elif images.dtype != np.uint8 and len(images) and (images.min() < 0 or images.max() > 255):
        warnings.warn(
            f"expected raw pixels 0..255, received {images.min():g} .. {images.max():g}; bring them to this range",
            stacklevel=stacklevel,
        )
    return images if images.dtype == np.uint8 else images.astype(np.float32)


def _reshaping(given: tuple, shape: tuple) -> str:
    """What makes the images that a model takes of an array that may hold such; "" where it does not."""
    if given == shape:
        return "one image is images[None]; "
    return "channels come last, as in images.transpose(0, 2, 3, 1); " if given[1:] == (shape[2], *shape[:2]) else ""
