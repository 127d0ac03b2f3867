"""The shipped weights: files in half precision, made from runs, and what was measured of each.

    python -m resnet_study.reports.model_cards --version=NAME --weights=cifar10    # ships a run in the place of what was shipped
    python -m resnet_study.reports.model_cards                                     # measures all files again

`resnet_study/pretrained/cards.json` has a card for each file; README.md and two figures beside it are made from the cards.
"""

import sys
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

import cifar10_input
from hyper_parameters import from_preset
from resnet_study import devices
from resnet_study.calibration import change_temperature, error_by_chance
from resnet_study.class_names import read_class_names
from resnet_study.command_line import Parser
from resnet_study.data import corruptions
from resnet_study.errors import UsageError, run_command
from resnet_study.files import hash_file, read_json, write_atomically, write_json
from resnet_study.metrics import measure
from resnet_study.networks import registry
from resnet_study.networks.multiply_adds import multiply_adds
from resnet_study.predictor import Predictor
from resnet_study.reports.canvas import STYLE, save_figure
from resnet_study.reports.published import list_cifar_numbers
from resnet_study.reports.reliability import draw_calibrations
from resnet_study.reports.results import describe_origin
from resnet_study.reports.tables import table_lines
from resnet_study.run_folder import RunFolder
from resnet_study.saved_models import halve_weights, load_model
from resnet_study.studies.robustness import draw_robustness
from resnet_study.training.work import training_pflop

_WEAKEST = 3  # classes that a card names
# What a card and its diagram tell of the probabilities of a file.
_OF_PROBABILITIES = ("calibration_error", "brier_score", "loss", "reliability")


def ship(run: RunFolder, weights: str, folder: Path = registry.PRETRAINED) -> dict:
    """Writes the file of a run, calibrated where `--mode=calibrate` has written such a model, and returns its card.

    Args:
        run: of `cifar10_main.py`, on CIFAR-10 or CIFAR-100.
        weights: one of `registry.SHIPPED`.
        folder: where to.

    Returns:
        What is known of the training; `measure_file` adds the rest.

    Raises:
        UsageError: the weights are of another data set, of a changed network, made robust or not as the name says, of another seed than 0, or
            calibrated before they were trained on.
    """
    config, recipe, _ = list_cifar_numbers(run)
    if config.model_choices:
        raise UsageError(
            f"expected a network as its name says, received one with {config.model_choices}; ship another run"
        )
    if bool(config.corrupt) != weights.endswith("_robust"):
        raise UsageError(
            f"--weights={weights} are not for a run with{'' if config.corrupt else 'out'} --corrupt, received {run}; give another name"
        )
    if config.dataset_name != registry.dataset_of(weights):
        raise UsageError(
            f"--weights={weights} must be of that data set, received a run on {config.dataset_name}; give another"
        )
    if config.seed:  # so that none is chosen by its test error
        raise UsageError(f"expected a run of seed 0, received seed {config.seed}; ship that one")
    origin = describe_origin(run, config)
    calibrated = run.path / "calibrated.keras"
    facts = read_json(run.path / "calibration.json", dict) if calibrated.is_file() else {}
    if facts.get("of") not in (None, hash_file(run.best)):
        raise UsageError(f"{calibrated} is of other weights than {run.best}; calibrate the run again")
    source = calibrated if facts else run.best
    halve_weights(source, folder / registry.shipped_file(config.model_name, weights).name)
    return {
        "model": config.model_name,
        "weights": weights,
        "recipe": recipe,
        "seed": config.seed,
        "chosen": "chosen on validation images" if config.chosen_by(False) else "the last of the training",
        "calibrated": facts.get("temperature"),
        # "its own validation images", or the name of the run that held some out.
        "fitted_on": f"{facts['images']:,} of {Path(facts['fitted_on']).name}" if facts else None,
        "images": read_json(run.data, {"images": dict})["images"],
        "command": config.command,
        **origin,
        "pflop": training_pflop(config, load_model(str(run.best)), run.last_step(), run),
    }


