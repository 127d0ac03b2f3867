"""Cross-validation: one recipe on each fold of a small data set of one's own, the mean and spread of what it reaches, and an answer for each
image by a network that never saw it.

A run of a fold lies in `runs/<name>-fold<K>of<N>/`, as if trained by itself; the summary in `runs/<name>-folds<N>/`, or in the folder of
--version. The same command goes on after a kill: what is finished stays, what was begun goes on.
"""

import dataclasses
import datetime
import statistics
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import tensorflow as tf

from cifar10_train import Interrupted
from resnet_study.class_names import THRESHOLD
from resnet_study.data.folder_data import find_parts, list_classes
from resnet_study.data.image_files import read_image
from resnet_study.errors import UsageError
from resnet_study.evaluation import read_result
from resnet_study.files import read_json, write_atomically, write_json
from resnet_study.metrics import measure
from resnet_study.reports.canvas import STYLE, save_figure
from resnet_study.reports.comparison_page import print_study
from resnet_study.reports.figures import draw_confusion
from resnet_study.reports.tables import escape, table_lines
from resnet_study.run_folder import RunFolder, run_folder_of
from resnet_study.run_images import check_own
from resnet_study.strings import as_text, composed
from resnet_study.studies.runs import (
    check_study_folder,
    describe,
    forget_models,
    format_spread,
    read_finished,
    result_row,
    write_study,
)

# Metrics of the summary: title, digits.
_ONE_LABEL = {"accuracy": ("accuracy, %", 2), "balanced_accuracy": ("balanced accuracy, %", 2), "macro_f1": ("macro F1", 3), "loss": ("loss", 4)}  # fmt: skip
_MULTI_LABEL = {"mean_average_precision": ("mean average precision", 4), "macro_f1": ("macro F1", 3), "accuracy": ("all classes right, %", 2), "loss": ("loss", 4)}  # fmt: skip
_MOST_CLASSES = 50  # of a table and a confusion matrix
_BETWEEN = "; "  # several classes of a cell
_ANSWERS = "out_of_fold.csv"  # of a run: written last, so that it tells that the run is finished


def cross_validate(config, finish: Callable, overwrite: bool) -> Path:
    """Trains and tests what is not finished of the folds, in order, and sums them up.

    Args:
        config: settings of either program, with `folds` and without `fold`.
        finish: function of the settings of one fold, which trains, tests and draws its run, or goes on with that.
        overwrite: whether it was asked for, which is refused.

    Returns:
        The folder: report.html, report.md, result.json, out_of_fold.csv, study.json, confusion.png.

    Raises:
        UsageError: before any work: a folder that holds something else, a class with fewer images than folds. Later: as training.
        Interrupted: as `Train.train`.
    """
    summary = run_folder_of(config)
    check_study_folder(summary, "train")
    if overwrite:
        raise UsageError(
            "--overwrite is for single runs; a cross-validation keeps what is finished, delete run folders by hand"
        )
    if config.strategy == "multi_worker":
        raise UsageError(
            "--folds trains one fold after the other, received --strategy=multi_worker; give --fold=K too, once for each"
        )
    folds = []
    for number in range(1, config.folds + 1):
        folds.append(dataclasses.replace(config, fold=number, version=""))
        if config.version:
            folds[-1] = dataclasses.replace(folds[-1], version=config.version + folds[-1].fold_name)
        run_folder_of(folds[-1]).check(folds[-1], resume=True, overwrite=False)
        found = list_classes(folds[-1])
        if run_folder_of(folds[-1]).data.is_file():
            check_own(run_folder_of(folds[-1]), found.fingerprint(), str(found.place))
        find_parts(found, folds[-1])
    if found.multi_label and (named := [name for name in found.class_names if _BETWEEN in name]):
        raise UsageError(
            f"--folds writes the classes of an image with '{_BETWEEN}' between them, received a class {named[0]!r}; name it otherwise"
        )
    tf.get_logger().setLevel("ERROR")  # it warns that `predict` is built anew for each model
    for number, fold in enumerate(folds, start=1):
        run = run_folder_of(fold)
        answers = run.path / _ANSWERS
        if _is_finished(fold):
            continue
        answers.unlink(missing_ok=True)
        print(f"fold {number} of {config.folds}{_time_left(folds)}", flush=True)
        try:
            finish(fold)
            write_atomically(answers, _list_answers(fold, run).to_csv(index=False))
        except (Interrupted, UsageError) as stop:
            again = "; the same command goes on with the others" if isinstance(stop, Interrupted) else ""
            raise type(stop)(f"fold {number} of {config.folds}: {str(stop).split('; go on with')[0]}{again}") from stop
        forget_models()
    return _sum_up(config, folds, summary)


