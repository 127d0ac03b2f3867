"""How nets compare: several runs trained or reused, then tables and figures made from their run folders.

    compare(...)            nets x data sets x seeds: table 1 and figures 3 - 6 of Lu & Song, costs, per-class metrics
    degrade(...)            plain against residual nets at several depths: He et al. 2015, figure 6; gradient norm of each layer
    measure_robustness(...) accuracy of trained nets on corrupted test pictures

Each call can be repeated: a run that is finished is reused, one that was stopped goes on, what is missing is trained. A study
owns no run: the runs lie in `runs/<run name>/` as if trained by themselves, its tables and figures in `runs/<study>/`.

What is wrong with settings, data or folders is found before the first run begins, and ends the study. A run that fails later,
such as one that diverges, is reported at the end; the others are trained all the same, and make the tables and figures.

Source: Lu & Song, Research on image classification based on ResNet.
"""

import dataclasses
import datetime
import gc
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from matplotlib import pyplot as plt

import cifar10_input
import cifar10_test
import device_placement
import fast_inference
import image_corruption
import model_registry
import study_figures
import training_report
from cifar10_train import Interrupted, Train
from hyper_parameters import HyperParameters, UsageError, default_preset, from_preset
from run_folder import RunFolder, read_json, write_atomically, write_json

_COST_STEPS, _COST_REPORTS = 20, 5  # what a short training for speed and memory takes: steps of each report, reports


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
    def test_accuracy(self) -> float:
        """In %, of the weights that were chosen on validation images, measured once."""
        return 100 - self.result["test_error"]


# Which runs, and how they get finished


