"""How the studies look: lines of several nets in one figure. Everything here draws; `comparative_study` reads and saves.

Colours are Okabe and Ito's; lines differ in dash too, for print without colour, but where the dash tells something else.
"""

import itertools

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatter

import image_corruption
from training_report import BLACK, BLUE, GREEN, ORANGE, VERMILION, draw_grid

_COLOURS = (BLUE, ORANGE, GREEN, VERMILION, "#CC79A7", "#56B4E9", BLACK)
_DASHES = ("-", "--", "-.", ":")


def _styles(names) -> dict:
    """name -> colour and dash of its line."""
    pairs = zip(itertools.cycle(_COLOURS), itertools.cycle(_DASHES), strict=False)
    return {name: {"color": colour, "linestyle": dash} for name, (colour, dash) in zip(names, pairs, strict=False)}


def short_names(keys) -> dict:
    """(net, preset) -> the net, with its preset where two have the same net."""
    keys = list(keys)
    nets = [net for net, _ in keys]
    return {key: key[0] if nets.count(key[0]) == 1 else f"{key[0]} ({key[1]})" for key in keys}


def _draw_mean(axes, tables, x, column, transform, **options):
    """The mean line over the tables of several seeds, and the band from the lowest to the highest."""
    rows = min(map(len, tables))
    values = np.array([transform(table[column].to_numpy(float)[1:rows]) for table in tables])
    steps = tables[0][x].to_numpy(float)[1:rows]
    axes.plot(steps, values.mean(axis=0), **options)
    if len(tables) > 1:
        axes.fill_between(
            steps, values.min(axis=0), values.max(axis=0), color=options["color"], alpha=0.15, linewidth=0
        )
    return values


def _part_shown(groups: dict) -> str:
    """ "test" if every run looked at the test images at its reports, else "validation"."""
    looked = all(each.watched_accuracy is not None for runs in groups.values() for each in runs)
    return "test" if looked else "validation"


