"""The command line of the CIFAR side: train, test, predict, export.

python cifar10_main.py --mode=train                          # CIFAR-10, ResNet-20, preset fast
python cifar10_main.py --mode=train --dataset=digits         # a minute, no download
python cifar10_main.py --mode=test --version=NAME
python cifar10_main.py --mode=predict --version=NAME --images PATH...
python cifar10_main.py --mode=export --version=NAME --format=litert,onnx --quantize=int8
python cifar10_main.py --mode=compare --models=resnet20,plain20 --datasets=digits --seeds=0,1,2
"""

import argparse
import sys
from pathlib import Path

import hyper_parameters
from resnet_study import devices
from resnet_study.errors import UsageError, run_command
from resnet_study.presets import PRESETS
from resnet_study.reports.console import (
    add_explain_flags,
    add_export_flags,
    print_exports,
    print_predictions,
    print_result,
)
from resnet_study.run_folder import RunFolder, find_run, find_settings, run_around
from resnet_study.settings import Parser, add_flags

# The settings that the name of a run folder follows from.
_NAMING = (
    "version", "runs_dir", "preset", "model", "num_residual_blocks", "dataset", "seed", "validation_fraction",
)  # fmt: skip
STUDIES = ("compare", "degradation", "robustness", "diagram")
# Which of the flags that are no settings each mode takes. A study goes on by itself, with --resume and without.
_TAKES = {
    "train": ("resume", "overwrite"),
    "test": (),
    "predict": ("images", "explain", "explain_limit"),
    "export": ("format", "quantize", "pixels", "compare", "images"),
    "publish": ("results_dir", "experiment"),
    "compare": ("models", "datasets", "seeds", "resume"),
    "degradation": ("depths", "short", "seeds", "resume"),
    "robustness": ("models", "datasets", "seeds", "resume"),
    "diagram": ("models", "resume"),
}


