"""Accuracy on corrupted test images."""

import math
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

import cifar10_input
from resnet_study import devices
from resnet_study.data import corruptions
from resnet_study.files import write_atomically
from resnet_study.predictor import Predictor
from resnet_study.reports.canvas import STYLE, make_panels, save_figure
from resnet_study.reports.image_sheets import draw_grid
from resnet_study.reports.tables import table_lines
from resnet_study.studies.curves import short_names, styles
from resnet_study.studies.runs import (
    FinishedRun,
    fingerprint,
    finish_runs,
    format_spread,
    group_runs,
    plan_runs,
    remembered,
    result_row,
    study_command,
    study_folder,
    write_results,
)


def measure_robustness(given: dict, models, datasets, seeds) -> Path:
    """Accuracy on corrupted test images, see `resnet_study.data.corruptions`.

    Nothing is chosen by these numbers. Runs that are missing are trained first.

    Args:
        given, models, datasets, seeds: see `plan_runs`.

    Returns:
        The folder: report.md, robustness.csv, study.json and the figures.

    Raises:
        UsageError, Interrupted: see `finish_runs`.
    """
    folder = study_folder(given, "robustness")
    runs, failures = finish_runs(plan_runs(given, models, datasets, seeds))
    groups = group_runs(runs)
    table = []
    for (dataset, model_name, preset), runs in groups.items():
        for each in runs:
            measured = remembered(
                folder / "measured.json", fingerprint(each), lambda each=each: _measure_corrupted(each)
            )
            keys = {"dataset": dataset, "model": model_name, "preset": preset, "seed": each.config.seed}
            table += [
                keys | {"corruption": corruption, "severity": severity, "accuracy": accuracy}
                for corruption, accuracies in measured.items()
                for severity, accuracy in enumerate(accuracies)
            ]
    table = pd.DataFrame(table)
    write_atomically(folder / "robustness.csv", table.to_csv(index=False))
    rows = []
    for key, runs in groups.items():
        part = table[(table["dataset"] == key[0]) & (table["model"] == key[1]) & (table["preset"] == key[2])]
        rows.append(
            result_row(runs, "test accuracy, clean", part[part["severity"] == 0].groupby("seed")["accuracy"].mean())
        )
        for corruption in corruptions.CORRUPTIONS:
            of_kind = part[(part["corruption"] == corruption) & (part["severity"] > 0)]
            rows.append(
                result_row(
                    runs, f"{corruption}, mean over severities 1 - 5", of_kind.groupby("seed")["accuracy"].mean()
                )
            )
    drawn = []
    with matplotlib.rc_context(STYLE):
        for dataset, part in table.groupby("dataset", sort=False):
            figure = draw_robustness(part, dataset)
            drawn.append(save_figure(figure, folder / f"robustness-{dataset}.png"))
            runs = next(runs for key, runs in groups.items() if key[0] == dataset)
            figure = draw_corruptions(cifar10_input.load_data(runs[0].config).test.images[:1], dataset)
            drawn.append(save_figure(figure, folder / f"corruptions-{dataset}.png"))
    command = study_command("robustness", given, models=models, datasets=datasets, seeds=seeds)
    return write_results(folder, command, rows, _robustness_report(table), drawn, groups, failures)


def _measure_corrupted(finished: FinishedRun) -> dict[str, list[float]]:
    """corruption -> accuracy in % at severities 0 .. 5 on all test images."""
    print(f"corrupted images: {finished.run.path.name}", flush=True)
    config = finished.config
    test = cifar10_input.load_data(config).test
    # In bfloat16 where the run had it, which is faster than float32: each model is tested twenty-one times.
    precision = "bfloat16" if finished.run.stored_policy() == devices.POLICIES["bfloat16"] else "float32"
    predictor = Predictor(str(finished.run.best), precision)

    def accuracy(corruption, severity):
        images = corruptions.corrupt(test.images, corruption, severity)
        answers = predictor.predict(images, config.test_batch_size)
        return 100 * float(np.mean(answers.argmax(axis=1) == test.labels))

    clean = accuracy("noise", 0)
    return {
        corruption: [clean, *(accuracy(corruption, severity) for severity in corruptions.SEVERITIES[1:])]
        for corruption in corruptions.CORRUPTIONS
    }


def _robustness_report(table) -> str:
    meanings = "; ".join(
        f"{name}: {meaning} ({', '.join(f'{value:g}' for value in values)})"
        for name, (meaning, values) in corruptions.CORRUPTIONS.items()
    )
    lines = [
        "Accuracy in % on all test images, corrupted with the severities that Hendrycks & Dietterich chose for CIFAR-10-C; mean ± sample standard",
        "deviation over the seeds. By models in bfloat16 where their training computed in it, batch norm folded, so that the clean accuracy",
        f"can differ from that of the test by some hundredths. {meanings}.",
        "",
    ]
    cells = []
    for key, part in table.groupby(["dataset", "model", "preset", "corruption"], sort=False):
        by_severity = part.groupby("severity")["accuracy"]
        cells.append([*key, *(format_spread(values) for _, values in by_severity)])
    header = ["data set", "model", "preset", "corruption", "clean", *corruptions.SEVERITIES[1:]]
    return "\n".join([*lines, *table_lines(header, "llll" + "r" * len(corruptions.SEVERITIES), cells)])


def draw_robustness(table, dataset: str):
    """Accuracy against severity, a panel per corruption, a line per model; the band goes from the lowest to the highest seed.

    Args:
        table: columns model, preset, seed, corruption, severity, accuracy (%).
        dataset: for the title.
    """
    kinds = list(corruptions.CORRUPTIONS)
    keys = list(table[["model", "preset"]].drop_duplicates().itertuples(index=False, name=None))
    figure, panels = make_panels(math.ceil(len(kinds) / 2), 2, figsize=(6.8, 6.8), sharey=True)
    names = short_names(keys)
    for axes, kind in zip(panels.flat, kinds, strict=True):
        for key, style in styles(keys).items():
            part = table[(table["model"] == key[0]) & (table["preset"] == key[1]) & (table["corruption"] == kind)]
            by_severity = part.groupby("severity")["accuracy"]
            mean = by_severity.mean()
            axes.plot(mean.index, mean, marker="o", markersize=3, label=names[key], **style)
            axes.fill_between(
                mean.index, by_severity.min(), by_severity.max(), color=style["color"], alpha=0.15, linewidth=0
            )
        meaning, values = corruptions.CORRUPTIONS[kind]
        axes.set(title=kind, xticks=[0, *range(1, 1 + len(values))])
        axes.set_xlabel(meaning.replace(", ", ",\n"), fontsize=8)
        axes.set_xticklabels(["clean", *(f"{value:g}" for value in values)], rotation=60)
    for axes in panels[:, 0]:
        axes.set_ylabel("test accuracy (%)")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)))
    figure.suptitle(f"corrupted test images of {dataset}")
    return figure


def draw_corruptions(image, dataset: str):
    """One test image at every severity of every corruption.

    Args:
        image: uint8 [1, height, width, channels].
        dataset: for the title.
    """
    rows = [
        [corruptions.corrupt(image, kind, severity)[0] for severity in corruptions.SEVERITIES]
        for kind in corruptions.CORRUPTIONS
    ]
    return draw_grid(rows, list(corruptions.CORRUPTIONS), f"the first test image of {dataset}, severities 0 - 5")