def draw_accuracy(groups: dict, dataset: str):
    """Figures 4 and 6 of Lu & Song: left training, right test accuracy against epochs; a diamond is the test of the chosen weights.

    Where not every run looked at the test images, the right panel shows the validation accuracy, and says so.

    Args:
        groups: (net, preset) -> list of `comparative_study.FinishedRun`, one per seed.
        dataset: for the title.
    """
    figure, panels = plt.subplots(1, 2, figsize=(9.6, 4), sharey=True)
    names, lowest = short_names(groups), []
    shown = _part_shown(groups)
    for key, style in _styles(groups).items():
        runs = groups[key]
        tables = [each.history for each in runs]
        for axes, column in zip(panels, ("train_error", f"{shown}_error"), strict=True):
            values = _draw_mean(
                axes, tables, "epoch", column, lambda error: 100 - error, label=names[key], linewidth=1.5, **style
            )
            # What counts is above the first fifth of the training.
            lowest.append(values[:, values.shape[1] // 5 :].min())
        chosen = [float(each.history.set_index("step")["epoch"][each.result["best_step"]]) for each in runs]
        test = np.mean([each.test_accuracy for each in runs])
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


def draw_error_against_step(groups: dict, dataset: str):
    """Figure 6 of He et al. 2015: left plain, right residual nets; dashed training, solid test error.

    Where not every run looked at the test images, the solid lines are the validation error. Depths differ in colour alone;
    `draw_error_against_depth` tells them apart in print.

    Args:
        groups: net -> list of `comparative_study.FinishedRun`, one per seed.
        dataset: for the title.
    """
    figure, panels = plt.subplots(1, 2, figsize=(9.6, 4), sharey=True)
    depths, shown = _depths(groups), _part_shown(groups)
    colours = {depth: style["color"] for depth, style in _styles(depths).items()}
    for axes, form in zip(panels, ("plain", "resnet"), strict=True):
        for depth in depths:
            label = f"{form}{depth}"
            if label not in groups:  # its runs failed
                continue
            tables = [each.history for each in groups[label]]
            colour = colours[depth]
            _draw_mean(axes, tables, "step", "train_error", np.asarray, color=colour, linestyle="--", linewidth=1)
            _draw_mean(axes, tables, "step", f"{shown}_error", np.asarray, color=colour, linewidth=1.7, label=label)
        axes.set(title={"plain": "plain", "resnet": "residual"}[form], xlabel="step", xlim=(0, None))
        handles, labels = axes.get_legend_handles_labels()
        handles += [Line2D([], [], color="grey"), Line2D([], [], color="grey", linestyle="--")]
        axes.legend(handles, [*labels, shown, "training"], ncols=2)
    panels[0].set_ylabel("top-1 error (%)")
    panels[0].set_ylim(bottom=0)
    figure.suptitle(f"plain and residual nets on {dataset}")
    return figure


def draw_error_against_depth(table, dataset: str):
    """Training error (left) and test error (right) at the end against depth.

    Args:
        table: columns form, depth and the two errors, means over seeds.
        dataset: for the title.
    """
    figure, panels = plt.subplots(1, 2, figsize=(9.6, 3.8), sharey=True)
    columns = ("training error, last report", "test error, chosen on validation")
    for axes, column in zip(panels, columns, strict=True):
        for form, label, style in (
            ("plain", "plain", {"color": VERMILION, "linestyle": "--"}),
            ("resnet", "residual", {"color": BLUE}),
        ):
            part = table[table["form"] == form].sort_values("depth")
            axes.plot(part["depth"], part[column], marker="o", label=label, **style)
        axes.set(title=column, xlabel="layers", xticks=sorted(set(table["depth"])))
        axes.legend()
    panels[0].set_ylabel("top-1 error (%)")
    panels[0].set_ylim(bottom=0)
    figure.suptitle(f"plain and residual nets on {dataset}")
    return figure


def draw_gradient_norms(norms: dict, dataset: str):
    """Gradient norm of each convolution, from input to output: plain above, residual below, at three times of the training.

    Args:
        norms: net -> table of `gradient_norms.csv`.
        dataset: for the title.
    """
    depths = _depths(norms)
    figure, panels = plt.subplots(2, 3, figsize=(9.6, 6), sharey=True, sharex=True)
    for row, (form, word) in zip(panels, (("plain", "plain"), ("resnet", "residual")), strict=True):
        for depth, style in _styles(depths).items():
            if f"{form}{depth}" not in norms:  # its runs failed
                continue
            table = norms[f"{form}{depth}"]
            layers = [name for name in table.columns if "conv" in name]
            for axes, index in zip(row, (0, (len(table) - 1) // 2, len(table) - 1), strict=True):
                values = np.maximum(table[layers].iloc[index].to_numpy(float), 1e-12)
                axes.semilogy(range(1, 1 + len(layers)), values, label=f"{form}{depth}", linewidth=1.3, **style)
                axes.set_title(f"{word}, step {int(table['step'].iloc[index]):,}")
        row[0].set_ylabel("norm of the gradient")
        # The powers of ten would need math in texts, which is off.
        row[0].yaxis.set_major_formatter("{x:g}")
        row[0].yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
        if row[-1].lines:
            row[-1].legend(fontsize=8)
    for axes in panels[-1]:
        axes.set_xlabel("convolution, from the input")
    figure.suptitle(f"loss gradient by each kernel, one fixed batch of {dataset}")
    return figure


def _depths(nets) -> list[int]:
    return sorted({int(name.removeprefix("plain").removeprefix("resnet")) for name in nets})


def draw_robustness(table, dataset: str):
    """Accuracy against strength, a panel per corruption, a line per net; the band goes from the lowest to the highest seed.

    Args:
        table: columns model, preset, seed, corruption, strength, accuracy (%).
        dataset: for the title.
    """
    kinds = list(image_corruption.CORRUPTIONS)
    keys = list(table[["model", "preset"]].drop_duplicates().itertuples(index=False, name=None))
    figure, panels = plt.subplots(1, len(kinds), figsize=(9.6, 3.6), sharey=True)
    names = short_names(keys)
    for axes, kind in zip(panels, kinds, strict=True):
        for key, style in _styles(keys).items():
            part = table[(table["model"] == key[0]) & (table["preset"] == key[1]) & (table["corruption"] == kind)]
            by_strength = part.groupby("strength")["accuracy"]
            mean = by_strength.mean()
            axes.plot(mean.index, mean, marker="o", markersize=3, label=names[key], **style)
            axes.fill_between(
                mean.index, by_strength.min(), by_strength.max(), color=style["color"], alpha=0.15, linewidth=0
            )
        meaning, values = image_corruption.CORRUPTIONS[kind]
        axes.set(title=kind, xticks=[0, *range(1, 1 + len(values))])
        axes.set_xlabel(meaning.replace(", ", ",\n"), fontsize=8)
        axes.set_xticklabels(["clean", *(f"{value:g}" for value in values)], rotation=60)
    panels[0].set_ylabel("test accuracy (%)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
    figure.suptitle(f"corrupted test pictures of {dataset}")
    return figure


def draw_corruptions(image, dataset: str):
    """One test picture at every strength of every corruption.

    Args:
        image: uint8 [1, height, width, channels].
        dataset: for the title.
    """
    rows = [
        [image_corruption.corrupt(image, kind, strength)[0] for strength in image_corruption.STRENGTHS]
        for kind in image_corruption.CORRUPTIONS
    ]
    return draw_grid(rows, list(image_corruption.CORRUPTIONS), f"the first test picture of {dataset}, strengths 0 - 5")
