"""`report.html` of several runs beside each other, and of a study: what differs in their settings, and what came out."""

import dataclasses
import os
import urllib.parse
from pathlib import Path

from resnet_study.errors import UsageError
from resnet_study.evaluation import check_current, read_result
from resnet_study.files import hash_file, is_kind, read_json, read_text
from resnet_study.reports import plots
from resnet_study.reports.gallery import read_figure
from resnet_study.reports.page import render_markdown, write_page
from resnet_study.reports.published import list_numbers, published_error
from resnet_study.reports.results import name_hardware
from resnet_study.reports.run_page import naming_damage
from resnet_study.run_folder import RunFolder

_TITLE = "runs beside each other"


def write_comparison(folder: Path, runs: list[RunFolder]) -> Path:
    """Writes a page on tested runs, of either program and of any data sets.

    Args:
        folder: where to write `report.html`; it must hold no run and no study.
        runs: at least two.

    Raises:
        UsageError: the folder is taken, two runs have one name, or a run has not been trained and tested.
    """
    if RunFolder(folder).holds_run() or (folder / "study.json").exists():
        raise UsageError(f"{folder} must hold no run and no study, received one; give the comparison another --version")
    page = folder / "report.html"
    if page.is_file() and _TITLE not in read_text(page):
        raise UsageError(f"{page} is no comparison; give this one another --version")
    runs = list({run.path.resolve(): run for run in runs}.values())
    if len(runs) < 2:
        raise UsageError(
            "--versions must name two runs or more, received fewer; --mode=report --version=NAME shows one"
        )
    if len({run.path.name for run in runs}) < len(runs):
        raise UsageError(
            f"--versions must name runs whose folders are called differently, received {', '.join(str(run) for run in runs)}; rename one"
        )
    return _write(folder, f"{len(runs)} {_TITLE}", runs)


def write_study_page(folder: Path) -> Path:
    """Writes the page of a study: its report, its figures, and its runs beside each other.

    Raises:
        UsageError: there is no study in the folder, or a file of it is damaged.
    """
    study = read_json(folder / "study.json", {"command": str, "runs": [str]})
    runs, told = [], study.get("tables")
    told = told if is_kind(told, dict) else {}  # those of earlier versions have none
    for name in study["runs"]:
        run = RunFolder(folder.parent / Path(name).name)
        if reason := _why_left_out(run, told.get(name)):
            print(f"note: the page of the study is without {run.path.name}, which {reason}")
        else:
            runs.append(run)
    return _write(
        folder,
        f"study {folder.name}",
        runs,
        command=study["command"],
        report=render_markdown(read_text(folder / "report.md")),
        figures=[(path.stem, read_figure(path, 1400, "repeat the study")) for path in sorted(folder.glob("*.png"))],
    )


def print_study(folder: Path) -> None:
    """Writes the page of a study, and prints its report and where all of it is. Raises UsageError as `write_study_page`."""
    page = write_study_page(folder)
    print(read_text(folder / "report.md"), f"written to {folder}, all in {page}", sep="\n")


def _why_left_out(run, told):
    """What keeps a run from the page of its study: "" if nothing does. `told`: checksum of its table then, None = not known."""
    if not (run.result.is_file() and run.error_csv.is_file()):
        return f"{run.path.parent} lacks or which was not tested"
    # Beside numbers of before, those of another training would look like theirs.
    if told not in (None, hash_file(run.error_csv)):
        return "was trained again since; repeat the study"
    last, tested = run.last_step(), read_result(run)["last_step"]
    return "was trained on since it was tested; test it again" if tested != last else ""


def _write(folder, title, runs, command="", report="", figures=()):
    rows = []
    for run in runs:
        with naming_damage(run):
            rows.append(_describe(run, folder))
    curves = {}
    if rows:
        curves["accuracy"] = plots.draw_intervals(rows)
        for column, name in (("validation_error", "validation"), ("train_error", "training")):
            lines = {row["name"]: (row["history"]["epoch"], row["history"][column]) for row in rows if column in row["history"]}  # fmt: skip
            if lines:
                highest = 1.05 * max((float(y.iloc[1:].max()) for _, y in lines.values() if len(y) > 1), default=100.0)
                curves[name] = plots.draw_lines(
                    "epoch", f"{name} error (%)", lines, highest=min(100.0, max(1.0, highest))
                )
    return write_page(
        folder / "report.html",
        "comparison.html",
        curves,
        name=folder.name,
        title=title,
        command=command,
        report=report,
        figures=figures,
        rows=rows,
        settings=_list_differences(rows),
        classes=_list_classes(rows),
    )


def _describe(run, folder):
    """What the page tells of a run."""
    config, recipe, numbers = list_numbers(run)
    check_current(run)
    result, history = read_result(run), run.read_history()
    part = result["predictions"]
    metrics, last = result[part], history.iloc[-1]
    published = published_error(numbers, part)
    starts = run.read_starts()
    known = starts and {"processor", "cores", "dtype_policy"} <= starts[-1].keys()
    low, high = metrics["accuracy_interval"]
    place = run.path.resolve()
    return {
        "name": run.path.name,
        "page": f"../{urllib.parse.quote(os.fsencode(run.path.name))}/report.html"
        if place.parent == folder.resolve().parent and (place / "report.html").is_file()
        else "",
        "config": config,
        "recipe": recipe,
        "history": history,
        "part": part,
        "images": metrics["images"],
        "error": metrics["error"],
        "accuracy": metrics["accuracy"],
        "low": low,
        "high": high,
        "published": published[1] if published and published[0] == part else None,
        "loss": metrics["loss"],
        "calibration_error": metrics.get("calibration_error"),
        "validation_error": result.get("validation_error"),
        "epochs": float(last["epoch"]),
        "minutes": float(last["seconds"]) / 60,
        "pflop": result.get("pflop"),
        "hardware": name_hardware(starts[-1]) if known else "",
        "per_class": {row["class"]: 100 * row["f1"] for row in metrics["per_class"]},
    }


def _list_differences(rows):
    """The settings that differ between the runs: name, and the value in each run, None where its program has no such setting."""
    fields = {field.name: field for row in rows for field in dataclasses.fields(row["config"])}
    found = []
    for name, field in fields.items():
        values = [getattr(row["config"], name, None) for row in rows]
        if not field.metadata["operational"] and any(value != values[0] for value in values):
            found.append({"name": name, "values": values, "help": field.metadata["help"]})
    return found


def _list_classes(rows):
    """F1 of each class in each run, where all know the same classes; else nothing."""
    if not rows or any(row["per_class"].keys() != rows[0]["per_class"].keys() for row in rows):
        return []
    return [{"class": name, "values": [row["per_class"][name] for row in rows]} for name in rows[0]["per_class"]]
