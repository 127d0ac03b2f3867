"""How a model is tested: every test image once, and what it says about images of one's own.

load_model(path)            a trained model: raw pixels -> probabilities; `open_model` takes ONNX, LiteRT and SavedModel, too
test(model, images)         probabilities of any number of images
evaluate(config)            metrics of a run on the test part -> result.json, predictions.npy
evaluate_others(config, found)  the same on other images, in a folder of their own
predict(config, paths)      the most likely classes of image files
export(config, formats)     the model as files for other programs
"""

import contextlib
import dataclasses
import functools
import os
from pathlib import Path

import keras
import numpy as np
import pandas as pd

import cifar10_input
from hyper_parameters import HyperParameters
from resnet_study.data.image_data import digest
from resnet_study.errors import UsageError, say_once
from resnet_study.evaluation import (
    LabelledParts,
    check_classes,
    evaluate_parts,
    find_class_folders,
    find_class_names,
    find_model,
    make_reader,
    open_tested,
    read_as_trained,
    read_result,
)
from resnet_study.exporting.export import (
    CALIBRATION_IMAGES,
    RealImages,
    check_formats,
    choose_images,
    read_given,
)
from resnet_study.exporting.export import export as export_model
from resnet_study.exporting.exported_model import ExportedModel, open_model
from resnet_study.networks.weights import has_normalization
from resnet_study.new_data import evaluate_others as evaluate_others
from resnet_study.new_data import predict_unlabelled
from resnet_study.predict_files import find_true_names, list_images, predict_files
from resnet_study.predictor import Predictor
from resnet_study.run_folder import RunFolder, begun_run_around
from resnet_study.run_images import check_own_of, tell_own_images
from resnet_study.saved_models import find_heads, load_model
from resnet_study.training.work import training_pflop


def test(
    model: keras.Model | Predictor, images: np.ndarray, batch_size: int = 125
) -> np.ndarray | dict[str, np.ndarray]:
    """Probabilities of any number of images, computed in float32: of a softmax, or of several labels of a sigmoid for each class.

    Args:
        model: keras.Model of `load_model`, or a `Predictor`. A model is prepared at each call; a `Predictor` is prepared once for
            many calls.
        images: raw pixels 0..255, uint8 or float [num_images, height, width, channels], RGB or grey.
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
        UsageError: no such run or file, the run was trained with other settings, or the model does not fit the data set.
    """
    if not isinstance(config, HyperParameters):
        raise UsageError(
            f"config must be HyperParameters, received {type(config).__name__}; flowers.evaluate tests transfer models"
        )
    config, path, run, model = open_tested(config)
    data = _load_heads(config, path, model)
    first = next(iter(data.values()))
    parts = _label_parts(config, data)
    pflop = None
    if not config.test_ckpt_path:
        pflop = training_pflop(config, model, run.last_step(), run)
    # What was measured once, of whatever call, is not to be lost by another one.
    before = {}
    with contextlib.suppress(UsageError):  # there is none, or a damaged one
        before = read_result(run, "test")["test"]
    views = {
        "mirrored": config.test_flip or "error_flip" in before,
        "shifted": config.test_shifts or "error_shifts" in before,
    }
    result = evaluate_parts(config, path, run, model, parts, **views, pflop=pflop)
    predict_unlabelled(config, run, path, model, first.unlabelled)
    return result, run


def load_as_trained(config: HyperParameters, path: str, model, own: bool = True) -> dict:
    """{name of the head: the data set with its labels}, of the heads and the classes of a model.

    Args:
        config: settings of the data set.
        path: of the model.
        model: the model.
        own: whether images of the run that the model lies in must be those it was trained with, since its parts are meant.

    Raises:
        UsageError: the data set has other heads or classes than the model was trained on, or other images.
    """
    data = _load_heads(config, path, model, own)
    check_classes(path, model, _label_parts(config, data))
    return data


def _label_parts(config, data):
    first = next(iter(data.values()))
    labels = {name: labelled.test.labels for name, labelled in data.items()}
    return LabelledParts(
        {"test": [(first.test.images, labels)]},
        {name: labelled.class_names for name, labelled in data.items()},
        f"--dataset={config.dataset_name}" if config.dataset != "folder" else str(config.data_dir),
        "the data set it was trained on",
        first.multi_label,
    )


