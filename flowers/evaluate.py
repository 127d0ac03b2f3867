"""How a transfer model is tested: `python -m flowers.evaluate --version=NAME`, and the figures of its run.

Without test images the validation images are what there is. The weights were chosen on them, so their error is too small
by an unknown, small amount; `result.json` says which part a number is of.
"""

import dataclasses
import sys
from pathlib import Path

from flowers.settings import FlowerParameters
from hyper_parameters import HyperParameters
from resnet_study.command_line import Parser, add_flags
from resnet_study.errors import UsageError, run_command
from resnet_study.files import read_json, write_atomically
from resnet_study.reports.console import note_unfinished, print_result, report_others
from resnet_study.run_folder import begun_run_around, find_run, find_settings, run_around, run_folder_of
from resnet_study.run_images import check_parts, tell_known_images

# The settings that the name of a run folder follows from.
NAMING = ("version", "runs_dir", "model", "dataset", "data_dir", "seed", "folds", "fold")
# The settings that make the parts of the data.
_DATA = (
    "dataset",
    "data_dir",
    "labels",
    "label_level",
    "label_separator",
    "classes",
    "validation_fraction",
    "test_fraction",
    "split_seed",
    "folds",
    "fold",
)
_PARTS = _DATA[5:]
PREDICT_READS = (*NAMING, "faithful", "value_range", "resize", "test_batch_size", "test_ckpt_path")
# What else is read of the data, for a model that is given by --test_ckpt_path and not by its run.
EVALUATE_READS = (*PREDICT_READS, *_DATA, "on_bad_image")


def evaluate(config: FlowerParameters):
    """Tests a model on validation and test images and writes `result.json` and `predictions.npy`.

    The model is that of `resnet_study.evaluation.find_model`. Calling this again replaces the files by equal ones.

    Args:
        config: settings; `test_ckpt_path` or `version` names the model.

    Returns:
        (content of `result.json`, see `resnet_study.evaluation`; the folder that holds the files; the images, a
        `flowers.data.FlowerData`).

    Raises:
        UsageError: no such run or file, the run was trained with other settings, or the model does not fit the images.
    """
    from flowers.work import transfer_pflop
    from resnet_study.evaluation import evaluate_parts, open_tested
    from resnet_study.new_data import predict_unlabelled

    config, path, run, model = open_tested(config)
    data = load_as_trained(config, path, model)
    pflop = None
    if config.test_ckpt_path:
        tell_known_images(path, config, data)
    else:
        _check_data(run, data)
        pflop = transfer_pflop(config, model, run.last_step(), data)
    size = 32 * config.test_batch_size  # so many images in memory at a time

    def pieces(part):
        for start in range(0, len(part), size):
            images, labels = part.load(range(start, min(start + size, len(part))))
            yield images, {"": labels}

    parts = {"validation": data.validation, "test": data.test}
    labelled = label_parts(data, {name: pieces(part) for name, part in parts.items() if part is not None})
    result = evaluate_parts(config, path, run, model, labelled, pflop=pflop)
    predict_unlabelled(config, run, path, model, data.unlabelled)
    return result, run, data


def load_as_trained(config: FlowerParameters, path: str, model):
    """The images of a model at its size, a `flowers.data.FlowerData`. Raises UsageError where they are others than those of its run."""
    from flowers.data import load_images
    from resnet_study.run_images import check_own_of

    config = dataclasses.replace(config, image_size=model.input_shape[1], find_leaks="off")
    # Rounded as the parts of the run that the model lies in, also where it is given by --test_ckpt_path.
    data = load_images(config, run_around(path))
    check_own_of(path, config, data.fingerprint, data.found)
    return data


def label_parts(data, parts: dict):
    """Pieces of parts of a `FlowerData` as `resnet_study.evaluation.LabelledParts`."""
    from resnet_study.evaluation import LabelledParts

    advice = "the images and --classes it was trained with"
    return LabelledParts(parts, {"": data.class_names}, data.found, advice, data.multi_label)


def _check_data(run, data):
    """Raises UsageError unless the data are those of the run: in other data, training images may be in another part."""
    counts = {part: len(getattr(data, part) or ()) for part in ("training", "validation", "test")}
    found = {"class_folders": list(data.class_folders), "images": counts}
    kept = read_json(run.data, {"class_folders": [str], "images": dict.fromkeys(counts, int)})
    for name, value in found.items():
        if value != kept[name]:
            raise UsageError(
                f"{run} was trained on other data than {data.found}: expected {name} {kept[name]}, received {value}; give the "
                "--data_dir it was trained on"
            )