def measure_file(path: Path, test, temperature: float | None = None) -> dict:
    """What a file answers for all test images: errors and calibration, accuracies on corrupted images, its size and checksum.

    Args:
        path: `.keras` file.
        test: `cifar10_input.Split` of the test images.
        temperature: by which its logits are divided; then `uncalibrated` tells of the probabilities without it.
    """
    model = load_model(str(path))
    predictor = Predictor(model, "float32")
    names = read_class_names(path, {"": model.output_shape[-1]})[""]
    plain = predictor.predict(test.images)
    both = (plain + predictor.predict(test.images[:, :, ::-1])) / 2
    metrics = measure(plain, test.labels, names)

    def accuracy(images):
        return 100 * float(np.mean(predictor.predict(images).argmax(1) == test.labels))

    corrupted = {
        corruption: [
            accuracy(corruptions.corrupt(test.images, corruption, step)) for step in corruptions.SEVERITIES[1:]
        ]
        for corruption in corruptions.CORRUPTIONS
    }
    before = measure(change_temperature(plain, 1 / temperature), test.labels, names) if temperature else None
    return {
        **{name: metrics[name] for name in ("error", *_OF_PROBABILITIES)},
        "uncalibrated": before and {name: before[name] for name in _OF_PROBABILITIES},
        "weakest": {
            row["class"]: 100 * row["recall"]
            for row in sorted(metrics["per_class"], key=lambda row: row["recall"])[:_WEAKEST]
        },
        "error_flip": measure(both, test.labels, names)["error"],
        "corrupted": corrupted,
        "parameters": model.count_params(),
        "multiply_adds": multiply_adds(model),
        "bytes": path.stat().st_size,
        "sha256": hash_file(path),
    }


def read_test_images(weights: str, data_dir: str):
    """The test images of what weights were trained on, a `cifar10_input.Split`."""
    return cifar10_input.load_data(from_preset("fast", dataset=registry.dataset_of(weights), data_dir=data_dir)).test


def write_cards(cards: list[dict], folder: Path = registry.PRETRAINED) -> Path:
    """Writes `cards.json` and the README.md that shows them; returns the latter."""
    cards = sorted(
        cards, key=lambda card: (registry.SHIPPED.index(card["weights"]), card["multiply_adds"], card["model"])
    )
    write_json(folder / "cards.json", cards)
    introduction = _INTRODUCTION.format(megabytes=sum(card["bytes"] for card in cards) / 1e6)
    lines, rows = introduction.strip().splitlines(), []
    for card in cards:
        worst = {name: values[-1] for name, values in card["corrupted"].items()}
        rows.append(
            [
                f"`{card['model']}_{card['weights']}.keras`",
                f"{card['error']:.2f} %",
                f"{card['error_flip']:.2f} %",
                f"{card['calibration_error']:.1f}",
                f"{worst['noise']:.1f} %",
                f"{worst['jpeg']:.1f} %",
                f"{card['multiply_adds'] / 1e6:.1f} M",
                f"{card['bytes']:,}",
            ]
        )
    header = [
        "file",
        "test error",
        "with mirror image",
        "calibration error, points",
        "accuracy under noise",
        "as JPEG",
        "multiply-adds",
        "bytes",
    ]
    lines += ["", *table_lines(header, "lrrrrrrr", rows), "", "![calibration](calibration.png)"]
    datasets = dict.fromkeys(registry.dataset_of(card["weights"]) for card in cards)
    lines += [f"![robustness on {dataset}](robustness-{dataset}.png)" for dataset in datasets]
    for card in cards:
        lines += ["", f"## {card['model']}, {card['weights']}", "", *_describe(card)]
    path = folder / "README.md"
    write_atomically(path, "\n".join(lines) + "\n")
    return path


def draw_cards(cards: list[dict], folder: Path = registry.PRETRAINED) -> None:
    """Draws `calibration.png` of all cards, and of each data set `robustness-<data set>.png`."""
    table = pd.DataFrame(
        [
            {
                "dataset": registry.dataset_of(card["weights"]),
                "model": card["model"],
                "preset": card["weights"],
                "seed": card["seed"],
            }
            | {"corruption": corruption, "severity": severity, "accuracy": accuracy}
            for card in cards
            for corruption, accuracies in card["corrupted"].items()
            for severity, accuracy in enumerate([100 - card["error"], *accuracies])
        ]
    )
    with matplotlib.rc_context(STYLE):
        named = {f"{card['model']}, {card['weights']}": card for card in cards}
        save_figure(draw_calibrations(named), folder / "calibration.png")
        for dataset in dict.fromkeys(registry.dataset_of(card["weights"]) for card in cards):
            part = table[table["dataset"] == dataset]
            save_figure(draw_robustness(part, dataset), folder / f"robustness-{dataset}.png")