def _load_heads(config, path, model, own=True):
    """{name of the head: the data set with its labels}, of the heads that a model has."""
    found = find_heads(model)
    names = list(config.head_factors) if len(config.head_factors) > 1 else [""]
    if set(found) != set(names):
        raise UsageError(
            f"{path} has the heads {', '.join(found) or 'none'}, received --heads={config.heads}; give --heads={','.join(found)}"
        )
    data = cifar10_input.load_heads(config) if len(names) > 1 else {"": cifar10_input.load_data(config)}
    first = next(iter(data.values()))
    if own:
        check_own_of(path, config, first.fingerprint, first.found, lambda: digest(*data.values()))
    return data


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a model says of image files.

    Attributes:
        model: the model, or an `ExportedModel`.
        files: names of the image files.
        images: uint8 [m, height, width, channels], the first of what it was asked about, as many as were to be kept.
        probabilities: {name of the head: float32 [n, classes]}; a single head is called "".
        class_names: {name of the head: names of its classes}.
        table: the columns image, class_1, probability_1, ... class_3, probability_3; of several heads <head>_1,
            <head>_probability_1, ... for each; classes, all with a probability of `class_names.THRESHOLD` or more, where an image can have
            several labels; and true_class where images lie in folders named like classes.
        csv_path: the file of the table; beside it lie all probabilities, see `resnet_study.predict_files`.
    """

    model: keras.Model | ExportedModel
    files: list[Path]
    images: np.ndarray
    probabilities: dict[str, np.ndarray]
    class_names: dict[str, list[str]]
    table: pd.DataFrame
    csv_path: Path


def predict(config: HyperParameters, paths, kept: int = 0) -> Predictions:
    """The three most likely classes of image files, also written to the folder of `resnet_study.evaluation.find_model`.

    A few images are in memory at a time, and what is done is kept: the same call goes on after a kill. The files are those of
    `resnet_study.predict_files`.

    Args:
        config: settings of either program; `test_ckpt_path` or `version` names the model.
        paths: one or several: files, or folders and `.zip`s with all images within, in the order of their paths; an image of these that cannot be decoded is
            named and left out.
        kept: the first so many images are kept in the result, to be explained.

    Returns:
        What was read and what the model says of it.

    Raises:
        UsageError: no images, or one that was named itself cannot be decoded; or images are kept for a model that is none of Keras.

    Example:
        from cifar10_test import predict
        from hyper_parameters import from_preset

        predictions = predict(from_preset("fast", test_ckpt_path="cifar10"), ["examples/cat.jpg"])
        print(predictions.table["class_1"][0])  # cat
    """
    path, run = find_model(config)
    model = open_model(path, config.shipped_name)
    if kept and not isinstance(model, keras.Model):
        raise UsageError(
            f"--explain needs a Keras model, received {model.name} in {model.runtime}; leave it out, or give the .keras file"
        )
    if isinstance(model, keras.Model) and not has_normalization(model):
        say_once(
            f"note: {path} has no layer that normalises pixels, so its network is given raw ones, 0..255; if it was trained on others, put "
            "such a layer before it (keras.layers.Rescaling)"
        )
    paths = [paths] if isinstance(paths, str | os.PathLike) else paths
    images = list_images(paths)
    class_names = find_class_names(path, model)
    folders, true_names = find_class_folders(path), None
    if len(class_names) == 1 and not class_names.multi_label:
        (shown,) = class_names.values()
        true_names = find_true_names(images, folders if len(folders) == len(shown) else shown, shown)
        if any(true_names):
            tell_own_images(path, paths)
    answers = predict_files(config, path, model, images, run.path, true_names)
    shape, read = model.input_shape[1:], make_reader(config, path, model)
    first = np.array([read(file, shape) for file in answers.files[:kept]], np.uint8).reshape(-1, *shape)
    return Predictions(model, answers.files, first, answers.probabilities, class_names, answers.table, answers.csv_path)


def export(
    config: HyperParameters, formats, quantize="none", pixels="uint8", *, compared: int = 1000, paths=(), load=None
) -> list[dict]:
    """Writes a model as files that compute without this library, into `exported/` of the folder of `find_model`.

    Each is checked on test images of the data set, drawn by the seed, or on `paths`; int8 is calibrated with training images.

    Args:
        config: settings; `test_ckpt_path` or `version` names the model.
        formats, quantize, pixels: see `resnet_study.exporting.export.export`.
        compared: test images, at most.
        paths: image files or folders to check with in their place, as many of them.
        load: function of (config, path, model) that gives {"training" and the name of what it is checked on: a part with a length and
            `load(indices)` -> (images, labels)}; None = those of the data set.

    Returns:
        See `resnet_study.exporting.export.export`.

    Raises:
        UsageError: no such run or file, or it was trained with other settings; a format has no such quantization; or a file does not answer as the model.
    """
    formats = [formats] if isinstance(formats, str) else formats
    check_formats(formats, quantize)  # before any data are read
    path, run = find_model(config)
    if not config.test_ckpt_path and (not paths or quantize == "int8"):  # images of its data set are drawn
        config = run.as_begun(config)
        run.check_same_settings(config)
    model = load_model(path, config.shipped_name)
    config = read_as_trained(config, path, model)
    parts = functools.cache(lambda: (load or _list_parts)(config, path, model))

    def draw(name, most):
        part = parts()[name]
        images, labels = part.load(choose_images(len(part), most, config.seed))
        if not len(images):
            raise UsageError(f"no {name} image of {config.dataset_name} can be read; mend some, or give --images=PATH")
        return images, labels, f"{len(images):,} {name} images of {config.dataset_name}"

    if paths:
        images = read_given(paths, make_reader(config, path, model), model.input_shape[1:], compared, config.seed)
        chosen = images, None, f"{len(images):,} images that were given"
    else:
        try:
            part = next(name for name in parts() if name != "training")
        except UsageError as error:
            if quantize == "int8":  # which needs training images, whatever it is checked with
                raise
            raise UsageError(f"{error}; or check the files with images of yours, --images=PATH") from error
        chosen = draw(part, compared)
    real = RealImages(*chosen, functools.partial(draw, "training", CALIBRATION_IMAGES))
    class_names = find_class_names(path, model)
    reading = config.reading(class_names)  # which a checkpoint does not bring with it
    class_names.resize, class_names.jpeg_size = reading["resize"], reading["jpeg_size"]
    class_names.value_range = config.value_range
    options = {"class_names": class_names, "batch_size": config.test_batch_size}
    return export_model(path, run, model, real, formats, quantize, pixels, **options)


def _list_parts(config, path, model):
    """See `export`; of several heads with the labels of the model's first."""
    data = load_as_trained(config, path, model)[next(iter(find_heads(model)))]
    training, run = data.train, begun_run_around(path)
    if run is not None and run.has_presets() and (stored := run.read_config(HyperParameters)).dataset == config.dataset:
        training, _ = cifar10_input.split_data(data, stored, run.keeps_last())  # without what the run held out
    return {"training": training, "test": data.test}
