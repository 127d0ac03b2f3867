"""How a model is tested: every test image once, and what it says about images of one's own.

load_model(path)            a trained model: raw pixels -> probabilities; `open_model` takes ONNX, LiteRT and SavedModel, too
test(model, images)         probabilities of any number of images
evaluate(config)            metrics of a run on the test part -> result.json, predictions.npy
predict(config, paths)      the most likely classes of image files
export(config, formats)     the model as files for other programs
"""

import dataclasses
import functools
from pathlib import Path

import keras
import numpy as np
import pandas as pd

import cifar10_input
from hyper_parameters import HyperParameters
from resnet_study.data.image_files import read_image, read_images
from resnet_study.errors import UsageError
from resnet_study.evaluation import LabelledParts, evaluate_parts, find_class_names, find_model
from resnet_study.exporting.export import RealImages, choose_calibration
from resnet_study.exporting.export import export as export_model
from resnet_study.exporting.exported_model import ExportedModel, open_model
from resnet_study.files import write_atomically
from resnet_study.networks.multiply_adds import multiply_adds, training_pflop
from resnet_study.predictor import Predictor
from resnet_study.run_folder import RunFolder
from resnet_study.saved_models import find_heads, load_model


def test(
    model: keras.Model | Predictor, images: np.ndarray, batch_size: int = 125
) -> np.ndarray | dict[str, np.ndarray]:
    """Softmax probabilities of any number of images, computed in float32.

    Args:
        model: keras.Model of `load_model`, or a `Predictor`. A model is prepared at each call; a `Predictor` is prepared once for
            many calls.
        images: raw pixels 0..255, uint8 or float [num_images, height, width, RGB].
        batch_size: images at a time, int >= 1.

    Returns:
        float32 [num_images, num_labels]; of a model with several heads a dict, name of the head -> such an array.

    Raises:
        UsageError: as `resnet_study.predictor.Predictor.predict`.

    Example:
        import numpy as np
        from cifar10_test import load_model, test

        probabilities = test(load_model("cifar10"), np.zeros((3, 32, 32, 3), np.uint8))
        print(probabilities.shape)  # (3, 10)
    """
    return (model if isinstance(model, Predictor) else Predictor(model)).predict(images, batch_size)


def evaluate(config: HyperParameters) -> tuple[dict, RunFolder]:
    """Tests a model on the test part of the data set and writes `result.json` and `predictions.npy`.

    The model is that of `resnet_study.evaluation.find_model`. Calling this again replaces the two files by equal ones.

    Args:
        config: settings; with `test_flip` and `test_shifts` the answers for other views of the images are measured too.

    Returns:
        (content of `result.json`, see `resnet_study.evaluation`; the folder that holds the files).

    Raises:
        UsageError: no such run or file, or the model does not fit the data set.
    """
    path, run = find_model(config)
    model = open_model(path, config.model_name)
    data = _load_heads(config, path, model)
    names = list(data)
    labels = {name: labelled.test.labels for name, labelled in data.items()}
    parts = LabelledParts(
        {"test": [(data[names[0]].test.images, labels)]},
        {name: labelled.class_names for name, labelled in data.items()},
        f"--dataset={config.dataset}",
        "the data set it was trained on",
    )
    pflop = None
    if not config.test_ckpt_path:
        images_seen = int(run.read_history().iloc[-1]["step"]) * config.train_batch_size
        pflop = training_pflop(multiply_adds(model), images_seen)
    views = {"mirrored": config.test_flip, "shifted": config.test_shifts}
    return evaluate_parts(config, path, run, model, parts, **views, pflop=pflop), run


