"""How a run looks: its figures and its table of layers, made from its run folder only.

draw(run)          figures/*.png, figures/layers.md and report.html of one run
draw_figures(...)  what every run has, whatever it was trained on
"""

import dataclasses
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ticker import MaxNLocator

import cifar10_input
from hyper_parameters import HyperParameters, apply_preset
from resnet_study.class_names import THRESHOLD
from resnet_study.errors import UsageError
from resnet_study.evaluation import read_result
from resnet_study.files import write_atomically
from resnet_study.reports.canvas import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    STYLE,
    VERMILION,
    highest_error,
    highest_loss,
    make_panels,
    save_figure,
    wrap_title,
)
from resnet_study.reports.fonts import missing_characters_told, wrap
from resnet_study.reports.image_sheets import draw_augmentation, draw_samples, show
from resnet_study.reports.published import published_number, short_source
from resnet_study.reports.reliability import draw_reliability
from resnet_study.reports.run_page import write_run_page
from resnet_study.reports.tables import describe_layers
from resnet_study.run_folder import RunFolder
from resnet_study.saved_models import load_model
from resnet_study.strings import shorten

_MOST_NAMED = 200  # classes of a confusion matrix


def draw(run: RunFolder, **places: str | None) -> list[Path]:
    """Draws every figure of a tested run into `run.figures` and writes its page, `report.html`; returns their paths.

    Args:
        run: the run folder.
        **places: see `find_tested_images`.

    Raises:
        UsageError: the run has not been trained and tested.
    """
    config = run.read_config(HyperParameters)
    config = dataclasses.replace(config, **{name: value for name, value in places.items() if value is not None})
    result, names, history = read_result(run, "test"), run.read_class_names(), run.read_history()
    matrix = result["test"].get("confusion_matrix")  # which images with several labels have none of
    data = cifar10_input.load_data(config)
    training, _ = cifar10_input.split_data(data, config, run.keeps_last())
    rows = [result["test"]["per_class"]] if matrix is None else [matrix, *matrix]
    if len(names) != len(data.class_names) or {len(names)} != {len(row) for row in rows}:
        raise UsageError(
            f"{run.data} and {run.result} must tell the {len(data.class_names)} classes of {config.dataset} apart, received "
            f"{len(names)} and {len(rows[0])}; repeat --mode=train --resume"
        )
    probabilities = run.read_predictions((len(data.test), len(names)))
    # The model and the data set stand before the preset; another seed is the same recipe.
    named = {
        name: getattr(config, name)
        for name in ("seed", "model", "num_residual_blocks", "dataset", "heads", *config.network_options)
    }
    if len(config.head_factors) > 1:  # for which it has one value only
        named["hard_share"] = config.hard_share
    changed = len(config.flags_beside(apply_preset(config.preset, named)))
    title = f"{name_model(config.model_name, config.model_choices)} on {config.dataset_name}, preset {config.preset}"
    title += f" with {changed} other setting{'s' * (changed > 1)}" if changed else ""
    # A run that has not ended is held against nobody.
    published = published_number(config) if result["last_step"] == config.train_steps else None
    more = {
        "augmentation": lambda: draw_augmentation(training, config),
        "samples": lambda: draw_samples(training, names, config.dataset_name),
    }
    if len(config.head_factors) > 1 and "validation_error" in history:
        more["heads"] = lambda: _draw_heads(history, title, list(config.head_factors))
    paths = draw_figures(run, config, title, result, data.test, probabilities, more, published)
    return [*paths, write_run_page(run, data.test)]


