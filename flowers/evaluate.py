"""How a transfer net is tested: `python -m flowers.evaluate --version=NAME`, and the figures of its run.

Without test pictures the validation pictures are what there is. The weights were chosen on them, so their error is too small
by an unknown, small amount; `result.json` says which part a number is of.
"""

import dataclasses
import io
import sys
from pathlib import Path

from flowers.settings import FlowerParameters
from resnet_study.errors import UsageError, run_command
from resnet_study.files import read_json, write_atomically, write_json
from resnet_study.run_folder import RunFolder
from resnet_study.settings import Parser, add_flags

_PARTS = ("training", "validation", "test")
_NAMING = (
    "version",
    "runs_dir",
    "model",
    "dataset",
    "data_dir",
    "seed",
)  # settings that the folder of a run follows from
PREDICT_READS = (*_NAMING, "faithful", "test_batch_size", "test_ckpt_path")
# What else makes the parts, for a network that is given by --test_ckpt_path and not by its run.
EVALUATE_READS = (
    *PREDICT_READS,
    "classes",
    "validation_fraction",
    "test_fraction",
    "split_seed",
    "on_bad_image",
    "find_leaks",
)


def confidence_interval(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy in %, after Wilson (1927): 38 right of 43 give (75.5, 94.9).

    Args:
        right: correct answers.
        count: answers, at least 1.
    """
    import scipy.stats

    low, high = scipy.stats.binomtest(right, count).proportion_ci(method="wilson")
    return 100 * float(low), 100 * float(high)


def evaluate(config: FlowerParameters) -> tuple[dict, RunFolder]:
    """Tests a net on validation and test pictures, writes `result.json` and `predictions.npy`, and draws the figures of a run.

    The net is that of `cifar10_test.find_net`. Calling this again replaces the files by equal ones.

    Returns:
        (facts; the folder that holds them). The facts have, under "validation" and, where there are test pictures, "test":
        images, error and top5_error (%), accuracy (%), accuracy_interval (95 %, Wilson), loss (nat), per_class (precision,
        recall, f1) and confusion_matrix.

    Raises:
        UsageError: no such run or file, or the net does not fit the pictures.
    """
    import numpy as np

    import cifar10_test
    import flowers.heads  # noqa: F401 - registers its layer
    from flowers.data import load_images
    from resnet_study.data.image_data import Split
    from resnet_study.saved_models import load_model

    path, run = cifar10_test.find_net(config)
    model = load_model(path)
    # Rounded as the parts of the run that the model lies in, also where it is given by --test_ckpt_path.
    data = load_images(dataclasses.replace(config, image_size=model.input_shape[1]), RunFolder(Path(path).parent))
    if model.output_shape[-1] != len(data.class_names):
        raise UsageError(
            f"{path} tells {model.output_shape[-1]} classes apart, but {data.found} has {len(data.class_names)}; give the pictures "
            "and the --classes it was trained with"
        )
    known = cifar10_test._class_names(path, len(data.class_names))
    if known not in (list(data.class_names), cifar10_test._numbered_names(len(known))):
        raise UsageError(
            f"{path} tells {', '.join(known[:3])}, ... apart, but {data.found} has {', '.join(data.class_names[:3])}, ...; give the "
            "pictures it was trained on"
        )
    facts = {"model": model.name, "dataset": config.dataset_name, "weights": config.test_ckpt_path or run.best.name}
    if not config.test_ckpt_path:
        _check_data(run, data)
        history = run.read_history()
        best = history.loc[history["validation_loss"].idxmin()]
        facts |= {"best_step": int(best["step"]), "last_step": int(history["step"].iloc[-1]), "command": config.command}
    parts = {"validation": data.validation, "test": data.test}
    probabilities, shown = {}, {}
    for part, pictures in parts.items():
        if pictures is None:
            continue
        size = 32 * config.test_batch_size  # so many pictures in memory at a time
        pieces, labels = [], []
        for start in range(0, len(pictures), size):
            images, some = pictures.load(range(start, min(start + size, len(pictures))))
            shown.setdefault(part, Split(images[:24], some[:24]))
            pieces.append(cifar10_test.test(model, images, config.test_batch_size))
            labels.append(some)
        probabilities[part], labels = np.concatenate(pieces), np.concatenate(labels)
        if not len(labels):
            raise UsageError(f"no {part} picture of {data.found} can be read; mend some")
        measured = cifar10_test.measure(probabilities[part], labels, data.class_names)
        measured = {name.removeprefix("test_"): value for name, value in measured.items()}
        right = int(np.trace(measured["confusion_matrix"]))
        facts[part] = {
            "images": measured.pop("images"),
            "accuracy": 100 - measured["error"],
            "accuracy_interval": confidence_interval(right, len(labels)),
            **measured,
        }
    facts["predictions"] = list(probabilities)[-1]
    write_json(run.result, facts)
    buffer = io.BytesIO()
    np.save(buffer, probabilities[facts["predictions"]])
    write_atomically(run.predictions, buffer.getvalue())
    if not config.test_ckpt_path:
        part = facts["predictions"]
        _draw(config, run, data, facts, history, shown[part], probabilities[part])
        write_atomically(run.figures / "report.md", _trial_table(config, data, facts, history))
    return facts, run


def _check_data(run, data):
    """Raises UsageError unless the data are those of the run: in other ones, training pictures may be in another part."""
    counts = {part: len(getattr(data, part) or ()) for part in _PARTS}
    found = {"class_folders": list(data.class_folders), "images": counts}
    kept = read_json(run.data, {"class_folders": [str], "images": dict.fromkeys(counts, int)})
    for name, value in found.items():
        if value != kept[name]:
            raise UsageError(
                f"{run} was trained on other data than {data.found}: expected {name} {kept[name]}, received {value}; give the "
                "--data_dir it was trained on"
            )


@dataclasses.dataclass(frozen=True)
class _Trial:
    """Numbers that a text has published: {part: (accuracy in %, loss or None)}."""

    name: str
    source: str
    numbers: dict


_FLOWERS = _Trial("flower text", "flower text: 38 of 43 pictures", {"validation": (88.37, None)})
_TRIALS = tuple(
    _Trial(f"Trial {number}", f"Waghmode et al., Trial {number}", dict(zip(_PARTS, numbers, strict=True)))
    for number, numbers in (
        (1, ((81.6025, 0.5693), (73.27, 0.8855), (76.80, 0.7163))),
        (2, ((83.775, 0.5060), (76.66, 0.7224), (78.95, 0.6532))),
    )
)


def published_trials(config: FlowerParameters, classes: int, validation_images: int) -> tuple[_Trial, ...]:
    """What the text of this net has published on these data; nothing for other data."""
    if config.model == "resnet152v2" and config.dataset == "cifar10" and classes == 10:
        return _TRIALS
    if config.model == "resnet50" and (classes, validation_images) == (10, 43):
        return (_FLOWERS,)
    return ()


def _trial_table(config, data, facts, history) -> str:
    """A Markdown table of losses, accuracies, precision, recall and F1, beside those of the text."""
    trials = published_trials(config, len(data.class_names), len(data.validation))
    columns = {"this run": {}} | {trial.name: {} for trial in trials}
    best = history[history["step"] == facts["best_step"]].iloc[0]
    mine = columns["this run"]
    mine["training loss"], mine["training accuracy"] = best["train_loss"], f"{100 - best['train_error']:.2f} %"
    for part in _PARTS[1:]:
        if part not in facts:
            continue
        low, high = facts[part]["accuracy_interval"]
        mine[f"{part} loss"] = facts[part]["loss"]
        mine[f"{part} accuracy"] = f"{facts[part]['accuracy']:.2f} % ({low:.1f} .. {high:.1f} %)"
        for name in ("precision", "recall", "f1"):
            classes = facts[part]["per_class"]
            mine[f"{part} {name}"] = sum(row[name] for row in classes) / len(classes)
    for trial in trials:
        for part, (accuracy, loss) in trial.numbers.items():
            columns[trial.name] |= {f"{part} loss": loss, f"{part} accuracy": f"{accuracy:.2f} %"}

    def show(value):
        return "-" if value is None else value if isinstance(value, str) else f"{value:.4f}"

    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    lines += [f"| {name} | {' | '.join(show(column.get(name)) for column in columns.values())} |" for name in mine]
    lines += [
        "",
        f"Weights of step {facts['best_step']:,}, chosen by validation loss; training numbers are running means under augmentation and "
        "dropout. In brackets the 95 % interval. Precision, recall and F1 are means over the classes.",
    ]
    return "\n".join(lines) + "\n"


def publish(config: FlowerParameters, experiment: str, results: Path) -> Path:
    """Puts an evaluated run among the project's results; see `resnet_study.reports.results.publish`.

    Returns:
        Path of the table of all results.
    """
    from resnet_study.reports.results import add_results

    run = RunFolder(f"{config.runs_dir}/{config.run_name}")
    classes = len(run.read_class_names())
    part_facts = {"images": int, "accuracy": float, "accuracy_interval": [float], "top5_error": float}
    facts = read_json(run.result, {"validation": part_facts})
    measured = {}
    trials = published_trials(config, classes, facts["validation"]["images"])
    for part in _PARTS[1:]:
        if part not in facts:
            continue
        result = facts[part]
        low, high = result["accuracy_interval"]
        best = max((trial for trial in trials if part in trial.numbers), key=lambda t: t.numbers[part], default=None)
        published = (best.numbers[part][0], best.source) if best else (None, None)
        note = f"{result['images']:,} pictures, 95 % interval {low:.1f} .. {high:.1f} %"
        measured[f"{part}_accuracy"] = (result["accuracy"], *published, note)
        if classes > 5:
            measured[f"{part}_top5_accuracy"] = (100 - result["top5_error"], None, None, "")
    weights = Path(config.weights).name
    base = "trained" if config.base_trainable else "frozen"
    if config.unfreeze_at_epoch:
        base += f" for {config.unfreeze_at_epoch} epochs"
    recipe = f"{config.head_name} head, base {base}, weights {weights}" + (", faithful" if config.faithful else "")
    return add_results(run, experiment, results, config, recipe, measured)


def _draw(config, run, data, facts, history, shown, probabilities):
    import numpy as np

    from flowers.augmentation import make_variant
    from resnet_study.reports.figures import draw_epochs, draw_figures, draw_grid

    part = facts["predictions"]
    first = [np.flatnonzero(data.training.labels == label)[:10] for label in range(min(20, len(data.class_names)))]

    def draw_augmentation():
        chosen = [indices[0] for indices in first[:5]]
        variants = range(9)
        rows = [
            [data.training.read(i), *(make_variant(data.training, i, variant, config) for variant in variants)]
            for i in chosen
        ]
        kind = (
            f"rotation {config.rotation:g} degrees, shear {config.shear:g} degrees, zoom {config.zoom:g}"
            + (", flip" if config.horizontal_flip else "")
            if config.augment
            else "switched off"
        )
        figure = draw_grid(rows, [""] * len(rows), f"augmentation: {kind}")
        for title, axis in zip(["original", *(f"variant {v + 1}" for v in variants)], figure.axes, strict=False):
            axis.set_title(title, fontsize=8)
        return figure

    more = {
        "accuracy_and_loss": lambda: draw_epochs(
            history, f"{config.model} on {config.dataset_name}", config.unfreeze_at_epoch
        ),
        "augmentation": draw_augmentation,
        "samples": lambda: draw_grid(
            [data.training.load(indices)[0] for indices in first],
            data.class_names[: len(first)],
            f"training pictures of {config.dataset_name}",
        ),
    }
    draw_figures(
        run,
        f"{config.model} on {config.dataset_name}",
        history,
        {
            "test_error": facts[part]["error"],
            "best_step": facts["best_step"],
            "confusion_matrix": facts[part]["confusion_matrix"],
        },
        data.class_names,
        shown,
        probabilities,
        more,
        curve_smoothing=config.train_ema_decay,
        part=part,
    )


def report(config: FlowerParameters) -> None:
    """Evaluates and prints what came out, a line for each part."""
    facts, run = evaluate(config)
    for part in ("validation", "test"):
        if part in facts:
            result = facts[part]
            low, high = result["accuracy_interval"]
            print(
                f"{facts['model']} on {result['images']:,} {part} pictures of {facts['dataset']}: accuracy {result['accuracy']:.2f} % "
                f"(95 % interval {low:.1f} .. {high:.1f} %), "
                + (f"top-5 error {result['top5_error']:.2f} %, " if len(result["per_class"]) > 5 else "")
                + f"loss {result['loss']:.4f}"
            )
    print(f"written: {run.result}" + (f", figures in {run.figures}" if run.figures.is_dir() else ""))


def stored_settings(flags: dict, *, goes_on: bool, may_begin: bool = False) -> FlowerParameters:
    """The settings of a run: those it has stored, where it exists and goes on, changed by the flags that were given.

    Args:
        flags: flag name -> value, only those on the command line.
        goes_on: whether a run that exists is meant.
        may_begin: whether it may be missing, because it is begun then. Otherwise the run is only read.

    Raises:
        UsageError: the run is missing and may not be, or is only read and a flag would change it: with another split,
            pictures it was trained on would be tested.
    """
    # What else is given is judged together with what the run has stored, not with the defaults.
    named = FlowerParameters(**{name: flags[name] for name in _NAMING if name in flags})
    run = RunFolder(f"{named.runs_dir}/{named.run_name}")
    if goes_on and (run.holds_run() or not may_begin):
        return run.change_config(FlowerParameters, flags, named.runs_dir, tests=not may_begin)
    config = FlowerParameters(**flags)
    if goes_on:
        print(f"there is no run in {run} yet, so --resume begins one")
    return config


def main(argv=None) -> int:
    """Runs one command. Returns the exit code: 0, 2 for what the user can mend (one line on stderr), 130 for Ctrl-C."""

    def run():
        parser = Parser(
            prog="python -m flowers.evaluate",
            description="Tests a transfer net on validation and test pictures: accuracy, precision, recall, F1, confusion matrix.",
            allow_abbrev=False,
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
        if publishes and flags.get("test_ckpt_path"):
            raise UsageError("--publish needs a run, received --test_ckpt_path; give --version=NAME")
        config = stored_settings(flags, goes_on=not flags.get("test_ckpt_path"))

        from resnet_study import devices

        devices.import_tensorflow()
        report(config)
        if publishes:
            print(f"written: {publish(config, experiment, Path(results))}")

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
