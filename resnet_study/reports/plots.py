"""Curves that a reader can zoom into and read off, for pages; Bokeh draws them in the browser.

Colours are those of `canvas`, without its black and its orange: these four can be told from a white and from a dark page alike. Text, axes
and grid have no colour here, they take that of the page (`templates/page.css`). Each line has a dash of its own too.
"""

import numpy as np
from bokeh.models import ColumnDataSource, HoverTool, InlineStyleSheet, NumeralTickFormatter, Range1d
from bokeh.plotting import figure

from resnet_study.reports.canvas import BLUE, GREEN, VERMILION, highest_error, highest_loss

GREY, PURPLE = "#808080", "#B0609A"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, GREY)
_DASHES = ("solid", "dashed", "dotdash", "dotted")
# The curves of a run as in its figures, but for the orange of training; vermilion is left to the test.
_OF_CURVE = {
    "training (augmented)": (PURPLE, "dashed"),
    "validation": (BLUE, "solid"),
    "validation, last weights": (GREEN, "dotdash"),
    "test, only watched": (GREY, "dotdash"),
}


def make_plot(x_label: str, y_label: str, **options):
    """An empty plot with the tools of all plots; options are those of `bokeh.plotting.figure`."""
    plot = figure(
        x_axis_label=x_label,
        y_axis_label=y_label,
        **{"height": 340, "sizing_mode": "stretch_width", "tools": "pan,box_zoom,wheel_zoom,reset", **options},
        active_drag=None,  # else a finger moves the plot and not the page
    )
    plot.toolbar.logo = None
    plot.toolbar.autohide = True
    plot.background_fill_alpha = plot.border_fill_alpha = 0
    plot.outline_line_color = None
    plot.grid.grid_line_alpha = 0.3
    plot.axis.axis_label_text_font_style = "normal"
    return plot


def draw_lines(x_label: str, y_label: str, lines: dict, *, x_range=None, highest=None, shown="@y{0,0.[0000]}"):
    """Lines over one axis, with a legend whose entries switch them off, and their values under the pointer.

    Args:
        x_label, y_label: of the axes.
        lines: {name: (x, y)}, float [n] each.
        x_range: of another plot, so that both are zoomed together; None = one of its own.
        highest: of the y axis, which begins at 0; None = from the values.

    Returns:
        Bokeh figure.
    """
    plot = make_plot(x_label, y_label, **({"x_range": x_range} if x_range else {}))
    for number, (name, (x, y)) in enumerate(lines.items()):
        color, dash = _OF_CURVE.get(name, (COLOURS[number % len(COLOURS)], _DASHES[number % len(_DASHES)]))
        style = {"color": color, "line_dash": dash, "line_width": 2}
        source = ColumnDataSource({"x": np.asarray(x, float), "y": np.asarray(y, float), "name": [name] * len(x)})
        plot.line("x", "y", source=source, legend_label=name, **style)
        dots = plot.scatter(
            "x", "y", source=source, legend_label=name, size=5, color=style["color"], alpha=0.8 if len(x) <= 120 else 0
        )
        plot.add_tools(
            HoverTool(
                renderers=[dots],
                tooltips=[("", "@name"), (x_label, "@x{0,0.[00]}"), (y_label, shown)],
                formatters={"@y": "printf"} if "%" in shown else {},
                visible=False,
            )
        )
    plot.xaxis.formatter = NumeralTickFormatter(format="0,0.[00]")
    if highest is not None:
        plot.y_range = Range1d(0, highest)
    _place_legend(plot)
    return plot


def _place_legend(plot):
    """Below the plot, so that it hides no line on a narrow page; each entry switches its line."""
    legend = plot.legend[0]
    plot.add_layout(legend, "below")
    legend.click_policy = "hide"
    legend.ncols = 1
    plot.height += 22 * max(0, len(legend.items) - 2)
    legend.location = "left"
    legend.background_fill_alpha = 0
    legend.border_line_color = None
    legend.stylesheets = [InlineStyleSheet(css=".bk-label { color: var(--text) !important; }")]


