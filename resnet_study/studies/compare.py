"""Networks against each other on several data sets: table 1 of Lu & Song, with figures and costs."""

import statistics
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

import cifar10_input
from resnet_study.files import write_atomically
from resnet_study.reports.canvas import BLACK, STYLE, make_panels, save_figure
from resnet_study.reports.figures import draw_confusion
from resnet_study.reports.image_sheets import draw_samples
from resnet_study.reports.published import LU_SONG, LU_SONG_TABLE, find_family, is_changed
from resnet_study.reports.tables import escape, table_lines
from resnet_study.studies.cost import COST_REPORTS, COST_STEPS, cost_table
from resnet_study.studies.curves import draw_mean, part_shown, short_names, styles
from resnet_study.studies.runs import (
    finish_runs,
    format_spread,
    group_runs,
    plan_runs,
    result_row,
    study_command,
    study_folder,
    write_results,
)


def accuracy_table(groups) -> pd.DataFrame:
    """Table 1 of Lu & Song: a row per group, single values per seed in lists, published numbers beside them (or NaN)."""
    rows = []
    for (dataset, model_name, preset), runs in groups.items():
        config, family = runs[0].config, find_family(model_name)
        watched = [each.watched_accuracy for each in runs]
        is_theirs = not is_changed(config) and (family, dataset) in LU_SONG_TABLE
        published = LU_SONG_TABLE[family, dataset] if is_theirs else (np.nan, np.nan)
        rows.append(
            {
                "dataset": dataset,
                "model": model_name,
                "preset": preset,
                "seeds": len(runs),
                "published_training": published[0],
                "training": [each.training_accuracy for each in runs],
                "validation": [each.validation_accuracy for each in runs],
                "published_test": published[1],
                # One run that did not look leaves the group without: a mean of fewer runs is another number.
                "watched": [] if None in watched else watched,
                "test": [each.test["accuracy"] for each in runs],
            }
        )
    return pd.DataFrame(rows)


def difference_table(accuracies: pd.DataFrame) -> pd.DataFrame:
    """Percentage points of test accuracy of every model over every LeNet and AlexNet on the same data; means over seeds."""
    rows = []
    for _, row in accuracies.iterrows():
        for _, other in accuracies[accuracies["dataset"] == row["dataset"]].iterrows():
            same = (row["model"], row["preset"]) == (other["model"], other["preset"])
            family = find_family(other["model"])
            if not same and family in ("lenet", "alexnet"):
                # Of two forms of one family, the paper has one number.
                is_theirs = find_family(row["model"]) != family
                rows.append(
                    {
                        "dataset": row["dataset"],
                        "model": row["model"],
                        "preset": row["preset"],
                        "over": other["model"],
                        "over_preset": other["preset"],
                        "points": statistics.mean(row["test"]) - statistics.mean(other["test"]),
                        "published_points": row["published_test"] - other["published_test"] if is_theirs else np.nan,
                    }
                )
    return pd.DataFrame(rows)


def class_table(groups) -> pd.DataFrame:
    """Precision, recall and F1 of every class in every run, as in `result.json`."""
    return pd.DataFrame(
        [
            {"dataset": dataset, "model": model_name, "preset": preset, "seed": each.config.seed, **scores}
            for (dataset, model_name, preset), runs in groups.items()
            for each in runs
            for scores in each.test["per_class"]
        ]
    )


