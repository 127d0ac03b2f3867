"""What the figures of the studies share: a colour and a dash for each network, the mean over seeds and its band.

Colours are Okabe and Ito's; lines differ in dash too, for print without colour, but where the dash tells something else.
"""

import itertools

import numpy as np

from resnet_study.reports.canvas import BLACK, BLUE, GREEN, ORANGE, VERMILION

_COLOURS = (BLUE, ORANGE, GREEN, VERMILION, "#CC79A7", "#56B4E9", BLACK)
_DASHES = ("-", "--", "-.", ":")


def styles(names) -> dict:
    """name -> colour and dash of its line."""
    pairs = zip(itertools.cycle(_COLOURS), itertools.cycle(_DASHES), strict=False)
    return {name: {"color": colour, "linestyle": dash} for name, (colour, dash) in zip(names, pairs, strict=False)}


def short_names(keys) -> dict:
    """(model, preset) -> the model, with its preset where two have the same model."""
    keys = list(keys)
    models = [model for model, _ in keys]
    return {key: key[0] if models.count(key[0]) == 1 else f"{key[0]} ({key[1]})" for key in keys}


def draw_mean(axes, tables, x, column, transform, **options):
    """The mean line over the tables of several seeds, and the band from the lowest to the highest, where all have a report."""
    reports = [table[1:].set_index(x)[column] for table in tables]
    steps = sorted(set.intersection(*(set(report.index) for report in reports)))
    values = np.array([transform(report.loc[steps].to_numpy(float)) for report in reports])
    axes.plot(steps, values.mean(axis=0), **options)
    if len(tables) > 1:
        axes.fill_between(
            steps, values.min(axis=0), values.max(axis=0), color=options["color"], alpha=0.15, linewidth=0
        )
    return values


def part_shown(groups: dict) -> str:
    """ "test" if every run looked at the test images at its reports, else "validation"."""
    looked = all(each.watched_accuracy is not None for runs in groups.values() for each in runs)
    return "test" if looked else "validation"
