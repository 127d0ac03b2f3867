"""How a run looks: figures and tables, made from its run folder only, and the project's table of results.

    draw(run)              figures/*.png and figures/layers.md of one run
    publish(run)           small copies in results/<run name>/, a row in results/<experiment>.json, results/README.md
    publish_study(folder)  the same for a study of several runs, see `comparative_study`

Colours are Okabe and Ito's, which colour-blind readers tell apart; lines differ in dash too, for print without colour.
"""

import dataclasses
import io
import re
import shutil
import statistics
import textwrap
from pathlib import Path

import matplotlib
import numpy as np

import cifar10_input
import cifar10_test
import model_registry
from hyper_parameters import PRESETS, HyperParameters, Settings, UsageError, from_preset
from run_folder import RunFolder, read_json, write_atomically, write_json

matplotlib.use("Agg")  # draws to files only, with or without a screen
from matplotlib import pyplot as plt

BLACK, ORANGE, BLUE, GREEN, VERMILION = "#000000", "#E69F00", "#0072B2", "#009E73", "#D55E00"
STYLE = {
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "text.parse_math": False,  # a class may be called "$"
}
LU_SONG = "Lu & Song, table 1"
# (family, data set) -> (highest training accuracy, highest test accuracy) of all epochs, in %
LU_SONG_TABLE = {
    ("resnet", "mnist"): (100.000, 99.665),
    ("lenet", "mnist"): (99.523, 99.110),
    ("alexnet", "mnist"): (100.000, 99.440),
    ("resnet", "cifar10"): (92.890, 86.600),
    ("lenet", "cifar10"): (80.594, 63.470),
    ("alexnet", "cifar10"): (99.974, 84.140),
}
_FAMILIES = {"resnet": r"resnet(9|20|32|44|56|110)", "lenet": r"lenet.*", "alexnet": r"alexnet.*"}
TESTED = {
    "test_error": float,
    "test_top5_error": float,
    "best_step": int,
    "confusion_matrix": [[int]],
}
_ROW = dict.fromkeys(
    ("dataset", "model", "preset", "metric", "unit", "runs", "published_source", "hardware", "commit"), object
) | {
    "value": (float, None),
    "std": (float, None),
    "published": (float, None),
    "command": str,
    "images_seen": float,
    "wall_seconds": float,
    "run": (str, None),
}


def draw(run: RunFolder, data_dir: str | None = None) -> list[Path]:
    """Draws every figure of a tested run into `run.figures`; returns their paths.

    Args:
        run: the run folder.
        data_dir: where the data set lies; None = where it lay when the run began.

    Raises:
        UsageError: the run has not been trained and tested.
    """
    config = run.read_config()
    config = dataclasses.replace(config, data_dir=config.data_dir if data_dir is None else data_dir)
    result, names, history = read_json(run.result, TESTED), run.read_class_names(), run.read_history()
    data = cifar10_input.load_data(config)
    training, _ = cifar10_input.split_data(data, config)
    if len(names) != len(data.class_names) or {len(names)} != {
        len(row) for row in [result["confusion_matrix"], *result["confusion_matrix"]]
    }:
        raise UsageError(
            f"{run.data} and {run.result} must tell the {len(data.class_names)} classes of {config.dataset} apart, received "
            f"{len(names)} and {len(result['confusion_matrix'])}; repeat --mode=train --resume"
        )
    probabilities = run.read_predictions((len(data.test), len(names)))
    # The net and the data set stand before the preset; another seed is the same recipe.
    named = {
        name: getattr(config, name)
        for name in ("seed", "model", "num_residual_blocks", "dataset", "heads", *config.net_options)
    }
    changed = len(config.flags_beside(from_preset(config.preset, **named)))
    title = f"{_name_net(config.model_name, _net_choices(config))} on {config.dataset}, preset {config.preset}"
    title += f" with {changed} other setting{'s' * (changed > 1)}" if changed else ""
    published = published_number(config)
    more = {
        "augmentation": lambda: _draw_augmentation(training, config),
        "samples": lambda: draw_samples(training, names, config.dataset),
    }
    if len(config.tasks) > 1 and "validation_error" in history:
        more["heads"] = lambda: _draw_heads(history, title, list(config.tasks))
    return draw_figures(run, title, history, result, names, data.test, probabilities, more, published=published)


