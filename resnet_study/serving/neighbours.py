"""The training images that look alike to a network: those whose features before the classifier point the same way."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
from tqdm import tqdm

import cifar10_input
from flowers.data import load_images
from hyper_parameters import HyperParameters
from resnet_study.data.image_data import digest
from resnet_study.errors import UsageError
from resnet_study.networks.graph import find_last
from resnet_study.predictor import Predictor
from resnet_study.reports.gallery import encode_image
from resnet_study.run_images import check_given_images, check_own

_SHOWN = 8
_AT_A_TIME = 32 << 20  # bytes of images in memory


class Neighbours:
    """The features of all training images of a model, computed once.

    Attributes:
        count: how many images are searched.
    """

    def __init__(self, model: keras.Model, head: str, labels: np.ndarray, load: Callable, class_names, title: str):
        """Computes the features, and shows how far it is.

        Args:
            model: ends in a dense layer; what that takes are the features.
            head: of a model with several heads the name of one; else "".
            labels: of the images to be searched, int [n].
            load: function of places int [m] that gives these images, uint8 [m, height, width, channels], of the shape that the model takes.
            class_names: of the labels.
            title: what the bar says.

        Raises:
            UsageError: the model does not end so, or the images have another shape.
        """
        last = find_last(model, head)
        if not isinstance(last, keras.layers.Dense):
            raise UsageError("the model does not end in a dense layer")
        shape = model.input_shape[1:]
        if (received := load(np.array([0])).shape[1:]) != shape:
            raise UsageError(f"training images of the shape {shape} are needed, received {received}")
        self.count, self._labels, self._load, self._class_names = len(labels), labels, load, class_names
        self._predictor = Predictor(keras.Model(model.input, last.input))
        size = max(1, min(1024, _AT_A_TIME // int(np.prod(shape))))
        parts = np.split(np.arange(self.count), range(size, self.count, size))
        described = tqdm(parts, desc=f"{title}: features of {self.count:,} training images, once")
        self._features = np.concatenate([self._describe(load(part)) for part in described])

    def _describe(self, images):
        """Features of length 1, float32 [n, features]: their products are cosines."""
        features = self._predictor.compute(images)
        return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)

    def find(self, image: np.ndarray) -> list[dict]:
        """The nearest images to one, uint8 [height, width, channels], the nearest first, each of the form of `app.Neighbour`."""
        likeness = self._features @ self._describe(image[None])[0]
        places = np.argsort(-likeness, kind="stable")[:_SHOWN]
        return [
            {
                "class_name": self._class_names[self._labels[place]],
                "place": int(place),
                "similarity": round(float(likeness[place]), 4),
                "source": encode_image(near),
            }
            for place, near in zip(places, self._load(places), strict=True)
        ]


def find_training_images(config, run, data_dir: str) -> tuple[np.ndarray, Callable, tuple[str, ...]]:
    """(labels, load, class_names) of the training part of a data set, as `Neighbours` takes them.

    Args:
        config: settings of either program.
        run: whose parts are meant, if it has begun.
        data_dir: where the data set lies; "" = where the settings say.

    Raises:
        UsageError: it is not there, or has changed since the run, or its images have several labels.
    """
    config = dataclasses.replace(config, data_dir=data_dir or config.data_dir)
    if isinstance(config, HyperParameters):
        data = cifar10_input.load_data(config)
        _check(data, run)
        if run is not None:
            check_given_images(
                run,
                lambda: digest(
                    *(cifar10_input.load_heads(config).values() if len(config.head_factors) > 1 else [data])
                ),
            )
        training, _ = cifar10_input.split_data(data, config)
        return training.labels, training.images.__getitem__, tuple(data.class_names)
    data = load_images(dataclasses.replace(config, find_leaks="off"), run)
    _check(data, run)
    part = data.training
    # Not `part.load`, which leaves out what is broken: each label has its image.
    return part.labels, lambda places: np.stack([part.read(int(i)) for i in places]), data.class_names


def _check(data, run):
    if data.multi_label:
        raise UsageError("they have several labels each, which the page does not show")
    if run is not None:
        check_own(run, data.fingerprint, data.found)
