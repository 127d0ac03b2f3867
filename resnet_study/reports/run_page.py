"""`report.html` of a run: everything about it in one file, made from its run folder and the images it was tested on."""

import contextlib
import dataclasses
from pathlib import Path

import jinja2
import numpy as np

import cifar10_input
from flowers.data import load_images
from flowers.image_part import ImagePart
from hyper_parameters import HyperParameters
from resnet_study.data.image_data import Split
from resnet_study.errors import UsageError, one_line, say_once
from resnet_study.evaluation import check_current, read_result
from resnet_study.files import is_kind, read_json, read_text
from resnet_study.reports import plots
from resnet_study.reports.gallery import make_gallery, read_figure
from resnet_study.reports.page import render_markdown, write_page
from resnet_study.reports.published import list_numbers, published_error, settings_class
from resnet_study.run_folder import RunFolder
from resnet_study.run_images import check_own
from resnet_study.strings import as_text

_SHEETS = {"augmentation": "Augmentation", "samples": "Training images", "heads": "Heads"}
_MOST_CLASSES = 20  # of a confusion matrix; beyond, a list of confusions stands for it
_CONFUSIONS = 100
_ROWS = 200  # of the table of the curves
_FILES = {
    "best.keras": "the model with the lowest validation error (flowers, several labels: loss); without validation, and with --sparsity, the newest",
    "final.keras": "the model at the end",
    "config.json": "settings",
    "environment.json": "versions, devices and commit of each start",
    "data.json": "classes and numbers of images",
    "error.csv": "a row per report",
    "result.json": "what was measured",
    "predictions.npy": "probabilities of the tested images",
    "checkpoints": "to go on from",
    "figures": "figures as PNG",
    "tensorboard": "curves for TensorBoard",
}


def find_tested_images(run: RunFolder, **places: str | None) -> Split | ImagePart:
    """The images that `predictions.npy` of a run is about, read from its data set.

    Args:
        run: a run of either program.
        **places: data_dir, labels and label_separator, where the data set lies; None = as when the run began.

    Returns:
        The images; none where they have changed since the run was trained.

    Raises:
        UsageError: there is no such data set.
    """
    config = run.read_config(settings_class(run))
    config = dataclasses.replace(config, **{name: value for name, value in places.items() if value is not None})
    data = (
        cifar10_input.load_data(config)
        if isinstance(config, HyperParameters)
        else load_images(dataclasses.replace(config, find_leaks="off"), run)
    )
    try:
        check_own(run, data.fingerprint, data.found)
    except UsageError as error:
        say_once(f"note: the page shows no images: {error}")
        return Split(np.zeros((0, 1, 1, 3), np.uint8), np.zeros(0, np.int32))
    return data.test if isinstance(config, HyperParameters) else getattr(data, read_result(run)["predictions"])


def write_run_page(run: RunFolder, tested: Split | ImagePart) -> Path:
    """Writes `report.html` of a tested run.

    Args:
        run: a run of either program.
        tested: see `find_tested_images`.

    Returns:
        Path of the page.

    Raises:
        UsageError: the run has not been trained and tested, or a file of it is damaged.
    """
    with naming_damage(run):
        return _write(run, tested)


@contextlib.contextmanager
def naming_damage(run: RunFolder):
    """Says which run it is where something in its files is not what a run writes."""
    try:
        yield
    except UsageError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, jinja2.UndefinedError) as error:
        raise UsageError(f"a file in {run} holds what no run writes ({one_line(error)}); test the run again") from error


