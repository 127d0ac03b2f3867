"""Distillation: a trained network teaches another one (Hinton et al. 2015, arXiv:1503.02531)."""

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from resnet_study.class_names import read_class_names
from resnet_study.errors import UsageError, say_once
from resnet_study.networks import registry
from resnet_study.networks.fold_batch_norm import fold_batch_norm
from resnet_study.run_folder import run_around
from resnet_study.saved_models import CANNOT_COPY, load_model
from resnet_study.strings import shorten

_SMALLEST = 1e-37  # instead of a probability of 0, whose logarithm is no number; float32 holds hardly any smaller


class Teacher:
    """A trained network that says, for each image of a training batch as it was augmented, how probable it holds each class to be.

    Attributes:
        model: the network, from raw pixels to probabilities.
        weights: the source; of a network with shipped weights their name, such as "cifar10".
    """

    def __init__(self, source: str, normalization, class_names: list[str], input_shape, policy: str):
        """Loads it.

        Args:
            source: run folder, `.keras` file or checkpoint; or the name of a network with shipped weights, such as "resnet9".
            normalization: layer that the training images have passed, which is undone for the teacher.
            class_names: those of the pupil, in the order of its outputs.
            input_shape: (height, width, channels) of the images.
            policy: Keras dtype policy that the teacher computes in.

        Raises:
            UsageError: it cannot be loaded, tells other classes apart or takes other images, or the normalisation cannot be undone.
        """
        if normalization.per_image or np.ndim(normalization.mean) > 1:
            raise UsageError(
                "--teacher needs the pixels back, which --normalization=image_standard gives up, and pixel_mean for images that were shifted; "
                "use channel_standard"
            )
        self._mean, self._scale = normalization.mean, normalization.scale
        weights = "cifar100" if len(class_names) == 100 else "cifar10"  # where the source is a network's name
        self._source, self.weights = source, weights if source in registry.MODELS else source
        try:
            self.model = load_model(weights, source) if source in registry.MODELS else load_model(source)
        except UsageError as error:
            way = (
                ""
                if source in registry.MODELS
                else f", or the name of a network such as {registry.default_network(weights)}"
            )
            raise UsageError(f"--teacher: {error}{way}") from error
        expected = (None, *input_shape), (None, len(class_names))
        if (received := (self.model.input_shape, self.model.output_shape)) != expected:
            raise UsageError(
                f"--teacher={source} must take images and give classes of the shapes {expected}, received {received}; give another one"
            )
        if (known := _class_names(source, weights, len(class_names))) and known != list(class_names):
            raise UsageError(
                f"--teacher={source} must know the classes {shorten(', '.join(class_names), 60)}, received one of "
                f"{shorten(', '.join(known), 60)}; give one that was trained on the same data set"
            )
        try:  # folding knows no float16
            self._folded = fold_batch_norm(self.model, policy if policy == "mixed_bfloat16" else "float32")
        except CANNOT_COPY as error:
            say_once(
                f"note: --teacher={source} answers slower: its batch norm cannot be folded ({shorten(str(error))})"
            )
            self.model.trainable = False  # as the folded copy is
            self._folded = self.model

    def check_answers(self) -> None:
        """Raises UsageError where it gives logits, or the probabilities of several labels: neither can be taught from."""
        images = np.random.default_rng(0).uniform(0, 255, (4, *self.model.input_shape[1:])).astype("float32")
        answers = np.asarray(tf.cast(self._folded(images, training=False), tf.float32))
        is_sigmoid = getattr(self.model.layers[-1], "activation", None) is keras.activations.sigmoid
        if is_sigmoid or answers.min() < 0 or not np.allclose(answers.sum(axis=1), 1, atol=0.02):
            raise UsageError(
                f"--teacher={self._source} must give the probabilities of one label of each image, which sum up to 1, received "
                f"{answers.min():.3g} .. {answers.max():.3g} with a sum of {answers[0].sum():.3g}; end it in a softmax"
            )

    def teach(self, images, logits, losses, temperature: float, share: float):
        """Mixes what the teacher says into the losses of a batch; a part of the compiled step.

        Args:
            images: float32 [images, height, width, channels], normalised and augmented.
            logits: of the pupil for these, float32 [images, classes].
            losses: of the pupil on the labels, float32 [images].
            temperature: by which both networks' logits are divided, > 0; what is above 1 shows the small probabilities.
            share: weight of the teacher, 0..1; the labels have the rest.

        Returns:
            float32 [images]: (1 - share) * losses + share * temperature**2 * KL(teacher || pupil).
        """
        probabilities = self._folded(images * self._scale + self._mean, training=False)
        target = tf.nn.log_softmax(tf.math.log(tf.maximum(tf.cast(probabilities, tf.float32), _SMALLEST)) / temperature)
        answer = tf.nn.log_softmax(tf.cast(logits, tf.float32) / temperature)
        # From the square on, both terms' gradients keep their proportion whatever the temperature is.
        divergence = tf.reduce_sum(tf.exp(target) * (target - answer), axis=-1)
        return (1 - share) * losses + share * temperature**2 * divergence


def _class_names(source: str, weights: str, classes: int) -> list[str]:
    """The classes that a teacher was trained to tell apart; [] where nothing says so."""
    if source in registry.MODELS:
        place = registry.shipped_file(source, weights)
    elif source in registry.SHIPPED:
        place = registry.shipped_file(registry.default_network(source), source)
    elif run := run_around(source):
        return run.read_class_names()
    else:
        place = Path(source).expanduser()
    return read_class_names(place, {"": classes}).get("", []) if place.suffix == ".keras" else []
