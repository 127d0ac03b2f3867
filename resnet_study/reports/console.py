"""What the command lines say of a test and of predictions; importing this module imports neither TensorFlow nor Keras."""

import argparse

from resnet_study.class_names import THRESHOLD
from resnet_study.errors import UsageError
from resnet_study.run_folder import run_folder_of

_EXPLAINED = 24  # images, unless asked for more
_ROWS, _FIRST_ROWS = 30, 10  # a longer table is shown by its first rows alone
_LIKELY = 0.5  # a probability below which an answer is no more than a guess


def print_result(result: dict) -> None:
    """Prints a line for each part that was tested, and for each further head.

    Args:
        result: content of `result.json`, see `resnet_study.evaluation`.
    """
    for head, tested in {"": result, **result.get("heads", {})}.items():
        for part in ("validation", "test"):
            if part not in tested:
                continue
            metrics = tested[part]
            low, high = metrics["accuracy_interval"]
            views = "".join(
                f"{words} {metrics[name]:.2f} %, "
                for name, words in (
                    ("error_flip", "with mirror images"),
                    ("error_shifts", "with mirror images and shifts"),
                )
                if name in metrics
            )
            work = f", trained with {tested['pflop']:.3g} PFLOP" if "pflop" in tested else ""
            if "mean_average_precision" in metrics:
                print(
                    f"{result['model']} on {metrics['images']:,} {part} images of {result['dataset']}: mean average precision "
                    f"{metrics['mean_average_precision']:.4f}, macro F1 {metrics['macro_f1']:.3f}, {metrics['hamming_error']:.2f} % of the answers wrong, all "
                    f"classes right in {metrics['accuracy']:.2f} % of the images (95 % interval {low:.1f} .. {high:.1f} %), "
                    f"{views and 'any class wrong '}{views}loss {metrics['loss']:.4f}{work}"
                )
                continue
            print(
                (f"head {head}" if head else result["model"])
                + f" on {metrics['images']:,} {part} images of {result['dataset']}: top-1 error {metrics['error']:.2f} %, "
                f"accuracy {metrics['accuracy']:.2f} % (95 % interval {low:.1f} .. {high:.1f} %), "
                + (f"top-5 error {metrics['top5_error']:.2f} %, " if len(metrics["per_class"]) > 5 else "")
                + f"{views}loss {metrics['loss']:.4f}"
                + (
                    f", calibration error {metrics['calibration_error']:.1f} points"
                    if "calibration_error" in metrics
                    else ""
                )
                + (
                    f" (by chance {metrics['calibration_error_by_chance']:.1f})"
                    if "calibration_error_by_chance" in metrics
                    else ""
                )
                + work
            )
            _print_balance(metrics)


def note_unfinished(config) -> None:
    """Says of a run whose training has not come to its end how far it came."""
    run = run_folder_of(config)
    if config.test_ckpt_path or not run.error_csv.is_file():
        return
    try:
        history = run.read_history()
    except UsageError:  # which a test tells; predictions need no table
        return
    counts_steps = config.LENGTH == "train_steps"
    done = int(history["step"].iloc[-1]) if counts_steps else len(history) - 1
    planned, unit = getattr(config, config.LENGTH), "steps" if counts_steps else "epochs"
    if done < planned:
        kind = "best" if config.chosen_by(False) else "last"
        which = f"the {kind} weights up to there" if done else "the weights of the untrained network"
        unless = "unless --patience has ended it, " if config.patience else ""
        ways = (
            "it is still training" if run.is_locked() else f"{unless}{config.resume_command(run.path)} goes on with it"
        )
        print(f"note: the last report of the run came after {done:,} of {planned:,} {unit}, these are {which}; {ways}")


def report_others(config, found) -> None:
    """Tests a model on images that it was not trained on, see `resnet_study.new_data.evaluate_others`, and prints what came out."""
    from cifar10_test import evaluate_others
    from resnet_study.reports.figures import draw_evaluation

    result, run = evaluate_others(config, found)
    print_result(result)
    draw_evaluation(run, result)
    print(f"written: {run.result}, figures and the answers for each image beside it")


def _print_balance(metrics) -> None:
    """Prints what the accuracy hides where classes have different numbers of images."""
    counts = {row["class"]: row["images"] for row in metrics["per_class"] if row.get("images")}
    if "macro_f1" not in metrics or not counts:
        return
    if bare := [row["class"] for row in metrics["per_class"] if not row.get("images")]:
        print(
            f"  note: {len(bare):,} class(es) have no image here: {', '.join(bare[:5])}{', ...' if len(bare) > 5 else ''}"
        )
    most = max(counts, key=counts.get)
    if counts[most] > 1.5 * min(counts.values()):
        print(f"  classes of {min(counts.values()):,} to {counts[most]:,} images: balanced accuracy {metrics['balanced_accuracy']:.2f} %, "
              f"macro F1 {metrics['macro_f1']:.3f}")  # fmt: skip
    share = 100 * counts[most] / metrics["images"]
    if len(counts) > 1 and metrics["accuracy"] <= share:
        chance = 100 / len(counts)  # the balanced accuracy of always the same answer
        learnt = (
            "look at the balanced accuracy"
            if metrics["balanced_accuracy"] > 1.2 * chance
            else "nothing useful was learnt"
        )
        print(f"  note: always saying {most} would have an accuracy of {share:.2f} %; {learnt}")


