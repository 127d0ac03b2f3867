"""How small and how fast trained networks become as files of other formats and number formats, and what that costs in error."""

import dataclasses
import itertools
import json
import statistics
import sys
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import tensorflow as tf
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

import cifar10_test
from hyper_parameters import HyperParameters
from resnet_study import devices
from resnet_study.environment import count_cores, describe_environment
from resnet_study.errors import UsageError
from resnet_study.evaluation import find_model, read_as_trained
from resnet_study.exporting.export import describe_source, is_as_described
from resnet_study.exporting.exported_model import ExportedModel
from resnet_study.exporting.runtimes import time_answers
from resnet_study.files import write_atomically
from resnet_study.networks.multiply_adds import multiply_adds
from resnet_study.predictor import Predictor
from resnet_study.reports.canvas import BLACK, STYLE, make_panels, save_figure
from resnet_study.reports.results import name_hardware
from resnet_study.reports.tables import table_lines
from resnet_study.saved_models import find_heads, load_model, save_model
from resnet_study.studies.cost import measure_apart
from resnet_study.studies.curves import styles
from resnet_study.studies.runs import remembered, study_command, study_folder, write_study

# The settings that decide which images a network is tested on, and how they are read.
_OF_IMAGES = (
    "synthetic_images", "image_size", "channels", "label_level", "test_fraction", "split_seed", "folds", "fold", "on_bad_image", "resize",
    "value_range",
)  # fmt: skip
_FILES = {
    "LiteRT float32": ("litert", "none"),
    "LiteRT float16": ("litert", "float16"),
    "LiteRT dynamic": ("litert", "dynamic"),
    "LiteRT int8": ("litert", "int8"),
    "ONNX float32": ("onnx", "none"),
    "ONNX int8": ("onnx", "int8"),
}
_PREDICT, _PREDICTOR = "Keras predict", "Predictor"  # what computes the network of Keras itself
_ROUNDS, _THREADS, _BATCH = 5, (1, 2), 128
_SECONDS = 0.5  # of timed calls in each measurement
_MARKERS = "osD^v<>P"


def compress(given: dict, sources: dict[str, HyperParameters]) -> Path:
    """Brings each network to each form, tests them on all test images and measures their speed.

    The files lie in the folder of the study, in `test-<source>/exported/`. Errors are computed once. Speed is measured in turn, form by form
    in a process of its own, five times. What is done is kept in `measured.json`; delete that to measure again.

    Args:
        given: settings by name; `version` and `runs_dir` name the folder, "compress" if not given.
        sources: name -> settings whose `test_ckpt_path` names the network, all of one data set.

    Returns:
        The folder: report.md, compress.csv, study.json and the figures.

    Raises:
        UsageError: a network is not found, has several heads, or is of another data set than the others.
    """
    folder = study_folder(given, "compress")
    datasets = sorted({config.dataset_name for config in sources.values()})
    if len(datasets) > 1:
        raise UsageError(
            f"--versions must be of one data set, received some of {' and '.join(datasets)}; give those of one"
        )
    places = {}
    for name, config in sources.items():
        placed = find_model(dataclasses.replace(config, runs_dir=str(folder)))[1]  # as in `_make_forms`
        if (other := places.setdefault(placed.path.name, name)) != name:
            raise UsageError(
                f"--versions must name networks by different folders, received {other} and {name}, whose files would replace each other; "
                "rename one"
            )
    if tf.config.get_visible_devices("GPU"):  # all forms are of the processor
        devices.choose_strategy("cpu")
    tf.get_logger().setLevel("ERROR")  # it warns that each network's `predict` is built anew
    known, missing, forms = folder / "measured.json", [], []
    for name, config in sources.items():
        # The files go where they replace no other export.
        forms += _make_forms(name, dataclasses.replace(config, runs_dir=str(folder)), known, missing)
    threads = [count for count in _THREADS if count <= count_cores()]
    machine = name_hardware(describe_environment(devices.choose_policy("auto", "auto")))
    for number, count in itertools.product(range(1, _ROUNDS + 1), threads):
        print(f"speed, round {number} of {_ROUNDS}, {count} thread{'s' * (count > 1)}", flush=True)
        for form in forms:
            seconds = remembered(
                known,
                f"{form['key']}, {count} threads, round {number}, {machine}",
                lambda job=form["job"], count=count: _time(job, count),
            )
            form.setdefault("seconds", {}).setdefault(count, []).append(seconds)
    table = _make_table(forms)
    write_atomically(folder / "compress.csv", table.to_csv(index=False))
    with matplotlib.rc_context(STYLE):
        labels = {f"latency_{count}": _name_threads("one image (ms)", count) for count in threads}
        drawn = [
            save_figure(draw_choices(table, {"bytes": "size (bytes)"}, datasets[0]), folder / "error-size.png"),
            save_figure(draw_choices(table, labels, datasets[0]), folder / "error-latency.png"),
        ]
    command = study_command("compress", given, versions=sources)
    # Runs by their path are no runs beside the study.
    runs = [name for name in sources if Path(name).name == name and (folder.parent / name / "error.csv").is_file()]
    return write_study(
        folder, command, _make_rows(table, datasets[0], threads), _report(table, threads, missing), drawn, runs
    )