def draw_figures(run, title, history, result, names, pictures, probabilities, more, *, published=None, part="test"):
    """Draws what every run has: curves, predictions, confusion matrix (up to 20 classes), layer table.

    Args:
        run: the run folder.
        title: for all figures.
        history: table of `error.csv`.
        result: dict with test_error (%), best_step and confusion_matrix.
        names: class names.
        pictures: `cifar10_input.Split` of the first tested pictures.
        probabilities: of these, float [n, classes].
        more: {name: function that draws a figure}.
        published: see `published_number`.
        part: what the net was tested on.

    Returns:
        Paths of the files.
    """
    with plt.rc_context(STYLE):
        figures = {
            "error_curve": _draw_percent(history, title, "top-1 error (%)", result, 1, published, part),
            "accuracy_curve": _draw_percent(history, title, "top-1 accuracy (%)", result, -1, published, part),
            "loss_curve": _draw_loss(history, title, len(names)),
            **{name: function() for name, function in more.items()},
            "predictions": _draw_predictions(pictures, probabilities, names, title, part),
        }
        if len(names) <= 20:
            figures["confusion_matrix"] = draw_confusion(np.array(result["confusion_matrix"]), names, title)
        paths = [save_figure(figure, run.figures / f"{name}.png") for name, figure in figures.items()]
    layers = run.figures / "layers.md"
    write_atomically(layers, describe_layers(cifar10_test.load_model(str(run.best))))
    return [*paths, layers]


def save_figure(figure, path: Path) -> Path:
    """Writes a figure as PNG, see `write_atomically`, and closes it; returns the path."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    write_atomically(path, buffer.getvalue())
    return path


def published_number(config: HyperParameters) -> tuple[str, float, str] | None:
    """(metric, value in %, source) that a run is held against, or None."""
    preset = PRESETS[config.preset]
    if is_another_net(config) or config.train_steps != from_preset(config.preset).train_steps:
        return None  # a shortened recipe is no repetition of anybody's
    if config.dataset == "cifar10":
        if preset.published and config.model_name == preset.settings["model"]:
            return preset.published
        spec = model_registry.find(config.model_name)
        if spec.cifar10_error:
            return "test_error", spec.cifar10_error, spec.source
    accuracies = LU_SONG_TABLE.get((find_family(config.model_name), config.dataset))
    if accuracies:
        return "test_error", round(100 - accuracies[1], 3), f"{LU_SONG}: the epoch of the highest test accuracy"
    return None


def is_another_net(config: HyperParameters) -> bool:
    """Whether heads, or options that its preset has not, make the net another one than that of the published number."""
    own = from_preset(config.preset, model=config.model_name).net_options
    return bool(config.heads) or config.net_options != own


def find_family(model_name: str) -> str | None:
    """Under which name of Lu & Song's table a net is held: resnet (activation after the addition, as theirs), lenet, alexnet."""
    return next((name for name, pattern in _FAMILIES.items() if re.fullmatch(pattern, model_name)), None)


def describe_layers(model) -> str:
    """A Markdown table of the layers of a net: output shape, trainable and non-trainable parameters, MB of float32 weights."""
    rows = []
    for layer in model.layers:
        trainable = sum(int(np.prod(weight.shape)) for weight in layer.trainable_weights)
        fixed = sum(int(np.prod(weight.shape)) for weight in layer.non_trainable_weights)
        shape = " x ".join(str(size) for size in layer.output.shape[1:])
        rows.append((layer.name, type(layer).__name__, shape, trainable, fixed))
    total = ("total", "", "", sum(row[3] for row in rows), sum(row[4] for row in rows))
    lines = ["| layer | type | output | trainable | non-trainable | MB |", "|---|---|---|---:|---:|---:|"]
    lines += [
        f"| {name} | {kind} | {shape} | {trainable:,} | {fixed:,} | {(trainable + fixed) * 4 / 2**20:.3f} |"
        for name, kind, shape, trainable, fixed in [*rows, total]
    ]
    return "\n".join(lines) + "\n"


