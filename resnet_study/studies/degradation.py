"""Plain against residual networks at several depths: figure 6 of He et al. 2015, and the gradient norms behind it."""

import itertools
import re
import statistics
from pathlib import Path

import keras
import matplotlib
import numpy as np
import pandas as pd
import tensorflow as tf
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

import cifar10_input
from resnet_study.errors import UsageError
from resnet_study.files import write_atomically
from resnet_study.reports.canvas import BLUE, STYLE, VERMILION, make_panels, save_figure
from resnet_study.reports.published import DEPTH_TABLE, published_number
from resnet_study.reports.tables import table_lines
from resnet_study.saved_models import load_model
from resnet_study.studies.curves import draw_mean, part_shown, styles
from resnet_study.studies.runs import (
    FinishedRun,
    finish_runs,
    format_spread,
    group_runs,
    plan_runs,
    result_row,
    study_command,
    study_folder,
    write_results,
)

_NETWORK = re.compile(r"(plain|resnet)(\d+)")


def measure_gradient_norms(finished: FinishedRun) -> pd.DataFrame:
    """The norm of the loss gradient by each kernel, before and after the training.

    Of the first 128 training images without augmentation, with batch statistics as in training, without weight decay. The trained
    weights are those that were tested. The untrained ones are drawn anew, as the seed of the run says.

    Args:
        finished: run of a network with one head.

    Returns:
        Columns: step, then a column per layer, from input to output. Two rows: step 0, and that of the tested weights.
    """
    config = finished.config
    trained = load_model(str(finished.run.path))
    keras.utils.set_random_seed(config.seed)
    untrained = keras.models.clone_model(trained)
    training, _ = cifar10_input.split_data(cifar10_input.load_data(config), config)
    part = training.take(np.arange(min(128, len(training))))
    rows = []
    for step, model in ((0, untrained), (finished.result["best_step"], trained)):
        kernels = {layer.name: layer.kernel for layer in model.layers if hasattr(layer, "kernel")}
        with tf.GradientTape() as tape:
            chosen = tf.gather(model(part.images, training=True), part.labels, batch_dims=1)
            loss = -tf.reduce_mean(tf.math.log(tf.maximum(chosen, 1e-9)))
        gradients = tape.gradient(loss, [kernel.value for kernel in kernels.values()])
        norms = {name: float(tf.norm(gradient)) for name, gradient in zip(kernels, gradients, strict=True)}
        rows.append({"step": step, **norms})
    return pd.DataFrame(rows)