def _trial_table(config, data, result, history) -> str:
    """A Markdown table of losses, accuracies, precision, recall and F1, beside those of the text."""
    from resnet_study.evaluation import PARTS
    from resnet_study.reports.published import published_trials
    from resnet_study.reports.tables import table_lines

    trials = published_trials(config, data.class_folders, len(data.validation))
    columns = {"this run": {}} | {trial.name: {} for trial in trials}
    best = history[history["step"] == result["best_step"]].iloc[0]
    mine = columns["this run"]
    mine["training loss"], mine["training accuracy"] = best["train_loss"], f"{100 - best['train_error']:.2f} %"
    for part in PARTS:
        if part not in result:
            continue
        metrics = result[part]
        low, high = metrics["accuracy_interval"]
        mine[f"{part} loss"] = metrics["loss"]
        if data.multi_label:
            mine[f"{part} mean average precision"] = metrics["mean_average_precision"]
        mine[f"{part} accuracy"] = f"{metrics['accuracy']:.2f} % ({low:.1f} .. {high:.1f} %)"
        for name in ("precision", "recall", "f1"):
            classes = [row for row in metrics["per_class"] if row.get("images", 1)]
            mine[f"{part} {name}"] = sum(row[name] for row in classes) / max(1, len(classes))
    for trial in trials:
        for part, (accuracy, loss) in trial.numbers.items():
            columns[trial.name] |= {f"{part} loss": loss, f"{part} accuracy": f"{accuracy:.2f} %"}

    def show(value):
        return "-" if value is None else value if isinstance(value, str) else f"{value:.4f}"

    rows = [[name, *(show(column.get(name)) for column in columns.values())] for name in mine]
    lines = [
        *table_lines(["", *columns], "l" + "r" * len(columns), rows),
        "",
        f"Weights of step {result['best_step']:,}, chosen by validation loss; training numbers are running means under augmentation "
        "and dropout. In brackets the 95 % interval. Precision, recall and F1 are means over the classes that have images.",
    ]
    return "\n".join(lines) + "\n"


def _draw(config, run, data, result):
    """Draws the figures of a tested run and writes its table of trials."""
    from flowers.augmentation import make_variant
    from resnet_study.data.image_data import Split
    from resnet_study.reports.figures import draw_epochs, draw_figures
    from resnet_study.reports.image_sheets import draw_samples, draw_variants, name_not_shown
    from resnet_study.reports.run_page import write_run_page

    part, history = result["predictions"], run.read_history()
    tested = getattr(data, part)
    shown = Split(*tested.load(range(min(24, len(tested)))))
    probabilities = run.read_predictions((result[part]["images"], len(data.class_names)))
    title = f"{config.model} on {config.dataset_name}"

    def draw_augmentation():
        labels, variants = data.training.labels, range(min(9, config.variants or 9))
        classes = range(min(5, len(data.class_names)))
        chosen = [
            int((labels[:, k] if data.multi_label else labels == k).argmax()) for k in classes
        ]  # the first of each
        rows = [
            [data.training.read(i), *(make_variant(data.training, i, variant, config) for variant in variants)]
            for i in chosen
        ]
        worsened = f"{config.corrupt:.0%} made worse ({config.corrupt_mix}), " if config.corrupt else ""
        kind = worsened + (
            f"rotation {config.rotation:g} degrees, shear {config.shear:g} degrees, zoom {config.zoom:g}"
            + (", flip" if config.horizontal_flip else "")
            if config.augment
            else "switched off"
        )
        return draw_variants(rows, kind + name_not_shown(config), "variant")

    more = {
        "accuracy_and_loss": lambda: draw_epochs(history, title, config.unfreeze_at_epoch, data.multi_label),
        "augmentation": draw_augmentation,
        "samples": lambda: draw_samples(data.training, data.class_names, config.dataset_name),
    }
    draw_figures(run, config, title, result, shown, probabilities, more)
    write_atomically(run.figures / "report.md", _trial_table(config, data, result, history))
    write_run_page(run, tested)


def report(config: FlowerParameters) -> None:
    """Tests, prints what came out, a line for each part, and draws the figures of a run."""
    result, run, data = evaluate(config)
    print_result(result)
    note_unfinished(config)
    if not config.test_ckpt_path:
        _draw(config, run, data, result)
    print(
        f"written: {run.result}" + ("" if config.test_ckpt_path else f", figures in {run.figures}, all in {run.page}")
    )