def _draw_curves(history, title, label, curves):
    figure, axes = plt.subplots(figsize=(6.4, 4))
    for name, values, options in curves:
        axes.plot(history["step"], values, label=name, **options)
    axes.set(title=title, xlabel="step", ylabel=label)
    axes.set_xlim(left=0)
    axes.legend()
    return figure


def _draw_percent(history, title, label, result, sign, published, part):
    """Error (`sign` 1) or accuracy (`sign` -1), in %, against step: figures 6 and 7 of Liang 2020.

    The one test of the run is a diamond, the published number a dotted line.
    """

    def percent(column):
        return history[column] if sign == 1 else 100 - history[column]

    averaged = "validation_error_unaveraged" in history
    curves = [
        ("training (augmented)", percent("train_error"), {"color": ORANGE, "linewidth": 1, "alpha": 0.6}),
        ("training, smoothed", percent("train_error_smoothed"), {"color": ORANGE, "linestyle": "--"}),
    ]
    if "validation_error" in history:
        name = "validation, averaged weights" if averaged else "validation"
        curves.append((name, percent("validation_error"), {"color": BLUE, "marker": "o", "markersize": 3}))
    if averaged:
        last = percent("validation_error_unaveraged")
        curves.append(("validation, last weights", last, {"color": GREEN, "linestyle": "-.", "linewidth": 1}))
    if "test_error" in history:
        curves.append(
            ("test, only watched", percent("test_error"), {"color": BLACK, "linestyle": "-.", "linewidth": 1})
        )
    figure = _draw_curves(history, title, label, curves)
    axes = figure.axes[0]
    value = result["test_error"] if sign == 1 else 100 - result["test_error"]
    if published:
        metric, error, _ = published
        level = error if sign == 1 else 100 - error
        axes.axhline(
            level, color=BLACK, linewidth=1, linestyle=":", label=f"published {metric.split('_')[0]}: {level:.2f} %"
        )
    legend = f"{part}, weights of step {result['best_step']:,}: {value:.2f} %"
    axes.plot(result["best_step"], value, "D", color=VERMILION, label=legend, clip_on=False, zorder=5)
    lowest = history["validation_error"].min() if "validation_error" in history else result["test_error"]
    # Beside the error of the untrained net, those of MNIST would lie on the axis.
    shown = max(1.0, 5 * lowest) if lowest < 2 else None
    axes.set_ylim(*((0, shown) if sign == 1 else (shown and 100 - shown, 100)))
    axes.legend()
    return figure


def _draw_heads(history, title, heads):
    """Validation error of each head against step."""
    looks = [(BLUE, "-"), (VERMILION, "--"), (GREEN, "-."), (ORANGE, ":")]
    columns = ["validation_error", *(f"validation_error_{head}" for head in heads[1:])]
    curves = [
        (head, history[column], {"color": color, "linestyle": line, "marker": "o", "markersize": 3})
        for head, column, (color, line) in zip(heads, columns, looks, strict=False)
    ]
    figure = _draw_curves(history, title, "validation top-1 error (%)", curves)
    figure.axes[0].set_ylim(bottom=0)
    return figure


def draw_epochs(history, title, switch_epoch=0):
    """Accuracy and loss against epochs, training and validation: figure 3 of Waghmode, Ramisetty & Jidugu.

    Args:
        history: table of `error.csv`.
        title: of the figure.
        switch_epoch: a line marks where fine-tuning begins; 0 = nowhere.
    """
    figure, panels = plt.subplots(1, 2, figsize=(9.6, 4))
    figure.suptitle(title)
    epochs = history["epoch"]
    accuracies = 100 - history["train_error"], 100 - history["validation_error"]
    losses = history["train_loss"], history["validation_loss"]
    for axis, label, (training, validation) in zip(
        panels, ("top-1 accuracy (%)", "cross-entropy (nat)"), (accuracies, losses), strict=True
    ):
        axis.plot(epochs, training, label="training", color=ORANGE, linestyle="--")
        axis.plot(epochs, validation, label="validation", color=BLUE, marker="o", markersize=3)
        if switch_epoch:
            axis.axvline(switch_epoch, color=BLACK, linewidth=1, linestyle=":", label="fine-tuning begins")
        axis.set(xlabel="epoch", ylabel=label)
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        axis.legend()
    return figure