def plan_runs(given: dict, models, datasets, seeds) -> list[HyperParameters]:
    """The settings of every run of a study, data set by data set.

    Their reports look at the test images too (`watch_test`), for the curves that the papers show.

    Args:
        given: settings that hold for all runs, by name; a preset among them replaces each net's own, see
            `hyper_parameters.default_preset`.
        models: registry names, each perhaps with a preset and seeds of its own: "resnet20_preact:liang", "lenet5@0-2".
        datasets: names of data sets.
        seeds: ints.

    Raises:
        UsageError: an unknown name, a value out of its range, an option that a net does not have, several heads, or an empty
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
                configs.append(from_preset(preset, **common | {"model": model, "dataset": dataset, "seed": seed}))
    if not configs:
        raise UsageError("a study needs at least one net, one data set and one seed, received none")
    for config in configs:
        model_registry.find(config.model_name).check_options(config.net_options)
        if not config.validation_fraction:
            raise UsageError(
                "a study chooses weights on validation images, received --validation_fraction=0; leave it out"
            )
        if len(config.tasks) > 1:
            raise UsageError(f"a study compares nets with one head, received --heads={config.heads}; give one of them")
    return list(dict.fromkeys(configs))


def finish_runs(
    configs: list[HyperParameters], make_callback: Callable | None = None
) -> tuple[list[FinishedRun], list[str]]:
    """Trains, tests and draws what is not finished, in order; each run once.

    Args:
        configs: see `plan_runs`; several may mean one run.
        make_callback: makes a Keras callback with a method `finish()` from a `Train`; its file is `gradient_norms.csv`.

    Returns:
        (the finished runs, what is to be said of the others).

    Raises:
        UsageError: before any work: a run folder that holds another run, missing data, or pictures too small for a net. After
            all runs: all failed.
        Interrupted: as `Train.train`.
    """
    # Counted twice, a run would look like two seeds. Names of nets may differ: the depth may be told by the number of blocks.
    configs = [_as_stored(config) for config in {config.run_name: config for config in configs}.values()]
    if make_callback:
        for config in configs:
            run = _folder(config)
            if run.holds_run() and not run.gradient_norms.is_file() and run.error_csv.is_file():
                raise UsageError(
                    f"expected {run.gradient_norms}, but the run was trained without; give another --runs_dir"
                )
    data = {_data_key(config): cifar10_input.load_data(config) for config in configs}
    for config in configs:
        spec, shape = model_registry.find(config.model_name), data[_data_key(config)].train.images.shape[1:]
        if min(shape[:2]) < spec.minimum_size:
            spec.build(input_shape=shape)  # which refuses such pictures, and says so, before it builds anything
    tf.get_logger().setLevel("ERROR")  # it warns that `predict` is built anew for each net
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
            _finish(config, data[_data_key(config)], make_callback)
        except Interrupted as stop:
            reason = str(stop).split(";")[0]
            raise Interrupted(
                f"run {number} of {len(configs)}: {reason}; the same command goes on with the study"
            ) from stop
        except UsageError as error:
            print(f"failed: {error}", flush=True)
            failures[config] = f"{_folder(config)}: {error}"
        # Keras and TensorFlow keep what belongs to a net alive until they are told otherwise.
        keras.backend.clear_session()
        gc.collect()
    if len(failures) == len(configs):
        raise UsageError(f"all {len(configs)} runs failed: {' | '.join(failures.values())}")
    return [_read_finished(config) for config in configs if config not in failures], list(failures.values())


def _folder(config) -> RunFolder:
    return RunFolder(f"{config.runs_dir}/{config.run_name}")


def _data_key(config):
    return config.dataset, config.synthetic_images if config.dataset == "synthetic" else None


def _as_stored(config):
    """The settings with which a run that exists goes on. Raises UsageError if it is another run than the wanted one."""
    run = _folder(config)
    if not run.holds_run():
        run.check(config, resume=True, overwrite=False)
        return config
    stored = run.read_config()
    # The depth may stand in the name of the net or in num_residual_blocks.
    wanted, held = (
        dataclasses.replace(each, model=each.model_name, num_residual_blocks=0) for each in (config, stored)
    )
    if flags := wanted.flags_beside(held):
        raise UsageError(
            f"expected a run with {' '.join(flags)} in {run}, which holds one with {' '.join(held.flags_beside(wanted))}; give "
            "these settings to use it, or another --runs_dir"
        )
    operational = {
        field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.metadata["operational"]
    }
    return dataclasses.replace(stored, **operational)


def _is_finished(config) -> bool:
    run = _folder(config)
    # The table of layers is drawn last: a kill may have come after the first figure.
    if not (run.result.is_file() and run.best.is_file() and (run.figures / "layers.md").is_file()):
        return False
    return read_json(run.result, {"last_step": int})["last_step"] == config.train_steps


def _finish(config, data, make_callback):
    run = _folder(config)
    trainer = Train(config, run, data)
    callback = make_callback(trainer) if make_callback else None
    trainer.train(resume=True, callbacks=[callback] if callback else [])
    if callback:
        callback.finish()
    cifar10_test.evaluate(config)
    training_report.draw(run, config.data_dir)


def _read_finished(config) -> FinishedRun:
    run = _folder(config)
    kind = training_report.TESTED | {"test_loss": float, "per_class": [{"precision": float, "recall": float}]}
    return FinishedRun(config, run, run.read_history(), read_json(run.result, kind))


def _time_left(waiting, configs, data) -> str:
    """How long the waiting runs will take, judged by those that are finished: of the same net, else by multiply-adds."""
    seconds = {}
    for config in configs:
        if _is_finished(config):
            seconds.setdefault(_group_key(config), []).append(float(_folder(config).read_history().iloc[-1]["seconds"]))
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
                statistics.mean(seconds[other]) / _training_work(known[other], data) for other in known
            )
            seconds[key] = [pace * _training_work(config, data)]
        total += statistics.mean(seconds[key])
    return f", about {datetime.timedelta(seconds=round(total))} left"


def _training_work(config, data) -> int:
    """Multiply-adds of the way forward of a whole training."""
    images = data[_data_key(config)].train.images
    net = model_registry.find(config.model_name).build(
        input_shape=images.shape[1:], classes=len(data[_data_key(config)].class_names), **config.net_options
    )
    return multiply_adds(net) * config.train_steps * config.train_batch_size


def _group_key(config):
    return config.dataset, config.model_name, config.preset


def group_runs(runs: list[FinishedRun]) -> dict[tuple[str, str, str], list[FinishedRun]]:
    """(data set, net, preset) -> the runs that differ in their seed, in the order of the study."""
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


def multiply_adds(model: keras.Model) -> int:
    """Multiply-adds (MACs) of one image through a net: convolutions and matrix products, without biases and the rest.

    TensorFlow counts them on the graph that it would compute, so that every kind of convolution is covered.
    """
    function = tf.function(lambda images: model(images, training=False))
    graph = function.get_concrete_function(tf.TensorSpec((1, *model.input_shape[1:]))).graph
    builder = tf.compat.v1.profiler.ProfileOptionBuilder
    options = (
        builder(builder.float_operation())
        .with_accounted_types(["Conv2D", "DepthwiseConv2dNative", "MatMul"])
        .with_empty_output()
        .build()
    )
    return tf.compat.v1.profiler.profile(graph, options=options).total_float_ops // 2


def measure_cost(config: HyperParameters) -> dict:
    """Speed and memory of a trained net; to be called in a process of its own, since the peak never falls.

    Returns:
        training_seconds and inference_seconds per 1,000 images: of the run's own settings, median of the reports of a short
        training without the first; float32, batches of 125, median of 5. training_memory, the peak resident memory in MB
        (2**20 bytes) of this process, data included, after that training; None where the system does not tell. And the hardware on
        which this was measured, which need not be that of the run.
    """
    data = cifar10_input.load_data(config)
    model = cifar10_test.load_model(str(_folder(config).best))
    images = data.test.images[np.arange(1000) % len(data.test)]
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        model.predict(images, batch_size=125, verbose=0)
        seconds.append(time.perf_counter() - started)
    with tempfile.TemporaryDirectory() as folder:
        short = dataclasses.replace(
            config,
            train_steps=_COST_STEPS * _COST_REPORTS,
            report_freq=_COST_STEPS,
            tensorboard=False,
            watch_test=False,
            runs_dir=folder,
        )
        trainer = Train(short, data=data)
        trainer.train()
    # Not that of the run itself, which may have shared the machine with others. Row 0 is the untrained net.
    speed = statistics.median(row["examples_per_sec"] for row in trainer.history[2:])
    status = Path("/proc/self/status")
    peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    return {
        "training_seconds": 1000 / speed,
        "inference_seconds": statistics.median(seconds[1:]),  # the first builds the graph
        "training_memory": int(peak[1]) / 1024 if peak else None,
        "hardware": training_report.name_hardware(device_placement.describe_environment(trainer.policy)),
    }


def _measure_cost_apart(config) -> dict:
    """`measure_cost` in a new process, which says nothing unless it fails."""
    command = [sys.executable, str(Path(__file__).resolve())]
    done = subprocess.run(command, input=config.to_json(), capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UsageError(f"could not measure what {_folder(config)} costs ({reason}); repeat the command")
    return json.loads(done.stdout.splitlines()[-1])


def _remembered(path: Path, name: str, measure: Callable):
    """What was measured of a run before, or `measure()`, kept in a JSON file so that a stopped study goes on from there."""
    known = read_json(path, dict) if path.exists() else {}
    if name not in known:
        known[name] = measure()
        write_json(path, known)
    return known[name]


def _fingerprint(finished: FinishedRun) -> str:
    """Names the weights of a run: another training gives another loss."""
    return f"{finished.run.path.name}, test loss {finished.result['test_loss']:.9f}"


def cost_table(groups, folder: Path) -> pd.DataFrame:
    """What each net costs: one row per group of runs. Speed and memory are measured once per net, in a process of its own."""
    rows = []
    for (dataset, model_name, preset), runs in groups.items():
        first = runs[0]
        measured = _remembered(
            folder / "measured_costs.json", _fingerprint(first), lambda config=first.config: _measure_cost_apart(config)
        )
        model = cifar10_test.load_model(str(first.run.best))
        macs = multiply_adds(model)
        images = first.config.train_steps * first.config.train_batch_size
        rows.append(
            {
                "dataset": dataset,
                "model": model_name,
                "preset": preset,
                "parameters": sum(int(np.prod(weight.shape)) for weight in model.trainable_weights),
                "multiply_adds": macs,
                # Two operations each; the gradients by inputs and by weights cost as much as the way forward.
                "training_tflop": 6 * macs * images / 1e12,
                "training_seconds": measured["training_seconds"],
                "inference_seconds": measured["inference_seconds"],
                "training_memory": measured["training_memory"],
                "hardware": measured["hardware"],
                "model_mb": model.count_params() * 4 / 2**20,
                "wall_minutes": statistics.mean(float(each.history["seconds"].iloc[-1]) for each in runs) / 60,
            }
        )
    return pd.DataFrame(rows)


# The comparison of Lu & Song


def accuracy_table(groups) -> pd.DataFrame:
    """Table 1 of Lu & Song: a row per group, single values per seed in lists, published numbers beside them (or NaN)."""
    rows = []
    for (dataset, model_name, preset), runs in groups.items():
        config, family = runs[0].config, training_report.find_family(model_name)
        watched = [each.watched_accuracy for each in runs]
        is_theirs = not training_report.is_another_net(config) and (family, dataset) in training_report.LU_SONG_TABLE
        published = training_report.LU_SONG_TABLE[family, dataset] if is_theirs else (np.nan, np.nan)
        rows.append(
            {
                "dataset": dataset,
                "model": model_name,
                "preset": preset,
                "seeds": len(runs),
                "published_training": published[0],
                "training": [each.training_accuracy for each in runs],
                "validation": [each.validation_accuracy for each in runs],
                "published_test": published[1],
                # One run that did not look leaves the group without: a mean of fewer runs is another number.
                "watched": [] if None in watched else watched,
                "test": [each.test_accuracy for each in runs],
            }
        )
    return pd.DataFrame(rows)


def difference_table(accuracies: pd.DataFrame) -> pd.DataFrame:
    """Percentage points of test accuracy of every net over every LeNet and AlexNet on the same data; means over seeds."""
    rows = []
    for _, net in accuracies.iterrows():
        for _, other in accuracies[accuracies["dataset"] == net["dataset"]].iterrows():
            same = (net["model"], net["preset"]) == (other["model"], other["preset"])
            family = training_report.find_family(other["model"])
            if not same and family in ("lenet", "alexnet"):
                # Of two forms of one family, the paper has one number.
                is_theirs = training_report.find_family(net["model"]) != family
                rows.append(
                    {
                        "dataset": net["dataset"],
                        "model": net["model"],
                        "preset": net["preset"],
                        "over": other["model"],
                        "over_preset": other["preset"],
                        "points": statistics.mean(net["test"]) - statistics.mean(other["test"]),
                        "published_points": net["published_test"] - other["published_test"] if is_theirs else np.nan,
                    }
                )
    return pd.DataFrame(rows)


def class_table(groups) -> pd.DataFrame:
    """Precision, recall and F1 of every class in every run, as in `result.json`."""
    return pd.DataFrame(
        [
            {"dataset": dataset, "model": model_name, "preset": preset, "seed": each.config.seed, **scores}
            for (dataset, model_name, preset), runs in groups.items()
            for each in runs
            for scores in each.result["per_class"]
        ]
    )


def compare(given: dict, models, datasets, seeds) -> Path:
    """Nets against each other, with the numbers of Lu & Song beside them.

    Args:
        given, models, datasets, seeds: see `plan_runs`; `version` names the folder of the study.

    Returns:
        The folder: report.md, accuracy.csv, cost.csv, per_class.csv, study.json and the figures.

    Raises:
        UsageError, Interrupted: see `finish_runs`.
    """
    folder = study_folder(given, "compare")
    runs, failures = finish_runs(plan_runs(given, models, datasets, seeds))
    groups = group_runs(runs)
    accuracies, classes = accuracy_table(groups), class_table(groups)
    differences, costs = difference_table(accuracies), cost_table(groups, folder)
    flat = accuracies.assign(
        **{name: accuracies[name].map(lambda values: " ".join(f"{x:.4f}" for x in values)) for name in _ACCURACIES}
    )
    for name, table in {"accuracy": flat, "difference": differences, "cost": costs, "per_class": classes}.items():
        write_atomically(folder / f"{name}.csv", table.to_csv(index=False))
    drawn = []
    with plt.rc_context(training_report.STYLE):
        for dataset in dict.fromkeys(key[0] for key in groups):
            of_dataset = {key[1:]: runs for key, runs in groups.items() if key[0] == dataset}
            config = next(iter(of_dataset.values()))[0].config
            data = cifar10_input.load_data(config)
            figures = {
                f"accuracy-{dataset}": study_figures.draw_accuracy(of_dataset, dataset),
                f"samples-{dataset}": training_report.draw_samples(data.train, data.class_names, dataset),
            }
            if len(data.class_names) <= 20:
                for (model_name, preset), runs in of_dataset.items():
                    matrix = sum(np.array(each.result["confusion_matrix"]) for each in runs)
                    title = f"{model_name} on {dataset}, preset {preset}, {len(runs)} seed{'s' * (len(runs) > 1)}"
                    figures[f"confusion-{dataset}-{model_name}-{preset}"] = training_report.draw_confusion(
                        matrix, data.class_names, title
                    )
            for name, figure in figures.items():
                drawn.append(training_report.save_figure(figure, folder / f"{name}.png"))
    rows = []
    for _, row in accuracies.iterrows():
        runs = groups[row["dataset"], row["model"], row["preset"]]
        rows += [
            _result_row(
                runs, "highest training accuracy", row["training"], row["published_training"], training_report.LU_SONG
            ),
            _result_row(runs, "highest validation accuracy", row["validation"]),
            _result_row(
                runs, "test accuracy, chosen on validation", row["test"], row["published_test"], training_report.LU_SONG
            ),
        ]
        if row["watched"]:
            metric = "highest test accuracy, chosen on the test images"
            rows.append(_result_row(runs, metric, row["watched"], row["published_test"], training_report.LU_SONG))
    for _, row in costs.iterrows():
        runs = groups[row["dataset"], row["model"], row["preset"]]
        rows += [
            _result_row(runs, metric, [row[name]], unit=unit) | {"hardware": row["hardware"]}
            for name, (metric, unit) in _COSTS.items()
            if not pd.isna(row[name])
        ]
    report = _compare_report(accuracies, differences, costs, classes)
    command = study_command("compare", given, models=models, datasets=datasets, seeds=seeds)
    return _write(folder, command, rows, report, drawn, groups, failures)


_ACCURACIES = ("training", "validation", "watched", "test")
_COSTS = {
    "multiply_adds": ("multiply-adds per image", ""),
    "training_tflop": ("training work", "TFLOP"),
    "training_seconds": ("training, per 1,000 images", "s"),
    "inference_seconds": ("inference, per 1,000 images", "s"),
    "training_memory": ("peak memory of training", "MB"),
    "model_mb": ("weights", "MB"),
}


def _compare_report(accuracies, differences, costs, classes) -> str:
    lines = [
        "**Accuracy in %**, mean ± sample standard deviation over the seeds. Lu & Song print the highest accuracy that any epoch",
        "reached, also on the test images, which chooses by the very images it is told of. Ours of that kind stands beside theirs. The",
        "last column is what a user gets: the one test of the weights that did best on the validation images. Accuracies on the",
        "training images are those of the augmented batches of a report interval.",
        "",
        "| data set | net | preset | seeds | highest training, Lu & Song | highest training | highest validation | highest test, Lu & Song "
        "| highest test | test, chosen on validation |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for _, row in accuracies.iterrows():
        digits = 2 if row["dataset"] != "mnist" else 3
        cells = [row["dataset"], row["model"], row["preset"], row["seeds"], _published(row["published_training"])]
        cells += [format_spread(row["training"], digits), format_spread(row["validation"], digits)]
        cells += [
            _published(row["published_test"]),
            format_spread(row["watched"], digits) if row["watched"] else "not watched",
        ]
        cells += [f"**{format_spread(row['test'], digits)}**"]
        lines.append(_line(cells))
    if len(differences):
        lines += [
            "",
            "**Differences of test accuracy** in percentage points, means over seeds:",
            "",
            "| data set | net | over | Lu & Song | ours |",
            "|---|---|---|---:|---:|",
        ]
        for _, row in differences.iterrows():
            of_dataset = accuracies[accuracies["dataset"] == row["dataset"]]
            shown = study_figures.short_names(zip(of_dataset["model"], of_dataset["preset"], strict=True))
            names = shown[row["model"], row["preset"]], shown[row["over"], row["over_preset"]]
            published = "" if pd.isna(row["published_points"]) else f"{row['published_points']:+.3f}"
            lines.append(_line([row["dataset"], *names, published, f"{row['points']:+.3f}"]))
    lines += [
        "",
        "**Costs.** A multiply-add is two operations; training costs three times the way forward. Speed and memory are those of a",
        f"process of its own that does nothing else: {_COST_STEPS * _COST_REPORTS} training steps with the run's settings, memory at its peak and data included;",
        "inference in float32 and batches of 125. The last column is the time of the whole run, other work of the machine included.",
        "",
        "| data set | net | preset | trainable parameters | million multiply-adds per image | training, TFLOP | training, s per 1,000 images "
        "| inference, s per 1,000 images | peak memory, MB | weights, MB | measured on | training, min |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---|---:|",
    ]
    for _, row in costs.iterrows():
        memory = "not measured" if pd.isna(row["training_memory"]) else f"{row['training_memory']:,.0f}"
        cells = [row["dataset"], row["model"], row["preset"], f"{row['parameters']:,}"]
        cells += [f"{row['multiply_adds'] / 1e6:,.2f}", f"{row['training_tflop']:,.1f}"]
        cells += [f"{row['training_seconds']:.3f}", f"{row['inference_seconds']:.3f}", memory]
        lines.append(_line([*cells, f"{row['model_mb']:.2f}", row["hardware"], f"{row['wall_minutes']:.1f}"]))
    lines += ["", "**F1 of each class**, mean over seeds; precision and recall stand in `per_class.csv`."]
    for dataset, part in classes.groupby("dataset", sort=False):
        if part["class"].nunique() > 20:
            continue
        table = part.pivot_table("f1", "class", ["model", "preset"], "mean", sort=False)
        nets = study_figures.short_names(table.columns).values()
        lines += ["", _line([dataset, *nets]), _line(["---", *["---:"] * len(nets)])]
        lines += [
            _line([name, *(f"{value:.3f}" for value in values)])
            for name, values in zip(table.index, table.to_numpy(), strict=True)
        ]
    return "\n".join(lines)


def _published(value) -> str:
    return "" if pd.isna(value) else f"{value:.3f}"


def _line(cells) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


# Plain against residual


class GradientNorms(keras.callbacks.Callback):
    """Notes the norm of the loss gradient by each kernel, at every report, on one batch that stays the same.

    The batch is the first 128 training images without augmentation, with batch statistics as in training, without weight decay. What
    the net is and how it trains stays the same to the last bit. `gradient_norms.csv` in the run folder has one row per report: the
    step, then a column per layer, from input to output. After a kill the rows go on from the checkpoint; none is doubled.
    """

    def __init__(self, trainer: Train):
        super().__init__()
        self._trainer = trainer
        self._path = trainer.run.gradient_norms
        part = trainer.training.take(np.arange(min(128, len(trainer.training))))
        self._images, self._labels = trainer.normalization(part.images), part.labels
        self._rows = None

    def on_train_begin(self, logs=None):
        # A run that went back to an older checkpoint passes its later steps again.
        self._read()
        step = self._trainer.step
        if step % self._trainer.report_freq == 0:  # else Ctrl-C came between two reports
            self._record()

    def on_epoch_end(self, epoch, logs=None):
        self._record()

    def finish(self):
        """Adds the row of the last step, if a kill came between the last checkpoint and this callback."""
        if self._rows is None:
            self._read()
        self._record()

    def _read(self):
        rows = pd.read_csv(self._path).to_dict("records") if self._path.exists() else []
        self._rows = [row for row in rows if row["step"] <= self._trainer.step]

    def _record(self):
        if any(row["step"] == self._trainer.step for row in self._rows):
            return
        self._rows.append({"step": self._trainer.step, **self._measure()})
        write_atomically(self._path, pd.DataFrame(self._rows).to_csv(index=False))

    def _measure(self) -> dict[str, float]:
        net = self._trainer.net
        kernels = {layer.name: layer.kernel for layer in net.layers if hasattr(layer, "kernel")}
        kept = [variable.numpy() for variable in net.non_trainable_variables]
        with tf.GradientTape() as tape:
            logits = net(self._images, training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(self._labels, logits))
        gradients = tape.gradient(loss, [kernel.value for kernel in kernels.values()])
        for variable, value in zip(net.non_trainable_variables, kept, strict=True):
            variable.assign(value)
        return {name: float(tf.norm(gradient)) for name, gradient in zip(kernels, gradients, strict=True)}


def degrade(given: dict, depths, seeds, short: bool) -> Path:
    """The degradation experiment of He et al. 2015: plain and residual nets of equal depth, trained by one recipe.

    Args:
        given: as in `plan_runs`; without a preset, "degradation" (short) or "he2015", of which ResNet-110 and plain-110 take
            the variant with a slow start, "he2015_110".
        depths: 6n+2 each.
        seeds: ints.
        short: the setting for two cores and an hour.

    Returns:
        The folder: report.md, degradation.csv, study.json and the figures.

    Raises:
        UsageError, Interrupted: see `finish_runs`.
    """
    folder = study_folder(given, "degradation")
    dataset = given.get("dataset", "cifar10")
    recipe = given.get("preset") or ("degradation" if short else "he2015")
    configs = []
    for depth in depths:
        preset = "he2015_110" if depth >= 110 and recipe == "he2015" else recipe
        models = [f"plain{depth}", f"resnet{depth}"]
        configs += plan_runs(given | {"preset": preset}, models, [dataset], seeds)
    finished, failures = finish_runs(configs, make_callback=GradientNorms)
    groups = group_runs(finished)
    rows, table = [], []
    for (_, model_name, preset), runs in groups.items():
        form, depth = re.fullmatch(r"(plain|resnet)(\d+)", model_name).groups()
        norms = [_read_norms(each.run) for each in runs]
        layers = [name for name in norms[0].columns if "conv" in name]
        # The preset "degradation" is the paper's recipe cut short, so that no published number stands beside its own.
        is_he = preset.startswith("he2015")
        known, error, source = (training_report.published_number(runs[0].config) if is_he else None) or (None,) * 3
        numbers = {
            "training error, last report": [float(each.history["train_error"].iloc[-1]) for each in runs],
            "validation error, last report": [float(each.history["validation_error"].iloc[-1]) for each in runs],
            "test error, chosen on validation": [each.result["test_error"] for each in runs],
            "gradient norm, first / last convolution, untrained": [
                float(norm[layers[0]].iloc[0] / norm[layers[-1]].iloc[0]) for norm in norms
            ],
            "gradient norm, first / last convolution, trained": [
                float(norm[layers[0]].iloc[-1] / norm[layers[-1]].iloc[-1]) for norm in norms
            ],
        }
        table.append({"form": form, "depth": int(depth), "preset": preset, "seeds": len(runs), **numbers})
        for metric, values in numbers.items():
            published = (error, source) if known == "test_error" and metric.startswith("test error") else (None, None)
            unit = "x" if metric.startswith("gradient") else "%"
            rows.append(_result_row(runs, metric, values, *published, unit=unit))
    table = pd.DataFrame(table)
    means = table.map(lambda value: statistics.mean(value) if isinstance(value, list) else value)
    write_atomically(folder / "degradation.csv", means.to_csv(index=False))
    with plt.rc_context(training_report.STYLE):
        norms = {key[1]: _read_norms(runs[0].run) for key, runs in groups.items()}
        by_net = {key[1]: runs for key, runs in groups.items()}
        figures = {
            "error_against_step": study_figures.draw_error_against_step(by_net, dataset),
            "error_against_depth": study_figures.draw_error_against_depth(means, dataset),
            "gradient_norms": study_figures.draw_gradient_norms(norms, dataset),
        }
        drawn = [training_report.save_figure(figure, folder / f"{name}.png") for name, figure in figures.items()]
    command = study_command("degradation", given, depths=depths, seeds=seeds, short=short)
    return _write(folder, command, rows, _degradation_report(table), drawn, groups, failures)


def _read_norms(run: RunFolder) -> pd.DataFrame:
    try:
        norms = pd.read_csv(run.gradient_norms)
        if not len(norms) or "step" not in norms or not np.isfinite(norms.to_numpy(float)).all():
            raise ValueError("it has no finite numbers")
        return norms
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{run.gradient_norms} is damaged ({error}); delete the run folder and train it again"
        ) from error


def _degradation_report(table) -> str:
    lines = [
        "Top-1 errors in %. Training: mean over the augmented batches of the last report interval. Validation: at the last step. Test: once,",
        "with the weights chosen on validation images. Gradient: norm of the loss gradient by the first convolution over that by the last.",
        "",
        "| depth | net | preset | seeds | training | validation | test | gradient, untrained | gradient, trained |",
        "|---:|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for _, row in table.sort_values(["depth", "form"], kind="stable").iterrows():
        cells = [row["depth"], row["form"], row["preset"], row["seeds"]]
        lines.append(_line(cells + [format_spread(values) for values in row.iloc[4:]]))
    return "\n".join(lines)


# Corrupted pictures


def measure_robustness(given: dict, models, datasets, seeds) -> Path:
    """Accuracy on corrupted test pictures, see `image_corruption`, of nets that were trained on clean ones.

    Nothing is chosen by these numbers. Runs that are missing are trained first.

    Args:
        given, models, datasets, seeds: see `plan_runs`.

    Returns:
        The folder: report.md, robustness.csv, study.json and the figures.

    Raises:
        UsageError, Interrupted: see `finish_runs`.
    """
    folder = study_folder(given, "robustness")
    runs, failures = finish_runs(plan_runs(given, models, datasets, seeds))
    groups = group_runs(runs)
    table = []
    for (dataset, model_name, preset), runs in groups.items():
        for each in runs:
            measured = _remembered(
                folder / "measured.json", _fingerprint(each), lambda each=each: _measure_corrupted(each)
            )
            keys = {"dataset": dataset, "model": model_name, "preset": preset, "seed": each.config.seed}
            table += [
                keys | {"corruption": corruption, "strength": strength, "accuracy": accuracy}
                for corruption, accuracies in measured.items()
                for strength, accuracy in enumerate(accuracies)
            ]
    table = pd.DataFrame(table)
    write_atomically(folder / "robustness.csv", table.to_csv(index=False))
    rows = []
    for key, runs in groups.items():
        part = table[(table["dataset"] == key[0]) & (table["model"] == key[1]) & (table["preset"] == key[2])]
        rows.append(
            _result_row(runs, "test accuracy, clean", part[part["strength"] == 0].groupby("seed")["accuracy"].mean())
        )
        for corruption in image_corruption.CORRUPTIONS:
            of_kind = part[(part["corruption"] == corruption) & (part["strength"] > 0)]
            rows.append(
                _result_row(
                    runs, f"{corruption}, mean over strengths 1 - 5", of_kind.groupby("seed")["accuracy"].mean()
                )
            )
    drawn = []
    with plt.rc_context(training_report.STYLE):
        for dataset, part in table.groupby("dataset", sort=False):
            figure = study_figures.draw_robustness(part, dataset)
            drawn.append(training_report.save_figure(figure, folder / f"robustness-{dataset}.png"))
            runs = next(runs for key, runs in groups.items() if key[0] == dataset)
            figure = study_figures.draw_corruptions(cifar10_input.load_data(runs[0].config).test.images[:1], dataset)
            drawn.append(training_report.save_figure(figure, folder / f"corruptions-{dataset}.png"))
    command = study_command("robustness", given, models=models, datasets=datasets, seeds=seeds)
    return _write(folder, command, rows, _robustness_report(table), drawn, groups, failures)


def _measure_corrupted(finished: FinishedRun) -> dict[str, list[float]]:
    """corruption -> accuracy in % at strengths 0 .. 5 on all test images."""
    print(f"corrupted pictures: {finished.run.path.name}", flush=True)
    test = cifar10_input.load_data(finished.config).test
    # In the number format of the run, which is faster than float32: each net is tested twenty-one times.
    policy = device_placement.choose_policy(finished.config.precision)
    model = fast_inference.fold_batch_norm(cifar10_test.load_model(str(finished.run.best)), policy)

    def accuracy(corruption, strength):
        images = image_corruption.corrupt(test.images, corruption, strength)
        return 100 * float(np.mean(cifar10_test.test(model, images).argmax(axis=1) == test.labels))

    clean = accuracy("noise", 0)
    return {
        corruption: [clean, *(accuracy(corruption, strength) for strength in image_corruption.STRENGTHS[1:])]
        for corruption in image_corruption.CORRUPTIONS
    }


def _robustness_report(table) -> str:
    meanings = "; ".join(
        f"{name}: {meaning} ({', '.join(f'{value:g}' for value in values)})"
        for name, (meaning, values) in image_corruption.CORRUPTIONS.items()
    )
    lines = [
        "Accuracy in % on all test images, corrupted with the strengths that Hendrycks & Dietterich chose for CIFAR-10-C; mean ± sample standard",
        "deviation over the seeds. By nets in the number format of their training, batch norm folded, so that the clean accuracy can",
        f"differ from that of the test by some hundredths. {meanings}.",
        "",
        _line(["data set", "net", "preset", "corruption", "clean", *image_corruption.STRENGTHS[1:]]),
        _line([*["---"] * 4, *["---:"] * len(image_corruption.STRENGTHS)]),
    ]
    for key, part in table.groupby(["dataset", "model", "preset", "corruption"], sort=False):
        by_strength = part.groupby("strength")["accuracy"]
        lines.append(_line([*key, *(format_spread(values) for _, values in by_strength)]))
    return "\n".join(lines)


# What every study writes


def study_folder(given: dict, name: str) -> Path:
    """The folder of a study. Raises UsageError if it holds a run."""
    # A throw-away object checks the two settings.
    config = HyperParameters(**{key: given[key] for key in ("version", "runs_dir") if key in given})
    folder = RunFolder(f"{config.runs_dir}/{config.version or name}")
    if folder.holds_run():
        raise UsageError(f"{folder} holds a run; give the study another --version")
    return folder.path


def _write(folder, command, rows, report, drawn, groups, failures) -> Path:
    """`training_report.write_study`. Raises UsageError at the end if runs failed, which the report names too."""
    if failures:
        report += "\n\n**Missing**, because the run failed:\n\n" + "\n".join(f"- {failure}" for failure in failures)
    names = [each.run.path.name for runs in groups.values() for each in runs]
    training_report.write_study(folder, command, rows, report, drawn, names)
    if failures:
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
            parts.append(f"--{name}={','.join(str(item) for item in value)}")
    fields = {field.name: field for field in dataclasses.fields(HyperParameters)}
    parts += [
        f"--{name}={value}"
        for name, value in given.items()
        if name == "version" or not fields[name].metadata["operational"]
    ]
    return " ".join(parts)


def _result_row(runs, metric, values, published=None, source=None, *, unit="%") -> dict:
    """A row of `results/<experiment>.json`; its time is that of all runs together."""
    values = [float(value) for value in values]
    config, origins = runs[0].config, [training_report.describe_origin(each.run, each.config) for each in runs]
    spread = describe(values)
    known = published is not None and not pd.isna(published)
    return {
        "dataset": config.dataset,
        "model": config.model_name,
        "preset": config.preset,
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


if __name__ == "__main__":  # the process of its own of `_measure_cost_apart`
    print(json.dumps(measure_cost(HyperParameters.from_json(sys.stdin.read(), "the standard input"))))
