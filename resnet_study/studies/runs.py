"""The runs of a study: planned, trained or reused, grouped, and written down with what was made of them.

Each study can be repeated: a run that is finished is reused, one that was stopped goes on, what is missing is trained. A study
owns no run: the runs lie in `runs/<run name>/` as if trained by themselves, its tables and figures in `runs/<study>/`.

What is wrong with settings, data or folders is found before the first run begins, and ends the study. A run that fails later,
such as one that diverges, is reported at the end; the others are trained all the same, and make the tables and figures.
"""

import contextlib
import dataclasses
import datetime
import gc
import re
import shlex
import statistics
from collections.abc import Callable
from pathlib import Path

import keras
import pandas as pd
import tensorflow as tf

import cifar10_input
import cifar10_test
from cifar10_train import Interrupted, Train
from hyper_parameters import HyperParameters, apply_preset
from resnet_study.data.folder_data import check_split_flags
from resnet_study.errors import UsageError
from resnet_study.evaluation import read_result
from resnet_study.files import hash_file, is_kind, read_json, write_atomically, write_json
from resnet_study.networks import registry
from resnet_study.presets import default_preset
from resnet_study.reports.comparison_page import write_study_page
from resnet_study.reports.figures import draw
from resnet_study.reports.published import list_numbers
from resnet_study.reports.results import describe_origin
from resnet_study.run_changes import PLACES
from resnet_study.run_folder import RunFolder, run_folder_of
from resnet_study.run_images import check_own
from resnet_study.settings import without_machine
from resnet_study.training.work import training_pflop


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A trained and tested run: its settings, its folder, the table of `error.csv`, the content of `result.json`."""

    config: HyperParameters
    run: RunFolder
    history: pd.DataFrame
    result: dict

    @property
    def training_accuracy(self) -> float:
        """Highest over the reports, in %; each is the mean over the augmented batches of an interval."""
        return 100 - float(self.history["train_error"][1:].min())

    @property
    def validation_accuracy(self) -> float:
        """Highest over the reports, in %."""
        return 100 - float(self.history["validation_error"][1:].min())

    @property
    def watched_accuracy(self) -> float | None:
        """Highest on the test images over the reports, in %; None where not every report looked at them."""
        if "test_error" not in self.history or self.history["test_error"][1:].isna().any():
            return None
        return 100 - float(self.history["test_error"][1:].min())

    @property
    def test(self) -> dict:
        """Metrics of the weights that were chosen on validation images, measured once; see `metrics.measure`."""
        return self.result["test"]


# Which runs, and how they get finished


def plan_runs(given: dict, models, datasets, seeds, held_out: bool = True) -> list[HyperParameters]:
    """The settings of every run of a study, data set by data set.

    Their reports look at the test images too (`watch_test`), for the curves that the papers show.

    Args:
        given: settings that hold for all runs, by name; a preset among them replaces each model's own, see
            `hyper_parameters.default_preset`.
        models: registry names, each perhaps with a preset and seeds of its own: "resnet20_preact:liang", "lenet5@0-2".
        datasets: names of data sets.
        seeds: ints.
        held_out: whether every run must hold validation images out.

    Raises:
        UsageError: an unknown name, a value out of its range, an option that a model does not have, several heads, or an empty
            list.
    """
    common = {"watch_test": True} | {name: value for name, value in given.items() if name not in ("preset", "version")}
    configs = []
    for dataset in datasets:
        for entry in models:
            parts = re.fullmatch(r"([^:@]+)(?::([^@]+))?(?:@(\d+)(?:-(\d+))?)?", entry)
            model, preset, first, last = parts.groups() if parts else (None,) * 4
            last = last or first
            if not parts or (first and int(last) < int(first)):
                raise UsageError(
                    f"--models must be names such as resnet20, resnet20:fast, resnet20@0, resnet20@0-2; received '{entry}'"
                )
            preset = preset or given.get("preset") or default_preset(dataset, model)
            for seed in range(int(first), int(last) + 1) if first else seeds:
                configs.append(apply_preset(preset, common | {"model": model, "dataset": dataset, "seed": seed}))
    for name, value in given.items():
        if name in PLACES:  # which scripts give in each command
            continue
        refusals = []
        for config in configs:
            try:
                config.check_given({name: value})
            except UsageError as refusal:
                refusals.append(refusal)
        if refusals and len(refusals) == len(configs):  # what some of the runs read is for these
            raise refusals[0]
    if not configs:
        raise UsageError("a study needs at least one model, one data set and one seed, received none")
    if given.get("version") in {config.run_name for config in configs}:
        raise UsageError(f"--version={given['version']} is the name of one of the runs; give the study another one")
    of_folder = [config for config in configs if config.dataset == "folder" and not config.folds]
    if any(not run_folder_of(config).holds_run() for config in of_folder):  # as a single run: what has begun goes on
        check_split_flags(of_folder[0], given)
    for config in configs:
        registry.find(config.model_name).check_options(config.network_options)
        if held_out and not config.validation_fraction:
            raise UsageError(
                "a study chooses weights on validation images, received --validation_fraction=0; give such as 0.1"
            )
        if len(config.head_factors) > 1:
            raise UsageError(
                f"a study compares models with one head, received --heads={config.heads}; give one of them"
            )
    return list(dict.fromkeys(configs))


def finish_runs(configs: list[HyperParameters]) -> tuple[list[FinishedRun], list[str]]:
    """Trains, tests and draws what is not finished, in order; each run once.

    Args:
        configs: see `plan_runs`; several may mean one run.

    Returns:
        (the finished runs, what is to be said of the others).

    Raises:
        UsageError: before any work: a run folder that holds another run, missing data, or images too small for a model. After
            all runs: all failed.
        Interrupted: as `Train.train`.
    """
    # Counted twice, a run would look like two seeds. Names of models may differ: the depth may be told by the number of blocks.
    configs = [_as_stored(config) for config in {config.run_name: config for config in configs}.values()]
    data = {}
    for config in configs:  # several share a data set, which may be large
        if data_key(config) not in data:
            data[data_key(config)] = cifar10_input.load_data(config)
    if any(found.multi_label for found in data.values()):
        raise UsageError(
            "a study compares networks on images of one label, received a table with several; train them one by one"
        )
    for config in configs:
        run, found = run_folder_of(config), data[data_key(config)]
        if run.data.is_file():  # of the same name, it may be of other images
            check_own(run, found.fingerprint, found.found)
        spec, shape = registry.find(config.model_name), data[data_key(config)].train.images.shape[1:]
        if min(shape[:2]) < spec.minimum_size:
            spec.build(input_shape=shape)  # which refuses such images, and says so, before it builds anything
    tf.get_logger().setLevel("ERROR")  # it warns that `predict` is built anew for each model
    failures = {}
    for number, config in enumerate(configs, start=1):
        if _is_finished(config):
            continue
        print(
            f"run {number} of {len(configs)}: {config.model_name} on {config.dataset}, preset {config.preset}, "
            f"seed {config.seed}{_time_left(configs[number - 1 :], configs, data)}",
            flush=True,
        )
        try:
            _finish(config, data[data_key(config)])
        except Interrupted as stop:
            reason = str(stop).split(";")[0]
            raise Interrupted(
                f"run {number} of {len(configs)}: {reason}; the same command goes on with the study"
            ) from stop
        except UsageError as error:
            print(f"failed: {error}", flush=True)
            failures[config] = f"{run_folder_of(config)}: {error}"
        forget_models()
    if len(failures) == len(configs):
        raise UsageError(f"all {len(configs)} runs failed: {' | '.join(failures.values())}")
    return [read_finished(config) for config in configs if config not in failures], list(failures.values())


def forget_models() -> None:
    """Frees what belongs to the models so far: Keras and TensorFlow keep it alive until they are told otherwise."""
    keras.backend.clear_session()
    gc.collect()


def data_key(config):
    """What the data of a run depend on, beside the settings that all runs of a study share."""
    # The validation part of a fold is drawn when it is read.
    drawn = config.validation_fraction if config.folds else None
    read = config.synthetic_images if config.dataset == "synthetic" else config.reading()["jpeg_size"]
    return config.dataset, read, drawn


def _as_stored(config):
    """The settings with which a run that exists goes on. Raises UsageError if it is another run than the wanted one."""
    run = run_folder_of(config)
    if not run.holds_run():
        run.check(config, resume=True, overwrite=False)
        return config
    stored = run.read_config(HyperParameters)
    # The depth may stand in the name of the model or in num_residual_blocks.
    wanted, held = (
        dataclasses.replace(each, model=each.model_name, num_residual_blocks=0) for each in (config, stored)
    )
    if flags := wanted.flags_beside(held):
        raise UsageError(
            f"expected a run with {' '.join(flags)} in {run}, which holds one with {' '.join(held.flags_beside(wanted))}; give "
            "these settings to use it, or another --runs_dir"
        )
    # Where the images of the run lie stays, if nothing else is asked for and they still lie there.
    is_there = stored.dataset == "folder" or Path(stored.data_dir).expanduser().exists()

    def stays(field):
        return is_there and getattr(config, field.name) == field.default

    operational = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.metadata["operational"] and not (field.name in PLACES and stays(field))
    }
    return run.as_begun(dataclasses.replace(stored, **operational))


def _is_finished(config) -> bool:
    run = run_folder_of(config)
    # The table of layers is drawn last: a kill may have come after the first figure.
    if not (run.result.is_file() and run.best.is_file() and (run.figures / "layers.md").is_file()):
        return False
    last = read_result(run, "test")["last_step"]
    # A run that patience has ended is at its end, wherever that is; it has its last weights then.
    return last == config.train_steps or (config.patience > 0 and run.has_final() and last == run.last_step())


def _finish(config, data):
    run = run_folder_of(config)
    Train(config, run, data).train(resume=True)
    cifar10_test.evaluate(config)
    draw(run, data_dir=config.data_dir)


def read_finished(config) -> FinishedRun:
    """A run that is finished, from its folder."""
    run = run_folder_of(config)
    return FinishedRun(config, run, run.read_history(), read_result(run, "test"))


def _time_left(waiting, configs, data) -> str:
    """How long the waiting runs will take, judged by those that are finished: of the same model, else by multiply-adds."""
    seconds = {}
    for config in configs:
        if _is_finished(config):
            seconds.setdefault(_group_key(config), []).append(
                float(run_folder_of(config).read_history().iloc[-1]["seconds"])
            )
    if not seconds:
        return ""
    known = {_group_key(config): config for config in configs if _group_key(config) in seconds}
    total = 0.0
    for config in waiting:
        if _is_finished(config):
            continue
        key = _group_key(config)
        if key not in seconds:
            pace = statistics.mean(
                statistics.mean(seconds[other]) / training_work(known[other], data) for other in known
            )
            seconds[key] = [pace * training_work(config, data)]
        total += statistics.mean(seconds[key])
    return f", about {datetime.timedelta(seconds=round(total))} left"


def _group_key(config):
    return config.dataset, config.model_name, config.preset


def group_runs(runs: list[FinishedRun]) -> dict[tuple[str, str, str], list[FinishedRun]]:
    """(data set, model, preset) -> the runs that differ in their seed, in the order of the study."""
    groups = {}
    for each in runs:
        groups.setdefault(_group_key(each.config), []).append(each)
    return groups


# Numbers


def describe(values) -> dict:
    """Mean and sample standard deviation (None for one value) of a few numbers."""
    values = [float(value) for value in values]
    return {"value": statistics.mean(values), "std": statistics.stdev(values) if len(values) > 1 else None}


def format_spread(values, digits=2) -> str:
    """ "99.41 ± 0.05", or "99.41" for a single value."""
    spread = describe(values)
    return f"{spread['value']:.{digits}f}" + ("" if spread["std"] is None else f" ± {spread['std']:.{digits}f}")


def training_work(config, data) -> float:
    """Work of a whole training in PFLOP, without a teacher's."""
    images = data[data_key(config)].train.images
    model = registry.find(config.model_name).build(
        input_shape=images.shape[1:], classes=len(data[data_key(config)].class_names), **config.network_options
    )
    return training_pflop(config, model, config.train_steps)