def _is_finished(fold) -> bool:
    """Whether the answers of a fold are those of the training that is asked for: a finished run may be asked for more steps, or have got them."""
    run = run_folder_of(fold)
    answers = run.path / _ANSWERS
    if not answers.is_file() or fold.flags_beside(run.read_config(type(fold))):
        return False
    read_from = [path for path in (run.error_csv, run.result) if path.is_file()]
    return all(answers.stat().st_mtime >= path.stat().st_mtime for path in read_from)


def _time_left(folds) -> str:
    """How long the unfinished folds will take, judged by the others."""
    runs = [run_folder_of(fold) for fold in folds if _is_finished(fold)]
    seconds = [float(run.read_history().iloc[-1]["seconds"]) for run in runs]
    left = statistics.mean(seconds) * (len(folds) - len(seconds)) if seconds else 0
    return f", about {datetime.timedelta(seconds=round(left))} left" if seconds else ""


def _list_answers(config, run: RunFolder) -> pd.DataFrame:
    """What the network of a fold says of its test images: image, fold, true class, predicted class, probability of each class."""
    names = run.read_class_names()
    folders = read_json(run.data, {"class_folders": [str]})["class_folders"]
    rank = {composed(folder): label for label, folder in enumerate(folders)}
    found = list_classes(config)
    members = found.in_order(find_parts(found, config)["test"], rank)
    tested = read_result(run, "test")["test"]["images"]
    if len(members) != tested:  # some cannot be read, and are skipped
        members = [pair for pair in members if _is_readable(pair[0], config)]
    probabilities = run.read_predictions((len(members), len(names)))
    labels = found.number_labels(members, rank)
    predicted = probabilities >= THRESHOLD if found.multi_label else probabilities.argmax(axis=1)

    def name_all(numbers):
        return [
            _BETWEEN.join(names[label] for label in np.flatnonzero(row)) if found.multi_label else names[row]
            for row in numbers
        ]

    table = {
        "image": [as_text(file[len(found.place) :].lstrip("/\\")) for file, _ in members],
        "fold": config.fold,
        "true_class": name_all(labels),
        "predicted_class": name_all(predicted),
    }
    return pd.DataFrame(
        table | {f"probability of {name}": column for name, column in zip(names, probabilities.T, strict=True)}
    )


def _is_readable(file, config) -> bool:
    try:
        read_image(Path(file), (8, 8, 3), **config.reading())
    except UsageError:
        return False
    return True


