"""How a trained model is measured, whatever images it is tested on.

find_model(config)      what to load, and the folder for what comes out of it
open_tested(config)     the same, loaded, with settings that are those of its training
find_class_names(...)   the names of the classes of a model
evaluate_parts(...)     probabilities and metrics of parts of a data set -> result.json, predictions.npy
read_result(run)        result.json, also that of an earlier version
check_current(run)      whether that is of the run as it is now

`result.json` has the same form for every program:

    model, dataset, weights           names of what was tested
    validation, test                  the metrics of each part that was tested, see `metrics.measure`
    predictions                       the part that predictions.npy and the figures are about
    best_step, last_step              of a run: the steps of the tested weights and of the end of the training
    pflop                             of a run: the work of its training, see `training.work.training_pflop` and
                                      `flowers.work.transfer_pflop`
    validation_error, last_validation_error
                                      of a run that validates: the errors in % that the training noted at these steps
    head, heads                       of several heads: the name of the one that all of the above is about, and {name: {part:
                                      metrics, validation_error}} of the others
"""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterable
from pathlib import Path

import keras
import numpy as np

from resnet_study.class_names import ClassNames, read_class_names, without_folder
from resnet_study.data.image_files import read_image
from resnet_study.errors import UsageError, say_once
from resnet_study.exporting.exported_model import ExportedModel, find_format, open_model
from resnet_study.files import is_kind, read_json, write_array, write_json
from resnet_study.metrics import describe_accuracy, measure
from resnet_study.networks import registry
from resnet_study.predictor import Predictor
from resnet_study.run_folder import RunFolder, run_around, run_folder_of
from resnet_study.saved_models import by_head, find_heads