def remembered(path: Path, name: str, measure: Callable, holds: Callable = lambda _: True):
    """What was measured of a run before, if it still `holds`, or `measure()`, kept in a JSON file so that a stopped study goes on from there."""
    known = read_json(path, dict) if path.exists() else {}
    if name not in known or not holds(known[name]):
        known[name] = measure()
        write_json(path, known)
    return known[name]


def fingerprint(finished: FinishedRun) -> str:
    """Names the weights of a run: another training gives another loss."""
    return f"{finished.run.path.name}, test loss {finished.test['loss']:.9f}"


# What every study writes


def study_folder(given: dict, name: str, mode: str = "") -> Path:
    """The folder of a study, `name` where none is given. `mode`: its `--mode`, "" = `name`. Raises UsageError as `check_study_folder`."""
    # A throw-away object checks the two settings.
    config = HyperParameters(**{key: given[key] for key in ("version", "runs_dir") if key in given})
    folder = RunFolder(f"{config.runs_dir}/{config.version or name}")
    check_study_folder(folder, mode or name)
    return folder.path


def check_study_folder(folder: RunFolder, mode: str) -> None:
    """Raises UsageError if a folder holds a run, a study of another kind than `--mode`, or somebody's own report."""
    if folder.holds_run():
        raise UsageError(f"{folder} holds a run; give the study another --version")
    study = folder.path / "study.json"
    if study.is_file():
        command = read_json(study, {"command": str})["command"]
        held = re.search(r"--mode=(\w+)", command)
        kind = held[1] if held else "train"  # of folds, by a program without --mode
        if kind != mode:
            raise UsageError(f"{folder} holds the study of {kind}; give another --version")
    elif any((folder.path / name).exists() for name in ("report.md", "report.html")):
        raise UsageError(f"{folder} must be empty or hold a study, received another report; give another --version")