def draw_figures(run, config, title, result, images, probabilities, more, published=None):
    """Draws what every run has: curves, predictions, confusion matrix, layer table.

    Args:
        run: the run folder.
        config: settings of either program; uses train_ema_decay and `extended_at`.
        title: for all figures.
        result: content of `result.json`, see `resnet_study.evaluation`; the figures show its part "predictions".
        images: `cifar10_input.Split` of the first tested images.
        probabilities: of these, float [n, classes].
        more: {name: function that draws a figure}.
        published: see `published_number`.

    Returns:
        Paths of the files.
    """
    history, names, part = run.read_history(), run.read_class_names(), result["predictions"]
    multi_label, extended_at, curve_smoothing = (
        images.labels.ndim == 2,
        config.extended_at(history),
        config.train_ema_decay,
    )
    error, accuracy = "top-1 error (%)", "top-1 accuracy (%)"
    if multi_label:
        error, accuracy = "any class wrong (%)", "all classes right (%)"
    with matplotlib.rc_context(STYLE):
        figures = {
            "error_curve": _draw_percent(history, title, error, result, 1, curve_smoothing, published, part),
            "accuracy_curve": _draw_percent(history, title, accuracy, result, -1, curve_smoothing, published, part),
            "loss_curve": _draw_loss(history, title, 2 if multi_label else len(names)),
            **{name: function() for name, function in more.items()},
            "predictions": _draw_predictions(images, probabilities, names, title, part),
        }
        if extended_at:
            for name in ("error_curve", "accuracy_curve", "loss_curve"):
                axes = figures[name].axes[0]
                axes.axvline(
                    extended_at,
                    color=BLACK,
                    linewidth=0.8,
                    linestyle="--",
                    label=f"extended after step {extended_at:,}",
                )
                axes.legend()
        if "reliability" in result[part]:  # which results of earlier versions lack
            figures["reliability"] = draw_reliability(result[part], f"{title}, {part} images")
        if not multi_label:
            figures["confusion_matrix"] = draw_confusion(np.array(result[part]["confusion_matrix"]), names, title, part)
        paths = [save_figure(figure, run.figures / f"{name}.png") for name, figure in figures.items()]
    layers = run.figures / "layers.md"
    write_atomically(layers, describe_layers(load_model(str(run.best))))
    return [*paths, layers]


def draw_evaluation(folder: RunFolder, result: dict) -> None:
    """Draws the confusion matrix and the reliability of a model on other images than its run's, into `folder.figures`; nothing of several labels.

    Args:
        folder, result: of `resnet_study.new_data.evaluate_others`.
    """
    metrics, title = result["test"], f"{result['model']} on {result['dataset']}"
    if "confusion_matrix" not in metrics:
        return
    names = [row["class"] for row in metrics["per_class"]]
    with matplotlib.rc_context(STYLE):
        save_figure(draw_reliability(metrics, title), folder.figures / "reliability.png")
        matrix = draw_confusion(np.array(metrics["confusion_matrix"]), names, title)
        save_figure(matrix, folder.figures / "confusion_matrix.png")


def _draw_curves(history, title, label, curves):
    figure, axes = make_panels(figsize=(6.4, 4))
    for name, values, options in curves:
        axes.plot(history["step"], values, label=name, **options)
    axes.set(title=wrap_title(title, 6.4), xlabel="step", ylabel=label)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend()
    return figure


