"""A trained model as the page shows it: its answers, what it looked at, and the training images that look alike to it."""

import threading
import time

import keras
import matplotlib
import numpy as np

from hyper_parameters import HyperParameters
from resnet_study.data.download import without_downloads
from resnet_study.data.image_files import decode_image
from resnet_study.errors import UsageError, say_once
from resnet_study.evaluation import find_class_names, read_as_trained
from resnet_study.exporting.exported_model import ExportedModel, open_model
from resnet_study.networks import registry
from resnet_study.predictor import Predictor
from resnet_study.reports.gallery import encode_image
from resnet_study.reports.grad_cam import make_explainer
from resnet_study.reports.published import settings_class
from resnet_study.run_folder import begun_run_around, run_around
from resnet_study.saved_models import by_head
from resnet_study.serving.neighbours import Neighbours, find_training_images
from resnet_study.strings import as_text

MOST_PIXELS = 64_000_000  # of an image that is sent
_SHOWN = 320  # pixels of the longer side of an image that is shown


# Gradients of several requests at once ended the process: TensorFlow damaged its memory.
_EXPLAINING = threading.Lock()


class ModelError(Exception):
    """A model cannot answer about an image that is fine."""


class ServedModel:
    """A model that answers about the bytes of image files, from several threads at once.

    Attributes:
        name: what the user calls it, without folders.
        class_names: {name of the head: names of its classes}; a single head is called "".
        input_shape: (height, width, channels).
        runtime: what computes it.
        neighbours: the training images to search, or None.
        neighbours_missing: why there are none.
    """

    def __init__(self, name: str, source: str, config: HyperParameters):
        """Loads a model, and computes the features of the training images where these are there; nothing is downloaded.

        Args:
            name: see above.
            source: a run folder of either program, a model file of any format, or "cifar10".
            config: uses model_name, the network of "cifar10", and where the data lie: data_dir, and dataset for a model without a run.

        Raises:
            UsageError: see `open_model`.
        """
        model = open_model(source, config.shipped_name)
        self.name = as_text(name)
        self.class_names, self.input_shape = find_class_names(source, model), model.input_shape[1:]
        exported = isinstance(model, ExportedModel)
        self.runtime = model.runtime if exported else f"Keras {keras.__version__}"
        self._predictor = Predictor(model)
        self._predictor.predict(np.zeros((1, *self.input_shape), np.uint8))  # the first answer takes the longest
        run, begun = run_around(source), begun_run_around(source)
        settings = begun.read_config(settings_class(begun)) if begun else read_as_trained(config, source, model)
        self._reading = settings.reading(self.class_names)
        self._explainers, self.neighbours, self.neighbours_missing = {}, None, ""
        if not exported:
            try:
                self._explainers = {head: make_explainer(model, head) for head in self.class_names}
            except UsageError as error:
                print(f"{self.name}: no heat maps: {error}")
        try:
            if exported:
                raise UsageError("an exported file tells its answers only, and nothing of what it looked at")
            if begun is None and source not in registry.SHIPPED and not config.data_dir:
                raise UsageError("no run tells where they are; give --data_dir=FOLDER, and --dataset")
            if source in registry.SHIPPED and settings.dataset != registry.dataset_of(source):
                raise UsageError(
                    f"it was trained on {registry.dataset_of(source)}, received --dataset={settings.dataset}; leave that out"
                )
            with without_downloads():
                found = find_training_images(settings, run, config.data_dir)
                self.neighbours = Neighbours(model, next(iter(self.class_names)), *found, self.name)
        except UsageError as error:
            self.neighbours_missing = str(error)
            print(f"{self.name}: no nearest training images: {error}")

    def answer(self, content: bytes, most: int, details: bool) -> dict:
        """What the model says of an image.

        Args:
            content: the bytes of an image file.
            most: classes to name, the most likely first.
            details: whether to tell what the network saw, the heat maps and the nearest training images, too.

        Returns:
            dict of the form of `app.Answer`.

        Raises:
            UsageError: this is no image that can be read.
            ModelError: the model cannot answer about an image that is fine.
        """
        image = decode_image(content, "this file", self.input_shape, **self._reading, most_pixels=MOST_PIXELS)
        start = time.perf_counter()
        try:
            found = by_head(self._predictor.predict(image[None]))
        except UsageError as error:
            raise ModelError(f"{self.name} could not answer ({error})") from error
        answer = {"model": self.name, "milliseconds": round(1000 * (time.perf_counter() - start), 3), "heads": []}
        for head, names in self.class_names.items():
            probabilities = found[head][0]
            order = np.argsort(-probabilities, kind="stable")[:most]
            guesses = [{"class_name": names[label], "probability": float(probabilities[label])} for label in order]
            explainer = self._explainers.get(head) if details else None
            heat = None
            if explainer:
                with _EXPLAINING:
                    heat = explainer(image, int(order[0]))
                heat = _lay_over(image, heat)
            answer["heads"].append({"name": head, "guesses": guesses, "heat": heat})
        if details:
            answer["seen"] = encode_image(image, _SHOWN, lossless=True)
            answer["neighbours"] = []
            if self.neighbours:
                try:
                    answer["neighbours"] = self.neighbours.find(image)
                except UsageError as error:  # a training image is gone since, which is no fault of who asks
                    say_once(f"note: the nearest training images of {self.name} cannot be shown ({error})")
        return answer


def _lay_over(image, heat):
    """An image under its heat map, as a data URI."""
    colors = 255 * matplotlib.colormaps["inferno"](heat)[..., :3]
    return encode_image((0.45 * image + 0.55 * colors).astype(np.uint8), _SHOWN)