def compare(given: dict, models, datasets, seeds) -> Path:
    """Networks against each other, with the numbers of Lu & Song beside them.

    Args:
        given, models, datasets, seeds: see `plan_runs`; `version` names the folder of the study.

    Returns:
        The folder: report.md, accuracy.csv, cost.csv, per_class.csv, study.json and the figures.

    Raises:
        UsageError, Interrupted: see `finish_runs`.
    """
    folder = study_folder(given, "compare")
    runs, failures = finish_runs(plan_runs(given, models, datasets, seeds))
    groups = group_runs(runs)
    accuracies, classes = accuracy_table(groups), class_table(groups)
    differences, costs = difference_table(accuracies), cost_table(groups, folder)
    flat = accuracies.assign(
        **{name: accuracies[name].map(lambda values: " ".join(f"{x:.4f}" for x in values)) for name in _ACCURACIES}
    )
    for name, table in {"accuracy": flat, "difference": differences, "cost": costs, "per_class": classes}.items():
        write_atomically(folder / f"{name}.csv", table.to_csv(index=False))
    drawn = []
    with matplotlib.rc_context(STYLE):
        for dataset in dict.fromkeys(key[0] for key in groups):
            of_dataset = {key[1:]: runs for key, runs in groups.items() if key[0] == dataset}
            config = next(iter(of_dataset.values()))[0].config
            data = cifar10_input.load_data(config)
            figures = {
                f"accuracy-{dataset}": draw_accuracy(of_dataset, dataset),
                f"samples-{dataset}": draw_samples(data.train, data.class_names, dataset),
            }
            if len(data.class_names) <= 20:
                for (model_name, preset), runs in of_dataset.items():
                    matrix = sum(np.array(each.test["confusion_matrix"]) for each in runs)
                    title = f"{model_name} on {dataset}, preset {preset}, {len(runs)} seed{'s' * (len(runs) > 1)}"
                    figures[f"confusion-{dataset}-{model_name}-{preset}"] = draw_confusion(
                        matrix, data.class_names, title
                    )
            for name, figure in figures.items():
                drawn.append(save_figure(figure, folder / f"{name}.png"))
    rows = []
    for _, row in accuracies.iterrows():
        runs = groups[row["dataset"], row["model"], row["preset"]]
        rows += [
            result_row(runs, "highest training accuracy", row["training"], row["published_training"], LU_SONG),
            result_row(runs, "highest validation accuracy", row["validation"]),
            result_row(runs, "test accuracy, chosen on validation", row["test"], row["published_test"], LU_SONG),
        ]
        if row["watched"]:
            metric = "highest test accuracy, chosen on the test images"
            rows.append(result_row(runs, metric, row["watched"], row["published_test"], LU_SONG))
    for _, row in costs.iterrows():
        runs = groups[row["dataset"], row["model"], row["preset"]]
        rows += [
            result_row(runs, metric, [row[name]], unit=unit) | {"hardware": row["hardware"]}
            for name, (metric, unit) in _COSTS.items()
            if not pd.isna(row[name])
        ]
    report = _compare_report(accuracies, differences, costs, classes)
    command = study_command("compare", given, models=models, datasets=datasets, seeds=seeds)
    return write_results(folder, command, rows, report, drawn, groups, failures)


_ACCURACIES = ("training", "validation", "watched", "test")
_COSTS = {
    "multiply_adds": ("multiply-adds per image", ""),
    "training_tflop": ("training work", "TFLOP"),
    "training_seconds": ("training, per 1,000 images", "s"),
    "inference_seconds": ("inference, per 1,000 images", "s"),
    "training_memory": ("peak memory of training", "MB"),
    "model_mb": ("weights", "MB"),
}