def stored_settings(flags: dict, *, goes_on: bool = True, begins: bool = False) -> FlowerParameters:
    """The settings of a run, see `run_folder.find_settings`; for `test_ckpt_path` those of the flags and of the model's own data."""

    def make(given):
        return FlowerParameters(**given)

    if flags.get("test_ckpt_path"):
        if begins:
            raise UsageError(
                "--test_ckpt_path is for flowers.evaluate, predict and export; give --weights to start from a run"
            )
        if flags.get("version"):
            raise UsageError(f"--version={flags['version']} and --test_ckpt_path both name a model; give one of them")
        config = make(_read_data_flags(flags) | flags)
    else:
        if not begins and not {"dataset", "data_dir", "labels", "version"} & flags.keys():
            flags = flags | {"dataset": "oxford102"}  # as `flowers.train` without images
        run = find_run(make, flags, NAMING)
        config = find_settings(run, FlowerParameters, make, flags, goes_on=goes_on, begins=begins)
    config.check_given(flags)
    return config


def _find_others(flags):
    """The labelled images to test on, where they are others than those of the run, see `find_new`."""
    from resnet_study.data.new_images import find_new

    path = flags.get("test_ckpt_path")
    run = run_around(path) if path else find_run(lambda given: FlowerParameters(**given), flags, NAMING)
    holds = run is not None and run.holds_run() and not run.has_presets()
    return find_new(flags, run.read_config(FlowerParameters) if holds else None, run, "folder")


def _read_data_flags(flags):
    """The flags of the data that the model of `test_ckpt_path` was trained on, where a run tells of them and none are given."""
    run = begun_run_around(flags["test_ckpt_path"])
    if run is None:
        return {}
    # A run of cifar10_main.py, which has presets, says nothing of the parts of images here, but of how their files were read.
    if run.has_presets():
        stored = run.read_config(HyperParameters)
        return {name: getattr(stored, name) for name in ("value_range", "resize", "jpeg_size")}
    stored = run.read_config(FlowerParameters)
    # Those of its parts hold wherever its images lie now: with others, it would be tested on what it was trained on.
    names = _DATA if flags.get("dataset", stored.dataset) == stored.dataset else ()
    check_parts(run, stored, flags, _PARTS if names else ())
    return {name: getattr(stored, name) for name in (*names, "model", "faithful", "value_range", "resize", "jpeg_size")}


def main(argv=None) -> int:
    """Runs one command. Returns the exit code, see `resnet_study.errors.run_command`."""

    def run():
        parser = Parser(
            prog="python -m flowers.evaluate",
            description="Tests a transfer model on validation and test images: accuracy, precision, recall, F1, confusion matrix.",
            shown=("version", "data_dir", "test_ckpt_path", "publish"),
            examples="python -m flowers.evaluate --version=NAME",
        )
        parser.add_argument(
            "--publish", action="store_true", help="put the run among the project's results, beside the text's numbers"
        )
        parser.add_argument("--results_dir", default="results", metavar="DIR", help="the project's results [results]")
        parser.add_argument(
            "--experiment", default="flowers", metavar="NAME", help="list of results to add to [flowers]"
        )
        add_flags(parser, FlowerParameters, EVALUATE_READS)
        flags = vars(parser.parse_args(argv))
        publishes, results, experiment = (flags.pop(name) for name in ("publish", "results_dir", "experiment"))
        for name, value in (("results_dir", results), ("experiment", experiment)):
            if not publishes and value != parser.get_default(name):
                raise UsageError(
                    f"--{name}={value} is about --publish, which was not given; give it too, or leave both out"
                )
        if publishes and flags.get("test_ckpt_path"):
            raise UsageError("--publish needs a run, received --test_ckpt_path; give --version=NAME")
        others = _find_others(flags)
        if publishes and others is not None:
            raise UsageError("--publish is for a run on its own data, received other images; leave out --data_dir")
        config = stored_settings(flags)

        from resnet_study import devices

        devices.import_tensorflow()
        if others is not None:
            return report_others(config, others)
        report(config)
        if publishes:
            from resnet_study.reports.published import list_flower_numbers
            from resnet_study.reports.results import publish

            print(
                f"written: {publish(run_folder_of(config), experiment, Path(results).expanduser(), list_flower_numbers)}"
            )

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