def draw_explanation(file, picture, heat, title):
    """A picture, and beside it the same picture under a heat map.

    Args:
        file: where the PNG goes, a path or an open file.
        picture: uint8 [height, width, RGB or grey].
        heat: float [height, width], 0..1; see `grad_cam.explain`.
        title: of the figure.
    """
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 2, figsize=(6.4, 3.6))
        figure.suptitle(title)
        for axis, label in zip(panels, ("picture", "what speaks for it (Grad-CAM, 1 = most)"), strict=True):
            _show(axis, picture)
            axis.set_title(label, fontsize=9)
            axis.axis("off")
        shown = panels[1].imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=0.6, interpolation="bilinear")
        figure.colorbar(shown, ax=panels[1], shrink=0.7)
        figure.savefig(file, format="png")
        plt.close(figure)


def _draw_loss(history, title, classes):
    """Cross-entropy against step, with the loss of guessing."""
    curves = [("training (augmented)", history["train_loss"], {"color": ORANGE, "linestyle": "--"})]
    if "validation_loss" in history:
        curves.append(("validation", history["validation_loss"], {"color": BLUE, "marker": "o", "markersize": 3}))
    figure = _draw_curves(history, title, "cross-entropy (nat)", curves)
    figure.axes[0].axhline(np.log(classes), color=BLACK, linewidth=1, linestyle=":", label=f"guessing, ln {classes}")
    figure.axes[0].set_ylim(bottom=0)
    figure.axes[0].legend()
    return figure


def draw_grid(rows, row_labels, title):
    """Rows of uint8 pictures, a label before each row."""
    figure, axes = plt.subplots(len(rows), max(map(len, rows)), figsize=(8, 0.8 * len(rows) + 0.4), squeeze=False)
    figure.suptitle(title)
    for axis in axes.flat:
        axis.axis("off")
    for label, row, row_axes in zip(row_labels, rows, axes, strict=True):
        row_axes[0].text(-0.15, 0.5, label, transform=row_axes[0].transAxes, ha="right", va="center")
        for picture, axis in zip(row, row_axes, strict=False):
            _show(axis, picture)
    return figure


def _show(axis, picture):
    """Shows a uint8 picture, RGB or grey."""
    axis.imshow(picture, interpolation="nearest", cmap="gray", vmin=0, vmax=255)  # the last three concern grey ones