def _write(run, tested):
    config, recipe, numbers = list_numbers(run)
    check_current(run)
    result, history = read_result(run), run.read_history()
    part = result["predictions"]
    metrics = result[part]
    names = run.read_class_names(result.get("head", "")) or run.read_class_names()
    probabilities = run.read_predictions((metrics["images"], len(names)))
    # Where images that are read one by one were skipped, nobody knows which answer is of which image.
    multi_label = "mean_average_precision" in metrics
    known = len(tested.labels) == len(probabilities) and not multi_label
    gallery = make_gallery(tested, probabilities) if known else []
    published = published_error(numbers, part)
    counted = "any class wrong:" if multi_label else "top-1"
    curves = {"error": plots.draw_errors(history, result, part, published, config.extended_at(history), counted)}
    x_range = curves["error"].x_range
    curves["loss"] = plots.draw_losses(history, 2 if multi_label else len(names), x_range)
    curves["rate"], curves["pace"] = plots.draw_pace(history, x_range)
    if "reliability" in metrics:  # which results of earlier versions lack
        curves["reliability"] = plots.draw_reliability(metrics)
    matrix = np.array(metrics.get("confusion_matrix", [[0]]))
    layers, planned = run.figures / "layers.md", getattr(config, "train_steps", None)
    return write_page(
        run.page,
        "run.html",
        curves,
        name=run.path.name,
        title=f"{config.model_name} on {config.dataset_name}",
        recipe=recipe,
        command=config.command,
        result=result,
        part=part,
        metrics=metrics,
        numbers=numbers,
        published=published,
        history=_thin(history),
        columns=[name for name in history.columns if name != "train_error_smoothed"],
        last=history.iloc[-1],
        planned=None if result["last_step"] == planned or run.has_final() else planned,  # of a run that was stopped
        names=names,
        multi_label=multi_label,
        matrix=_describe_cells(matrix) if len(names) <= _MOST_CLASSES else None,
        confusions=_list_confusions(matrix),
        gallery=gallery,
        images_known=known,
        settings=_list_settings(config),
        counts=_read_counts(run),
        chosen=config.chosen_by(multi_label) is not None,
        found=as_text(str(read_json(run.data, dict).get("found", ""))),
        leaks=read_json(run.data, dict).get("leak_count") or 0,
        starts=_read_starts(run),
        layers=render_markdown(read_text(layers)) if layers.is_file() else None,
        sheets=_read_sheets(run),
        files=_list_files(run),
    )


def _thin(history):
    """Rows of the table below the curves: every one, or as many as a reader can use, the last among them."""
    step = -(-len(history) // _ROWS)
    return history.iloc[::-step].iloc[::-1].to_dict("records")


def _describe_cells(matrix):
    """Rows of cells: count, and strength of the shade in %, the root of the share of the row, so that few are seen too."""
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    return [
        [{"count": int(count), "shade": round(80 * float(share) ** 0.5)} for count, share in zip(*row, strict=True)]
        for row in zip(matrix, shares, strict=True)
    ]


def _list_confusions(matrix):
    """The most frequent confusions: label, predicted, count, share of the true class in %."""
    wrong = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS]
    cells = [(*divmod(int(place), len(matrix)), int(wrong.flat[place])) for place in order]
    return [
        {
            "label": label,
            "predicted": predicted,
            "count": count,
            "share": 100 * count / max(1, int(matrix[label].sum())),
        }
        for label, predicted, count in cells
        if count
    ]


def _list_settings(config):
    """Every setting: name, value, what it would be without a flag, whether it differs, meaning."""
    usual = config.as_preset() if isinstance(config, HyperParameters) else config.as_usual()
    rows = []
    for field in dataclasses.fields(config):
        value, default = getattr(config, field.name), getattr(usual, field.name)
        rows.append(
            {
                "name": field.name,
                "value": value,
                "default": default,
                "differs": value != default and not field.metadata["operational"],
                "help": field.metadata["help"],
            }
        )
    return sorted(rows, key=lambda row: not row["differs"])


def _read_sheets(run):
    """(heading, data URI) of the sheets of images that were drawn."""
    found = [(heading, run.figures / f"{name}.png") for name, heading in _SHEETS.items()]
    return [(heading, read_figure(path, 1100, "test the run again")) for heading, path in found if path.is_file()]


def _read_counts(run):
    """Numbers of images by part; nothing where `data.json`, of an earlier version, does not tell."""
    counts = read_json(run.data, dict).get("images")
    kind = dict.fromkeys(("training", "validation"), int)
    return counts if is_kind(counts, kind) else {}


def _read_starts(run):
    """What `environment.json` notes of each start, as texts; runs of the first versions have no such file."""
    rows = []
    for start in run.read_starts():
        gpus, packages = start.get("gpus"), start.get("packages")
        machine = [*(gpus if is_kind(gpus, [str]) else []), start.get("processor"), start.get("platform")]
        software = [f"Python {start.get('python', '?')}"]
        software += [f"{name} {version}" for name, version in (packages if is_kind(packages, dict) else {}).items()]
        row = {name: start.get(name) for name in ("step", "dtype_policy", "commit", "command", "cores")}
        row |= {"machine": ", ".join(str(part) for part in machine if part), "software": ", ".join(software)}
        rows.append({name: "" if value is None else value for name, value in row.items()})
    return rows


def _list_files(run):
    """What lies in the run folder: name, bytes, meaning."""
    rows = []
    for name, meaning in _FILES.items():
        path = run.path / name
        files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
        if files:
            rows.append({"name": name, "bytes": sum(each.stat().st_size for each in files), "meaning": meaning})
    return rows