def write_study(
    folder: Path, command: str, rows: list[dict], report: str, figures: list[Path], runs=(), failures=()
) -> Path:
    """Writes report.md and study.json of a study, says which other study of this name that replaces, and deletes figures that only the former had.

    Args:
        folder: of the study.
        command: that repeats it.
        rows: as in `results/<experiment>.json`, without experiment, command and run.
        report: Markdown.
        figures: what was drawn.
        runs: names of the run folders beside `folder` that all this was read from; the study keeps checksums of their tables.
        failures: what is to be said of the runs that are missing.

    Returns:
        `folder`.
    """
    names = sorted(figure.name for figure in figures)
    with contextlib.suppress(UsageError):  # there is none, or it is damaged and written anew now
        former = read_json(folder / "study.json", dict)
        drawn = former.get("figures")
        for old in set(drawn if is_kind(drawn, [str]) else ()) - set(names):
            (folder / Path(old).name).unlink(missing_ok=True)
        if former.get("command") not in (None, command) and former.get("runs"):
            print(
                f"note: this replaces the study in {folder}, whose runs stay: '{former['command']}' makes it again; --version=NAME keeps both"
            )
    rows = [row | {"command": command, "run": folder.name} for row in rows]
    # Before the report: a folder with a report alone is somebody else's.
    tables = {name: hash_file(RunFolder(folder.parent / name).error_csv) for name in runs}
    study = {"command": command, "rows": rows, "runs": list(runs), "tables": tables, "figures": names}
    study |= {"failures": list(failures)} if failures else {}
    write_json(folder / "study.json", study)
    write_atomically(folder / "report.md", report + "\n")
    return folder