def degrade(given: dict, depths, seeds, short: bool, models=()) -> Path:
    """The degradation experiment of He et al. 2015: plain and residual networks of equal depth, trained by one recipe.

    Args:
        given: as in `plan_runs`; without a preset, "degradation" (short) or "he2015", of which ResNet-110 and plain-110 take
            the variant with a slow start, "he2015_110".
        depths: 6n+2 each.
        seeds: ints.
        short: the setting for two cores and an hour.
        models: plain and residual networks, as in `plan_runs`, in the place of those of `depths`.

    Returns:
        The folder: report.md, degradation.csv, study.json and the figures.

    Raises:
        UsageError, Interrupted: see `finish_runs`.
    """
    folder = study_folder(given, "degradation")
    dataset = given.get("dataset", "cifar10")
    recipe = given.get("preset") or ("degradation" if short else "he2015")
    for name in models:
        match = re.match(_NETWORK.pattern + "([:@]|$)", name)
        if not match or int(match[2]) % 6 != 2:  # ResNet-9 is of another family
            raise UsageError(
                f"--mode=degradation takes plain and residual networks such as plain20 and resnet20, received {name}; leave it out, depths are 6n+2"
            )
    entries = models or [f"{form}{depth}" for depth in depths for form in ("plain", "resnet")]
    if recipe == "he2015":
        parts = [re.fullmatch(r"(\w+?(\d+))(@.*)?", entry) for entry in entries]
        entries = [
            f"{part[1]}:he2015_110{part[3] or ''}" if part and int(part[2]) >= 110 else entry
            for part, entry in zip(parts, entries, strict=True)
        ]
    configs = plan_runs(given | {"preset": recipe}, entries, [dataset], seeds, held_out=False)
    recipes = {(config.model_name, config.preset) for config in configs}
    if len(recipes) > len({name for name, _ in recipes}):
        raise UsageError(
            "--mode=degradation draws each network by one recipe, received one with two; give another --version"
        )
    finished, failures = finish_runs(configs)
    groups = group_runs(finished)
    rows, table = [], []
    for (_, model_name, preset), runs in groups.items():
        form, depth = _NETWORK.fullmatch(model_name).groups()
        norms = [_read_norms(each) for each in runs]
        layers = [name for name in norms[0].columns if "conv" in name]
        known, error, source = published_number(runs[0].config) or (None,) * 3
        numbers = {
            "training error, last report": [float(each.history["train_error"].iloc[-1]) for each in runs],
            "test error": [each.test["error"] for each in runs],
            "gradient norm, first / last convolution, untrained": [
                float(norm[layers[0]].iloc[0] / norm[layers[-1]].iloc[0]) for norm in norms
            ],
            "gradient norm, first / last convolution, trained": [
                float(norm[layers[0]].iloc[-1] / norm[layers[-1]].iloc[-1]) for norm in norms
            ],
        }
        table.append({"form": form, "depth": int(depth), "preset": preset, "seeds": len(runs), **numbers})
        for metric, values in numbers.items():
            published = (error, source) if known == "test_error" and metric == "test error" else (None, None)
            unit = "x" if metric.startswith("gradient") else "%"
            rows.append(result_row(runs, metric, values, *published, unit=unit))
    table = pd.DataFrame(table)
    means = table.map(lambda value: statistics.mean(value) if isinstance(value, list) else value)
    write_atomically(folder / "degradation.csv", means.to_csv(index=False))
    with matplotlib.rc_context(STYLE):
        norms = {key[1]: _read_norms(runs[0]) for key, runs in groups.items()}
        by_network = {key[1]: runs for key, runs in groups.items()}
        figures = {
            "error_against_step": draw_error_against_step(by_network, dataset),
            "error_against_depth": draw_error_against_depth(means, dataset),
            "gradient_norms": draw_gradient_norms(norms, dataset),
        }
        drawn = [save_figure(figure, folder / f"{name}.png") for name, figure in figures.items()]
    named = {"models": models} if models else {"depths": depths}
    command = study_command("degradation", given, **named, seeds=seeds, short=short)
    return write_results(folder, command, rows, _degradation_report(table), drawn, groups, failures)


def _read_norms(finished: FinishedRun) -> pd.DataFrame:
    run = finished.run
    # A run that was made longer since has other weights.
    if not run.gradient_norms.exists() or run.gradient_norms.stat().st_mtime < run.best.stat().st_mtime:
        write_atomically(run.gradient_norms, measure_gradient_norms(finished).to_csv(index=False))
    try:
        norms = pd.read_csv(run.gradient_norms)
        if not len(norms) or "step" not in norms or not np.isfinite(norms.to_numpy(float)).all():
            raise ValueError("it has no finite numbers")
        return norms
    except (OSError, ValueError) as error:
        raise UsageError(f"{run.gradient_norms} is damaged ({error}); delete it, and it is measured again") from error


def _degradation_report(table) -> str:
    lines = [
        "Top-1 errors in %. Training: mean over the augmented batches of the last report interval. Test: once, with the weights chosen on",
        "validation images, or the last ones where none are held out. Gradient: norm by the first convolution over that by the last.",
        "",
    ]
    cells = [
        [row["depth"], row["form"], row["preset"], row["seeds"], *(format_spread(values) for values in row.iloc[4:])]
        for _, row in table.sort_values(["depth", "form"], kind="stable").iterrows()
    ]
    header = ["depth", "model", "preset", "seeds", "training", "test"]
    header += ["gradient, untrained", "gradient, trained"]
    return "\n".join([*lines, *table_lines(header, "rllrrrrr", cells)])