def add_explain_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `print_predictions`."""
    parser.add_argument(
        "--explain",
        action="store_true",
        help="draw which parts of each image support the answer (Grad-CAM), in explanations/ beside the predictions",
    )
    parser.add_argument(
        "--explain_limit",
        type=_positive,
        default=_EXPLAINED,
        metavar="INT",
        help=f"how many images to explain, from the first on [{_EXPLAINED}]",
    )


def check_explain_flags(explains: bool, limit: int) -> None:
    """Raises UsageError for a limit of explanations where none are asked for."""
    if limit != _EXPLAINED and not explains:
        raise UsageError(
            f"--explain_limit={limit} is about --explain, which was not given; give it too, or leave both out"
        )


def add_export_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of an export, see `resnet_study.exporting.export.export`, in a group of their own."""
    group = parser.add_argument_group("export", "A trained model as files that compute without this library.")
    group.add_argument(
        "--format",
        type=lambda text: text.split(","),
        default=["litert"],
        metavar="NAME,...",
        help="litert (phones), onnx (browsers, servers, other languages), saved_model (TensorFlow Serving), keras (stock layers, for "
        "every backend of Keras) [litert]",
    )
    group.add_argument(
        "--quantize",
        choices=("none", "float16", "dynamic", "int8"),
        default="none",
        help="smaller numbers: float16 = weights of 16 bits; dynamic = weights of 8 bits; int8 = activations of 8 bits, too, their "
        "ranges found on training images; not every format has each [none]",
    )
    group.add_argument(
        "--pixels", choices=("uint8", "float32"), default="uint8", help="what the files take, 0..255 [uint8]"
    )
    group.add_argument(
        "--compare",
        type=_positive,
        default=1000,
        metavar="INT",
        help="test images on which each file is compared with the model; --images=PATH... are taken in their place [1000]",
    )


def print_exports(exports: list[dict]) -> None:
    """Prints a line for each file that was written.

    Args:
        exports: of `resnet_study.exporting.export.export`.
    """
    for facts in exports:
        parity = facts["parity"]
        errors = f"error {facts['error']:.2f} % (before {facts['source_error']:.2f} %), " if "error" in facts else ""
        print(
            f"written: {facts['path']}, {facts['bytes']:,} bytes, {facts['quantization']}: {errors}same class on "
            f"{parity['same_class']:.2%} of {parity['found']}, probabilities at most {parity['largest_difference']:.1e} apart, by "
            f"{parity['runtime']}"
        )


def _positive(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an int >= 1, received {text!r}")
    return int(text)


def print_predictions(predictions) -> None:
    """Prints the table of predictions; draws and names explanations of the images that were kept for that.

    Args:
        predictions: see `cifar10_test.predict`.
    """
    table = predictions.table
    print(table.head(_ROWS if len(table) <= _ROWS else _FIRST_ROWS).to_string(index=False))
    if len(table) > _ROWS:
        print(f"... and {len(table) - _FIRST_ROWS:,} more images")
        _print_counts(table)
    for head, names in predictions.class_names.items():
        if len(names) <= _ROWS and "classes" not in table:
            print(f"{f'{head}: ' if head else ''}each answer is one of {', '.join(names)}, whatever the image shows")
    if "classes" in table:
        print(f"classes: those with a probability of {THRESHOLD} or more, the likeliest first")
    if "true_class" in table:
        _print_accuracy(table[table["true_class"] != ""])
    print(f"written to {predictions.csv_path}, with all probabilities in probabilities*.csv and .npy beside it")
    for head, probabilities in predictions.probabilities.items():
        unlikely = [
            file for file, most in zip(predictions.files, probabilities.max(axis=1), strict=True) if most < _LIKELY
        ]
        if unlikely and "classes" not in table:
            named = f"head {head}: " if head else ""
            print(
                f"{named}no class is likely (all below {_LIKELY:.0%}) in {len(unlikely):,} of {len(predictions.files):,} images, such as "
                f"{unlikely[0]}"
            )
    explained, count = len(predictions.images), len(predictions.files)
    if not explained:
        return
    from resnet_study.reports.grad_cam import write_explanations

    print(f"explanations: {write_explanations(predictions)}")
    if count > explained:
        print(f"explained the first {explained} of {count:,} images; --explain_limit={count} explains them all")


def _print_counts(table) -> None:
    """Prints how many images each class was the answer for, of every head."""
    for column in (name for name in table if name.endswith("_1") and not name.endswith("probability_1")):
        multi_label = column == "class_1" and "classes" in table
        counts = (
            table["classes"].replace("", "none").str.split("; ").explode() if multi_label else table[column]
        ).value_counts()
        shown = ", ".join(f"{name} {count:,}" for name, count in counts.head(_FIRST_ROWS).items())
        print(
            f"{column.removesuffix('_1')}: {shown}"
            + (f", and {len(counts) - _FIRST_ROWS} more" if len(counts) > _FIRST_ROWS else "")
        )


def _print_accuracy(table) -> None:
    """Prints, of images in folders named like classes, the accuracy, and that of each class, worst first."""
    right = table["true_class"] == table["class_1"]
    print(f"accuracy {100 * right.mean():.2f} % of the {len(table):,} images that lie in folders named like classes")
    classes = right.groupby(table["true_class"]).agg(["size", "sum"])
    for name, (size, count) in (
        classes.assign(share=classes["sum"] / classes["size"])
        .sort_values("share")[["size", "sum"]]
        .head(_ROWS)
        .iterrows()
    ):
        wrong = table["class_1"][(table["true_class"] == name) & ~right].value_counts()
        taken = f", most often taken for {wrong.index[0]} ({wrong.iloc[0]:,})" if len(wrong) else ""
        print(f"  {name}: {count:,} of {size:,} right{taken}")
    if len(classes) > _ROWS:
        print(f"  and {len(classes) - _ROWS} more classes, which are better")