def write_results(folder, command, rows, report, drawn, groups, failures) -> Path:
    """As `write_study`. Raises UsageError at the end if runs failed, which the report names too."""
    if failures:
        report += "\n\n**Missing**, because the run failed:\n\n" + "\n".join(f"- {failure}" for failure in failures)
    names = [each.run.path.name for runs in groups.values() for each in runs]
    write_study(folder, command, rows, report, drawn, names, failures)
    if failures:
        write_study_page(folder)  # which the command writes otherwise
        raise UsageError(
            f"{len(failures)} runs failed, {folder} shows the others: {' | '.join(failures)}; the same command tries them again"
        )
    return folder


def study_command(mode: str, given: dict, **options) -> str:
    """The command that repeats the study, with its name if it was given one, without where things lie."""
    parts = [f"python cifar10_main.py --mode={mode}"]
    for name, value in options.items():
        if value is True:
            parts.append(f"--{name}")
        elif value is not False:
            parts.append(f"--{name}={shlex.quote(','.join(str(item) for item in value))}")
    fields = {field.name: field for field in dataclasses.fields(HyperParameters)}
    of_folder = "folder" in (given.get("dataset"), *(options.get("datasets") or ()))
    told = {"version", "data_dir", "labels", "label_separator", "jpeg_size"} if of_folder else {"version"}
    for name, value in given.items():
        if name in told or not fields[name].metadata["operational"]:
            parts.append(f"--{name}={shlex.quote(without_machine(name, str(value)))}")
    return " ".join(parts)


def result_row(runs, metric, values, published=None, source=None, *, unit="%") -> dict:
    """A row of `results/<experiment>.json`; its time is that of all runs together."""
    values = [float(value) for value in values]
    config, origins = runs[0].config, [describe_origin(each.run, each.config) for each in runs]
    spread = describe(values)
    recipes = {list_numbers(each.run)[1] for each in runs}  # patience may have ended seeds at other steps
    known = published is not None and not pd.isna(published)
    return {
        "dataset": config.dataset_name,
        "model": config.model_name,
        "preset": recipes.pop() if len(recipes) == 1 else getattr(config, "preset", ""),
        "options": config.model_choices,
        "metric": metric,
        "unit": unit,
        "values": [round(value, 6) for value in values],
        "value": round(spread["value"], 6),
        "std": None if spread["std"] is None else round(spread["std"], 6),
        "runs": len(values),
        "published": float(published) if known else None,
        "published_source": source if known else None,
        **origins[-1],
        "wall_seconds": sum(origin["wall_seconds"] for origin in origins),
    }
