"""The project's table of results.

publish(run)           small copies in results/<run name>/, a row in results/<experiment>.json, the index results/README.md and the
                       pages results/<run>/README.md
publish_study(folder)  the same for a study of several runs
"""

import collections
import contextlib
import dataclasses
import re
import shlex
import statistics
import sys
import urllib.parse
from pathlib import Path

from resnet_study.command_line import Parser
from resnet_study.errors import UsageError, run_command, say_once
from resnet_study.evaluation import check_current, read_result
from resnet_study.files import hash_file, holding_lock, is_kind, read_json, write_atomically, write_json
from resnet_study.reports.canvas import save_figure
from resnet_study.reports.depth import draw_depths
from resnet_study.reports.figures import name_model
from resnet_study.reports.published import UNREPEATABLE, list_cifar_numbers
from resnet_study.reports.results_index import INDEX_HEAD, check_index
from resnet_study.reports.tables import table_lines
from resnet_study.run_folder import RunFolder
from resnet_study.settings import Settings

_ROW = dict.fromkeys(
    ("dataset", "model", "preset", "metric", "unit", "runs", "published_source", "hardware", "commit"), object
) | {
    "value": (float, None),
    "std": (float, None),
    "published": (float, None),
    "command": str,
    "images_seen": float,
    "wall_seconds": float,
    "run": (str, None),
}

_LOCK_SECONDS = 60
_MOST_OF_A_STUDY = 8  # rows in the index


def publish(run: RunFolder, experiment: str, results: Path, list_numbers=list_cifar_numbers) -> Path:
    """Puts a tested run among the project's results: its figures, its numbers, and the table of all.

    Runs that differ in their seed alone share a row: mean, sample standard deviation, and the single values.

    Args:
        run: a run that has been tested and drawn.
        experiment: name of the list of rows, `<results>/<experiment>.json`.
        results: the folder of results.
        list_numbers: which numbers of a run of this program are published: `list_cifar_numbers` or `list_flower_numbers`.

    Returns:
        Path of the table, `<results>/README.md`.

    Raises:
        UsageError: the run has not been trained and tested, or the results cannot be read or written.
    """
    _check_experiment(experiment)
    numbers = list_numbers(run)
    with _held(results):
        return _publish(run, experiment, results, *numbers)


def _held(results):
    """The lock of the folder: rows are read, changed and written, and those of another process would be lost."""
    check_index(results)
    taken = f"another process publishes in {results}; wait for it and repeat the command"
    return holding_lock(results / ".lock", _LOCK_SECONDS, taken)


def _check_experiment(name):
    if not name or re.search(r"[\\/]|^\.", name):
        raise UsageError(
            f"--experiment must be the plain name of a list, received '{name}'; use --results_dir for the place"
        )


def _flags(command):
    return sorted(shlex.split(command))


def _check_name(run, config, results):
    """Raises UsageError where the pages of a run would replace those of another one, or of a study, of that name."""
    name = run.path.name
    if (results / name / "files.json").exists():
        raise UsageError(f"{results / name} holds a study; rename the run folder {run} and publish it again")
    for path in results.glob("*.json"):
        for row in read_json(path, [_ROW]):
            if name in (row["run"], *row.get("folders", {}).values()) and (row["dataset"], row["model"]) != (
                config.dataset_name,
                config.model_name,
            ):
                raise UsageError(
                    f"{results / name} is of {row['model']} on {row['dataset']}, received {config.model_name} on {config.dataset_name}; rename "
                    f"the run folder {run} and publish it again"
                )