def make_parser() -> argparse.ArgumentParser:
    presets = "\n".join(f"  {name:<13} {preset.summary}" for name, preset in PRESETS.items())
    parser = Parser(
        prog="cifar10_main.py",
        description="Trains and tests residual networks for small images, and classifies images with them.",
        epilog=f"presets:\n{presets}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--mode",
        choices=tuple(_TAKES),
        required=True,
        help="train = train, test and draw; test = test and draw a finished run; predict = classify --images; "
        "export = write a model as files for phones, browsers and servers; "
        "publish = put a tested run or a study among the project's results; "
        "compare = networks against each other on several data sets; degradation = plain against residual networks at several "
        "depths; robustness = accuracy on corrupted test images; diagram = draw networks and their blocks",
    )
    parser.add_argument(
        "--images", nargs="+", default=[], metavar="PATH", help="image files or folders, for --mode=predict and export"
    )
    add_explain_flags(parser)
    add_export_flags(parser)
    parser.add_argument("--resume", action="store_true", help="go on with the run from its last checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="start again in a folder that already holds a run")
    parser.add_argument(
        "--results_dir", default="results", metavar="DIR", help="the project's results, for --mode=publish [results]"
    )
    parser.add_argument(
        "--experiment",
        default="",
        metavar="NAME",
        help="list of results to add to, for --mode=publish [the data set; of a study its name]",
    )
    studies = parser.add_argument_group(
        "studies of several runs",
        "They train what is missing, reuse what is finished, and go on where they were stopped.",
    )
    studies.add_argument(
        "--models",
        type=_list_of(str),
        metavar="NAME,...",
        help="networks, each perhaps with a preset or seeds of its own: NAME:PRESET, NAME@0, NAME@0-2 [--model]",
    )
    studies.add_argument("--datasets", type=_list_of(str), metavar="NAME,...", help="data sets [--dataset]")
    studies.add_argument("--seeds", type=_parse_seeds, metavar="INT,...", help="seeds, such as 0,1,2 or 0-2 [--seed]")
    studies.add_argument(
        "--depths",
        type=_list_of(int),
        metavar="INT,...",
        default=[20, 32, 44, 56],
        help="depths 6n+2 for --mode=degradation [20,32,44,56]",
    )
    studies.add_argument(
        "--short", action="store_true", help="--mode=degradation in about an hour on two cores: preset degradation"
    )
    add_flags(parser, hyper_parameters.HyperParameters)
    return parser


def _list_of(kind):
    """A parser of comma-separated values, for argparse, which names it in its messages."""

    def parse(text):
        return [kind(part) for part in text.split(",")]

    parse.__name__ = f"comma-separated {kind.__name__}"
    return parse


def _parse_seeds(text):
    """ "0,3-5" -> [0, 3, 4, 5]."""
    seeds = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if dash and int(last) < int(first):
            raise ValueError(part)
        seeds += range(int(first), int(last if dash else first) + 1)
    return seeds


_parse_seeds.__name__ = "comma-separated int"  # how argparse calls it in its messages


def main(argv=None) -> int:
    """Runs one command. Returns the exit code: 0, 2 for what the user can mend (one line on stderr), 130 for Ctrl-C."""
    return run_command(lambda: _run(argv))


def _run(argv):
    parser = make_parser()
    flags = vars(parser.parse_args(argv))
    fields = hyper_parameters.HyperParameters.__dataclass_fields__
    actions = {name: flags.pop(name) for name in list(flags) if name not in fields}
    _check_actions(actions, parser)
    if actions["mode"] in STUDIES:
        try:
            return _study(flags, actions)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(str(stop) or "stopped; the same command again goes on with the study") from stop
    if actions["resume"] and actions["overwrite"]:
        raise UsageError("--resume and --overwrite exclude each other; give one of them")
    if actions["mode"] == "train" and flags.get("test_ckpt_path"):
        raise UsageError(
            "--test_ckpt_path is for --mode=test, predict and export; give --ckpt_path to start from weights"
        )
    config = _settings(flags, actions)
    devices.import_tensorflow()
    {"train": _train, "test": _test, "predict": _predict, "export": _export, "publish": _publish}[actions["mode"]](
        config, actions
    )


def _check_actions(actions, parser):
    """Raises UsageError for a flag that the mode would ignore."""
    mode = actions["mode"]
    if mode in STUDIES and actions["overwrite"]:
        raise UsageError("--overwrite is for single runs; a study keeps what is finished, delete run folders by hand")
    for name, value in actions.items():
        if name != "mode" and value != parser.get_default(name) and name not in _TAKES[mode]:
            takers = " and ".join(other for other, taken in _TAKES.items() if name in taken)
            raise UsageError(f"--mode={mode} has no --{name}, received one; leave it out, it is for {takers}")


def _study(flags, actions):
    if flags.get("test_ckpt_path"):
        raise UsageError("--test_ckpt_path is for --mode=test, predict and export; a study tests its own runs")
    if actions["mode"] == "degradation" and (named := {"model", "num_residual_blocks"} & flags.keys()):
        raise UsageError(
            f"--mode=degradation has no --{min(named)}, received one; leave it out, --depths names the networks"
        )
    given = {name: value for name, value in flags.items() if name not in ("model", "seed")}
    defaults = hyper_parameters.from_flags(flags)
    seeds = actions["seeds"] or [defaults.seed]
    models = actions["models"] or [defaults.model]
    devices.import_tensorflow()
    if actions["mode"] == "diagram":
        from resnet_study.studies.diagrams import draw_study

        folder = draw_study(given, models)
    else:
        from resnet_study.studies.compare import compare
        from resnet_study.studies.degradation import degrade
        from resnet_study.studies.robustness import measure_robustness

        if actions["mode"] == "degradation":
            folder = degrade(given, actions["depths"], seeds, actions["short"])
        else:
            datasets = actions["datasets"] or [given.pop("dataset", defaults.dataset)]
            study = {"compare": compare, "robustness": measure_robustness}
            folder = study[actions["mode"]](given, models, datasets, seeds)
    print((folder / "report.md").read_text(encoding="utf-8"), f"written to {folder}", sep="\n")


def _settings(flags, actions):
    """The settings of the run: those it has stored, where it exists and goes on, changed by the flags that were given."""
    mode, make = actions["mode"], hyper_parameters.from_flags
    if flags.get("test_ckpt_path"):
        return make(_read_data_flags(flags) | flags)
    run = find_run(make, flags, _NAMING)
    if mode == "publish" and (run.path / "study.json").is_file():
        return make(flags)
    if mode in ("test", "predict", "export") and not run.holds_run():
        raise UsageError(
            f"expected a run in {run}, found none; train it first, give another --version, or --test_ckpt_path=cifar10 for the "
            "shipped weights"
        )
    goes_on, begins = actions["resume"] or mode != "train", mode == "train"
    return find_settings(run, hyper_parameters.HyperParameters, make, flags, goes_on=goes_on, begins=begins)


def _read_data_flags(flags):
    """The flags of the data that the model of `test_ckpt_path` was trained on, where a run tells of them and none are given."""
    path = flags["test_ckpt_path"]
    run = None if path == "cifar10" else run_around(path)
    if run is None or not run.holds_run():
        return {}
    stored = run.read_config(hyper_parameters.HyperParameters)
    return (
        {} if "dataset" in flags else {name: getattr(stored, name) for name in ("dataset", "synthetic_images", "heads")}
    )


def _train(config, actions):
    from cifar10_train import train

    train(config, resume=actions["resume"], overwrite=actions["overwrite"])
    if devices.is_chief(config.strategy):
        _test(config, actions)


def _test(config, _actions):
    from cifar10_test import evaluate

    result, run = evaluate(config)
    print_result(result)
    if not config.test_ckpt_path and result["last_step"] < config.train_steps:
        print(
            f"note: the run has trained {result['last_step']:,} of {config.train_steps:,} steps, these are the weights of step "
            f"{result['best_step']:,}; --mode=train --version={run.path.name} --resume goes on with it"
        )
    if run.holds_run():
        from resnet_study.reports.figures import draw

        draw(run, config.data_dir)
    print(f"written: {run.result}" + (f", figures in {run.figures}" if run.holds_run() else ""))


def _predict(config, actions):
    from cifar10_test import predict

    print_predictions(predict(config, actions["images"]), actions["explain"], actions["explain_limit"])


def _export(config, actions):
    from cifar10_test import export

    options = {name: actions[name] for name in ("quantize", "pixels")}
    print_exports(export(config, actions["format"], **options, compared=actions["compare"], paths=actions["images"]))


def _publish(config, actions):
    from resnet_study.reports.results import publish, publish_study

    run, results = RunFolder(f"{config.runs_dir}/{config.run_name}"), Path(actions["results_dir"])
    if (run.path / "study.json").is_file():
        print(f"written: {publish_study(run.path, actions['experiment'] or run.path.name, results)}")
    else:
        print(f"written: {publish(run, actions['experiment'] or config.dataset, results)}")


if __name__ == "__main__":
    sys.exit(main())
