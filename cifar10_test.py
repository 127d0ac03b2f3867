"""How a net is tested: every test image once, and what it says about pictures of one's own.

load_model(path)            a trained net: raw pixels -> probabilities
test(model, images)         probabilities of any number of images
evaluate(config)            metrics of a run on the test part -> result.json, predictions.npy
predict(config, paths)      the most likely classes of picture files
"""

import io
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import sklearn.metrics

import cifar10_input
from hyper_parameters import HyperParameters
from resnet_study.data.cifar_files import CIFAR10_CLASSES
from resnet_study.data.image_files import read_image, read_images
from resnet_study.errors import UsageError
from resnet_study.files import write_atomically, write_json
from resnet_study.predictor import Predictor
from resnet_study.run_folder import RunFolder
from resnet_study.saved_models import find_heads, load_model


def test(
    model: keras.Model | Predictor, images: np.ndarray, batch_size: int = 125
) -> np.ndarray | dict[str, np.ndarray]:
    """Softmax probabilities of any number of images, in float32; see `resnet_study.predictor.Predictor.predict`.

    A `Predictor` is prepared once for many calls, a model at each.
    """
    return (model if isinstance(model, Predictor) else Predictor(model)).predict(images, batch_size)


def measure(probabilities: np.ndarray, labels: np.ndarray, class_names) -> dict:
    """Metrics of predicted probabilities.

    Args:
        probabilities: float [n, classes].
        labels: int [n].
        class_names: names of all classes.

    Returns:
        test_error and test_top5_error (%), test_loss (mean cross-entropy, nat), images, per_class (list of class, precision,
        recall, f1, images) and confusion_matrix (list of rows: true class, columns: predicted class).
    """
    classes = np.arange(len(class_names))
    predicted = probabilities.argmax(axis=1)
    top5 = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
    likelihood = np.clip(probabilities[np.arange(len(labels)), labels], 1e-12, 1)
    scores = sklearn.metrics.precision_recall_fscore_support(labels, predicted, labels=classes, zero_division=0)
    per_class = [
        {"class": name, "precision": float(p), "recall": float(r), "f1": float(f), "images": int(n)}
        for name, p, r, f, n in zip(class_names, *scores, strict=True)
    ]
    return {
        "test_error": 100 * float(np.mean(predicted != labels)),
        "test_top5_error": 100 * float(np.mean((top5 != labels[:, None]).all(axis=1))),
        "test_loss": float(-np.log(likelihood).mean()),
        "images": len(labels),
        "per_class": per_class,
        "confusion_matrix": sklearn.metrics.confusion_matrix(labels, predicted, labels=classes).tolist(),
    }


def evaluate(config: HyperParameters) -> tuple[dict, RunFolder]:
    """Tests a net on the test part of the data set and writes `result.json` and `predictions.npy`.

    The net is that of `find_net`. Calling this again replaces the two files by equal ones. Of a net with several heads, the
    metrics are those of the first; "heads" has those of the others by name, and `predictions-<head>.npy` what they answered.

    Returns:
        (metrics as in `measure`, with `test_flip` also test_error_flip in %; the folder that holds them).

    Raises:
        UsageError: no such run or file, or the net does not fit the data set.
    """
    path, run = find_net(config)
    model = load_model(path, config.model_name)
    found = find_heads(model)
    names = list(config.tasks) if len(config.tasks) > 1 else [""]
    if set(found) != set(names):
        raise UsageError(
            f"{path} has the heads {', '.join(found) or 'none'}, received --heads={config.heads}; give --heads={','.join(found)}"
        )
    data = cifar10_input.load_heads(config) if len(names) > 1 else {"": cifar10_input.load_data(config)}
    for name, labelled in data.items():
        if found[name] != len(labelled.class_names):
            raise UsageError(
                f"{path} tells {found[name]} classes apart, but --dataset={config.dataset} has {len(labelled.class_names)}; give "
                "the data set it was trained on"
            )
        known = _class_names(path, found[name], name)
        if known != list(labelled.class_names) and known != _numbered_names(found[name]):
            raise UsageError(
                f"{path} tells {', '.join(known[:3])}, ... apart, but --dataset={config.dataset} has "
                f"{', '.join(labelled.class_names[:3])}, ...; give the data set it was trained on"
            )

    def answer(images):
        answers = test(model, images, config.test_batch_size)
        return answers if isinstance(answers, dict) else {"": answers}

    images = data[names[0]].test.images
    answers = answer(images)
    measured = {
        name: measure(answers[name], labelled.test.labels, labelled.class_names) for name, labelled in data.items()
    }
    if config.test_flip:
        mirrored = answer(images[:, :, ::-1])
        for name, metrics in measured.items():
            of_both = measure(answers[name] + mirrored[name], data[name].test.labels, data[name].class_names)
            metrics["test_error_flip"] = of_both["test_error"]
    result = measured.pop(names[0])
    facts = {"model": model.name, "dataset": config.dataset, "weights": config.test_ckpt_path or run.best.name}
    if not config.test_ckpt_path:
        history = run.read_history()
        last = history.iloc[-1]
        validated = "validation_error" in history
        best = history.loc[history["validation_error"].idxmin()] if validated else last
        facts |= {"best_step": int(best["step"]), "last_step": int(last["step"])}
        if validated:
            facts |= {
                "validation_error": float(best["validation_error"]),
                "last_validation_error": float(last["validation_error"]),
            }
            for name, head in measured.items():
                head["validation_error"] = float(best[f"validation_error_{name}"])
    if measured:
        facts |= {"head": names[0], "heads": measured}
    write_json(run.result, facts | result)
    for name in names:
        buffer = io.BytesIO()
        np.save(buffer, answers[name])
        place = run.predictions if name == names[0] else run.predictions.with_stem(f"{run.predictions.stem}-{name}")
        write_atomically(place, buffer.getvalue())
    return facts | result, run


