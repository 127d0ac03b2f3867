"""How a run looks: figures and tables, made from its run folder only, and the project's table of results.

    draw(run)              figures/*.png and figures/layers.md of one run
    publish(run)           small copies in results/<run name>/, a row in results/<experiment>.json, results/README.md

Colours are Okabe and Ito's, which colour-blind readers tell apart; lines differ in dash too, for print without colour.
"""

import io
import json
from pathlib import Path

import matplotlib
import numpy as np

import cifar10_input
import cifar10_test
from hyper_parameters import PRESETS, UsageError
from run_folder import RunFolder, read_json, write_atomically

matplotlib.use("Agg")  # draws to files only, with or without a screen
from matplotlib import pyplot as plt

BLACK, ORANGE, BLUE, GREEN, VERMILION = "#000000", "#E69F00", "#0072B2", "#009E73", "#D55E00"
_STYLE = {
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
_TESTED = {
    "test_error": float,
    "test_top5_error": float,
    "validation_error": float,
    "best_step": int,
    "confusion_matrix": [[int]],
}
_ROW = dict.fromkeys(
    ("dataset", "model", "preset", "metric", "unit", "runs", "published_source", "hardware", "commit"), object
) | {
    "value": float,
    "std": (float, None),
    "published": (float, None),
    "command": str,
    "images_seen": float,
    "wall_seconds": float,
    "run": (str, None),
}


def draw(run: RunFolder) -> list[Path]:
    """Draws every figure of a tested run into `run.figures`; returns their paths.

    Raises:
        UsageError: the run has not been trained and tested.
    """
    config = run.read_config()
    result, names, history = read_json(run.result, _TESTED), run.read_class_names(), run.read_history()
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
    title = f"{config.model_name} on {config.dataset}, preset {config.preset}"
    with plt.rc_context(_STYLE):
        figures = {
            "error_curve": _draw_error(history, title, result),
            "accuracy_curve": _draw_accuracy(history, title, result),
            "loss_curve": _draw_loss(history, title, len(names)),
            "augmentation": _draw_augmentation(training, config),
            "samples": _draw_samples(training, names, config.dataset),
            "predictions": _draw_predictions(data.test, probabilities, names, title),
        }
        if len(names) <= 20:
            figures["confusion_matrix"] = _draw_confusion(np.array(result["confusion_matrix"]), names, title)
        paths = []
        for name, figure in figures.items():
            paths.append(run.figures / f"{name}.png")
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png")
            plt.close(figure)
            write_atomically(paths[-1], buffer.getvalue())
    layers = run.figures / "layers.md"
    write_atomically(layers, describe_layers(cifar10_test.load_model(str(run.best))))
    return [*paths, layers]


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


def _draw_percent(history, title, label, result, sign):
    """Error (`sign` 1) or accuracy (`sign` -1), in %, against step, and the one test of the run as a diamond."""

    def percent(column):
        return history[column] if sign == 1 else 100 - history[column]

    averaged = "validation_error_unaveraged" in history
    curves = [
        ("training (augmented)", percent("train_error"), {"color": ORANGE, "linewidth": 1, "alpha": 0.6}),
        ("training, smoothed", percent("train_error_smoothed"), {"color": ORANGE, "linestyle": "--"}),
        (
            "validation, averaged weights" if averaged else "validation",
            percent("validation_error"),
            {"color": BLUE, "marker": "o", "markersize": 3},
        ),
    ]
    if averaged:
        last = percent("validation_error_unaveraged")
        curves.append(("validation, last weights", last, {"color": GREEN, "linestyle": "-.", "linewidth": 1}))
    figure = _draw_curves(history, title, label, curves)
    axes = figure.axes[0]
    value = result["test_error"] if sign == 1 else 100 - result["test_error"]
    legend = f"test, weights of step {result['best_step']:,}: {value:.2f} %"
    axes.plot(result["best_step"], value, "D", color=VERMILION, label=legend, clip_on=False, zorder=5)
    axes.set_ylim(**({"bottom": 0} if sign == 1 else {"top": 100}))
    axes.legend()
    return figure


def _draw_error(history, title, result):
    """Top-1 error against step: figure 6 of Liang 2020."""
    return _draw_percent(history, title, "top-1 error (%)", result, 1)


def _draw_accuracy(history, title, result):
    """Top-1 accuracy against step: figure 7 of Liang 2020."""
    return _draw_percent(history, title, "top-1 accuracy (%)", result, -1)


def _draw_loss(history, title, classes):
    """Cross-entropy against step, with the loss of guessing."""
    curves = [
        ("training (augmented)", history["train_loss"], {"color": ORANGE, "linestyle": "--"}),
        ("validation", history["validation_loss"], {"color": BLUE, "marker": "o", "markersize": 3}),
    ]
    figure = _draw_curves(history, title, "cross-entropy (nat)", curves)
    figure.axes[0].axhline(np.log(classes), color=BLACK, linewidth=1, linestyle=":", label=f"guessing, ln {classes}")
    figure.axes[0].set_ylim(bottom=0)
    figure.axes[0].legend()
    return figure


def _draw_grid(rows, row_labels, title):
    """Rows of uint8 pictures, a label before each row."""
    figure, axes = plt.subplots(len(rows), max(map(len, rows)), figsize=(8, 0.8 * len(rows) + 0.4), squeeze=False)
    figure.suptitle(title)
    for axis in axes.flat:
        axis.axis("off")
    for label, row, row_axes in zip(row_labels, rows, axes, strict=True):
        row_axes[0].text(-0.15, 0.5, label, transform=row_axes[0].transAxes, ha="right", va="center")
        for picture, axis in zip(row, row_axes, strict=False):
            axis.imshow(picture, interpolation="nearest")
    return figure


def _draw_augmentation(training, config):
    """Some training pictures, each beside the variants that its first epochs show: figure 5 of Liang 2020."""
    chosen = np.arange(min(5, len(training)))
    variants = []
    for epoch in range(9):
        # The augmentation of the run itself, on raw pixels: the draws of the batches with which the epochs begin.
        plan = cifar10_input.plan_batch(epoch * len(training) // config.train_batch_size, len(training), config)
        offsets, flips = (np.resize(values, (len(chosen), *values.shape[1:])) for values in (plan.offsets, plan.flips))
        images = training.images[chosen]
        if config.augment:
            images = cifar10_input.crop_and_flip(
                images, offsets, flips, config.padding_size, config.padding_mode
            ).numpy()
        variants.append(images)
    rows = [[training.images[i], *(images[row] for images in variants)] for row, i in enumerate(chosen)]
    kind = (
        f"pad {config.padding_size} ({config.padding_mode}), crop, flip {config.flip}"
        if config.augment
        else "switched off"
    )
    figure = _draw_grid(rows, [""] * len(rows), f"augmentation: {kind}")
    for title, axis in zip(["original", *(f"epoch {epoch + 1}" for epoch in range(9))], figure.axes, strict=False):
        axis.set_title(title, fontsize=8)
    return figure


def _draw_samples(training, names, dataset):
    """The first ten training pictures of each class, at most 20 classes: figure 5 of Lu & Song."""
    classes = range(min(20, len(names)))
    rows = [training.images[training.labels == label][:10] for label in classes]
    return _draw_grid(rows, names[: len(rows)], f"training pictures of {dataset}")


def _draw_predictions(test, probabilities, names, title):
    """The 24 first test pictures with what the net says of them; wrong answers in another colour, with the right one."""
    figure, axes = plt.subplots(3, 8, figsize=(9.6, 4.6))
    figure.suptitle(f"{title}: first test pictures")
    for axis in axes.flat:
        axis.axis("off")
    for image, label, probability, axis in zip(test.images, test.labels, probabilities, axes.flat, strict=False):
        axis.imshow(image, interpolation="nearest")
        predicted = int(probability.argmax())
        right = predicted == label
        text = f"{names[predicted]} {100 * probability[predicted]:.0f} %" + ("" if right else f"\nnot {names[label]}")
        axis.set_title(text, fontsize=8, color=BLACK if right else VERMILION)
    return figure


def _draw_confusion(matrix, names, title):
    """Counts, true class by row; the shade is the share of the row."""
    share = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    size = 1.8 + 0.5 * len(names)
    figure, axes = plt.subplots(figsize=(size, size))
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
    axes.set(
        xticks=range(len(names)), yticks=range(len(names)), xlabel="predicted class", ylabel="true class", title=title
    )
    axes.set_xticklabels(names, rotation=45, ha="right")
    axes.set_yticklabels(names)
    axes.grid(False)
    return figure


def publish(run: RunFolder, experiment: str, results: Path) -> Path:
    """Puts a tested run among the project's results: its figures, a row for each of its numbers, and the table of all.

    Args:
        run: a run that `draw` has drawn.
        experiment: name of the list of rows, `<results>/<experiment>.json`; rows of the same run are replaced.
        results: the folder of results.

    Returns:
        Path of the table, `<results>/README.md`.
    """
    config, result, history = run.read_config(), read_json(run.result, _TESTED), run.read_history()
    kind = {"command": str, "commit": object, "processor": str, "cores": int, "dtype_policy": str}
    starts = read_json(run.environment, [kind])
    for place, content in ((run.environment, starts), (run.figures, run.figures.is_dir())):
        if not content:
            raise UsageError(f"{place} must tell of a tested run, received nothing; use --mode=train --resume")
    published = (config.preset in PRESETS and PRESETS[config.preset].published) or (None, None, None, None)
    last = history.iloc[-1]
    numbers = {
        "test_error": result["test_error"],
        "test_top5_error": result["test_top5_error"],
        "validation_error": last["validation_error"],
        "validation_error_of_chosen": result["validation_error"],
    }
    if "validation_error_unaveraged" in history:
        numbers["validation_error_unaveraged"] = last["validation_error_unaveraged"]
    rows = [
        {
            "experiment": experiment,
            "dataset": config.dataset,
            "model": config.model_name,
            "preset": config.preset,
            "metric": metric,
            "unit": "%",
            "value": round(float(value), 4),
            "std": None,
            "runs": 1,
            "published": published[1] if metric.startswith(published[0] or "-") and "chosen" not in metric else None,
            "published_source": published[3]
            if metric.startswith(published[0] or "-") and "chosen" not in metric
            else None,
            "command": starts[0]["command"],
            "images_seen": int(last["step"]) * config.train_batch_size,
            "wall_seconds": round(float(last["seconds"])),
            "hardware": f"{starts[-1]['processor']}, {starts[-1]['cores']} cores, {starts[-1]['dtype_policy']}",
            "commit": starts[0]["commit"],
            "run": run.path.name,
        }
        for metric, value in numbers.items()
    ]
    path = results / f"{experiment}.json"
    others = [row for row in (read_json(path, [_ROW]) if path.exists() else []) if row["run"] != run.path.name]
    write_atomically(path, json.dumps(others + rows, indent=1) + "\n")
    drawn = [file for file in sorted(run.figures.iterdir()) if file.suffix in (".png", ".md")]
    for file in (*drawn, run.error_csv, run.result):
        write_atomically(results / run.path.name / file.name, file.read_bytes())
    return write_table(results)


def write_table(results: Path) -> Path:
    """Writes `<results>/README.md` from all `<results>/*.json`."""
    lines = [
        "# Results",
        "",
        "Made from the JSON files of this folder by `python cifar10_main.py --mode=publish`; not to be edited. Weights are chosen on",
        "validation images and tested once. `±` is the standard deviation over runs.",
    ]
    for path in sorted(results.glob("*.json")):
        rows = read_json(path, [_ROW])
        lines += [
            "",
            f"## {path.stem}",
            "",
            "| data set | net | preset | metric | value | published | images seen | time | hardware | commit |",
        ]
        lines += ["|---|---|---|---|---:|---:|---:|---:|---|---|"]
        for row in rows:
            spread = f" ± {row['std']:.2f} ({row['runs']} runs)" if row["std"] is not None else ""
            published = (
                "" if row["published"] is None else f"{row['published']:.2f} {row['unit']} ({row['published_source']})"
            )
            lines.append(
                f"| {row['dataset']} | {row['model']} | {row['preset']} | {row['metric']} | {row['value']:.2f} {row['unit']}{spread} | "
                f"{published} | {row['images_seen']:,} | {row['wall_seconds'] / 60:.0f} min | {row['hardware']} | {row['commit']} |"
            )
        commands = list(dict.fromkeys(row["command"] for row in rows))
        lines += ["", "Commands:", "", "```", *commands, "```"]
        for folder in dict.fromkeys(row["run"] for row in rows if row["run"]):
            figures = sorted((results / folder).glob("*.png"))
            lines += ["", f"### {folder}", "", *(f"![{figure.stem}]({folder}/{figure.name})" for figure in figures)]
    path = results / "README.md"
    write_atomically(path, "\n".join(lines) + "\n")
    return path