def draw_error_against_step(groups: dict, dataset: str):
    """Figure 6 of He et al. 2015: left plain, right residual networks; dashed training, solid test error.

    Where not every run looked at the test images, the solid lines are the validation error. Each depth has a colour and a marker.

    Args:
        groups: model -> list of `runs.FinishedRun`, one per seed.
        dataset: for the title.
    """
    figure, panels = make_panels(1, 2, figsize=(9.6, 4), sharey=True)
    depths, shown = _depths(groups), part_shown(groups)
    colours = {depth: style["color"] for depth, style in styles(depths).items()}
    markers = dict(zip(depths, itertools.cycle("osD^v"), strict=False))
    for axes, form in zip(panels, ("plain", "resnet"), strict=True):
        for depth in depths:
            label = f"{form}{depth}"
            if label not in groups:  # its runs failed
                continue
            tables = [each.history for each in groups[label]]
            colour = colours[depth]
            # No solid line where images were neither held out nor looked at.
            lines = [("train_error", {"linestyle": "--", "linewidth": 1})]
            if all(f"{shown}_error" in table for table in tables):
                marked = {"marker": markers[depth], "markersize": 4, "markevery": 2}
                lines.append((f"{shown}_error", {"linewidth": 1.7, **marked}))
            for column, style in lines:
                named = label if column == lines[-1][0] else None
                draw_mean(axes, tables, "step", column, np.asarray, color=colour, label=named, **style)
        axes.set(title={"plain": "plain", "resnet": "residual"}[form], xlabel="step", xlim=(0, None))
        handles, labels = axes.get_legend_handles_labels()
        handles += [Line2D([], [], color="grey"), Line2D([], [], color="grey", linestyle="--")]
        axes.legend(handles, [*labels, shown, "training"], ncols=2)
    panels[0].set_ylabel("top-1 error (%)")
    panels[0].set_ylim(bottom=0)
    figure.suptitle(f"plain and residual networks on {dataset}")
    return figure


def draw_error_against_depth(table, dataset: str):
    """Training error (left) and test error (right) at the end against depth; with the latter, what others have published.

    Args:
        table: columns form, depth and the two errors, means over seeds.
        dataset: for the title.
    """
    figure, panels = make_panels(1, 2, figsize=(9.6, 3.8), sharey=True)
    columns = ("training error, last report", "test error")
    for axes, column in zip(panels, columns, strict=True):
        for form, label, style in (
            ("plain", "plain", {"color": VERMILION, "linestyle": "--"}),
            ("resnet", "residual", {"color": BLUE}),
        ):
            part = table[table["form"] == form].sort_values("depth")
            if len(part):
                axes.plot(part["depth"], part[column], marker="o", label=label, **style)
        for marker, (source, of_data) in zip("s^", DEPTH_TABLE.items(), strict=True) if axes is panels[1] else ():
            if shown := sorted(set(of_data.get(dataset, {})) & set(table["depth"])):
                errors = [of_data[dataset][depth] for depth in shown]
                axes.plot(shown, errors, marker, color="grey", label=source)
        axes.set(title=column, xlabel="layers", xticks=sorted(set(table["depth"])))
    figure.legend(*panels[1].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    panels[0].set_ylabel("top-1 error (%)")
    panels[0].set_ylim(bottom=0)
    figure.suptitle(f"plain and residual networks on {dataset}")
    return figure


def draw_gradient_norms(norms: dict, dataset: str):
    """Gradient norm of each convolution, from input to output: plain above, residual below, before and after the training.

    Args:
        norms: model -> table of `gradient_norms.csv`.
        dataset: for the title.
    """
    depths = _depths(norms)
    figure, panels = make_panels(2, 2, figsize=(9.6, 6), sharey=True, sharex=True)
    for row, (form, word) in zip(panels, (("plain", "plain"), ("resnet", "residual")), strict=True):
        for depth, style in styles(depths).items():
            if f"{form}{depth}" not in norms:  # its runs failed
                continue
            table = norms[f"{form}{depth}"]
            layers = [name for name in table.columns if "conv" in name]
            for axes, index in zip(row, (0, len(table) - 1), strict=True):
                values = np.maximum(table[layers].iloc[index].to_numpy(float), 1e-12)
                axes.semilogy(range(1, 1 + len(layers)), values, label=f"{form}{depth}", linewidth=1.3, **style)
                axes.set_title(f"{word}, {'trained' if index else 'untrained'}")
        row[0].set_ylabel("norm of the gradient")
        # Numbers, since powers of ten would need math in texts, which is off.
        row[0].yaxis.set(
            major_locator=LogLocator(subs=(1, 3)), major_formatter="{x:g}", minor_formatter=NullFormatter()
        )
        if row[-1].lines:
            row[-1].legend(fontsize=8)
    for axes in panels[-1]:
        axes.set_xlabel("convolution, from the input")
    figure.suptitle(f"loss gradient by each kernel, one fixed batch of {dataset}")
    return figure


def _depths(models) -> list[int]:
    return sorted({int(name.removeprefix("plain").removeprefix("resnet")) for name in models})