def _describe(card):
    """The card of one file."""
    temperature, before = card["calibrated"], card["uncalibrated"]
    spec = registry.find(card["model"])
    weakest = ", ".join(f"{name} {recall:.1f} %" for name, recall in card["weakest"].items())
    steps = ", ".join(f"{name} {values[0]:.1f} .. {values[-1]:.1f} %" for name, values in card["corrupted"].items())
    return [
        f"- network: {spec.summary} ({spec.source}), {card['parameters']:,} parameters",
        f"- recipe: {card['recipe']}, seed {card['seed']}; weights: {card['chosen']}",
        f"- command: `{card['command']}`",
        f"- data: {card['images']['training']:,} training images of {registry.dataset_of(card['weights'])}, and {card['images']['validation']:,} more held out",
        f"- training: {card['images_seen']:,} images seen, {card['pflop']:.3f} PFLOP, "
        + (f"{card['wall_seconds'] / 60:.0f} min " if card["wall_seconds"] else "")
        + f"on {card['hardware']}",
        f"- probabilities: expected calibration error {card['calibration_error']:.2f} points "
        f"(by chance {error_by_chance(pd.DataFrame(card['reliability'])):.2f}), Brier score {card['brier_score']:.4f}; "
        + (
            f"logits divided by the temperature {temperature:.3f}, fitted on {card['fitted_on']}; {before['calibration_error']:.2f} points and "
            f"{before['brier_score']:.4f} before"
            if temperature
            else "as trained, not calibrated"
        ),
        f"- weaknesses: the lowest recalls are {weakest}; accuracy on corrupted test images, from the lowest severity to the highest: {steps}",
        f"- sha256: `{card['sha256']}`",
    ]


_INTRODUCTION = """
# Shipped weights

Models with their weights, their pixel normalisation and the names of their classes: raw pixels 0..255, RGB, 32 x 32 in,
probabilities out. The builders load them, such as `build_resnet20(weights="cifar10")`; on the command line, `--test_ckpt_path=cifar10` those of
`--model`. All are in half precision. To open a file with `keras.models.load_model`, `import resnet` first.

Made by `python -m resnet_study.reports.model_cards`; not to be edited. Everything was measured on all 10,000 test images, once for each file. Seed 0 is
shipped, whichever seed came out best. The mirror image gives half of the answer where that is said. Noise has a standard deviation of a tenth of the pixel range,
and JPEG the quality 40; the data sets have neither. Expected calibration error: 15 bins; by chance: what
a model would have of it whose answers are right exactly as often as their confidence says. Together the files take {megabytes:.1f} MB.
"""


def main(argv=None) -> int:
    """Ships a run, or measures all files again. Returns the exit code, see `run_command`."""

    def run():
        parser = Parser(prog="python -m resnet_study.reports.model_cards", description=__doc__)
        parser.add_argument("--version", help="run to ship")
        parser.add_argument("--runs_dir", default="runs", help="[runs]")
        parser.add_argument(
            "--weights", choices=registry.SHIPPED, default="cifar10", help="what the builders call them [cifar10]"
        )
        parser.add_argument("--data_dir", default="", help="folder of CIFAR-10 and CIFAR-100 [Keras' cache]")
        flags = parser.parse_args(argv)
        for name in ("weights", "runs_dir"):
            if not flags.version and getattr(flags, name) != parser.get_default(name):
                raise UsageError(
                    f"--{name} is about the run to ship, received --{name}={getattr(flags, name)} and no --version; give that too, or leave it out"
                )
        devices.import_tensorflow()
        devices.share_batches()
        cards = {(card["model"], card["weights"]): card for card in registry.read_cards()}
        if flags.version:
            source, test = (
                RunFolder(Path(flags.runs_dir).expanduser() / flags.version),
                read_test_images(flags.weights, flags.data_dir),
            )
            # Measured before it takes the place of what ships, whose card would tell of another file after a stop.
            with tempfile.TemporaryDirectory(dir=registry.PRETRAINED) as place:
                card = ship(source, flags.weights, Path(place))
                (file,) = Path(place).iterdir()
                card |= measure_file(file, test, card["calibrated"])
                cards[card["model"], card["weights"]] = card
                file.replace(registry.PRETRAINED / file.name)
        else:
            for key, card in cards.items():
                test = read_test_images(key[1], flags.data_dir)
                card |= measure_file(registry.shipped_file(*key), test, card["calibrated"])
        print(f"written: {write_cards(list(cards.values()))}")
        draw_cards(read_json(registry.PRETRAINED / "cards.json", list))

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
