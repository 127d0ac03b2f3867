"""The reliability diagram: whether the answers are right as often as their probabilities say."""

from resnet_study.reports.canvas import BLACK, BLUE, make_panels, wrap_title


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
