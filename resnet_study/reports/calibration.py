"""Reliability diagrams: whether the answers are right as often as their probabilities say."""

import math

from resnet_study.reports.canvas import BLACK, BLUE, VERMILION, make_panels, wrap_title

_FEW = 20  # the accuracy of fewer images would draw the eye and say nothing


def draw_reliability(metrics: dict, title: str):
    """Accuracy of the answers against their confidence (Guo et al. 2017, figure 1), above the share of the images in each bin.

    Args:
        metrics: of a tested part, see `resnet_study.metrics.measure`.
        title: of the figure.
    """
    bins = metrics["reliability"]
    confidence = [100 * row["confidence"] for row in bins]
    figure, (upper, lower) = make_panels(2, figsize=(5, 5.4), sharex=True, height_ratios=(4, 1))
    upper.plot((0, 100), (0, 100), color=BLACK, linewidth=0.8, linestyle=":", label="as often as said")
    accuracy, shares = [100 * row["accuracy"] for row in bins], [row["images"] / metrics["images"] for row in bins]
    upper.plot(confidence, accuracy, color=BLUE, linewidth=1, label="the model; large points: many images")
    upper.scatter(confidence, accuracy, [8 + 120 * share for share in shares], color=BLUE, clip_on=False, zorder=3)
    upper.set(ylabel="right answers (%)", xlim=(0, 100), ylim=(0, 100))
    upper.set_title(
        f"{wrap_title(title, 5)}\ncalibration error {metrics['calibration_error']:.1f} points, "
        f"Brier score {metrics['brier_score']:.3f}",
        fontsize=9,
    )
    upper.legend(loc="upper left")
    lower.bar(confidence, [100 * share for share in shares], width=3, color=BLUE)
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
                    label=f"{word}: {metrics['calibration_error']:.1f} points",
                    **style,
                )
        axes.set(title=name, xlim=(0, 100), ylim=(0, 100))
        axes.legend(loc="upper left", fontsize=8)
    for axes in panels.flat[len(cards) :]:
        axes.set_axis_off()
    for axes in panels[:, 0]:
        axes.set_ylabel("right answers (%)")
    for axes in panels.flat[max(0, len(cards) - 3) : len(cards)]:
        axes.set_xlabel("confidence: probability of the answer (%)")
        axes.xaxis.set_tick_params(labelbottom=True)
    figure.suptitle(f"shipped weights and their expected calibration error; points of at least {_FEW} test images")
    return figure
