"""A model on labelled images that it was not trained on: all of them, each once, in a folder of their own.

evaluate_others(...)      metrics and predictions of all images of a labelled data set
predict_unlabelled(...)   predictions of the test images of a run that have no labels

Below the run folder lies `evaluations/<name of the images>/` with `result.json` and the files of `predict_files`; the `result.json` and
figures of the run itself are left alone. For a model that is given by its file that is the folder of `evaluation.find_model`.
"""

import dataclasses
import itertools
from pathlib import Path

from resnet_study.class_names import labels_by_name
from resnet_study.data.label_table import SEPARATORS, split_cell
from resnet_study.data.labelled_files import LabelledFiles
from resnet_study.errors import UsageError, say_once
from resnet_study.evaluation import find_class_folders, find_class_names, find_model, is_free_for
from resnet_study.exporting.exported_model import open_model
from resnet_study.files import read_json, write_json
from resnet_study.metrics import measure
from resnet_study.predict_files import ImageList, NoImageError, predict_files
from resnet_study.run_folder import RunFolder
from resnet_study.shared_settings import SharedSettings
from resnet_study.strings import as_text, composed


def evaluate_others(config: SharedSettings, found: LabelledFiles) -> tuple[dict, RunFolder]:
    """Tests a model on all images of a labelled data set, a few in memory at a time; gone on with after a kill.

    Args:
        config: settings of either program; `test_ckpt_path` or `version` names the model.
        found: of `data.new_images.find_new`; its classes are some or all of those that the model knows.

    Returns:
        (content of `result.json`, with the metrics as the part "test"; the folder that holds it).

    Raises:
        UsageError: the model does not know a class, or images cannot be read.
    """
    path, run = find_model(config)
    model = open_model(path, config.shipped_name)
    for line in found.found:
        say_once(line)
    names = find_class_names(path, model)
    if len(names) > 1:
        raise UsageError(f"{path} has the heads {', '.join(names)}, expected one; labels of folders are for one head")
    told, (names,) = names, names.values()
    folders = find_class_folders(path)
    folders = folders if len(folders) == len(names) else []
    if told.multi_label and not found.multi_label:
        found = _split_labels(found, (*names, *folders))
    rank = _match_classes(found, folders, names, path)
    if found.multi_label and not told.multi_label:
        raise UsageError(f"{path} gives one label for each image, but {found.place} has several; give another model")
    members = sorted(pair for part in found.parts.values() for pair in part)
    images = ImageList(
        [file for file, _ in members],
        frozenset(file for file, _ in members)
        if (found.on_bad_image or config.on_bad_image) == "refuse"
        else frozenset(),
        [()] * len(members),
    )
    labels = found.number_labels(members, rank, len(names))
    true_names = [
        "; ".join(names[rank[name]] for name in (label if found.multi_label else (label,))) for _, label in members
    ]
    place = Path(found.place).resolve().name or "images"  # "..", "." and "/" name no folder
    base = run.path if config.test_ckpt_path else run.path / "evaluations" / place.removesuffix(".zip")
    weights = config.test_ckpt_path or run.best.name
    folder = _free_folder(base, found.fingerprint(), weights)
    answers = predict_files(config, path, model, images, folder.path, true_names)
    result = {
        "model": model.name,
        "dataset": place,
        "weights": weights,
        "found": found.place,
        "fingerprint": found.fingerprint(),
        "answers": answers.csv_path.name,  # by another number where other weights have answered before
        "test": measure(answers.probabilities[""], labels[answers.indices], names),
    }
    write_json(folder.result, result)
    predict_unlabelled(config, folder, path, model, found.unlabelled)
    return result, folder


def _split_labels(found: LabelledFiles, names) -> LabelledFiles:
    """Labels for a model of several where the table did not show what stands between them: whatever leaves names that the model knows."""
    known = {name.lower() for name in names}
    # Where nothing fits, the message is to name the cells as they are.
    for mark in ("\0", *SEPARATORS.values(), "\0"):
        split = {label: split_cell(label, mark) for label in found.classes}
        classes = tuple(sorted({name for labels in split.values() for name in labels}))
        if known.issuperset(map(str.lower, classes)):
            break
    parts = {part: [(file, split[label]) for file, label in members] for part, members in found.parts.items()}
    return dataclasses.replace(found, parts=parts, classes=classes, class_names=classes, multi_label=True)


def _match_classes(found, folders, names, path) -> dict[str, int]:
    """The label of each class of the images: by the folder's name, or the name that is shown, in any case."""
    known = labels_by_name(names, folders)
    rank = {
        name: next((known[key] for key in (name, shown, name.lower(), shown.lower()) if key in known), None)
        for name, shown in zip(found.classes, map(composed, found.class_names), strict=True)
    }
    if not rank:
        raise UsageError(f"{found.place} must hold images of classes that {path} knows ({', '.join(names[:5])}, ...), received none; "
                         "put those of each class into a folder of its name, or give --labels=FILE.csv")  # fmt: skip
    if unknown := [name for name, label in rank.items() if label is None]:
        raise UsageError(
            f"{path} tells {', '.join(names[:3])}, ... apart, but {found.place} has {', '.join(map(as_text, unknown[:3]))}"
            f"{', ...' if len(unknown) > 3 else ''}; rename or take out what the model does not know"
        )
    return rank


def _free_folder(base: Path, fingerprint: str, weights: str) -> RunFolder:
    """The folder for what comes out: `base`, or with the next free number where that holds the result of other images or of another model."""
    for number in itertools.count(1):
        folder = RunFolder(base.with_name(base.name + f"-{number}" * (number > 1)))
        tested = read_json(folder.result, {}).get("fingerprint") if folder.result.is_file() else fingerprint
        if tested == fingerprint and is_free_for(folder, weights):
            return folder


def predict_unlabelled(config, run: RunFolder, path: str, model, files: tuple[str, ...]) -> None:
    """Asks a model about the test images of its data set that have no labels, and says where the answers are: `unlabelled/` of the run."""
    if not files:
        return
    images = ImageList(list(files), frozenset(), [()] * len(files))
    try:
        answers = predict_files(config, path, model, images, run.path / "unlabelled")
    except NoImageError as error:  # the result is about others
        print(f"test images without labels, not predicted: {error}")
        return
    print(f"{len(answers.files):,} test images without labels: predicted, not scored, in {answers.csv_path}")