def _publish(run, experiment, results, config, recipe, numbers):
    _check_name(run, config, results)
    origin = describe_origin(run, config)
    if not run.figures.is_dir():
        raise UsageError(f"expected the figures of a tested run in {run.figures}, found none; test the run again")
    path = results / f"{experiment}.json"
    rows = read_json(path, [_ROW]) if path.exists() else []
    if not all(isinstance(row.get("values"), dict) for row in rows):
        raise UsageError(f"{path} holds what a study or a benchmark has measured; give another --experiment")
    config = config.without_places()
    if config.version:  # the folder may have been renamed
        config = dataclasses.replace(config, version=run.path.name)
    command = dataclasses.replace(config, seed=0, version="").command

    def is_same(row):
        known = row["preset"] == recipe and _flags(row.get("recipe", "")) == _flags(command)
        return known and row["metric"] in numbers and str(config.seed) in row["values"]

    # Published again, a run replaces its rows: it may have been trained or tested otherwise, or an earlier version named its recipe otherwise.
    rows = [row for row in rows if _take_out(row, run.path.name, str(config.seed) if is_same(row) else None)]
    for metric, (value, published, published_source, note) in numbers.items():
        key = {
            "experiment": experiment,
            "dataset": config.dataset_name,
            "model": config.model_name,
            "preset": recipe,
            "metric": metric,
        }
        # Earlier versions wrote the flags of a command in another order.
        same = (row for row in rows if key.items() <= row.items() and _flags(row.get("recipe", "")) == _flags(command))
        row = next(same, None)
        if row is None:
            row = key | {"recipe": command, "unit": "%", "values": {}}
            rows.append(row)
        before = row.get("folders", {}).get(str(config.seed), run.path.name)
        if before != run.path.name:
            say_once(
                f"note: seed {config.seed} of {path} was the run {before}, now it is {run.path.name}; another --experiment keeps both"
            )
        row["values"][str(config.seed)] = round(float(value), 6)
        seeds = sorted(row["values"], key=int)
        row |= _summarise(row["values"]) | {
            "published": published,
            "published_source": published_source,
            "command": config.command if seeds == [str(config.seed)] else _repeat(command, seeds),
            **origin,
            "run": run.path.name,
            "folders": row.get("folders", {}) | {str(config.seed): run.path.name},
            "origins": row.get("origins", {}) | {str(config.seed): origin},
            "note": note if len(seeds) == 1 or note == UNREPEATABLE else "",
            "options": config.model_choices,
        }
    write_json(path, rows)
    drawn = [file for file in sorted(run.figures.iterdir()) if file.suffix in (".png", ".md")]
    page = results / run.path.name
    for name in {*(f"{stem}.png" for stem in _SHOWN), "heads.md", "report.md", "layers.md"} - {
        file.name for file in drawn
    }:
        (page / name).unlink(missing_ok=True)  # of an earlier training of that name
    for file in (*drawn, run.error_csv, run.result):
        write_atomically(page / file.name, file.read_bytes())
    return write_table(results)


def _summarise(values: dict) -> dict:
    """Mean and sample standard deviation of the values of a row, seed -> value."""
    numbers = list(values.values())
    return {
        "value": round(statistics.mean(numbers), 6),
        "std": round(statistics.stdev(numbers), 6) if len(numbers) > 1 else None,
        "runs": len(numbers),
    }


def _take_out(row: dict, name: str, but: str | None) -> bool:
    """Takes the seeds of a run folder, `but` one, out of a row of several; returns whether any are left."""
    if name == row["run"] and len(row["values"]) == 1 and but not in row["values"]:
        return False
    folders, origins = row.get("folders", {}), row.get("origins", {})
    taken = [seed for seed, folder in folders.items() if folder == name and seed != but]
    for seed in taken:
        for of_seed in (row["values"], folders, origins):
            of_seed.pop(seed, None)
    if taken and row["values"]:
        seeds = sorted(row["values"], key=int)
        row |= _summarise(row["values"]) | {"command": _repeat(row["recipe"], seeds)}
        if folders:
            last = max(folders, key=int)
            row |= origins.get(last, {}) | {"run": folders[last]}
    return bool(row["values"])


def _repeat(recipe: str, seeds: list[str]) -> str:
    """The command that makes the runs of a row again, from that of seed 0."""
    if len(seeds) > 1:
        return f"for seed in {' '.join(seeds)}; do {recipe} --seed=$seed; done"
    return recipe if seeds == ["0"] else f"{recipe} --seed={seeds[0]}"