PARTS = ("validation", "test")
_METRICS = {
    "images": int,
    "error": float,
    "top5_error": float,
    "loss": float,
    "per_class": [{"class": str, "precision": float, "recall": float, "f1": float}],
    "confusion_matrix": [[int]],
}
# Which images with several labels do not have.
_OF_ONE_LABEL = ("top5_error", "confusion_matrix")
# Metrics of the test part as the CIFAR program named them when it knew no other part.
_EARLIER_NAMES = {"test_error": "error", "test_top5_error": "top5_error", "test_loss": "loss", "test_error_flip": "error_flip"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LabelledParts:
    """Images with labels that a model is tested on.

    Attributes:
        parts: {"validation" or "test": pieces of it}; a piece is a pair of images, uint8 [n, height, width, channels], and
            labels, {name of the head: int [n]}. The last part is what `predictions.npy` is about.
        class_names: {name of the head: names of its classes}; a single head is called "".
        found: where the images come from, for messages.
        advice: what to give instead where they do not fit the model, for messages.
        multi_label: whether an image can have several labels; these are 0 and 1, int [n, classes], then.
    """

    parts: dict[str, Iterable[tuple[np.ndarray, dict[str, np.ndarray]]]]
    class_names: dict[str, list[str] | tuple[str, ...]]
    found: str
    advice: str
    multi_label: bool = False


def find_model(config) -> tuple[str, RunFolder]:
    """What to load, and the folder for what comes out of it.

    Without `test_ckpt_path` that is `best.keras` of the run, chosen on validation images where it held some out (not with --sparsity). What
    `test_ckpt_path` names gets the folder `<runs_dir>/test-<name>-<dataset>`, so that the result of the run is left alone; the
    name is that of the run folder, with that of the file if it is one, and a number where another model of that name was tested or exported.

    Args:
        config: settings of either program; uses test_ckpt_path, runs_dir, run_name, model_name and dataset_name.

    Returns:
        (argument for `saved_models.load_model`, folder).
    """
    run = run_folder_of(config)
    path = config.test_ckpt_path
    if not path:
        return str(run.best), run
    place = Path(path).expanduser().resolve()
    if place.is_file() or find_format(path):
        folder = place.parent.parent if place.parent.name == "checkpoints" else place.parent
        name = f"{folder.name}-{place.name if place.is_dir() else place.stem}"
        if (kind := find_format(path)) and folder.name != kind:  # beside a .keras file of that name
            name += f"-{kind}"
    else:
        shipped = path in registry.SHIPPED and (config.shipped_name or registry.default_network(path))
        name = f"{shipped}-{path}" if shipped else place.name  # of a run folder
    base = f"{config.runs_dir}/test-{name}-{config.dataset_name}"
    for number in itertools.count(1):  # folders of other places may have the same name
        run = RunFolder(base + f"-{number}" * (number > 1))
        if is_free_for(run, path):
            return path, run


def open_tested(config) -> tuple:
    """A model that is to be tested on the parts of its data set.

    Args:
        config: see `find_model`; those of a run must be its own.

    Returns:
        (settings with images read as in its training, path and folder of `find_model`, the model).

    Raises:
        UsageError: no such run or file, or the run was trained with other settings.
    """
    path, run = find_model(config)
    if not config.test_ckpt_path:
        config = run.as_begun(config)
        run.check_same_settings(config)
    model = open_model(path, config.shipped_name)
    return read_as_trained(config, path, model), path, run, model


def is_free_for(run: RunFolder, path: str) -> bool:
    """Whether a folder holds no test and no exported file, or those of the model that `path` names, which new ones may replace."""
    told = {run.result: "weights"} | dict.fromkeys(run.path.glob("exported/*/model.json"), "source")
    for file, name in told.items():
        with contextlib.suppress(UsageError):  # it is damaged, and written anew now
            known = str(read_json(file, {}).get(name, path)) if file.is_file() else path
            if Path(known).expanduser().resolve() != Path(path).expanduser().resolve():
                return False
    return True


def find_file(path: str, model: keras.Model) -> Path:
    """The file that a model was loaded from by `path`: a file, the best one of a run folder, or that of shipped weights."""
    if path in registry.SHIPPED:
        return registry.shipped_file(model.name, path)
    place = Path(path).expanduser()
    return RunFolder(place).best if place.is_dir() else place


def find_class_names(path: str, model: keras.Model) -> ClassNames:
    """Class names of each head of a model: those in its file, else those in the `data.json` of the run that it lies in.

    Args:
        path: what the model was loaded from, see `find_model`.
        model: the model, of `exporting.exported_model.open_model`.

    Returns:
        {name of the head: names}; "class 0", "class 1", ... where nothing tells its classes.

    Raises:
        UsageError: the file brings names for another number of classes.
    """
    if brought := _brought_names(path, model):
        return brought
    run, found = run_around(path), ClassNames()
    for head, classes in find_heads(model).items():
        names = run.read_class_names(head) if run else []
        if len(names) != classes:
            names = _numbered_names(classes)
            if isinstance(model, ExportedModel):
                say_once(f"note: {path} tells no names of its classes, so they are numbered")
        found[head] = names
    found.multi_label = bool(run and read_json(run.data, {}).get("several"))
    found.jpeg_size = "" if run else "full"
    return found


def find_class_folders(path: str) -> list[str]:
    """What the folders of the classes of a model are called, from the `data.json` of the run that it lies in; [] where it does not say."""
    run = run_around(path)
    folders = read_json(run.data, {}).get("class_folders") if run else None
    return folders if is_kind(folders, [str]) else []


def _brought_names(path, model):
    """The class names in the file of a model; none for a checkpoint."""
    if isinstance(model, ExportedModel):
        return model.class_names
    place = find_file(path, model)
    return read_class_names(place, find_heads(model)) if place.suffix == ".keras" else ClassNames()


def _begin(names) -> str:
    """The first three, and dots for the others."""
    return ", ".join([*names[:3], "..."][: len(names)])


def _numbered_names(classes):
    return [f"class {index}" for index in range(classes)]


def evaluate_parts(
    config,
    path: str,
    run: RunFolder,
    model: keras.Model,
    data: LabelledParts,
    *,
    mirrored: bool = False,
    shifted: bool = False,
    pflop: float | None = None,
) -> dict:
    """Tests a model and writes `result.json` and `predictions.npy`, for further heads `predictions-<head>.npy` too.

    Calling this again replaces the files by equal ones.

    Args:
        config: settings of either program; uses dataset_name, test_batch_size, test_ckpt_path and `chosen_by`.
        path, run: see `find_model`.
        model: what `exported_model.open_model` made of `path`: of Keras, or an exported one.
        data: what to test it on.
        mirrored: also measure error_flip (%), that of the mean answers for an image and its mirror image.
        shifted: also measure error_shifts (%), that of the weighted mean of six answers: half of it is that of `mirrored`, half the
            same for the image one pixel further up and left, and one pixel further down and right (Jordan 2024, arXiv:2404.00498).
        pflop: the work of the training; None = not known.

    Returns:
        The content of `result.json`, see the module.

    Raises:
        UsageError: the model knows other classes than the data have, or no image of a part can be read.
    """
    check_classes(path, model, data)
    first, *others = data.class_names
    result = {"model": model.name, "dataset": config.dataset_name, "weights": config.test_ckpt_path or run.best.name}
    heads = {name: {} for name in others}
    if not config.test_ckpt_path:
        result |= _describe_training(run, config.chosen_by(data.multi_label), heads)
    if pflop is not None:
        result["pflop"] = pflop
    if heads:
        result |= {"head": first, "heads": heads}
    predictor = Predictor(model)
    for part, pieces in data.parts.items():
        answers = _predict_part(predictor, pieces, list(data.class_names), config.test_batch_size, mirrored, shifted)
        if not len(answers[first]["labels"]):
            raise UsageError(f"no {part} image of {data.found} can be read; mend some")
        for head, columns in answers.items():
            labels, names = columns["labels"], data.class_names[head]
            metrics = measure(columns["plain"], labels, names)
            for name in ("flip", "shifts"):
                if name in columns:
                    metrics[f"error_{name}"] = measure(columns[name], labels, names)["error"]
            heads.get(head, result)[part] = metrics
        result["predictions"] = part
    write_json(run.result, result)
    for head, columns in answers.items():
        place = run.predictions if head == first else run.predictions.with_stem(f"{run.predictions.stem}-{head}")
        write_array(place, columns["plain"])
    return result


def read_as_trained(config, path: str, model):
    """The settings, with images read as the file of the model says, brought to the size of the network so where the settings leave it open."""
    told = find_class_names(path, model)
    if told.resize == "nearest" and config.resize == "auto" and hasattr(config, "faithful"):
        # The setting of `flowers` that goes with this, and with an order of classes.
        return dataclasses.replace(config, faithful=True)
    resize = told.resize if config.resize == "auto" and told.resize in ("pad", "stretch") else config.resize
    value_range = config.value_range or told.value_range
    return dataclasses.replace(
        config, resize=resize, jpeg_size=told.jpeg_size or config.jpeg_size, value_range=value_range
    )


def make_reader(config, path: str, model) -> functools.partial:
    """How an image file becomes an image of a shape, as in the training of a model: function of (file, shape)."""
    return functools.partial(read_image, **config.reading(find_class_names(path, model)))


def check_classes(path: str, model, data: LabelledParts) -> None:
    """Raises UsageError unless the data have the heads and the classes that a model was trained on; see `find_class_names`."""
    told = find_class_names(path, model)
    if told.multi_label != data.multi_label:
        one, many = "one label for each image", "several labels for an image"
        raise UsageError(
            f"{path} gives {many if told.multi_label else one}, but {data.found} has {many if data.multi_label else one}; give {data.advice}"
        )
    if set(told) != set(data.class_names):
        heads, labels = (", ".join(filter(None, names)) or "none" for names in (told, data.class_names))
        raise UsageError(
            f"{path} has the heads {heads}, but {data.found} has labels for the heads {labels}; give another model"
        )
    for head, known in told.items():
        names = list(data.class_names[head])
        if len(known) != len(names):
            raise UsageError(
                f"{path} tells {len(known)} classes apart, but {data.found} has {len(names)}; give {data.advice}"
            )
        # Runs of before call two classes of one name alike.
        if known not in (names, [without_folder(name) for name in names], _numbered_names(len(names))):
            raise UsageError(
                f"{path} tells {_begin(known)} apart, but {data.found} has {_begin(names)}; give {data.advice}"
            )


def _describe_training(run, chosen_by, heads):
    """What `error.csv` says of the weights of a run; what it says of further heads goes into `heads`."""
    history = run.read_history()
    last = history.iloc[-1]
    if "validation_error" not in history:
        return {"best_step": int(last["step"]), "last_step": int(last["step"])}
    trained = history[history["step"] > 0] if len(history) > 1 else history  # see `callbacks.KeepBest`
    best = history.loc[trained[chosen_by].idxmin()] if chosen_by in history else last
    for name, facts in heads.items():
        facts["validation_error"] = float(best[f"validation_error_{name}"])
    return {
        "best_step": int(best["step"]),
        "validation_error": float(best["validation_error"]),
        "last_step": int(last["step"]),
        "last_validation_error": float(last["validation_error"]),
    }


def _predict_part(predictor, pieces, heads, batch_size, mirrored, shifted):
    """{head: {"labels": of all pieces, "plain": probabilities, perhaps "flip", "shifts": those with other views of each image}}."""

    def answer(images):
        return by_head(predictor.predict(images, batch_size))

    def mean(*answers):
        return {head: np.mean([one[head] for one in answers], axis=0) for head in heads}

    def of_both_sides(images):
        return mean(answer(images), answer(images[:, :, ::-1]))

    found = {head: {} for head in heads}
    for images, labels in pieces:
        columns = {"labels": labels, "plain": answer(images)}
        if mirrored or shifted:
            flip = mean(columns["plain"], answer(images[:, :, ::-1]))
            columns |= {"flip": flip} if mirrored else {}
        if shifted:
            padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")
            columns["shifts"] = mean(flip, mean(of_both_sides(padded[:, :-2, :-2]), of_both_sides(padded[:, 2:, 2:])))
        for head in heads:
            for name, values in columns.items():
                found[head].setdefault(name, []).append(values[head])
    return {
        head: {name: np.concatenate(values) for name, values in columns.items()} or {"labels": []}
        for head, columns in found.items()
    }


def check_current(run: RunFolder) -> None:
    """Raises UsageError where a run was trained on since it was tested, so that its `result.json` is of other weights."""
    last, tested = run.last_step(), read_result(run)["last_step"]
    if tested != last:
        raise UsageError(
            f"{run} was tested after {tested:,} steps and trained on to {last:,}; go on with --resume, or test it again"
        )


def read_result(run: RunFolder, *parts: str) -> dict:
    """The content of `result.json` of a tested run, see the module; that of an earlier version is brought to the same form.

    Args:
        run: the run.
        *parts: which it must hold, "validation" or "test"; none = whichever `predictions.npy` is about.

    Raises:
        UsageError: the run has not been tested, or the file is damaged.
    """
    if not run.result.is_file():
        raise UsageError(f"{run} must be tested, found no test; use --mode=test or python -m flowers.evaluate")
    result = _renamed(read_json(run.result, {"best_step": int, "last_step": int}))
    named = result.get("predictions")
    parts = parts or (named if named in PARTS else "",)
    heads = result.get("heads", {})
    if not is_kind(heads, dict) or not all(
        _is_measured(tested, part) for tested in (result, *heads.values()) for part in parts
    ):
        raise UsageError(
            f"{run.result} does not hold the metrics of {' and '.join(filter(None, parts)) or 'any part'}; test the run again"
        )
    for metrics in (result[part] for part in PARTS if _is_measured(result, part)):
        if not (0 <= metrics["error"] <= 100 and 0 < metrics["images"] < 2**31):
            raise UsageError(f"{run.result} holds an error that cannot be; test the run again")
        metrics |= describe_accuracy(metrics["error"], metrics["images"])
    return result


def _is_measured(tested, part) -> bool:
    multi_label = is_kind(tested, {part: {"mean_average_precision": float}})
    return is_kind(
        tested, {part: {name: kind for name, kind in _METRICS.items() if not multi_label or name not in _OF_ONE_LABEL}}
    )


def _renamed(result):
    """A result whose test metrics stand without a part, as the CIFAR program wrote them once, in the form of today."""
    if "test_error" not in result:
        return result
    part = {_EARLIER_NAMES.get(name, name): value for name, value in result.items() if name in _EARLIER_NAMES or name in _METRICS}  # fmt: skip
    others = {name: value for name, value in result.items() if name not in _EARLIER_NAMES and name not in _METRICS}
    if isinstance(heads := others.get("heads"), dict):
        others["heads"] = {name: _renamed(head) for name, head in heads.items() if isinstance(head, dict)}
    return others | {"test": part, "predictions": "test"}