def _compare_report(accuracies, differences, costs, classes) -> str:
    lines = [
        "**Accuracy in %**, mean ± sample standard deviation over the seeds. Lu & Song print the highest accuracy that any epoch",
        "reached, also on the test images, which chooses by the very images it is told of. Ours of that kind stands beside theirs. The",
        "last column is what a user gets: the one test of the weights that did best on the validation images. Accuracies on the",
        "training images are those of the augmented batches of a report interval.",
        "",
    ]
    cells = []
    for _, row in accuracies.iterrows():
        digits = 2 if row["dataset"] != "mnist" else 3
        spreads = [format_spread(row[name], digits) for name in ("training", "validation", "test")]
        watched = format_spread(row["watched"], digits) if row["watched"] else "not watched"
        published = format_published(row["published_training"]), format_published(row["published_test"])
        cells.append([row["dataset"], row["model"], row["preset"], row["seeds"], published[0], *spreads[:2]])
        cells[-1] += [published[1], watched, f"**{spreads[2]}**"]
    header = [
        "data set",
        "model",
        "preset",
        "seeds",
        "highest training, Lu & Song",
        "highest training",
        "highest validation",
    ]
    header += ["highest test, Lu & Song", "highest test", "test, chosen on validation"]
    lines += table_lines(header, "lllrrrrrrr", cells)
    if len(differences):
        lines += ["", "**Differences of test accuracy** in percentage points, means over seeds:", ""]
        cells = []
        for _, row in differences.iterrows():
            of_dataset = accuracies[accuracies["dataset"] == row["dataset"]]
            shown = short_names(zip(of_dataset["model"], of_dataset["preset"], strict=True))
            names = shown[row["model"], row["preset"]], shown[row["over"], row["over_preset"]]
            published = "" if pd.isna(row["published_points"]) else f"{row['published_points']:+.3f}"
            cells.append([row["dataset"], *names, published, f"{row['points']:+.3f}"])
        lines += table_lines(["data set", "model", "over", "Lu & Song", "ours"], "lllrr", cells)
    lines += [
        "",
        "**Costs.** A multiply-add is two operations; training costs three forward passes of each image trained on. Speed and memory are those of a",
        f"process of its own that does nothing else: {COST_STEPS * COST_REPORTS} training steps with the run's settings, memory at its peak and data included;",
        "inference in float32 and batches of 125. The last column is the time of the whole run, other work of the machine included.",
        "",
    ]
    cells = []
    for _, row in costs.iterrows():
        memory = "not measured" if pd.isna(row["training_memory"]) else f"{row['training_memory']:,.0f}"
        work = f"{row['multiply_adds'] / 1e6:,.2f}", f"{row['training_tflop']:,.1f}"
        seconds = f"{row['training_seconds']:.3f}", f"{row['inference_seconds']:.3f}"
        cells.append([row["dataset"], row["model"], row["preset"], f"{row['parameters']:,}", *work, *seconds, memory])
        cells[-1] += [f"{row['model_mb']:.2f}", row["hardware"], f"{row['wall_minutes']:.1f}"]
    header = [
        "data set",
        "model",
        "preset",
        "trainable parameters",
        "million multiply-adds per image",
        "training, TFLOP",
    ]
    header += ["training, s per 1,000 images", "inference, s per 1,000 images", "peak memory, MB", "weights, MB"]
    lines += table_lines([*header, "measured on", "training, min"], "lllrrrrrrrlr", cells)
    lines += ["", "**F1 of each class**, mean over seeds; precision and recall stand in `per_class.csv`."]
    for dataset, part in classes.groupby("dataset", sort=False):
        if part["class"].nunique() > 20:
            continue
        table = part.pivot_table("f1", "class", ["model", "preset"], "mean", sort=False)
        cells = [
            [escape(name), *(f"{value:.3f}" for value in values)]
            for name, values in zip(table.index, table.to_numpy(), strict=True)
        ]
        names = short_names(table.columns).values()
        lines += ["", *table_lines([dataset, *names], "l" + "r" * len(names), cells)]
    return "\n".join(lines)


def format_published(value) -> str:
    return "" if pd.isna(value) else f"{value:.3f}"


def draw_accuracy(groups: dict, dataset: str):
    """Figures 4 and 6 of Lu & Song: left training, right test accuracy against epochs; a diamond is the test of the chosen weights.

    Where not every run looked at the test images, the right panel shows the validation accuracy, and says so.

    Args:
        groups: (model, preset) -> list of `runs.FinishedRun`, one per seed.
        dataset: for the title.
    """
    figure, panels = make_panels(1, 2, figsize=(9.6, 4), sharey=True)
    names, lowest = short_names(groups), []
    shown = part_shown(groups)
    for key, style in styles(groups).items():
        runs = groups[key]
        tables = [each.history for each in runs]
        for axes, column in zip(panels, ("train_error", f"{shown}_error"), strict=True):
            values = draw_mean(
                axes, tables, "epoch", column, lambda error: 100 - error, label=names[key], linewidth=1.5, **style
            )
            # What counts is above the first fifth of the training.
            lowest.append(values[:, values.shape[1] // 5 :].min())
        chosen = [float(each.history.set_index("step")["epoch"][each.result["best_step"]]) for each in runs]
        test = np.mean([each.test["accuracy"] for each in runs])
        panels[1].plot(
            np.mean(chosen),
            test,
            "D",
            color=style["color"],
            markeredgecolor=BLACK,
            markeredgewidth=0.6,
            clip_on=False,
            zorder=5,
        )
        lowest.append(test)
    panels[0].set(title="training (augmented)", xlabel="epoch", ylabel="accuracy (%)")
    panels[1].set(title="test" if shown == "test" else "validation, and the one test", xlabel="epoch")
    span = 100 - min(lowest)
    panels[0].set_ylim(max(0, min(lowest) - 0.08 * span), 100 + 0.02 * span)
    handles, _ = panels[1].get_legend_handles_labels()
    diamond = Line2D([], [], marker="D", linestyle="", color="grey", markeredgecolor=BLACK, markeredgewidth=0.6)
    labels = [*names.values(), "test, weights chosen on validation"]
    figure.legend([*handles, diamond], labels, loc="outside lower center", ncols=min(4, len(labels)))
    figure.suptitle(dataset)
    return figure