def describe_origin(run: RunFolder, config: Settings) -> dict:
    """Where the numbers of a run come from: images_seen, pflop (None = not known), wall_seconds, hardware and commit, as in a row of results.

    Raises:
        UsageError: the run has not been trained, or was trained on since it was tested.
    """
    kind = {"command": str, "commit": object, "processor": str, "cores": int, "dtype_policy": str}
    starts = read_json(run.environment, [kind])
    if not starts:
        raise UsageError(f"{run.environment} must tell of a start of the training, received none; restore it")
    check_current(run)
    last, commits = (
        run.read_history().iloc[-1],
        list(dict.fromkeys(start["commit"] for start in starts if start["commit"])),
    )
    return {
        "images_seen": int(last["step"]) * config.images_per_step,
        "pflop": read_result(run).get("pflop"),
        "wall_seconds": round(float(last["seconds"])),
        "hardware": "; then ".join(dict.fromkeys(map(name_hardware, starts))),
        "commit": " .. ".join(commits[:: max(1, len(commits) - 1)]) or None,  # the first and the last
    }


def name_hardware(environment: dict) -> str:
    """GPUs that were used, processor, cores, number format and towers (if several) of `describe_environment`, as in a row of results."""
    cores, gpus = environment["cores"], environment.get("gpus")
    counts = collections.Counter(gpus if is_kind(gpus, [str]) else [])
    parts = [f"{count} x {name}" if count > 1 else name for name, count in counts.items()]
    parts += [environment["processor"], f"{cores} core{'s' * (cores > 1)}", environment["dtype_policy"]]
    if isinstance(towers := environment.get("towers"), int) and towers > 1:
        parts.append(f"{towers} towers")
    return ", ".join(parts)


def publish_study(folder: Path, experiment: str, results: Path) -> Path:
    """Puts a study among the project's results: its figures and tables, its rows, the curves and test results of its runs, and
    the table of all.

    Args:
        folder: see `studies.runs.write_study`.
        experiment: name of the list of rows, `<results>/<experiment>.json`, and of the folder for the figures.
        results: the folder of results.

    Returns:
        Path of the table, `<results>/README.md`.

    Raises:
        UsageError: the folder or the list among the results is of other runs, or a run of the study is gone or was trained on since.
    """
    _check_experiment(experiment)
    with _held(results):
        return _publish_study(folder, experiment, results)


def _publish_study(folder, experiment, results):
    study = read_json(folder / "study.json", {"rows": [_ROW], "runs": [str]})
    if study.get("failures"):
        raise UsageError(
            f"{folder} was written without the runs that failed; repeat its command, or a command without these networks or seeds"
        )
    if (results / experiment / "error.csv").exists():
        raise UsageError(f"{results / experiment} holds a run; give the study another --experiment")
    path = results / f"{experiment}.json"
    if path.exists() and {row["run"] for row in read_json(path, [_ROW])} != {experiment}:
        raise UsageError(f"{path} holds what was measured of other runs; give the study another --experiment")
    files = {file.name: file for file in sorted(folder.iterdir()) if file.suffix in (".png", ".md", ".csv")}
    for name in study["runs"]:
        run = RunFolder(folder.parent / Path(name).name)
        if not run.error_csv.is_file():
            raise UsageError(f"expected {run}, of which the study tells, found no such run; repeat the study")
        # Those of earlier versions say nothing of it.
        if study.get("tables", {}).get(name, table := hash_file(run.error_csv)) != table:
            raise UsageError(f"{run} was trained on since {folder} told of it; repeat the study")
        of_run = [file for file in (run.error_csv, run.result, run.gradient_norms) if file.is_file()]
        files |= {f"runs/{run.path.name}/{file.name}": file for file in of_run}
    for name, file in files.items():
        write_atomically(results / experiment / name, file.read_bytes())
    # What an earlier call wrote, and this one did not.
    copied = results / experiment / "files.json"
    for name in set(read_json(copied, [str]) if copied.is_file() else ()) - set(files):
        place = (results / experiment / name).resolve()
        if (results / experiment).resolve() in place.parents:
            place.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # which holds other files
                place.parent.rmdir()
    write_json(copied, sorted(files))
    rows = [row | {"experiment": experiment, "run": experiment} for row in study["rows"]]
    write_json(path, rows)
    return write_table(results)


