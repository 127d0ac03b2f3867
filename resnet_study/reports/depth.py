"""Error against depth, of all published runs of one recipe each, beside what others have published."""

import math
import re

import matplotlib

from resnet_study.reports.canvas import BLUE, GREEN, ORANGE, STYLE, VERMILION, make_panels
from resnet_study.reports.published import DEPTH_TABLE

_LOOKS = ((BLUE, "o"), (VERMILION, "D"), (GREEN, "v"), (ORANGE, "P"))


def draw_depths(rows: list[dict], dataset: str):
    """Test error of plain and residual networks against their number of layers: a line for each recipe, error bars of a standard deviation.

    Args:
        rows: of `results/<experiment>.json`; those of other networks, data sets and metrics are left out.
        dataset: which.

    Returns:
        The figure; None where no recipe has two depths. Those with one depth are left out.
    """
    lines: dict[str, dict[int, dict]] = {}
    for row in rows:
        network = re.fullmatch(r"(plain|resnet)(\d*[02468])", row["model"] or "")
        if network and not row.get("options") and (row["dataset"], row["metric"]) == (dataset, "test_error"):
            form = "" if network[1] == "resnet" else "plain networks, "
            lines.setdefault(f"{form}{row['preset']}", {})[int(network[2])] = row
    lines = {label: line for label, line in lines.items() if len(line) > 1}
    depths = sorted({depth for line in lines.values() for depth in line})
    if not lines:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = make_panels(figsize=(7, 4.2))
        # More recipes than looks begin anew: nobody would tell so many lines apart.
        for number, (label, line) in enumerate(sorted(lines.items())):
            colour, marker = _LOOKS[number % len(_LOOKS)]
            points = sorted(line.items())
            places = [depth + 0.6 * number for depth, _ in points]  # or points of two recipes would hide each other
            axes.errorbar(
                places,
                [row["value"] for _, row in points],
                [row["std"] or math.nan for _, row in points] if any(row["std"] for _, row in points) else None,
                color=colour,
                marker=marker,
                linestyle="--" if label.startswith("plain") else "-",
                capsize=3,
                label=f"here, {'' if label.startswith('plain') else 'recipe '}{label}{_count_seeds(line)}",
            )
        for marker, (source, of_data) in zip("s^", DEPTH_TABLE.items(), strict=True):
            if dataset in of_data:
                axes.plot(*zip(*sorted(of_data[dataset].items()), strict=True), marker, color="grey", label=source)
        has_seeds = any(row["runs"] > 1 for line in lines.values() for row in line.values())
        axes.set(
            title=f"networks of each depth on {dataset}; {'bars: standard deviation over seeds' if has_seeds else 'one seed each'}",
            xlabel="layers",
            ylabel="test error (%)",
        )
        published = [depth for of_data in DEPTH_TABLE.values() for depth in of_data.get(dataset, ())]
        axes.set_xticks(sorted({*depths, *published}))
        axes.legend()
    return figure


def _count_seeds(line) -> str:
    """What the legend says of the depths of a recipe that have several seeds."""
    seeds = {depth: row["runs"] for depth, row in sorted(line.items()) if row["runs"] > 1}
    return f" ({', '.join(f'{depth} layers: {runs} seeds' for depth, runs in seeds.items())})" if seeds else ""