def _draw_augmentation(training, config):
    """Some training pictures, each beside variants as the augmentation of the run makes them: figure 5 of Liang 2020."""
    chosen = np.arange(min(5, len(training)))
    variants = []
    for epoch in range(9):
        # The augmentation of the run itself, on raw pixels: the draws of the batches with which the epochs begin.
        plan = cifar10_input.plan_batch(epoch * len(training) // config.train_batch_size, len(training), config)
        draws = (
            np.resize(values, (len(chosen), *values.shape[1:]))
            for values in (plan.offsets, plan.flips, plan.centers, plan.angles)
        )
        images = training.images[chosen]
        if config.augment:
            images = cifar10_input.augment(images, *draws, config).numpy()
        variants.append(images)
    rows = [[training.images[i], *(images[row] for images in variants)] for row, i in enumerate(chosen)]
    kind = (
        (f"rotate by up to {config.rotation:g} degrees, " if config.rotation else "")
        + f"pad {config.padding_size} ({config.padding_mode}), crop, flip {config.flip}"
        + (f", {config.cutout} x {config.cutout} cut out" if config.cutout else "")
        if config.augment
        else "switched off"
    )
    figure = draw_grid(rows, [""] * len(rows), f"augmentation: {kind}")
    for title, axis in zip(["original", *(f"epoch {epoch + 1}" for epoch in range(9))], figure.axes, strict=False):
        axis.set_title(title, fontsize=8)
    return figure


def draw_samples(training, names, dataset):
    """The first ten training pictures of each class, at most 20 classes: figure 5 of Lu & Song."""
    classes = range(min(20, len(names)))
    rows = [training.images[training.labels == label][:10] for label in classes]
    return draw_grid(rows, names[: len(rows)], f"training pictures of {dataset}")


def _draw_predictions(test, probabilities, names, title, part):
    """The 24 first test pictures with what the net says of them; wrong answers in another colour, with the right one."""
    rows = -(-min(24, len(test.labels)) // 8)
    lines = max(len(_wrap(name).splitlines()) for name in names)
    figure, axes = plt.subplots(rows, 8, figsize=(9.6, (1.2 + 0.27 * lines) * rows + 0.5), squeeze=False)
    figure.suptitle(f"{title}: first {part} pictures")
    for axis in axes.flat:
        axis.axis("off")
    for image, label, probability, axis in zip(test.images, test.labels, probabilities, axes.flat, strict=False):
        _show(axis, image)
        predicted = int(probability.argmax())
        right = predicted == label
        text = _wrap(f"{names[predicted]}: {100 * probability[predicted]:.0f}\u00a0%")
        text += "" if right else "\n" + _wrap(f"not {names[label]}")
        axis.set_title(text, fontsize=8, color=BLACK if right else VERMILION)
    return figure


def _wrap(text: str) -> str:
    """Lines of about the width of a small picture."""
    return textwrap.fill(text, 16)


def draw_confusion(matrix, names, title):
    """Counts, true class by row; the shade is the share of the row."""
    share = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    shown = [textwrap.shorten(name, 28, placeholder="...") or name[:28] for name in names]
    size = max(4.5, 1.2 + 0.5 * len(names) + 0.07 * max(map(len, shown)))
    figure, axes = plt.subplots(figsize=(size + 0.6, size))
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            axes.text(
                column,
                row,
                count,
                ha="center",
                va="center",
                fontsize=8,
                color="white" if share[row, column] > 0.5 else BLACK,
            )
    axes.set(xticks=range(len(names)), yticks=range(len(names)), xlabel="predicted class", ylabel="true class")
    lines = [*textwrap.wrap(title, 12 * int(size)), "tested pictures; shade: share of the row"]
    axes.set_title("\n".join(lines), fontsize=9)
    axes.set_xticklabels(shown, **({"rotation": 45, "ha": "right"} if max(map(len, shown)) > 2 else {}))
    axes.set_yticklabels(shown)
    axes.grid(False)
    return figure


def publish(run: RunFolder, experiment: str, results: Path) -> Path:
    """Puts a tested run among the project's results: its figures, its numbers, and the table of all.

    Runs that differ in their seed alone share a row: mean, sample standard deviation, and the single values.

    Args:
        run: a run that `draw` has drawn.
        experiment: name of the list of rows, `<results>/<experiment>.json`.
        results: the folder of results.

    Returns:
        Path of the table, `<results>/README.md`.
    """
    config = run.read_config()
    if not run.result.is_file():
        raise UsageError(f"{run} must be trained and tested to be published, found no test; use --mode=train --resume")
    result, history = read_json(run.result, TESTED), run.read_history()
    last = history.iloc[-1]
    numbers = {
        "test_error": result["test_error"],
        "test_top5_error": result["test_top5_error"],
    }
    if "test_error_flip" in result:
        numbers["test_error_flip"] = result["test_error_flip"]
    for head, measured in read_json(run.result, dict).get("heads", {}).items():
        numbers[f"test_error_{head}"] = measured["test_error"]
    numbers |= {column: last[column] for column in history if column.startswith("validation_error")}
    preset = config.preset
    if "validation_error" in numbers:
        numbers["validation_error_of_chosen"] = read_json(run.result, {"validation_error": float})["validation_error"]
    else:
        preset += ", all training images"
    metric_published, *published = published_number(config) or (None, None, None)
    measured = {
        metric: (value, *(published if metric.removesuffix("_unaveraged") == metric_published else (None, None)), "")
        for metric, value in numbers.items()
    }
    return add_results(run, experiment, results, config, preset, measured)


def add_results(run, experiment, results: Path, config, preset, measured) -> Path:
    """Writes what was measured of a run into `<results>/<experiment>.json`, copies its figures, and writes the table of all.

    Args:
        run, experiment, results: see `publish`.
        config: settings of the run.
        preset: what the table shows as its recipe, in few words.
        measured: {metric: (value in %, published value or None, its source or None, note)}; the note is for a single run.

    Returns:
        Path of the table.
    """
    origin = describe_origin(run, config)
    if not run.figures.is_dir():
        raise UsageError(f"{run.figures} must tell of a tested run, received nothing; use --mode=train --resume")
    path = results / f"{experiment}.json"
    rows = read_json(path, [_ROW | {"values": dict}]) if path.exists() else []
    recipe = dataclasses.replace(config, seed=0, version="").command
    for metric, (value, published, published_source, note) in measured.items():
        key = {
            "experiment": experiment,
            "dataset": config.dataset_name,
            "model": config.model_name,
            "preset": preset,
            "metric": metric,
            "recipe": recipe,
        }
        row = next((row for row in rows if key.items() <= row.items()), None)
        if row is None:
            row = key | {"unit": "%", "values": {}}
            rows.append(row)
        row["values"][str(config.seed)] = round(float(value), 6)
        values = list(row["values"].values())
        seeds = sorted(row["values"], key=int)
        row |= {
            "value": round(statistics.mean(values), 6),
            "std": round(statistics.stdev(values), 6) if len(values) > 1 else None,
            "runs": len(values),
            "published": published,
            "published_source": published_source,
            "command": config.command
            if seeds == [str(config.seed)]
            else f"for seed in {' '.join(seeds)}; do {recipe} --seed=$seed; done",
            **origin,
            "run": run.path.name,
            "note": note if len(values) == 1 else "",
            "options": _net_choices(config),
        }
    write_json(path, rows)
    drawn = [file for file in sorted(run.figures.iterdir()) if file.suffix in (".png", ".md")]
    for file in (*drawn, run.error_csv, run.result):
        write_atomically(results / run.path.name / file.name, file.read_bytes())
    return write_table(results)


def _net_choices(config: Settings) -> dict:
    """What makes the net of a run another one than its name says."""
    return config.net_options | ({"heads": config.heads} if config.heads else {})


def _name_net(model_name: str, options: dict) -> str:
    return ", ".join([model_name, *(f"{name} {value}" for name, value in options.items())])


def describe_origin(run: RunFolder, config: Settings) -> dict:
    """Where the numbers of a run come from: images_seen, wall_seconds, hardware and commit, as in a row of results.

    Raises:
        UsageError: the run has not been trained.
    """
    kind = {"command": str, "commit": object, "processor": str, "cores": int, "dtype_policy": str}
    starts = read_json(run.environment, [kind])
    if not starts:
        raise UsageError(f"{run.environment} must tell of a tested run, received nothing; use --mode=train --resume")
    last = run.read_history().iloc[-1]
    return {
        "images_seen": int(last["step"]) * config.train_batch_size,
        "wall_seconds": round(float(last["seconds"])),
        "hardware": name_hardware(starts[-1]),
        "commit": starts[0]["commit"],
    }


def name_hardware(environment: dict) -> str:
    """Processor, cores and number format of `device_placement.describe_environment`, as in a row of results."""
    cores = environment["cores"]
    return f"{environment['processor']}, {cores} core{'s' * (cores > 1)}, {environment['dtype_policy']}"


def write_study(folder: Path, command: str, rows: list[dict], report: str, figures: list[Path], runs=()) -> Path:
    """Writes report.md and study.json of a study and deletes the figures of an earlier call that drew others.

    Args:
        folder: of the study.
        command: that repeats it.
        rows: as in `results/<experiment>.json`, without experiment, command and run.
        report: Markdown.
        figures: what was drawn.
        runs: names of the run folders beside `folder` that all this was read from.

    Returns:
        `folder`.
    """
    for old in set(folder.glob("*.png")) - set(figures):
        old.unlink()
    write_atomically(folder / "report.md", report + "\n")
    rows = [row | {"command": command, "run": folder.name} for row in rows]
    write_json(folder / "study.json", {"command": command, "rows": rows, "runs": list(runs)})
    return folder


def publish_study(folder: Path, experiment: str, results: Path) -> Path:
    """Puts a study among the project's results: its figures and tables, its rows, the curves and test results of its runs, and
    the table of all.

    Args:
        folder: see `write_study`.
        experiment: name of the list of rows, `<results>/<experiment>.json`, and of the folder for the figures.
        results: the folder of results.

    Returns:
        Path of the table, `<results>/README.md`.

    Raises:
        UsageError: the folder or the list among the results is of other runs, or a run of the study is gone.
    """
    study = read_json(folder / "study.json", {"rows": [_ROW], "runs": [str]})
    if (results / experiment / "error.csv").exists():
        raise UsageError(f"{results / experiment} holds a run; give the study another --experiment")
    path = results / f"{experiment}.json"
    if path.exists() and {row["run"] for row in read_json(path, [_ROW])} != {experiment}:
        raise UsageError(f"{path} holds what was measured of other runs; give the study another --experiment")
    files = {file.name: file for file in sorted(folder.iterdir()) if file.suffix in (".png", ".md", ".csv")}
    for name in study["runs"]:
        run = RunFolder(folder.parent / Path(name).name)
        if not run.error_csv.is_file():
            raise UsageError(f"expected {run}, of which the study tells, found no such run; repeat the study")
        of_run = [file for file in (run.error_csv, run.result, run.gradient_norms) if file.is_file()]
        files |= {f"runs/{run.path.name}/{file.name}": file for file in of_run}
    if (results / experiment / "runs").is_dir():
        shutil.rmtree(results / experiment / "runs")
    for name, file in files.items():
        write_atomically(results / experiment / name, file.read_bytes())
    for old in (results / experiment).glob("*.png"):
        if not (folder / old.name).exists():
            old.unlink()
    rows = [row | {"experiment": experiment, "run": experiment} for row in study["rows"]]
    write_json(path, rows)
    return write_table(results)


def write_table(results: Path) -> Path:
    """Writes `<results>/README.md` from all `<results>/*.json`."""
    lines = [
        "# Results",
        "",
        "Made from the JSON files of this folder by `--mode=publish` and by the benchmarks; not to be edited. Weights are chosen on",
        "validation images and tested once, but for rows that say that they were chosen on test images, and those of all training",
        "images: with none held out, the weights are those of the last step, of a recipe that was chosen before. `test_error_flip` is",
        "that of the mean answer for picture and mirror image, by `--mode=test --test_flip` of the same run.",
        "`±` is the sample standard deviation over seeds; a range in brackets goes from the",
        "smallest to the largest of the values whose median stands before it. Time and commit are those of the last run; studies",
        "(compare, degradation, robustness) add up the time of the runs of a row.",
    ]
    for path in sorted(results.glob("*.json")):
        rows = read_json(path, [_ROW])
        lines += [
            "",
            f"## {path.stem}",
            "",
            "| data set | net | preset | metric | value | published | time | hardware | commit |",
        ]
        lines += ["|---|---|---|---|---:|---:|---:|---|---|"]
        for row in rows:
            cells = [
                row["dataset"],
                _name_net(row["model"] or "", row.get("options") or {}),
                row["preset"],
                row["metric"],
                _format_value(row),
                _format_published(row),
            ]
            cells += [f"{row['wall_seconds'] / 60:.0f} min", row["hardware"], row["commit"]]
            lines.append("| " + " | ".join(str(cell or "") for cell in cells) + " |")
        lines += ["", "Commands:", "", "```", *dict.fromkeys(row["command"] for row in rows), "```"]
        for run in dict.fromkeys(row["run"] for row in rows if row["run"]):
            figures = sorted((results / run).glob("*.png"))
            lines += ["", f"### {run}", ""]
            text = results / run / "report.md"
            if text.is_file():
                lines += [text.read_text(encoding="utf-8").strip(), ""]
            lines += [f"![{figure.stem}]({run}/{figure.name})" for figure in figures]
    path = results / "README.md"
    write_atomically(path, "\n".join(lines) + "\n")
    return path


def _format_value(row) -> str:
    if row["value"] is None:
        return row["note"]

    def number(value):
        return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{value:.2f}"

    text = f"{number(row['value'])} {row['unit']}"
    if row["std"] is not None and "minimum" not in row:
        text += f" ± {row['std']:.2f} ({row['runs']} seeds)"
    elif "minimum" in row and row["runs"] > 1:
        text += f" [{number(row['minimum'])} .. {number(row['maximum'])}] ({row['runs']} times)"
    return text + (f"; {row['note']}" if row.get("note") else "")


def _format_published(row) -> str:
    return "" if row["published"] is None else f"{row['published']:.2f} {row['unit']} ({row['published_source']})"