def write_table(results: Path) -> Path:
    """Writes the index `<results>/README.md` and the page `<results>/<run>/README.md` of each run, from all `<results>/*.json`.

    The index has one row for each data set, model and preset: its test metric, or else its first. Rows that come from no run,
    such as speeds, have the page `<results>/<experiment>/README.md`; where some of them are ratios, the index has
    these and nothing else of them. More than 15 rows of one page have a link in their place. Where networks of several depths are
    published, `depth-<data set>.png` shows their errors.

    Raises:
        UsageError: the folder has a README.md of somebody else, or a list that is damaged.
    """
    check_index(results)
    lines = [
        "# Results",
        "",
        f"{INDEX_HEAD} by `--mode=publish`, by the benchmarks and by `python -m resnet_study.reports.results`;",
        "not to be edited. One row for each data set, model and preset; the page of a run has all its metrics, figures and commands.",
        "",
        *_NOTES,
    ]
    pages = {}  # {page: {experiment: rows}}
    for path in sorted(results.glob("*.json")):
        rows = read_json(path, [_ROW])
        shown = {}
        has_ratios = any(_is_ratio(row) for row in rows)
        for row in rows:
            page = row["run"] or path.stem
            for place in dict.fromkeys((page, *row.get("folders", {}).values())):  # of each seed
                pages.setdefault(place, {}).setdefault(path.stem, []).append(row)
            if has_ratios and row["run"] is None and not _is_ratio(row):
                continue
            key = (row["dataset"], _name_row(row), row["preset"], row["metric"] if _is_ratio(row) else None, page)
            if key not in shown or (row["metric"].startswith("test") and not shown[key]["metric"].startswith("test")):
                shown[key] = row
        cells, places = [], {page for *_, page in shown}
        if len(shown) > _MOST_OF_A_STUDY and len(places) == 1:
            lines += ["", f"## {path.stem}", "", f"{len(shown)} rows: [{page}]({_link(page)}/README.md)"]
            continue
        for (*_, page), row in shown.items():
            published = "" if row["published"] is None else f"{row['published']:.2f} {row['unit']}"
            pflop = row.get("pflop")
            cells.append([*_cells(row), published, pflop and f"{pflop:.3g}", f"[page]({_link(page)}/README.md)"])
        header = ["data set", "model", "preset", "metric", "value", "published", "PFLOP", "page"]
        lines += ["", f"## {path.stem}", "", *table_lines(header, "llllrrrl", cells)]
        if figure := draw_depths(rows, path.stem):
            save_figure(figure, results / f"depth-{path.stem}.png")
            lines += ["", f"![error against depth](depth-{_link(path.stem)}.png)"]
    for page, experiments in pages.items():
        write_atomically(results / page / "README.md", _format_page(results, page, experiments))
    path = results / "README.md"
    write_atomically(path, "\n".join(lines) + "\n")
    return path


_NOTES = (
    "Weights are chosen on validation images and tested once, but for rows that say that they were chosen on test images, and those",
    "of all training images: with none held out, the weights are those of the last step, of a recipe that was chosen before.",
    "`test_error_flip` is that of the mean answer for image and mirror image, by `--mode=test --test_flip` of the same run;",
    "`test_error_shifts` (`--test_shifts`) gives half the weight to both moved by one pixel, up and left, down and right.",
    "`±` is the sample standard deviation over seeds; a range in brackets goes from the smallest to the largest of the values whose",
    "median stands before it. Images, PFLOP, time and commit are those of the last run; studies (compare, degradation, robustness) add up",
    "the time of the runs of a row. The machine of a row names the towers of its training where there were several; repeat the others with",
    "`--towers=1`, since towers change the numbers.",
)


# What the figures of a run show, for who cannot see them; those of studies are called so.
_SHOWN = {
    "accuracy_and_loss": "accuracy and loss of training and validation against the epoch",
    "accuracy_curve": "accuracy of training and validation against the step, and that of the tested weights",
    "augmentation": "training images, each beside variants as the training augments them",
    "confusion_matrix": "how many of the tested images of each class were taken for each class",
    "error_curve": "error of training and validation against the step, and that of the tested weights",
    "heads": "validation error of each head against the step",
    "loss_curve": "cross-entropy of training and validation against the step",
    "predictions": "the first of the tested images with the answers of the model",
    "reliability": "how often the answers of each confidence are right",
    "samples": "training images of each class",
}


