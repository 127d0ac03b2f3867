"""What all figures share: colours, style, axes and how they are written.

Colours are Okabe and Ito's, which colour-blind readers tell apart; lines differ in dash too, for print without colour. Nothing here
uses pyplot, so that a notebook keeps its backend.
"""

import io
from pathlib import Path

from matplotlib.figure import Figure

from resnet_study.files import write_atomically
from resnet_study.reports.fonts import font_families, missing_characters_told, wrap

BLACK, ORANGE, BLUE, GREEN, VERMILION = "#000000", "#E69F00", "#0072B2", "#009E73", "#D55E00"
STYLE = {
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "font.family": font_families(),
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "text.parse_math": False,  # a class may be called "$"
}


def make_panels(rows=1, columns=1, *, figsize, **options):
    """A figure and its axes, as `pyplot.subplots` makes them, but outside of pyplot: a notebook keeps its backend.

    Args:
        rows, columns: of axes.
        figsize: (width, height) in inches.
        **options: of `matplotlib.figure.Figure.subplots`.
    """
    figure = Figure(figsize=figsize)
    return figure, figure.subplots(rows, columns, **options)


def wrap_title(title: str, width: float) -> str:
    """The title in lines that fit a figure of `width` inches."""
    return wrap(title, int(9 * width))


def save_figure(figure, path: Path) -> Path:
    """Writes a figure as PNG, see `write_atomically`; returns the path."""
    buffer = io.BytesIO()
    with missing_characters_told():
        figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())
    return path


def highest_error(history, tested: float) -> float:
    """Where the axis of errors ends, in %: beside the error of the untrained network, those of the trained one would lie on the axis.

    Args:
        history: table of `error.csv`.
        tested: error of the one test, in %.
    """
    lowest = history["validation_error"].min() if "validation_error" in history else tested
    names = [name for name in history if name.endswith("_error") or name == "validation_error_unaveraged"]
    first = _first_shown(history)
    if lowest < 2 and first:  # of few validation images none may be wrong, and some of the test
        ends = [1.2 * history[name].iloc[-1] for name in names]  # so that each curve ends within
        return min(100.0, max(1.0, 5 * lowest, 1.2 * tested, *(end for end in ends if end == end)))
    trained = [tested, *(error for error in (history[name][first:].max() for name in names) if error == error)]
    return min(100.0, 1.1 * max(trained))


def highest_loss(history, guess: float) -> float:
    """Where the axis of losses ends: beside that of an untrained network, which can be ten times that of guessing, the rest would lie on it.

    Args:
        history: table of `error.csv`.
        guess: the loss of guessing.
    """
    names = [name for name in ("train_loss", "validation_loss") if name in history and len(history) > 1]
    return 1.05 * max([guess, *(float(history[name][_first_shown(history) :].max()) for name in names)])


def _first_shown(history) -> int:
    """The first report that an axis must show. Of few reports all are: without that of the untrained network hardly a curve would be left."""
    return int(len(history) > 4)