def _sum_up(config, folds, summary: RunFolder) -> Path:
    finished = [read_finished(fold) for fold in folds]
    names = finished[0].run.read_class_names()
    for each in finished:
        if each.run.read_class_names() != names:
            raise UsageError(f"{each.run} has other classes than {finished[0].run}; delete one of them and repeat")
    texts = dict.fromkeys(("image", "true_class", "predicted_class"), str)
    answers = pd.concat(
        [pd.read_csv(each.run.path / _ANSWERS, keep_default_na=False, dtype=texts) for each in finished]
    )
    answers = answers.sort_values("image", kind="stable")
    multi_label = "mean_average_precision" in finished[0].test
    metrics, truth = _MULTI_LABEL if multi_label else _ONE_LABEL, answers["true_class"]
    if multi_label:
        labels = np.array([[name in cell.split(_BETWEEN) for name in names] for cell in truth], int)
    else:
        labels = truth.map({name: label for label, name in enumerate(names)}).to_numpy()
    pooled = measure(answers.iloc[:, 4:].to_numpy(), labels, names)
    values = {name: [each.test[name] for each in finished] for name in metrics}
    folder = summary.path
    write_atomically(folder / _ANSWERS, answers.to_csv(index=False))
    drawn = []
    if len(names) <= _MOST_CLASSES and not multi_label:
        with matplotlib.rc_context(STYLE):
            title = f"{config.model_name} on {config.dataset_name}, {config.folds} folds"
            figure = draw_confusion(np.array(pooled["confusion_matrix"]), names, title, "out-of-fold")
            drawn = [save_figure(figure, folder / "confusion.png")]
    rows = [
        result_row(finished, f"{name}, mean over folds", values[name], unit="%" if "%" in title else "")
        | {"over": "folds"}
        for name, (title, _) in metrics.items()
    ]
    write_study(
        folder,
        config.without_places().command,
        rows,
        _report(finished, metrics, values, pooled),
        drawn,
        [each.run.path.name for each in finished],
    )
    spreads = {name: describe(numbers) | {"values": numbers} for name, numbers in values.items()}
    facts = {"model": config.model_name, "dataset": config.dataset_name, "folds": config.folds}
    write_json(summary.result, facts | {"metrics": spreads, "out_of_fold": pooled})
    print_study(folder)
    return folder


def _report(finished, metrics, values, pooled) -> str:
    cells = [
        [
            each.config.fold,
            each.test["images"],
            *(f"{each.test[name]:.{digits}f}" for name, (_, digits) in metrics.items()),
        ]
        for each in finished
    ]
    cells.append(["**mean ± standard deviation**", pooled["images"]])
    cells[-1] += [f"**{format_spread(values[name], digits)}**" for name, (_, digits) in metrics.items()]
    titles = [title for title, _ in metrics.values()]
    together = ", ".join(f"{title} {pooled[name]:.{digits}f}" for name, (title, digits) in metrics.items())
    low, high = pooled["accuracy_interval"]
    chosen = (
        "Weights were chosen on validation images of the other folds."
        if finished[0].config.chosen_by(False)
        else "The weights are the last of the training."
    )
    lines = [
        f"**{len(finished)} folds**: each image was tested once, by the network of the fold that it is the test part of. {chosen}",
        "The standard deviation is that of the sample of folds; their training images overlap, so",
        "it is no standard error of the mean.",
        "",
        *table_lines(["fold", "test images", *titles], "lrrrrr", cells),
        "",
        f"All {pooled['images']:,} answers together: {together} (95 % interval of the accuracy {low:.1f} .. {high:.1f} %). Each is a row of `{_ANSWERS}`.",
    ]
    leaks = [str(each.config.fold) for each in finished if read_json(each.run.data, {}).get("leak_count")]
    if leaks:
        lines += [
            "",
            f"Equal images lie in two parts of fold {', '.join(leaks)}, so errors there look too small; `data.json` of the runs names the first.",
        ]
    if len(pooled["per_class"]) <= _MOST_CLASSES:
        titles = {"precision": "precision", "recall": "recall", "f1": "F1", "average_precision": "average precision"}
        shown = [name for name in titles if name in pooled["per_class"][0]]
        cells = [
            [escape(row["class"]), row["images"], *(f"{row[name]:.3f}" for name in shown)]
            for row in pooled["per_class"]
        ]
        header = ["class", "images", *(titles[name] for name in shown)]
        lines += ["", *table_lines(header, "lr" + "r" * len(shown), cells)]
    return "\n".join(lines)