def centred_means(errors, decay: float) -> np.ndarray:
    """A smoothed curve that does not lag: each value the mean of as many reports after it as before it.

    The running mean of the column `train_error_smoothed` uses earlier reports only. So it lags behind a falling curve, and in a
    run of few reports stands several points above it. These means take at most as many reports to either side as that one
    lags behind, decay / (1 - decay), and fewer where the curve is steep or ends: a quarter of those trained so far, and those left.

    Args:
        errors: float [reports], that of the untrained model first, which is left out.
        decay: of the running mean, per report, 0 <= decay < 1.

    Returns:
        float [reports], the first not a number.

    Example:
        from resnet_study.reports.figures import centred_means

        print(centred_means([90, 40, 30, 20, 10, 18, 8], 0.8))  # [nan 40. 30. 20. 10. 12.  8.]
    """
    trained = np.asarray(errors, float)[1:]
    means = [np.nan]
    for index in range(len(trained)):
        width = min(round(decay / (1 - decay)), index // 4, len(trained) - 1 - index)
        means.append(trained[index - width : index + width + 1].mean())
    return np.array(means)


def _draw_percent(history, title, label, result, sign, curve_smoothing, published, part):
    """Error (`sign` 1) or accuracy (`sign` -1), in %, against step: figures 6 and 7 of Liang 2020.

    The one test of the run is a diamond, the published number a dotted line.
    """

    def percent(column):
        return history[column] if sign == 1 else 100 - history[column]

    averaged = "validation_error_unaveraged" in history
    training = percent("train_error")
    means = centred_means(training, curve_smoothing)
    curves = [("training (augmented)", training, {"color": ORANGE, "linestyle": "--"})]
    if len(means) > 1 and np.nanmax(np.abs(means - training)) > 1:  # else the two are one line
        curves[0] = ("training (augmented)", training, {"color": ORANGE, "linewidth": 1, "alpha": 0.6})
        curves.append(("training, mean of near reports", means, {"color": ORANGE, "linestyle": "--"}))
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
    tested = result[part]["error"]
    value = tested if sign == 1 else 100 - tested
    # Those of several views of an image are no errors of the curves.
    if published and published[0] in ("test_error", "validation_error"):
        metric, error, source = published
        level = error if sign == 1 else 100 - error
        named = f"published {metric.split('_')[0]}: {level:.2f} % ({short_source(source)})"
        axes.axhline(level, color=BLACK, linewidth=1, linestyle=":", label=named)
    legend = f"{part}, weights of step {result['best_step']:,}: {value:.2f} %"
    axes.plot(result["best_step"], value, "D", color=VERMILION, label=legend, clip_on=False, zorder=5)
    shown = highest_error(history, tested)
    axes.set_ylim(*((0, shown) if sign == 1 else (100 - shown, 100)))
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


def draw_epochs(history, title, switch_epoch=0, multi_label=False):
    """Accuracy and loss against epochs, training and validation: figure 3 of Waghmode, Ramisetty & Jidugu.

    Args:
        history: table of `error.csv`.
        title: of the figure.
        switch_epoch: a line marks where fine-tuning begins; 0 = nowhere.
        multi_label: whether images have several labels, all of which must be right.
    """
    figure, panels = make_panels(1, 2, figsize=(9.6, 4))
    figure.suptitle(wrap_title(title, 9.6))
    epochs = history["epoch"]
    accuracies = 100 - history["train_error"], 100 - history["validation_error"]
    losses = history["train_loss"], history["validation_loss"]
    for axis, label, (training, validation) in zip(
        panels,
        ("all classes right (%)" if multi_label else "top-1 accuracy (%)", "cross-entropy (nat)"),
        (accuracies, losses),
        strict=True,
    ):
        axis.plot(epochs, training, label="training", color=ORANGE, linestyle="--")
        axis.plot(epochs, validation, label="validation", color=BLUE, marker="o", markersize=3)
        if switch_epoch:
            axis.axvline(switch_epoch, color=BLACK, linewidth=1, linestyle=":", label="fine-tuning begins")
        axis.set(xlabel="epoch", ylabel=label)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        axis.legend()
    return figure


def draw_explanation(file, image, heat, title):
    """Draws an image, and beside it the same image under a heat map.

    Args:
        file: where the PNG goes, a path or an open file.
        image: uint8 [height, width, RGB or grey].
        heat: float [height, width], 0..1; see `grad_cam.explain`.
        title: of the figure.
    """
    with matplotlib.rc_context(STYLE):
        figure, panels = make_panels(1, 2, figsize=(6.4, 3.6))
        figure.suptitle(wrap_title(title, 6.4))
        for axis, label in zip(panels, ("image", "what speaks for it (Grad-CAM, 1 = most)"), strict=True):
            show(axis, image)
            axis.set_title(label, fontsize=9)
            axis.axis("off")
        shown = panels[1].imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=0.6, interpolation="bilinear")
        figure.colorbar(shown, ax=panels[1], shrink=0.7)
        with missing_characters_told():
            figure.savefig(file, format="png")