def draw_errors(history, result: dict, part: str, published, extended_at: int = 0, counted: str = "top-1"):
    """The error curves of a run, its one test and the published number; see `figures.draw` for the same on paper.

    Args:
        history: table of `error.csv`.
        result: content of `result.json`.
        part: the part of `result` that is shown.
        published: (part, error in %, whose it is), or None; see `published.published_error`.
        extended_at: step at which the schedule began anew, which a line marks; 0 = it did not.
        counted: what is counted as an error.
    """
    names = {
        "train_error": "training (augmented)",
        "validation_error": "validation",
        "validation_error_unaveraged": "validation, last weights",
        "test_error": "test, only watched",
    }
    lines = {name: (history["step"], history[column]) for column, name in names.items() if column in history}
    tested = result[part]["error"]
    highest = highest_error(history, tested)
    plot = draw_lines("step", f"{counted} error (%)", lines, highest=highest)
    source = ColumnDataSource({"x": [result["best_step"]], "y": [tested]})
    mark = plot.scatter(
        "x", "y", source=source, marker="diamond", size=14, color=VERMILION, legend_label=f"{part}: {tested:.2f} %"
    )
    plot.add_tools(
        HoverTool(renderers=[mark], tooltips=[(f"{part} error", "@y{0.00} %"), ("step", "@x{0,0}")], visible=False)
    )
    if published is not None:
        of_part, level, source = published
        _draw_level(plot, history["step"], level, f"published {of_part}: {level:.2f} % ({source})")
    if extended_at:
        name = f"extended after step {extended_at:,}"
        plot.line([extended_at] * 2, [0, highest], color=GREY, line_dash="dashed", legend_label=name)
    return plot


def _draw_level(plot, steps, level, name):
    """A dotted line at one height."""
    ends = [float(steps.iloc[0]), float(steps.iloc[-1])]
    plot.line(ends, [level, level], color=GREY, line_dash="dotted", line_width=2, legend_label=name)


def draw_losses(history, classes: int, x_range):
    """Cross-entropy of a run, with that of guessing."""
    names = {"train_loss": "training (augmented)", "validation_loss": "validation"}
    lines = {name: (history["step"], history[column]) for column, name in names.items() if column in history}
    guess = float(np.log(classes))
    plot = draw_lines("step", "cross-entropy (nat)", lines, x_range=x_range, highest=highest_loss(history, guess))
    _draw_level(plot, history["step"], guess, f"guessing, ln {classes}")
    return plot


def draw_pace(history, x_range):
    """(learning rate, images per second) of a run against step."""
    rates = history["learning_rate"]
    lines = {"learning rate": (history["step"], rates)}
    highest = 1.1 * float(rates.max()) or None
    rate = draw_lines("step", "learning rate", lines, x_range=x_range, highest=highest, shown="@y{%.4g}")
    trained = history[history["examples_per_sec"] > 0]
    pace = draw_lines("step", "images/s", {"training": (trained["step"], trained["examples_per_sec"])}, x_range=x_range)
    pace.y_range.start = 0
    rate.legend.visible = pace.legend.visible = False
    return rate, pace


def draw_reliability(metrics: dict):
    """Right answers against confidence, bin by bin (Guo et al. 2017, figure 1); a point is as large as its bin has images."""
    bins = metrics["reliability"]
    plot = make_plot("confidence (%)", "right answers (%)", x_range=(-2, 103), y_range=(-2, 103))
    plot.line([0, 100], [0, 100], color=GREY, line_dash="dotted", line_width=2, legend_label="as often as said")
    source = ColumnDataSource(
        {
            "x": [100 * row["confidence"] for row in bins],
            "y": [100 * row["accuracy"] for row in bins],
            "images": [row["images"] for row in bins],
            "size": [6 + 24 * (row["images"] / metrics["images"]) ** 0.5 for row in bins],
        }
    )
    plot.line("x", "y", source=source, color=BLUE, line_width=2, legend_label="the model")
    points = plot.scatter("x", "y", source=source, size="size", color=BLUE, alpha=0.7)
    tips = [("confidence", "@x{0.0} %"), ("right", "@y{0.0} %"), ("images", "@images{0,0}")]
    plot.add_tools(HoverTool(renderers=[points], tooltips=tips, visible=False))
    _place_legend(plot)
    return plot


def draw_intervals(rows: list[dict]):
    """Accuracies with their 95 % intervals, a row for each run.

    Args:
        rows: each with name, accuracy, low, high; in %.
    """
    names = [row["name"] for row in rows]
    plot = make_plot("accuracy (%), with its 95 % interval", "", y_range=names[::-1], height=120 + 32 * len(rows))
    source = ColumnDataSource({key: [row[key] for row in rows] for key in ("name", "accuracy", "low", "high")})
    plot.segment("low", "name", "high", "name", source=source, color=BLUE, line_width=3)
    points = plot.scatter("accuracy", "name", source=source, size=10, color=VERMILION)
    tips = [("run", "@name"), ("accuracy", "@accuracy{0.00} %"), ("interval", "@low{0.0} .. @high{0.0} %")]
    plot.add_tools(HoverTool(renderers=[points], tooltips=tips, visible=False))
    return plot