def find_net(config: HyperParameters) -> tuple[str, RunFolder]:
    """What to load, and the folder for what comes out of it.

    Without `test_ckpt_path` that is `best.keras` of the run, chosen on validation images where it held some out. What `test_ckpt_path` names gets
    the folder `<runs_dir>/test-<name>-<dataset>`, so that the result of the run is left alone; the name is that of the run
    folder, with that of the file if it is one.
    """
    path = config.test_ckpt_path
    if not path:
        run = RunFolder(f"{config.runs_dir}/{config.run_name}")
        return str(run.best), run
    place = Path(path).expanduser().resolve()
    if place.is_file():
        folder = place.parent.parent if place.parent.name == "checkpoints" else place.parent
        name = f"{folder.name}-{place.stem}"
    else:
        name = f"{config.model_name}-cifar10" if path == "cifar10" else place.name  # of a run folder
    return path, RunFolder(f"{config.runs_dir}/test-{name}-{config.dataset_name}")


def predict(config: HyperParameters, paths, *, explains=False, read=None) -> tuple[pd.DataFrame, Path]:
    """The three most likely classes of picture files, also written to the folder of `find_net`.

    The file is `predictions.csv`, or `predictions-2.csv` and so on where that holds other rows.

    Of a net with several heads, those of each: the columns are then called `<head>_1`, `<head>_probability_1`, ...

    Args:
        config: settings; `test_ckpt_path` or `version` names the net.
        paths: files, or folders whose pictures are taken in the order of their names; a picture of a folder that cannot be
            decoded is named and left out.
        explains: also draw a Grad-CAM picture of each, in the folder `explanations` beside the table, with its number; see `grad_cam`.
        read: how a file becomes a picture of a shape, as in the training of the net; None = `read_image`.

    Returns:
        (table with columns image, class_1, probability_1, ... class_3, probability_3; path of the CSV file).

    Raises:
        UsageError: no pictures, or one that was named itself cannot be decoded.
    """
    path, run = find_net(config)
    model = load_model(path, config.model_name)
    files, images = read_images(paths, model.input_shape[1:], read or read_image)
    answers = test(model, images, config.test_batch_size)
    answers = answers if isinstance(answers, dict) else {"": answers}
    rows = [{"image": str(file)} for file in files]
    for head, probabilities in answers.items():
        names = _class_names(path, probabilities.shape[-1], head)
        columns = (f"{head}_", f"{head}_probability_") if head else ("class_", "probability_")
        for row, probability in zip(rows, probabilities, strict=True):
            for rank, label in enumerate(np.argsort(-probability, kind="stable")[:3], start=1):
                row[f"{columns[0]}{rank}"], row[f"{columns[1]}{rank}"] = (
                    names[label],
                    round(float(probability[label]), 4),
                )
    table = pd.DataFrame(rows)
    csv_path = _write_beside(run.path, table.to_csv(index=False))
    if explains:
        from resnet_study.reports.grad_cam import write_explanations

        for head, probabilities in answers.items():
            names = _class_names(path, probabilities.shape[-1], head)
            folder = explanations_of(csv_path) / head  # of a net with one head, whose name is "", the folder itself
            write_explanations(model, files, images, probabilities, names, folder, head=head)
    return table, csv_path


def _write_beside(folder: Path, text: str) -> Path:
    """Writes `predictions.csv`, or the next free number where it holds other rows; returns the path."""
    path, number = folder / "predictions.csv", 1
    while path.exists() and path.read_bytes() != text.encode():
        number += 1
        path = folder / f"predictions-{number}.csv"
    write_atomically(path, text)
    return path


def explanations_of(csv_path: Path) -> Path:
    """The folder of the explanations of a table of predictions: it has the number of the table."""
    return csv_path.with_name(csv_path.stem.replace("predictions", "explanations"))


def _class_names(path: str, classes: int, head: str = "") -> list[str]:
    """Class names from the `data.json` of the run that a net lies in; shipped weights know CIFAR-10's."""
    if path == "cifar10":
        return list(CIFAR10_CLASSES)
    place = Path(path).expanduser()
    for folder in (place, place.parent, place.parent.parent):
        run = RunFolder(folder)
        if run.data.is_file() and len(names := run.read_class_names(head)) == classes:
            return names
    return _numbered_names(classes)


def _numbered_names(classes: int) -> list[str]:
    """For a net that lies nowhere near the names of its classes."""
    return [f"class {index}" for index in range(classes)]