def _draw_loss(history, title, classes):
    """Cross-entropy against step, with the loss of guessing."""
    curves = [("training (augmented)", history["train_loss"], {"color": ORANGE, "linestyle": "--"})]
    if "validation_loss" in history:
        curves.append(("validation", history["validation_loss"], {"color": BLUE, "marker": "o", "markersize": 3}))
    figure = _draw_curves(history, title, "cross-entropy (nat)", curves)
    figure.axes[0].axhline(np.log(classes), color=BLACK, linewidth=1, linestyle=":", label=f"guessing, ln {classes}")
    figure.axes[0].set_ylim(0, highest_loss(history, np.log(classes)))
    figure.axes[0].legend()
    return figure


def _draw_predictions(test, probabilities, names, title, part):
    """The first 24 test images with what the model says of them; wrong answers in another colour, with the right one."""
    answers = []
    for label, probability in zip(test.labels[:24], probabilities, strict=False):
        if np.ndim(label):
            predicted, label = (np.flatnonzero(row) for row in (probability >= THRESHOLD, label))
            given, true = (wrap(", ".join(names[k] for k in each) or "none", 16) for each in (predicted, label))
            right = np.array_equal(predicted, label)
            text = given if right else f"{given}\nis: {true}"
        else:
            predicted = int(probability.argmax())
            right = predicted == label
            # In lines of about the width of a small image.
            text = wrap(f"{names[predicted]}: {100 * probability[predicted]:.0f}\u00a0%", 16)
            text += "" if right else "\n" + wrap(f"is {names[label]}: {100 * probability[label]:.0f}\u00a0%", 16)
        answers.append((text, BLACK if right else VERMILION))
    columns, rows = 8, -(-len(answers) // 8) or 1
    pitch = 1 + 0.12 * max((text.count("\n") + 1 for text, _ in answers), default=1)  # of rows, in widths of an image
    figure, axes = make_panels(figsize=(9.6, 1.2 * pitch * rows + 0.5))
    figure.suptitle(wrap_title(f"{title}: first {part} images", 9.6))
    for number, (image, (text, colour)) in enumerate(zip(test.images, answers, strict=False)):
        x, y = number % columns, pitch * (number // columns + 1) - 1
        show(axes, image, (x, y))
        axes.text(x + 0.5, y, text, fontsize=8, color=colour, ha="center", va="bottom")
    axes.axis("off")
    axes.set(xlim=(0, columns), ylim=(pitch * rows, 0), anchor="N")
    return figure


def draw_confusion(matrix, names, title, part="test"):
    """Counts, true class by row; the shade is the share of the row. Above 20 classes without the counts, above 200 without their names."""
    share = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    counted, named = len(names) <= 20, len(names) <= _MOST_NAMED
    shown = [shorten(name, 28) for name in names] if named else [""]
    if named and len(set(shown)) < len(names):  # they begin alike
        shown = [name if len(name) <= 28 else f"{name[:13]}…{name[-14:]}" for name in names]
    size = max(4.5, 1.2 + (0.5 if counted else 0.12) * min(len(names), _MOST_NAMED) + 0.07 * max(map(len, shown)))
    figure, axes = make_panels(figsize=(size + 0.6, size))
    # The root, as on the page of a run: else nothing could be seen beside the diagonal.
    axes.imshow(share**0.5, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        if count and counted:
            colour = "white" if share[row, column] > 0.3 else BLACK
            axes.text(column, row, count, ha="center", va="center", fontsize=8, color=colour)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_title(
        f"{wrap_title(title, 1.3 * size)}\n{part} images, {matrix.trace():,} of {matrix.sum():,} right; shade: root of the share of the row",
        fontsize=9,
    )
    turned = {"rotation": 45 if counted else 90, "ha": "right" if counted else "center"}
    font = {} if counted else {"fontsize": 7}
    if named:
        axes.set_xticks(range(len(names)), shown, **font, **(turned if max(map(len, shown)) > 2 else {}))
        axes.set_yticks(range(len(names)), shown, **font)
    axes.grid(False)
    return figure


def name_model(model_name: str, options: dict) -> str:
    """A network with what makes it another one than its name says; of the many widths of a pruned one the least and the greatest."""

    def tell(value):
        return f"{min(value)}..{max(value)}" if isinstance(value, list) and len(value) > 4 else value

    return ", ".join([model_name, *(f"{name} {tell(value)}" for name, value in options.items())])