# The forms, and what is right and wrong with each


def _make_forms(name, config, known, missing) -> list[dict]:
    """What is told of each form of a network, with the job of its timing; a form that cannot be made is told in `missing`."""
    path, _ = find_model(config)
    model = load_model(path, config.shipped_name)
    if "" not in find_heads(model):
        raise UsageError(f"--mode=compress is for networks with one head, received {name} with several; leave it out")
    config = read_as_trained(config, path, model)
    (data,) = cifar10_test.load_as_trained(config, path, model).values()
    if data.multi_label:
        raise UsageError(f"--mode=compress is for one label of each image, received {name}; leave it out")
    test = data.test
    begins = f"{name} on {config.dataset_name}, sha256 {describe_source(path, model)['source_sha256']}"
    if data.fingerprint:  # of images of one's own, of which others may have the same name
        begins += f", images {data.fingerprint}"
    usual = HyperParameters.__dataclass_fields__
    # What is usual is left out, so that what was measured before there were these words stays valid.
    changed = {flag: value for flag in _OF_IMAGES if (value := getattr(config, flag)) != usual[flag].default}
    begins += "".join(f", {flag} {value}" for flag, value in changed.items())
    # What a Predictor chooses depends on the machine, and so do its answers.
    keras_forms = remembered(
        known, f"{begins}, {_own_precision()}", lambda: _test_keras(model, test, config.test_batch_size)
    )
    common = {"model": name, "multiply_adds": multiply_adds(model), "shape": model.input_shape[1:]}
    job = {"path": path, "shipped_name": config.model_name, "shape": model.input_shape[1:]}
    made = [{"form": form, **facts, "job": job | {"kind": form.split(",")[0]}} for form, facts in keras_forms.items()]
    for form, (kind, quantize) in _FILES.items():
        print(f"{name}: {form}", flush=True)

        def export(kind=kind, quantize=quantize):
            return cifar10_test.export(config, [kind], quantize, compared=len(test.images))[0]

        try:
            # The seed draws the images that int8 is fitted to. Files of before there was a choice have none in their name.
            seed = f", seed {config.seed}" if config.seed and quantize != "none" else ""
            # A file of before may be gone, moved, or replaced by that of another seed.
            facts = remembered(known, f"{begins}, {form}{seed}", export, is_as_described)
        except UsageError as error:
            missing.append(f"{form} of {name}: {error}")
            continue
        told = {"form": form, "error": facts["error"], "same_class": 100 * facts["parity"]["same_class"]}
        made.append(told | {"bytes": facts["bytes"], "job": job | {"kind": kind, "path": facts["path"]}})
    return [common | form | {"key": f"{begins}, {form['form']}"} for form in made]


def _own_precision() -> str:
    """The number format that a Predictor chooses on this machine."""
    return devices.choose_policy("auto", "auto").removeprefix("mixed_")