def _load_heads(config, path, model):
    """{name of the head: the data set with its labels}, of the heads that a model has."""
    found = find_heads(model)
    names = list(config.tasks) if len(config.tasks) > 1 else [""]
    if set(found) != set(names):
        raise UsageError(
            f"{path} has the heads {', '.join(found) or 'none'}, received --heads={config.heads}; give --heads={','.join(found)}"
        )
    return cifar10_input.load_heads(config) if len(names) > 1 else {"": cifar10_input.load_data(config)}


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a model says of image files.

    Attributes:
        model: the model, or an `ExportedModel`.
        files: names of the image files.
        images: uint8 [n, height, width, channels], what it was asked about.
        probabilities: {name of the head: float32 [n, classes]}; a single head is called "".
        class_names: {name of the head: names of its classes}.
        table: the columns image, class_1, probability_1, ... class_3, probability_3; of several heads <head>_1,
            <head>_probability_1, ... for each.
        csv_path: the file of the table.
    """

    model: keras.Model | ExportedModel
    files: list[Path]
    images: np.ndarray
    probabilities: dict[str, np.ndarray]
    class_names: dict[str, list[str]]
    table: pd.DataFrame
    csv_path: Path


def predict(config: HyperParameters, paths, read=None) -> Predictions:
    """The three most likely classes of image files, also written to the folder of `resnet_study.evaluation.find_model`.

    The file is `predictions.csv`, or `predictions-2.csv` and so on where that holds other rows.

    Args:
        config: settings of either program; `test_ckpt_path` or `version` names the model.
        paths: files, or folders whose images are taken in the order of their names; an image of a folder that cannot be
            decoded is named and left out.
        read: how a file becomes an image of a shape, as in the training of the model; None = `read_image`.

    Returns:
        What was read and what the model says of it.

    Raises:
        UsageError: no images, or one that was named itself cannot be decoded.

    Example:
        from cifar10_test import predict
        from hyper_parameters import from_preset

        predictions = predict(from_preset("fast", test_ckpt_path="cifar10"), ["examples/cat.jpg"])
        print(predictions.table["class_1"][0])  # cat
    """
    path, run = find_model(config)
    model = open_model(path, config.model_name)
    files, images = read_images(paths, model.input_shape[1:], read or read_image)
    probabilities = test(model, images, config.test_batch_size)
    probabilities = probabilities if isinstance(probabilities, dict) else {"": probabilities}
    class_names = find_class_names(path, model)
    rows = [{"image": str(file)} for file in files]
    for head, answers in probabilities.items():
        columns = (f"{head}_", f"{head}_probability_") if head else ("class_", "probability_")
        for row, answer in zip(rows, answers, strict=True):
            for rank, label in enumerate(np.argsort(-answer, kind="stable")[:3], start=1):
                row[f"{columns[0]}{rank}"] = class_names[head][label]
                row[f"{columns[1]}{rank}"] = round(float(answer[label]), 4)
    table = pd.DataFrame(rows)
    csv_path = _write_beside(run.path, table.to_csv(index=False))
    return Predictions(model, files, images, probabilities, class_names, table, csv_path)


def export(
    config: HyperParameters, formats, quantize="none", pixels="uint8", *, compared: int = 1000, paths=()
) -> list[dict]:
    """Writes a model as files that compute without this library, into `exported/` of the folder of `find_model`.

    Each is checked on test images of the data set, or on `paths`; int8 is calibrated with training images.

    Args:
        config: settings; `test_ckpt_path` or `version` names the model.
        formats, quantize, pixels: see `resnet_study.exporting.export.export`.
        compared: test images, at most.
        paths: image files or folders to check with in their place.

    Returns:
        See `resnet_study.exporting.export.export`.

    Raises:
        UsageError: no such run or file; a format has no such quantization; or a file does not answer as the model.
    """
    path, run = find_model(config)
    model = load_model(path, config.model_name)
    cached = functools.cache(lambda: _load_heads(config, path, model))

    def choose_training():
        images = next(iter(cached().values())).train.images
        chosen = choose_calibration(len(images), config.seed)
        return images[chosen], f"{len(chosen):,} training images of {config.dataset}"

    if paths:
        files, images = read_images(paths, model.input_shape[1:], read_image)
        real = RealImages(images, None, f"{len(files):,} images that were given", choose_training)
    else:
        images = next(iter(cached().values())).test.images[:compared]
        labels = {head: data.test.labels[:compared] for head, data in cached().items()}
        real = RealImages(images, labels, f"{len(images):,} test images of {config.dataset}", choose_training)
    return export_model(path, run, model, real, formats, quantize, pixels)


def _write_beside(folder: Path, text: str) -> Path:
    """Writes `predictions.csv`, or the next free number where it holds other rows; returns the path."""
    path, number = folder / "predictions.csv", 1
    while path.exists() and path.read_bytes() != text.encode():
        number += 1
        path = folder / f"predictions-{number}.csv"
    write_atomically(path, text)
    return path