def _link(place) -> str:
    """A path for a link: names of own folders may have spaces, which end one."""
    return urllib.parse.quote(str(place))


def _format_page(results: Path, page: str, experiments: dict[str, list[dict]]) -> str:
    """Rows, commands, report and figures of one run."""
    lines = [f"# {page}", "", "Made by the program, see [all results](../README.md); not to be edited."]
    for experiment, rows in experiments.items():
        cells = []
        for row in rows:
            published = (
                "" if row["published"] is None else f"{row['published']:.2f} {row['unit']} ({row['published_source']})"
            )
            cells.append([*_cells(row), published, *_describe_origin(row)])
        header = ["data set", "model", "preset", "metric", "value", "published", *_ORIGIN]
        lines += ["", f"## {experiment}", "", *table_lines(header, "llllrrrrrll", cells)]
        seeds = [
            [
                _name_row(row),
                row["preset"],
                row["metric"],
                seed,
                f"{row['values'][seed]:.2f} {row['unit']}",
                *(_describe_origin(row["origins"][seed]) if seed in row["origins"] else [None] * len(_ORIGIN)),
            ]
            for row in rows
            if row["runs"] > 1 and row.get("origins")
            for seed in sorted(row["values"], key=int)
        ]
        if seeds:
            header = ["model", "preset", "metric", "seed", "value", *_ORIGIN]
            lines += ["", "Each seed:", "", *table_lines(header, "lllrrrrrll", seeds)]
        lines += ["", "Commands:", "", "```", *dict.fromkeys(row["command"] for row in rows), "```"]
    report = results / page / "report.md"
    if report.is_file():
        lines += ["", "## Report", "", report.read_text(encoding="utf-8").strip()]
    figures = sorted((results / page).glob("*.png"))
    if figures:
        lines += ["", "## Figures", ""]
        lines += [f"![{_SHOWN.get(figure.stem, figure.stem)}]({_link(figure.name)})" for figure in figures]
    return "\n".join(lines) + "\n"


_ORIGIN = ("images", "PFLOP", "time", "hardware", "commit")


def _describe_origin(origin) -> list:
    """The cells of what `describe_origin` gives; measurements without training have no images."""
    images, pflop = origin["images_seen"], origin.get("pflop")
    return [
        f"{images:,}" if images else None,
        pflop and f"{pflop:.3g}",
        f"{origin['wall_seconds'] / 60:.0f} min" if origin["wall_seconds"] else None,
        origin["hardware"],
        origin["commit"],
    ]


def _is_ratio(row) -> bool:
    return row["unit"] == "times"


def _name_row(row) -> str:
    return name_model(row["model"] or "", row.get("options") or {})


def _cells(row) -> list:
    return [
        row["dataset"] and row["dataset"].replace("|", r"\|"),
        _name_row(row),
        row["preset"],
        row["metric"],
        _format_value(row),
    ]


def _format_value(row) -> str:
    if row["value"] is None:
        return row["note"]

    def number(value):
        if isinstance(value, int) or abs(value) >= 100:
            return f"{value:,.0f}"
        return f"{value:.1g}" if 0 < abs(value) < 0.005 else f"{value:.2f}"

    text = f"{number(row['value'])} {row['unit']}"
    if row["std"] is not None and "minimum" not in row:
        text += f" ± {number(row['std'])} ({row['runs']} {row.get('over', 'seeds')})"
    elif "minimum" in row and row["runs"] > 1:
        text += f" [{number(row['minimum'])} .. {number(row['maximum'])}] ({row['runs']} times)"
    return text + (f"; {row['note']}" if row.get("note") else "")


def main(argv=None) -> int:
    """Makes the index and the pages again. Returns the exit code, see `run_command`."""

    def run():
        parser = Parser(
            prog="python -m resnet_study.reports.results", description="Makes the index and the pages again."
        )
        parser.add_argument("folder", nargs="?", default="results", help="the folder of results [results]")
        folder = Path(parser.parse_args(argv).folder).expanduser()
        if not any(folder.glob("*.json")):
            raise UsageError(f"expected lists of results (.json) in {folder}, found none; give their folder")
        print(f"written: {write_table(folder)}")

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