def _test_keras(model, test, batch_size):
    """{form: error and same_class in %, bytes} of the network in Keras: in float32, and as this library chooses."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        save_model(model, path)
        size = path.stat().st_size
    plain, ours = (
        Predictor(model, precision).predict(test.images, batch_size).argmax(1) for precision in ("float32", "auto")
    )
    return {
        form: {
            "error": round(100 * float(np.mean(answers != test.labels)), 6),
            "same_class": 100 * float(np.mean(answers == plain)),
            "bytes": size,
        }
        for form, answers in ((f"{_PREDICT}, float32", plain), (f"{_PREDICTOR}, {_own_precision()}", ours))
    }


# How fast they are


def _time(job, threads) -> list[float]:
    """Seconds that a form takes for one image and for a batch, in a process of its own."""
    if job["kind"] in (_PREDICT, _PREDICTOR):
        return measure_apart(__name__, json.dumps(job | {"threads": threads, "seconds": _SECONDS}), job["path"])
    exported = ExportedModel(job["path"], job["kind"], threads)
    try:
        return [exported.time(images, _SECONDS) for images in _draw_images(job["shape"])]
    finally:
        exported.close()


def _draw_images(shape):
    """One image, and a batch; no network of this library is faster for some than for others."""
    images = np.random.default_rng(0).integers(0, 256, (_BATCH, *shape), np.uint8)
    return images[:1], images


def time_keras(path: str, shipped_name: str, shape, kind: str, threads: int, seconds: float) -> list[float]:
    """`_time` of a network in Keras; to be called in a process of its own, whose threads it sets."""
    # As the other runtimes, on the processor. The cores share the batches of a Predictor as in `devices.share_batches`.
    tf.config.set_visible_devices([], "GPU")
    tf.config.threading.set_intra_op_parallelism_threads(threads if kind == _PREDICT else 1)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    model = load_model(path, shipped_name)

    def predict(images):
        return model.predict(images, len(images), verbose=0)

    answer = predict if kind == _PREDICT else Predictor(model, "auto").predict
    return [time_answers(answer, images, seconds) for images in _draw_images(shape)]


# What is told


def _make_table(forms) -> pd.DataFrame:
    """A row for each form. Of speeds medians, and least and greatest as <name>_least and <name>_greatest."""
    rows = []
    for form in forms:
        row = {name: form[name] for name in ("model", "form", "error", "same_class", "bytes", "multiply_adds")}
        ours = next(one for one in forms if one["model"] == form["model"] and one["form"].startswith(_PREDICTOR))
        for count, seconds in form["seconds"].items():
            pairs = list(zip(seconds, ours["seconds"][count], strict=True))
            speeds = {
                f"latency_{count}": [1000 * one for one, _ in seconds],
                f"throughput_{count}": [_BATCH / batch for _, batch in seconds],
                f"ratio_{count}": [our_batch / batch for (_, batch), (_, our_batch) in pairs],
            }
            for name, values in speeds.items():
                row |= {name: statistics.median(values), f"{name}_least": min(values), f"{name}_greatest": max(values)}
        rows.append(row)
    return pd.DataFrame(rows)


def find_best(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """The rows that are Pareto-optimal: no other has less of the column and no more error, or less error and no more of the column."""

    def is_best(row):
        others = table[(table[column] <= row[column]) & (table["error"] <= row["error"])]
        return not ((others[column] < row[column]) | (others["error"] < row["error"])).any()

    return table[table.apply(is_best, axis=1)].sort_values(column)


def _name_threads(text, count):
    return f"{text}, {count} thread{'s' * (count > 1)}"


def _metrics(threads):
    """Column -> (name, unit, digits)."""
    metrics = {"error": ("test error", "%", 2), "same_class": ("same class as in float32", "%", 2)}
    metrics |= {"bytes": ("size", "bytes", 0), "multiply_adds": ("multiply-adds per image", "", 0)}
    for count in threads:
        metrics[f"latency_{count}"] = (_name_threads("one image", count), "ms", 2)
        metrics[f"throughput_{count}"] = (_name_threads(f"batches of {_BATCH}", count), "images/s", 0)
        metrics[f"ratio_{count}"] = (_name_threads(f"batches of {_BATCH} over Predictor", count), "", 2)
    return metrics


def _make_rows(table, dataset, threads) -> list[dict]:
    environment = describe_environment(devices.choose_policy("auto", "auto"))
    common = {"dataset": dataset, "hardware": name_hardware(environment), "commit": environment["commit"]}
    common |= {"std": None, "published": None, "published_source": None, "images_seen": 0, "wall_seconds": 0}
    rows = []
    for (_, row), (column, (metric, unit, _)) in itertools.product(table.iterrows(), _metrics(threads).items()):
        told = {
            "model": row["model"],
            "preset": row["form"],
            "metric": metric,
            "unit": unit,
            "value": float(row[column]),
        }
        if f"{column}_least" in row:
            told |= {"minimum": row[f"{column}_least"], "maximum": row[f"{column}_greatest"]}
        rows.append(common | told | {"runs": _ROUNDS if "minimum" in told else 1})
    return rows


def _report(table, threads, missing) -> str:
    metrics = _metrics(threads)
    cells = []
    for _, row in table.iterrows():
        cells.append([row["model"], row["form"]])
        for column, (_, _, digits) in metrics.items():
            text = f"{row[column]:,.{digits}f}"
            if f"{column}_least" in row:
                text += f" [{row[f'{column}_least']:,.{digits}f} .. {row[f'{column}_greatest']:,.{digits}f}]"
            cells[-1].append(text)
    header = [f"{name}, {unit}" if unit else name for name, unit, _ in metrics.values()]
    lines = [
        f"Errors on all test images. Speeds are medians and ranges of {_ROUNDS} rounds, in which the forms take turns, each in a process of its own.",
        "`Predictor` is that of this library, with batch norm folded; sizes of it and of `predict` are those of the `.keras` file in float32.",
        "",
        *table_lines(["network", "form", *header], "ll" + "r" * len(metrics), cells),
        "",
        "**Best choices**: no other form has both no more error and no more of",
        "",
    ]
    for column in ("bytes", *(f"latency_{count}" for count in threads)):
        best = find_best(table, column)
        named = [f"{row['model']}, {row['form']} ({row['error']:.2f} %)" for _, row in best.iterrows()]
        lines.append(f"- {metrics[column][0]}: {'; '.join(named)}")
    if missing:
        lines += ["", "**Not made**:", "", *(f"- {reason}" for reason in missing)]
    return "\n".join(lines)


def draw_choices(table: pd.DataFrame, columns: dict[str, str], dataset: str):
    """Error against what it costs, a panel for each column; best choices are filled, with a black edge, and joined by a line.

    Args:
        table: columns model, form, error, and those of `columns`.
        columns: column -> label.
        dataset: for the title.
    """
    figure, panels = make_panels(1, len(columns), figsize=(4 + 3.2 * len(columns), 4.8), sharey=True, squeeze=False)
    colours = {name: style["color"] for name, style in styles(table["model"].unique()).items()}
    markers = dict(zip(table["form"].unique(), itertools.cycle(_MARKERS), strict=False))
    for axes, (column, label) in zip(panels[0], columns.items(), strict=True):
        best = find_best(table, column)
        for is_best, rows in ((False, table.drop(best.index)), (True, best)):  # the best ones lie on top
            for _, row in rows.iterrows():
                colour = colours[row["model"]]
                look = {"markeredgecolor": BLACK, "zorder": 3} if is_best else {"fillstyle": "none"}
                axes.plot(row[column], row["error"], markers[row["form"]], color=colour, markersize=8, **look)
        axes.plot(best[column], best["error"], color=BLACK, linewidth=0.8, drawstyle="steps-post", zorder=2)
        axes.set(xscale="log", xlabel=label)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:,.15g}")
        axes.xaxis.set_minor_formatter("")
    panels[0][0].set_ylabel("test error (%)")
    handles = [Line2D([], [], marker="s", linestyle="", color=colour, label=name) for name, colour in colours.items()]
    handles += [
        Line2D([], [], marker=marker, linestyle="", color="grey", label=form) for form, marker in markers.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    figure.suptitle(f"{dataset}: the best choices are filled and joined")
    return figure


if __name__ == "__main__":  # the process of `measure_apart`
    print(json.dumps(time_keras(**json.loads(sys.stdin.read()))))
