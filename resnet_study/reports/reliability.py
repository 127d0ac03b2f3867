"""Reliability diagrams: whether the answers are right as often as their probabilities say."""

import math

from resnet_study.metrics import confidence_interval
from resnet_study.reports.canvas import BLACK, BLUE, VERMILION, make_panels, wrap_title

_FEW = 20  # the accuracy of fewer images would draw the eye and say nothing


_BACKED = {"frameon": True, "framealpha": 0.85, "edgecolor": "none"}  # a legend that a curve may pass under


def _place_legend(metrics) -> str:
    """The corner that the curve leaves free: a model that is not sure enough is right more often than it says."""
    surer = sum(row["images"] * (row["accuracy"] - row["confidence"]) for row in metrics["reliability"])
    return "lower right" if surer > 0 else "upper left"


def draw_reliability(metrics: dict, title: str):
    """Accuracy of the answers against their confidence (Guo et al. 2017, figure 1), above the share of the images in each bin.

    Args:
        metrics: of a tested part, see `resnet_study.metrics.measure`.
        title: of the figure.
    """
    figure, (upper, lower) = make_panels(2, figsize=(5, 5.4), sharex=True, height_ratios=(4, 1))
    upper.plot((0, 100), (0, 100), color=BLACK, linewidth=0.8, linestyle=":", label="as often as said")
    for shown, label, style in (
        (
            [row for row in metrics["reliability"] if row["images"] >= _FEW],
            "the model, with 95 % intervals",
            {"color": BLUE},
        ),
        (
            [row for row in metrics["reliability"] if row["images"] < _FEW],
            f"of fewer than {_FEW} images",
            {"facecolors": "white", "edgecolors": BLUE},
        ),
    ):
        if shown:
            confidence, accuracy = ([100 * row[name] for row in shown] for name in ("confidence", "accuracy"))
            sizes = [8 + 120 * row["images"] / metrics["images"] for row in shown]
            upper.scatter(confidence, accuracy, sizes, clip_on=False, zorder=3, label=label, **style)
            if "color" in style:
                upper.plot(confidence, accuracy, color=BLUE, linewidth=1)
                for row, x in zip(shown, confidence, strict=True):
                    interval = confidence_interval(round(row["accuracy"] * row["images"]), row["images"])
                    upper.plot((x, x), interval, color=BLUE, linewidth=1, alpha=0.6)
    upper.set(ylabel="right answers (%)", xlim=(0, 100), ylim=(0, 100))
    upper.set_title(
        f"{wrap_title(title, 6)}\ncalibration error {metrics['calibration_error']:.1f} points, "
        f"Brier score {metrics['brier_score']:.3f}",
        fontsize=9,
    )
    upper.legend(loc=_place_legend(metrics), **_BACKED)
    lower.bar(
        [100 * row["confidence"] for row in metrics["reliability"]],
        [100 * row["images"] / metrics["images"] for row in metrics["reliability"]],
        width=3,
        color=BLUE,
    )
    lower.set(xlabel="confidence: probability of the answer (%)", ylabel="images (%)")
    return figure


def draw_calibrations(cards: dict):
    """A reliability diagram for each shipped file, before and after its temperature.

    Args:
        cards: name -> card, see `model_cards.measure_file`.
    """
    rows = math.ceil(len(cards) / 3)
    figure, panels = make_panels(rows, 3, figsize=(9.6, 0.6 + 3 * rows), sharex=True, sharey=True, squeeze=False)
    for axes, (name, card) in zip(panels.flat, cards.items(), strict=False):
        axes.plot((0, 100), (0, 100), color=BLACK, linewidth=0.8, linestyle=":")
        for metrics, word, style in (
            (card["uncalibrated"], "before calibration", {"color": VERMILION, "linestyle": "--", "marker": "s"}),
            (card, "as shipped", {"color": BLUE, "marker": "o"}),
        ):
            if metrics:
                bins = [row for row in metrics["reliability"] if row["images"] >= _FEW]
                axes.plot(
                    [100 * row["confidence"] for row in bins],
                    [100 * row["accuracy"] for row in bins],
                    markersize=3,
                    clip_on=False,
                    label=f"{word}: {metrics['calibration_error']:.1f} points",
                    **style,
                )
        axes.set(title=name, xlim=(0, 100), ylim=(0, 100))
        axes.legend(loc=_place_legend(card["uncalibrated"] or card), fontsize=8, **_BACKED)
    for axes in panels.flat[len(cards) :]:
        axes.set_axis_off()
    for axes in panels[:, 0]:
        axes.set_ylabel("right answers (%)")
    for axes in panels.flat[max(0, len(cards) - 3) : len(cards)]:
        axes.set_xlabel("confidence: probability of the answer (%)")
        axes.xaxis.set_tick_params(labelbottom=True)
    figure.suptitle(f"shipped weights and their expected calibration error; points of at least {_FEW} test images")
    return figure
